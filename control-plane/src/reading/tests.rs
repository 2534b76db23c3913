//! What tenants read, against the events themselves.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;
use tollway_proto::command::{Command, MoveCredit, Outcome, PutBilling, RecordSpend, UsageCell, UsageSums};
use tollway_proto::push::v1::{
    BudgetCycle, CreditsQuestion, GenerationQuestion, KeyQuestion, KeyStanding, SumField, SumFilter, Sums,
    SumsQuestion,
};
use tollway_proto::usage::{UnixMillisText, UsageEvent};
use tollway_shared::budget::terms::{Mode, Terms};
use tollway_shared::budget::{Budget, BudgetScope};
use tollway_shared::cost;
use tollway_shared::credit::{self, BillingMode, CreditMove, PayMethod};
use tollway_shared::ids::{BudgetId, ModelId};
use tollway_shared::money::NanoUsd;
use tollway_shared::time::{DAY_MS, Period};
use tonic::Code;

use super::*;
use crate::billing::{Place, sample};
use crate::state::samples::{self, NOON};
use crate::{ledger, state};

const OTHER: &str = "other";

/// Requests of three keys of organization `o`, of which `k2` has replaced `k`, and of another organization; on days back from
/// [`NOON`].
fn events() -> Vec<UsageEvent> {
    let told = [
        ("j", "k", 0),
        ("j", "k2", 0),
        ("j", "k2", 1),
        ("j", "k", 40),
        ("j", "k3", 0),
        ("elsewhere", "k4", 0),
        (OTHER, "k9", 0),
    ];
    let event = |(sequence, (project, key, days)): (u64, (&str, &str, i64))| {
        let mut event = ledger::sample::event(1, sequence);
        event.request_id = tollway_shared::ids::RequestId::trusted(format!("gen-{sequence}"));
        event.started_at.0 = NOON.plus_ms(-days * DAY_MS);
        event.first_byte_at = Some(UnixMillisText(event.started_at.0.plus_ms(100)));
        event.finished_at.0 = event.started_at.0.plus_ms(500);
        event.tenant.organization = OrganizationId::trusted(if project == OTHER { OTHER } else { "o" });
        (event.tenant.team, event.tenant.project) = (None, ProjectId::trusted(project));
        event.tenant.key = ApiKeyId::trusted(key);
        event.tokens.input = 1_111 * sequence;
        event.byok = sequence == 3;
        event.charge = cost::charge(&event.tokens, &event.prices).unwrap();
        event.state_charge(event.charge);
        event
    };
    (1..).zip(told).map(event).collect()
}

fn done(state: &mut State, command: Command) {
    let outcome = samples::run(state, command);
    assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
}

/// A replicated state in which `k2` has replaced `k`, and that has counted the events.
fn counted() -> State {
    let mut state = samples::catalog();
    done(
        &mut state,
        Command::RotateKey {
            old: ApiKeyId::trusted("k"),
            old_expires_at: NOON.plus_ms(1_000),
            new: samples::api_key("k2", 2),
        },
    );
    done(&mut state, Command::CreateKey(samples::api_key("k3", 3)));
    for (offset, event) in (0..).zip(events()) {
        let mut stretch: RecordSpend = samples::spend(offset, offset + 1, 0);
        let cell = UsageCell {
            day: event.started_at.0.day(),
            path: event.tenant.clone(),
            ..stretch.sums[0].cell.clone()
        };
        let own = if event.byok {
            event.charge.total
        } else {
            NanoUsd::ZERO
        };
        let sums = UsageSums {
            requests: 1,
            cost: event.charge.total,
            billed: event.billed,
            byok_cost: own,
            ..UsageSums::default()
        };
        (stretch.sums[0].cell, stretch.sums[0].sums) = (cell, sums);
        done(&mut state, Command::RecordSpend(stretch));
    }
    state
}

fn reading(state: State, place: Place) -> Reading {
    let (_, states) = watch::channel(Arc::new(state));
    Reading::new(states, Billing::new(place).0, || NOON)
}

/// With a store of the events in this folder.
fn with_store(dir: &Path) -> Reading {
    let path = dir.join("billing.sqlite");
    sample::store(&path, &events());
    reading(counted(), Place::File(path))
}

async fn asked(reading: &Reading, key: &str, question: Question) -> Result<ReadReply, Code> {
    let request = ReadRequest {
        key: key.into(),
        question: Some(question),
    };
    reading.answer(request).await.map_err(|status| status.code())
}

fn generation(id: &str) -> Question {
    Question::Generation(GenerationQuestion {
        request_id: id.into(),
    })
}

#[tokio::test]
async fn a_key_reads_every_request_of_its_project_and_of_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let reading = with_store(dir.path());
    for (n, event) in (1..).zip(events()) {
        let said = asked(&reading, "k2", generation(&format!("gen-{n}"))).await;
        if event.tenant.project.as_str() != "j" {
            assert_eq!(said, Err(Code::NotFound), "gen-{n}");
            continue;
        }
        let said = said.unwrap();
        assert_eq!(said.source(), ReadSource::Billing);
        let Some(Answer::Generation(found)) = said.answer else {
            panic!("not a generation");
        };
        assert_eq!(found.request_id, event.request_id.as_str());
        assert_eq!(
            (found.billed, found.charge),
            (event.billed.0, event.charge.total.0)
        );
        assert_eq!(
            (found.started_at, found.finished_at),
            (event.started_at.0.0, event.finished_at.0.0)
        );
        assert_eq!((found.byok, found.stream), (event.byok, event.stream));
        assert_eq!(
            (found.user.as_str(), found.region.as_str()),
            ("end-user-17", "eu-central")
        );
        let tokens = found.tokens.unwrap();
        assert_eq!(
            (tokens.input, tokens.input_cache_read),
            (event.tokens.input, event.tokens.input_cache_read)
        );
        assert_eq!(
            (tokens.output, tokens.output_reasoning),
            (event.tokens.output, event.tokens.output_reasoning)
        );
        let statuses: Vec<_> = found
            .attempts
            .iter()
            .map(|one| (one.started_ms, one.status))
            .collect();
        assert_eq!(statuses, [(2, Some(503)), (61, Some(200))]);
    }
    assert_eq!(
        asked(&reading, "k2", generation("gen-x")).await,
        Err(Code::NotFound)
    );
    // Perhaps another replica has heard of the key.
    assert_eq!(
        asked(&reading, "k9", generation("gen-7")).await,
        Err(Code::Unavailable)
    );
    let storeless = super::tests::reading(counted(), Place::None);
    assert_eq!(
        asked(&storeless, "k2", generation("gen-1")).await,
        Err(Code::Unavailable)
    );
}

async fn sums(reading: &Reading, question: SumsQuestion) -> Result<Sums, Code> {
    match asked(reading, "k", Question::Sums(question)).await?.answer {
        Some(Answer::Sums(sums)) => Ok(sums),
        other => panic!("not sums: {other:?}"),
    }
}

#[tokio::test]
async fn sums_are_of_the_project_whatever_is_asked_and_say_when_there_are_more() {
    let dir = tempfile::tempdir().unwrap();
    let reading = with_store(dir.path());
    let question = SumsQuestion {
        from_hour: i64::MIN,
        until_hour: i64::MAX,
        by: vec![SumField::Key.into()],
        groups_max: 100,
        ..SumsQuestion::default()
    };
    let by_key = |wanted: &dyn Fn(&str) -> bool| -> Vec<(String, u64, i64)> {
        let mut keys: Vec<(String, u64, i64)> = Vec::new();
        for key in ["k", "k2", "k3"].into_iter().filter(|key| wanted(key)) {
            let of: Vec<_> = events()
                .into_iter()
                .filter(|event| event.tenant.key.as_str() == key)
                .collect();
            let billed = of.iter().map(|event| event.billed.0).sum();
            keys.push((key.into(), of.len() as u64, billed));
        }
        keys
    };
    let shown = |sums: &Sums| -> Vec<(String, u64, i64)> {
        let group = |group: &tollway_proto::push::v1::SumGroup| {
            (group.values[0].clone(), group.requests, group.billed)
        };
        sums.groups.iter().map(group).collect()
    };
    let all = sums(&reading, question.clone()).await.unwrap();
    assert_eq!(shown(&all), by_key(&|_| true));
    assert!(!all.has_more);
    assert!(
        all.groups.iter().all(|group| group.byok_charge == 0),
        "not asked for"
    );
    let own = SumsQuestion {
        own_credentials: true,
        ..question.clone()
    };
    let own: Vec<i64> = sums(&reading, own)
        .await
        .unwrap()
        .groups
        .iter()
        .map(|group| group.byok_charge)
        .collect();
    assert_eq!(own, [0, events()[2].charge.total.0, 0]);
    let page = SumsQuestion {
        groups_max: 2,
        ..question.clone()
    };
    let page = sums(&reading, page).await.unwrap();
    assert_eq!((page.groups.len(), page.has_more), (2, true));
    let values = |values: &[&str]| values.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    for (of, none_of, kept) in [
        (vec!["k", "k9", "k4"], false, vec!["k"]),
        (vec!["k", "k9"], true, vec!["k2", "k3"]),
        (vec![], false, vec![]),
        (vec![], true, vec!["k", "k2", "k3"]),
    ] {
        let filter = SumFilter {
            field: SumField::Key.into(),
            values: values(&of),
            none_of,
        };
        let filtered = SumsQuestion {
            filters: vec![filter],
            ..question.clone()
        };
        let found = sums(&reading, filtered).await.unwrap();
        assert_eq!(
            shown(&found),
            by_key(&|key| kept.contains(&key)),
            "{of:?} {none_of}"
        );
    }
    let slow = SumsQuestion {
        by: vec![
            SumField::Month.into(),
            SumField::Week.into(),
            SumField::Day.into(),
            SumField::Hour.into(),
        ],
        latencies: true,
        ..question.clone()
    };
    let slow = sums(&reading, slow).await.unwrap();
    let month = NOON.rfc3339()[..7].to_owned();
    let monday = Period::Weekly.window(NOON).0.day().to_string();
    let last = slow.groups.last().unwrap();
    assert_eq!(
        last.values,
        [month, monday, NOON.day().to_string(), NOON.rfc3339()]
    );
    // To the width of a bucket.
    assert!(
        (450..550).contains(&last.total_ms.unwrap().p90.unwrap()),
        "{last:?}"
    );
    assert!(
        (90..110).contains(&last.first_byte_ms.unwrap().p50.unwrap()),
        "{last:?}"
    );
    for wrong in [
        SumsQuestion {
            groups_max: 0,
            ..question.clone()
        },
        SumsQuestion {
            by: vec![99],
            ..question.clone()
        },
        SumsQuestion {
            filters: vec![SumFilter::default()],
            ..question
        },
    ] {
        assert_eq!(sums(&reading, wrong).await, Err(Code::InvalidArgument));
    }
}

async fn standing(reading: &Reading, key: &str) -> (ReadSource, KeyStanding) {
    let said = asked(reading, key, Question::ThisKey(KeyQuestion {}))
        .await
        .unwrap();
    match said.answer {
        Some(Answer::ThisKey(found)) => (ReadSource::try_from(said.source).unwrap(), found),
        other => panic!("not a key: {other:?}"),
    }
}

#[tokio::test]
async fn what_a_key_used_has_what_the_keys_used_that_it_replaced_with_a_store_and_without() {
    let dir = tempfile::tempdir().unwrap();
    let stores = [
        (with_store(dir.path()), ReadSource::Billing),
        (reading(counted(), Place::None), ReadSource::State),
    ];
    let of = |wanted: &dyn Fn(&UsageEvent) -> bool| -> i64 {
        let events = events();
        events
            .iter()
            .filter(|event| wanted(event))
            .map(|event| event.billed.0)
            .sum()
    };
    let in_line = |event: &UsageEvent| ["k", "k2"].contains(&event.tenant.key.as_str());
    let today = |event: &UsageEvent| event.started_at.0.day() == NOON.day();
    for (reading, expected) in stores {
        let (source, found) = standing(&reading, "k2").await;
        assert_eq!(source, expected);
        let billed = found.billed.unwrap();
        assert_eq!(billed.ever, of(&in_line));
        assert_eq!(billed.day, of(&|event| in_line(event) && today(event)));
        assert!(billed.day <= billed.week && billed.week < billed.ever && billed.month < billed.ever);
        let own = events()[2].charge.total.0;
        assert_eq!((found.byok.unwrap().ever, found.byok.unwrap().day), (own, 0));
        // The old one has not replaced anything.
        let (_, old) = standing(&reading, "k").await;
        assert_eq!(
            old.billed.unwrap().ever,
            of(&|event| event.tenant.key.as_str() == "k")
        );
        assert_eq!(
            (
                old.project.as_str(),
                old.organization.as_str(),
                old.last4.as_str()
            ),
            ("j", "o", "wxyz")
        );
        assert_eq!(old.expires_at, Some(NOON.plus_ms(1_000).0));
    }
}

#[tokio::test]
async fn a_key_shows_the_budgets_of_money_that_can_stop_it_the_widest_first() {
    let mut state = counted();
    let budget = |id: &str, scope: BudgetScope, model: Option<&str>, terms: Terms| {
        Command::PutBudget(samples::put_budget(Budget {
            id: BudgetId::trusted(id),
            scope,
            model: model.map(ModelId::trusted),
            terms,
        }))
    };
    let key = |id: &str| BudgetScope::Key(ApiKeyId::trusted(id));
    let daily = Terms {
        cycle: Period::Daily.into(),
        ..Terms::money(NanoUsd(7_000))
    };
    let soft = Terms {
        mode: Mode::Soft,
        ..daily.clone()
    };
    let tokens = Terms {
        unit: tollway_shared::budget::terms::Unit::Tokens,
        ..daily.clone()
    };
    let wide = BudgetScope::Organization(OrganizationId::trusted("o"));
    for command in [
        budget("of-key", key("k2"), None, Terms::money(NanoUsd(5_000))),
        budget("of-old", key("k"), None, daily.clone()),
        budget("of-other", key("k3"), None, daily.clone()),
        budget("of-model", key("k2"), Some("a/m"), daily.clone()),
        budget("of-tokens", key("k2"), None, tokens),
        budget("soft", key("k2"), None, soft),
        budget("wide", wide, None, daily),
        Command::PutBilling(PutBilling {
            organization: OrganizationId::trusted("o"),
            billing: credit::Billing {
                mode: BillingMode::Prepaid,
                ..credit::Billing::default()
            },
        }),
    ] {
        done(&mut state, command);
    }
    let (_, found) = standing(&reading(state, Place::None), "k2").await;
    let shown: Vec<_> = found
        .budgets
        .iter()
        .map(|budget| (budget.budget.as_str(), budget.level.as_str(), budget.limit))
        .collect();
    assert_eq!(
        shown,
        [
            ("wide", "organization", 7_000),
            ("of-key", "key", 5_000),
            ("of-old", "key", 7_000)
        ]
    );
    let midnight = NOON.plus_ms(DAY_MS / 2).0;
    assert_eq!(
        (found.budgets[0].cycle(), found.budgets[0].resets_at),
        (BudgetCycle::Daily, Some(midnight))
    );
    assert_eq!(
        (found.budgets[1].cycle(), found.budgets[1].resets_at),
        (BudgetCycle::Lifetime, None)
    );
    assert!(found.free_tier, "it must buy ahead, and has not");
}

#[tokio::test]
async fn the_difference_of_both_numbers_of_credit_is_the_balance() {
    let mut state = counted();
    let of = OrganizationId::trusted("o");
    let balance = |state: &State| state.accounts.get(&of).map_or(0, |account| account.available());
    let before = balance(&state);
    assert!(before < 0, "used, and nothing was bought");
    let moves = [
        CreditMove::TopUp {
            method: PayMethod::Card,
            amount: NanoUsd(20_000_000_000),
        },
        CreditMove::TopUp {
            method: PayMethod::Promo,
            amount: NanoUsd(3_000_000_000),
        },
        CreditMove::Refund {
            amount: NanoUsd(1_000_000_000),
        },
        CreditMove::Adjustment {
            amount: NanoUsd(-500_000_000),
        },
    ];
    for (n, made) in moves.into_iter().enumerate() {
        done(
            &mut state,
            Command::MoveCredit(MoveCredit {
                organization: of.clone(),
                made,
                reference: format!("m-{n}"),
                payment: None,
                reason: String::new(),
            }),
        );
    }
    // A fee on own credentials, in one account with the fee of the top-up.
    let mut stretch = samples::spend(7, 8, 0);
    stretch.sums[0].sums.fee = NanoUsd(11);
    done(&mut state, Command::RecordSpend(stretch));
    let after = balance(&state);
    let said = asked(
        &reading(state, Place::None),
        "k",
        Question::Credits(CreditsQuestion {}),
    )
    .await
    .unwrap();
    let Some(Answer::Credits(found)) = said.answer else {
        panic!("not credits");
    };
    assert_eq!(found.total, 21_500_000_000, "without the fee on buying");
    assert_eq!(i128::from(found.used), -before + 11);
    assert_eq!(i128::from(found.total - found.used), after);
    assert_eq!((said.source, said.as_of), (ReadSource::State.into(), None));
}

/// The state module's own check of what was put together here.
#[test]
fn the_counted_state_is_sound() {
    assert_eq!(state::invariant::broken(&counted()), None);
}
