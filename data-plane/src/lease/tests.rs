//! What the next life makes of journal and spool, wherever this one is killed.

use tempfile::TempDir;
use tollway_proto::spool::{Held, HeldPart};
use tollway_proto::usage::{UsageEvent, UsageSource};
use tollway_shared::budget::terms::Unit;
use tollway_shared::ids::{BudgetId, Incarnation, RequestId};
use tollway_shared::lease::holder::Holder;
use tollway_shared::lease::message::{Answer, Closing, Epoch, Grant, Verdict};
use tollway_shared::lease::slice::Reach;
use tollway_shared::money::NanoUsd;
use tollway_shared::time::UnixMillis;

use super::desk::{Desk, Inbox};
use super::written::Written;
use super::{inherit, journal};
use crate::usage::{self, Usage};

const BOOT: &str = "this boot";
const HOLD: i64 = 1_000;
/// One segment takes all that a test writes.
const LARGE: u64 = 64 << 20;
/// Many segments are written and let go.
const SMALL: u64 = 4 << 20;

/// A life that holds on one slice.
struct Life {
    usage: Usage,
    holder: Holder,
    desk: Desk,
    _inbox: Inbox,
    written: Written,
    /// Requests that run, and how many have begun.
    running: Vec<RequestId>,
    begun: u64,
    /// Spent and set aside.
    truth: i64,
    dir: TempDir,
}

fn grant(granted: i64, spent: i64) -> Grant {
    Grant {
        budget: BudgetId::trusted("b"),
        epoch: Epoch(1),
        ends_at: None,
        granted,
        spent,
        returned: 0,
        reserve: 0,
        open: false,
        short: false,
        recall: 0,
        recall_amount: 0,
    }
}

impl Life {
    fn start(spool_bytes_max: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = usage::Settings {
            partitions: 2,
            dir: Some(dir.path().join("log")),
            spool_bytes_max,
            ..usage::Settings::default()
        };
        let usage = usage::start(&settings, &dir.path().join("spool"), 1).unwrap();
        let holder = Holder::new(Incarnation(7));
        let (desk, inbox) = Desk::new(holder.incarnation());
        let folder = dir.path().join("leases");
        std::fs::create_dir_all(&folder).unwrap();
        let written = Written::begin(folder, BOOT.into(), usage.track(), desk.clone(), &holder).unwrap();
        let mut life = Self {
            usage,
            holder,
            desk,
            _inbox: inbox,
            written,
            running: Vec::new(),
            begun: 0,
            truth: 0,
            dir,
        };
        // An earlier slice of the same window had spent something, all of which was reported.
        life.granted(10_000_000, 5_000);
        life.truth = 5_000;
        life
    }

    fn granted(&mut self, granted: i64, spent: i64) {
        let answer = Answer {
            incarnation: self.holder.incarnation(),
            serial: 1,
            verdict: Verdict::Granted,
            grants: vec![grant(granted, spent)],
        };
        self.holder.take(&answer, UnixMillis(0));
        self.written.publish_new(&self.holder, &answer.grants);
    }

    fn event(&self, request: &RequestId) -> UsageEvent {
        let example = include_str!("../../../proto/examples/usage-event.v1.json");
        let mut event: UsageEvent = serde_json::from_str(example).unwrap();
        event.request_id = request.clone();
        event
    }

    fn begin(&mut self) {
        self.begun += 1;
        let request = RequestId::trusted(format!("r{}", self.begun));
        let shelf = self.desk.shelf();
        let slice = &shelf.slices[&BudgetId::trusted("b")];
        assert!(slice.take(HOLD, Reach::Connected));
        let held = Held {
            incarnation: shelf.incarnation,
            mark: self.desk.mark(),
            parts: vec![HeldPart {
                budget: slice.budget.clone(),
                epoch: slice.epoch,
                unit: Unit::Money,
                amount: HOLD,
                model: None,
            }],
        };
        self.usage
            .writer(0)
            .intent_holding(&self.event(&request), &held)
            .unwrap();
        self.running.push(request);
        self.truth += HOLD;
    }

    fn end(&mut self, which: u64) {
        if self.running.is_empty() {
            return;
        }
        let place = (which % self.running.len() as u64) as usize;
        let request = self.running.swap_remove(place);
        let cost = (which % 900) as i64;
        let mut event = self.event(&request);
        event.billed = NanoUsd(cost);
        event.usage_source = UsageSource::Provider;
        self.usage.writer(0).outcome(event);
        let shelf = self.desk.shelf();
        shelf.slices[&BudgetId::trusted("b")].settle(HOLD, cost);
        self.truth += cost - HOLD;
    }

    fn closing(&self, boot: &str) -> Closing {
        let notes = journal::read(&self.dir.path().join("leases"), self.holder.incarnation()).unwrap();
        inherit::closing(
            self.holder.incarnation(),
            notes,
            &self.dir.path().join("spool"),
            boot,
        )
    }
}

/// Runs a life and asks after each step what it would be closed for: gives `check` that, and what it has spent and set aside.
fn live(spool_bytes_max: u64, seed: u64, check: impl Fn(i64, i64)) {
    let (mut life, mut state) = (Life::start(spool_bytes_max), seed);
    let mut chance = || {
        state = u64::wrapping_mul(state, 6_364_136_223_846_793_005).wrapping_add(1);
        state >> 33
    };
    for _ in 0..300 {
        match chance() % 16 {
            0..8 => life.begin(),
            8..15 => life.end(chance()),
            _ => life.written.checkpoint(&life.holder, true),
        }
        let closing = life.closing(BOOT);
        assert!(!closing.doubtful);
        check(closing.lines[0].spent, life.truth);
    }
}

#[test]
fn a_life_is_closed_for_what_it_spent_wherever_it_is_killed() {
    for seed in 1..4 {
        live(LARGE, seed, |closed, truth| {
            assert_eq!(closed, truth, "seed {seed}")
        });
    }
}

/// Where an intent is in a segment that a checkpoint has let go of, its request counts at the whole hold.
#[test]
fn a_life_whose_spool_is_let_go_of_is_closed_for_no_less_and_little_more() {
    for seed in 1..4 {
        live(SMALL, seed, |closed, truth| {
            assert!(
                (truth..=truth + 40 * HOLD).contains(&closed),
                "seed {seed}: {closed} of {truth}"
            );
        });
    }
}

#[test]
fn after_another_boot_or_without_a_journal_what_is_out_stays_charged() {
    let mut life = Life::start(LARGE);
    life.begin();
    assert!(!life.closing(BOOT).doubtful);
    assert!(life.closing("another boot").doubtful);
    let journal = life
        .dir
        .path()
        .join(format!("leases/{}.lease", life.holder.incarnation()));
    std::fs::write(journal, "").unwrap();
    assert!(life.closing(BOOT).doubtful);
}

#[test]
fn a_spool_that_lacks_a_segment_makes_a_closing_doubtful() {
    let mut life = Life::start(LARGE);
    life.begin();
    let writers = std::fs::read_dir(life.dir.path().join("spool")).unwrap();
    let folder = writers
        .map(|entry| entry.unwrap().path())
        .find(|path| path.is_dir())
        .unwrap();
    std::fs::rename(&folder, life.dir.path().join("elsewhere")).unwrap();
    assert!(life.closing(BOOT).doubtful);
}
