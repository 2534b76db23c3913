//! The replicated truth, and the only function that changes it.
//!
//! Pure: time, ids and ciphertexts come in with the entry; maps are ordered, so every replica iterates alike. Maps are
//! persistent, so a clone is cheap: readers, the publisher and checkpoints each hold their own.
//!
//! | file | commands |
//! |---|---|
//! | [`catalog`] | providers, credentials, models, endpoints, prices, notices |
//! | [`tenant`] | organizations, teams, projects, API keys |
//! | [`budget`] | budgets: what they say, their raises, their windows |
//! | [`tally`] | what the ledger has recorded of each budget |
//! | [`lease`] | who has how much of which budget |
//! | [`spend`] | recorded usage |
//! | [`usage`] | how recorded usage is read, and when it is forgotten |
//! | [`member`] | the cluster itself: admins, join tokens, nodes |
//! | [`audit`], [`idempotency`] | what every write leaves behind |
//! | [`view`] | state → the resources that nodes see |
//! | [`invariant`] | what must hold after every entry |

pub mod account;
pub mod audit;
pub mod budget;
pub mod catalog;
pub mod credit;
pub mod held;
pub mod idempotency;
pub mod invariant;
pub mod lease;
pub mod member;
pub mod moved;
mod quota;
pub mod spend;
pub mod tally;
pub mod tenant;
pub mod usage;
pub mod view;

use std::sync::Arc;

use imbl::{OrdMap, OrdSet, Vector};
use serde::{Deserialize, Serialize};
use tollway_proto::codec::{self, CodecFault, Kind};
use tollway_proto::command::{
    Admin, Command, Entry, JoinToken, NodeRecord, Outcome, Receipt, Refusal, RefusalCode, UsageCell,
    UsageSums,
};
use tollway_proto::lease::LeaseAnswer;
use tollway_shared::budget::Budget;
use tollway_shared::catalog::{Credential, Endpoint, Model, PriceVersion, Provider};
use tollway_shared::credit::{Billing, Fees};
use tollway_shared::ids::{
    AdminId, ApiKeyId, BudgetId, ClusterId, CredentialId, EndpointId, ModelId, NodeId, NoticeId,
    OrganizationId, PriceId, ProjectId, ProviderId, ReplicaId, Revision, TeamId, WriterId,
};
use tollway_shared::lease::grantor::Books;
use tollway_shared::lease::message::Effect;
use tollway_shared::notice::Notice;
use tollway_shared::seal::Sealed;
use tollway_shared::snapshot::ResourceKey;
use tollway_shared::tenant::{ApiKey, Organization, Project, Team};
use tollway_shared::time::{Day, UnixMillis};

/// The newest behaviour of [`apply`] that this binary knows. A log that asks for a newer one stops the replica.
pub const VERSION: u32 = 1;

/// A record and when it last changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept<T> {
    /// The record.
    pub value: T,
    /// The log index of its last change; what `if_revision` is compared with.
    pub revision: Revision,
}

/// What the first entry of a cluster fixed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterInfo {
    /// Its id.
    pub id: ClusterId,
    /// The certificate authority's certificate, PEM.
    pub authority_pem: String,
    /// The authority's private key, sealed under the cluster's key.
    pub authority_key: Sealed,
    /// When it was made.
    pub created_at: UnixMillis,
}

/// Everything that is replicated.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The log index of the last applied entry.
    pub applied: u64,
    /// The log index of the last change that nodes can see.
    pub revision: Revision,
    /// The largest leader's stamp so far: time never runs backwards in here.
    pub now: UnixMillis,
    /// The behaviour that is switched on; see [`VERSION`].
    pub version: u32,
    /// The cluster, once it is made.
    pub cluster: Option<ClusterInfo>,
    /// Providers.
    pub providers: OrdMap<ProviderId, Kept<Provider>>,
    /// Credentials by their key, `provider/id`, sealed under the cluster's key.
    pub credentials: OrdMap<CredentialId, Kept<Credential>>,
    /// Models.
    pub models: OrdMap<ModelId, Kept<Model>>,
    /// Endpoints.
    pub endpoints: OrdMap<EndpointId, Kept<Endpoint>>,
    /// Price versions.
    pub prices: OrdMap<PriceId, Kept<PriceVersion>>,
    /// Retirement notices.
    pub notices: OrdMap<NoticeId, Kept<Notice>>,
    /// Organizations.
    pub organizations: OrdMap<OrganizationId, Kept<Organization>>,
    /// Teams.
    pub teams: OrdMap<TeamId, Kept<Team>>,
    /// Projects.
    pub projects: OrdMap<ProjectId, Kept<Project>>,
    /// API keys.
    pub keys: OrdMap<ApiKeyId, Kept<ApiKey>>,
    /// Budgets.
    pub budgets: OrdMap<BudgetId, Kept<Budget>>,
    /// Budgets by what they limit. Follows from `budgets`, so it is not stored.
    #[serde(skip)]
    pub budget_scopes: budget::ScopeIndex,
    /// What the ledger has recorded of each budget's windows.
    pub tallies: OrdMap<BudgetId, Arc<tally::Tally>>,
    /// When current windows end. Follows from `tallies`, so it is not stored.
    #[serde(skip)]
    pub window_ends: budget::EndIndex,
    /// When raises end. Follows from `budgets`, so it is not stored.
    #[serde(skip)]
    pub raise_ends: budget::EndIndex,
    /// Hard and clamping budgets: who has how much of them.
    pub books: Books,
    /// Admins.
    pub admins: OrdMap<AdminId, Kept<Admin>>,
    /// Unused join tokens, by digest.
    pub join_tokens: OrdMap<[u8; 32], JoinToken>,
    /// Registered nodes.
    pub nodes: OrdMap<NodeId, NodeRecord>,
    /// The last replica id that was handed out. Ids are never reused.
    pub last_replica: u64,
    /// Usage by day, tenant path, model and provider, of the last [`usage::DAYS_KEPT`] days.
    pub usage: OrdMap<UsageCell, UsageSums>,
    /// The next offset to read, per partition of the usage log.
    pub usage_offsets: OrdMap<i32, i64>,
    /// How far each writer has been counted, per partition; kept for [`usage::WRITER_KEPT_MS`].
    pub usage_writers: OrdMap<(i32, WriterId), usage::WriterMark>,
    /// The last day on which old usage was forgotten.
    pub usage_tidied: Day,
    /// The first day of which every sum is still in [`State::usage`].
    pub usage_since: Day,
    /// Answers of idempotent writes of the last 24 hours.
    pub idempotency: idempotency::Answers,
    /// The audit trail's newest records.
    pub audit: Vector<audit::AuditRecord>,
    /// The hash of the newest audit record.
    pub audit_head: [u8; 32],
    /// How many audit records there have been.
    pub audit_count: u64,
    /// Replicas whose certificates are refused once they are no members any more.
    pub removed_replicas: OrdSet<ReplicaId>,
    /// Accounts of every organization that ever used or bought something, removed ones included.
    pub accounts: OrdMap<OrganizationId, Arc<account::Account>>,
    /// Movements of credit by their references, for [`account::PAYMENTS_KEPT_MS`].
    pub payments: OrdMap<String, account::Payment>,
    /// Their references in the order in which they came, so that the oldest go first.
    pub payment_order: Vector<(UnixMillis, String)>,
    /// How organizations pay; those that are not here are held to nothing.
    pub billing: OrdMap<OrganizationId, Kept<Billing>>,
    /// What buying credits costs.
    pub fees: Kept<Fees>,
    /// Secrets of senders of payments, sealed under the cluster's key; at most [`credit::SECRETS_MAX`].
    pub payment_secrets: Vec<Sealed>,
}

/// A checkpoint in its stored form.
#[derive(Serialize, Deserialize)]
enum StoredState {
    V1(State),
}

impl State {
    /// The stored form, for checkpoints.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(Kind::Checkpoint, &StoredState::V1(self.clone()))
    }

    /// Reads the stored form.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecFault> {
        let StoredState::V1(mut state) = codec::decode(Kind::Checkpoint, bytes)?;
        state.budget_scopes = budget::scopes(&state);
        state.window_ends = budget::ends(&state);
        state.raise_ends = budget::raise_ends(&state);
        Ok(state)
    }
}

/// What applying an entry gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// The answer for whoever proposed it.
    pub outcome: Outcome,
    /// The resources that nodes see differently now, each once, in order.
    pub changed: Vec<ResourceKey>,
    /// What is to be told to nodes and to people.
    pub effects: Vec<Effect>,
}

/// What a command did, collected while it runs.
pub(crate) struct Step<'a> {
    entry: &'a Entry,
    /// The entry's log index, as the revision of what it touches.
    revision: Revision,
    changed: Vec<ResourceKey>,
    audit: Option<audit::Touched>,
    replica: Option<ReplicaId>,
    lease: Option<Box<LeaseAnswer>>,
    effects: Vec<Effect>,
}

/// Applies one committed entry: the only function that changes replicated state.
///
/// Same state, index and entry give the same result on every replica and every replay. Refusals are an [`Outcome`] and leave
/// everything but `applied` and `now` as it was.
pub fn apply(state: &mut State, index: u64, entry: &Entry) -> Applied {
    state.applied = index;
    state.now = state.now.max(entry.at);
    let applied = answered_before(state, entry).unwrap_or_else(|| run(state, index, entry));
    debug_assert_eq!(invariant::broken(state), None);
    applied
}

fn answered_before(state: &mut State, entry: &Entry) -> Option<Applied> {
    state.idempotency.forget_old(state.now);
    let idempotency = entry.idempotency.as_ref()?;
    let outcome = state.idempotency.find(&entry.actor, idempotency)?;
    Some(Applied {
        outcome,
        changed: Vec::new(),
        effects: Vec::new(),
    })
}

fn run(state: &mut State, index: u64, entry: &Entry) -> Applied {
    let mut next = state.clone();
    let mut step = Step {
        entry,
        revision: Revision(index),
        changed: Vec::new(),
        audit: None,
        replica: None,
        lease: None,
        effects: Vec::new(),
    };
    budget::expire_raises(&mut next, &mut step);
    if let Err(refusal) = dispatch(&mut next, &mut step) {
        return Applied {
            outcome: Outcome::Refused(refusal),
            changed: Vec::new(),
            effects: Vec::new(),
        };
    }
    let Step {
        mut changed,
        audit,
        replica,
        lease,
        effects,
        ..
    } = step;
    changed.sort();
    changed.dedup();
    if !changed.is_empty() {
        next.revision = Revision(index);
    }
    let receipt = Receipt {
        revision: next.revision,
        replayed: None,
        replica,
        lease,
    };
    if let Some(touched) = audit {
        audit::append(&mut next, entry, touched);
    }
    for effect in &effects {
        audit::crossed(&mut next, effect);
    }
    if let Some(idempotency) = &entry.idempotency {
        let now = next.now;
        next.idempotency
            .remember(now, &entry.actor, idempotency, &receipt);
    }
    *state = next;
    Applied {
        outcome: Outcome::Done(receipt),
        changed,
        effects,
    }
}

fn dispatch(state: &mut State, step: &mut Step<'_>) -> Result<(), Refusal> {
    match &step.entry.command {
        Command::InitCluster(c) => member::init(state, step, c),
        Command::PutProvider(c) => catalog::put_provider(state, step, c),
        Command::RemoveProvider(id) => catalog::remove_provider(state, step, id),
        Command::PutCredential(c) => catalog::put_credential(state, step, c),
        Command::RemoveCredential(id) => catalog::remove_credential(state, step, id),
        Command::PutModel(c) => catalog::put_model(state, step, c),
        Command::RemoveModel(id) => catalog::remove_model(state, step, id),
        Command::PutEndpoint(c) => catalog::put_endpoint(state, step, c),
        Command::RemoveEndpoint(id) => catalog::remove_endpoint(state, step, id),
        Command::AddPrice(c) => catalog::add_price(state, step, c),
        Command::RemovePrice(id) => catalog::remove_price(state, step, id),
        Command::PutNotice(c) => catalog::put_notice(state, step, c),
        Command::RemoveNotice(id) => catalog::remove_notice(state, step, id),
        Command::PutOrganization(c) => tenant::put_organization(state, step, c),
        Command::RemoveOrganization(id) => tenant::remove_organization(state, step, id),
        Command::PutTeam(c) => tenant::put_team(state, step, c),
        Command::RemoveTeam(id) => tenant::remove_team(state, step, id),
        Command::PutProject(c) => tenant::put_project(state, step, c),
        Command::RemoveProject(id) => tenant::remove_project(state, step, id),
        Command::CreateKey(c) => tenant::create_key(state, step, c),
        Command::RotateKey {
            old,
            old_expires_at,
            new,
        } => tenant::rotate_key(state, step, old, *old_expires_at, new),
        Command::RevokeKey(id) => tenant::revoke_key(state, step, id),
        Command::PutBudget(c) => budget::put(state, step, c),
        Command::RemoveBudget(id) => budget::remove(state, step, id),
        Command::RaiseBudget { budget, raise } => budget::raise(state, step, budget, raise),
        Command::ClearRaises(id) => budget::clear_raises(state, step, id),
        Command::RollBudgets(rolls) => {
            budget::roll(state, step, rolls);
            Ok(())
        }
        Command::Lease { node, call } => lease::call(state, step, node, call),
        Command::FenceIncarnation(id) => lease::fence(state, step, *id),
        Command::ReleaseIncarnation(id) => lease::release(state, step, *id),
        Command::ForgetIncarnations { before } => {
            lease::forget(state, *before);
            Ok(())
        }
        Command::RecordSpend(c) => spend::record(state, step, c),
        Command::MoveCredit(c) => account::move_credit(state, step, c),
        Command::LabelKey { key, labels } => tenant::label_key(state, step, key, labels),
        Command::ReleaseCredit(c) => credit::release(state, step, c),
        Command::PutBilling(c) => credit::put_billing(state, step, c),
        Command::PutFees(c) => credit::put_fees(state, step, c),
        Command::PutPaymentSecrets(c) => credit::put_secrets(state, step, c),
        Command::CreateAdmin(c) => member::create_admin(state, step, c),
        Command::RemoveAdmin(id) => member::remove_admin(state, step, id),
        Command::CreateJoinToken(c) => member::create_join_token(state, step, c),
        Command::Join { token, node } => member::join(state, step, token, node.as_ref()),
        Command::RemoveNode(id) => member::remove_node(state, step, id),
        Command::SetClusterVersion(version) => member::set_version(state, step, *version),
        Command::RemoveReplica(id) => member::remove_replica(state, step, *id),
        Command::PromoteReplica(id) | Command::TransferLeader(id) => member::note(state, step, *id),
    }
}

impl Step<'_> {
    /// Checks `if_revision` against a record's own revision.
    fn expect_revision(&self, found: Option<Revision>) -> Result<(), Refusal> {
        match self.entry.if_revision {
            Some(wanted) if found.unwrap_or_default() != wanted => Err(refuse(
                RefusalCode::Precondition,
                "if_revision",
                format!(
                    "is {wanted}, but the record is at revision {}; read it again",
                    found.unwrap_or_default()
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Puts a record in place of the one with the same id, and notes both for the audit trail.
    fn put<K, V>(&mut self, map: &mut OrdMap<K, Kept<V>>, id: K, value: V) -> Result<(), Refusal>
    where
        K: Ord + Clone + ToString,
        V: Clone + Serialize,
    {
        self.expect_revision(map.get(&id).map(|kept| kept.revision))?;
        let after = audit::redacted(&value);
        let target = id.to_string();
        let before = map.insert(
            id,
            Kept {
                value,
                revision: self.revision,
            },
        );
        let before = before.map(|kept| audit::redacted(&kept.value));
        self.audit = Some(audit::Touched {
            target,
            before,
            after: Some(after),
        });
        Ok(())
    }

    /// Takes a record out, or refuses when there is none.
    fn take<K, V>(&mut self, map: &mut OrdMap<K, Kept<V>>, id: &K, noun: &str) -> Result<V, Refusal>
    where
        K: Ord + Clone + ToString,
        V: Clone + Serialize,
    {
        let Some(kept) = map.get(id) else {
            return Err(not_found(noun, id.to_string()));
        };
        self.expect_revision(Some(kept.revision))?;
        let kept = map.remove(id).expect("it was there a line ago");
        let before = Some(audit::redacted(&kept.value));
        self.audit = Some(audit::Touched {
            target: id.to_string(),
            before,
            after: None,
        });
        Ok(kept.value)
    }
}

fn refuse(code: RefusalCode, field: &str, detail: impl Into<String>) -> Refusal {
    Refusal {
        code,
        field: Some(field.to_owned()),
        detail: detail.into(),
    }
}

fn not_found(noun: &str, id: impl ToString) -> Refusal {
    Refusal {
        code: RefusalCode::NotFound,
        field: None,
        detail: format!("{noun} `{}` does not exist", id.to_string()),
    }
}

/// Refuses a body field that names something that does not exist.
fn must_exist(there: bool, field: &str, noun: &str, id: impl ToString) -> Result<(), Refusal> {
    if there {
        return Ok(());
    }
    Err(refuse(
        RefusalCode::Invalid,
        field,
        format!("names {noun} `{}`, which does not exist", id.to_string()),
    ))
}

/// Refuses the removal of something that is still referred to.
fn must_be_unused(user: Option<String>, noun: &str) -> Result<(), Refusal> {
    match user {
        None => Ok(()),
        Some(user) => Err(Refusal {
            code: RefusalCode::Conflict,
            field: None,
            detail: format!("this {noun} is still used by {user}; remove that first"),
        }),
    }
}

#[cfg(test)]
pub(crate) mod lease_samples;
#[cfg(test)]
mod measure;
#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;
