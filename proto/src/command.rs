//! Raft log entries: what was asked, by whom, and what came of it.
//!
//! The control plane's leader stamps `at`; whoever minted the command put every id, digest and ciphertext into it, so that
//! applying an entry needs neither a clock nor randomness.

mod spend;

use std::fmt;

use serde::{Deserialize, Serialize};
use tollway_shared::budget::Budget;
use tollway_shared::budget::terms::Raise;
use tollway_shared::catalog::{Credential, Endpoint, Model, PriceVersion, Provider};
use tollway_shared::credit::{Billing, CreditMove, Fees};
use tollway_shared::ids::{
    AdminId, ApiKeyId, BudgetId, ClusterId, CredentialId, EndpointId, Incarnation, ModelId, NodeId, NoticeId,
    OrganizationId, PriceId, ProjectId, ProviderId, Region, ReplicaId, Revision, TeamId,
};
use tollway_shared::labels::Labels;
use tollway_shared::lease::grantor::Roll;
use tollway_shared::money::NanoUsd;
use tollway_shared::notice::Notice;
use tollway_shared::seal::Sealed;
use tollway_shared::tenant::{ApiKey, KeyDigest, Organization, Project, Team};
use tollway_shared::time::UnixMillis;
use tollway_shared::window::Span;

pub use self::spend::{RecordSpend, Spent, UsageCell, UsageSums};
use crate::lease::{LeaseAnswer, LeaseCall};

/// A log entry in its stored form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoredEntry {
    /// The first released shape.
    V1(Entry),
}

impl fmt::Display for StoredEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::V1(entry) = self;
        write!(f, "{} by {}", entry.command.name(), entry.actor)
    }
}

/// One proposed change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The leader's wall time when it proposed the entry.
    pub at: UnixMillis,
    /// Who asked: an admin's id, or `system` for the cluster itself.
    pub actor: String,
    /// The caller's idempotency key, if it sent one.
    pub idempotency: Option<Idempotency>,
    /// Apply only if the touched resource was last changed at this revision.
    pub if_revision: Option<Revision>,
    /// What to do.
    pub command: Command,
}

/// A caller's wish that a retried write happens once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    /// The key, at most 255 bytes; remembered for 24 hours per actor.
    pub key: String,
    /// SHA-256 of method, path and body: the same key with another request is refused.
    pub request: [u8; 32],
    /// What the first answer's body was built from and cannot be read back from the state (a new key, shown once), sealed under
    /// the cluster's key; a retry gets it again.
    pub answer: Option<Sealed>,
}

/// What an admin may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Everything, including other admins.
    Owner,
    /// Catalog, tenants, keys, budgets, notices.
    Admin,
    /// Cluster members and join tokens.
    Operator,
    /// Reads.
    Viewer,
}

/// Who may use the admin API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admin {
    /// Its id.
    pub id: AdminId,
    /// For people.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// HMAC-SHA256 of its admin key.
    pub digest: KeyDigest,
    /// Which pepper made the digest.
    pub pepper_version: u32,
    /// The last four characters of the key.
    pub last4: String,
    /// When it was made.
    pub created_at: UnixMillis,
}

/// What a join token lets in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JoinKind {
    /// A control-plane member.
    Replica,
    /// A data-plane member of this region.
    Node(Region),
}

/// A single-use permission to join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// SHA-256 of the token's text.
    pub digest: [u8; 32],
    /// What it lets in.
    pub kind: JoinKind,
    /// From when it is refused.
    pub expires_at: UnixMillis,
}

/// A data-plane member, as registered when it joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its id.
    pub id: NodeId,
    /// Where it runs.
    pub region: Region,
    /// When it joined.
    pub joined_at: UnixMillis,
}

/// A control-plane member: its addresses, kept in the Raft membership.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// `host:port` of Raft and push (mutual TLS).
    pub peer_address: String,
    /// Base URL of its admin API.
    pub admin_url: String,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.peer_address)
    }
}

/// Credit that is bought, given back or corrected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveCredit {
    /// Whose.
    pub organization: OrganizationId,
    /// What.
    pub made: CreditMove,
    /// The payment's own id, or one of ours: it moves money once.
    pub reference: String,
    /// The reference of the payment that is given back, where that is known.
    pub payment: Option<String>,
    /// Why, for people.
    pub reason: String,
}

/// Credit that is stranded: spent by the account of nodes that are gone, and counted by nobody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseCredit {
    /// Whose.
    pub organization: OrganizationId,
    /// How much.
    pub amount: NanoUsd,
    /// Why, for people.
    pub reason: String,
}

/// How an organization pays from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutBilling {
    /// Which.
    pub organization: OrganizationId,
    /// How.
    pub billing: Billing,
}

/// A budget to make or replace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutBudget {
    /// What it says. Its raises are not taken from here: those it has stay.
    pub budget: Budget,
    /// The window around now by its cycle; the leader puts it in, and only the leader looks into the rules of time zones.
    pub window: Option<Span>,
}

impl From<Budget> for PutBudget {
    /// Without a window, for the leader to put in.
    fn from(budget: Budget) -> Self {
        Self { budget, window: None }
    }
}

/// The first entry of every cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitCluster {
    /// Its id.
    pub cluster: ClusterId,
    /// The certificate authority's certificate, PEM.
    pub authority_pem: String,
    /// The authority's private key (PKCS#8 PEM), sealed under the cluster's key.
    pub authority_key: Sealed,
    /// The first owner.
    pub admin: Admin,
}

/// What can be done to the replicated state.
///
/// The order of variants is on disk: append only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Makes the cluster.
    InitCluster(InitCluster),
    /// Makes or replaces a provider.
    PutProvider(Provider),
    /// Removes a provider that nothing refers to.
    RemoveProvider(ProviderId),
    /// Makes or replaces a credential; its `version` must be one above the stored one.
    PutCredential(Credential),
    /// Removes a credential, by its key: `provider/id`.
    RemoveCredential(CredentialId),
    /// Makes or replaces a model.
    PutModel(Model),
    /// Removes a model that nothing refers to.
    RemoveModel(ModelId),
    /// Makes or replaces an endpoint.
    PutEndpoint(Endpoint),
    /// Removes an endpoint and its prices.
    RemoveEndpoint(EndpointId),
    /// Adds a price version.
    AddPrice(PriceVersion),
    /// Takes back a price version that is not yet in force.
    RemovePrice(PriceId),
    /// Makes or replaces an organization.
    PutOrganization(Organization),
    /// Removes an organization without projects and teams.
    RemoveOrganization(OrganizationId),
    /// Makes or replaces a team.
    PutTeam(Team),
    /// Removes a team without projects.
    RemoveTeam(TeamId),
    /// Makes or replaces a project.
    PutProject(Project),
    /// Removes a project without keys that could still be used.
    RemoveProject(ProjectId),
    /// Makes an API key.
    CreateKey(ApiKey),
    /// Makes a key that replaces another; the old one ends at `old_expires_at`.
    RotateKey {
        /// The key to replace.
        old: ApiKeyId,
        /// Its end: now, or after a grace period.
        old_expires_at: UnixMillis,
        /// The replacement.
        new: ApiKey,
    },
    /// Refuses a key from now on.
    RevokeKey(ApiKeyId),
    /// Makes or replaces a budget.
    PutBudget(PutBudget),
    /// Removes a budget.
    RemoveBudget(BudgetId),
    /// Makes or replaces a notice.
    PutNotice(Notice),
    /// Removes a notice.
    RemoveNotice(NoticeId),
    /// Makes an admin.
    CreateAdmin(Admin),
    /// Removes an admin; the last owner stays.
    RemoveAdmin(AdminId),
    /// Makes a join token.
    CreateJoinToken(JoinToken),
    /// Uses a join token up: registers a node, or reserves a replica id.
    Join {
        /// SHA-256 of the token's text.
        token: [u8; 32],
        /// The node that joins; `None` for a replica, whose id the state hands out.
        node: Option<NodeRecord>,
    },
    /// Forgets a node: its certificate is refused from then on.
    RemoveNode(NodeId),
    /// Adds a folded stretch of usage.
    RecordSpend(RecordSpend),
    /// Switches on behaviour of a newer version, once every replica runs it.
    SetClusterVersion(u32),
    /// Refuses a replica's certificate from when it is no member any more; the members change right after.
    RemoveReplica(ReplicaId),
    /// Notes who had a replica made a voter.
    PromoteReplica(ReplicaId),
    /// Notes who had this leader hand over.
    TransferLeader(ReplicaId),
    /// Raises a budget's limit until an instant.
    RaiseBudget {
        /// Which.
        budget: BudgetId,
        /// How much, until when, by whom and why.
        raise: Raise,
    },
    /// Takes all raises of a budget back.
    ClearRaises(BudgetId),
    /// Begins windows of budgets; the leader has worked them out.
    RollBudgets(Vec<Roll>),
    /// What a node says about leases.
    Lease {
        /// Who says it, by its certificate.
        node: NodeId,
        /// What.
        call: LeaseCall,
    },
    /// Declares an incarnation of a node dead: it gets nothing any more, and what it has out stays charged.
    FenceIncarnation(Incarnation),
    /// Frees what a fenced incarnation has out, on somebody's word that it will spend no more.
    ReleaseIncarnation(Incarnation),
    /// Forgets incarnations that were closed before this.
    ForgetIncarnations {
        /// Messages of theirs must not be on their way any more.
        before: UnixMillis,
    },
    /// Moves credit of an organization.
    MoveCredit(MoveCredit),
    /// Sets how an organization pays.
    PutBilling(PutBilling),
    /// Sets what buying credits costs.
    PutFees(Fees),
    /// Sets whose messages about payments are believed.
    PutPaymentSecrets(Vec<Sealed>),
    /// Frees credit that lives of nodes have spent by their own account and the ledger has not counted, on somebody's word that it
    /// never will.
    ReleaseCredit(ReleaseCredit),
    /// Sets the labels of an API key.
    LabelKey {
        /// Which.
        key: ApiKeyId,
        /// All of them.
        labels: Labels,
    },
}

impl Command {
    /// A stable name for the audit trail and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::InitCluster(_) => "cluster.init",
            Self::PutProvider(_) => "provider.put",
            Self::RemoveProvider(_) => "provider.remove",
            Self::PutCredential(_) => "credential.put",
            Self::RemoveCredential(_) => "credential.remove",
            Self::PutModel(_) => "model.put",
            Self::RemoveModel(_) => "model.remove",
            Self::PutEndpoint(_) => "endpoint.put",
            Self::RemoveEndpoint(_) => "endpoint.remove",
            Self::AddPrice(_) => "price.add",
            Self::RemovePrice(_) => "price.remove",
            Self::PutOrganization(_) => "organization.put",
            Self::RemoveOrganization(_) => "organization.remove",
            Self::PutTeam(_) => "team.put",
            Self::RemoveTeam(_) => "team.remove",
            Self::PutProject(_) => "project.put",
            Self::RemoveProject(_) => "project.remove",
            Self::CreateKey(_) => "key.create",
            Self::RotateKey { .. } => "key.rotate",
            Self::RevokeKey(_) => "key.revoke",
            Self::PutBudget(_) => "budget.put",
            Self::RemoveBudget(_) => "budget.remove",
            Self::PutNotice(_) => "notice.put",
            Self::RemoveNotice(_) => "notice.remove",
            Self::CreateAdmin(_) => "admin.create",
            Self::RemoveAdmin(_) => "admin.remove",
            Self::CreateJoinToken(_) => "join_token.create",
            Self::Join { .. } => "cluster.join",
            Self::RemoveNode(_) => "node.remove",
            Self::RecordSpend(_) => "spend.record",
            Self::SetClusterVersion(_) => "cluster.set_version",
            Self::RemoveReplica(_) => "replica.remove",
            Self::PromoteReplica(_) => "replica.promote",
            Self::TransferLeader(_) => "leader.transfer",
            Self::RaiseBudget { .. } => "budget.raise",
            Self::ClearRaises(_) => "budget.clear_raises",
            Self::RollBudgets(_) => "budget.roll",
            Self::Lease { call, .. } => match call {
                LeaseCall::Enlist(_) => "lease.enlist",
                LeaseCall::Ask(_) => "lease.ask",
                LeaseCall::Report(_) => "lease.report",
                LeaseCall::Closing(_) => "lease.close",
            },
            Self::FenceIncarnation(_) => "incarnation.fence",
            Self::ReleaseIncarnation(_) => "incarnation.release",
            Self::ForgetIncarnations { .. } => "incarnation.forget",
            Self::MoveCredit(_) => "credit.move",
            Self::PutBilling(_) => "billing.put",
            Self::PutFees(_) => "fees.put",
            Self::PutPaymentSecrets(_) => "payments.put_secrets",
            Self::LabelKey { .. } => "key.label",
            Self::ReleaseCredit(_) => "credit.release",
        }
    }
}

/// What came of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It was applied.
    Done(Receipt),
    /// It was refused; the state is as before.
    Refused(Refusal),
}

/// The proof that an entry was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The revision at which it took effect: what nodes report once they run on it.
    pub revision: Revision,
    /// The idempotent answer of the first time, when this was a retry.
    pub replayed: Option<Replay>,
    /// The replica id that a join reserved.
    pub replica: Option<ReplicaId>,
    /// What the node is told.
    pub lease: Option<Box<LeaseAnswer>>,
}

/// A retry of an entry that had been applied before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replay {
    /// The sealed part of the first answer, if there was one.
    pub answer: Option<Sealed>,
}

/// Why an entry was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{detail}")]
pub struct Refusal {
    /// The class, which decides the HTTP status.
    pub code: RefusalCode,
    /// The field that is wrong, as the caller wrote it.
    pub field: Option<String>,
    /// What is wrong and what to do.
    pub detail: String,
}

/// The classes of refusals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalCode {
    /// What is changed does not exist: 404.
    NotFound,
    /// It exists already, or something still refers to it: 409.
    Conflict,
    /// `if_revision` does not match: 412.
    Precondition,
    /// A value that can only be judged against the state: 422.
    Invalid,
    /// The idempotency key was used for another request: 422.
    IdempotencyReused,
    /// A join token that is unknown, used or expired: 403.
    Forbidden,
}
