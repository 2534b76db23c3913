//! What the suites share: the real parts they start, and how they wait for them.

pub mod kafka;
