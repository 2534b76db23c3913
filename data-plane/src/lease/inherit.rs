//! What earlier lives of this node can have spent, from their journals and the usage spool they left.
//!
//! For each slice: what was spent or set aside at the last checkpoint; plus the whole hold of every intent that may have come after
//! it; minus, for outcomes that surely came after it, what of the hold was not used. Where it is not sure, or the intent is in a
//! segment before the checkpoint's, the hold counts: a life that is closed for less than it spent would let others spend it again.
//! So a request whose end nobody saw is charged here at its whole hold, although it is billed at less.
//!
//! Must run before the spool is recovered, shipped and removed.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;

use tollway_proto::lease_journal::{Checkpoint, Note};
use tollway_proto::spool::{Held, SpoolRecord};
use tollway_proto::usage::{UsageEvent, UsageSource};
use tollway_shared::budget::terms::Unit;
use tollway_shared::ids::{BudgetId, Incarnation, ModelId, RequestId};
use tollway_shared::lease::hold::Amounts;
use tollway_shared::lease::message::{ClosedLine, Closing, Epoch};

use super::journal;
use crate::usage;

/// What an event says was used, and is owed for it.
pub fn used(event: &UsageEvent) -> Amounts {
    let tokens = event.tokens.prompt().saturating_add(event.tokens.completion());
    Amounts {
        money: event.billed,
        tokens: i64::try_from(tokens).unwrap_or(i64::MAX),
        requests: i64::from(event.usage_source != UsageSource::None),
    }
}

/// What of it counts against one part of a hold.
pub fn share(used: &Amounts, served: &ModelId, unit: Unit, only: Option<&ModelId>) -> i64 {
    if only.is_none_or(|only| only.includes(served)) {
        used.of(unit)
    } else {
        0
    }
}

/// The closings of all lives that have a journal.
///
/// - `boot`: of the machine, now.
pub(super) fn closings(folder: &Path, spool: &Path, boot: &str) -> io::Result<Vec<Closing>> {
    let mut closings = Vec::new();
    for incarnation in journal::list(folder)? {
        let notes = journal::read(folder, incarnation)?;
        if let [Note::Closing(closing)] = &notes[..] {
            closings.push(closing.clone());
            continue;
        }
        let closing = closing(incarnation, notes, spool, boot);
        if let Err(fault) = journal::end(folder, &closing) {
            // Should this life end before it is told, the next one finds the spool changed and charges what is out.
            tracing::warn!(error = %fault, %incarnation, "the end of an earlier life cannot be written down");
        }
        tracing::info!(
            %incarnation,
            slices = closing.lines.len(),
            doubtful = closing.doubtful,
            "an earlier life of this node will be closed"
        );
        closings.push(closing);
    }
    Ok(closings)
}

pub(super) fn closing(incarnation: Incarnation, notes: Vec<Note>, spool: &Path, boot: &str) -> Closing {
    let mut checkpoint = None;
    let mut spent = BTreeMap::new();
    for note in notes {
        match note {
            Note::Checkpoint(at) => checkpoint = Some(at),
            Note::Opened(line) => drop(spent.insert((line.budget, line.epoch), line.spent)),
            Note::Closing(_) => {}
        }
    }
    let mut sums = Sums {
        incarnation,
        spent,
        open: HashMap::new(),
    };
    let known = checkpoint.is_some_and(|checkpoint| {
        let same_boot = checkpoint.boot == boot;
        let read = sums.read(checkpoint, spool);
        if let Err(fault) = &read {
            tracing::error!(error = %fault, %incarnation, "the usage spool of an earlier life cannot be read for its leases");
        }
        same_boot && read.is_ok()
    });
    let line = |((budget, epoch), spent): ((BudgetId, Epoch), i64)| ClosedLine {
        budget,
        epoch,
        spent: spent.max(0),
    };
    Closing {
        incarnation,
        lines: sums.spent.into_iter().map(line).collect(),
        // What is out stays charged: nobody can say that it was not spent.
        doubtful: !known,
    }
}

/// What the slices of an incarnation have spent, as far as it was read.
struct Sums {
    incarnation: Incarnation,
    spent: BTreeMap<(BudgetId, Epoch), i64>,
    open: HashMap<RequestId, Held>,
}

impl Sums {
    fn read(&mut self, checkpoint: Checkpoint, spool: &Path) -> io::Result<()> {
        for line in checkpoint.lines {
            let sum = self.spent.entry((line.budget, line.epoch)).or_default();
            *sum = (*sum).max(line.spent);
        }
        for at in &checkpoint.writers {
            usage::read_left(spool, at.writer, at.segment, |record| {
                self.note(&at.sequences, checkpoint.mark, record);
            })?;
        }
        Ok(())
    }

    fn note(&mut self, sequences: &[u64], mark: u64, record: SpoolRecord) {
        match record {
            SpoolRecord::Held(intent) if intent.held.incarnation == self.incarnation => {
                if intent.held.mark >= mark {
                    for part in &intent.held.parts {
                        self.add(&part.budget, part.epoch, part.amount);
                    }
                }
                self.open.insert(intent.event.request_id, intent.held);
            }
            SpoolRecord::Outcome(outcome) => {
                let slot = usize::try_from(outcome.partition).unwrap_or(0);
                let after = sequences.get(slot).is_some_and(|last| outcome.sequence > *last);
                let Some(held) = self.open.remove(&outcome.request_id).filter(|_| after) else {
                    return;
                };
                let Ok(event) = serde_json::from_slice::<UsageEvent>(&outcome.event) else {
                    return; // it keeps its hold
                };
                let used = used(&event);
                for part in &held.parts {
                    let actual = share(&used, &event.model, part.unit, part.model.as_ref());
                    self.add(&part.budget, part.epoch, actual.saturating_sub(part.amount));
                }
            }
            _ => {}
        }
    }

    fn add(&mut self, budget: &BudgetId, epoch: Epoch, amount: i64) {
        let sum = self.spent.entry((budget.clone(), epoch)).or_default();
        *sum = sum.saturating_add(amount);
    }
}

/// The boot of this machine; empty where it has no name, which is then never the same.
pub(super) fn boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    match id.trim() {
        "" => format!("unknown-{:016x}", crate::plane::Dice::seeded().bits()),
        id => id.to_owned(),
    }
}
