//! What the suites share: the real parts they start, and how they wait for them.

pub mod kafka;
pub mod process;
pub mod wait;

/// The scripted provider, a package of its own so that the bench and other processes can use it.
pub use tollway_provider as provider;
