//! The figures: one value a round, their median and spread, ratios to the floor, the table and the file.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use crate::load::{Outcome, Times};

/// Median, smallest and largest of the rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// `None` without a value.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted: Vec<_> = values.iter().copied().filter(|value| value.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { median, min, max })
    }
}

/// Value at quantile `q` by nearest rank; `NaN` without values, which no spread counts.
pub(crate) fn quantile(times: &[Times], q: f64, of: impl Fn(&Times) -> f64) -> f64 {
    let mut values: Vec<_> = times.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    let rank = (values.len() as f64 * q).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// One line of the report: a measure of one workload, for each target one value a round.
#[derive(Debug, Default)]
struct Line {
    rounds: BTreeMap<&'static str, Vec<f64>>,
}

/// Everything measured so far.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    lines: BTreeMap<(usize, &'static str, usize, &'static str), Line>,
    order: Vec<&'static str>,
    pub(crate) failures: BTreeMap<String, String>,
    pub(crate) failed: u64,
    pub(crate) warnings: Vec<String>,
}

/// Measures in the order they are printed.
const MEASURES: [&str; 14] = [
    "cpu us/request",
    "cpu us/event",
    "requests/s",
    "p50 us",
    "p99 us",
    "first byte p50 us",
    "added p50 us",
    "added p99 us",
    "added first byte p50 us",
    "added first byte p99 us",
    "idle cpu ms/s",
    "resident KiB, idle",
    "KiB per open stream",
    "resident KiB, after load",
];

impl Figures {
    /// Adds the value of one round.
    pub(crate) fn add(
        &mut self,
        workload: &'static str,
        measure: &'static str,
        target: &'static str,
        value: f64,
    ) {
        let workload_order = self
            .order
            .iter()
            .position(|name| *name == workload)
            .unwrap_or_else(|| {
                self.order.push(workload);
                self.order.len() - 1
            });
        let order = MEASURES
            .iter()
            .position(|name| *name == measure)
            .unwrap_or(MEASURES.len());
        let line = self
            .lines
            .entry((workload_order, workload, order, measure))
            .or_default();
        line.rounds.entry(target).or_default().push(value);
    }

    /// Keeps the failures of a round.
    pub(crate) fn add_failures(&mut self, workload: &str, target: &str, outcome: &Outcome) {
        self.failed += outcome.failures;
        if let Some(failure) = &outcome.first_failure {
            self.failures
                .entry(format!("{workload} at {target}"))
                .or_insert_with(|| failure.clone());
        }
    }

    /// The table as it is printed.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "{:<18} {:<25} {:>28} {:>28} {:>22}",
            "workload", "measure", "floor", "gateway", "gateway / floor"
        );
        for report in self.reports() {
            let cell = |target| report.targets.get(target).map_or_else(|| "-".to_owned(), shown);
            let ratio = report.ratio.as_ref().map_or_else(|| "-".to_owned(), shown);
            let (floor, gateway) = (cell("floor"), cell("gateway"));
            let _ = writeln!(
                text,
                "{:<18} {:<25} {floor:>28} {gateway:>28} {ratio:>22}",
                report.workload, report.measure
            );
        }
        text
    }

    /// Every line with spreads and ratios.
    pub(crate) fn reports(&self) -> Vec<Report> {
        self.lines
            .iter()
            .map(|((_, workload, _, measure), line)| Report {
                workload,
                measure,
                targets: line
                    .rounds
                    .iter()
                    .filter_map(|(target, values)| Some((*target, Spread::of(values)?)))
                    .collect(),
                ratio: ratio(line),
                rounds: line.rounds.clone(),
            })
            .collect()
    }
}

/// One line of the results file.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) workload: &'static str,
    pub(crate) measure: &'static str,
    pub(crate) targets: BTreeMap<&'static str, Spread>,
    /// Gateway over floor, round by round, so that what slows the machine down slows both.
    pub(crate) ratio: Option<Spread>,
    pub(crate) rounds: BTreeMap<&'static str, Vec<f64>>,
}

fn ratio(line: &Line) -> Option<Spread> {
    let (floor, gateway) = (line.rounds.get("floor")?, line.rounds.get("gateway")?);
    let ratios: Vec<_> = floor
        .iter()
        .zip(gateway)
        .filter(|(floor, _)| **floor > 0.0)
        .map(|(floor, gateway)| gateway / floor)
        .collect();
    Spread::of(&ratios)
}

fn shown(spread: &Spread) -> String {
    let digits = |value: f64| match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    };
    format!(
        "{} ({}..{})",
        digits(spread.median),
        digits(spread.min),
        digits(spread.max)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_the_median_between_the_extremes() {
        assert_eq!(
            Spread::of(&[3.0, 1.0, 2.0]),
            Some(Spread {
                median: 2.0,
                min: 1.0,
                max: 3.0
            })
        );
        assert_eq!(
            Spread::of(&[4.0, 2.0, f64::NAN]).map(|spread| spread.median),
            Some(3.0)
        );
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn a_quantile_is_a_value_that_was_measured() {
        let times: Vec<_> = (1..=100)
            .map(|us| Times {
                first_us: 0.0,
                total_us: f64::from(us),
            })
            .collect();
        assert_eq!(quantile(&times, 0.5, |times| times.total_us), 50.0);
        assert_eq!(quantile(&times, 0.99, |times| times.total_us), 99.0);
        assert!(quantile(&[], 0.5, |times| times.total_us).is_nan());
    }

    #[test]
    fn a_negative_figure_keeps_its_sign() {
        let spread = Spread {
            median: 20.0,
            min: -1500.0,
            max: 3.0,
        };
        assert_eq!(shown(&spread), "20.0 (-1500..3.00)");
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let mut figures = Figures::default();
        for (floor, gateway) in [(10.0, 15.0), (20.0, 30.0), (40.0, 60.0)] {
            figures.add("w", "p50 us", "floor", floor);
            figures.add("w", "p50 us", "gateway", gateway);
        }
        assert_eq!(
            figures.reports()[0].ratio,
            Some(Spread {
                median: 1.5,
                min: 1.5,
                max: 1.5
            })
        );
    }
}
