//! The request path of Tollway: authenticates, routes, relays and meters. Keeps nothing that a restart may not lose, except the
//! last good snapshot and the usage spool.

pub mod ask;
pub mod catalog;
pub mod clock;
pub mod dialects;
pub mod usage;
