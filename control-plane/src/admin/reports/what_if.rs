//! What other prices would have cost, and what providers say.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{FromRequest, Request, State as Shared};
use axum::http::header;
use tollway_proto::admin::problem::ProblemCode;
use tollway_proto::admin::report::{Rate, ReRate, ReRated, Reconciled};
use tollway_proto::admin::text::Text;
use tollway_shared::cost::Prices;
use tollway_shared::ids::EndpointId;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::Api;
use super::super::account::must_be_of;
use super::super::body::read_text;
use super::super::exchange::{Answer, Write, blocking};
use super::super::fault::Fault;
use super::days::checked;
use super::read::{Source, wanted};
use crate::metrics;
use crate::report::re_rate::{ReRateFault, ReRating};
use crate::report::reconcile::Comparison;
use crate::report::statement;
use crate::state::State;

/// Largest CSV of a provider.
const CSV_BYTES_MAX: usize = 16 << 20;
/// Most rates of one question.
const RATES_MAX: usize = 1_000;

impl From<ReRateFault> for Fault {
    fn from(fault: ReRateFault) -> Self {
        let code = match fault {
            ReRateFault::Rows => ProblemCode::TooLarge,
            ReRateFault::Money(_) => ProblemCode::Invalid,
        };
        Self::new(code, fault.to_string())
    }
}

/// Computes what a period would have cost at other prices: a dry run that changes nothing. Each rate names an endpoint and either a
/// price version or prices that nobody has to have made. Costs are list prices, without markup and discount; how exact they are is in
/// `exact_to`. Where the old prices have no fixed part per request and the new ones do, every request is taken for one that pays it.
/// Prices with `tiers` are refused: usage is kept by the hour, and an hour's sum does not say how long each prompt was.
#[utoipa::path(post, path = "/usage/re-rate", tag = "reports", request_body = ReRate,
    responses((status = 200, body = ReRated)), security(("admin_key" = ["owner", "admin", "operator"])))]
async fn re_rate(Shared(api): Shared<Arc<Api>>, write: Write<ReRate>) -> Result<Answer<ReRated>, Fault> {
    let ReRate {
        from,
        to,
        organization,
        rates,
    } = write.body;
    let span = checked(from.0, to.0).map_err(|why| Fault::at(ProblemCode::Invalid, "from", why))?;
    api.cluster.barrier().await?;
    let state = api.cluster.state();
    let organization = organization.map(|id| id.0);
    must_be_of(&state, organization.as_ref())?;
    let unknown = unknown(&state, &rates);
    let rates = prices(&state, rates)?;
    let (source, _) = Source::whole(&api, &state, span, organization.as_ref()).await?;
    let wanted = wanted(span, organization);
    let answer = blocking(move || {
        let mut rating = ReRating::new(rates);
        source.lines(&wanted, |line| rating.push(&line).map_err(Fault::from))?;
        // One that was removed is known by what it was used for.
        if let Some((place, id)) = unknown.into_iter().find(|(_, id)| !rating.has(id)) {
            let field = format!("rates[{place}].endpoint");
            let detail = format!("`{field}`: endpoint `{id}` does not exist, and was not used in this time");
            return Err(Fault::at(ProblemCode::Invalid, field, detail));
        }
        Ok(rating.finish()?)
    });
    Ok(Answer::of(state.revision, answer.await?))
}

/// Endpoints of rates that there are not now, with their places.
fn unknown(state: &State, rates: &[Rate]) -> Vec<(usize, EndpointId)> {
    let named = rates.iter().map(|rate| rate.endpoint.0.clone()).enumerate();
    named
        .filter(|(_, id)| !state.endpoints.contains_key(id))
        .collect()
}

fn prices(state: &State, rates: Vec<Rate>) -> Result<BTreeMap<EndpointId, Prices>, Fault> {
    let wrong = |place: usize, field: &str, why: String| {
        let field = format!("rates[{place}].{field}");
        let detail = format!("`{field}` {why}");
        Fault::at(ProblemCode::Invalid, field, detail)
    };
    if rates.is_empty() || rates.len() > RATES_MAX {
        let detail = format!("`rates` must name 1 to {RATES_MAX} endpoints");
        return Err(Fault::at(ProblemCode::Invalid, "rates", detail));
    }
    let mut out = BTreeMap::new();
    for (place, rate) in rates.into_iter().enumerate() {
        let (named, prices): (_, Prices) = match (rate.price, rate.prices) {
            (Some(Text(id)), None) => {
                let kept = state.prices.get(&id);
                let kept = kept.ok_or_else(|| wrong(place, "price", format!("`{id}` does not exist")))?;
                ("price", kept.value.prices.clone())
            }
            (None, Some(prices)) => ("prices", prices.into()),
            _ => {
                return Err(wrong(
                    place,
                    "price",
                    "or `prices` must be given, and not both".into(),
                ));
            }
        };
        if let Some((field, fault)) = prices.inadmissible() {
            return Err(wrong(place, &format!("prices.{field}"), fault.to_string()));
        }
        if !prices.tiers.is_empty() {
            let why = "must have no tiers: an hour's usage does not say how long each prompt was; ask for one tier's prices";
            return Err(wrong(place, named, why.into()));
        }
        if out.insert(rate.endpoint.0.clone(), prices).is_some() {
            return Err(wrong(
                place,
                "endpoint",
                format!("`{}` is named twice", rate.endpoint),
            ));
        }
    }
    Ok(out)
}

/// A CSV body.
struct Csv(String);

impl FromRequest<Arc<Api>> for Csv {
    type Rejection = Fault;

    async fn from_request(request: Request, _api: &Arc<Api>) -> Result<Self, Fault> {
        let (parts, body) = request.into_parts();
        let media = parts
            .headers
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok());
        let media = media
            .and_then(|value| value.split(';').next())
            .unwrap_or_default();
        if !media.trim().eq_ignore_ascii_case("text/csv") {
            let detail = "the body must be CSV: send `Content-Type: text/csv`";
            return Err(Fault::at(
                ProblemCode::UnsupportedMediaType,
                "Content-Type",
                detail,
            ));
        }
        read_text(&parts.headers, body, CSV_BYTES_MAX).await.map(Self)
    }
}

/// Compares a provider's own account of usage with ours. The body is CSV whose header line names the columns `provider` (our id), `day`
/// (UTC, `2026-11-22`), `model` (our id, or the provider's own name), `tokens` (all kinds together) and `cost` (US dollars) in any
/// order; others are left alone. At most 16 MiB and 20,000 rows. Nothing is kept; the drift of the last comparison is a metric of this replica.
#[utoipa::path(post, path = "/usage/provider-import", tag = "reports",
    request_body(content = String, content_type = "text/csv"),
    responses((status = 200, body = Reconciled)), security(("admin_key" = ["owner", "admin", "operator"])))]
async fn provider_import(Shared(api): Shared<Arc<Api>>, Csv(text): Csv) -> Result<Answer<Reconciled>, Fault> {
    api.cluster.barrier().await?;
    let state = api.cluster.state();
    let revision = state.revision;
    let (mut comparison, span, state) = blocking(move || {
        let wrong = |why: String| Fault::at(ProblemCode::Invalid, "body", why);
        let rows = statement::read(&text).map_err(|fault| wrong(fault.to_string()))?;
        let comparison = Comparison::new(&rows, &state);
        let days = comparison.days();
        let (from, to) = days.ok_or_else(|| wrong("there is no row below the header line".to_owned()))?;
        let span = checked(from, to).map_err(wrong)?;
        Ok((comparison, span, state))
    })
    .await?;
    let (source, _) = Source::whole(&api, &state, span, None).await?;
    let found = blocking(move || {
        source.lines(&wanted(span, None), |line| {
            comparison.push(&line);
            Ok::<(), Fault>(())
        })?;
        comparison
            .finish()
            .map_err(|fault| Fault::at(ProblemCode::Invalid, "body", format!("a sum {fault}")))
    });
    let found = found.await?;
    metrics::provider_drift(found.tokens_drift, found.cost_drift.0);
    Ok(Answer::of(revision, found))
}

/// The routes of what was asked for here.
pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(re_rate))
        .routes(routes!(provider_import))
}
