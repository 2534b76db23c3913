//! Three replicas of the control plane: the real `state::apply`, on a log that is simulated.
//!
//! One leader appends; an entry is committed a moment later, and answered. A leader that is lost leaves the newest entries behind,
//! of which a new leader keeps some: nobody is answered, and what was written may have been. Followers lag. A replica that comes
//! back reads its checkpoint and the log.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use rand::Rng as _;
use tokio::sync::oneshot;
use tokio::time::sleep;
use tollway_control::state::{State, apply, budget, invariant, lease, view};
use tollway_proto::command::{Command, Entry, Outcome, Receipt};
use tollway_proto::lease::{LeaseAnswer, LeaseCall};
use tollway_shared::ids::NodeId;
use tollway_shared::lease::message::Effect;
use tollway_shared::snapshot::Snapshot;

use super::plant;
use super::run::World;

/// Replicas.
pub(crate) const REPLICAS: usize = 3;
/// Batches of windows that are begun before a command, as in the product.
const BATCHES_MAX: usize = 8;

struct Replica {
    state: State,
    up: bool,
    skew_ms: i64,
}

/// The control plane.
pub(crate) struct Control {
    log: Vec<Entry>,
    committed: usize,
    replicas: Vec<Replica>,
    leader: Option<usize>,
    term: u64,
    /// Who waits for what is at this place of the log.
    waiting: BTreeMap<usize, oneshot::Sender<Outcome>>,
    /// What nodes are to see of the newest state.
    snapshot: Rc<Snapshot>,
}

impl Control {
    /// A control plane that has applied these commands.
    pub(crate) fn new(log: Vec<Entry>) -> Self {
        let mut state = State::default();
        for (index, entry) in (1..).zip(&log) {
            let applied = apply(&mut state, index, entry);
            assert!(
                matches!(applied.outcome, Outcome::Done(_)),
                "{}: {:?}",
                entry.command.name(),
                applied.outcome
            );
        }
        let replica = || Replica {
            state: state.clone(),
            up: true,
            skew_ms: 0,
        };
        Self {
            committed: log.len(),
            log,
            replicas: (0..REPLICAS).map(|_| replica()).collect(),
            leader: Some(0),
            term: 1,
            waiting: BTreeMap::new(),
            snapshot: Rc::new(snapshot(&state)),
        }
    }

    /// The newest state there is.
    pub(crate) fn state(&self) -> &State {
        let newest = self.replicas.iter().max_by_key(|replica| replica.state.applied);
        &newest.expect("there are replicas").state
    }

    pub(crate) fn snapshot(&self) -> Rc<Snapshot> {
        self.snapshot.clone()
    }

    pub(crate) fn leader(&self) -> Option<usize> {
        self.leader
    }

    pub(crate) fn skew(&mut self, replica: usize, ms: i64) {
        self.replicas[replica].skew_ms = ms;
    }

    pub(crate) fn entries(&self) -> usize {
        self.committed
    }

    /// What differs between replicas that have applied everything.
    pub(crate) fn apart(&self) -> Option<String> {
        let first = &self.replicas[0].state;
        let other = self.replicas.iter().position(|replica| replica.state != *first)?;
        Some(format!("replica {other} is in another state than replica 0"))
    }

    /// An up replica other than the leader, by lot, or the leader.
    fn some(&self, lot: usize) -> Option<usize> {
        let up: Vec<usize> = (0..REPLICAS)
            .filter(|replica| self.replicas[*replica].up)
            .collect();
        up.get(lot % up.len().max(1)).copied()
    }
}

/// All that nodes see of a state.
fn snapshot(state: &State) -> Snapshot {
    let mut all = Snapshot::at(state.revision);
    for resource in view::all(state) {
        all.put(resource, [0; 32]);
    }
    all
}

/// Writes a command; `None` when nobody answers, which says nothing about what became of it.
pub(crate) async fn propose(world: &Rc<World>, command: Command) -> Option<Outcome> {
    for _ in 0..BATCHES_MAX {
        let rolls = {
            let control = world.control.borrow();
            let leader = &control.replicas[control.leader?];
            budget::due(&leader.state, &command, world.now().plus_ms(leader.skew_ms))
        };
        if rolls.is_empty() || matches!(command, Command::RollBudgets(_)) {
            break;
        }
        append(world, Command::RollBudgets(rolls))?.await.ok()?;
    }
    append(world, command)?.await.ok()
}

/// Begins every window that is due and ends every raise that is over, as the leader does each second.
pub(crate) async fn begin_windows(world: Rc<World>) {
    while !world.is_over() {
        sleep(Duration::from_millis(700)).await;
        let (rolls, expired) = {
            let control = world.control.borrow();
            let Some(leader) = control.leader.map(|leader| &control.replicas[leader]) else {
                continue;
            };
            let idle = Command::RollBudgets(Vec::new());
            let now = world.now().plus_ms(leader.skew_ms);
            (
                budget::due(&leader.state, &idle, now),
                budget::has_expired_raise(&leader.state, now),
            )
        };
        if expired || !rolls.is_empty() {
            propose(&world, Command::RollBudgets(rolls)).await;
        }
    }
}

fn append(world: &Rc<World>, mut command: Command) -> Option<oneshot::Receiver<Outcome>> {
    let mut control = world.control.borrow_mut();
    let leader = &control.replicas[control.leader?];
    let at = world.now().plus_ms(leader.skew_ms);
    budget::stamp(&leader.state, &mut command, at);
    control.log.push(Entry {
        at,
        actor: "root".into(),
        idempotency: None,
        if_revision: None,
        command,
    });
    let (answer, answered) = oneshot::channel();
    let (place, term) = (control.log.len(), control.term);
    control.waiting.insert(place, answer);
    drop(control);
    let delay = Duration::from_millis(world.draw(|rng| rng.random_range(1..=12)));
    let world = world.clone();
    tokio::task::spawn_local(async move {
        sleep(delay).await;
        commit(&world, place, term);
    });
    Some(answered)
}

/// A majority has everything up to `place`: the leader applies it.
fn commit(world: &Rc<World>, place: usize, term: u64) {
    loop {
        let mut control = world.control.borrow_mut();
        let Some(leader) = control
            .leader
            .filter(|_| control.term == term && control.committed < place)
        else {
            return;
        };
        control.committed += 1;
        let index = control.committed;
        let entry = control.log[index - 1].clone();
        let (outcome, effects) = applied(world, &mut control, leader, index, &entry);
        if let Some(waiting) = control.waiting.remove(&index) {
            let _ = waiting.send(outcome);
        }
        drop(control);
        for effect in effects {
            if let Effect::Recall(recall) = effect {
                super::wire::recall(world, recall);
            }
        }
    }
}

/// Applies the entry that was just committed at the leader, and checks all that must hold then.
fn applied(
    world: &Rc<World>,
    control: &mut Control,
    leader: usize,
    index: usize,
    entry: &Entry,
) -> (Outcome, Vec<Effect>) {
    let state = &mut control.replicas[leader].state;
    world.note(|| format!("{index}: {:?}", entry.command));
    let mut done = apply(state, index as u64, entry);
    plant::state(world, state, entry, leader);
    world
        .truth
        .borrow_mut()
        .limits(entry, matches!(done.outcome, Outcome::Done(_)), state);
    world.check(|truth| truth.books(state));
    if let Some(text) = invariant::broken(state) {
        world.broken("invariant", text);
    }
    if !done.changed.is_empty() {
        let mut next = (*control.snapshot).clone();
        for key in &done.changed {
            match view::resource(state, key) {
                Some(resource) => next.put(resource, [0; 32]),
                None => next.remove(key),
            }
        }
        control.snapshot = Rc::new(next);
    }
    if let Outcome::Refused(refusal) = &done.outcome {
        world.note(|| format!("{index}: refused: {refusal}"));
    }
    (done.outcome, std::mem::take(&mut done.effects))
}

/// Answers a node's word, as the push service of some replica does.
pub(crate) async fn answer(
    world: &Rc<World>,
    node: &NodeId,
    call: LeaseCall,
) -> Option<Result<LeaseAnswer, String>> {
    let lot = world.draw(|rng| rng.random_range(0..REPLICAS));
    {
        let control = world.control.borrow();
        let replica = control.some(lot)?;
        // A replica that is cut off does not say what it has: `contact` sees to that. With a leader there is a majority.
        control.leader?;
        if let Some(answer) = lease::unchanged(&control.replicas[replica].state, node, &call) {
            return Some(Ok(answer));
        }
    }
    let command = Command::Lease {
        node: node.clone(),
        call,
    };
    match propose(world, command).await? {
        Outcome::Done(Receipt {
            lease: Some(answer), ..
        }) => Some(Ok(*answer)),
        Outcome::Done(_) => Some(Err("no answer".into())),
        Outcome::Refused(refusal) => Some(Err(refusal.to_string())),
    }
}

/// A follower applies what is committed.
pub(crate) fn follow(world: &Rc<World>, replica: usize) {
    let control = &mut *world.control.borrow_mut();
    if !control.replicas[replica].up || control.leader == Some(replica) {
        return;
    }
    catch_up(world, control, replica);
}

fn catch_up(world: &Rc<World>, control: &mut Control, replica: usize) {
    let state = &mut control.replicas[replica].state;
    let from = usize::try_from(state.applied).expect("a small number");
    for (index, entry) in (from + 1..=control.committed).zip(&control.log[from..]) {
        apply(state, index as u64, entry);
        plant::state(world, state, entry, replica);
    }
}

/// The leader is gone: nobody it owes an answer gets one. Another is found after a while.
pub(crate) fn lose_leader(world: &Rc<World>, dies: bool) {
    let control = &mut *world.control.borrow_mut();
    let Some(leader) = control.leader.take() else {
        return;
    };
    control.term += 1;
    control.waiting.clear();
    // What some replica has besides what is committed stays; the rest is gone.
    let open = control.log.len() - control.committed;
    let kept = world.draw(|rng| rng.random_range(0..=open));
    control.log.truncate(control.committed + kept);
    world.note(|| {
        format!(
            "leader {leader} is lost, with {} entries; {kept} stay",
            open - kept
        )
    });
    if dies {
        control.replicas[leader].up = false;
        let away = Duration::from_millis(world.draw(|rng| rng.random_range(200..4_000)));
        let world = world.clone();
        tokio::task::spawn_local(async move {
            sleep(away).await;
            come_back(&world, leader);
        });
    }
    let wait = Duration::from_millis(world.draw(|rng| rng.random_range(150..2_500)));
    let world = world.clone();
    tokio::task::spawn_local(async move {
        sleep(wait).await;
        elect(&world);
    });
}

/// A replica reads its checkpoint.
fn come_back(world: &Rc<World>, replica: usize) {
    let control = &mut *world.control.borrow_mut();
    let bytes = control.replicas[replica].state.encode();
    match State::decode(&bytes) {
        Ok(state) if state == control.replicas[replica].state => control.replicas[replica].state = state,
        Ok(_) => world.broken("replicas_equal", "a checkpoint reads as another state".into()),
        Err(fault) => world.broken("replicas_equal", format!("a checkpoint cannot be read: {fault}")),
    }
    control.replicas[replica].up = true;
    catch_up(world, control, replica);
    world.note(|| format!("replica {replica} is back"));
}

fn elect(world: &Rc<World>) {
    let mut control = world.control.borrow_mut();
    if control.leader.is_some() {
        return;
    }
    let lot = world.draw(|rng| rng.random_range(0..REPLICAS));
    let leader = control.some(lot).expect("one replica is lost at a time");
    catch_up(world, &mut control, leader);
    control.leader = Some(leader);
    control.term += 1;
    let (place, term) = (control.log.len(), control.term);
    drop(control);
    world.note(|| format!("replica {leader} leads"));
    commit(world, place, term);
}

/// Every replica up, every entry applied, every clock right.
pub(crate) fn heal(world: &Rc<World>) {
    for replica in 0..REPLICAS {
        let up = world.control.borrow().replicas[replica].up;
        if !up {
            come_back(world, replica);
        }
        world.control.borrow_mut().skew(replica, 0);
    }
    elect(world);
    for replica in 0..REPLICAS {
        follow(world, replica);
    }
}
