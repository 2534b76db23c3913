//! A write that was answered is in the log for good, and one that was said not to have happened never did.

use std::collections::{BTreeMap, BTreeSet};

use tollway_control::state::State;
use tollway_proto::command::Outcome;
use tollway_shared::ids::Revision;
use tollway_shared::snapshot::ResourceKey;

use super::applied_once;
use crate::catalog::written_at;

#[derive(Default)]
pub(crate) struct Property {
    /// The first answer to each write.
    answers: BTreeMap<String, Option<Revision>>,
    /// The newest answered write of each register.
    registers: BTreeMap<ResourceKey, (Revision, String)>,
    early: BTreeSet<String>,
    never: BTreeSet<String>,
}

impl Property {
    pub(crate) fn answered(
        &mut self,
        key: &str,
        register: Option<&ResourceKey>,
        outcome: &Outcome,
    ) -> Result<(), String> {
        let revision = match outcome {
            Outcome::Done(receipt) => Some(receipt.revision),
            Outcome::Refused(_) => None,
        };
        let first = *self.answers.entry(key.to_owned()).or_insert(revision);
        // A refusal may become a success later, a success stays what it was.
        if first.is_some() && first != revision {
            return Err(format!(
                "write {key} was answered {first:?} first and {revision:?} later"
            ));
        }
        if let (Some(register), Some(revision)) = (register, revision) {
            let newest = self
                .registers
                .entry(register.clone())
                .or_insert_with(|| (revision, key.to_owned()));
            if newest.0 < revision {
                *newest = (revision, key.to_owned());
            }
        }
        Ok(())
    }

    pub(crate) fn early(&mut self, key: &str) {
        self.early.insert(key.to_owned());
    }

    pub(crate) fn never(&mut self, key: &str) {
        self.never.insert(key.to_owned());
    }

    pub(crate) fn at_the_end(
        &self,
        history: &applied_once::Property,
        replica: u64,
        state: &State,
    ) -> Result<(), String> {
        if let Some(key) = self
            .answers
            .keys()
            .chain(&self.early)
            .find(|key| history.index_of(key).is_none())
        {
            return Err(format!(
                "write {key} was answered, and no replica ever applied it"
            ));
        }
        if let Some(key) = self.never.iter().find(|key| history.index_of(key).is_some()) {
            return Err(format!("write {key} was said not to have happened, and did"));
        }
        for (register, (revision, key)) in &self.registers {
            let found = written_at(state, register);
            if found < Some(*revision) {
                return Err(format!(
                    "replica {replica} has {register} of {found:?}, but write {key} was answered with {revision}"
                ));
            }
        }
        Ok(())
    }

    pub(crate) fn count(&self) -> usize {
        self.answers.len()
    }
}
