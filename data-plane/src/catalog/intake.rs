//! Pure: what to do with each message of the push stream. The shell around it owns the socket, the disk and the swap.
//!
//! Keeps: the revision never goes back; nothing is used that is not whole, hashed right and consistent; what is refused is
//! refused with reasons and leaves everything as it was.

use std::collections::BTreeMap;
use std::sync::Arc;

use tollway_proto::push::decode_resource;
use tollway_proto::push::v1::control_message::Message;
use tollway_proto::push::v1::{
    Ack, Change, ControlMessage, Delta, FullBegin, FullChunk, FullEnd, Nack, Reason, Stop,
};
use tollway_shared::ids::Revision;
use tollway_shared::snapshot::{Inconsistency, Resource, ResourceKey, ResourceKind, Snapshot};
use tollway_shared::tenant::KeyDigest;

use super::Stops;

/// Reasons per refusal; the rest is left out.
const REASONS_MAX: usize = 16;
/// Digests and ids in force on the fast lane together; more wait for the snapshot.
const STOPS_MAX: usize = 1_000_000;

/// What a snapshot may hold at most. Past it a message is refused, whatever it promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// Stored bytes of a whole snapshot: a million API keys are about 150 MB.
    pub full_bytes: usize,
    /// Models and notices, each.
    pub models: usize,
    /// Providers, credentials and organizations, each.
    pub providers: usize,
    /// Endpoints; and, ten times as many, price versions.
    pub endpoints: usize,
    /// API keys, teams, projects and budgets, each.
    pub keys: usize,
}

impl Default for Caps {
    /// Twice the scale that the cluster is built for.
    fn default() -> Self {
        Self {
            full_bytes: 256 << 20,
            models: 40_000,
            providers: 10_000,
            endpoints: 200_000,
            keys: 2_000_000,
        }
    }
}

impl Caps {
    fn of(&self, kind: ResourceKind) -> usize {
        match kind {
            ResourceKind::Provider | ResourceKind::Credential | ResourceKind::Organization => self.providers,
            ResourceKind::Model | ResourceKind::Notice => self.models,
            ResourceKind::Endpoint => self.endpoints,
            ResourceKind::Price => self.endpoints.saturating_mul(10),
            ResourceKind::Team | ResourceKind::Project | ResourceKind::ApiKey | ResourceKind::Budget => {
                self.keys
            }
        }
    }
}

/// What the shell has to do.
#[derive(Debug, Clone)]
pub enum Action {
    /// Put these stops in force at once.
    Stop(Stops),
    /// Keep on disk, put in force, then answer.
    Install {
        /// Checked and complete.
        snapshot: Arc<Snapshot>,
        /// The answer.
        ack: Ack,
    },
    /// Answer that a revision is in use already.
    Ack(Ack),
    /// Answer that a revision is refused.
    Nack(Nack),
}

/// The receiving end of one node's push stream. Survives reconnects: [`Intake::reconnected`] forgets what was half received.
#[derive(Debug, Default)]
pub struct Intake {
    caps: Caps,
    quarantined: Option<Revision>,
    current: Option<Held>,
    pending: Option<Pending>,
    stops: Stops,
}

/// A snapshot and how many resources of each kind it has.
#[derive(Debug, Clone)]
struct Held {
    snapshot: Arc<Snapshot>,
    counts: BTreeMap<ResourceKind, usize>,
}

/// A snapshot that is being received.
#[derive(Debug)]
struct Pending {
    nonce: u64,
    resources: u64,
    bytes: usize,
    snapshot: Snapshot,
    counts: BTreeMap<ResourceKind, usize>,
}

impl Intake {
    /// Starts from the snapshot that is in use, if any. `quarantined`: a revision that is refused, however it comes.
    pub fn new(current: Option<Arc<Snapshot>>, caps: Caps, quarantined: Option<Revision>) -> Self {
        let current = current.map(|snapshot| {
            let mut counts = BTreeMap::new();
            for resource in snapshot.resources() {
                *counts.entry(resource.key().kind).or_default() += 1;
            }
            Held { snapshot, counts }
        });
        Self {
            caps,
            quarantined,
            current,
            ..Self::default()
        }
    }

    /// The snapshot that is in use, or is about to be.
    pub fn current(&self) -> Option<&Arc<Snapshot>> {
        self.current.as_ref().map(|held| &held.snapshot)
    }

    /// A new stream: what was half received on the old one never comes to its end.
    pub fn reconnected(&mut self) {
        self.pending = None;
    }

    /// Takes in one message.
    pub fn feed(&mut self, message: ControlMessage) -> Option<Action> {
        match message.message? {
            Message::FullBegin(begin) => self.begin(begin),
            Message::FullChunk(chunk) => self.chunk(chunk),
            Message::FullEnd(end) => self.end(end),
            Message::Delta(delta) => Some(self.delta(delta)),
            Message::Stop(stop) => self.stop(stop),
            // Recalls are for whoever holds leases.
            Message::Heartbeat(_) | Message::Recall(_) => None,
        }
    }

    fn revision(&self) -> Revision {
        self.current()
            .map(|snapshot| snapshot.revision)
            .unwrap_or_default()
    }

    fn begin(&mut self, begin: FullBegin) -> Option<Action> {
        self.pending = None;
        let revision = Revision(begin.revision);
        if let Some(text) = self.unwanted(revision) {
            return Some(self.nack(revision, begin.nonce, vec![whole(text)]));
        }
        let most: usize = ResourceKind::ALL.into_iter().map(|kind| self.caps.of(kind)).sum();
        if begin.resources > most as u64 {
            let text = format!("{} resources are more than the {most} allowed", begin.resources);
            return Some(self.nack(revision, begin.nonce, vec![whole(text)]));
        }
        self.pending = Some(Pending {
            nonce: begin.nonce,
            resources: begin.resources,
            bytes: 0,
            snapshot: Snapshot::at(revision),
            counts: BTreeMap::new(),
        });
        None
    }

    fn chunk(&mut self, chunk: FullChunk) -> Option<Action> {
        let pending = self
            .pending
            .as_mut()
            .filter(|pending| pending.nonce == chunk.nonce)?;
        let caps = self.caps;
        let mut reasons = Vec::new();
        for stored in &chunk.resources {
            pending.bytes += stored.data.len();
            if pending.bytes > caps.full_bytes {
                let text = format!("the snapshot is larger than {} bytes", caps.full_bytes);
                reasons.push(whole(text));
                break;
            }
            match decode_resource(&stored.data) {
                Ok((resource, digest)) => {
                    reasons.extend(put(
                        &mut pending.snapshot,
                        &mut pending.counts,
                        &caps,
                        resource,
                        digest,
                    ));
                }
                Err(fault) => reasons.push(whole(fault.to_string())),
            }
        }
        if reasons.is_empty() {
            return None;
        }
        let revision = pending.snapshot.revision;
        self.pending = None;
        Some(self.nack(revision, chunk.nonce, reasons))
    }

    fn end(&mut self, end: FullEnd) -> Option<Action> {
        let pending = self.pending.take_if(|pending| pending.nonce == end.nonce)?;
        let snapshot = pending.snapshot;
        let mut reasons = Vec::new();
        if snapshot.len() as u64 != pending.resources {
            let text = format!("{} of {} resources arrived", snapshot.len(), pending.resources);
            reasons.push(whole(text));
        } else if snapshot.hash().to_bytes()[..] != end.hash[..] {
            reasons.push(whole("the hash of the state does not match"));
        } else {
            reasons.extend(snapshot.check(None).into_iter().take(REASONS_MAX).map(reason));
        }
        if !reasons.is_empty() {
            return Some(self.nack(snapshot.revision, end.nonce, reasons));
        }
        Some(self.install(snapshot, pending.counts, end.nonce))
    }

    fn delta(&mut self, delta: Delta) -> Action {
        let revision = Revision(delta.revision);
        let Some(held) = self.current.clone() else {
            return self.nack(
                revision,
                delta.nonce,
                vec![whole("there is no snapshot to change")],
            );
        };
        let base = &held.snapshot;
        if revision == base.revision && base.hash().to_bytes()[..] == delta.hash[..] {
            return Action::Ack(ack(base, delta.nonce)); // it came twice
        }
        if delta.from_revision != base.revision.0 || revision <= base.revision {
            let text = format!(
                "it starts at revision {}, not at {}",
                delta.from_revision, base.revision
            );
            return self.nack(revision, delta.nonce, vec![whole(text)]);
        }
        if let Some(text) = self.unwanted(revision) {
            return self.nack(revision, delta.nonce, vec![whole(text)]);
        }
        match changed(&held, &delta, &self.caps) {
            Ok((snapshot, counts)) => self.install(snapshot, counts, delta.nonce),
            Err(reasons) => self.nack(revision, delta.nonce, reasons),
        }
    }

    fn stop(&mut self, stop: Stop) -> Option<Action> {
        let revision = Revision(stop.revision);
        if revision <= self.revision() {
            return None; // the snapshot in use knows already
        }
        let digests = stop
            .key_digests
            .iter()
            .filter_map(|digest| KeyDigest::try_from(&digest[..]).ok());
        let room = STOPS_MAX.saturating_sub(self.stops.keys.len() + self.stops.budgets.len());
        self.stops.keys.extend(digests.take(room));
        let room = STOPS_MAX.saturating_sub(self.stops.keys.len() + self.stops.budgets.len());
        let budgets = stop.budgets.iter().map(|id| Arc::from(id.as_str()));
        self.stops.budgets.extend(budgets.take(room));
        self.stops.revision = self.stops.revision.max(revision);
        Some(Action::Stop(self.stops.clone()))
    }

    fn install(&mut self, snapshot: Snapshot, counts: BTreeMap<ResourceKind, usize>, nonce: u64) -> Action {
        let snapshot = Arc::new(snapshot);
        if self.stops.revision <= snapshot.revision {
            self.stops = Stops::default();
        }
        self.pending = None;
        self.current = Some(Held {
            snapshot: snapshot.clone(),
            counts,
        });
        let ack = ack(&snapshot, nonce);
        Action::Install { snapshot, ack }
    }

    /// Why a revision is refused before its content is looked at.
    fn unwanted(&self, revision: Revision) -> Option<String> {
        if revision < self.revision() {
            return Some(format!(
                "revision {} is in use, and revisions only move forward",
                self.revision()
            ));
        }
        (self.quarantined == Some(revision))
            .then(|| "this revision was in use when the process died twice".into())
    }

    fn nack(&self, rejected: Revision, nonce: u64, mut reasons: Vec<Reason>) -> Action {
        reasons.truncate(REASONS_MAX);
        Action::Nack(Nack {
            rejected_revision: rejected.0,
            kept_revision: self.revision().0,
            nonce,
            reasons,
        })
    }
}

/// The snapshot that a delta leads to, or why it is refused.
fn changed(
    held: &Held,
    delta: &Delta,
    caps: &Caps,
) -> Result<(Snapshot, BTreeMap<ResourceKind, usize>), Vec<Reason>> {
    let mut snapshot = (*held.snapshot).clone();
    let mut counts = held.counts.clone();
    snapshot.revision = Revision(delta.revision);
    let mut reasons = Vec::new();
    let mut keys = Vec::with_capacity(delta.changes.len());
    let mut referred_to_gone = false;
    for change in &delta.changes {
        match edit(&mut snapshot, &mut counts, caps, change) {
            Ok(key) => {
                referred_to_gone |= change.data.is_none() && is_referred_to(key.kind);
                keys.push(key);
            }
            Err(found) => reasons.push(found),
        }
    }
    if reasons.is_empty() && snapshot.hash().to_bytes()[..] != delta.hash[..] {
        reasons.push(whole("the hash of the state does not match"));
    }
    if reasons.is_empty() {
        // What was put has to fit. When something is gone that others may refer to, everything has to.
        let only = (!referred_to_gone).then_some(&keys[..]);
        reasons.extend(snapshot.check(only).into_iter().take(REASONS_MAX).map(reason));
    }
    if reasons.is_empty() {
        Ok((snapshot, counts))
    } else {
        Err(reasons)
    }
}

fn edit(
    snapshot: &mut Snapshot,
    counts: &mut BTreeMap<ResourceKind, usize>,
    caps: &Caps,
    change: &Change,
) -> Result<ResourceKey, Reason> {
    let refused = |text: &str| Reason {
        kind: change.kind.clone(),
        id: change.id.clone(),
        text: text.to_owned(),
    };
    let kind = ResourceKind::parse(&change.kind).ok_or_else(|| refused("the kind is unknown"))?;
    let key = ResourceKey {
        kind,
        id: change.id.as_str().into(),
    };
    let Some(data) = &change.data else {
        if snapshot.get(&key).is_some() {
            *counts.entry(kind).or_default() -= 1;
            snapshot.remove(&key);
        }
        return Ok(key);
    };
    let (resource, digest) = decode_resource(data).map_err(|fault| refused(&fault.to_string()))?;
    if resource.key() != key {
        return Err(refused("the resource has another identity"));
    }
    match put(snapshot, counts, caps, resource, digest) {
        Some(found) => Err(found),
        None => Ok(key),
    }
}

fn put(
    snapshot: &mut Snapshot,
    counts: &mut BTreeMap<ResourceKind, usize>,
    caps: &Caps,
    resource: Resource,
    digest: [u8; 32],
) -> Option<Reason> {
    let key = resource.key();
    if snapshot.get(&key).is_none() {
        let count = counts.entry(key.kind).or_default();
        if *count >= caps.of(key.kind) {
            let text = format!("there are more than {} of this kind", caps.of(key.kind));
            return Some(Reason {
                kind: key.kind.as_str().to_owned(),
                id: key.id.to_string(),
                text,
            });
        }
        *count += 1;
    }
    snapshot.put(resource, digest);
    None
}

/// Whether other kinds of resources name resources of this kind.
fn is_referred_to(kind: ResourceKind) -> bool {
    matches!(
        kind,
        ResourceKind::Provider | ResourceKind::Model | ResourceKind::Organization | ResourceKind::Project
    )
}

fn ack(snapshot: &Snapshot, nonce: u64) -> Ack {
    Ack {
        revision: snapshot.revision.0,
        nonce,
        hash: snapshot.hash().to_bytes().to_vec().into(),
    }
}

fn whole(text: impl Into<String>) -> Reason {
    Reason {
        kind: String::new(),
        id: String::new(),
        text: text.into(),
    }
}

fn reason(found: Inconsistency) -> Reason {
    Reason {
        kind: found.resource.kind.as_str().to_owned(),
        id: found.resource.id.to_string(),
        text: found.reason,
    }
}

#[cfg(test)]
#[path = "intake_tests.rs"]
mod tests;
