//! What a node routes on: an indexed, read-only view of one revision.
//!
//! A snapshot is a set of resources, each one small object at the grain of the admin API. Cloning is cheap (persistent
//! maps), so a delta is: clone, put or remove a few resources, [`Snapshot::check`], swap. The state hash is the sum of the
//! resources' digests modulo 2^256: it does not depend on order, and both planes keep it up in O(1) per change.

mod hash;
mod lines;
mod resource;

use std::sync::Arc;

use imbl::{HashMap, OrdMap};

use crate::budget::{BudgetScope, BudgetView};
use crate::catalog::{Credential, Endpoint, Model, PriceVersion, Provider};
use crate::ids::{ApiKeyId, EndpointId, ModelId, OrganizationId, ProjectId, ProviderId, Revision};
use crate::notice::Notice;
use crate::tenant::{self, ApiKey, KeyDigest, Organization, Project, TenantPath};
use crate::time::UnixMillis;

pub use self::hash::{Digest, StateHash};
use self::lines::Lines;
pub use self::resource::{Resource, ResourceKey, ResourceKind};

/// Something in a snapshot that does not fit the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inconsistency {
    /// Where.
    pub resource: ResourceKey,
    /// What.
    pub reason: String,
}

/// The price versions of one endpoint by start, then id.
pub type PriceHistory = OrdMap<(UnixMillis, Arc<str>), Arc<PriceVersion>>;

/// Everything a node needs to answer, at one revision.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The revision this is.
    pub revision: Revision,
    /// Providers by id.
    pub providers: OrdMap<ProviderId, Arc<Provider>>,
    /// Credentials by provider, then id.
    pub credentials: OrdMap<ProviderId, OrdMap<Arc<str>, Arc<Credential>>>,
    /// Models by id.
    pub models: OrdMap<ModelId, Arc<Model>>,
    /// Endpoints by model, then id.
    pub endpoints: OrdMap<ModelId, OrdMap<EndpointId, Arc<Endpoint>>>,
    /// Price versions by endpoint, then start (and id, for equal starts).
    pub prices: OrdMap<EndpointId, PriceHistory>,
    /// Notices by model, then id.
    pub notices: OrdMap<ModelId, OrdMap<Arc<str>, Arc<Notice>>>,
    /// Organizations by id.
    pub organizations: OrdMap<OrganizationId, Arc<Organization>>,
    /// Projects by id.
    pub projects: OrdMap<ProjectId, Arc<Project>>,
    /// API keys by digest.
    pub keys: HashMap<KeyDigest, Arc<ApiKey>>,
    /// Budgets by scope, each scope's by id. By hash, and those of a scope in one place: in a tree of a million, comparing names and going
    /// from node to node is most of what a lookup costs.
    pub budgets: HashMap<BudgetScope, Vec<Arc<BudgetView>>>,
    lines: Lines,
    all: OrdMap<ResourceKey, (Arc<Resource>, Digest)>,
    hash: StateHash,
}

impl Snapshot {
    /// Nothing yet, at a revision.
    pub fn at(revision: Revision) -> Self {
        Self {
            revision,
            ..Self::default()
        }
    }

    /// Puts a resource in, in place of the one with the same identity. `digest` is SHA-256 of its stored bytes.
    pub fn put(&mut self, resource: Resource, digest: Digest) {
        let key = resource.key();
        self.remove(&key);
        self.hash.add(&digest);
        self.index(&resource);
        self.all.insert(key, (Arc::new(resource), digest));
    }

    /// Takes a resource out. Nothing happens when there is none.
    pub fn remove(&mut self, key: &ResourceKey) {
        if let Some((resource, digest)) = self.all.remove(key) {
            self.hash.remove(&digest);
            self.unindex(&resource);
        }
    }

    /// The hash of the whole state.
    pub fn hash(&self) -> StateHash {
        self.hash
    }

    /// How many resources there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Every resource, in the order of [`ResourceKind`].
    pub fn resources(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.all.values().map(|(resource, _)| resource)
    }

    /// One resource.
    pub fn get(&self, key: &ResourceKey) -> Option<&Arc<Resource>> {
        self.all.get(key).map(|(resource, _)| resource)
    }

    /// The prices of an endpoint that are in force at `now`.
    pub fn prices_at(&self, endpoint: &EndpointId, now: UnixMillis) -> Option<&Arc<PriceVersion>> {
        let versions = self.prices.get(endpoint)?;
        versions
            .iter()
            .rev()
            .find(|((from, _), _)| *from <= now)
            .map(|(_, version)| version)
    }

    /// The tenant path of a key, when every part of it is known.
    pub fn path(&self, key: &ApiKey) -> Option<TenantPath> {
        let project = self.projects.get(&key.project)?;
        self.organizations.get(&project.organization)?;
        Some(TenantPath {
            organization: project.organization.clone(),
            team: project.team.clone(),
            project: project.id.clone(),
            key: key.id.clone(),
        })
    }

    /// A key and those with a budget that it came from by rotation, the newest first. A budget on any of them holds for it.
    pub fn line(&self, key: &ApiKey) -> impl Iterator<Item = ApiKeyId> {
        tenant::line(key.id.clone(), |id| self.lines.nearest(id).cloned())
    }

    /// What does not fit: dangling references, inadmissible prices, addresses that are not URLs. Empty = consistent.
    ///
    /// `only`: the resources to look at (a delta's), or `None` for all.
    pub fn check(&self, only: Option<&[ResourceKey]>) -> Vec<Inconsistency> {
        let mut found = Vec::new();
        let mut look = |resource: &Resource| {
            if let Some(reason) = self.problem(resource) {
                found.push(Inconsistency {
                    resource: resource.key(),
                    reason,
                });
            }
        };
        match only {
            Some(keys) => keys
                .iter()
                .filter_map(|key| self.get(key))
                .for_each(|resource| look(resource)),
            None => self.resources().for_each(|resource| look(resource)),
        }
        found
    }

    fn problem(&self, resource: &Resource) -> Option<String> {
        let missing =
            |there: bool, what: &str, id: &str| (!there).then(|| format!("{what} `{id}` does not exist"));
        match resource {
            Resource::Provider(r) => base_url_problem(&r.base_url),
            Resource::Credential(r) => missing(
                self.providers.contains_key(&r.provider),
                "provider",
                r.provider.as_str(),
            ),
            Resource::Endpoint(r) => missing(
                self.providers.contains_key(&r.provider),
                "provider",
                r.provider.as_str(),
            )
            .or_else(|| missing(self.models.contains_key(&r.model), "model", r.model.as_str()))
            .or_else(|| {
                r.upstream_model
                    .is_empty()
                    .then(|| "upstream model is empty".into())
            }),
            Resource::Price(r) => r
                .prices
                .inadmissible()
                .map(|(field, fault)| format!("price `{field}` {fault}")),
            Resource::Project(r) => missing(
                self.organizations.contains_key(&r.organization),
                "organization",
                r.organization.as_str(),
            ),
            Resource::ApiKey(r) => missing(
                self.projects.contains_key(&r.project),
                "project",
                r.project.as_str(),
            ),
            Resource::Notice(r) => r
                .sunset_at
                .is_some_and(|at| at < r.deprecated_at)
                .then(|| "sunset is before deprecation".into()),
            Resource::Model(_) | Resource::Organization(_) | Resource::Team(_) | Resource::Budget(_) => None,
        }
    }

    fn index(&mut self, resource: &Resource) {
        match resource {
            Resource::Provider(r) => drop(self.providers.insert(r.id.clone(), Arc::new(r.clone()))),
            Resource::Credential(r) => {
                drop(
                    self.credentials
                        .entry(r.provider.clone())
                        .or_default()
                        .insert(r.id.text(), Arc::new(r.clone())),
                );
            }
            Resource::Model(r) => drop(self.models.insert(r.id.clone(), Arc::new(r.clone()))),
            Resource::Endpoint(r) => {
                drop(
                    self.endpoints
                        .entry(r.model.clone())
                        .or_default()
                        .insert(r.id.clone(), Arc::new(r.clone())),
                );
            }
            Resource::Price(r) => {
                let versions = self.prices.entry(r.endpoint.clone()).or_default();
                drop(versions.insert((r.effective_from, r.id.text()), Arc::new(r.clone())));
            }
            Resource::Notice(r) => {
                drop(
                    self.notices
                        .entry(r.model.clone())
                        .or_default()
                        .insert(r.id.text(), Arc::new(r.clone())),
                );
            }
            Resource::Organization(r) => drop(self.organizations.insert(r.id.clone(), Arc::new(r.clone()))),
            Resource::Project(r) => drop(self.projects.insert(r.id.clone(), Arc::new(r.clone()))),
            Resource::ApiKey(r) => {
                if let Some(replaced) = &r.rotated_from {
                    self.lines.put(&r.id, replaced);
                }
                drop(self.keys.insert(r.digest, Arc::new(r.clone())));
            }
            Resource::Budget(r) => {
                if let BudgetScope::Key(key) = &r.budget.scope {
                    self.lines.limit(key, true);
                }
                let at_scope = self.budgets.entry(r.budget.scope.clone()).or_default();
                let place = at_scope.partition_point(|other| other.budget.id < r.budget.id);
                at_scope.insert(place, Arc::new(r.clone())); // put has removed the one of the same id
            }
            Resource::Team(_) => {}
        }
    }

    fn unindex(&mut self, resource: &Resource) {
        match resource {
            Resource::Provider(r) => drop(self.providers.remove(&r.id)),
            Resource::Credential(r) => drop_inner(&mut self.credentials, &r.provider, &r.id.text()),
            Resource::Model(r) => drop(self.models.remove(&r.id)),
            Resource::Endpoint(r) => drop_inner(&mut self.endpoints, &r.model, &r.id),
            Resource::Price(r) => drop_inner(&mut self.prices, &r.endpoint, &(r.effective_from, r.id.text())),
            Resource::Notice(r) => drop_inner(&mut self.notices, &r.model, &r.id.text()),
            Resource::Organization(r) => drop(self.organizations.remove(&r.id)),
            Resource::Project(r) => drop(self.projects.remove(&r.id)),
            Resource::ApiKey(r) => {
                if let Some(replaced) = &r.rotated_from {
                    self.lines.remove(&r.id, replaced);
                }
                drop(self.keys.remove(&r.digest));
            }
            Resource::Budget(r) => {
                let scope = &r.budget.scope;
                if let Some(budgets) = self.budgets.get_mut(scope) {
                    budgets.retain(|other| other.budget.id != r.budget.id);
                    if budgets.is_empty() {
                        self.budgets.remove(scope);
                    }
                }
                if let BudgetScope::Key(key) = scope {
                    self.lines.limit(key, self.budgets.contains_key(scope));
                }
            }
            Resource::Team(_) => {}
        }
    }
}

fn drop_inner<A: Ord + Clone, B: Ord + Clone, V: Clone>(
    map: &mut OrdMap<A, OrdMap<B, V>>,
    outer: &A,
    inner: &B,
) {
    if let Some(entries) = map.get_mut(outer) {
        entries.remove(inner);
        if entries.is_empty() {
            map.remove(outer);
        }
    }
}

/// What is wrong with a provider's base URL, for the admin API and for [`Snapshot::check`].
pub fn base_url_problem(url: &str) -> Option<String> {
    let rest = url
        .strip_prefix("https://")
        .or_else(|| url.strip_prefix("http://"));
    let Some(rest) = rest else {
        return Some("base URL must start with `https://` or `http://`".into());
    };
    let host = rest.split('/').next().unwrap_or_default();
    if host.is_empty() {
        return Some("base URL has no host".into());
    }
    if rest.contains(['@', '#', '?', ' ', '\\']) || rest.chars().any(char::is_control) {
        return Some(
            "base URL may not contain user names, queries, fragments, spaces or control characters".into(),
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::Prices;
    use crate::ids::PriceId;
    use crate::money::Price;

    fn price(id: &str, from: i64) -> Resource {
        Resource::Price(PriceVersion {
            id: PriceId::trusted(id),
            endpoint: EndpointId::trusted("e"),
            effective_from: UnixMillis(from),
            prices: Prices::flat(Price(from), Price(1)),
        })
    }

    #[test]
    fn the_hash_forgets_what_was_taken_out_and_does_not_know_the_order() {
        let (a, b) = (price("a", 1), price("b", 2));
        let mut one = Snapshot::default();
        one.put(a.clone(), [0xff; 32]);
        one.put(b.clone(), [0x81; 32]);
        let mut other = Snapshot::default();
        other.put(b, [0x81; 32]);
        other.put(price("c", 9), [3; 32]);
        other.put(a, [0xff; 32]);
        other.remove(&price("c", 9).key());
        assert_eq!(one.hash(), other.hash());
        assert_eq!(StateHash::from_bytes(&one.hash().to_bytes()), Some(one.hash()));
        one.remove(&price("a", 1).key());
        assert_ne!(one.hash(), other.hash());
    }

    #[test]
    fn every_kind_is_listed_in_order_and_known_by_its_name() {
        assert!(ResourceKind::ALL.is_sorted());
        for kind in ResourceKind::ALL {
            assert_eq!(ResourceKind::parse(kind.as_str()), Some(kind));
        }
        assert_eq!(ResourceKind::parse("secret"), None);
    }

    #[test]
    fn the_price_in_force_is_the_latest_that_has_started() {
        let mut snapshot = Snapshot::default();
        for (id, from) in [("b", 200), ("a", 100), ("c", 300)] {
            snapshot.put(price(id, from), [from as u8; 32]);
        }
        let at = |now| {
            snapshot
                .prices_at(&EndpointId::trusted("e"), UnixMillis(now))
                .map(|p| p.id.to_string())
        };
        assert_eq!(at(99), None);
        assert_eq!(at(100).as_deref(), Some("a"));
        assert_eq!(at(299).as_deref(), Some("b"));
        assert_eq!(at(i64::MAX).as_deref(), Some("c"));
    }

    #[test]
    fn a_dangling_reference_is_reported_with_its_resource() {
        let mut snapshot = Snapshot::default();
        let endpoint = Endpoint {
            id: EndpointId::trusted("e"),
            model: ModelId::trusted("a/b"),
            provider: ProviderId::trusted("p"),
            upstream_model: "b".into(),
            region: None,
            max_output_tokens: None,
            on_disconnect: None,
            rank: 0,
            enabled: true,
        };
        snapshot.put(Resource::Endpoint(endpoint), [1; 32]);
        let found = snapshot.check(None);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].reason, "provider `p` does not exist");
    }
}
