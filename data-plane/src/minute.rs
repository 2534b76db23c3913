//! Requests for free models per organization and minute, on this node.
//!
//! Each node counts for itself: a cluster of n nodes lets at most n times as many through. What holds for the whole cluster is the
//! daily quota, which is leased like a budget.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tollway_shared::ids::OrganizationId;
use tollway_shared::time::UnixMillis;

/// Milliseconds of a window.
const MINUTE_MS: i64 = 60_000;

/// The counts of the running minute, of every core.
#[derive(Debug, Default)]
pub struct FreeMinute(Mutex<(i64, BTreeMap<OrganizationId, u32>)>);

impl FreeMinute {
    /// Counts a request. When there have been `most` already: when the next minute begins.
    pub fn take(&self, organization: &OrganizationId, most: u32, now: UnixMillis) -> Result<(), UnixMillis> {
        let minute = now.0.div_euclid(MINUTE_MS);
        // Nothing in here can panic, so what is in it is sound.
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.0 != minute {
            *counts = (minute, BTreeMap::new());
        }
        let count = counts.1.entry(organization.clone()).or_default();
        if *count >= most {
            return Err(UnixMillis((minute + 1) * MINUTE_MS));
        }
        *count += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_a_minute_go_for_each_organization() {
        let minute = FreeMinute::default();
        let (one, other) = (OrganizationId::trusted("one"), OrganizationId::trusted("other"));
        let at = |ms: i64| UnixMillis(1_795_348_800_000 + ms);
        for _ in 0..20 {
            assert_eq!(minute.take(&one, 20, at(1)), Ok(()));
        }
        assert_eq!(minute.take(&one, 20, at(59_999)), Err(at(60_000)));
        assert_eq!(minute.take(&other, 20, at(59_999)), Ok(()));
        assert_eq!(minute.take(&one, 20, at(60_000)), Ok(()));
    }
}
