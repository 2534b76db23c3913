//! The whole data plane in one process, against the scripted provider: what callers see, and exactly one event per request.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod answers;
mod crash;
mod credit;
mod failures;
mod grantor;
mod guards;
mod hang_up;
mod leases;
mod log;
mod node;
mod reading;
mod recorded;
mod refusals;
