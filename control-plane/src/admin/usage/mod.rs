//! What was used, by any dimensions: from the billing store, or from the sums in the replicated state where there is none.
//!
//! | file | what |
//! |---|---|
//! | `ask` | what is asked, from the query parameters; pages |
//! | `store` | the answer of the billing store |
//! | `reconciliation` | whether both say the same |
//! | `state` | the answer of the replicated sums: by day, and not by every dimension |

mod ask;
mod reconciliation;
mod state;
mod store;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State as Shared;
use tollway_proto::admin::problem::ProblemCode;
use tollway_proto::admin::text::Text;
use tollway_proto::admin::usage::{AnswerSource, Freshness, Total, Usage, UsageRow};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::ask::Ask;
use super::Api;
use super::exchange::{Answer, Read, Seen};
use super::fault::Fault;
use crate::billing::{Billing, Place};

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
/// a day, key, model and provider) at once. `freshness` says how far each partition of the usage log is in the answer.
#[utoipa::path(get, path = "/usage", tag = "usage",
    params(
        ("group_by" = Option<String>, Query,
            description = "Any of organization, team, project, key, user, model, endpoint, provider, region, price_version, byok, hour, day, month; comma-separated."),
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
    let ask = Ask::take(&mut read.params)?;
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
    ask: &Ask,
) -> Result<(Page, AnswerSource, Vec<Freshness>), Fault> {
    let has_store = !matches!(billing.place(), Place::None);
    if has_store && (has_counted(billing, seen).await || !ask.is_of_state()) {
        match billing.query(&ask.query()?).await {
            Ok(found) => {
                let freshness = store::freshness(&found.progress, &billing.freshness());
                return Ok((store::page(ask, found)?, AnswerSource::Billing, freshness));
            }
            Err(fault) if ask.is_of_state() => {
                tracing::warn!(error = %fault, "usage is read from the replicated sums");
            }
            Err(fault) => return Err(Fault::new(ProblemCode::Unavailable, fault.to_string())),
        }
    }
    let page = state::page(&seen.state, ask)?;
    let freshness = seen
        .state
        .usage_offsets
        .iter()
        .map(|(partition, offset)| Freshness {
            partition: *partition,
            offset: *offset,
            newest_at: None,
            lag: None,
            whole_since: None,
        });
    Ok((page, AnswerSource::State, freshness.collect()))
}

/// Waits a little until the store has what the state has counted; whether it has.
async fn has_counted(billing: &Billing, seen: &Seen) -> bool {
    let counted: BTreeMap<i32, i64> = seen.state.usage_offsets.iter().map(|(p, o)| (*p, *o)).collect();
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
fn with_group(by: &[tollway_proto::admin::usage::UsageDimension], group: &[Option<String>]) -> UsageRow {
    use tollway_proto::admin::usage::UsageDimension as By;
    use tollway_shared::time::{Day, UnixMillis};
    let mut row = UsageRow::default();
    for (dimension, value) in by.iter().zip(group) {
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
