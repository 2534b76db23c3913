//! The request path of Tollway: authenticates, routes, relays and meters. Keeps nothing that a restart may not lose, except the
//! last good snapshot, the usage spool and the journals of its leases.
//!
//! | file | what |
//! |---|---|
//! | [`run`], [`config`], [`ops`] | start and stop; settings; health and metrics |
//! | [`server`] | connections of callers, their deadlines, one runtime per core |
//! | [`api`] | which path leads where, answers and errors |
//! | [`pipeline`], [`stages`] | the request path as a list, one file per stage |
//! | [`ask`], [`routing`], [`health`], [`credentials`], [`dialects`] | PURE: what is asked, who may serve it and with which key, wire formats |
//! | [`upstream`] | the only opener of connections to providers |
//! | [`catalog`], [`usage`] | what comes from the control plane; what goes to the usage log |
//! | [`lengths`], [`ratios`] | PURE: how long an endpoint's answers are and how many tokens its texts, as its answers have shown |
//! | [`lease`] | budgets: money that may be spent without asking anybody |
//! | [`reading`] | what tenants read of their own usage, asked of a control peer |
//! | [`peers`] | unary calls to whichever control peer answers |
//! | [`identity`] | who this node is: join, certificate, secrets |
//! | [`plane`] | what the requests of one core share |

pub mod api;
pub mod ask;
pub mod catalog;
pub mod clock;
pub mod config;
pub mod credentials;
pub mod dialects;
pub mod health;
pub mod identity;
pub mod lease;
pub mod lengths;
pub mod logs;
pub mod metrics;
pub mod minute;
pub mod ops;
pub mod peers;
pub mod pipeline;
pub mod plane;
pub mod ratios;
pub mod reading;
pub mod routing;
pub mod run;
#[cfg(test)]
pub(crate) mod sample;
pub mod server;
pub mod stages;
pub mod upstream;
pub mod usage;

/// The node's own, so that what tests measure is what a node takes.
#[cfg(test)]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
