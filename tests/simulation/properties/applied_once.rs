//! A write with an idempotency key takes effect once, however often it was sent, and through whichever leaders.

use std::collections::BTreeMap;

use tollway_proto::command::{Entry, Outcome};

#[derive(Default)]
pub(crate) struct Property {
    /// Where each key took effect.
    done: BTreeMap<String, u64>,
    /// The keys of all entries that were applied, refused ones too.
    seen: BTreeMap<String, u64>,
}

impl Property {
    pub(crate) fn applied(&mut self, index: u64, entry: &Entry, outcome: &Outcome) -> Result<(), String> {
        let Some(idempotency) = &entry.idempotency else {
            return Ok(());
        };
        let key = &idempotency.key;
        self.seen.entry(key.clone()).or_insert(index);
        match outcome {
            Outcome::Done(receipt) if receipt.replayed.is_none() => {
                let first = *self.done.entry(key.clone()).or_insert(index);
                (first == index)
                    .then_some(())
                    .ok_or_else(|| format!("write {key} took effect at {first} and again at {index}"))
            }
            Outcome::Done(_) | Outcome::Refused(_) => Ok(()),
        }
    }

    /// Where a key was first applied.
    pub(crate) fn index_of(&self, key: &str) -> Option<u64> {
        self.seen.get(key).copied()
    }
}
