//! Everybody's books, put beside each other.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, ensure};
use tollway_proto::usage::{EndState, UsageEvent, UsageSource};
use tollway_tests::events::{self, Recorded};
use tollway_tests::provider::{End, Seen};

use crate::node::Hit;
use crate::phase::Phase;

/// The runs, and what they were.
#[derive(Debug, Default)]
pub(crate) struct Books(BTreeMap<usize, Hit>);

/// Tokens of estimated events: by the providers' count, and by the events.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    events: u64,
    counted: [u64; 2],
    estimated: [u64; 2],
}

impl Sums {
    fn add(&mut self, counted: [u64; 2], estimated: [u64; 2]) {
        self.events += 1;
        for (sums, more) in [(&mut self.counted, counted), (&mut self.estimated, estimated)] {
            sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        }
    }

    fn off(&self) -> f64 {
        let [counted, estimated] = [self.counted, self.estimated].map(|of| of.iter().sum::<u64>() as f64);
        (estimated / counted.max(1.0) - 1.0) * 100.0
    }
}

/// What the runs of one phase came to.
#[derive(Debug, Clone, Copy, Default)]
struct Row {
    points: u64,
    deaths: u64,
    requests: u64,
    interrupted: u64,
    estimates: Sums,
}

/// What the comparison found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    rows: BTreeMap<Option<Phase>, Row>,
    all: Sums,
    /// Without those that the provider counted nothing of: it refused, which a node that dies before it hears so cannot know.
    answered: Sums,
    exact: u64,
    unused: u64,
    /// Events of requests that no provider saw.
    unseen: u64,
    /// Those among them that are billed all the same: the node died between the intent and the first byte.
    estimated_unseen: Sums,
}

impl Books {
    pub(crate) fn ran(&mut self, number: usize, hit: Hit) {
        self.0.insert(number, hit);
    }

    pub(crate) fn runs(&self) -> usize {
        self.0.len()
    }

    /// Compares request by request. Errors: a request without its one event, or one that is billed otherwise than it was counted.
    pub(crate) fn compared(&self, seen: &BTreeMap<String, Vec<Seen>>, records: &[Recorded]) -> Result<Found> {
        let mut events: BTreeMap<&str, &UsageEvent> = BTreeMap::new();
        for event in events::deduplicated(records)? {
            events::recompute(event)?;
            let other = events.insert(event.request_id.as_str(), event);
            ensure!(
                other.is_none(),
                "request {} has two final events",
                event.request_id
            );
        }
        let mut found = Found::default();
        for hit in self.0.values() {
            let row = found.rows.entry(Some(hit.point.phase)).or_default();
            row.points += 1;
            if let Some(phase) = hit.died_in {
                found.rows.entry(Some(phase)).or_default().deaths += 1;
            }
        }
        for (id, attempts) in seen {
            let event = events
                .remove(id.as_str())
                .with_context(|| format!("request {id} reached a provider and has no event"))?;
            found.count(event, attempts, self.phase_of(attempts))?;
        }
        for event in events.into_values() {
            ensure!(
                event.end != EndState::Completed,
                "request {} is billed as completed, and no provider saw it",
                event.request_id
            );
            found.unseen += 1;
            let billed = [event.tokens.prompt(), event.tokens.completion()];
            if event.usage_source == UsageSource::Estimated {
                found.estimated_unseen.add([0; 2], billed);
                found.all.add([0; 2], billed);
            } else {
                ensure!(
                    billed == [0; 2],
                    "request {} is billed for nothing",
                    event.request_id
                );
            }
        }
        Ok(found)
    }

    /// Where the node died in the run that a request was part of. None for lessons.
    fn phase_of(&self, attempts: &[Seen]) -> Option<Phase> {
        let body = String::from_utf8_lossy(&attempts.first()?.body);
        let (_, rest) = body.split_once("\"run ")?;
        let number = rest.split_once(':')?.0.parse().ok()?;
        let hit = self.0.get(&number)?;
        Some(hit.died_in.unwrap_or(hit.point.phase))
    }
}

impl Found {
    fn count(&mut self, event: &UsageEvent, attempts: &[Seen], phase: Option<Phase>) -> Result<()> {
        let id = &event.request_id;
        let row = self.rows.entry(phase).or_default();
        row.requests += 1;
        row.interrupted += u64::from(event.end == EndState::Interrupted);
        let served: Vec<_> = attempts.iter().filter(|seen| seen.end != End::Refused).collect();
        ensure!(
            served.len() <= 1,
            "request {id} was served {} times",
            served.len()
        );
        let used = served.first().map(|seen| seen.used).unwrap_or_default();
        let counted = [used.prompt, used.completion];
        let billed = [event.tokens.prompt(), event.tokens.completion()];
        match event.usage_source {
            UsageSource::Provider => {
                self.exact += 1;
                ensure!(
                    counted == billed,
                    "request {id}: counted {counted:?}, billed {billed:?}"
                );
            }
            UsageSource::None => {
                self.unused += 1;
                ensure!(
                    served.iter().all(|seen| seen.end != End::Finished),
                    "request {id} was served and nothing is billed"
                );
            }
            UsageSource::Estimated => {
                ensure!(event.estimator.is_some(), "request {id} names no estimator");
                row.estimates.add(counted, billed);
                self.all.add(counted, billed);
                if !served.is_empty() {
                    self.answered.add(counted, billed);
                }
            }
        }
        Ok(())
    }

    /// Errors: the estimates are further off than so many percent in sum, or nothing was tried.
    ///
    /// - `whole`: at all points. Among a few that are taken from each phase alike, those at which a node cannot know that its provider
    ///   bills nothing are many times as frequent.
    pub(crate) fn check(&self, off_percent_max: f64, whole: bool) -> Result<()> {
        let deaths: u64 = self.rows.values().map(|row| row.deaths).sum();
        let points: u64 = self.rows.values().map(|row| row.points).sum();
        ensure!(
            deaths * 4 >= points * 3,
            "only {deaths} of {points} points were reached"
        );
        ensure!(self.exact > 0 && self.all.events > 0, "nothing to compare");
        for sums in [Some(self.answered), Some(self.all).filter(|_| whole)]
            .into_iter()
            .flatten()
        {
            let off = sums.off();
            ensure!(
                off.abs() <= off_percent_max,
                "the estimates are {off:+.2} % off in sum"
            );
        }
        Ok(())
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<11} {:>6} {:>6} {:>8} {:>11} {:>9} | prompt, completion: counted, estimated, off",
            "phase", "points", "deaths", "requests", "interrupted", "estimated"
        )?;
        for (phase, row) in &self.rows {
            let name = phase.map_or_else(|| "(lessons)".to_owned(), |phase| phase.to_string());
            let Row {
                points,
                deaths,
                requests,
                interrupted,
                estimates,
            } = row;
            writeln!(
                f,
                "{name:<11} {points:>6} {deaths:>6} {requests:>8} {interrupted:>11} {estimates}"
            )?;
        }
        writeln!(f, "{:<11} {:>34} {}", "answered", "", self.answered)?;
        writeln!(f, "{:<11} {:>34} {}", "all", "", self.all)?;
        write!(
            f,
            "{} billed as counted, {} unused; of requests that no provider saw {} events, {} of them billed {} tokens",
            self.exact,
            self.unused,
            self.unseen,
            self.estimated_unseen.events,
            self.estimated_unseen.estimated.iter().sum::<u64>()
        )
    }
}

impl fmt::Display for Sums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            events,
            counted,
            estimated,
        } = self;
        if *events == 0 {
            return write!(f, "{events:>9} |");
        }
        write!(
            f,
            "{events:>9} | {:>7} {:>6}, {:>7} {:>6}, {:+.2} %",
            counted[0],
            counted[1],
            estimated[0],
            estimated[1],
            self.off()
        )
    }
}
