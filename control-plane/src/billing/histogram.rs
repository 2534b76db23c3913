//! Latencies as counts in fixed buckets, from which percentiles are read. Pure.
//!
//! Buckets are the same everywhere and for ever, so histograms of any rows add up. Below 16 ms each millisecond has one; above, every
//! doubling has eight, so that a percentile is at most an eighth of itself wide and, taken in the middle, 6 % off.
//!
//! In a store it is text, `bucket:count` with commas. Two texts joined by a comma are the sum of both, which is how SQL adds them up:
//! `group_concat` in SQLite, `string_agg` in PostgreSQL.

use std::fmt::Write as _;

/// Buckets in a doubling.
const PER_DOUBLING: u64 = 8;

/// Counts by bucket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Histogram(Vec<(u8, u64)>);

impl Histogram {
    /// Counts one latency, milliseconds.
    pub fn count(&mut self, ms: u64) {
        self.add(bucket(ms), 1);
    }

    /// Adds another one's counts.
    pub fn merge(&mut self, other: &Self) {
        for (bucket, count) in &other.0 {
            self.add(*bucket, *count);
        }
    }

    /// Adds what a store's text says. What is no count is left out: text that only we write.
    pub fn merge_text(&mut self, text: &str) {
        for pair in text.split(',') {
            let counted = pair.split_once(':');
            if let Some((Ok(bucket), Ok(count))) = counted.map(|(b, c)| (b.parse(), c.parse())) {
                self.add(bucket, count);
            }
        }
    }

    /// As a store's text.
    pub fn text(&self) -> String {
        let mut text = String::with_capacity(self.0.len() * 5);
        for (n, (bucket, count)) in self.0.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            let _ = write!(text, "{comma}{bucket}:{count}"); // writing to a text cannot fail
        }
        text
    }

    /// How many latencies were counted.
    pub fn total(&self) -> u64 {
        self.0
            .iter()
            .fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// The latency, milliseconds, that so many percent of all do not exceed: the middle of its bucket. `None` when none was counted.
    pub fn percentile(&self, percent: u64) -> Option<u64> {
        let total = u128::from(self.total());
        let rank = (total * u128::from(percent)).div_ceil(100).max(1);
        let mut below = 0u128;
        self.0.iter().find_map(|(bucket, count)| {
            below += u128::from(*count);
            (below >= rank).then(|| middle(*bucket))
        })
    }

    fn add(&mut self, bucket: u8, count: u64) {
        match self.0.binary_search_by_key(&bucket, |(bucket, _)| *bucket) {
            Ok(at) => self.0[at].1 = self.0[at].1.saturating_add(count),
            Err(at) => self.0.insert(at, (bucket, count)),
        }
    }
}

/// The bucket of a latency. Steps of one below 16, then eight to a doubling; the last one takes all that is longer than months.
fn bucket(ms: u64) -> u8 {
    if ms < PER_DOUBLING {
        return ms as u8; // below eight
    }
    let doublings = u64::from(ms.ilog2()) - 3;
    u8::try_from(doublings * PER_DOUBLING + (ms >> doublings)).unwrap_or(u8::MAX)
}

/// The middle of a bucket, milliseconds.
fn middle(bucket: u8) -> u64 {
    let bucket = u64::from(bucket);
    if bucket < 2 * PER_DOUBLING {
        return bucket;
    }
    let doublings = bucket / PER_DOUBLING - 1;
    let low = (bucket % PER_DOUBLING + PER_DOUBLING) << doublings;
    low + (1 << (doublings - 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_percentile_is_that_of_the_sorted_latencies_within_a_sixteenth(
            mut all in prop::collection::vec(prop_oneof![0u64..100, 0u64..600_000, 0u64..100_000_000], 1..200),
            percent in prop::sample::select(vec![50u64, 90, 99, 100]),
            cut in 0usize..200,
        ) {
            let cut = cut.min(all.len());
            let (mut left, mut right) = (Histogram::default(), Histogram::default());
            all[..cut].iter().for_each(|ms| left.count(*ms));
            all[cut..].iter().for_each(|ms| right.count(*ms));
            // Through the text, joined as SQL joins it.
            let mut joined = Histogram::default();
            joined.merge_text(&format!("{},{}", left.text(), right.text()));
            left.merge(&right);
            prop_assert_eq!(&joined, &left);

            all.sort_unstable();
            let exact = all[(all.len() * percent as usize).div_ceil(100) - 1];
            let found = joined.percentile(percent).unwrap();
            prop_assert!(found.abs_diff(exact) <= exact / 16, "{} is not {}", found, exact);
        }
    }

    #[test]
    fn nothing_has_no_percentiles_and_the_longest_time_has_a_bucket() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.percentile(50), None);
        histogram.count(u64::MAX);
        assert!(histogram.percentile(50) > Some(1 << 33));
    }
}
