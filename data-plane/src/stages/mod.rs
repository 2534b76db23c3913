//! The request path, one file per stage, in the order of [`crate::pipeline::handle`].

pub mod abandon;
pub mod admit;
pub mod attempt;
pub mod authenticate;
mod credential;
pub mod hold;
pub mod opening;
pub mod plan;
mod progress;
pub mod receive;
pub mod relay;
pub mod report;
pub mod settle;
