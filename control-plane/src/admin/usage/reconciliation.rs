//! Whether the billing store and the replicated sums say the same.

use std::sync::Arc;

use axum::extract::State as Shared;
use tollway_proto::admin::problem::ProblemCode;
use tollway_proto::admin::reconciliation::{AccountDifference, AccountSum, Difference, Reconciliation};
use tollway_proto::admin::text::Text;
use tollway_proto::admin::usage::Sums;
use tollway_shared::credit::shown;
use tollway_shared::time::Day;

use super::store::freshness;
use crate::admin::Api;
use crate::admin::exchange::{Answer, Read};
use crate::admin::fault::Fault;
use crate::admin::params::wrong_param;
use crate::billing::check::check;
use crate::billing::reconcile::{ROWS_MAX, Side};
use crate::report::fee::{Apart, Compared};

/// Days that are compared when nobody says which: five weeks.
const DAYS: i32 = 35;

/// Compares the billing store of the replica that answers with the replicated sums, at the same offsets of the usage log, and
/// these with what they took from organizations' accounts: all must be equal. For as long as that takes, the store is not brought up to date. Of a shared store, the replica that writes it answers.
#[utoipa::path(get, path = "/usage/reconciliation", tag = "usage",
    params(
        ("from" = Option<String>, Query, description = "The first UTC day; default: five weeks ago."),
        ("to" = Option<String>, Query, description = "The last UTC day; default: every day there is."),
    ),
    responses((status = 200, body = Reconciliation)), security(("admin_key" = ["owner", "admin", "operator", "viewer"])))]
pub(super) async fn get_reconciliation(
    Shared(api): Shared<Arc<Api>>,
    mut read: Read,
) -> Result<Answer<Reconciliation>, Fault> {
    let from: Option<Day> = read.params.take_text("from")?;
    let to: Option<Day> = read.params.take_text("to")?;
    let seen = read.seen(&api).await?;
    let today = seen.state.now.day();
    let from = from.unwrap_or(Day(today.0.saturating_sub(DAYS)));
    if let Some(to) = to.filter(|to| from > *to) {
        return Err(wrong_param(
            "from",
            format!("{from} is after `to`, which is {to}"),
        ));
    }
    let mut states = api.cluster.watch();
    let checked = check(&api.billing, &mut states, from, to.unwrap_or(Day(i32::MAX - 1))).await;
    let checked = checked.map_err(|fault| Fault::new(ProblemCode::Unavailable, fault.to_string()))?;
    let found = &checked.found;
    let differences = found.differences.iter().map(|difference| {
        let (day, [organization, team, project, key, model, provider]) = difference.cell.clone();
        Difference {
            day: Text(day),
            organization,
            team: (!team.is_empty()).then_some(team),
            project,
            key,
            model,
            provider,
            state: sums(&difference.state),
            billing: sums(&difference.store),
        }
    });
    let apart = checked.apart.into_iter().take(ROWS_MAX);
    let body = Reconciliation {
        from: Text(checked.from),
        to: Text(checked.to.min(today)),
        cells: found.cells as u64,
        differing: found.differing as u64,
        drift: Text(shown(found.drift)),
        differences: differences.collect(),
        accounts: apart.map(account).collect(),
        freshness: freshness(&checked.progress, &api.billing.freshness()),
        applied: checked.state.applied,
    };
    Ok(seen.answer(body))
}

fn sums(side: &Side) -> Sums {
    Sums {
        requests: side.requests,
        estimated: side.estimated,
        tokens: side.tokens.into(),
        cost: Text(shown(side.cost)),
        billed: Text(shown(side.billed)),
        fee: None, // compared with the accounts
    }
}

fn account(apart: Apart) -> AccountDifference {
    let (sum, month) = match apart.what {
        Compared::Billed => (AccountSum::Billed, None),
        Compared::Fees => (AccountSum::Fee, None),
        Compared::BilledIn(month) => (AccountSum::Billed, Some(month)),
        Compared::FeesIn(month) => (AccountSum::Fee, Some(month)),
    };
    AccountDifference {
        organization: apart.organization.to_string(),
        sum,
        month: month.map(Day::month_text),
        account: Text(shown(apart.account)),
        usage: Text(shown(apart.usage)),
    }
}
