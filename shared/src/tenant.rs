//! Who asks and who pays: organization → team → project → API key.

use serde::{Deserialize, Serialize};

use crate::ids::{ApiKeyId, ModelId, OrganizationId, ProjectId, TeamId};
use crate::labels::Labels;
use crate::time::UnixMillis;

/// The account that is billed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Organization {
    /// Its id.
    pub id: OrganizationId,
    /// For people.
    pub name: String,
    /// A disabled organization's keys are refused.
    pub enabled: bool,
    /// Markup (above zero) or discount on the list price, hundredths of a percent ([`crate::bill`]).
    pub adjustment_bps: i32,
}

/// A part of an organization.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Team {
    /// Its id.
    pub id: TeamId,
    /// Where it belongs.
    pub organization: OrganizationId,
    /// For people.
    pub name: String,
}

/// What keys are made for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Project {
    /// Its id.
    pub id: ProjectId,
    /// Where it belongs.
    pub organization: OrganizationId,
    /// The team inside the organization, if any.
    pub team: Option<TeamId>,
    /// For people.
    pub name: String,
    /// A disabled project's keys are refused.
    pub enabled: bool,
    /// For reports; nodes see none.
    pub labels: Labels,
}

/// The digest under which an API key is stored: HMAC-SHA256 of its text under a pepper.
pub type KeyDigest = [u8; 32];

/// An inference key. The key itself is shown once and never stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKey {
    /// Its public id.
    pub id: ApiKeyId,
    /// Where it belongs.
    pub project: ProjectId,
    /// For people.
    pub name: String,
    /// HMAC-SHA256 of the key's text.
    pub digest: KeyDigest,
    /// Which pepper made the digest.
    pub pepper_version: u32,
    /// The last four characters of the key, for people.
    pub last4: String,
    /// Models this key may ask for; empty = all.
    pub models: Vec<ModelId>,
    /// When it was made.
    pub created_at: UnixMillis,
    /// From when it is refused, if ever.
    pub expires_at: Option<UnixMillis>,
    /// When it was revoked, if it was.
    pub revoked_at: Option<UnixMillis>,
    /// The key it replaces, when it came from a rotation.
    pub rotated_from: Option<ApiKeyId>,
    /// For reports, beside and above the project's; nodes see none.
    pub labels: Labels,
}

/// Most times that a key and its successors may be rotated, one after the other: the bound of [`line()`].
pub const ROTATIONS_MAX: usize = 1_000;

/// A key and those that it came from by rotation, the newest first. A budget on any of them holds for it.
///
/// - `rotated_from`: the key that a key replaces, if it came from a rotation.
pub fn line(
    key: ApiKeyId,
    rotated_from: impl Fn(&ApiKeyId) -> Option<ApiKeyId>,
) -> impl Iterator<Item = ApiKeyId> {
    std::iter::successors(Some(key), move |key| rotated_from(key)).take(ROTATIONS_MAX + 1)
}

/// The whole chain that a request is accounted to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TenantPath {
    /// The root.
    pub organization: OrganizationId,
    /// The team, when the project is in one.
    pub team: Option<TeamId>,
    /// The project.
    pub project: ProjectId,
    /// The key.
    pub key: ApiKeyId,
}
