//! One run: faults, then none; then everything that is left must be got at, and all that was spent must be what is charged.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use tokio::sync::oneshot;
use tokio::task::{LocalSet, spawn_local, yield_now};
use tokio::time::{Instant, sleep};
use tollway_data::lease::link::CallFault;
use tollway_proto::command::Command;
use tollway_proto::lease::LeaseAnswer;
use tollway_proto::usage::UsageEvent;
use tollway_shared::ids::{BudgetId, Incarnation};
use tollway_shared::lease::member::Standing;
use tollway_shared::time::UnixMillis;

use super::control::{self, Control};
use super::node::{self, Clock, Node};
use super::plan::{KEYS, NODES, Plan, chance};
use super::plant::Planted;
use super::request::{self, Ask, Ended};
use super::truth::{Broken, Truth};
use super::{catalog, faults};

/// A property that did not hold.
pub(crate) type Violation = Broken;

/// How often it is noted what is in reach.
const SAMPLE_EVERY: Duration = Duration::from_millis(250);
/// A refusal is wrong if there was plenty for all of this time: longer than a node goes by "there is no more", and than a recall and
/// the nodes that do not answer it are waited for.
const PLENTY_FOR: Duration = Duration::from_millis(4_000);
/// How long nodes have to find each other again.
const HEAL_FOR: Duration = Duration::from_millis(5_000);
/// What may be left of a budget when a request is refused, parts of a hundred.
const LEFT_PERCENT: i128 = 1;

/// What a run did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    pub(crate) served: u64,
    pub(crate) refused: u64,
    pub(crate) unavailable: u64,
    pub(crate) interrupted: u64,
    pub(crate) faults: u64,
    pub(crate) entries: u64,
    pub(crate) rolls: u64,
    pub(crate) trace: u64,
}

/// Everything that the tasks of a run share.
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) plant: Option<Planted>,
    pub(crate) sample: UsageEvent,
    pub(crate) control: RefCell<Control>,
    pub(crate) nodes: RefCell<Vec<Node>>,
    pub(crate) truth: RefCell<Truth>,
    /// How much is lost, and how much comes twice.
    pub(crate) rates: Cell<(f64, f64)>,
    /// Answers that never come.
    pub(crate) limbo: RefCell<Vec<oneshot::Sender<Result<LeaseAnswer, CallFault>>>>,
    /// Requests of each node, and whether it takes any.
    pub(crate) running: RefCell<Vec<u32>>,
    pub(crate) draining: RefCell<Vec<bool>>,
    /// How many processes have been killed and are not gone yet.
    pub(crate) dying: Cell<usize>,
    pub(crate) figures: Cell<Figures>,
    rng: RefCell<ChaCha8Rng>,
    began: Instant,
    calm: Cell<Option<Instant>>,
    over: Cell<bool>,
    violation: RefCell<Option<Violation>>,
    requests: Cell<u64>,
    /// What was in reach of each budget, and since when there is a leader.
    reach: RefCell<VecDeque<(Instant, BTreeMap<BudgetId, i128>)>>,
    led_since: Cell<Option<Instant>>,
    loud: bool,
}

impl World {
    fn new(plan: Plan, plant: Option<Planted>, dir: PathBuf) -> Rc<Self> {
        let began = Instant::now();
        let first = catalog::entries(&plan);
        let sample = include_str!("../../../proto/examples/usage-event.v1.json");
        let node = |n: usize| {
            let clock = Clock {
                began,
                begin: plan.begin,
                skew_ms: Rc::default(),
            };
            // The last one is another machine under the first one's name.
            Node::new(catalog::node(n % NODES), dir.join(n.to_string()), clock)
        };
        let nodes: Vec<Node> = (0..=NODES).map(node).collect();
        let mut truth = Truth::default();
        let control = Control::new(first.clone());
        for entry in &first {
            truth.limits(entry, true, control.state());
        }
        Rc::new(Self {
            sample: serde_json::from_str(sample).expect("the example is an event"),
            control: RefCell::new(control),
            running: RefCell::new(vec![0; nodes.len()]),
            draining: RefCell::new(vec![false; nodes.len()]),
            dying: Cell::new(0),
            nodes: RefCell::new(nodes),
            truth: RefCell::new(truth),
            rates: Cell::new((plan.lost, plan.twice)),
            limbo: RefCell::default(),
            figures: Cell::default(),
            rng: RefCell::new(chance(plan.seed, "budget run")),
            began,
            calm: Cell::new(None),
            over: Cell::new(false),
            violation: RefCell::new(None),
            requests: Cell::new(0),
            reach: RefCell::default(),
            led_since: Cell::new(Some(began)),
            loud: std::env::var_os("TOLLWAY_SIM_TRACE").is_some(),
            plan,
            plant,
        })
    }

    /// The right time.
    pub(crate) fn now(&self) -> UnixMillis {
        let passed = i64::try_from(self.began.elapsed().as_millis()).unwrap_or(0);
        self.plan.begin.plus_ms(passed)
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.calm.get().is_some()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.get()
    }

    /// The next number of the seed.
    pub(crate) fn draw<T>(&self, of: impl FnOnce(&mut ChaCha8Rng) -> T) -> T {
        of(&mut self.rng.borrow_mut())
    }

    pub(crate) fn note(&self, text: impl FnOnce() -> String) {
        if self.loud {
            println!("{:>9.3} {}", self.began.elapsed().as_secs_f64(), text());
        }
    }

    /// A property does not hold. The first one counts.
    pub(crate) fn broken(&self, property: &'static str, text: String) {
        self.note(|| format!("BROKEN {property}: {text}"));
        self.violation.borrow_mut().get_or_insert((property, text));
    }

    pub(crate) fn check(&self, property: impl FnOnce(&mut Truth) -> Result<(), Broken>) {
        let held = property(&mut self.truth.borrow_mut());
        if let Err((property, text)) = held {
            self.broken(property, text);
        }
    }

    pub(crate) fn next_request(&self) -> u64 {
        self.requests.set(self.requests.get() + 1);
        self.requests.get()
    }

    pub(crate) fn count(&self, add: impl FnOnce(&mut Figures)) {
        let mut figures = self.figures.get();
        add(&mut figures);
        self.figures.set(figures);
    }

    /// Lets every task run that can.
    pub(crate) async fn settle_down(&self) {
        for _ in 0..20 {
            yield_now().await;
        }
    }

    /// A request has ended.
    pub(crate) fn ended(&self, n: usize, ask: &Ask, ended: &Ended) {
        self.note(|| format!("node {n}: {ask:?}: {ended:?}"));
        self.count(|figures| match ended {
            Ended::Served => figures.served += 1,
            Ended::Refused(..) | Ended::Stopped(_) | Ended::TooDear => figures.refused += 1,
            Ended::Unavailable => figures.unavailable += 1,
            Ended::Interrupted => figures.interrupted += 1,
        });
        let (budget, wanted) = match ended {
            Ended::Refused(budget, wanted) => (budget, *wanted),
            Ended::Stopped(budget) => (budget, 0),
            _ => return,
        };
        // While messages are lost, and for as long as it takes to find that out, nobody can say what is in reach.
        let long = |since: Option<Instant>| since.is_some_and(|since| since.elapsed() >= PLENTY_FOR);
        let settled = self
            .calm
            .get()
            .is_some_and(|calm| calm.elapsed() >= 2 * PLENTY_FOR);
        if !settled || !long(self.nodes.borrow()[n].near_since) || !long(self.led_since.get()) {
            return;
        }
        self.sample_reach();
        let control = self.control.borrow();
        let Some(account) = control.state().books.accounts.get(budget) else {
            return;
        };
        let most = i128::from(account.book.limit);
        let reach = self.reach.borrow();
        let samples = reach.iter().filter(|(at, _)| at.elapsed() <= PLENTY_FOR);
        let least = samples.map(|(_, of)| of.get(budget).copied().unwrap_or(0)).min();
        if least.unwrap_or(0) > i128::from(wanted) + most * LEFT_PERCENT / 100 {
            let text = format!(
                "node {n} refuses {ask:?} ({ended:?}), and for {PLENTY_FOR:?} at least {least:?} of {most} were in reach: {:?}",
                account.book
            );
            self.broken("refused", text);
        }
    }

    fn sample_reach(&self) {
        let control = self.control.borrow();
        let led = control.leader().is_some();
        self.led_since
            .set(led.then(|| self.led_since.get().unwrap_or_else(Instant::now)));
        let nodes = self.nodes.borrow();
        let near = |life: &Incarnation| {
            nodes.iter().any(|node| {
                let process = node.process.as_ref().filter(|_| !node.cut);
                process.is_some_and(|process| process.desk.shelf().incarnation == *life)
            })
        };
        let (truth, state) = (self.truth.borrow(), control.state());
        let budgets = state.books.accounts.keys();
        let of = budgets
            .map(|id| (id.clone(), truth.reachable(state, id, near)))
            .collect();
        let mut reach = self.reach.borrow_mut();
        reach.push_back((Instant::now(), of));
        while reach.front().is_some_and(|(at, _)| at.elapsed() > PLENTY_FOR) {
            reach.pop_front();
        }
    }
}

/// Runs one seed from the first message to the last check.
pub(crate) fn run(seed: u64, plant: Option<Planted>) -> Result<Figures, Violation> {
    let thread = std::thread::Builder::new()
        .name(format!("budget-seed-{seed}"))
        .stack_size(16 << 20)
        .spawn(move || {
            crate::entropy::pin(seed);
            let memory = PathBuf::from("/dev/shm");
            let base = if memory.is_dir() {
                memory
            } else {
                std::env::temp_dir()
            };
            let dir = base.join(format!("tollway-budget-{}-{seed}", std::process::id()));
            std::fs::create_dir_all(&dir).expect("a folder for the nodes' disks");
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .expect("a runtime without I/O needs nothing from the system");
            let story = story(Plan::of(seed), plant, dir.clone());
            let told = LocalSet::new().block_on(&runtime, story);
            drop(std::fs::remove_dir_all(dir));
            told
        });
    let ended = thread.expect("one more thread is possible").join();
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

async fn story(plan: Plan, plant: Option<Planted>, dir: PathBuf) -> Result<Figures, Violation> {
    let world = World::new(plan, plant, dir);
    let whole = whole_story(&world);
    tokio::pin!(whole);
    loop {
        tokio::select! {
            biased;
            () = &mut whole => break,
            () = sleep(Duration::from_millis(20)) => {}
        }
        if world.violation.borrow().is_some() {
            break;
        }
    }
    world.over.set(true);
    match world.violation.borrow().clone() {
        Some(violation) => Err(violation),
        None => {
            let mut figures = world.figures.get();
            let control = world.control.borrow();
            figures.entries = control.entries() as u64;
            figures.rolls = control.state().books.last_epoch - world.plan.budgets.len() as u64;
            let state = tollway_shared::seal::sha256(&control.state().encode());
            figures.trace = u64::from_le_bytes(state[..8].try_into().expect("eight of 32"));
            Ok(figures)
        }
    }
}

async fn whole_story(world: &Rc<World>) {
    for n in 0..NODES {
        node::start(world, n);
        spawn_local(request::callers(world.clone(), n));
    }
    spawn_local(control::begin_windows(world.clone()));
    let watched = world.clone();
    spawn_local(async move {
        while !watched.is_over() {
            watched.sample_reach();
            sleep(SAMPLE_EVERY).await;
        }
    });
    faults::run(world).await;
    heal(world).await;
    drain(world).await;
    end(world).await;
}

/// Ends every fault. Operators release what nobody can account for, where that is the truth.
async fn heal(world: &Rc<World>) {
    world.note(|| "the faults end".into());
    world.calm.set(Some(Instant::now()));
    while world.draining.borrow().contains(&true) || world.dying.get() > 0 {
        sleep(Duration::from_millis(50)).await;
    }
    node::stop(world, NODES).await;
    control::heal(world);
    for n in 0..NODES {
        {
            let mut nodes = world.nodes.borrow_mut();
            nodes[n].cut = false;
            nodes[n].clock.skew_ms.set(0);
            nodes[n].look();
        }
        node::start(world, n);
    }
    sleep(HEAL_FOR).await;
    // The other machine is never seen again, but its disk is: it starts, and says what it spent.
    if world.nodes.borrow()[NODES].dir.exists() {
        node::start(world, NODES);
        sleep(HEAL_FOR).await;
        node::stop(world, NODES).await;
        node::kill(world, 0).await;
        node::start(world, 0);
        sleep(HEAL_FOR).await;
    }
    let lost = world.truth.borrow().lost.clone();
    for life in lost {
        let standing = world
            .control
            .borrow()
            .state()
            .books
            .members
            .get(&life)
            .map(|member| member.standing);
        if matches!(standing, None | Some(Standing::Closed)) {
            continue;
        }
        control::propose(world, Command::FenceIncarnation(life)).await;
        let known = {
            let control = world.control.borrow();
            world.truth.borrow().reported_all(control.state(), life)
        };
        if known {
            control::propose(world, Command::ReleaseIncarnation(life)).await;
        }
    }
}

/// Callers want everything that is left, at every node, in pieces that become smaller. What a refusal leaves is next to nothing.
async fn drain(world: &Rc<World>) {
    sleep(PLENTY_FOR).await;
    for key in 0..KEYS {
        // What was refused to the key before may be remembered for half a second.
        sleep(Duration::from_millis(600)).await;
        let mut n = key % NODES;
        for prompt in [4_000, 1_000, 250, 60, 15, 4] {
            for _ in 0..60 {
                n = (n + 1) % NODES;
                let ask = Ask {
                    key,
                    model: 0,
                    prompt,
                    cap: Some(prompt),
                    takes_ms: 1,
                    used: 1.0,
                };
                match request::one(world.clone(), n, ask.clone()).await {
                    Ended::Served => {}
                    Ended::Refused(budget, _) => {
                        if prompt == 4 {
                            next_to_nothing(world, &ask, &budget);
                        }
                        break;
                    }
                    Ended::TooDear => break,
                    ended => {
                        let text = format!("without a fault node {n} answers {ended:?} to {ask:?}");
                        return world.broken("available", text);
                    }
                }
            }
        }
    }
}

fn next_to_nothing(world: &World, ask: &Ask, budget: &BudgetId) {
    world.sample_reach();
    let control = world.control.borrow();
    let Some(account) = control.state().books.accounts.get(budget) else {
        return;
    };
    let reach = world.reach.borrow();
    let left = reach
        .back()
        .and_then(|(_, of)| of.get(budget))
        .copied()
        .unwrap_or(0);
    let most = i128::from(account.book.limit) * LEFT_PERCENT / 100;
    if left > most.max(1) {
        let text = format!(
            "{ask:?}: {left} of {} of {budget} are left: {:?}",
            account.book.limit, account.book
        );
        world.broken("refused", text);
    }
}

/// Every node ends in order: nothing is out any more, and what is charged is what was spent.
async fn end(world: &Rc<World>) {
    for n in 0..NODES {
        node::stop(world, n).await;
    }
    sleep(Duration::from_millis(500)).await;
    control::heal(world);
    if world.plan.segment_bytes > 1 << 20 {
        world.truth.borrow_mut().no_excuse();
    }
    let control = world.control.borrow();
    let state = control.state();
    world.check(|truth| truth.books(state));
    world.check(|truth| truth.settled(state));
    if let Some(text) = control.apart() {
        world.broken("replicas_equal", text);
    }
    if let Some(text) = tollway_control::state::invariant::dangling(state) {
        world.broken("invariant", text);
    }
}
