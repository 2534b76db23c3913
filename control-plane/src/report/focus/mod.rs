//! The FOCUS 1.4 export: hourly lines → charges, as CSV or Parquet.
//!
//! One row per hour, API key, meter and endpoint; then, where they are not zero, one row per line for what rounding event by event left,
//! and one for its markup or discount. Invariants, to the nano-dollar: `ListCost` of all rows of lines sums to their list cost, and
//! `EffectiveCost` to what their organizations owe for them. Fees on own credentials follow, one row per day, API key, model and provider,
//! from the replicated sums; `EffectiveCost` of those is what the accounts were charged. Movements of credit come last, where
//! their transfers are not kept as one sum per month and kind.
//!
//! | column | rule |
//! |---|---|
//! | `ChargeCategory` | tokens and requests `Usage`; rounding, markup and discount `Adjustment` |
//! | | fees on own credentials `Usage`, with `SkuMeter` `BYOK Routing Fee`; their list cost is the fee |
//! | | bought credit and its fee `Purchase`, what went back the same with `ChargeClass` `Correction`, what was given `Credit` |
//! | `ListCost` = `ContractedCost` | `PricingQuantity` × `ListUnitPrice`, rounded once to a nano-dollar |
//! | `EffectiveCost`, `BilledCost` | the same; with the organization's own credential 0, and what its provider bills at list price is in `x_UpstreamCost` |
//! | credit | effective as it is used: what was bought and what went back have `EffectiveCost` 0 |
//! | prepaid | credit is billed when it is bought: usage, what was given and corrections have `BilledCost` 0 |
//! | otherwise | usage is billed, less what was given and corrected: what was bought and what went back have `BilledCost` 0 |
//! | fees on bought credit | billed and effective at once, in any mode |
//! | `SkuPriceId` | price version and meter |
//! | `x_RequestCount` | on one row of each line, so that it sums |

pub mod columns;
pub mod csv;
pub mod parquet;
pub mod rows;

#[cfg(test)]
mod tests {
    use tollway_proto::command::UsageCell;
    use tollway_shared::cost::Charge;
    use tollway_shared::ids::{OrganizationId, PriceId, TeamId};
    use tollway_shared::money::NanoUsd;
    use tollway_shared::time::UnixMillis;
    use tollway_shared::tokens::TokenCounts;

    use super::*;
    use crate::report::account::{Movement, MovementKind};
    use crate::report::fee::FeeLine;
    use crate::report::line::Line;
    use crate::report::sample;
    use crate::state::samples;

    const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/sdk/charges.csv");

    /// Every kind of charge: `tests/sdk/test_focus_export.py` holds the same file against FOCUS's own rules.
    #[test]
    fn the_charges_of_every_kind_of_line_are_those_that_were_looked_at() {
        let state = samples::catalog();
        let line = sample::line();
        let mut own = line.clone();
        (own.byok, own.billed) = (true, NanoUsd(0));
        let mut discounted = line.clone();
        discounted.billed.0 -= 1_234_567;
        discounted.path.team = Some(TeamId::trusted("t"));
        let mut marked_up = line.clone();
        marked_up.billed.0 += 1;
        marked_up.price = PriceId::trusted("p2");
        let unanswered = Line {
            tokens: TokenCounts::default(),
            charge: Charge::default(),
            billed: NanoUsd(0),
            ..line.clone()
        };
        let mut out = Vec::new();
        csv::header(&mut out).unwrap();
        for line in [line, own, discounted, marked_up, unanswered] {
            for row in rows::charges(&line, &state, UnixMillis(0)) {
                csv::row(&mut out, &row).unwrap();
            }
        }
        let of_day = FeeLine {
            organization: OrganizationId::trusted("o"),
            month: sample::NOON.day().month(),
            cell: Some(UsageCell {
                day: sample::NOON.day(),
                path: sample::line().path,
                model: sample::line().model,
                provider: sample::line().provider,
            }),
            requests: 10,
            fee: 1_234_567,
        };
        let of_month = FeeLine {
            cell: None,
            requests: 0,
            fee: 1,
            ..of_day.clone()
        };
        for fee in [of_day, of_month] {
            csv::row(&mut out, &rows::fee(&fee, &state, UnixMillis(0))).unwrap();
        }
        for (kind, amount, fee) in [
            (MovementKind::TopUp, 100_000_000_000, 5_500_000_000),
            (MovementKind::Refund, -10_000_000_000, 0),
            (MovementKind::Grant, 5_000_000_000, 0),
            (MovementKind::Adjustment, -1, 0),
        ] {
            let movement = Movement {
                at: sample::NOON,
                reference: "o/1".into(),
                is_of_month: false,
                kind,
                amount,
                fee,
            };
            let organization = OrganizationId::trusted("o");
            for row in rows::movement(&organization, &movement, &state, UnixMillis(0)) {
                csv::row(&mut out, &row).unwrap();
            }
        }
        let found = String::from_utf8(out).unwrap();
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(GOLDEN, &found).unwrap();
        }
        let kept = std::fs::read_to_string(GOLDEN).unwrap_or_default();
        assert_eq!(kept, found, "UPDATE_GOLDEN=1 rewrites it; look at the diff");
    }
}
