//! Accounts of organizations: credit bought, given back and corrected, how an organization pays, and the fees.

use std::sync::Arc;

use axum::extract::{Path, State as Shared};
use tollway_proto::admin::Page;
use tollway_proto::admin::account::{
    Account, Billing, CreditChange, CreditRelease, Fees, Leg, OpenUsage, TopUp, Transfer, TransferKind,
};
use tollway_proto::admin::cluster::hex;
use tollway_proto::admin::problem::ProblemCode;
use tollway_proto::admin::text::Text;
use tollway_proto::command::{Command, MoveCredit, PutBilling, ReleaseCredit};
use tollway_shared::credit::{self, CreditMove};
use tollway_shared::ids::OrganizationId;
use tollway_shared::money::NanoUsd;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::exchange::{Answer, Head, OneText, Read, Seen, Write, path_id};
use super::fault::Fault;
use super::params::wrong_param;
use crate::state::account::{self, Cause};
use crate::state::{State, credit as held};

/// Longest reference.
pub(super) const REFERENCE_BYTES_MAX: usize = 200;
/// Longest reason.
const REASON_BYTES_MAX: usize = 1_000;

/// Reads an organization's account.
#[utoipa::path(get, path = "/organizations/{id}/account", tag = "credits", params(("id" = String, Path)),
    responses((status = 200, body = Account)), security(("admin_key" = ["owner", "admin", "operator", "viewer"])))]
async fn get_account(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
    read: Read,
) -> Result<Answer<Account>, Fault> {
    let id: OrganizationId = path_id("id", &id)?;
    let seen = read.seen(&api).await?;
    must_be_known(&seen.state, &id)?;
    Ok(seen.answer(shown(&seen.state, &id)))
}

/// Sets how an organization pays, and what it is held to.
#[utoipa::path(put, path = "/organizations/{id}/billing", tag = "credits", params(("id" = String, Path)),
    request_body = Billing, responses((status = 200, body = Account)), security(("admin_key" = ["owner", "admin"])))]
async fn put_billing(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
    write: Write<Billing>,
) -> Result<Answer<Account>, Fault> {
    let organization: OrganizationId = path_id("id", &id)?;
    let wrong = |(field, why)| Fault::at(ProblemCode::Invalid, field, format!("`{field}` {why}"));
    let billing = write.body.into_stored().map_err(wrong)?;
    let command = Command::PutBilling(PutBilling {
        organization: organization.clone(),
        billing,
    });
    let receipt = api.write(write.head, command).await?;
    let state = api.after(&receipt).await;
    Ok(Answer::of(receipt.revision, shown(&state, &organization)))
}

/// Buys or gives credit. Needs an `Idempotency-Key` or a `reference`.
#[utoipa::path(post, path = "/organizations/{id}/top-ups", tag = "credits", params(("id" = String, Path)),
    request_body = TopUp, responses((status = 201, body = Transfer)), security(("admin_key" = ["owner", "admin"])))]
async fn top_up(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
    write: Write<TopUp>,
) -> Result<Answer<Transfer>, Fault> {
    let TopUp {
        amount,
        method,
        reference,
        reason,
    } = write.body;
    let made = CreditMove::TopUp {
        method: method.into(),
        amount: amount.0,
    };
    api.move_credit(write.head, &id, made, reference, reason).await
}

/// Gives credit back that is neither spent nor with nodes; the fee on it stays. Needs an `Idempotency-Key` or a `reference`.
#[utoipa::path(post, path = "/organizations/{id}/refunds", tag = "credits", params(("id" = String, Path)),
    request_body = CreditChange, responses((status = 201, body = Transfer)), security(("admin_key" = ["owner", "admin"])))]
async fn refund(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
    write: Write<CreditChange>,
) -> Result<Answer<Transfer>, Fault> {
    let change = write.body;
    let made = CreditMove::Refund {
        amount: change.amount.0,
    };
    api.move_credit(write.head, &id, made, change.reference, change.reason)
        .await
}

/// Corrects a balance, up or down. Needs an `Idempotency-Key` or a `reference`.
#[utoipa::path(post, path = "/organizations/{id}/adjustments", tag = "credits", params(("id" = String, Path)),
    request_body = CreditChange, responses((status = 201, body = Transfer)), security(("admin_key" = ["owner", "admin"])))]
async fn adjust(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
    write: Write<CreditChange>,
) -> Result<Answer<Transfer>, Fault> {
    let change = write.body;
    let made = CreditMove::Adjustment {
        amount: change.amount.0,
    };
    api.move_credit(write.head, &id, made, change.reference, change.reason)
        .await
}

/// Frees credit that nodes have spent by their own account and the ledger will never count, on your word: the lives that left it are closed
/// or released, their spools have been delivered or are gone, and the ledger has no lag. What has been counted stays counted.
#[utoipa::path(post, path = "/organizations/{id}/account/release", tag = "credits", params(("id" = String, Path)),
    request_body = CreditRelease, responses((status = 200, body = Account)), security(("admin_key" = ["owner", "admin"])))]
async fn release(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
    write: Write<CreditRelease>,
) -> Result<Answer<Account>, Fault> {
    let organization: OrganizationId = path_id("id", &id)?;
    let CreditRelease { amount, reason } = write.body;
    within("reason", &reason, 0, REASON_BYTES_MAX)?;
    let command = Command::ReleaseCredit(ReleaseCredit {
        organization: organization.clone(),
        amount: amount.0,
        reason,
    });
    let receipt = api.write(write.head, command).await?;
    let state = api.after(&receipt).await;
    Ok(Answer::of(receipt.revision, shown(&state, &organization)))
}

/// Lists the newest transfers of an organization, the oldest first.
#[utoipa::path(get, path = "/organizations/{id}/transfers", tag = "credits", params(("id" = String, Path)),
    responses((status = 200, body = Page<Transfer>)), security(("admin_key" = ["owner", "admin", "operator", "viewer"])))]
async fn list_transfers(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
    mut read: Read,
) -> Result<Answer<Page<Transfer>>, Fault> {
    let id: OrganizationId = path_id("id", &id)?;
    let window = read.params.take_window()?;
    let after = window.after.as_deref().map_or(Ok(0), |text| {
        text.parse::<u64>()
            .map_err(|_| wrong_param("after", "is not a sequence number"))
    })?;
    let seen = read.seen(&api).await?;
    must_be_known(&seen.state, &id)?;
    let kept = seen.state.accounts.get(&id);
    let mut rest = kept
        .into_iter()
        .flat_map(|account| &account.transfers)
        .filter(|transfer| transfer.sequence > after);
    let data: Vec<Transfer> = rest
        .by_ref()
        .take(window.limit)
        .map(|transfer| view(&id, transfer))
        .collect();
    let more = rest.next().is_some();
    let next = data.last().map(|last| last.sequence.to_string()).filter(|_| more);
    Ok(page(&seen, data, next))
}

fn page(seen: &Seen, data: Vec<Transfer>, next: Option<String>) -> Answer<Page<Transfer>> {
    let revision = seen.state.revision.0;
    seen.answer(Page { data, next, revision })
}

/// Reads what buying credits costs.
#[utoipa::path(get, path = "/fees", tag = "credits", responses((status = 200, body = Fees)),
    security(("admin_key" = ["owner", "admin", "operator", "viewer"])))]
async fn get_fees(Shared(api): Shared<Arc<Api>>, read: Read) -> Result<Answer<Fees>, Fault> {
    let seen = read.seen(&api).await?;
    Ok(seen.answer(seen.state.fees.value.into()))
}

/// Sets what buying credits costs from now on.
#[utoipa::path(put, path = "/fees", tag = "credits", request_body = Fees, responses((status = 200, body = Fees)),
    security(("admin_key" = ["owner", "admin"])))]
async fn put_fees(Shared(api): Shared<Arc<Api>>, write: Write<Fees>) -> Result<Answer<Fees>, Fault> {
    if let Some((field, why)) = write.body.unsound() {
        return Err(Fault::at(ProblemCode::Invalid, field, format!("`{field}` {why}")));
    }
    let receipt = api
        .write(write.head, Command::PutFees(write.body.clone().into()))
        .await?;
    Ok(Answer::of(receipt.revision, write.body))
}

impl Api {
    async fn move_credit(
        &self,
        head: Head,
        organization: &str,
        made: CreditMove,
        reference: Option<String>,
        reason: String,
    ) -> Result<Answer<Transfer>, Fault> {
        let organization: OrganizationId = path_id("id", organization)?;
        if head.idempotency.is_none() && reference.is_none() {
            let detail =
                "send an `Idempotency-Key`, or a `reference` in the body, so that a retry moves money once";
            return Err(Fault::at(ProblemCode::InvalidRequest, "Idempotency-Key", detail));
        }
        within(
            "reference",
            reference.as_deref().unwrap_or("-"),
            1,
            REFERENCE_BYTES_MAX,
        )?;
        within("reason", &reason, 0, REASON_BYTES_MAX)?;
        let text = reference.unwrap_or_else(|| super::minted("move"));
        let command = Command::MoveCredit(MoveCredit {
            organization: organization.clone(),
            made,
            reference: text.clone(),
            payment: None,
            reason,
        });
        let (receipt, first) = self.write_once(head, command, OneText { text }).await?;
        let state = self.after(&receipt).await;
        let transfer = booked(&state, &first.text).map(|transfer| view(&organization, transfer));
        // Only when so many have come since that it is not kept any more, or this replica lags.
        let lost = "the money has moved, and its transfer cannot be shown here; `transfers` has it";
        let transfer = transfer.ok_or_else(|| Fault::new(ProblemCode::Unavailable, lost))?;
        Ok(Answer::of(receipt.revision, transfer).created())
    }
}

/// The transfer of a payment.
fn booked<'a>(state: &'a State, reference: &str) -> Option<&'a account::Transfer> {
    let payment = state.payments.get(reference)?;
    let account = state.accounts.get(&payment.organization)?;
    account
        .transfers
        .iter()
        .find(|transfer| transfer.sequence == payment.sequence)
}

pub(super) fn within(field: &'static str, text: &str, least: usize, most: usize) -> Result<(), Fault> {
    if (least..=most).contains(&text.len()) {
        return Ok(());
    }
    let detail = format!("`{field}` must have {least} to {most} bytes");
    Err(Fault::at(ProblemCode::Invalid, field, detail))
}

/// An organization that was removed still has its account.
pub(super) fn must_be_known(state: &State, id: &OrganizationId) -> Result<(), Fault> {
    let known = state.organizations.contains_key(id) || state.accounts.contains_key(id);
    known
        .then_some(())
        .ok_or_else(|| Fault::not_found("organization", id))
}

/// The same of one that a report is narrowed to, if it is.
pub(super) fn must_be_of(state: &State, organization: Option<&OrganizationId>) -> Result<(), Fault> {
    let Some(id) = organization else {
        return Ok(());
    };
    must_be_known(state, id).map_err(|fault| {
        let problem = fault.problem();
        Fault::at(ProblemCode::NotFound, "organization", problem.detail)
    })
}

fn legs(legs: impl IntoIterator<Item = credit::Leg>) -> Vec<Leg> {
    let leg = |(account, amount): credit::Leg| Leg {
        account: account.into(),
        amount: Text(amount),
    };
    legs.into_iter().map(leg).collect()
}

fn shown(state: &State, id: &OrganizationId) -> Account {
    let account = state
        .accounts
        .get(id)
        .map(|account| account::Account::clone(account))
        .unwrap_or_default();
    let billing = state.billing.get(id).map(|kept| kept.value).unwrap_or_default();
    let unspent = held::unspent(state, id);
    let spendable = billing
        .line()
        .map(|line| unspent.saturating_add(i128::from(line.0)));
    let balances = account
        .balances
        .each()
        .map(|(name, amount)| (name, credit::shown(amount)));
    Account {
        organization: Text(id.clone()),
        billing: billing.into(),
        available: Text(credit::shown(account.available())),
        held: Text(credit::shown(i128::from(held::held(state, id)))),
        uncounted: Text(NanoUsd(held::uncounted(state, id))),
        spendable: spendable.map(|amount| Text(credit::shown(amount))),
        bought: Text(account.bought),
        balances: legs(balances),
        open_usage: account.open.as_ref().map(|open| OpenUsage {
            day: Text(open.day),
            billed: Text(open.billed),
            fee: Text(open.fee),
            cost: Text(open.cost),
        }),
        transfers: account.count,
        head: hex(&account.head),
    }
}

fn view(organization: &OrganizationId, transfer: &account::Transfer) -> Transfer {
    let (kind, method) = match transfer.cause {
        Cause::Moved(CreditMove::TopUp { method, .. }) => (TransferKind::TopUp, Some(method.into())),
        Cause::Moved(CreditMove::Refund { .. } | CreditMove::TakenBack { .. }) => {
            (TransferKind::Refund, None)
        }
        Cause::Moved(CreditMove::Adjustment { .. }) => (TransferKind::Adjustment, None),
        Cause::Usage(_) => (TransferKind::Usage, None),
    };
    Transfer {
        id: format!("{organization}/{}", transfer.sequence),
        sequence: transfer.sequence,
        at: Text(transfer.at),
        kind,
        method,
        legs: legs(transfer.legs.iter().copied()),
        reference: transfer.reference.clone(),
        reason: transfer.reason.clone(),
        actor: transfer.actor.clone(),
        previous: hex(&transfer.previous),
        hash: hex(&transfer.hash()),
    }
}

/// The routes of accounts.
pub(crate) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(get_account))
        .routes(routes!(put_billing))
        .routes(routes!(top_up))
        .routes(routes!(refund))
        .routes(routes!(adjust))
        .routes(routes!(release))
        .routes(routes!(list_transfers))
        .routes(routes!(get_fees, put_fees))
}
