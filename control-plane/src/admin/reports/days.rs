//! The days that a report is about.

use tollway_shared::time::Day;

use super::super::fault::Fault;
use super::super::params::{Params, wrong_param};

/// Most days of one report: as many as the replicated sums are kept for.
const DAYS_MAX: i32 = crate::state::usage::DAYS_KEPT;

/// The days `from` to `to`, both wanted.
pub(super) fn take_days(params: &mut Params) -> Result<(Day, Day), Fault> {
    let mut day = |name: &str| {
        params
            .take_text::<Day>(name)?
            .ok_or_else(|| wrong_param(name, "is missing; it is a UTC day such as 2026-11-01"))
    };
    let (from, to) = (day("from")?, day("to")?);
    checked(from, to).map_err(|why| wrong_param("from", why))
}

/// Checks days against each other.
pub(super) fn checked(from: Day, to: Day) -> Result<(Day, Day), String> {
    if from > to {
        return Err(format!("{from} is after `to`, which is {to}"));
    }
    if to.0.saturating_sub(from.0) >= DAYS_MAX {
        return Err(format!("there are more than {DAYS_MAX} days from {from} to {to}"));
    }
    Ok((from, to))
}
