//! What a node routes on is what the replicated state shows at that revision, to the byte.

use std::collections::BTreeMap;

use tollway_control::state::{Applied, State, view};
use tollway_proto::push::encode_resource;
use tollway_shared::ids::Revision;
use tollway_shared::seal::sha256;
use tollway_shared::snapshot::{Digest, ResourceKey, Snapshot, StateHash};

use crate::push::hash_of;

#[derive(Default)]
pub(crate) struct Property {
    /// Up to where the view has been followed.
    followed: u64,
    shown: BTreeMap<ResourceKey, Digest>,
    hash: StateHash,
    by_revision: BTreeMap<Revision, StateHash>,
}

impl Property {
    /// Follows the view by what `apply` said changed, and now and then checks that it said everything.
    pub(crate) fn applied(
        &mut self,
        index: u64,
        applied: &Applied,
        state: &State,
        whole: bool,
    ) -> Result<(), String> {
        if index <= self.followed {
            return Ok(());
        }
        self.followed = index;
        for key in &applied.changed {
            if let Some(old) = self.shown.remove(key) {
                self.hash.remove(&old);
            }
            if let Some(resource) = view::resource(state, key) {
                let digest = sha256(&encode_resource(&resource));
                self.hash.add(&digest);
                self.shown.insert(key.clone(), digest);
            }
        }
        if whole && hash_of(state) != self.hash {
            return Err(format!(
                "up to entry {index}, something changed that apply did not name"
            ));
        }
        if !applied.changed.is_empty() {
            self.by_revision.insert(state.revision, self.hash);
        }
        Ok(())
    }

    pub(crate) fn in_force(&self, node: usize, snapshot: &Snapshot) -> Result<(), String> {
        match self.by_revision.get(&snapshot.revision) {
            Some(hash) if *hash == snapshot.hash() => Ok(()),
            Some(_) => Err(format!(
                "node {node} runs on another revision {} than the replicas",
                snapshot.revision
            )),
            None => Err(format!(
                "node {node} runs on revision {}, which never was",
                snapshot.revision
            )),
        }
    }
}

/// Compares a node with a state, resource by resource.
pub(crate) fn same(node: usize, live: Option<&Snapshot>, state: &State) -> Result<(), String> {
    let Some(live) = live else {
        return Err(format!("node {node} runs on nothing"));
    };
    let (mut there, mut here) = (
        view::all(state).collect::<Vec<_>>(),
        live.resources().cloned().collect::<Vec<_>>(),
    );
    there.sort_by_key(tollway_shared::snapshot::Resource::key);
    here.sort_by_key(|resource| resource.key());
    let equal = there.len() == here.len() && there.iter().zip(&here).all(|(there, here)| *there == **here);
    (equal && live.revision == state.revision && live.hash() == hash_of(state))
        .then_some(())
        .ok_or_else(|| {
            format!(
                "node {node} at {} is not what replicas show at {}",
                live.revision, state.revision
            )
        })
}
