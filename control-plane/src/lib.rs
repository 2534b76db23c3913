//! The control plane: what is true, replicated.
//!
//! | module | what |
//! |---|---|
//! | [`state`] | pure: the replicated state and the only function that changes it |
//! | [`raft`] | consensus: one log on a majority of replicas, one state on each |
//! | [`admin`] | the admin API over HTTP |
//! | [`identity`] | the certificate authority, mutual TLS, renewal |
//! | [`publish`] | push: what each region sees, and each node's stream |
//! | [`ledger`] | usage events → sums in the state |
//! | [`billing`] | usage events → rows of a store in SQL, for whoever reads them |
//! | [`reading`] | what tenants read of their own usage, asked by nodes |
//! | [`grantor`] | what the leader does about leased budgets |
//! | [`report`] | exports, invoices and other reports on usage |
//! | [`config`], [`run`] | settings; start and stop |
//! | [`clock`], [`metrics`] | the one reader of wall time; metric names |

pub mod admin;
pub mod billing;
pub mod clock;
pub mod config;
pub mod grantor;
pub mod identity;
pub mod ledger;
pub mod metrics;
pub mod publish;
pub mod raft;
pub mod reading;
pub mod report;
pub mod run;
pub mod state;
