//! The same index is the same entry, the same outcome and the same state on every replica, whatever it lived through.

use std::collections::BTreeMap;

use tollway_control::state::{Applied, State, invariant};
use tollway_proto::codec::{self, Kind};
use tollway_proto::command::Entry;
use tollway_shared::seal::sha256;

type Digest = [u8; 32];

#[derive(Default)]
pub(crate) struct Property {
    /// Entry and outcome by index, as the first replica applied them.
    entries: BTreeMap<u64, (Digest, u64)>,
    states: BTreeMap<u64, (Digest, u64)>,
}

impl Property {
    /// Whether this is the first time that the entry is applied anywhere.
    pub(crate) fn entry(
        &mut self,
        replica: u64,
        index: u64,
        entry: &Entry,
        applied: &Applied,
    ) -> Result<bool, String> {
        let digest = sha256(&codec::encode(Kind::Peer, &(entry, &applied.outcome)));
        same(&mut self.entries, index, digest, replica).map_err(|first| {
            format!("entry {index} is another one on replica {replica} than on replica {first}: {entry:?}")
        })
    }

    /// Compares whole states.
    pub(crate) fn whole(&mut self, replica: u64, index: u64, state: &State) -> Result<(), String> {
        if let Some(text) = invariant::broken(state).or_else(|| invariant::dangling(state)) {
            return Err(format!("replica {replica} at {index}: {text}"));
        }
        same(&mut self.states, index, sha256(&state.encode()), replica)
            .map(|_| ())
            .map_err(|first| {
                format!("the states of replicas {replica} and {first} differ after entry {index}")
            })
    }

    pub(crate) fn entries(&self) -> usize {
        self.entries.len()
    }
}

fn same(
    seen: &mut BTreeMap<u64, (Digest, u64)>,
    index: u64,
    digest: Digest,
    replica: u64,
) -> Result<bool, u64> {
    match seen.get(&index) {
        Some((known, _)) if *known == digest => Ok(false),
        Some((_, first)) => Err(*first),
        None => {
            seen.insert(index, (digest, replica));
            Ok(true)
        }
    }
}
