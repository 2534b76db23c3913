//! The control plane's side of leases in this process: the real books, behind a network that repeats, delays and loses.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use futures::FutureExt;
use tollway_data::clock;
use tollway_data::lease::link::CallFault;
use tollway_data::lease::{Call, Desk};
use tollway_proto::lease::{LeaseAnswer, LeaseCall};
use tollway_shared::budget::terms::Terms;
use tollway_shared::ids::{BudgetId, Incarnation, NodeId};
use tollway_shared::lease::book::Book;
use tollway_shared::lease::grantor::Books;
use tollway_shared::lease::message::{Closing, Effect};

#[derive(Default)]
struct State {
    books: Books,
    desks: BTreeMap<NodeId, Arc<OnceLock<Desk>>>,
    whose: BTreeMap<Incarnation, NodeId>,
    closings: Vec<Closing>,
    /// How often each node was started: what an earlier life says is not heard any more.
    lives: BTreeMap<NodeId, u64>,
    down: bool,
}

/// The books; cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Grantor {
    state: Arc<Mutex<State>>,
    calls: Arc<AtomicU64>,
    /// Whether messages come twice, late, and without an answer.
    rough: bool,
}

impl Grantor {
    pub(crate) fn rough() -> Self {
        Self {
            rough: true,
            ..Self::default()
        }
    }

    pub(crate) fn put(&self, budget: &BudgetId, terms: &Terms) {
        let (mut state, now) = (self.state.lock().unwrap(), clock::now());
        let span = terms.cycle.span(now).unwrap();
        state.books.put(budget, terms, span, 0, now);
    }

    /// Nobody answers from now on, or everybody does again.
    pub(crate) fn set_down(&self, down: bool) {
        self.state.lock().unwrap().down = down;
    }

    pub(crate) fn book(&self, budget: &BudgetId) -> Book {
        self.state.lock().unwrap().books.accounts[budget].book.clone()
    }

    pub(crate) fn closings(&self) -> Vec<Closing> {
        self.state.lock().unwrap().closings.clone()
    }

    /// Declares every incarnation of a node dead.
    pub(crate) fn fence(&self, node: &str) {
        let node = NodeId::trusted(node);
        self.state.lock().unwrap().books.remove_node(&node, clock::now());
    }

    /// How a node of this name calls, and where its desk is to be left.
    pub(crate) fn joined(&self, node: &str) -> (Call, Arc<OnceLock<Desk>>) {
        let (node, desk) = (NodeId::trusted(node), Arc::<OnceLock<Desk>>::default());
        let life = {
            let mut state = self.state.lock().unwrap();
            state.desks.insert(node.clone(), desk.clone());
            let life = state.lives.entry(node.clone()).or_default();
            *life += 1;
            *life
        };
        let grantor = self.clone();
        let call: Call = Arc::new(move |call, _| {
            let (grantor, node) = (grantor.clone(), node.clone());
            async move {
                let number = grantor.calls.fetch_add(1, Ordering::Relaxed);
                if grantor.rough {
                    tokio::time::sleep(Duration::from_millis(number * 7 % 5)).await;
                }
                let gone = {
                    let state = grantor.state.lock().unwrap();
                    state.down || state.lives[&node] != life
                };
                if gone {
                    return Err(CallFault::Unanswered("down".into()));
                }
                if grantor.rough && number % 3 == 0 {
                    grantor.apply(call.clone(), &node);
                }
                let answer = grantor.apply(call, &node);
                match grantor.rough && number % 7 == 3 {
                    true => Err(CallFault::Unanswered("lost".into())),
                    false => Ok(answer),
                }
            }
            .boxed()
        });
        (call, desk)
    }

    fn apply(&self, call: LeaseCall, node: &NodeId) -> LeaseAnswer {
        let (mut state, now) = (self.state.lock().unwrap(), clock::now());
        let (answer, effects) = match call {
            LeaseCall::Enlist(incarnation) => {
                state.whose.insert(incarnation, node.clone());
                let live = state.books.enlist(incarnation, node, now);
                (LeaseAnswer::Enlisted { incarnation, live }, Vec::new())
            }
            LeaseCall::Ask(ask) => {
                let (answer, effects) = state.books.grant(&ask, now);
                (LeaseAnswer::Answer(answer), effects)
            }
            LeaseCall::Report(report) => {
                let (confirmed, effects) = state.books.settle(&report, now);
                (LeaseAnswer::Confirmed(confirmed), effects)
            }
            LeaseCall::Closing(closing) => {
                let (known, effects) = state.books.close(&closing, node, now);
                let incarnation = closing.incarnation;
                state.closings.push(closing);
                (LeaseAnswer::Closed { incarnation, known }, effects)
            }
        };
        assert_eq!(state.books.broken(), None);
        for effect in effects {
            if let Effect::Recall(recall) = effect
                && let Some(desk) = state
                    .whose
                    .get(&recall.incarnation)
                    .and_then(|node| state.desks[node].get())
            {
                desk.recall(recall);
            }
        }
        answer
    }
}
