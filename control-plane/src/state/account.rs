//! Credits of organizations: accounts, transfers between them, and what is moved by recorded usage.
//!
//! Double entry; the arithmetic is [`tollway_shared::credit`]. A transfer is never changed: each carries the hash of the one before,
//! so a changed one shows. Usage is one transfer per organization and UTC day of the log's own time; until the day is over its legs are in
//! the balances and in [`Account::open`]. The state keeps the newest transfers, and the balances and sums by month of all, so replaying the log from its start
//! gives the same accounts.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::Vector;
use serde::{Deserialize, Serialize};
use tollway_proto::command::{MoveCredit, RecordSpend, Refusal, RefusalCode};
use tollway_shared::bill::ByokUsed;
use tollway_shared::credit::{self as money, AccountName, Balances, CreditMove, Leg, MOVE_MAX, balances};
use tollway_shared::ids::OrganizationId;
use tollway_shared::money::NanoUsd;
use tollway_shared::seal::sha256;
use tollway_shared::time::{DAY_MS, Day, UnixMillis};

use super::moved::MovedByMonth;
use super::{State, Step, audit, credit, not_found, quota, refuse};

/// Transfers kept per organization. Older ones are in the audit trail as long as that lasts, and in the balances and
/// the sums by month for good.
pub const TRANSFERS_MAX: usize = 128;
/// How long a payment's reference is remembered: the same one again moves nothing.
pub const PAYMENTS_KEPT_MS: i64 = 400 * DAY_MS;
/// Most references remembered; past it the oldest go.
pub const PAYMENTS_MAX: usize = 500_000;

/// Months of which an account knows what was used of own credentials: events come a month late at most, or are not counted.
pub const MONTHS_MAX: usize = 3;

/// Months by which an account tells apart what was owed: a century.
pub const OWED_MONTHS_MAX: usize = 1200;

/// Why money moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Somebody moved it.
    Moved(CreditMove),
    /// What was used on a day.
    Usage(Day),
}

/// One transfer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// Dense per organization, from 1. With the organization it is the transfer's id.
    pub sequence: u64,
    /// When it was made, by the leader's stamp.
    pub at: UnixMillis,
    /// Why.
    pub cause: Cause,
    /// What moved; sums to zero.
    pub legs: Vec<Leg>,
    /// The payment's own id, or one of ours.
    pub reference: String,
    /// For people.
    pub reason: String,
    /// Who.
    pub actor: String,
    /// The hash of the transfer before this one; zeros for the first.
    pub previous: [u8; 32],
}

impl Transfer {
    /// SHA-256 over the transfer's JSON, its predecessor's hash included.
    pub fn hash(&self) -> [u8; 32] {
        sha256(&serde_json::to_vec(self).expect("plain fields serialize"))
    }
}

/// Usage of a day that is not over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// Which.
    pub day: Day,
    /// What was billed.
    pub billed: NanoUsd,
    /// Fees on own credentials.
    pub fee: NanoUsd,
    /// What it cost at list price, where providers bill the operator.
    pub cost: NanoUsd,
}

/// What was owed for the requests that started in a month.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owed {
    /// What was billed for them.
    pub billed: NanoUsd,
    /// Fees on own credentials.
    pub fee: NanoUsd,
}

impl Owed {
    fn add(&mut self, more: &Self) {
        self.billed = sum(self.billed, more.billed);
        self.fee = sum(self.fee, more.fee);
    }
}

/// The accounts of one organization.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// What each holds, with all that ever moved.
    pub balances: Balances,
    /// Bought in all, without what was given and less what went back; never below zero.
    pub bought: NanoUsd,
    /// What was moved by month, usage aside, with the fees on what was bought.
    pub moved: MovedByMonth,
    /// What usage was owed by month, named by its first day: all there ever was, so that reports of a month are whole when its sums by
    /// day are forgotten. Past [`OWED_MONTHS_MAX`] the oldest are one.
    pub owed: BTreeMap<Day, Owed>,
    /// Used of its own credentials by month, named by its first day: the newest [`MONTHS_MAX`].
    pub byok: BTreeMap<Day, ByokUsed>,
    /// Usage that is in the balances and in no transfer yet.
    pub open: Option<Open>,
    /// The newest transfers, oldest first; at most [`TRANSFERS_MAX`].
    pub transfers: Vector<Transfer>,
    /// How many there have been.
    pub count: u64,
    /// The hash of the newest.
    pub head: [u8; 32],
    /// It was told that little is left, and there has not been clearly more since.
    pub low_told: bool,
    /// More was asked for, and nothing has come since.
    pub top_up_asked: bool,
}

impl Account {
    /// What may be used up, before any credit line.
    pub fn available(&self) -> i128 {
        self.balances.of(AccountName::Available)
    }

    /// The first of the kept transfers whose predecessor's hash is not its predecessor's, or that does not balance.
    pub fn broken(&self) -> Option<u64> {
        let mut before: Option<&Transfer> = None;
        for transfer in &self.transfers {
            let follows = before.is_none_or(|before| {
                before.hash() == transfer.previous && before.sequence + 1 == transfer.sequence
            });
            if !follows || !balances(&transfer.legs) {
                return Some(transfer.sequence);
            }
            before = Some(transfer);
        }
        let head = before.map_or([0; 32], Transfer::hash);
        (head != self.head || before.map_or(0, |last| last.sequence) != self.count).then_some(self.count)
    }

    fn append(&mut self, mut transfer: Transfer) -> u64 {
        self.count += 1;
        (transfer.sequence, transfer.previous) = (self.count, self.head);
        self.head = transfer.hash();
        self.transfers.push_back(transfer);
        if self.transfers.len() > TRANSFERS_MAX {
            self.transfers.pop_front();
        }
        self.count
    }

    fn owe(&mut self, months: &BTreeMap<Day, Owed>) {
        for (month, owed) in months {
            self.owed.entry(*month).or_default().add(owed);
        }
        while self.owed.len() > OWED_MONTHS_MAX
            && let Some((_, oldest)) = self.owed.pop_first()
            && let Some(mut next) = self.owed.first_entry()
        {
            next.get_mut().add(&oldest);
        }
    }

    /// Makes the day's transfer, once the day is over.
    fn close(&mut self, today: Day, now: UnixMillis) {
        let Some(open) = self.open.take_if(|open| open.day < today) else {
            return;
        };
        let legs = usage_legs(open.billed, open.fee, open.cost);
        if !balances(&legs) {
            return; // nothing moved
        }
        self.append(Transfer {
            sequence: 0,
            at: now,
            cause: Cause::Usage(open.day),
            legs,
            reference: format!("usage-{}", open.day),
            reason: String::new(),
            actor: "system".into(),
            previous: [0; 32],
        });
    }
}

/// A payment that was booked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payment {
    /// Whose.
    pub organization: OrganizationId,
    /// What for.
    pub made: CreditMove,
    /// Its transfer.
    pub sequence: u64,
    /// When.
    pub at: UnixMillis,
    /// How much of it has been given back by the payment system.
    pub back: NanoUsd,
}

/// Books a top-up, a refund or an adjustment. The same reference again, for the same, changes nothing.
pub(super) fn move_credit(state: &mut State, step: &mut Step<'_>, order: &MoveCredit) -> Result<(), Refusal> {
    let id = &order.organization;
    step.expect_revision(None)?; // a movement is made once, so there is none to be at a revision
    if let Some(known) = state.payments.get(&order.reference) {
        if known.organization == *id && known.made == order.made {
            return Ok(());
        }
        let detail = format!(
            "was used for another movement of `{}`; it must be unique",
            known.organization
        );
        return Err(refuse(RefusalCode::Conflict, "reference", detail));
    }
    // What a payment system tells has happened, also to an organization that was removed since.
    let is_fact = matches!(order.made, CreditMove::TakenBack { .. });
    let there = state.organizations.contains_key(id) || (is_fact && state.accounts.contains_key(id));
    if !there {
        return Err(not_found("organization", id));
    }
    let amount = order.made.amount();
    if amount == NanoUsd::ZERO || amount.0.unsigned_abs() > MOVE_MAX.0.unsigned_abs() {
        let detail = "must not be zero, and at most 10000000 dollars";
        return Err(refuse(RefusalCode::Invalid, "amount", detail));
    }
    if amount < NanoUsd::ZERO && !matches!(order.made, CreditMove::Adjustment { .. }) {
        return Err(refuse(RefusalCode::Invalid, "amount", "must be above zero"));
    }
    if let CreditMove::Refund { .. } = order.made {
        let left = credit::unspent(state, id);
        if i128::from(amount.0) > left {
            let left = money::shown(left.max(0));
            let detail =
                format!("is more than the {left} dollars that are neither spent nor leased to nodes");
            return Err(refuse(RefusalCode::Conflict, "amount", detail));
        }
    }
    must_be_left(state, order)?;
    let legs = legs(state, &order.made)?;
    let (now, actor) = (state.now, step.entry.actor.clone());
    let mut account = account(state, id);
    account.close(now.day(), now);
    account.balances.apply(&legs);
    account.moved.add(now, &order.made, &legs);
    match order.made {
        CreditMove::TopUp { method, amount } if method.is_bought() => {
            account.bought = sum(account.bought, amount);
            account.top_up_asked = false;
        }
        CreditMove::Refund { amount } | CreditMove::TakenBack { amount } => {
            account.bought = NanoUsd(account.bought.0.saturating_sub(amount.0).max(0));
        }
        CreditMove::TopUp { .. } | CreditMove::Adjustment { .. } => {}
    }
    let sequence = account.append(Transfer {
        sequence: 0,
        at: now,
        cause: Cause::Moved(order.made),
        legs,
        reference: order.reference.clone(),
        reason: order.reason.clone(),
        actor,
        previous: [0; 32],
    });
    let touched = audit::Touched {
        target: format!("{id}/{sequence}"),
        before: None,
        after: account.transfers.last().map(audit::redacted),
    };
    step.audit = Some(touched);
    state.accounts.insert(id.clone(), Arc::new(account));
    let payment = Payment {
        organization: id.clone(),
        made: order.made,
        sequence,
        at: now,
        back: NanoUsd::ZERO,
    };
    if let Some(paid) = &order.payment
        && let Some(paid) = state.payments.get_mut(paid)
    {
        paid.back = sum(paid.back, amount);
    }
    state.payments.insert(order.reference.clone(), payment);
    state.payment_order.push_back((now, order.reference.clone()));
    forget_payments(state);
    credit::settle(state, step, id);
    quota::follow(state, step, id);
    Ok(())
}

/// Of a payment no more is given back than was paid. One that may have been forgotten is believed.
fn must_be_left(state: &State, order: &MoveCredit) -> Result<(), Refusal> {
    let Some(paid) = &order.payment else {
        return Ok(());
    };
    let account = state.accounts.get(&order.organization);
    let is_forgotten = !state.payments.contains_key(paid)
        && account.is_some_and(|account| {
            account.transfers.len() as u64 != account.count
                || account.transfers.iter().any(|kept| kept.reference == *paid)
        });
    if is_forgotten {
        return Ok(());
    }
    let known = state.payments.get(paid);
    let known = known.filter(|known| known.organization == order.organization);
    let Some((CreditMove::TopUp { amount, .. }, back)) = known.map(|known| (known.made, known.back)) else {
        let detail = format!("`{paid}` is no payment of `{}`", order.organization);
        return Err(refuse(RefusalCode::Invalid, "reference", detail));
    };
    let left = NanoUsd(amount.0.saturating_sub(back.0));
    if order.made.amount() > left {
        let detail = format!("is more than the {left} dollars that are left of payment `{paid}`");
        return Err(refuse(RefusalCode::Invalid, "amount", detail));
    }
    Ok(())
}

fn account(state: &State, id: &OrganizationId) -> Account {
    state
        .accounts
        .get(id)
        .map(|account| Account::clone(account))
        .unwrap_or_default()
}

fn legs(state: &State, made: &CreditMove) -> Result<Vec<Leg>, Refusal> {
    use AccountName::{Adjustments, Available, CashReceived, Promo, Refunds, RevenueFee};
    let minus = |amount: NanoUsd| NanoUsd(-amount.0); // far from the ends of the range
    Ok(match made {
        CreditMove::TopUp { method, amount } if !method.is_bought() => {
            vec![(Promo, minus(*amount)), (Available, *amount)]
        }
        CreditMove::TopUp { method, amount } => {
            let out_of_range = |_| {
                refuse(
                    RefusalCode::Invalid,
                    "amount",
                    "has a fee beyond the range of money",
                )
            };
            let fee = state.fees.value.on(*method, *amount).map_err(out_of_range)?;
            let paid = amount.plus(fee).map_err(out_of_range)?;
            let mut legs = vec![(CashReceived, minus(paid)), (Available, *amount)];
            legs.extend((fee != NanoUsd::ZERO).then_some((RevenueFee, fee)));
            legs
        }
        CreditMove::Refund { amount } | CreditMove::TakenBack { amount } => {
            vec![(Available, minus(*amount)), (Refunds, *amount)]
        }
        CreditMove::Adjustment { amount } => vec![(Available, *amount), (Adjustments, minus(*amount))],
    })
}

fn usage_legs(billed: NanoUsd, fee: NanoUsd, cost: NanoUsd) -> Vec<Leg> {
    use AccountName::{Available, CostProvider, OwedProvider, RevenueFee, RevenueUsage};
    let pairs = [
        (Available, RevenueUsage, billed),
        (Available, RevenueFee, fee),
        (OwedProvider, CostProvider, cost),
    ];
    let moved = pairs
        .into_iter()
        .filter(|(_, _, amount)| *amount != NanoUsd::ZERO);
    moved
        .flat_map(|(from, to, amount)| [(from, NanoUsd(-amount.0)), (to, amount)])
        .collect()
}

/// What a stretch moves of one organization.
#[derive(Default)]
struct Spent {
    billed: NanoUsd,
    fee: NanoUsd,
    cost: NanoUsd,
    owed: BTreeMap<Day, Owed>,
    byok: BTreeMap<Day, ByokUsed>,
}

/// A sum that stays at the end of its range.
fn sum(a: NanoUsd, b: NanoUsd) -> NanoUsd {
    a.plus(b).unwrap_or(NanoUsd(i64::MAX))
}

/// Moves what a stretch was billed, in the same entry that counts it.
pub(super) fn record(state: &mut State, step: &mut Step<'_>, stretch: &RecordSpend) {
    let mut spent: BTreeMap<&OrganizationId, Spent> = BTreeMap::new();
    for part in &stretch.sums {
        let (cell, sums) = (&part.cell, &part.sums);
        let of = spent.entry(&cell.path.organization).or_default();
        // Where the organization's own credential served, its provider bills it there.
        let cost = NanoUsd(sums.cost.0.saturating_sub(sums.byok_cost.0));
        of.billed = sum(of.billed, sums.billed);
        of.fee = sum(of.fee, sums.fee);
        of.cost = sum(of.cost, cost);
        let owed = Owed {
            billed: sums.billed,
            fee: sums.fee,
        };
        of.owed.entry(cell.day.month()).or_default().add(&owed);
        if sums.byok_requests > 0 {
            let used = ByokUsed {
                requests: sums.byok_requests,
                list: sums.byok_cost,
            };
            of.byok.entry(cell.day.month()).or_default().add(&used);
        }
    }
    let now = state.now;
    for (id, spent) in spent {
        let moves = [spent.billed, spent.fee, spent.cost]
            .iter()
            .any(|amount| *amount != NanoUsd::ZERO);
        if !moves && spent.byok.is_empty() {
            continue;
        }
        let mut account = account(state, id);
        for (month, used) in &spent.byok {
            account.byok.entry(*month).or_default().add(used);
        }
        while account.byok.len() > MONTHS_MAX {
            account.byok.pop_first();
        }
        if moves {
            account.close(now.day(), now);
            account.owe(&spent.owed);
            account
                .balances
                .apply(&usage_legs(spent.billed, spent.fee, spent.cost));
            let open = account.open.get_or_insert(Open {
                day: now.day(),
                billed: NanoUsd::ZERO,
                fee: NanoUsd::ZERO,
                cost: NanoUsd::ZERO,
            });
            open.billed = sum(open.billed, spent.billed);
            open.fee = sum(open.fee, spent.fee);
            open.cost = sum(open.cost, spent.cost);
        }
        state.accounts.insert(id.clone(), Arc::new(account));
        credit::settle(state, step, id);
    }
}

/// Forgets references that are too old or too many.
fn forget_payments(state: &mut State) {
    let oldest = state.now.plus_ms(-PAYMENTS_KEPT_MS);
    while let Some((at, reference)) = state.payment_order.front() {
        if *at >= oldest && state.payments.len() <= PAYMENTS_MAX {
            return;
        }
        state.payments.remove(reference);
        state.payment_order.pop_front();
    }
}

/// What does not hold of the accounts, in words: each sums to zero, and its newest transfer is the one that its hash says.
pub(super) fn broken(state: &State) -> Option<String> {
    if state.payments.len() != state.payment_order.len() {
        return Some("payments are not remembered in the order in which they came".to_owned());
    }
    state.accounts.iter().find_map(|(id, account)| {
        if account.balances.sum() != 0 {
            return Some(format!("the accounts of organization `{id}` do not sum to zero"));
        }
        let last = account.transfers.last();
        let sound = last.is_none_or(|last| last.sequence == account.count && balances(&last.legs));
        (!sound).then(|| format!("the newest transfer of organization `{id}` is not sound"))
    })
}

#[cfg(test)]
#[path = "account_tests.rs"]
mod tests;
