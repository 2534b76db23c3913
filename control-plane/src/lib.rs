//! The control plane: what is true, replicated.
//!
//! | module | what |
//! |---|---|
//! | [`state`] | pure: the replicated state and the only function that changes it |

pub mod state;
