//! The network between nodes and the control plane: slow, lossy, repeating, cut.
//!
//! A message that is late is applied when nobody waits for it any more; one that comes twice may come again seconds later, after
//! others, and after its node has begun another life.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use rand::Rng as _;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tollway_data::lease::Call;
use tollway_data::lease::link::CallFault;
use tollway_proto::lease::{LeaseAnswer, LeaseCall};
use tollway_shared::lease::message::Recall;

use super::control;
use super::plant;
use super::run::World;

type Heard = Result<LeaseAnswer, CallFault>;
/// What a node says, and where the answer goes.
pub(crate) type Said = (LeaseCall, oneshot::Sender<Heard>);

/// What happens to one message.
struct Fate {
    there_ms: u64,
    back_ms: u64,
    lost: bool,
    answer_lost: bool,
    again_ms: Option<u64>,
}

fn fate(world: &World) -> Fate {
    let (lost, twice) = if world.is_calm() {
        (0.0, 0.0)
    } else {
        world.rates.get()
    };
    let most = world.plan.delay_ms;
    let slow = !world.is_calm();
    world.draw(|rng| {
        let mut delay = || {
            if slow && rng.random_bool(0.03) {
                rng.random_range(300..6_000)
            } else {
                rng.random_range(1..=most)
            }
        };
        Fate {
            there_ms: delay(),
            back_ms: delay(),
            lost: rng.random_bool(lost),
            answer_lost: rng.random_bool(lost),
            again_ms: rng.random_bool(twice).then(|| rng.random_range(5..9_000)),
        }
    })
}

/// A node's way to the control plane, and the other end of it.
pub(crate) fn line() -> (Call, mpsc::UnboundedReceiver<Said>) {
    let (says, said) = mpsc::unbounded_channel::<Said>();
    let call: Call = Arc::new(move |call, patience| {
        let (answer, answered) = oneshot::channel();
        let sent = says.send((call, answer)).is_ok();
        async move {
            let unanswered = |why: &str| Err(CallFault::Unanswered(why.into()));
            match timeout(patience, answered).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) => unanswered(if sent { "cut off" } else { "nobody listens" }),
                Err(_) => unanswered("too slow"),
            }
        }
        .boxed()
    });
    (call, said)
}

/// Carries what a node says for as long as its process lives; what is under way arrives all the same.
pub(crate) async fn carry(world: Rc<World>, node: usize, mut said: mpsc::UnboundedReceiver<Said>) {
    while let Some((call, answer)) = said.recv().await {
        let fate = fate(&world);
        world.note(|| format!("node {node} says {call:?}"));
        let world = world.clone();
        tokio::task::spawn_local(async move {
            if let Some(ms) = fate.again_ms {
                let (world, call) = (world.clone(), call.clone());
                tokio::task::spawn_local(async move {
                    sleep(Duration::from_millis(ms)).await;
                    hear(&world, node, call).await;
                });
            }
            sleep(Duration::from_millis(fate.there_ms)).await;
            if fate.lost || world.nodes.borrow()[node].cut {
                // Half of what is lost is seen to be lost.
                if fate.there_ms.is_multiple_of(2) {
                    world.limbo.borrow_mut().push(answer);
                }
                return;
            }
            let heard = hear(&world, node, call).await;
            sleep(Duration::from_millis(fate.back_ms)).await;
            if fate.answer_lost || world.nodes.borrow()[node].cut {
                return world.limbo.borrow_mut().push(answer);
            }
            if let Some(heard) = heard {
                world.note(|| format!("node {node} hears {heard:?}"));
                let _ = answer.send(plant::answer(&world, node, heard));
            }
        });
    }
}

async fn hear(world: &Rc<World>, node: usize, call: LeaseCall) -> Option<Heard> {
    let id = world.nodes.borrow()[node].id.clone();
    let call = plant::call(world, call)?;
    let answer = control::answer(world, &id, call).await?;
    Some(answer.map_err(|_| CallFault::Foreign))
}

/// Tells the node that has this incarnation, on the stream of snapshots.
pub(crate) fn recall(world: &Rc<World>, recall: Recall) {
    let fate = fate(world);
    if fate.lost {
        return; // told again with the next confirmation
    }
    for ms in [Some(fate.there_ms), fate.again_ms].into_iter().flatten() {
        let (world, recall) = (world.clone(), recall.clone());
        tokio::task::spawn_local(async move {
            sleep(Duration::from_millis(ms)).await;
            let member = world
                .control
                .borrow()
                .state()
                .books
                .members
                .get(&recall.incarnation)
                .cloned();
            let Some(member) = member else { return };
            let nodes = world.nodes.borrow();
            for node in nodes.iter().filter(|node| node.id == member.node && !node.cut) {
                if let Some(process) = &node.process {
                    plant::recalled(&world, process, &recall);
                    process.desk.recall(recall.clone());
                }
            }
        });
    }
}
