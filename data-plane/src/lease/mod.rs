//! A node's leases: money of budgets that it may spend without asking anybody.
//!
//! | file | what |
//! |---|---|
//! | [`desk`] | what the cores see: the slices, and where to ask for more |
//! | [`claim`] | PURE: the worst that a request can cost, and the largest answer that fits |
//! | [`Leases`] | start and end |
//! | [`keeper`] | the one task: enlists, asks, reports, obeys recalls |
//! | `past` | incarnations that are over: written down, then told |
//! | [`link`] | its messages to the control plane |
//! | `written`, `journal` | what it keeps on disk, so that the next life can say what this one spent |
//! | [`inherit`] | the next life reading it |
//!
//! The arithmetic is [`tollway_shared::lease`]. What the request path does with it is in [`crate::stages::hold`].

pub mod claim;
pub mod desk;
pub mod inherit;
mod journal;
pub mod keeper;
pub mod link;
mod past;
mod start;
#[cfg(test)]
mod tests;
mod written;

pub use desk::Desk;
pub use keeper::{Inheritance, Places};
pub use link::Call;
pub use start::Leases;
