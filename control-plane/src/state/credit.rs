//! What holds an organization to its credit: a hard lifetime budget of the organization, kept by the cluster, whose limit follows the
//! balance. Nodes lease it like any other; what they refuse by it is 402.
//!
//! Limit = balance + credit line + what the budget has counted. Spending lowers the balance by what it adds to the count, so the
//! limit changes when credit does: by what is paid, and by fees on own credentials, which the ledger takes when it counts a request.
//!
//! This budget has one window for ever, so what a dead node leaves charged does not go with a window's end, as elsewhere. What a life has
//! out is freed when it is released ([`super::lease`]); what it said it had spent, or what is charged in doubt, and no event ever came of,
//! by `release`. After either the ledger may still count what no lease has reported: that is settled with the count, so it stays counted.

use std::sync::Arc;

use tollway_proto::command::{PutBilling, Refusal, RefusalCode, ReleaseCredit};
use tollway_shared::budget::terms::Terms;
use tollway_shared::budget::{Budget, BudgetScope};
use tollway_shared::credit::{self, Billing, Fees};
use tollway_shared::ids::{BudgetId, OrganizationId};
use tollway_shared::lease::message::Effect;
use tollway_shared::money::NanoUsd;
use tollway_shared::seal::Sealed;
use tollway_shared::window::Span;

use super::{Kept, State, Step, account, audit, budget, not_found, quota, refuse};

/// Most secrets of the payment webhook: the old and the new one while they change, for two senders.
pub const SECRETS_MAX: usize = 4;
/// How much above its threshold a balance must be, in percent of it, before a low one is told again.
const CLEAR_PERCENT: i128 = 110;

/// Sets how an organization pays.
pub(super) fn put_billing(state: &mut State, step: &mut Step<'_>, put: &PutBilling) -> Result<(), Refusal> {
    if !state.organizations.contains_key(&put.organization) {
        return Err(not_found("organization", &put.organization));
    }
    if let Some((field, why)) = put.billing.unsound() {
        return Err(refuse(RefusalCode::Invalid, field, why));
    }
    step.put(&mut state.billing, put.organization.clone(), put.billing)?;
    settle(state, step, &put.organization);
    Ok(())
}

/// Sets what buying credits costs, from now on.
pub(super) fn put_fees(state: &mut State, step: &mut Step<'_>, fees: &Fees) -> Result<(), Refusal> {
    if let Some(field) = fees.unsound() {
        let detail = "must be at most 10000 basis points, and at least between 0 and 10000000 dollars";
        return Err(refuse(RefusalCode::Invalid, field, detail));
    }
    step.expect_revision(Some(state.fees.revision))?;
    step.audit = Some(audit::Touched {
        target: "fees".into(),
        before: Some(audit::redacted(&state.fees.value)),
        after: Some(audit::redacted(fees)),
    });
    state.fees = Kept {
        value: *fees,
        revision: step.revision,
    };
    quota::follow_all(state, step);
    Ok(())
}

/// Sets whose payments are believed. None: nobody's.
pub(super) fn put_secrets(state: &mut State, step: &mut Step<'_>, secrets: &[Sealed]) -> Result<(), Refusal> {
    step.expect_revision(None)?;
    if secrets.len() > SECRETS_MAX {
        return Err(refuse(
            RefusalCode::Invalid,
            "secrets",
            format!("must be at most {SECRETS_MAX}"),
        ));
    }
    let count = |secrets: &[Sealed]| Some(format!("{} secrets", secrets.len()));
    step.audit = Some(audit::Touched {
        target: "payments".into(),
        before: count(&state.payment_secrets),
        after: count(secrets),
    });
    state.payment_secrets = secrets.to_vec();
    Ok(())
}

/// An organization with credit stays: the money is its customer's. What one that is held to nothing owes for usage, it owes also when it
/// is gone.
pub(super) fn must_be_settled(state: &State, id: &OrganizationId) -> Result<(), Refusal> {
    let available = state.accounts.get(id).map_or(0, |account| account.available());
    let may_owe = billing(state, id).line().is_none();
    let held = held(state, id);
    if held == 0 && (available == 0 || (may_owe && available < 0)) {
        return Ok(());
    }
    let (available, held) = (credit::shown(available), NanoUsd(held));
    Err(Refusal {
        code: RefusalCode::Conflict,
        field: None,
        detail: format!(
            "this organization's account has {available} dollars, and {held} of its credit are with nodes; refund or adjust it to zero first, and make it `unlimited` so that nodes give back what they hold"
        ),
    })
}

/// An organization that goes takes its settings with it. Its account stays: what happened, happened.
pub(super) fn forget(state: &mut State, step: &mut Step<'_>, id: &OrganizationId) {
    state.billing.remove(id);
    budget::remove_kept(state, step, &credit::budget_id(id));
    budget::remove_kept(state, step, &credit::quota_id(id));
}

fn billing(state: &State, id: &OrganizationId) -> Billing {
    state.billing.get(id).map(|kept| kept.value).unwrap_or_default()
}

/// What is neither spent nor with nodes, without any credit line.
pub fn unspent(state: &State, id: &OrganizationId) -> i128 {
    let available = state.accounts.get(id).map_or(0, |account| account.available());
    available.saturating_sub(i128::from(held(state, id)))
}

/// What nodes have out of the organization's credit, or have used and the ledger has not recorded yet.
pub fn held(state: &State, id: &OrganizationId) -> i64 {
    let id = credit::budget_id(id);
    let (Some(account), Some(tally)) = (state.books.accounts.get(&id), state.tallies.get(&id)) else {
        return 0;
    };
    let book = &account.book;
    let gone = i128::from(book.limit) - book.free - i128::from(tally.current.amount);
    i64::try_from(gone.max(0)).unwrap_or(i64::MAX)
}

/// What leases have settled of the organization's credit and the ledger has not counted: on its way, or stranded. What nodes still have
/// of a former budget for this credit is none of it.
pub fn uncounted(state: &State, id: &OrganizationId) -> i64 {
    let id = credit::budget_id(id);
    let (Some(account), Some(tally)) = (state.books.accounts.get(&id), state.tallies.get(&id)) else {
        return 0;
    };
    let apart = account.book.settled - account.carried() - i128::from(tally.current.amount);
    i64::try_from(apart.max(0)).unwrap_or(i64::MAX)
}

/// Frees credit that was settled and is not counted.
pub(super) fn release(state: &mut State, step: &mut Step<'_>, order: &ReleaseCredit) -> Result<(), Refusal> {
    let id = &order.organization;
    step.expect_revision(None)?;
    if !state.organizations.contains_key(id) {
        return Err(not_found("organization", id));
    }
    if order.amount <= NanoUsd::ZERO {
        return Err(refuse(RefusalCode::Invalid, "amount", "must be above zero"));
    }
    let before = uncounted(state, id);
    if order.amount.0 > before {
        let left = NanoUsd(before);
        let detail =
            format!("is more than the {left} dollars that nodes have spent and the ledger has not counted");
        return Err(refuse(RefusalCode::Conflict, "amount", detail));
    }
    state.books.free(&credit::budget_id(id), order.amount.0);
    settle(state, step, id);
    step.audit = Some(audit::Touched {
        target: format!("{id}"),
        before: Some(format!("{} dollars uncounted", NanoUsd(before))),
        after: Some(format!(
            "{} dollars uncounted; {}",
            NanoUsd(uncounted(state, id)),
            order.reason
        )),
    });
    Ok(())
}

/// After a balance or a setting has changed: the budget's limit follows, and whoever has to know is told.
pub(super) fn settle(state: &mut State, step: &mut Step<'_>, id: &OrganizationId) {
    let billing = billing(state, id);
    enforce(state, step, id, &billing);
    step.effects.extend(watch(state, id, &billing));
}

fn enforce(state: &mut State, step: &mut Step<'_>, id: &OrganizationId, billing: &Billing) {
    let budget = credit::budget_id(id);
    let there = state.organizations.contains_key(id);
    let Some(line) = billing.line().filter(|_| there) else {
        budget::remove_kept(state, step, &budget);
        return;
    };
    let available = state.accounts.get(id).map_or(0, |account| account.available());
    let spent = state.tallies.get(&budget).map_or(0, |tally| tally.current.amount);
    let effects = state.books.count(&budget, spent, state.now);
    step.effects.extend(effects);
    let limit = credit::limit(available, line, spent);
    if state
        .budgets
        .get(&budget)
        .is_some_and(|kept| kept.value.terms.limit == limit)
    {
        return;
    }
    let kept = Budget {
        id: budget,
        scope: BudgetScope::Organization(id.clone()),
        model: None,
        terms: Terms::money(NanoUsd(limit)),
    };
    budget::put_kept(state, step, &kept, Span::LIFETIME, 0);
}

/// What somebody must hear of how little is left, each once until there is clearly more: that it is low, and that more is wanted.
fn watch(state: &mut State, id: &OrganizationId, billing: &Billing) -> Vec<Effect> {
    if billing.low_balance.is_none() && billing.auto_top_up.is_none() {
        return Vec::new();
    }
    let mut account = state
        .accounts
        .get(id)
        .map(|account| account::Account::clone(account))
        .unwrap_or_default();
    let available = account.available();
    let below = |amount: NanoUsd| available < i128::from(amount.0);
    let is_low = billing.low_balance.is_some_and(below);
    let clear = billing
        .low_balance
        .is_none_or(|low| available * 100 >= i128::from(low.0) * CLEAR_PERCENT);
    let asked = billing.auto_top_up.filter(|rule| below(rule.threshold));
    let tells = is_low && !account.low_told;
    let asks = asked.filter(|_| !account.top_up_asked);
    account.low_told = is_low || (account.low_told && !clear);
    account.top_up_asked = asked.is_some();
    let before = state.accounts.get(id);
    if before.is_none_or(|before| **before != account) {
        state.accounts.insert(id.clone(), Arc::new(account));
    }
    let low = tells.then_some(None);
    let wanted = asks.map(|rule| Some(rule.amount));
    let told = low.into_iter().chain(wanted).map(|top_up| Effect::LowBalance {
        organization: id.clone(),
        available: credit::shown(available),
        top_up,
    });
    told.collect()
}

/// Refuses what people may not do to the budgets that this module keeps.
pub(super) fn must_be_theirs(id: &BudgetId) -> Result<(), Refusal> {
    if !credit::is_credit(id) && !credit::is_quota(id) {
        return Ok(());
    }
    let detail = "is kept by the cluster: it follows the organization's account and the fees";
    Err(refuse(RefusalCode::Conflict, "id", detail))
}

/// What does not hold between credit and the budgets that follow it, in words.
pub(super) fn broken(state: &State) -> Option<String> {
    for (id, kept) in &state.billing {
        let budget = state
            .budgets
            .get(&credit::budget_id(id))
            .map(|kept| kept.value.terms.limit);
        let available = state.accounts.get(id).map_or(0, |account| account.available());
        let spent = state
            .tallies
            .get(&credit::budget_id(id))
            .map_or(0, |tally| tally.current.amount);
        let wanted = kept
            .value
            .line()
            .map(|line| credit::limit(available, line, spent));
        if budget != wanted {
            return Some(format!(
                "organization `{id}` is held to {budget:?} and not to {wanted:?}"
            ));
        }
    }
    None
}
