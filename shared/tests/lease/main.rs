//! Leased budgets as a whole: the real grantor and the real holders, and everything that a network and a power switch can do.
//!
//! | file | what |
//! |---|---|
//! | [`explore`] | visits every state that a model can reach, once |
//! | [`world`] | grantor, nodes, messages under way, and what the provider counted |
//! | [`steps`] | what may happen to them, and how often |
//! | [`properties`] | what must hold in each state, and after everything has healed |
//! | [`plant`] | bugs put in on purpose |
//! | [`model`] | small worlds, exhaustively |
//! | [`walk`] | larger worlds, by random walks |
//! | [`contend`] | many nodes that want the last of a budget, with slow messages |
//! | [`refusals`] | what a node takes for a refusal |
//! | [`threads`], [`cost`] | slices under many cores, and what a hold costs with a million keys |
//!
//! Why an explorer of our own and not `stateright` (0.31, MIT): the promise that no money is lost for ever is of the form "from
//! every state it can be got back", which its checker cannot say (its `eventually` is known to miss violations on cycles and
//! joins); and it brings an HTTP server, `dashmap`, `ahash` and nine others for what is seventy lines here.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod contend;
mod cost;
mod explore;
mod model;
mod plant;
mod properties;
mod refusals;
mod steps;
mod threads;
mod walk;
mod world;
