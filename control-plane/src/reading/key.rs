//! How a key stands: its budgets and its organization's quota of free models out of the replicated state, what it used out of the
//! billing store. Where there is no store, the state's own sums of the last 400 days answer for that, too: whoever asks for a key
//! wants to know first of all that it works.

use tollway_proto::push::v1::{BudgetCycle, BudgetStanding, KeyStanding, ReadSource, WindowSums};
use tollway_shared::budget::terms::Unit;
use tollway_shared::budget::{Budget, BudgetScope};
use tollway_shared::credit::{BillingMode, is_credit, quota_id};
use tollway_shared::ids::BudgetId;
use tollway_shared::money::NanoUsd;
use tollway_shared::time::{Day, Period, UnixMillis};
use tollway_shared::window::Every;
use tonic::Status;

use super::Reader;
use crate::billing::cell::{Dimension, Sum};
use crate::billing::query::{Among, Field, Groups, Hours, Query, Value};
use crate::billing::{Billing, StoreFault};
use crate::state::{State, usage};

/// Most budgets that are shown.
const BUDGETS_MAX: usize = 200;
/// Most of the state's sums that are read.
const CELLS_MAX: usize = 200_000;

/// Answers for the reader's own key.
pub async fn standing(
    billing: &Billing,
    state: &State,
    reader: &Reader,
    now: UnixMillis,
) -> Result<(ReadSource, KeyStanding), Status> {
    let (source, used) = match of_store(billing, reader, now).await {
        Ok(used) => (ReadSource::Billing, used),
        Err(StoreFault::Absent) => (ReadSource::State, of_state(state, reader, now)?),
        Err(fault) => {
            tracing::warn!(error = %fault, "what a key used is read from the replicated sums");
            (ReadSource::State, of_state(state, reader, now)?)
        }
    };
    Ok((source, with_usage(state, reader, now, used)))
}

/// What a key was billed, and what own credentials paid for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Used {
    billed: Windows,
    byok: Windows,
}

/// By window: ever, day, week, month.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Windows([i128; 4]);

impl Windows {
    /// Adds what was used on a day; `days` are the first ones of the running windows.
    fn add(&mut self, day: Day, days: [Day; 3], amount: i128) {
        self.0[0] += amount;
        self.add_current(day, days, amount);
    }

    /// The same without the sum over all days.
    fn add_current(&mut self, day: Day, days: [Day; 3], amount: i128) {
        for (sum, first) in self.0[1..].iter_mut().zip(days) {
            if day >= first {
                *sum += amount;
            }
        }
    }

    fn shown(self) -> WindowSums {
        let [ever, day, week, month] = self.0.map(|sum| tollway_shared::credit::shown(sum).0);
        WindowSums {
            ever,
            day,
            week,
            month,
        }
    }
}

/// The first days of the running day, week and month.
fn windows(now: UnixMillis) -> [Day; 3] {
    [Period::Daily, Period::Weekly, Period::Monthly].map(|period| period.window(now).0.day())
}

async fn of_store(billing: &Billing, reader: &Reader, now: UnixMillis) -> Result<Used, StoreFault> {
    let firsts = windows(now);
    let earliest = firsts.into_iter().min().unwrap_or(firsts[0]);
    let all = Query {
        hours: Hours::ALL,
        equal: vec![(Dimension::Organization, reader.organization().to_string())],
        among: vec![Among {
            dimension: Dimension::Key,
            values: reader.keys.iter().map(ToString::to_string).collect(),
            none_of: false,
        }],
        by: vec![Field::Of(Dimension::Byok)],
        after: None,
        limit: 2,
        latencies: false,
    };
    let recent = Query {
        hours: Hours {
            until: i64::MAX,
            ..Hours::of_days(earliest, earliest)
        },
        by: vec![Field::Of(Dimension::Byok), Field::Day],
        limit: 1_000, // two for each day of a month, and what is dated into the future
        ..all.clone()
    };
    let [all, recent] = billing.groups([all, recent]).await?;
    let mut used = Used::default();
    each(&all, &mut used, |windows, _, amount| windows.0[0] += amount);
    each(&recent, &mut used, |windows, day, amount| {
        windows.add_current(day, firsts, amount);
    });
    Ok(used)
}

/// Goes through groups by `byok`, and perhaps by day.
fn each(groups: &Groups, used: &mut Used, mut add: impl FnMut(&mut Windows, Day, i128)) {
    for (values, summed) in groups {
        let day = match values.get(1) {
            Some(Value::Int(day)) => Day(i32::try_from(*day).unwrap_or(i32::MAX)),
            Some(Value::Text(_) | Value::None) | None => Day(0),
        };
        add(&mut used.billed, day, summed.get(Sum::Billed));
        if values.first() == Some(&Value::Text("true".into())) {
            add(&mut used.byok, day, summed.get(Sum::Charge));
        }
    }
}

fn of_state(state: &State, reader: &Reader, now: UnixMillis) -> Result<Used, Status> {
    let firsts = windows(now);
    let mut used = Used::default();
    let cells = usage::cells(state, Day(i32::MIN), Day(i32::MAX), Some(reader.organization()));
    for (read, (cell, sums)) in cells.enumerate() {
        if read >= CELLS_MAX {
            let detail =
                "this replica keeps no billing store, and the organization has too much usage to do without";
            return Err(Status::unavailable(detail));
        }
        if reader.keys.contains(&cell.path.key) {
            used.billed.add(cell.day, firsts, sums.billed.0.into());
            used.byok.add(cell.day, firsts, sums.byok_cost.0.into());
        }
    }
    Ok(used)
}

fn with_usage(state: &State, reader: &Reader, now: UnixMillis, used: Used) -> KeyStanding {
    let organization = reader.organization();
    let quota = state.budgets.get(&quota_id(organization));
    let account = state.accounts.get(organization);
    let billing = state.billing.get(organization).map(|kept| kept.value.mode);
    let bought = account.map_or(NanoUsd::ZERO, |account| account.bought);
    let key = state.keys.get(&reader.path.key).map(|kept| &kept.value);
    KeyStanding {
        organization: organization.to_string(),
        project: reader.project().to_string(),
        last4: key.map(|key| key.last4.clone()).unwrap_or_default(),
        expires_at: key.and_then(|key| key.expires_at).map(|at| at.0),
        budgets: budgets(state, reader, now),
        billed: Some(used.billed.shown()),
        byok: Some(used.byok.shown()),
        free_used: quota.map_or(0, |quota| spent(state, &quota.value.id, now)),
        free_limit: quota.map(|quota| quota.value.terms.limit),
        free_tier: billing == Some(BillingMode::Prepaid) && bought <= NanoUsd::ZERO,
    }
}

/// Budgets that any request of the key needs room in, of money. Credit and quotas are no budgets to tenants.
fn budgets(state: &State, reader: &Reader, now: UnixMillis) -> Vec<BudgetStanding> {
    let scopes = BudgetScope::of_path(&reader.path, reader.keys.iter().cloned());
    let ids = scopes.flat_map(|scope| {
        let first = (scope.clone(), BudgetId::trusted(""));
        let of_scope = state.budget_scopes.range(first..);
        of_scope.take_while(move |(of, _)| *of == scope).map(|(_, id)| id)
    });
    let found = ids.filter_map(|id| Some(&state.budgets.get(id)?.value));
    let shown = found.filter(|budget| {
        let is_of_money = budget.terms.unit == Unit::Money && budget.model.is_none();
        is_of_money && budget.leased() && !is_credit(&budget.id)
    });
    shown
        .take(BUDGETS_MAX)
        .map(|budget| of_budget(state, budget, now))
        .collect()
}

fn of_budget(state: &State, budget: &Budget, now: UnixMillis) -> BudgetStanding {
    let cycle = match budget.terms.cycle.every {
        Every::Day => BudgetCycle::Daily,
        Every::Week => BudgetCycle::Weekly,
        Every::Month => BudgetCycle::Monthly,
        Every::Lifetime => BudgetCycle::Lifetime,
        Every::Days { .. } => BudgetCycle::Days,
    };
    BudgetStanding {
        budget: budget.id.to_string(),
        level: budget.scope.level().to_owned(),
        limit: budget.terms.limit_at(now),
        spent: spent(state, &budget.id, now),
        cycle: cycle.into(),
        resets_at: budget.resets_at(now).map(|at| at.0),
    }
}

/// What is settled of a budget in its window, as far as is known; nothing once the window is over.
fn spent(state: &State, id: &BudgetId, now: UnixMillis) -> i64 {
    let tally = state.tallies.get(id);
    if tally.is_some_and(|tally| tally.current.span.over(now)) {
        return 0;
    }
    let settled = state.books.accounts.get(id).map(|account| account.book.settled);
    let recorded = || i128::from(tally.map_or(0, |tally| tally.current.amount));
    let spent = settled.unwrap_or_else(recorded);
    i64::try_from(spent).unwrap_or(i64::MAX)
}
