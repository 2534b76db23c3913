//! A read that passed its barrier sees every write that was answered, and everything that another read saw, before it began.

use std::collections::BTreeMap;

use tollway_control::state::State;
use tollway_shared::ids::Revision;
use tollway_shared::snapshot::ResourceKey;

use crate::catalog::{registers, written_at};

/// What a read that begins now has to see at least.
pub(crate) type Floor = BTreeMap<ResourceKey, Revision>;

#[derive(Default)]
pub(crate) struct Property {
    known: Floor,
}

impl Property {
    pub(crate) fn wrote(&mut self, register: &ResourceKey, revision: Revision) {
        let known = self.known.entry(register.clone()).or_default();
        *known = (*known).max(revision);
    }

    pub(crate) fn begins(&self) -> Floor {
        self.known.clone()
    }

    pub(crate) fn ends(&mut self, replica: u64, floor: &Floor, state: &State) -> Result<(), String> {
        for (register, least) in floor {
            let found = written_at(state, register);
            if found < Some(*least) {
                return Err(format!(
                    "a read at replica {replica} saw {register} of {found:?}, after {least} was known"
                ));
            }
        }
        for register in registers(state) {
            if let Some(revision) = written_at(state, &register) {
                self.wrote(&register, revision);
            }
        }
        Ok(())
    }
}
