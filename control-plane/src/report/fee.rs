//! Fees on own credentials, for whoever reads money. Pure.
//!
//! A fee depends on how many requests came before it in the month, and on the rule at the moment it is counted, so the ledger's fold
//! decides it, and one entry of the log both adds it to the sums of its cell (day, tenant path, model, provider) and takes it from the
//! account. The billing store folds the usage log on its own and cannot know it. So reports read it here, in the replicated sums: the
//! very numbers that moved the account. Sums by day are forgotten in time; what was owed by month is not, and what the days do not tell
//! any more is in one line of the month.

use std::collections::BTreeMap;

use tollway_proto::command::UsageCell;
use tollway_shared::ids::OrganizationId;
use tollway_shared::money::NanoUsd;
use tollway_shared::time::{Day, Period};

use crate::state::{State, usage};

/// The fee on some requests of an organization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeeLine {
    /// Whose.
    pub organization: OrganizationId,
    /// The first day of the month in which they started.
    pub month: Day,
    /// The day, tenant path, model and provider; `None` for what is only known of the month.
    pub cell: Option<UsageCell>,
    /// How many there were.
    pub requests: u64,
    /// The fee, nano-dollars.
    pub fee: i128,
}

/// Some days of which fees are wanted, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Days {
    /// The first.
    pub from: Day,
    /// The last.
    pub to: Day,
}

/// The days from which fees are known no more but by whole months, and which are wanted as a part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "fees on own credentials before {since} are known by whole months; ask for whole months, or from {since} on"
)]
pub struct Forgotten {
    /// The first day that is known.
    pub since: Day,
}

/// The fees of an organization in the order of days: every use of own credentials in months that have fees, free ones included.
pub fn lines(state: &State, organization: &OrganizationId, days: Days) -> Result<Vec<FeeLine>, Forgotten> {
    let Some(account) = state.accounts.get(organization) else {
        return Ok(Vec::new());
    };
    let mut lines = Vec::new();
    for (month, owed) in &account.owed {
        let last = last_of(*month);
        if owed.fee == NanoUsd::ZERO || last < days.from || days.to < *month {
            continue;
        }
        let mut rest = i128::from(owed.fee.0);
        for (cell, sums) in usage::cells(state, *month, last, Some(organization)) {
            let fee = i128::from(sums.fee.0);
            rest -= fee;
            if sums.byok_requests > 0 && (days.from..=days.to).contains(&cell.day) {
                lines.push(FeeLine {
                    organization: organization.clone(),
                    month: *month,
                    cell: Some(cell.clone()),
                    requests: sums.byok_requests,
                    fee,
                });
            }
        }
        if rest == 0 {
            continue;
        }
        let since = state.usage_since;
        if days.from <= *month && last <= days.to {
            lines.push(FeeLine {
                organization: organization.clone(),
                month: *month,
                cell: None,
                requests: 0,
                fee: rest,
            });
        } else if days.from < since {
            return Err(Forgotten { since });
        }
    }
    Ok(lines)
}

/// The last day of the month that begins on a day.
fn last_of(month: Day) -> Day {
    let (_, next) = Period::Monthly.window(month.start());
    next.map_or(Day(i32::MAX), |next| Day(next.day().0 - 1))
}

/// An account beside the usage that moved it, which must be equal: what does not hold, with both amounts in nano-dollars.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Apart {
    /// Whose.
    pub organization: OrganizationId,
    /// Which of its sums.
    pub what: Compared,
    /// What the account says.
    pub account: i128,
    /// What usage says.
    pub usage: i128,
}

/// What of an account is compared with usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compared {
    /// What it ever took for usage, with what was billed in all months.
    Billed,
    /// What it ever took as fees, with those on own credentials in all months and those on credits.
    Fees,
    /// What was billed in a month, with the sums of its days.
    BilledIn(Day),
    /// Fees on own credentials in a month, with the sums of its days.
    FeesIn(Day),
}

/// Holds every account against usage: each balance that usage moves against its months, and each month of which every day is kept
/// against its days.
pub fn apart(state: &State) -> Vec<Apart> {
    use tollway_shared::credit::AccountName::{RevenueFee, RevenueUsage};
    let mut days: BTreeMap<(&OrganizationId, Day), (i128, i128)> = BTreeMap::new();
    for (cell, sums) in &state.usage {
        let of = days
            .entry((&cell.path.organization, cell.day.month()))
            .or_default();
        of.0 += i128::from(sums.billed.0);
        of.1 += i128::from(sums.fee.0);
    }
    let mut found = Vec::new();
    let mut hold = |organization: &OrganizationId, what, account: i128, usage: i128| {
        if account != usage {
            found.push(Apart {
                organization: organization.clone(),
                what,
                account,
                usage,
            });
        }
    };
    for (id, account) in &state.accounts {
        let (mut billed, mut fees) = (0, account.moved.fees());
        for (month, owed) in &account.owed {
            billed += i128::from(owed.billed.0);
            fees += i128::from(owed.fee.0);
            let summed = days.remove(&(id, *month)).unwrap_or_default();
            if *month >= state.usage_since {
                hold(id, Compared::BilledIn(*month), owed.billed.0.into(), summed.0);
                hold(id, Compared::FeesIn(*month), owed.fee.0.into(), summed.1);
            }
        }
        hold(id, Compared::Billed, account.balances.of(RevenueUsage), billed);
        hold(id, Compared::Fees, account.balances.of(RevenueFee), fees);
    }
    for ((id, month), summed) in days {
        hold(id, Compared::BilledIn(month), 0, summed.0);
        hold(id, Compared::FeesIn(month), 0, summed.1);
    }
    found
}

#[cfg(test)]
mod tests {
    use tollway_proto::command::Command;
    use tollway_shared::time::DAY_MS;

    use super::*;
    use crate::report::invoice::{Draft, Money, Month};
    use crate::state::samples::{self, NOON};
    use crate::state::usage::DAYS_KEPT;

    /// Three days of November 2026, each with a request of 5 nano-dollars and a fee of 2.
    fn used() -> State {
        let mut state = samples::catalog();
        for day in 0..3 {
            spend(&mut state, day, 2);
        }
        state
    }

    fn spend(state: &mut State, days: i32, fee: i64) {
        let from = state.usage_offsets.get(&0).copied().unwrap_or(0);
        let mut stretch = samples::spend(from, from + 1, 5);
        let spent = &mut stretch.sums[0];
        spent.cell.day = Day(NOON.day().0 + days);
        (spent.sums.byok_requests, spent.sums.fee) = (1, NanoUsd(fee));
        let at = NOON.plus_ms(i64::from(days) * DAY_MS);
        samples::run_at(state, at, Command::RecordSpend(stretch));
    }

    fn days(from: i32, to: i32) -> Days {
        let today = NOON.day().0;
        Days {
            from: Day(today + from),
            to: Day(today + to),
        }
    }

    #[test]
    fn fees_of_forgotten_days_are_still_in_their_month_and_in_no_part_of_it() {
        let organization = OrganizationId::trusted("o");
        let mut state = used();
        let sum = |state: &State, days| {
            let lines = lines(state, &organization, days);
            lines.map(|lines| lines.iter().map(|line| line.fee).sum::<i128>())
        };
        assert_eq!(sum(&state, days(0, 0)), Ok(2));
        assert_eq!(sum(&state, days(-400, 400)), Ok(6));
        assert_eq!(sum(&state, days(3, 2)), Ok(0));
        // The first two days go.
        spend(&mut state, DAYS_KEPT + 2, 0);
        assert_eq!(state.usage.len(), 2);
        let since = Day(NOON.day().0 + 2);
        assert_eq!(sum(&state, days(-400, 400)), Ok(6));
        assert_eq!(sum(&state, days(2, 400)), Ok(2));
        assert_eq!(sum(&state, days(1, 400)), Err(Forgotten { since }));
        let month = Month::parse("2026-11").unwrap();
        let whole = Days {
            from: month.start.day(),
            to: Day(month.end.day().0 - 1),
        };
        let mut draft = Draft::new(&state, organization.clone(), month);
        for line in lines(&state, &organization, whole).unwrap() {
            draft.push_fee(line).unwrap();
        }
        let invoice = draft.finish(Money::default(), vec![], month.end).unwrap();
        assert_eq!(invoice.lines.iter().map(|line| line.amount.0.0).sum::<i64>(), 2);
        assert_eq!(
            invoice.entries.iter().map(|entry| entry.amount.0.0).sum::<i64>(),
            -4
        );
        assert_eq!((invoice.totals.byok_fees.0.0, invoice.totals.total.0.0), (6, 6));
    }

    #[test]
    fn an_account_that_took_other_money_than_was_used_is_found() {
        let state = used();
        assert_eq!(apart(&state), []);
        let month = NOON.day().month();
        let found = |tamper: fn(&mut State)| {
            let mut state = state.clone();
            tamper(&mut state);
            apart(&state)
                .into_iter()
                .map(|apart| apart.what)
                .collect::<Vec<_>>()
        };
        let of_days = found(|state| {
            let (cell, _) = state.usage.get_min().unwrap().clone();
            state.usage.get_mut(&cell).unwrap().fee.0 += 1;
        });
        assert_eq!(of_days, [Compared::FeesIn(month)]);
        let of_nothing = found(|state| state.accounts.clear());
        assert_eq!(of_nothing, [Compared::BilledIn(month), Compared::FeesIn(month)]);
        let of_balance = found(|state| {
            let id = OrganizationId::trusted("o");
            let account = std::sync::Arc::make_mut(state.accounts.get_mut(&id).unwrap());
            use tollway_shared::credit::AccountName::{Available, RevenueUsage};
            account
                .balances
                .apply(&[(Available, NanoUsd(-1)), (RevenueUsage, NanoUsd(1))]);
        });
        assert_eq!(of_balance, [Compared::Billed]);
    }
}
