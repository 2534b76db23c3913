//! Pure: a state, as the nodes of one region see it, in stored form and with its hash.
//!
//! Every replica builds the same bytes: encoding is canonical and re-sealing uses synthetic nonces. What differs between regions is
//! credentials only; everything else is built once and shared. A change costs what changed, not what there is.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdMap;
use tollway_proto::push::v1::{Change, FullChunk, ResourceBytes};
use tollway_proto::push::{CHUNK_BYTES_MAX, encode_resource};
use tollway_shared::catalog::Credential;
use tollway_shared::ids::{Region, Revision};
use tollway_shared::seal::{self, Key, region_key, sha256};
use tollway_shared::snapshot::{Digest, Resource, ResourceKey, ResourceKind, StateHash};
use tollway_shared::tenant::KeyDigest;
use tollway_shared::time::UnixMillis;

use crate::state::{State, view};

/// A resource in stored form.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stored {
    data: Bytes,
    digest: Digest,
    stop: Option<Halt>,
}

/// What the fast lane says about a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Halt {
    /// The key is refused from now on.
    Key(KeyDigest),
    /// The hard budget is spent.
    Budget(Arc<str>),
}

/// What the nodes of a region see at one revision. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct RegionView {
    /// The revision.
    pub revision: Revision,
    entries: OrdMap<ResourceKey, Stored>,
    hash: StateHash,
}

impl RegionView {
    /// The hash of the whole state, equal to the node's own.
    pub fn hash(&self) -> StateHash {
        self.hash
    }

    /// How many resources there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The chunk that starts after `after`, at most [`CHUNK_BYTES_MAX`] unless one resource alone is larger, and its last key;
    /// `None` at the end.
    pub fn chunk(&self, nonce: u64, after: Option<&ResourceKey>) -> Option<(FullChunk, ResourceKey)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut resources = Vec::new();
        let mut bytes = 0;
        let mut last = None;
        for (key, stored) in self.entries.range::<_, ResourceKey>((from, Bound::Unbounded)) {
            bytes += stored.data.len();
            if bytes > CHUNK_BYTES_MAX && !resources.is_empty() {
                break;
            }
            resources.push(ResourceBytes {
                data: stored.data.clone(),
            });
            last = Some(key);
        }
        last.map(|key| (FullChunk { nonce, resources }, key.clone()))
    }

    /// What a node has to change for this resource to be as it is here.
    pub fn change(&self, key: &ResourceKey) -> Change {
        Change {
            kind: key.kind.as_str().to_owned(),
            id: key.id.to_string(),
            data: self.entries.get(key).map(|stored| stored.data.clone()),
        }
    }

    /// What the fast lane says about a resource, if anything.
    pub fn halt(&self, key: &ResourceKey) -> Option<&Halt> {
        self.entries.get(key)?.stop.as_ref()
    }

    fn set(&mut self, key: &ResourceKey, stored: Option<Stored>) {
        let old = match stored {
            Some(stored) => {
                self.hash.add(&stored.digest);
                self.entries.insert(key.clone(), stored)
            }
            None => self.entries.remove(key),
        };
        if let Some(old) = old {
            self.hash.remove(&old.digest);
        }
    }
}

/// Takes a credential from under the cluster's key to under a region's; `None` when its nodes get none.
pub(super) type Reseal = dyn Fn(&Region, Credential) -> Option<Credential> + Send + Sync;

/// Keeps the views of all regions that are asked for.
pub struct Builder {
    reseal: Arc<Reseal>,
    state: Arc<State>,
    /// Everything but credentials.
    common: RegionView,
    /// What the last move changed, and since which revision; `None`: unknown.
    moved: Option<(Revision, BTreeSet<ResourceKey>)>,
    /// Each as of the revision at which it was last asked for.
    regions: BTreeMap<Region, RegionView>,
}

impl Builder {
    /// Builds what is common to all regions.
    pub fn new(sealing_key: Key, state: Arc<State>) -> Self {
        Self::with(resealing(sealing_key), state)
    }

    /// The same, with another way to seal.
    pub(super) fn with(reseal: Arc<Reseal>, state: Arc<State>) -> Self {
        Self {
            reseal,
            common: common(&state),
            state,
            moved: None,
            regions: BTreeMap::new(),
        }
    }

    /// The newest revision that was built.
    pub fn revision(&self) -> Revision {
        self.common.revision
    }

    /// The view of a region: moved on from what it was when it was asked for last, or built anew.
    ///
    /// One whose building panics is built anew when it is asked for again; the others know nothing of it.
    pub fn region(&mut self, region: &Region) -> RegionView {
        let view = match (self.regions.remove(region), &self.moved) {
            (Some(view), _) if view.revision == self.common.revision => view,
            (Some(view), Some((since, changed))) if view.revision == *since => {
                self.moved_on(view, region, changed)
            }
            _ => self.built(region),
        };
        self.regions.insert(region.clone(), view.clone());
        view
    }

    /// Moves what is common on to `state`; regions follow when they are asked for. `changed`: everything that changed since the last
    /// one, or `None` when that is not known.
    pub fn update(&mut self, state: Arc<State>, changed: Option<&BTreeSet<ResourceKey>>) {
        self.state = state;
        let Some(changed) = changed else {
            self.common = common(&self.state);
            self.moved = None;
            self.regions.clear();
            return;
        };
        self.moved = Some((self.common.revision, changed.clone()));
        for key in changed {
            if key.kind != ResourceKind::Credential {
                let resource = view::resource(&self.state, key);
                let stored = resource.map(|resource| stored(&resource, self.state.now));
                self.common.set(key, stored);
            }
        }
        self.common.revision = self.state.revision;
    }

    fn built(&self, region: &Region) -> RegionView {
        let mut view = self.common.clone();
        let keys = self.state.credentials.keys();
        for key in keys.map(|id| credential_key(id.text())) {
            view.set(&key, self.credential(region, &key));
        }
        view
    }

    fn moved_on(&self, mut view: RegionView, region: &Region, changed: &BTreeSet<ResourceKey>) -> RegionView {
        for key in changed {
            let stored = match key.kind {
                ResourceKind::Credential => self.credential(region, key),
                _ => self.common.entries.get(key).cloned(),
            };
            view.set(key, stored);
        }
        view.revision = self.common.revision;
        view
    }

    /// A credential, sealed for the region, when its nodes may hold it.
    fn credential(&self, region: &Region, key: &ResourceKey) -> Option<Stored> {
        let Some(Resource::Credential(credential)) = view::resource(&self.state, key) else {
            return None;
        };
        let allowed = credential.regions.is_empty() || credential.regions.contains(region);
        let sealed = allowed.then(|| (self.reseal)(region, credential)).flatten()?;
        Some(stored(&Resource::Credential(sealed), self.state.now))
    }
}

fn common(state: &State) -> RegionView {
    let mut common = RegionView {
        revision: state.revision,
        ..RegionView::default()
    };
    for resource in view::all(state) {
        if !matches!(resource, Resource::Credential(_)) {
            common.set(&resource.key(), Some(stored(&resource, state.now)));
        }
    }
    common
}

fn credential_key(id: Arc<str>) -> ResourceKey {
    ResourceKey {
        kind: ResourceKind::Credential,
        id,
    }
}

fn stored(resource: &Resource, now: UnixMillis) -> Stored {
    let data = encode_resource(resource);
    Stored {
        digest: sha256(&data),
        data: data.into(),
        stop: halt(resource, now),
    }
}

fn halt(resource: &Resource, now: UnixMillis) -> Option<Halt> {
    let over = |at: Option<UnixMillis>| at.is_some_and(|at| at <= now);
    match resource {
        Resource::ApiKey(key) if over(key.revoked_at) || over(key.expires_at) => Some(Halt::Key(key.digest)),
        Resource::Budget(view) if view.stops(now).is_some() => Some(Halt::Budget(view.budget.id.text())),
        _ => None,
    }
}

/// What seals with the cluster's key. A credential that does not open is left out: a node without it says so, a node with a wrong one
/// would be refused by the provider.
pub(super) fn resealing(root: Key) -> Arc<Reseal> {
    Arc::new(move |region, credential| {
        let aad = credential.aad();
        match seal::open(&root, &aad, &credential.sealed) {
            Ok(plain) => Some(Credential {
                sealed: seal::seal(&region_key(&root, region), &aad, plain.expose()),
                ..credential
            }),
            Err(fault) => {
                tracing::error!(credential = %credential.id, %fault, "a credential is not published");
                None
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use tollway_proto::command::Command;
    use tollway_proto::push::decode_resource;
    use tollway_shared::catalog::credential_aad;
    use tollway_shared::ids::{CredentialId, ProviderId};
    use tollway_shared::snapshot::Snapshot;

    use super::*;
    use crate::state::samples::{self, NOON};
    use crate::state::{Applied, apply};

    const ROOT: [u8; 32] = [3; 32];

    fn credential(version: u32, regions: &[&str]) -> Credential {
        let (provider, id) = (ProviderId::trusted("p"), CredentialId::trusted("main"));
        let aad = credential_aad(&provider, &id, version, None);
        Credential {
            sealed: seal::seal(&Key::new(ROOT), &aad, b"sk-upstream"),
            provider,
            id,
            version,
            owner: None,
            regions: regions.iter().map(|region| Region::trusted(*region)).collect(),
            created_at: NOON,
        }
    }

    fn run(state: &mut State, command: Command) -> Applied {
        let index = state.applied + 1;
        let entry = tollway_proto::command::Entry {
            at: NOON,
            actor: "root".into(),
            idempotency: None,
            if_revision: None,
            command,
        };
        apply(state, index, &entry)
    }

    /// What a node makes of a view.
    fn received(view: &RegionView) -> Snapshot {
        let mut snapshot = Snapshot::at(view.revision);
        let mut after = None;
        while let Some((chunk, last)) = view.chunk(1, after.as_ref()) {
            for stored in chunk.resources {
                let (resource, digest) = decode_resource(&stored.data).unwrap();
                snapshot.put(resource, digest);
            }
            after = Some(last);
        }
        snapshot
    }

    #[test]
    fn a_view_moved_on_is_the_view_built_anew_and_the_node_agrees_on_its_hash() {
        let mut state = samples::catalog();
        let (eu, us) = (Region::trusted("eu"), Region::trusted("us"));
        let mut builder = Builder::new(Key::new(ROOT), Arc::new(state.clone()));
        builder.region(&eu);
        for command in [
            Command::PutCredential(credential(2, &[])),
            Command::AddPrice(samples::price("p2", 3, NOON.plus_ms(1))),
            Command::PutCredential(credential(3, &["us"])),
            Command::PutBudget(samples::budget(10)),
            Command::RecordSpend(samples::spend(0, 1, 10)),
            Command::RemoveCredential(CredentialId::trusted("p/main")),
            Command::RevokeKey(samples::api_key("k", 1).id),
        ] {
            let changed = run(&mut state, command).changed;
            builder.update(Arc::new(state.clone()), Some(&changed.into_iter().collect()));
            let mut anew = Builder::new(Key::new(ROOT), Arc::new(state.clone()));
            for region in [&eu, &us] {
                let (moved, built) = (builder.region(region), anew.region(region));
                assert_eq!(moved.hash(), built.hash());
                assert_eq!(moved.entries, built.entries);
                assert_eq!(moved.revision, state.revision);
                assert_eq!(received(&moved).hash(), moved.hash());
                assert_eq!(received(&moved).check(None), []);
            }
        }
    }

    #[test]
    fn a_credential_reaches_only_its_regions_and_opens_only_there() {
        let mut state = samples::catalog();
        run(&mut state, Command::PutCredential(credential(2, &["eu"])));
        let mut builder = Builder::new(Key::new(ROOT), Arc::new(state));
        let (eu, us) = (Region::trusted("eu"), Region::trusted("us"));
        assert!(received(&builder.region(&us)).credentials.is_empty());
        let snapshot = received(&builder.region(&eu));
        let kept = &snapshot.credentials[&ProviderId::trusted("p")]["main"];
        let aad = kept.aad();
        let root = Key::new(ROOT);
        assert_eq!(
            seal::open(&region_key(&root, &eu), &aad, &kept.sealed)
                .unwrap()
                .expose(),
            b"sk-upstream"
        );
        assert!(seal::open(&region_key(&root, &us), &aad, &kept.sealed).is_err());
        assert!(seal::open(&root, &aad, &kept.sealed).is_err());
    }

    #[test]
    fn chunks_hold_everything_once_and_stop_at_their_size() {
        let mut state = samples::catalog();
        for n in 0..40 {
            let model = tollway_shared::catalog::Model {
                id: tollway_shared::ids::ModelId::trusted(format!("a/{n}")),
                name: "N".into(),
                description: "x".repeat(100_000),
                context_tokens: 1,
                created_at: NOON,
            };
            run(&mut state, Command::PutModel(model));
        }
        let mut builder = Builder::new(Key::new(ROOT), Arc::new(state));
        let view = builder.region(&Region::trusted("eu"));
        let (mut after, mut chunks, mut resources) = (None, 0, 0);
        while let Some((chunk, last)) = view.chunk(1, after.as_ref()) {
            let bytes: usize = chunk.resources.iter().map(|stored| stored.data.len()).sum();
            assert!(bytes <= CHUNK_BYTES_MAX);
            resources += chunk.resources.len();
            chunks += 1;
            after = Some(last);
        }
        assert_eq!(resources, view.len());
        assert_eq!(chunks, 4);
    }
}
