//! The control plane: what is true, replicated.
//!
//! | module | what |
//! |---|---|
//! | [`identity`] | the certificate authority, mutual TLS, renewal |
//! | [`ledger`] | usage events → sums in the state |
//! | [`publish`] | push: what each region sees, and each node's stream |
//! | [`raft`] | consensus: one log on a majority of replicas, one state on each |
//! | [`state`] | pure: the replicated state and the only function that changes it |

pub mod identity;
pub mod ledger;
pub mod publish;
pub mod raft;
pub mod state;
