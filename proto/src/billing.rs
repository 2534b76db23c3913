//! Aggregates by organization and hour, as JSON on a compacted topic, for readers that need sums and not requests.
//!
//! Schema: `billing-aggregate.v1.schema.json`; channel: `asyncapi.yaml`. A record is the whole sum of its hour, never a difference: it
//! replaces whatever its key had before, and reading it twice changes nothing. [`Covers`] says which usage events are in it.

use serde::{Deserialize, Serialize};
use tollway_shared::ids::{ClusterId, OrganizationId, Revision};
use tollway_shared::money::NanoUsd;
use tollway_shared::time::UnixMillis;
use tollway_shared::tokens::TokenCounts;

use crate::usage::{CONTENT_TYPE, UnixMillisText};

/// The topic of aggregates.
pub const TOPIC: &str = "tollway.billing.v1";
/// CloudEvents `type`.
pub const EVENT_TYPE: &str = "io.tollway.billing.aggregated.v1";
/// CloudEvents `dataschema`.
pub const DATA_SCHEMA: &str = "urn:tollway:schema:billing-aggregate:v1";

/// Which usage events of an organization an aggregate has: all of its hour that lie in this stretch of their one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Covers {
    /// The partition of `tollway.usage.v1` that the organization's events lie in.
    pub partition: i32,
    /// The first offset. Above 0, older events were gone before they were summed here.
    pub from_offset: i64,
    /// The offset after the last one. Of two records of a key the one with the higher number is the newer.
    pub to_offset: i64,
}

/// What an organization used in an hour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BillingAggregate {
    /// The cluster.
    pub cluster: ClusterId,
    /// Who pays.
    pub organization: OrganizationId,
    /// When the hour begins; requests count to the hour in which they started.
    pub hour: UnixMillisText,
    /// What is in it.
    pub covers: Covers,
    /// The index of the replicated log at which the cluster's budgets and sums had these events, too.
    pub revision: Revision,
    /// Requests that reached a provider.
    pub requests: u64,
    /// Those among them whose counts are estimates.
    pub estimated: u64,
    /// Tokens by kind.
    pub tokens: TokenCounts,
    /// List price.
    pub charge: NanoUsd,
    /// Markups less discounts.
    pub adjustment: NanoUsd,
    /// What the tenant owes.
    pub billed: NanoUsd,
}

impl BillingAggregate {
    /// The record's key: `organization/hour`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.organization, self.hour.0.rfc3339())
    }

    /// The CloudEvents attributes and content type, as Kafka headers in binary mode. `at`: when it is published.
    pub fn headers(&self, at: UnixMillis) -> [(&'static str, String); 9] {
        [
            ("content-type", CONTENT_TYPE.into()),
            ("ce_specversion", "1.0".into()),
            ("ce_id", format!("{}@{}", self.key(), self.covers.to_offset)),
            ("ce_source", format!("/{}/control", self.cluster)),
            ("ce_type", EVENT_TYPE.into()),
            ("ce_time", at.rfc3339()),
            ("ce_subject", self.key()),
            ("ce_dataschema", DATA_SCHEMA.into()),
            ("ce_partitionkey", self.organization.to_string()),
        ]
    }
}
