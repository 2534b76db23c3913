//! What goes wrong, and what operators do meanwhile.

use std::rc::Rc;
use std::time::Duration;

use rand::Rng as _;
use rand::seq::IndexedRandom as _;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};
use tollway_proto::command::Command;
use tollway_shared::budget::terms::Raise;
use tollway_shared::ids::AdminId;
use tollway_shared::lease::member::Standing;

use super::plan::NODES;
use super::run::World;
use super::{catalog, control, node};

const HOUR_MS: i64 = 3_600_000;

/// Faults at random moments, for as long as the plan says.
pub(crate) async fn run(world: &Rc<World>) {
    let end = Instant::now() + world.plan.faults_for;
    let mean = world.plan.fault_every_ms;
    let mut version = 0;
    while Instant::now() < end {
        sleep(Duration::from_millis(
            world.draw(|rng| rng.random_range(mean / 4..=mean * 2)),
        ))
        .await;
        version += 1;
        world.count(|figures| figures.faults += 1);
        one(world, version);
        control::follow(world, world.draw(|rng| rng.random_range(0..control::REPLICAS)));
    }
}

fn one(world: &Rc<World>, version: u32) {
    let n = world.draw(|rng| rng.random_range(0..NODES));
    match world.draw(|rng| rng.random_range(0..100)) {
        0..10 => mend(world),
        10..20 => cut(world, &[n]),
        20..23 => cut(world, &[n, (n + 1) % NODES, (n + 2) % NODES]),
        23..38 => away(world, n, Harm::Killed),
        38..44 => away(world, n, Harm::PowerLost),
        44..46 => away(world, n, Harm::DiskLost),
        46..51 => away(world, n, Harm::Stopped),
        51..58 => control::lose_leader(world, true),
        58..62 => control::lose_leader(world, false),
        62..68 => jump(world, n),
        68..71 => jump_replica(world),
        71..74 => storm(world),
        74..78 => fence(world),
        78..81 => twin(world),
        81..87 => raise(world),
        87..92 => change_limit(world),
        _ => change_price(world, version),
    }
}

fn set_cut(world: &World, n: usize, cut: bool) {
    let mut nodes = world.nodes.borrow_mut();
    nodes[n].cut = cut;
    nodes[n].look();
}

fn mend(world: &World) {
    world.note(|| "mended".into());
    (0..=NODES).for_each(|n| set_cut(world, n, false));
    world.rates.set((world.plan.lost, world.plan.twice));
}

fn cut(world: &World, nodes: &[usize]) {
    world.note(|| format!("nodes {nodes:?} are cut off"));
    nodes.iter().for_each(|n| set_cut(world, *n, true));
}

#[derive(Debug, Clone, Copy)]
enum Harm {
    Killed,
    PowerLost,
    DiskLost,
    Stopped,
}

/// A node goes away, and comes back after a while.
fn away(world: &Rc<World>, n: usize, harm: Harm) {
    let ms = world.draw(|rng| rng.random_range(20..4_000));
    let world = world.clone();
    spawn_local(async move {
        if world.is_calm() {
            return;
        }
        match harm {
            Harm::Killed => drop(node::kill(&world, n).await),
            Harm::PowerLost => node::lose_power(&world, n).await,
            Harm::DiskLost => node::lose_disk(&world, n).await,
            Harm::Stopped => node::stop(&world, n).await,
        }
        sleep(Duration::from_millis(ms)).await;
        if !world.is_calm() {
            node::start(&world, n);
        }
    });
}

fn jump(world: &World, n: usize) {
    let ms = world.draw(|rng| match rng.random_range(0..3) {
        0 => 0,
        1 => rng.random_range(-3_000..=3_000),
        _ => rng.random_range(-HOUR_MS..=HOUR_MS),
    });
    world.note(|| format!("node {n}'s clock is off by {ms} ms"));
    world.nodes.borrow()[n].clock.skew_ms.set(ms);
}

fn jump_replica(world: &World) {
    let replica = world.draw(|rng| rng.random_range(0..control::REPLICAS));
    let ms = world.draw(|rng| rng.random_range(-HOUR_MS..=HOUR_MS / 20));
    world.note(|| format!("replica {replica}'s clock is off by {ms} ms"));
    world.control.borrow_mut().skew(replica, ms);
}

fn storm(world: &World) {
    world.note(|| "a storm".into());
    world.rates.set((0.35, 0.4));
}

/// An operator declares a life dead, rightly or not; and frees what it has when it has spent nothing more.
fn fence(world: &Rc<World>) {
    let lives: Vec<_> = {
        let control = world.control.borrow();
        let members = control.state().books.members.iter();
        let open =
            members.filter(|(_, member)| !matches!(member.standing, Standing::Closed | Standing::Released));
        open.map(|(life, _)| *life).collect()
    };
    let Some(life) = world.draw(|rng| lives.choose(rng).copied()) else {
        return;
    };
    let world = world.clone();
    spawn_local(async move {
        world.note(|| format!("{life} is fenced"));
        control::propose(&world, Command::FenceIncarnation(life)).await;
    });
}

/// Another machine starts under the first node's name.
fn twin(world: &Rc<World>) {
    let n = NODES;
    let ms = world.draw(|rng| rng.random_range(500..4_000));
    let world = world.clone();
    spawn_local(async move {
        if world.is_calm() {
            return;
        }
        node::start(&world, n);
        sleep(Duration::from_millis(ms)).await;
        drop(node::kill(&world, n).await);
    });
}

fn raise(world: &Rc<World>) {
    let budget = world
        .draw(|rng| world.plan.budgets.choose(rng).cloned())
        .expect("there are budgets");
    let clear = world.draw(|rng| rng.random_bool(0.2));
    let command = if clear {
        Command::ClearRaises(budget.id)
    } else {
        let ms = world.draw(|rng| rng.random_range(500..8_000));
        Command::RaiseBudget {
            raise: Raise {
                amount: world.draw(|rng| rng.random_range(1..=budget.terms.limit / 3)),
                until: world.now().plus_ms(ms),
                author: AdminId::trusted("root"),
                reason: "a launch".into(),
            },
            budget: budget.id,
        }
    };
    write(world, command);
}

fn change_limit(world: &Rc<World>) {
    let mut budget = world
        .draw(|rng| world.plan.budgets.choose(rng).cloned())
        .expect("there are budgets");
    let percent = world.draw(|rng| rng.random_range(40..180));
    budget.terms.limit = (budget.terms.limit * percent / 100).max(1);
    write(world, Command::PutBudget(budget.into()));
}

fn change_price(world: &Rc<World>, version: u32) {
    let endpoint = world.draw(|rng| rng.random_range(0..catalog::ENDPOINTS.len()));
    let (input, output) = catalog::ENDPOINTS[endpoint];
    let percent = world.draw(|rng| rng.random_range(40..300));
    let now = (input * percent / 100, output * percent / 100);
    let from = world.now().plus_ms(world.draw(|rng| rng.random_range(30..4_000)));
    write(world, catalog::price(endpoint, version, from, now));
}

fn write(world: &Rc<World>, command: Command) {
    let world = world.clone();
    spawn_local(async move {
        control::propose(&world, command).await;
    });
}
