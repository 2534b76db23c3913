//! What was used, by any dimensions: from the billing store, or from the sums in the replicated state where there is none.
//!
//! | file | what |
//! |---|---|
//! | `ask` | what is asked, from the query parameters; pages |
//! | `store` | the answer of the billing store |
//! | `fee` | fees on own credentials beside it, from the replicated sums |
//! | `label` | by the labels of projects and keys |
//! | `reconciliation` | whether both say the same |
//! | `whole` | whether the billing store has all of some days, for what people pay by |
//! | `state` | the answer of the replicated sums: by day, and not by every dimension |

mod ask;
mod fee;
mod label;
mod reconciliation;
mod state;
mod store;
pub(super) mod whole;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State as Shared;
use tollway_proto::admin::problem::ProblemCode;
use tollway_proto::admin::text::Text;
use tollway_proto::admin::usage::{AnswerSource, Freshness, Total, Usage, UsageRow};
use tollway_shared::time::Day;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::ask::Ask;
use self::whole::Lack;
use super::Api;
use super::exchange::{Answer, Read, Seen, blocking};
use super::fault::Fault;
use crate::billing::read::Found;
use crate::billing::{Billing, Place};
use crate::state::State;

/// How long a read waits for the billing store to have what the replicated state has counted.
const STORE_WITHIN: Duration = Duration::from_secs(2);

/// A page of an answer.
struct Page {
    data: Vec<UsageRow>,
    next: Option<String>,
    total: Total,
}

/// Sums usage by any dimensions. Without `group_by`, one row.
///
/// Answered by the billing store of this replica (`source` is `billing`): every hour it has, by all dimensions, with latencies, ends of
/// requests and what caches saved. Where there is no store, or it is behind what budgets have counted, the replicated sums of the last
/// 400 days answer (`state`): by organization, team, project, key, model, provider, day and month, and not more than 200,000 sums (one is
/// a day, key, model and provider) at once. The same where the usage log had lost its beginning when the store was made, and days before that
/// are asked for; by what the replicated sums do not know, such days are refused.
///
/// `label:NAME` groups by the label of that name: the key's own, else its project's, as they are now, also for the past; `unlabelled` is
/// the rest, and the groups sum to the total. `fee`, on own credentials, is always of the replicated sums, and absent by what they do not
/// tell apart. `freshness` says how far each partition of the usage log is in the answer.
#[utoipa::path(get, path = "/usage", tag = "usage",
    params(
        ("group_by" = Option<String>, Query,
            description = "Any of organization, team, project, key, user, model, endpoint, provider, region, price_version, byok, hour, day, month, label:NAME; comma-separated."),
        ("from" = Option<String>, Query, description = "The first UTC day, or an instant in the first hour (RFC 3339)."),
        ("to" = Option<String>, Query, description = "The last UTC day, or an instant in the last hour (RFC 3339)."),
        ("organization" = Option<String>, Query), ("team" = Option<String>, Query), ("project" = Option<String>, Query),
        ("key" = Option<String>, Query), ("user" = Option<String>, Query), ("model" = Option<String>, Query),
        ("endpoint" = Option<String>, Query), ("provider" = Option<String>, Query), ("region" = Option<String>, Query),
        ("price_version" = Option<String>, Query), ("byok" = Option<String>, Query),
        ("hour" = Option<String>, Query), ("day" = Option<String>, Query), ("month" = Option<String>, Query),
    ),
    responses((status = 200, body = Usage)), security(("admin_key" = ["owner", "admin", "operator", "viewer"])))]
async fn get_usage(Shared(api): Shared<Arc<Api>>, mut read: Read) -> Result<Answer<Usage>, Fault> {
    let ask = Arc::new(Ask::take(&mut read.params)?);
    let seen = read.seen(&api).await?;
    let (page, source, freshness) = answered(&api.billing, &seen, &ask).await?;
    let body = Usage {
        data: page.data,
        next: page.next,
        total: page.total,
        source,
        freshness,
        applied: seen.state.applied,
    };
    Ok(seen.answer(body))
}

async fn answered(
    billing: &Billing,
    seen: &Seen,
    ask: &Arc<Ask>,
) -> Result<(Page, AnswerSource, Vec<Freshness>), Fault> {
    let has_store = !matches!(billing.place(), Place::None);
    if has_store && (has_counted(billing, &seen.state).await || !ask.is_of_state()) {
        match billing.query(&ask.query()?).await {
            Ok(found) => match missing(&found, &seen.state, ask) {
                Some(since) if ask.is_of_state() => {
                    tracing::debug!(%since, "usage is read from the replicated sums: the store does not go back as far");
                }
                // Who names no first day asks for what there is; `freshness` says since when that is.
                Some(since) if ask.days().0 != Day(i32::MIN) => return Err(Lack::Young(since).into()),
                _ => {
                    let freshness = store::freshness(&found.progress, &billing.freshness());
                    let (state, ask) = (seen.state.clone(), ask.clone());
                    let page = blocking(move || store::page(&state, &ask, found)).await?;
                    return Ok((page, AnswerSource::Billing, freshness));
                }
            },
            Err(fault) if ask.is_of_state() => {
                tracing::warn!(error = %fault, "usage is read from the replicated sums");
            }
            Err(fault) => return Err(Fault::new(ProblemCode::Unavailable, fault.to_string())),
        }
    }
    let (state, ask) = (seen.state.clone(), ask.clone());
    let page = blocking(move || state::page(&state, &ask)).await?;
    let since = seen.state.usage_since;
    let since = (since > Day(0)).then(|| Text(since.start()));
    let freshness = seen
        .state
        .usage_offsets
        .iter()
        .map(|(partition, offset)| Freshness {
            partition: *partition,
            offset: *offset,
            newest_at: None,
            lag: None,
            whole_since: since.clone(),
        });
    Ok((page, AnswerSource::State, freshness.collect()))
}

/// The first day that the store has whole, where it lacks some of what is asked.
fn missing(found: &Found, state: &State, ask: &Ask) -> Option<Day> {
    let (from, to) = ask.days();
    let days = (from.max(Day(0)), to);
    whole::young(&found.progress, state, days, ask.organization(state).as_ref())
}

/// Waits a little until the store has what the state has counted; whether it has.
async fn has_counted(billing: &Billing, state: &State) -> bool {
    let counted: BTreeMap<i32, i64> = state.usage_offsets.iter().map(|(p, o)| (*p, *o)).collect();
    let mut fresh = billing.watch();
    let has = fresh.wait_for(|fresh| {
        let has = |partition: &i32| fresh.get(partition).map_or(0, |fresh| fresh.progress.next);
        counted
            .iter()
            .all(|(partition, offset)| has(partition) >= *offset)
    });
    matches!(tokio::time::timeout(STORE_WITHIN, has).await, Ok(Ok(_)))
}

/// The routes of usage.
pub(crate) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(get_usage))
        .routes(routes!(reconciliation::get_reconciliation))
}

/// A row's dimensions: a value for each, or none.
fn with_group(ask: &Ask, group: &[Option<String>]) -> UsageRow {
    use tollway_proto::admin::usage::UsageDimension as By;
    use tollway_shared::time::{Day, UnixMillis};
    let mut row = UsageRow::default();
    let (group, values) = group.split_at(ask.by.len().min(group.len()));
    if !ask.labels.is_empty() {
        let values = values.iter().map(|value| value.clone().unwrap_or_default());
        row.labels = Some(ask.labels.iter().cloned().zip(values).collect());
    }
    for (dimension, value) in ask.by.iter().zip(group) {
        let value = value.clone();
        match dimension {
            By::Organization => row.organization = value,
            By::Team => row.team = value,
            By::Project => row.project = value,
            By::Key => row.key = value,
            By::User => row.user = value,
            By::Model => row.model = value,
            By::Endpoint => row.endpoint = value,
            By::Provider => row.provider = value,
            By::Region => row.region = value,
            By::PriceVersion => row.price_version = value,
            By::Byok => row.byok = value,
            By::Hour => row.hour = value.and_then(|at| UnixMillis::parse_rfc3339(&at)).map(Text),
            By::Day => row.day = value.and_then(|day| Day::parse(&day)).map(Text),
            By::Month => row.month = value,
        }
    }
    row
}
