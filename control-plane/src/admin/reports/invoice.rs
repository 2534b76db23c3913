//! `GET /admin/v1/organizations/{id}/invoices/{month}`: as JSON, or as a page to print.

use std::sync::Arc;

use axum::extract::{Path, State as Shared};
use axum::http::{HeaderMap, HeaderName, header};
use axum::response::{IntoResponse, Response};
use tollway_proto::admin::problem::ProblemCode;
use tollway_proto::admin::report::Invoice;
use tollway_shared::ids::OrganizationId;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::Api;
use super::super::account::must_be_known;
use super::super::exchange::{Read, blocking, path_id};
use super::super::fault::Fault;
use super::super::params::wrong_param;
use super::read::Source;
use crate::billing::lines::Wanted;
use crate::clock;
use crate::report::invoice::{Draft, InvoiceFault, Month};
use crate::report::invoice_page;
use crate::report::{account, fee};

impl From<InvoiceFault> for Fault {
    fn from(fault: InvoiceFault) -> Self {
        Self::new(ProblemCode::TooLarge, fault.to_string())
    }
}

impl From<fee::Forgotten> for Fault {
    fn from(fault: fee::Forgotten) -> Self {
        wrong_param("from", fault)
    }
}

impl From<account::Forgotten> for Fault {
    fn from(fault: account::Forgotten) -> Self {
        wrong_param("from", fault)
    }
}

/// What an organization used and owes for a calendar month (UTC), by project, model and meter. A page to print with `Accept: text/html`,
/// or with `.html` after the month. Refused where this replica's billing store does not have all of it.
#[utoipa::path(get, path = "/organizations/{id}/invoices/{month}", tag = "reports",
    params(("id" = String, Path), ("month" = String, Path, description = "`2026-11`, or `2026-11.html` for the page.")),
    responses((status = 200, content((Invoice = "application/json"), (String = "text/html")))),
    security(("admin_key" = ["owner", "admin", "operator", "viewer"])))]
async fn get_invoice(
    Shared(api): Shared<Arc<Api>>,
    Path((id, month)): Path<(String, String)>,
    headers: HeaderMap,
    read: Read,
) -> Result<Response, Fault> {
    let organization: OrganizationId = path_id("id", &id)?;
    let (text, is_page) = match month.strip_suffix(".html") {
        Some(month) => (month, true),
        None => (month.as_str(), wants_html(&headers)),
    };
    let month = Month::parse(text).ok_or_else(|| {
        let detail = format!("`{text}` is not a month such as `2026-11`");
        Fault::at(ProblemCode::Invalid, "month", detail)
    })?;
    let seen = read.seen(&api).await?;
    must_be_known(&seen.state, &organization)?; // what a removed one owes, it owes
    let days = (month.start.day(), month.end.plus_ms(-1).day());
    let (source, stand) = Source::whole(&api, &seen.state, days, Some(&organization)).await?;
    let state = seen.state.clone();
    let invoice = blocking(move || {
        let wanted = Wanted {
            from: month.start,
            to: month.end,
            organization: Some(organization.clone()),
        };
        let id = organization.clone();
        let mut draft = Draft::new(&state, organization, month);
        source.lines(&wanted, |line| draft.push(&line).map_err(Fault::from))?;
        let days = fee::Days {
            from: month.start.day(),
            to: month.end.plus_ms(-1).day(),
        };
        for line in fee::lines(&state, &id, days)? {
            draft.push_fee(line)?;
        }
        let money = account::money(&state, &id, month.start, month.end)?;
        Ok(draft.finish(money, stand.freshness(), stand.as_of(clock::now()))?)
    })
    .await?;
    if !is_page {
        return Ok(seen.answer(invoice).into_response());
    }
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (
            header::CONTENT_SECURITY_POLICY,
            invoice_page::CONTENT_SECURITY_POLICY,
        ),
        (HeaderName::from_static("x-content-type-options"), "nosniff"),
    ];
    Ok((headers, invoice_page::page(&invoice)).into_response())
}

/// Whether the caller names HTML among what it accepts, and not JSON before it.
fn wants_html(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let accept = accept.unwrap_or_default().to_ascii_lowercase();
    match (accept.find("text/html"), accept.find("application/json")) {
        (Some(html), Some(json)) => html < json,
        (html, _) => html.is_some(),
    }
}

/// The routes of invoices.
pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(get_invoice))
}
