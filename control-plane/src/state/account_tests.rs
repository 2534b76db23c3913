//! Accounts and the credit that holds an organization.

use proptest::prelude::*;
use tollway_proto::command::{Command, Entry, Outcome, PutBilling};
use tollway_shared::credit::{AutoTopUp, Billing, BillingMode, PayMethod, budget_id};
use tollway_shared::lease::message::{Effect, Verdict};
use tollway_shared::snapshot::ResourceKind;

use super::*;
use crate::state::lease_samples::{self, EU_1};
use crate::state::samples::{self, NOON};
use crate::state::{apply, invariant, view};

fn organization() -> OrganizationId {
    OrganizationId::trusted("o")
}

fn order(made: CreditMove, reference: &str) -> Command {
    Command::MoveCredit(MoveCredit {
        organization: organization(),
        made,
        reference: reference.into(),
        payment: None,
        reason: String::new(),
    })
}

fn top_up(amount: i64, reference: &str) -> Command {
    let (method, amount) = (PayMethod::Crypto, NanoUsd(amount));
    order(CreditMove::TopUp { method, amount }, reference)
}

fn billing(mode: BillingMode) -> Command {
    let billing = Billing {
        mode,
        ..Billing::default()
    };
    Command::PutBilling(PutBilling {
        organization: organization(),
        billing,
    })
}

/// Records one more stretch.
fn spend(state: &State, cost: i64) -> Command {
    let from = state.usage_offsets.get(&0).copied().unwrap_or(0);
    Command::RecordSpend(samples::spend(from, from + 1, cost))
}

fn done(state: &mut State, at: UnixMillis, command: Command) -> Vec<Effect> {
    let entry = Entry {
        at,
        actor: "root".into(),
        idempotency: None,
        if_revision: None,
        command,
    };
    let index = state.applied + 1;
    let applied = apply(state, index, &entry);
    assert!(
        matches!(applied.outcome, Outcome::Done(_)),
        "{:?}",
        applied.outcome
    );
    applied.effects
}

fn of(state: &State) -> &Account {
    &state.accounts[&organization()]
}

/// The limit that nodes see, and whether they are told to stop.
fn seen(state: &State) -> Option<(i64, bool)> {
    let kept = state.budgets.get(&budget_id(&organization()))?;
    let shown = view::budget(state, &kept.value);
    Some((shown.budget.terms.limit, shown.stops(NOON).is_some()))
}

#[test]
fn credit_is_bought_with_its_fee_given_back_without_it_and_corrected() {
    use AccountName::{Adjustments, Available, CashReceived, Promo, Refunds, RevenueFee};
    let mut state = samples::catalog();
    let (card, amount) = (PayMethod::Card, NanoUsd(10_000_000_000));
    done(
        &mut state,
        NOON,
        order(CreditMove::TopUp { method: card, amount }, "pay-1"),
    );
    let gift = CreditMove::TopUp {
        method: PayMethod::Promo,
        amount: NanoUsd(7),
    };
    done(&mut state, NOON, order(gift, "gift"));
    done(
        &mut state,
        NOON,
        order(CreditMove::Refund { amount: NanoUsd(5) }, "back"),
    );
    done(
        &mut state,
        NOON,
        order(CreditMove::Adjustment { amount: NanoUsd(-2) }, "slip"),
    );
    let account = of(&state);
    for (name, balance) in [
        (CashReceived, -10_800_000_000),
        (RevenueFee, 800_000_000),
        (Available, 10_000_000_000),
        (Promo, -7),
        (Refunds, 5),
        (Adjustments, 2),
    ] {
        assert_eq!(account.balances.of(name), balance, "{name:?}");
    }
    assert_eq!(
        (account.bought, account.count, account.broken()),
        (NanoUsd(amount.0 - 5), 4, None)
    );
    assert_eq!(state.audit.last().unwrap().target, "o/4");
}

#[test]
fn a_write_that_names_a_revision_moves_no_credit_and_sets_no_senders() {
    let mut state = samples::catalog();
    let revision = state.revision;
    for command in [top_up(100, "pay-1"), Command::PutPaymentSecrets(Vec::new())] {
        let entry = Entry {
            at: NOON,
            actor: "root".into(),
            idempotency: None,
            if_revision: Some(revision),
            command,
        };
        let index = state.applied + 1;
        let outcome = apply(&mut state, index, &entry).outcome;
        let is_refused =
            matches!(&outcome, Outcome::Refused(refusal) if refusal.code == RefusalCode::Precondition);
        assert!(is_refused, "{outcome:?}");
    }
    assert_eq!((state.accounts.len(), state.revision), (0, revision));
}

#[test]
fn a_payment_moves_money_once_and_its_reference_nothing_else() {
    let mut state = samples::catalog();
    done(&mut state, NOON, top_up(100, "pay-1"));
    let after = state.accounts.clone();
    done(&mut state, NOON.plus_ms(30 * DAY_MS), top_up(100, "pay-1"));
    assert_eq!(state.accounts, after);
    for (command, code) in [
        (top_up(101, "pay-1"), RefusalCode::Conflict),
        (
            order(CreditMove::Refund { amount: NanoUsd(100) }, "pay-1"),
            RefusalCode::Conflict,
        ),
        (
            order(CreditMove::Refund { amount: NanoUsd(101) }, "more"),
            RefusalCode::Conflict,
        ),
        (top_up(0, "zero"), RefusalCode::Invalid),
        (top_up(-1, "less"), RefusalCode::Invalid),
        (top_up(MOVE_MAX.0 + 1, "slip"), RefusalCode::Invalid),
    ] {
        let Outcome::Refused(refusal) = samples::run(&mut state, command.clone()) else {
            panic!("{command:?} is taken");
        };
        assert_eq!(refusal.code, code, "{command:?}");
    }
    assert_eq!(state.accounts, after);
    // Remembered for as long as is said.
    done(
        &mut state,
        NOON.plus_ms(PAYMENTS_KEPT_MS + DAY_MS),
        top_up(1, "pay-2"),
    );
    assert_eq!(state.payments.keys().collect::<Vec<_>>(), ["pay-2"]);
    assert_eq!(invariant::dangling(&state), None);
}

#[test]
fn a_prepaid_organization_is_held_to_its_credit_and_a_postpaid_one_to_its_line() {
    let mut state = samples::catalog();
    assert_eq!(seen(&state), None);
    done(&mut state, NOON, billing(BillingMode::Prepaid));
    assert_eq!(seen(&state), Some((0, true)), "without credit nothing goes");
    done(&mut state, NOON, top_up(100, "pay-1"));
    assert_eq!(seen(&state), Some((100, false)));
    let command = spend(&state, 99);
    done(&mut state, NOON, command);
    assert_eq!((of(&state).available(), seen(&state)), (1, Some((100, false))));
    let command = spend(&state, 1);
    done(&mut state, NOON, command);
    assert_eq!((of(&state).available(), seen(&state)), (0, Some((100, true))));
    done(&mut state, NOON, top_up(50, "pay-2"));
    assert_eq!(seen(&state), Some((150, false)), "it goes on");
    let line = BillingMode::Postpaid {
        credit_line: NanoUsd(25),
    };
    done(&mut state, NOON, billing(line));
    assert_eq!(seen(&state), Some((175, false)));
    let command = spend(&state, 75);
    done(&mut state, NOON, command);
    assert_eq!((of(&state).available(), seen(&state)), (-25, Some((175, true))));
    done(&mut state, NOON, billing(BillingMode::Unlimited));
    assert_eq!(seen(&state), None);
    assert_eq!(invariant::dangling(&state), None);
}

#[test]
fn what_nodes_have_out_is_held_and_cannot_be_given_back() {
    let mut state = lease_samples::with_nodes();
    done(&mut state, NOON, billing(BillingMode::Prepaid));
    done(&mut state, NOON, top_up(1_000, "pay-1"));
    assert!(lease_samples::enlist(&mut state, "eu-1", EU_1));
    assert_eq!(
        lease_samples::ask(&mut state, "eu-1", EU_1, &["credit.o"], 400),
        Verdict::Granted
    );
    let held = credit::held(&state, &organization());
    assert!(held >= 400, "{held}");
    let left = 1_000 - held;
    let refund = |amount| {
        order(
            CreditMove::Refund {
                amount: NanoUsd(amount),
            },
            "back",
        )
    };
    assert!(matches!(
        samples::run(&mut state, refund(left + 1)),
        Outcome::Refused(_)
    ));
    assert!(matches!(samples::run(&mut state, refund(left)), Outcome::Done(_)));
}

#[test]
fn usage_moves_money_with_its_count_and_is_one_transfer_a_day() {
    use AccountName::{Available, CostProvider, OwedProvider, RevenueUsage};
    let mut state = samples::catalog();
    for _ in 0..3 {
        let Command::RecordSpend(mut stretch) = spend(&state, 10) else {
            panic!()
        };
        stretch.sums[0].sums.billed = NanoUsd(8); // a discount
        done(&mut state, NOON, Command::RecordSpend(stretch));
    }
    let account = of(&state);
    for (name, balance) in [
        (Available, -24),
        (RevenueUsage, 24),
        (CostProvider, 30),
        (OwedProvider, -30),
    ] {
        assert_eq!(account.balances.of(name), balance, "{name:?}");
    }
    let open = Open {
        day: NOON.day(),
        billed: NanoUsd(24),
        fee: NanoUsd::ZERO,
        cost: NanoUsd(30),
    };
    assert_eq!((account.count, account.open.clone()), (0, Some(open)));
    let command = spend(&state, 1);
    done(&mut state, NOON.plus_ms(DAY_MS), command);
    let account = of(&state);
    let legs = vec![
        (Available, NanoUsd(-24)),
        (RevenueUsage, NanoUsd(24)),
        (OwedProvider, NanoUsd(-30)),
        (CostProvider, NanoUsd(30)),
    ];
    assert_eq!((account.count, &account.transfers[0].legs), (1, &legs));
    assert_eq!(account.open.as_ref().map(|open| open.billed), Some(NanoUsd(1)));
    assert_eq!(account.broken(), None);
}

#[test]
fn little_left_is_told_once_until_there_is_clearly_more() {
    let mut state = samples::catalog();
    let billing = Billing {
        mode: BillingMode::Prepaid,
        low_balance: Some(NanoUsd(50)),
        auto_top_up: Some(AutoTopUp {
            threshold: NanoUsd(20),
            amount: NanoUsd(100),
        }),
    };
    done(&mut state, NOON, top_up(100, "pay-1"));
    let told = done(
        &mut state,
        NOON,
        Command::PutBilling(PutBilling {
            organization: organization(),
            billing,
        }),
    );
    assert_eq!(told, []);
    let spent = |state: &mut State, amount| {
        let command = spend(state, amount);
        let effects = done(state, NOON, command);
        let told = effects.into_iter().map(|effect| match effect {
            Effect::LowBalance {
                available, top_up, ..
            } => (available.0, top_up.map(|amount| amount.0)),
            other => panic!("{other:?}"),
        });
        told.collect::<Vec<_>>()
    };
    assert_eq!(spent(&mut state, 51), [(49, None)]);
    assert_eq!(spent(&mut state, 20), []);
    assert_eq!(spent(&mut state, 10), [(19, Some(100))]);
    assert_eq!(spent(&mut state, 1), []);
    done(&mut state, NOON, top_up(36, "pay-2")); // 54: not clearly more
    assert_eq!(spent(&mut state, 10), []);
    done(&mut state, NOON, top_up(12, "pay-3")); // 56
    assert_eq!(spent(&mut state, 10), [(46, None)]);
    done(&mut state, NOON, top_up(54, "pay-4"));
    let both = [(10, None), (10, Some(100))]; // through both thresholds at once
    assert_eq!(spent(&mut state, 90), both);
    let actions: Vec<&str> = state.audit.iter().map(|record| record.action.as_str()).collect();
    assert_eq!(
        actions.iter().filter(|action| **action == "credit.low").count(),
        3
    );
    assert_eq!(
        actions
            .iter()
            .filter(|action| **action == "credit.top_up_wanted")
            .count(),
        2
    );
}

#[test]
fn a_changed_transfer_breaks_the_chain() {
    let mut state = samples::catalog();
    for n in 0..3 {
        done(&mut state, NOON, top_up(100, &format!("pay-{n}")));
    }
    let mut account = of(&state).clone();
    assert_eq!(account.broken(), None);
    account.transfers[1].legs = vec![
        (AccountName::Available, NanoUsd(1)),
        (AccountName::Promo, NanoUsd(-1)),
    ];
    assert_eq!(account.broken(), Some(3));
    account.transfers[2].legs.pop();
    assert_eq!(account.broken(), Some(3));
}

#[test]
fn the_budget_of_a_credit_is_the_clusters_own() {
    let mut state = samples::catalog();
    done(&mut state, NOON, billing(BillingMode::Prepaid));
    let id = budget_id(&organization());
    let mut put = samples::budget(5);
    put.budget.id = id.clone();
    for command in [
        Command::PutBudget(put),
        Command::RemoveBudget(id.clone()),
        Command::ClearRaises(id.clone()),
    ] {
        let Outcome::Refused(refusal) = samples::run(&mut state, command) else {
            panic!("taken")
        };
        assert_eq!(
            (refusal.code, refusal.field.as_deref()),
            (RefusalCode::Conflict, Some("id"))
        );
    }
    let changed = changes(&mut state, top_up(5, "pay-1"));
    assert!(
        changed.contains(&view::key(ResourceKind::Budget, id.text())),
        "nodes hear of the limit"
    );
}

fn changes(state: &mut State, command: Command) -> Vec<tollway_shared::snapshot::ResourceKey> {
    let entry = Entry {
        at: NOON,
        actor: "root".into(),
        idempotency: None,
        if_revision: None,
        command,
    };
    let index = state.applied + 1;
    apply(state, index, &entry).changed
}

/// One thing that happens.
#[derive(Debug, Clone)]
enum Event {
    TopUp(PayMethod, i64),
    Refund(i64),
    Adjust(i64),
    Spend(i64),
    Mode(BillingMode),
    Again(usize),
    NextDay,
}

fn event() -> impl Strategy<Value = Event> {
    let amount = || prop_oneof![1i64..2_000, 1i64..20_000_000_000];
    let method = prop_oneof![
        Just(PayMethod::Card),
        Just(PayMethod::Crypto),
        Just(PayMethod::Invoice),
        Just(PayMethod::Promo)
    ];
    let mode = prop_oneof![
        Just(BillingMode::Unlimited),
        Just(BillingMode::Prepaid),
        amount().prop_map(|line| BillingMode::Postpaid {
            credit_line: NanoUsd(line)
        })
    ];
    prop_oneof![
        3 => (method, amount()).prop_map(|(method, amount)| Event::TopUp(method, amount)),
        2 => amount().prop_map(Event::Refund),
        1 => amount().prop_map(|amount| Event::Adjust(amount - 1_000)),
        5 => amount().prop_map(Event::Spend),
        1 => mode.prop_map(Event::Mode),
        1 => (0usize..40).prop_map(Event::Again),
        1 => Just(Event::NextDay),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Against a model that only adds up. After every entry all transfers balance and the limit follows; the log replayed from its start
    /// gives the same bytes.
    #[test]
    fn any_order_of_payments_and_usage_balances_and_replays_to_the_same_state(events in prop::collection::vec(event(), 1..40)) {
        let (mut state, mut at) = (samples::catalog(), NOON);
        let (mut available, mut cash) = (0i128, 0i128);
        let mut log: Vec<(UnixMillis, Command, bool)> = Vec::new();
        for (n, event) in events.iter().enumerate() {
            let reference = format!("m-{n}");
            let command = match event {
                Event::TopUp(method, amount) => order(CreditMove::TopUp { method: *method, amount: NanoUsd(*amount) }, &reference),
                Event::Refund(amount) => order(CreditMove::Refund { amount: NanoUsd(*amount) }, &reference),
                Event::Adjust(amount) => order(CreditMove::Adjustment { amount: NanoUsd(*amount) }, &reference),
                Event::Spend(amount) => spend(&state, *amount),
                Event::Mode(mode) => billing(*mode),
                Event::Again(back) => match log.iter().rev().nth(*back) {
                    Some((_, Command::MoveCredit(again), true)) => Command::MoveCredit(again.clone()),
                    _ => continue,
                },
                Event::NextDay => {
                    at = at.plus_ms(DAY_MS);
                    continue;
                }
            };
            let done = matches!(samples::run_at(&mut state, at, command.clone()), Outcome::Done(_));
            match event {
                Event::TopUp(method, amount) => {
                    prop_assert!(done);
                    available += i128::from(*amount);
                    let fee = state.fees.value.on(*method, NanoUsd(*amount)).unwrap().0;
                    cash += if method.is_bought() { i128::from(*amount) + i128::from(fee) } else { 0 };
                }
                Event::Refund(amount) => {
                    prop_assert_eq!(done, i128::from(*amount) <= available);
                    available -= if done { i128::from(*amount) } else { 0 };
                }
                Event::Adjust(amount) => {
                    prop_assert_eq!(done, *amount != 0);
                    available += i128::from(*amount);
                }
                Event::Spend(amount) => {
                    prop_assert!(done);
                    available -= i128::from(*amount);
                }
                Event::Mode(_) | Event::Again(_) => prop_assert!(done),
                Event::NextDay => {}
            }
            log.push((at, command, done));
            prop_assert_eq!(invariant::dangling(&state), None);
            if let Some(account) = state.accounts.get(&organization()) {
                prop_assert_eq!(account.broken(), None);
                prop_assert_eq!(account.balances.sum(), 0);
                prop_assert_eq!(account.available(), available);
                prop_assert_eq!(-account.balances.of(AccountName::CashReceived), cash);
            }
        }
        let mut again = samples::catalog();
        for (at, command, _) in log {
            samples::run_at(&mut again, at, command);
        }
        prop_assert_eq!(again.encode(), state.encode());
    }
}
