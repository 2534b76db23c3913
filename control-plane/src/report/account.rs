//! What an organization's account says of a stretch of time: what was paid, charged, given and corrected, and the balances. Pure.
//! Usage and the fees on it are in [`fee`](super::fee) and in the store's lines, by when requests started.
//!
//! The replicated state keeps the newest transfers of an organization; where those do not reach back to the beginning of a stretch, its
//! opening balance is not known. Of what was moved before, usage aside, it keeps sums by month and kind: a whole month is always exact.

use tollway_proto::admin::report::InvoiceEntry;
use tollway_proto::admin::text::Text;
use tollway_shared::credit::shown;
use tollway_shared::ids::OrganizationId;
use tollway_shared::money::NanoUsd;
use tollway_shared::time::{Day, Period, UnixMillis};

use super::invoice::Money;
use crate::state::State;
use crate::state::account::{Account, Cause, Transfer};
use crate::state::moved::Moved;
pub use crate::state::moved::MovementKind;

/// One movement of money that is no usage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Movement {
    /// When.
    pub at: UnixMillis,
    /// `organization/sequence` of its transfer; of a sum, `organization/2026-11`.
    pub reference: String,
    /// It is the sum of a month's movements whose transfers are not kept.
    pub is_of_month: bool,
    /// What kind.
    pub kind: MovementKind,
    /// Nano-dollars: how much credit it is about; taken away when negative.
    pub amount: i128,
    /// Nano-dollars: the fee on it.
    pub fee: i128,
}

/// The days from which movements are known no more but by whole months, and of which a part is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "movements of credit before {since} are known by whole months; ask for whole months, or from {since} on"
)]
pub struct Forgotten {
    /// The first day of which all are known.
    pub since: Day,
}

/// The movements of an organization from `from` up to `to`, oldest first: those whose transfers are not kept as sums of their month.
pub fn movements(
    state: &State,
    organization: &OrganizationId,
    from: UnixMillis,
    to: UnixMillis,
) -> Result<Vec<Movement>, Forgotten> {
    let Some(account) = state.accounts.get(organization) else {
        return Ok(Vec::new());
    };
    let oldest = account.transfers.front().map_or(state.now, |oldest| oldest.at);
    let since = Day(oldest.day().0 + 1);
    let mut out = Vec::new();
    for ((month, kind), sums) in account.moved.beside(account.transfers.iter()) {
        let (start, end) = Period::Monthly.window(month.start());
        // Nothing is moved later than now, so a month that is not over is whole up to now.
        let reaches_end = to > state.now || end.is_some_and(|end| end <= to);
        let is_before = end.is_some_and(|end| end <= from) || since.start() <= from;
        if is_before || start >= to {
            continue;
        }
        if start < from || !reaches_end {
            return Err(Forgotten { since });
        }
        out.push(Movement {
            at: start,
            reference: format!("{organization}/{}", month.month_text()),
            is_of_month: true,
            kind,
            amount: sums.amount,
            fee: sums.fee,
        });
    }
    let kept = account.transfers.iter();
    let kept = kept.filter(|transfer| transfer.at >= from && transfer.at < to);
    out.extend(kept.filter_map(|transfer| movement(organization, transfer)));
    Ok(out)
}

fn movement(organization: &OrganizationId, transfer: &Transfer) -> Option<Movement> {
    let Cause::Moved(made) = transfer.cause else {
        return None;
    };
    let sums = Moved::of(&transfer.legs);
    Some(Movement {
        at: transfer.at,
        reference: format!("{organization}/{}", transfer.sequence),
        is_of_month: false,
        kind: MovementKind::of(&made),
        amount: sums.amount,
        fee: sums.fee,
    })
}

/// When a transfer counts: usage on its own day, whenever that was closed.
fn counts_at(transfer: &Transfer) -> UnixMillis {
    match transfer.cause {
        Cause::Usage(day) => day.start(),
        Cause::Moved(_) => transfer.at,
    }
}

/// What an invoice says of an organization's account from `from` up to `to`: a month.
pub fn money(
    state: &State,
    organization: &OrganizationId,
    from: UnixMillis,
    to: UnixMillis,
) -> Result<Money, Forgotten> {
    let Some(account) = state.accounts.get(organization) else {
        return Ok(Money::default());
    };
    let movements = movements(state, organization, from, to)?;
    let mut out = Money {
        opening: balance_before(account, from),
        entries_missing: movements.iter().any(|movement| movement.is_of_month),
        closing: balance_before(account, to),
        ..Money::default()
    };
    let mut fees = 0;
    for movement in movements {
        out.entries.push(InvoiceEntry {
            at: Text(movement.at),
            kind: movement.kind.as_str().into(),
            reference: movement.reference,
            amount: Text(shown(movement.amount)),
            fee: Text(shown(movement.fee)),
        });
        fees += movement.fee;
    }
    out.fees = shown(fees);
    Ok(out)
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
        .map(|transfer| Moved::of(&transfer.legs).amount)
        .sum::<i128>();
    Some(shown(balance))
}

#[cfg(test)]
mod tests {
    use tollway_proto::command::{Command, MoveCredit, Outcome};
    use tollway_shared::credit::{CreditMove, PayMethod};
    use tollway_shared::time::DAY_MS;

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
            payment: None,
            reason: String::new(),
        })
    }

    fn spend(from: i64, days: i32, cost: i64) -> Command {
        let mut spend = samples::spend(from, from + 1, cost);
        spend.sums[0].cell.day = Day(NOON.day().0 + days);
        Command::RecordSpend(spend)
    }

    #[test]
    fn an_invoice_that_is_final_stays_so_with_the_same_fees_when_its_transfers_are_gone() {
        let mut state = samples::catalog();
        let organization = OrganizationId::trusted("o");
        let month = Month::parse(&NOON.day().month_text()).unwrap();
        let invoice = |state: &State| {
            let money = money(state, &organization, month.start, month.end).unwrap();
            let draft = Draft::new(state, organization.clone(), month);
            let later = month.end.plus_ms(9 * DAY_MS);
            draft.finish(money, vec![], later).unwrap()
        };
        let moves = [
            CreditMove::TopUp {
                method: PayMethod::Card,
                amount: NanoUsd(100 * USD),
            },
            CreditMove::Refund {
                amount: NanoUsd(10 * USD),
            },
            CreditMove::Adjustment {
                amount: NanoUsd(-USD),
            },
        ];
        for (number, made) in moves.into_iter().enumerate() {
            step(&mut state, 0, credit(made, &format!("move-{number}")));
        }
        let sums = |state: &State| {
            let invoice = invoice(state);
            let entries = invoice.entries.iter().map(|entry| entry.amount.0.0).sum::<i64>();
            assert!(invoice.is_final);
            (invoice.totals.fees.0, invoice.totals.total.0, entries)
        };
        let before = (sums(&state), invoice(&state).entries_missing);
        let fee = 5 * USD + USD / 2;
        assert_eq!(before, ((NanoUsd(fee), NanoUsd(fee), 89 * USD), false));
        // Four months of usage, a transfer a day, and one more.
        for number in 0..=i32::try_from(TRANSFERS_MAX).unwrap() {
            let days = 40 + i64::from(number);
            step(&mut state, days, spend(number.into(), 40 + number, USD));
            assert_eq!(sums(&state), before.0, "{number}");
        }
        let account = &state.accounts[&organization];
        let is_moved = |transfer: &Transfer| matches!(transfer.cause, Cause::Moved(_));
        assert!(!account.transfers.iter().any(is_moved), "all are gone");
        assert!(invoice(&state).entries_missing);
        assert_eq!(crate::report::fee::apart(&state), []);
    }

    #[test]
    fn an_invoice_goes_from_the_balance_before_to_the_balance_after_by_what_it_lists() {
        let mut state = samples::catalog();
        let organization = OrganizationId::trusted("o");
        let month = Month::parse("2026-12").unwrap();
        let bought = |method, dollars: i64| CreditMove::TopUp {
            method,
            amount: NanoUsd(dollars * USD),
        };
        let amount = NanoUsd(5 * USD);
        let moves = [
            (0, bought(PayMethod::Crypto, 3)), // the month before
            (10, bought(PayMethod::Card, 20)),
            (10, bought(PayMethod::Promo, 20)),
            (11, CreditMove::Refund { amount }),
            (11, CreditMove::TakenBack { amount }),
            (12, CreditMove::Adjustment { amount: NanoUsd(USD) }),
            (12, CreditMove::Adjustment { amount: NanoUsd(-7) }),
        ];
        for (number, (days, made)) in moves.into_iter().enumerate() {
            step(&mut state, days, credit(made, &format!("move-{number}")));
        }
        let mut line = crate::report::sample::line();
        line.billed = NanoUsd(line.billed.0 - 77); // a discount
        let (owed, fee) = (line.billed, NanoUsd(42));
        let Command::RecordSpend(mut stretch) = spend(0, 12, line.charge.total.0) else {
            panic!()
        };
        let sums = &mut stretch.sums[0].sums;
        (sums.billed, sums.fee, sums.byok_requests) = (owed, fee, 1);
        step(&mut state, 12, Command::RecordSpend(stretch));
        step(&mut state, 50, credit(bought(PayMethod::Card, 1), "later"));
        let mut draft = Draft::new(&state, organization.clone(), month);
        draft.push(&line).unwrap();
        let days = crate::report::fee::Days {
            from: month.start.day(),
            to: month.end.plus_ms(-1).day(),
        };
        for line in crate::report::fee::lines(&state, &organization, days).unwrap() {
            draft.push_fee(line).unwrap();
        }
        let money = money(&state, &organization, month.start, month.end).unwrap();
        let invoice = draft.finish(money, vec![], month.end).unwrap();
        let entries: Vec<_> = invoice.entries.iter().map(|entry| entry.amount.0.0).collect();
        assert_eq!(entries, [20 * USD, 20 * USD, -5 * USD, -5 * USD, USD, -7]);
        let (entries, totals) = (entries.iter().sum::<i64>(), &invoice.totals);
        let (opening, closing) = (invoice.opening_balance.unwrap(), invoice.closing_balance.unwrap());
        assert_eq!((opening.0, totals.byok_fees.0), (NanoUsd(3 * USD), fee));
        assert_eq!(
            opening.0.0 + entries - totals.usage.0.0 - totals.byok_fees.0.0,
            closing.0.0
        );
        let lines: i64 = invoice.lines.iter().map(|line| line.amount.0.0).sum();
        assert_eq!(opening.0.0 + entries - lines, closing.0.0);
    }

    #[test]
    fn what_was_moved_long_ago_is_known_by_whole_months_and_refused_by_parts_of_one() {
        let mut state = samples::catalog();
        let organization = OrganizationId::trusted("o");
        let gift = CreditMove::TopUp {
            method: PayMethod::Promo,
            amount: NanoUsd(1),
        };
        // Two a day, from the 22nd of November on: of 100 days, the first 36 are gone.
        let days = i64::try_from(TRANSFERS_MAX).unwrap() / 2 + 36;
        for number in 0..2 * days {
            step(&mut state, number / 2, credit(gift, &format!("gift-{number}")));
        }
        let day = |text: &str| Day::parse(text).unwrap().start();
        let sum = |from: &str, to: &str| {
            let moved = movements(&state, &organization, day(from), day(to));
            moved.map(|moved| moved.iter().map(|moved| moved.amount).sum::<i128>())
        };
        let since = Day::parse("2026-12-29").unwrap();
        assert_eq!(sum("2026-11-01", "2026-12-01"), Ok(18));
        assert_eq!(sum("2026-12-01", "2027-01-01"), Ok(62));
        assert_eq!(sum("2026-11-01", "2027-12-01"), Ok(2 * i128::from(days)));
        assert_eq!(sum("2026-11-22", "2026-12-01"), Err(Forgotten { since }));
        assert_eq!(sum("2026-11-01", "2026-11-30"), Err(Forgotten { since }));
        assert_eq!(sum("2026-12-28", "2027-01-01"), Err(Forgotten { since }));
        assert_eq!(sum("2026-12-29", "2027-01-01"), Ok(6));
        assert_eq!(sum("2026-09-05", "2026-10-07"), Ok(0));
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
            let money = money(&state, &organization, start(days), start(days + 1)).unwrap();
            assert_eq!(money.opening, Some(NanoUsd(opening * USD)), "{days}");
        }
        let all = money(&state, &organization, start(0), start(3)).unwrap();
        let kinds: Vec<_> = all
            .entries
            .iter()
            .map(|entry| (entry.kind.as_str(), entry.amount.0.0, entry.fee.0.0))
            .collect();
        let fee = 5 * USD + USD / 2;
        assert_eq!(kinds, [("top_up", 100 * USD, fee), ("refund", -10 * USD, 0)]);
        assert_eq!((all.fees, all.closing), (NanoUsd(fee), Some(NanoUsd(75 * USD))));
    }
}
