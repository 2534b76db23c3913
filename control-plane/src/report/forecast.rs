//! Where spending is heading: a straight line through the last seven days, from the daily sums of the replicated state. Pure.
//!
//! `forecast = spent + basis_spent × time left ÷ basis`, rounded down; the basis is the time from the beginning of the UTC day seven days
//! ago, or of the first day since then that has usage, until now.

use tollway_proto::admin::report::Forecast;
use tollway_proto::admin::text::Text;
use tollway_proto::command::UsageCell;
use tollway_shared::money::{MoneyFault, NanoUsd};
use tollway_shared::time::{Day, UnixMillis};

use super::invoice::usd;

/// Days before today that the straight line is drawn through.
pub const BASIS_DAYS: i32 = 7;

/// The first day that a forecast needs the sums of.
///
/// - `start`: when the period began.
pub fn first_day(start: UnixMillis, now: UnixMillis) -> Day {
    start.day().min(Day(now.day().0.saturating_sub(BASIS_DAYS)))
}

/// The forecast of a period that `now` lies in.
///
/// - `cells`: the sums from [`first_day`] on, in any order.
pub fn forecast<'a>(
    (start, end): (UnixMillis, UnixMillis),
    now: UnixMillis,
    cells: impl Iterator<Item = (&'a UsageCell, NanoUsd)>,
) -> Result<Forecast, MoneyFault> {
    let oldest = Day(now.day().0.saturating_sub(BASIS_DAYS));
    let (mut spent, mut basis_spent, mut first) = (0i128, 0i128, None::<Day>);
    for (cell, cost) in cells {
        if cell.day >= start.day() && cell.day.start() < end {
            spent += i128::from(cost.0);
        }
        if cell.day >= oldest {
            basis_spent += i128::from(cost.0);
            first = Some(first.map_or(cell.day, |first| first.min(cell.day)));
        }
    }
    let basis_ms = first
        .map_or(0, |first| now.0.saturating_sub(first.start().0))
        .max(0);
    let left_ms = end.0.saturating_sub(now.0).max(0);
    let coming = match basis_ms {
        0 => 0,
        basis_ms => (basis_spent * i128::from(left_ms)).div_euclid(i128::from(basis_ms)),
    };
    Ok(Forecast {
        from: Text(start),
        to: Text(end),
        spent: usd(spent)?,
        basis_spent: usd(basis_spent)?,
        basis_seconds: basis_ms.unsigned_abs() / 1_000,
        forecast: usd(spent + coming)?,
    })
}

#[cfg(test)]
mod tests {
    use tollway_shared::time::{DAY_MS, Period};

    use super::*;
    use crate::report::sample::{self, NOON};

    /// November 2026 with these costs on these days before the 22nd, at noon of the 22nd.
    fn november(costs: &[(i32, i64)]) -> Forecast {
        let (start, end) = Period::Monthly.window(NOON);
        let cells: Vec<(UsageCell, NanoUsd)> = costs
            .iter()
            .map(|(before, cost)| {
                let cell = UsageCell {
                    day: Day(NOON.day().0 - before),
                    path: sample::line().path,
                    model: sample::line().model,
                    provider: sample::line().provider,
                };
                (cell, NanoUsd(*cost))
            })
            .collect();
        let cells = cells.iter().map(|(cell, cost)| (cell, *cost));
        forecast((start, end.unwrap()), NOON, cells).unwrap()
    }

    #[test]
    fn a_forecast_is_what_was_spent_and_the_last_week_drawn_on_to_the_end() {
        // 8.5 days are left of November. Nothing, one day's half, a steady week, and what was before it.
        let steady: Vec<(i32, i64)> = (0..=7).map(|n| (n, if n == 0 { 50 } else { 100 })).collect();
        let week_ms = 7 * DAY_MS + DAY_MS / 2;
        for (costs, spent, basis_ms, forecast) in [
            (vec![], 0, 0, 0),
            (vec![(0, 50)], 50, DAY_MS / 2, 50 + 850),
            (steady.clone(), 750, week_ms, 750 + 850),
            (
                [steady.clone(), vec![(20, 1_000)]].concat(),
                1_750,
                week_ms,
                1_750 + 850,
            ),
            ([steady, vec![(40, 1_000)]].concat(), 750, week_ms, 750 + 850),
            (vec![(10, 9)], 9, 0, 9),
        ] {
            let found = november(&costs);
            let found = (found.spent.0.0, found.basis_seconds, found.forecast.0.0);
            assert_eq!(
                found,
                (spent, basis_ms.unsigned_abs() / 1_000, forecast),
                "{costs:?}"
            );
        }
    }

    #[test]
    fn a_period_shorter_than_the_basis_still_looks_a_week_back() {
        let (start, _) = Period::Daily.window(NOON);
        assert_eq!(first_day(start, NOON), Day(NOON.day().0 - 7));
        let (start, _) = Period::Monthly.window(NOON);
        assert_eq!(first_day(start, NOON).to_string(), "2026-11-01");
    }
}
