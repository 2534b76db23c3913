//! What an organization's account says of a stretch of time: what was paid, charged, given and corrected, and the balances. Pure.
//! Usage and the fees on it are in [`fee`](super::fee) and in the store's lines, by when requests started.
//!
//! The replicated state keeps the newest transfers of an organization; where those do not reach back to the beginning of a stretch, its
//! opening balance is not known.

use tollway_proto::admin::report::InvoiceEntry;
use tollway_proto::admin::text::Text;
use tollway_shared::credit::{AccountName, CreditMove, PayMethod, shown};
use tollway_shared::ids::OrganizationId;
use tollway_shared::money::NanoUsd;
use tollway_shared::time::UnixMillis;

use super::invoice::Money;
use crate::state::State;
use crate::state::account::{Account, Cause, Transfer};

/// One movement of money that is no usage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Movement {
    /// When.
    pub at: UnixMillis,
    /// `organization/sequence` of its transfer.
    pub reference: String,
    /// What kind.
    pub kind: MovementKind,
    /// Nano-dollars: how much credit it is about; taken away when negative.
    pub amount: i128,
    /// Nano-dollars: the fee on it.
    pub fee: i128,
}

/// Kinds of movements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MovementKind {
    /// Credit was bought.
    TopUp,
    /// Credit was given.
    Grant,
    /// Money went back.
    Refund,
    /// A correction.
    Adjustment,
}

impl MovementKind {
    /// The name in the admin API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TopUp => "top_up",
            Self::Grant => "grant",
            Self::Refund => "refund",
            Self::Adjustment => "adjustment",
        }
    }
}

/// The movements of an organization from `from` up to `to`, as far as the state keeps them, oldest first.
pub fn movements(
    state: &State,
    organization: &OrganizationId,
    from: UnixMillis,
    to: UnixMillis,
) -> Vec<Movement> {
    let account = state.accounts.get(organization);
    let transfers = account.into_iter().flat_map(|account| account.transfers.iter());
    transfers
        .filter(|transfer| transfer.at >= from && transfer.at < to)
        .filter_map(|transfer| movement(organization, transfer))
        .collect()
}

fn movement(organization: &OrganizationId, transfer: &Transfer) -> Option<Movement> {
    let Cause::Moved(made) = transfer.cause else {
        return None;
    };
    let kind = match made {
        CreditMove::TopUp {
            method: PayMethod::Promo,
            ..
        } => MovementKind::Grant,
        CreditMove::TopUp { .. } => MovementKind::TopUp,
        CreditMove::Refund { .. } | CreditMove::TakenBack { .. } => MovementKind::Refund,
        CreditMove::Adjustment { .. } => MovementKind::Adjustment,
    };
    Some(Movement {
        at: transfer.at,
        reference: format!("{organization}/{}", transfer.sequence),
        kind,
        amount: moved(transfer, AccountName::Available),
        fee: moved(transfer, AccountName::RevenueFee),
    })
}

fn moved(transfer: &Transfer, account: AccountName) -> i128 {
    let legs = transfer.legs.iter().filter(|(name, _)| *name == account);
    legs.map(|(_, amount)| i128::from(amount.0)).sum()
}

/// When a transfer counts: usage on its own day, whenever that was closed.
fn counts_at(transfer: &Transfer) -> UnixMillis {
    match transfer.cause {
        Cause::Usage(day) => day.start(),
        Cause::Moved(_) => transfer.at,
    }
}

/// What an invoice says of an organization's account from `from` up to `to`.
pub fn money(state: &State, organization: &OrganizationId, from: UnixMillis, to: UnixMillis) -> Money {
    let Some(account) = state.accounts.get(organization) else {
        return Money::default();
    };
    let mut out = Money {
        opening: balance_before(account, from),
        entries_missing: balance_before(account, from).is_none(),
        closing: balance_before(account, to),
        ..Money::default()
    };
    let mut fees = 0;
    for movement in movements(state, organization, from, to) {
        let entry = |kind: &str, amount: i128| InvoiceEntry {
            at: Text(movement.at),
            kind: kind.into(),
            reference: movement.reference.clone(),
            amount: Text(shown(amount)),
        };
        // What is paid is above zero; credit that nobody pays for is the other way round.
        let paid = match movement.kind {
            MovementKind::TopUp | MovementKind::Refund => movement.amount,
            MovementKind::Grant | MovementKind::Adjustment => -movement.amount,
        };
        out.entries.push(entry(movement.kind.as_str(), paid));
        if movement.fee != 0 {
            out.entries.push(entry("fee", movement.fee));
            fees += movement.fee;
        }
    }
    out.fees = shown(fees);
    out
}

/// The balance before anything of `at` and later; `None` where transfers since then are not kept any more.
fn balance_before(account: &Account, at: UnixMillis) -> Option<NanoUsd> {
    let mut balance = account.available();
    if let Some(open) = account.open.as_ref().filter(|open| open.day.start() >= at) {
        balance += i128::from(open.billed.0) + i128::from(open.fee.0);
    }
    let is_whole = account.transfers.len() as u64 == account.count;
    let reaches_back = account
        .transfers
        .front()
        .is_some_and(|oldest| counts_at(oldest) < at);
    if !is_whole && !reaches_back {
        return None;
    }
    let later = account
        .transfers
        .iter()
        .filter(|transfer| counts_at(transfer) >= at);
    balance -= later
        .map(|transfer| moved(transfer, AccountName::Available))
        .sum::<i128>();
    Some(shown(balance))
}

#[cfg(test)]
mod tests {
    use tollway_proto::command::{Command, MoveCredit, Outcome};
    use tollway_shared::time::{DAY_MS, Day};

    use super::*;
    use crate::report::invoice::{Draft, Month};
    use crate::state::account::TRANSFERS_MAX;
    use crate::state::samples::{self, NOON};

    const USD: i64 = 1_000_000_000;

    fn step(state: &mut State, days: i64, command: Command) {
        let outcome = samples::run_at(state, NOON.plus_ms(days * DAY_MS), command);
        assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
    }

    fn credit(made: CreditMove, reference: &str) -> Command {
        Command::MoveCredit(MoveCredit {
            organization: OrganizationId::trusted("o"),
            made,
            reference: reference.into(),
            reason: String::new(),
        })
    }

    fn spend(from: i64, days: i32, cost: i64) -> Command {
        let mut spend = samples::spend(from, from + 1, cost);
        spend.sums[0].0.day = Day(NOON.day().0 + days);
        Command::RecordSpend(spend)
    }

    #[test]
    fn an_invoice_whose_first_entries_are_not_kept_says_so_and_is_not_final() {
        let mut state = samples::catalog();
        let organization = OrganizationId::trusted("o");
        let month = Month::parse(&NOON.day().to_string()[..7]).unwrap();
        let invoice = |state: &State| {
            let money = money(state, &organization, month.start, month.end);
            let draft = Draft::new(state, organization.clone(), month);
            let later = month.end.plus_ms(9 * DAY_MS);
            let made = draft.finish(money, vec![], later).unwrap();
            (made.entries.len(), made.entries_missing, made.is_final)
        };
        for number in 0..=TRANSFERS_MAX {
            let gift = CreditMove::TopUp {
                method: PayMethod::Promo,
                amount: NanoUsd(1),
            };
            let whole = (number, false, true);
            assert_eq!(invoice(&state), whole);
            step(&mut state, 0, credit(gift, &format!("gift-{number}")));
        }
        assert_eq!(invoice(&state), (TRANSFERS_MAX, true, false));
    }

    #[test]
    fn balances_at_any_day_follow_from_what_was_moved_and_used_until_then() {
        let mut state = samples::catalog();
        let bought = CreditMove::TopUp {
            method: PayMethod::Card,
            amount: NanoUsd(100 * USD),
        };
        step(&mut state, 0, credit(bought, "pay-1"));
        step(&mut state, 0, spend(0, 0, 3 * USD));
        step(&mut state, 1, spend(1, 1, 5 * USD));
        let refund = CreditMove::Refund {
            amount: NanoUsd(10 * USD),
        };
        step(&mut state, 2, credit(refund, "back-1"));
        step(&mut state, 2, spend(2, 2, 7 * USD));
        let organization = OrganizationId::trusted("o");
        let start = |days: i32| Day(NOON.day().0 + days).start();
        for (days, opening) in [(0, 0), (1, 97), (2, 92), (3, 75)] {
            let money = money(&state, &organization, start(days), start(days + 1));
            assert_eq!(money.opening, Some(NanoUsd(opening * USD)), "{days}");
        }
        let all = money(&state, &organization, start(0), start(3));
        let kinds: Vec<_> = all
            .entries
            .iter()
            .map(|entry| (entry.kind.as_str(), entry.amount.0.0))
            .collect();
        let fee = 5 * USD + USD / 2;
        assert_eq!(
            kinds,
            [("top_up", 100 * USD), ("fee", fee), ("refund", -10 * USD)]
        );
        assert_eq!((all.fees, all.closing), (NanoUsd(fee), Some(NanoUsd(75 * USD))));
    }
}
