//! Organizations, teams, projects, API keys.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tollway_shared::ids::{self, Revision};
use tollway_shared::tenant as stored;
use tollway_shared::time::UnixMillis;
use utoipa::ToSchema;

use super::catalog::named;
use super::text::{self, SecretText, Text, noun};

fn yes() -> bool {
    true
}

noun! {
    /// What to make of an organization.
    put OrganizationPut;
    /// The account that is billed.
    record Organization {
        /// Its id.
        id: text::OrganizationId,
    }
    fields {
        /// For people; default: the id.
        #[serde(default)] name: String,
        /// A disabled organization's keys are refused; default: enabled.
        #[serde(default = "yes")] enabled: bool,
        /// Markup on the list price in hundredths of a percent, or a discount when below zero: -10000 to 100000; default: none. It holds
        /// for requests that are admitted from then on.
        #[serde(default)] adjustment_bps: i32,
    }
}

impl OrganizationPut {
    /// The stored form under this id.
    pub fn into_stored(self, id: ids::OrganizationId) -> stored::Organization {
        let Self {
            name,
            enabled,
            adjustment_bps,
        } = self;
        stored::Organization {
            name: named(name, &id),
            id,
            enabled,
            adjustment_bps,
        }
    }
}

impl Organization {
    /// The JSON form of a stored organization.
    pub fn of(organization: &stored::Organization, revision: Revision) -> Self {
        let stored::Organization {
            id,
            name,
            enabled,
            adjustment_bps,
        } = organization.clone();
        Self {
            id: Text(id),
            name,
            enabled,
            adjustment_bps,
            revision: revision.0,
        }
    }
}

noun! {
    /// What to make of a team.
    put TeamPut;
    /// A part of an organization.
    record Team {
        /// Its id.
        id: text::TeamId,
    }
    fields {
        /// Where it belongs; fixed once made.
        organization: text::OrganizationId,
        /// For people; default: the id.
        #[serde(default)] name: String,
    }
}

impl TeamPut {
    /// The stored form under this id.
    pub fn into_stored(self, id: ids::TeamId) -> stored::Team {
        let Self { organization, name } = self;
        stored::Team {
            name: named(name, &id),
            id,
            organization: organization.0,
        }
    }
}

impl Team {
    /// The JSON form of a stored team.
    pub fn of(team: &stored::Team, revision: Revision) -> Self {
        let stored::Team {
            id,
            organization,
            name,
        } = team.clone();
        Self {
            id: Text(id),
            organization: Text(organization),
            name,
            revision: revision.0,
        }
    }
}

noun! {
    /// What to make of a project.
    put ProjectPut;
    /// What keys are made for.
    record Project {
        /// Its id.
        id: text::ProjectId,
    }
    fields {
        /// Where it belongs; fixed once made.
        organization: text::OrganizationId,
        /// The team inside the organization, if any.
        #[serde(default)] team: Option<text::TeamId>,
        /// For people; default: the id.
        #[serde(default)] name: String,
        /// A disabled project's keys are refused; default: enabled.
        #[serde(default = "yes")] enabled: bool,
        /// Names and values for chargeback, at most 16: see `group_by` of usage. A name has 1 to 63 letters, digits, `.`, `_` and `-`; a
        /// value 1 to 128 bytes.
        #[serde(default)] labels: BTreeMap<String, String>,
    }
}

impl ProjectPut {
    /// The stored form under this id.
    pub fn into_stored(self, id: ids::ProjectId) -> stored::Project {
        let Self {
            organization,
            team,
            name,
            enabled,
            labels,
        } = self;
        stored::Project {
            name: named(name, &id),
            id,
            organization: organization.0,
            team: team.map(|team| team.0),
            enabled,
            labels,
        }
    }
}

impl Project {
    /// The JSON form of a stored project.
    pub fn of(project: &stored::Project, revision: Revision) -> Self {
        let stored::Project {
            id,
            organization,
            team,
            name,
            enabled,
            labels,
        } = project.clone();
        Self {
            id: Text(id),
            organization: Text(organization),
            team: team.map(Text),
            name,
            enabled,
            labels,
            revision: revision.0,
        }
    }
}

/// A new API key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyCreate {
    /// The project it is made for.
    pub project: text::ProjectId,
    /// Its public id; default: a new one.
    #[serde(default)]
    pub id: Option<text::ApiKeyId>,
    /// For people; default: the id.
    #[serde(default)]
    pub name: String,
    /// Models it may ask for; default: all.
    #[serde(default)]
    pub models: Vec<text::ModelId>,
    /// From when it is refused; default: never.
    #[serde(default)]
    pub expires_at: Option<text::Instant>,
    /// Names and values for chargeback, as a project's; where both have a name, the key's value holds.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Labels in place of those that an API key has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyLabels {
    /// All of them.
    pub labels: BTreeMap<String, String>,
}

/// What the key itself gave: its digest and last four characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyMark {
    /// HMAC-SHA256 of the key's text.
    pub digest: stored::KeyDigest,
    /// Which pepper made the digest.
    pub pepper_version: u32,
    /// The last four characters.
    pub last4: String,
}

impl KeyCreate {
    /// The stored form under this id.
    pub fn into_stored(self, id: ids::ApiKeyId, mark: KeyMark, now: UnixMillis) -> stored::ApiKey {
        let Self {
            project,
            id: _,
            name,
            models,
            expires_at,
            labels,
        } = self;
        stored::ApiKey {
            name: named(name, &id),
            id,
            project: project.0,
            digest: mark.digest,
            pepper_version: mark.pepper_version,
            last4: mark.last4,
            models: models.into_iter().map(|model| model.0).collect(),
            created_at: now,
            expires_at: expires_at.map(|at| at.0),
            revoked_at: None,
            rotated_from: None,
            labels,
        }
    }
}

/// How to replace a key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyRotate {
    /// How long the old key still works, in seconds; default: not at all.
    #[serde(default)]
    pub grace_seconds: u32,
    /// From when the new key is refused; default: never.
    #[serde(default)]
    pub expires_at: Option<text::Instant>,
}

/// An API key as it may be shown: everything but the key itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Key {
    /// Its public id.
    pub id: text::ApiKeyId,
    /// The project it is made for.
    pub project: text::ProjectId,
    /// For people.
    pub name: String,
    /// The last four characters of the key.
    pub last4: String,
    /// Models it may ask for; empty = all.
    pub models: Vec<text::ModelId>,
    /// When it was made.
    pub created_at: text::Instant,
    /// From when it is refused, if ever.
    pub expires_at: Option<text::Instant>,
    /// When it was revoked, if it was.
    pub revoked_at: Option<text::Instant>,
    /// The key it replaces, when it came from a rotation.
    pub rotated_from: Option<text::ApiKeyId>,
    /// Names and values for chargeback.
    pub labels: BTreeMap<String, String>,
    /// The revision of the last change of this record; what `if_revision` is compared with.
    pub revision: u64,
}

impl Key {
    /// The JSON form of a stored key.
    pub fn of(key: &stored::ApiKey, revision: Revision) -> Self {
        let stored::ApiKey {
            id,
            project,
            name,
            digest: _,
            pepper_version: _,
            last4,
            models,
            created_at,
            expires_at,
            revoked_at,
            rotated_from,
            labels,
        } = key.clone();
        Self {
            id: Text(id),
            project: Text(project),
            name,
            last4,
            models: models.into_iter().map(Text).collect(),
            created_at: Text(created_at),
            expires_at: expires_at.map(Text),
            revoked_at: revoked_at.map(Text),
            rotated_from: rotated_from.map(Text),
            labels,
            revision: revision.0,
        }
    }
}

/// A new key, shown this once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyCreated {
    /// The key itself. It is not stored and cannot be shown again, except to a retry with the same `Idempotency-Key`.
    pub key: SecretText,
    /// Its record.
    #[serde(flatten)]
    pub record: Key,
}
