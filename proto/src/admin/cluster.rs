//! Admins, join tokens, nodes, replicas, audit records.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tollway_shared::ids::Revision;
use utoipa::ToSchema;

use super::text::{self, SecretText, Text, mirror};
use crate::command;

mirror! {
    /// What an admin may do.
    Role = command::Role {
        /// Everything, including other admins.
        Owner "owner",
        /// Catalog, tenants, keys, budgets, notices.
        Admin "admin",
        /// Cluster members and join tokens.
        Operator "operator",
        /// Reads.
        Viewer "viewer",
    }
}

/// A new admin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AdminCreate {
    /// Its id.
    pub id: text::AdminId,
    /// For people; default: the id.
    #[serde(default)]
    pub name: String,
    /// What it may do.
    pub role: Role,
}

/// Who may use the admin API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Admin {
    /// Its id.
    pub id: text::AdminId,
    /// For people.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// The last four characters of its key.
    pub last4: String,
    /// When it was made.
    pub created_at: text::Instant,
    /// The revision of the last change of this record; what `if_revision` is compared with.
    pub revision: u64,
}

impl Admin {
    /// The JSON form of a stored admin.
    pub fn of(admin: &command::Admin, revision: Revision) -> Self {
        let command::Admin {
            id,
            name,
            role,
            digest: _,
            pepper_version: _,
            last4,
            created_at,
        } = admin.clone();
        Self {
            id: Text(id),
            name,
            role: role.into(),
            last4,
            created_at: Text(created_at),
            revision: revision.0,
        }
    }
}

/// A new admin and its key, shown this once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AdminCreated {
    /// The key itself. It is not stored and cannot be shown again, except to a retry with the same `Idempotency-Key`.
    pub key: SecretText,
    /// Its record.
    #[serde(flatten)]
    pub record: Admin,
}

/// What a join token lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JoinKind {
    /// A control-plane member.
    Replica,
    /// A data-plane member.
    Node,
}

/// Longest life of a join token, in seconds: seven days.
pub const JOIN_TTL_SECONDS_MAX: u32 = 7 * 86_400;

fn an_hour() -> u32 {
    3_600
}

/// A new join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinTokenCreate {
    /// What it lets in.
    pub kind: JoinKind,
    /// The region of the node; for nodes only.
    #[serde(default)]
    pub region: Option<text::Region>,
    /// How long it may be used, in seconds; default: an hour, at most seven days.
    #[serde(default = "an_hour")]
    pub ttl_seconds: u32,
}

/// A join token as it may be shown: everything but its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinToken {
    /// SHA-256 of the token's text, in hex.
    pub digest: String,
    /// What it lets in.
    pub kind: JoinKind,
    /// The region of the node; for nodes only.
    pub region: Option<text::Region>,
    /// From when it is refused.
    pub expires_at: text::Instant,
}

impl JoinToken {
    /// The JSON form of a stored token.
    pub fn of(token: &command::JoinToken) -> Self {
        let command::JoinToken {
            digest,
            kind,
            expires_at,
        } = token.clone();
        let (kind, region) = match kind {
            command::JoinKind::Replica => (JoinKind::Replica, None),
            command::JoinKind::Node(region) => (JoinKind::Node, Some(Text(region))),
        };
        Self {
            digest: hex(&digest),
            kind,
            region,
            expires_at: Text(expires_at),
        }
    }
}

/// A new join token, shown this once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinTokenCreated {
    /// What to give to `join --token`. It can be used once.
    pub token: SecretText,
    /// Its record.
    #[serde(flatten)]
    pub record: JoinToken,
}

/// A data-plane member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// Its id.
    pub id: text::NodeId,
    /// Where it runs.
    pub region: text::Region,
    /// When it joined.
    pub joined_at: text::Instant,
    /// The revision it runs on, when it is connected.
    pub revision: Option<u64>,
    /// Its connection, when it has one to any replica that answered.
    pub connection: Option<NodeConnection>,
}

/// A connected node, as the replica that serves it sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeConnection {
    /// The node.
    pub node: String,
    /// Where it runs.
    pub region: String,
    /// The replica that serves it.
    pub replica: u64,
    /// The version of its binary.
    pub version: String,
    /// The revision it runs on.
    pub revision: u64,
    /// How many revisions it is behind.
    pub lag: u64,
    /// Since when it is connected.
    pub connected_at: text::Instant,
    /// When it last acknowledged a revision.
    pub last_ack_at: Option<text::Instant>,
    /// Why it last refused a snapshot, if it did.
    pub last_refusal: Option<String>,
}

/// The nodes, and which replicas could not be asked for theirs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Nodes {
    /// Registered nodes, by id.
    pub data: Vec<Node>,
    /// Pass as `after` to read on; `null` on the last page.
    pub next: Option<String>,
    /// Replicas that did not answer in time: nodes connected to them look disconnected here.
    pub unanswered: Vec<u64>,
    /// The revision that was read.
    pub revision: u64,
}

/// A control-plane member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Replica {
    /// Its id; never reused.
    pub id: u64,
    /// `host:port` of Raft and push.
    pub peer_address: String,
    /// Base URL of its admin API.
    pub admin_url: String,
    /// Whether it votes; a replica that is catching up does not yet.
    pub voter: bool,
    /// The last log index it has stored, as its leader knows it.
    pub matched: Option<u64>,
}

/// The cluster as the asked replica sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cluster {
    /// Its id.
    pub cluster: text::ClusterId,
    /// The replica that answered.
    pub replica: u64,
    /// The leader, when one is known.
    pub leader: Option<u64>,
    /// The term.
    pub term: u64,
    /// The last log index of the replica that answered; 0 when there is none.
    pub last_log: u64,
    /// The last log index it has applied.
    pub applied: u64,
    /// The log index of the last change that nodes can see.
    pub revision: u64,
    /// The behaviour that is switched on.
    pub version: u32,
    /// The version of the replica's binary.
    pub binary: String,
    /// Its members.
    pub members: Vec<Replica>,
}

/// Who leads after a transfer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LeaderTransfer {}

/// A request to join. Authenticated by its token, not by an admin key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// The join token.
    pub token: SecretText,
    /// The certificate request, PEM. Its key stays where it was made.
    pub request_pem: String,
    /// The node that joins; absent for a replica.
    #[serde(default)]
    pub node: Option<JoiningNode>,
    /// The replica's addresses; absent for a node.
    #[serde(default)]
    pub replica: Option<JoiningReplica>,
}

/// A node that joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoiningNode {
    /// Its id.
    pub id: text::NodeId,
    /// Where it runs; default: the token's region.
    #[serde(default)]
    pub region: Option<text::Region>,
}

/// A replica that joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoiningReplica {
    /// `host:port` of Raft and push.
    pub peer_address: String,
    /// Base URL of its admin API.
    pub admin_url: String,
}

/// What a member needs from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Joined {
    /// The cluster's id.
    pub cluster: text::ClusterId,
    /// The member's certificate, PEM.
    pub certificate_pem: String,
    /// The authority's certificate, PEM.
    pub authority_pem: String,
    /// The id of the replica that joined; absent for a node.
    pub replica_id: Option<u64>,
    /// The region of the node that joined; absent for a replica.
    pub region: Option<text::Region>,
    /// The control plane's members.
    pub members: Vec<Replica>,
    /// What the member must keep secret.
    pub secrets: JoinSecrets,
}

/// What a new member must keep secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JoinSecrets {
    /// For a node: its region's key and the peppers of API keys, all base64.
    Node {
        /// Opens pushed credentials.
        region_key_b64: SecretText,
        /// By version.
        peppers: BTreeMap<u32, SecretText>,
    },
    /// For a replica.
    Replica {
        /// The cluster's sealing key, base64.
        sealing_key_b64: SecretText,
    },
}

/// One admin write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditRecord {
    /// Dense, from 1.
    pub sequence: u64,
    /// When.
    pub at: text::Instant,
    /// Who.
    pub actor: String,
    /// What: `key.revoke`, `price.add`, ….
    pub action: String,
    /// On which record.
    pub target: String,
    /// The log index of the write.
    pub revision: u64,
    /// The record before, without secrets.
    #[schema(value_type = Object)]
    pub before: Option<serde_json::Value>,
    /// The record after, without secrets.
    #[schema(value_type = Object)]
    pub after: Option<serde_json::Value>,
    /// The hash of the record before this one, in hex.
    pub previous: String,
    /// SHA-256 of this record, in hex.
    pub hash: String,
}

/// Whether the audit trail is as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditVerdict {
    /// Whether every record's hash matches the next record's memory of it.
    pub intact: bool,
    /// The first record that does not match, if any.
    pub first_broken: Option<u64>,
    /// How many writes there have been.
    pub count: u64,
    /// The hash of the newest record, in hex. Keep it elsewhere to notice a rewritten trail.
    pub head: String,
    /// The revision that was read.
    pub revision: u64,
}

/// Bytes as lower-case hex digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
