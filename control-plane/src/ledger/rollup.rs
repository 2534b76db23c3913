//! Folds a stretch of one partition of the usage log into the sums that Raft records. Pure.
//!
//! Counts each event once. The charge is recomputed from counts and prices with the one price function; that is what is recorded, and
//! an event that says something else is reported. A record that cannot be read is skipped visibly, never silently. Which event is new is decided in [`judge`](super::judge).

use std::collections::BTreeMap;

use tollway_proto::command::{RecordSpend, Spent, UsageSums};
use tollway_proto::usage::UsageSource;
use tollway_shared::bill::{self, Bill, ByokFee, ByokUsed};
use tollway_shared::ids::{OrganizationId, Revision, WriterId};
use tollway_shared::money::NanoUsd;
use tollway_shared::time::{DAY_MS, Day, UnixMillis};

use super::cell::CellOf;
use super::event::Event;
use super::judge::{Marks, Verdict};
use crate::state::State;
use crate::state::usage::WRITER_KEPT_MS;

/// Most cells of one stretch: with the longest ids that is well below the largest command of the log.
const CELLS_MAX: usize = 2_000;
/// Problems described per stretch; the rest are only counted.
const NOTES_MAX: usize = 8;

/// One record of the usage log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// The offset after it.
    pub next: i64,
    /// The event, as JSON.
    pub value: Vec<u8>,
}

/// What a stretch was found to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Events counted.
    pub events: u64,
    /// Repeats dropped.
    pub duplicates: u64,
    /// Sequences that never came.
    pub gaps: u64,
    /// Events whose charge is not counts × prices.
    pub mismatches: u64,
    /// Events too old to tell from repeats: not counted.
    pub late: u64,
    /// Records that are no events: skipped.
    pub malformed: u64,
    /// The first few problems, for the log.
    pub notes: Vec<String>,
}

impl Report {
    /// Adds a problem to the log's few.
    pub(crate) fn note(&mut self, offset: i64, text: &str) {
        if self.notes.len() < NOTES_MAX {
            self.notes.push(format!("offset {offset}: {text}"));
        }
    }

    /// Counts sequences that never came.
    pub(crate) fn missing(&mut self, offset: i64, writer: WriterId, missing: u64) {
        if missing == 0 {
            return;
        }
        self.gaps = self.gaps.saturating_add(missing);
        let days = WRITER_KEPT_MS / DAY_MS;
        self.note(
            offset,
            &format!("{missing} events of writer {writer} are missing, unless it was silent for {days} days"),
        );
    }

    /// Counts an event that is too old.
    pub(crate) fn late(&mut self, offset: i64, event: &str) {
        self.late += 1;
        self.note(
            offset,
            &format!("event {event} is too old to be told from a repeat"),
        );
    }
}

/// What an organization has used of its own credentials in a month, which is named by its first day.
type Known<'a> = Box<dyn Fn(&OrganizationId, Day) -> ByokUsed + 'a>;

/// Decides the fees on own credentials, in the order of events: an organization's all lie in one partition.
pub struct Meter<'a> {
    fee: ByokFee,
    known: Known<'a>,
    used: BTreeMap<(OrganizationId, Day), ByokUsed>,
}

impl<'a> Meter<'a> {
    /// By the rule and the counts of a state.
    pub fn of(state: &'a State) -> Self {
        let known = move |id: &OrganizationId, month: Day| {
            let account = state.accounts.get(id);
            account
                .and_then(|account| account.byok.get(&month).copied())
                .unwrap_or_default()
        };
        Self {
            fee: state.fees.value.byok,
            known: Box::new(known),
            used: BTreeMap::new(),
        }
    }

    fn take(&mut self, organization: &OrganizationId, month: Day, list: NanoUsd) -> NanoUsd {
        let known = || (self.known)(organization, month);
        let used = self
            .used
            .entry((organization.clone(), month))
            .or_insert_with(known);
        let fee = self.fee.on(used, list);
        used.add(&ByokUsed { requests: 1, list });
        fee
    }
}

/// [`fold_with`] where nothing is known of own credentials and every allowance is whole.
pub fn fold(
    partition: i32,
    from: i64,
    records: &[Record],
    now: UnixMillis,
    seen: impl Fn(WriterId) -> Option<u64>,
) -> (RecordSpend, Report) {
    let meter = Meter {
        fee: ByokFee::default(),
        known: Box::new(|_, _| ByokUsed::default()),
        used: BTreeMap::new(),
    };
    fold_with(partition, from, records, now, seen, meter)
}

/// Folds `records`, which lie in `partition` at or after `from`, in order.
///
/// - `from`: the offset that the state has reached.
/// - `now`: the state's time.
/// - `meter`: by the state at `from`.
/// - `seen`: the highest sequence counted for a writer in this partition, at `from`; `None` for one that is not known.
/// - Returns the command, whose `to` is the offset after the last record it covers (all of them, unless they have very many cells), and what was found on the way.
pub fn fold_with(
    partition: i32,
    from: i64,
    records: &[Record],
    now: UnixMillis,
    seen: impl Fn(WriterId) -> Option<u64>,
    mut meter: Meter<'_>,
) -> (RecordSpend, Report) {
    let mut report = Report::default();
    let mut sums: BTreeMap<(CellOf<'_>, Revision), UsageSums> = BTreeMap::new();
    let mut marks = Marks::new(seen);
    let mut to = from;
    for record in records.iter().filter(|record| record.offset >= from) {
        if sums.len() >= CELLS_MAX {
            break;
        }
        to = to.max(record.next);
        let event = match Event::read(record, partition) {
            Ok(event) => event,
            Err(why) => {
                report.malformed += 1;
                report.note(record.offset, &why);
                continue;
            }
        };
        match marks.judge(event.writer, event.sequence, event.finished_at.0, now) {
            Verdict::New { missing } => report.missing(record.offset, event.writer, missing),
            Verdict::Repeat => {
                report.duplicates += 1;
                continue;
            }
            Verdict::Late => {
                report.late(record.offset, event.id.get());
                continue;
            }
        }
        if let Err(why) = count(event, &mut sums, &mut meter, record.offset, &mut report) {
            report.malformed += 1;
            report.note(record.offset, &why);
        } else {
            report.events += 1;
        }
    }
    let spend = RecordSpend {
        partition,
        from,
        to,
        sums: sums
            .into_iter()
            .map(|((cell, revision), sums)| Spent {
                cell: cell.owned(),
                revision,
                sums,
            })
            .collect(),
        writers: marks.moved().into_iter().collect(),
    };
    (spend, report)
}

fn count<'a>(
    event: Event<'a>,
    sums: &mut BTreeMap<(CellOf<'a>, Revision), UsageSums>,
    meter: &mut Meter<'_>,
    offset: i64,
    report: &mut Report,
) -> Result<(), String> {
    if let Some((field, fault)) = event.prices.inadmissible() {
        return Err(format!("`prices.{field}` {fault}"));
    }
    if !bill::admissible(event.adjustment.bps) {
        return Err("`adjustment.bps` is out of its range".to_owned());
    }
    let charge = event.due().map_err(|fault| format!("the charge {fault}"))?;
    let bill = event.bill(&charge).map_err(|fault| format!("the bill {fault}"))?;
    let said = Bill {
        adjustment: event.adjustment,
        billed: event.billed,
    };
    if charge != event.charge || bill != said {
        report.mismatches += 1;
        let said = format!("{} and owed {}", event.charge.total, event.billed);
        let is = format!("{} and owed {}", charge.total, bill.billed);
        let id = event.id.get();
        report.note(
            offset,
            &format!("event {id} says {said}, counts and prices give {is}"),
        );
    }
    let day = event.started_at.0.day();
    let own = event.byok && event.usage_source != UsageSource::None;
    let fee = own.then(|| {
        let organization = OrganizationId::trusted(event.tenant.organization.get().to_owned());
        let due = meter.take(&organization, day.month(), charge.total);
        if event.free { NanoUsd::ZERO } else { due }
    });
    let tokens = event.tokens;
    let source = event.usage_source;
    let revision = event.revision;
    let sums = sums.entry((CellOf::of(event), revision)).or_default();
    let mut add = |sum: &mut NanoUsd, more: NanoUsd| {
        *sum = sum.plus(more).unwrap_or_else(|fault| {
            // The event was paid for all the same: a sum at the end of its range stops every budget that it is counted against.
            report.note(offset, &format!("the sum {fault}: it stays at the end of it"));
            NanoUsd(i64::MAX)
        });
    };
    add(&mut sums.cost, charge.total);
    add(&mut sums.billed, bill.billed);
    if let Some(fee) = fee {
        add(&mut sums.byok_cost, charge.total);
        add(&mut sums.fee, fee);
    }
    sums.requests += 1;
    sums.served += u64::from(source != UsageSource::None);
    sums.estimated += u64::from(source == UsageSource::Estimated);
    sums.tokens.add(&tokens);
    sums.byok_requests += u64::from(own);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use tollway_proto::usage::UsageEvent;
    use tollway_shared::cost;
    use tollway_shared::money::NanoUsd;
    use tollway_shared::tokens::TokenCounts;

    use super::super::judge::LATE_MS;
    use super::super::sample;
    use super::*;

    const NOW: UnixMillis = UnixMillis(0);

    fn record(offset: i64, event: &UsageEvent) -> Record {
        Record {
            partition: 3,
            offset,
            next: offset + 1,
            value: serde_json::to_vec(event).unwrap(),
        }
    }

    #[test]
    fn what_is_no_event_is_skipped_and_counted_and_the_rest_goes_on() {
        let good = sample::event(1, 1);
        let mut elsewhere = sample::event(1, 2);
        elsewhere.partition = 0;
        let mut negative = sample::event(1, 2);
        negative.prices.output.0 = -1;
        let records = [
            Record {
                value: b"{".to_vec(),
                ..record(5, &good)
            },
            record(6, &elsewhere),
            record(7, &good),
            record(8, &negative),
        ];
        let (spend, report) = fold(3, 5, &records, NOW, |_| None);
        assert_eq!((spend.from, spend.to), (5, 9));
        assert_eq!((report.events, report.malformed), (1, 3));
        assert_eq!(report.notes.len(), 3);
        assert_eq!(spend.writers, [(WriterId(1), 2)]);
    }

    #[test]
    fn a_wrong_charge_is_reported_and_the_right_one_recorded() {
        let mut event = sample::event(1, 1);
        let right = (event.charge.total, event.billed);
        assert!(right.0 > right.1, "the example has a discount");
        let mut owed = event.clone();
        event.charge.total = NanoUsd(1);
        (owed.sequence, owed.billed) = (2, NanoUsd(1));
        let records = [record(0, &event), record(1, &owed)];
        let (spend, report) = fold(3, 0, &records, NOW, |_| None);
        assert_eq!(report.mismatches, 2);
        let sums = spend.sums[0].sums;
        assert_eq!((sums.cost.0, sums.billed.0), (2 * right.0.0, 2 * right.1.0));
    }

    #[test]
    fn own_credentials_and_free_models_cost_their_list_price_and_owe_nothing() {
        let (mut own, mut free) = (sample::event(1, 1), sample::event(1, 2));
        (own.byok, free.free) = (true, true);
        for event in [&mut own, &mut free] {
            let charge = event.charge;
            event.state_charge(charge);
        }
        let records = [record(0, &own), record(1, &free)];
        let (spend, report) = fold(3, 0, &records, NOW, |_| None);
        let sums = spend.sums[0].sums;
        assert_eq!((report.mismatches, sums.billed), (0, NanoUsd::ZERO));
        assert_eq!(sums.cost.0, 2 * own.charge.total.0);
    }

    #[test]
    fn a_request_that_used_nothing_costs_nothing_though_its_endpoint_has_a_price_per_request() {
        let mut event = sample::event(1, 1);
        event.prices.request = Some(NanoUsd(5));
        event.tokens = TokenCounts::default();
        event.state_charge(cost::Charge::default());
        event.usage_source = UsageSource::None;
        let (spend, report) = fold(3, 0, &[record(0, &event)], NOW, |_| None);
        assert_eq!((report.events, report.mismatches), (1, 0));
        assert_eq!(spend.sums[0].sums.cost, NanoUsd::ZERO);
    }

    #[test]
    fn own_credentials_are_free_up_to_their_allowance_and_cost_a_fee_from_then_on_wherever_the_log_is_cut() {
        let mut state = crate::state::samples::catalog();
        state.fees.value.byok.free = bill::Allowance::Requests(2);
        let event = |sequence: u64, days: i64| {
            let mut event = sample::event(1, sequence);
            event.started_at.0 = event.started_at.0.plus_ms(days * DAY_MS);
            event.byok = true;
            let charge = event.charge;
            event.state_charge(charge);
            event
        };
        // The example's month ends eight days later: the fourth is another month's first.
        let events = [event(1, 0), event(2, 1), event(3, 2), event(4, 9), event(5, 3)];
        let list = events[0].charge.total;
        let fee = NanoUsd((list.0 + 19) / 20);
        for cut in 0..=events.len() {
            let mut state = state.clone();
            let mut fees = NanoUsd::ZERO;
            for part in [&events[..cut], &events[cut..]] {
                let from = state.usage_offsets.get(&3).copied().unwrap_or(0);
                let at = |event: &UsageEvent| record(i64::try_from(event.sequence).unwrap() - 1, event);
                let records: Vec<Record> = part.iter().map(at).collect();
                let seen = |writer| state.usage_writers.get(&(3, writer)).map(|mark| mark.sequence);
                let (spend, report) = fold_with(3, from, &records, NOW, seen, Meter::of(&state));
                assert_eq!((report.mismatches, report.malformed), (0, 0));
                fees = spend
                    .sums
                    .iter()
                    .fold(fees, |sum, spent| sum.plus(spent.sums.fee).unwrap());
                let command = tollway_proto::command::Command::RecordSpend(spend);
                crate::state::samples::run(&mut state, command);
            }
            assert_eq!(fees.0, 2 * fee.0, "cut at {cut}: the third and the fifth");
            let account = &state.accounts[&events[0].tenant.organization];
            assert_eq!(
                account.available(),
                -i128::from(fees.0),
                "and nothing else is owed"
            );
        }
    }

    #[test]
    fn a_jump_in_sequences_is_counted_as_lost_events() {
        let records = [record(0, &sample::event(1, 5)), record(1, &sample::event(1, 9))];
        let (_, report) = fold(3, 0, &records, NOW, |_| Some(3));
        assert_eq!((report.events, report.gaps), (2, 4));
    }

    #[test]
    fn an_event_so_old_that_its_mark_may_be_gone_is_reported_and_not_counted() {
        let event = sample::event(1, 7);
        let ended = event.finished_at.0;
        let records = [record(0, &event)];
        for (after, seen, counted, late) in [
            (LATE_MS, None, 1, 0),
            (LATE_MS + 1, None, 0, 1),
            (LATE_MS + 1, Some(6), 1, 0), // its mark is there: no repeat
        ] {
            let (spend, report) = fold(3, 0, &records, ended.plus_ms(after), |_| seen);
            assert_eq!((report.events, report.late), (counted, late), "{after} {seen:?}");
            assert_eq!(spend.to, 1, "read, whatever it is");
            assert_eq!(spend.writers.len() as u64, counted);
        }
    }

    proptest! {
        /// A log as writers really make it: per writer in order, but any tail may come again any time. It is cut into stretches
        /// anywhere and each stretch may be folded again from an older offset, as after a change of leader.
        #[test]
        fn any_log_of_repeats_cut_anywhere_sums_to_its_distinct_events(
            moves in prop::collection::vec((0..3u128, 0..6u64, 0..3usize), 1..80),
            cuts in prop::collection::vec(1..10usize, 1..20),
            replays in prop::collection::vec(any::<bool>(), 20),
        ) {
            let mut log = Vec::new();
            let mut last = [0u64; 3];
            for (writer, back, organization) in moves {
                let slot = usize::try_from(writer).unwrap();
                let first = (last[slot] + 1).saturating_sub(back).max(1);
                for sequence in first..=last[slot] + 1 {
                    let mut event = sample::event(writer, sequence);
                    // The content depends on the identity alone, as in a resend.
                    event.tenant.organization = OrganizationId::trusted(format!("org-{}", sequence % 3));
                    event.tokens.input = sequence * 1000 + u64::try_from(writer).unwrap();
                    event.state_charge(cost::charge(&event.tokens, &event.prices).unwrap());
                    log.push(event);
                }
                last[slot] += 1;
                let _ = organization;
            }
            // The naive model: distinct identities, added up.
            let mut identities = BTreeSet::new();
            let mut naive: BTreeMap<OrganizationId, (u64, i64)> = BTreeMap::new();
            for event in &log {
                if identities.insert((event.writer, event.sequence)) {
                    let sums = naive.entry(event.tenant.organization.clone()).or_default();
                    sums.0 += 1;
                    sums.1 += event.billed.0;
                }
            }
            let records: Vec<Record> = log.iter().enumerate().map(|(n, event)| record(i64::try_from(n).unwrap(), event)).collect();

            let (mut offset, mut seen): (i64, BTreeMap<WriterId, u64>) = (0, BTreeMap::new());
            let mut totals: BTreeMap<OrganizationId, (u64, i64)> = BTreeMap::new();
            let mut at = 0;
            let mut cut = cuts.iter().cycle();
            let mut replay = replays.iter().cycle();
            while at < records.len() {
                let end = (at + cut.next().unwrap()).min(records.len());
                let start = if *replay.next().unwrap() { at.saturating_sub(4) } else { at };
                let (spend, report) = fold(3, offset, &records[start..end], NOW, |writer| seen.get(&writer).copied());
                prop_assert_eq!((report.gaps, report.malformed, report.mismatches), (0, 0, 0));
                prop_assert_eq!(spend.from, offset);
                for Spent { cell, sums, .. } in &spend.sums {
                    let total = totals.entry(cell.path.organization.clone()).or_default();
                    total.0 += sums.requests;
                    total.1 += sums.billed.0;
                }
                offset = spend.to;
                seen.extend(spend.writers);
                at = end;
            }
            prop_assert_eq!(offset, i64::try_from(records.len()).unwrap());
            prop_assert_eq!(totals, naive);
        }
    }
}
