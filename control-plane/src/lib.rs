//! The control plane: what is true, replicated.
//!
//! | module | what |
//! |---|---|
//! | [`state`] | pure: the replicated state and the only function that changes it |
//! | [`raft`] | consensus: the log, writes, linearizable reads, members |

pub mod raft;
pub mod state;
