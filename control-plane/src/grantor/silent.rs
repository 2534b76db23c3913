//! Pure: lives of nodes that no replica has been connected to for long.
//!
//! Measured by the leader's own monotonic clock, from when it first looked: a new leader waits the whole time again. Being wrong costs a
//! node a new life, and no money.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use tollway_shared::ids::Incarnation;

/// A life that is connected nowhere for this long is taken for dead: longer than a request may run.
pub const FENCE_AFTER: Duration = Duration::from_secs(30 * 60);

/// Since when lives have been connected nowhere.
#[derive(Debug, Default)]
pub struct Silent(BTreeMap<Incarnation, Instant>);

impl Silent {
    /// Takes a look at every live one and whether it is connected; gives those to fence.
    pub fn look(
        &mut self,
        live: impl Iterator<Item = (Incarnation, bool)>,
        now: Instant,
    ) -> Vec<Incarnation> {
        let before = std::mem::take(&mut self.0);
        for (incarnation, _) in live.filter(|(_, connected)| !connected) {
            let since = before.get(&incarnation).copied().unwrap_or(now);
            self.0.insert(incarnation, since);
        }
        let lost = self.0.iter().filter(|(_, since)| now - **since >= FENCE_AFTER);
        lost.map(|(incarnation, _)| *incarnation).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_life_that_stays_away_the_whole_time_is_fenced() {
        let (mut silent, begun) = (Silent::default(), Instant::now());
        let (away, back) = (Incarnation(1), Incarnation(2));
        let half = FENCE_AFTER / 2;
        let mut look = |connected: bool, after: Duration| {
            silent.look([(away, false), (back, connected)].into_iter(), begun + after)
        };
        assert_eq!(look(false, Duration::ZERO), []);
        assert_eq!(look(true, half), []);
        assert_eq!(look(false, half + half), [away]);
        assert_eq!(look(false, half * 3), [away]);
        assert_eq!(look(false, half * 4), [away, back]);
    }
}
