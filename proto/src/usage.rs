//! The usage event: one per request that reached a provider, as JSON on Kafka and in the embedded usage log.
//!
//! Schema: `usage-event.v1.schema.json`; channel: `asyncapi.yaml`. Money is decimal text, times are RFC 3339, ids are text.
//! Consumers must ignore fields they do not know. Identity is (`writer`, `partition`, `sequence`), sequences being dense per
//! writer and partition: a repeat has a sequence not above the last one seen, a gap is lost data.

use serde::{Deserialize, Serialize};
use tollway_shared::bill::{self, Adjustment, Basis, Bill};
use tollway_shared::catalog::Dialect;
use tollway_shared::cost::{self, Charge, Prices};
use tollway_shared::ids::{
    ClusterId, EndpointId, ModelId, NodeId, PriceId, ProviderId, Region, RequestId, Revision, WriterId,
};
use tollway_shared::money::{MoneyFault, NanoUsd};
use tollway_shared::tenant::TenantPath;
use tollway_shared::time::UnixMillis;
use tollway_shared::tokens::TokenCounts;

/// The topic of usage events.
pub const TOPIC: &str = "tollway.usage.v1";
/// CloudEvents `type`.
pub const EVENT_TYPE: &str = "io.tollway.usage.recorded.v1";
/// CloudEvents `dataschema`.
pub const DATA_SCHEMA: &str = "urn:tollway:schema:usage-event:v1";
/// `content-type` of the value.
pub const CONTENT_TYPE: &str = "application/json";

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndState {
    /// The caller got the whole answer.
    Completed,
    /// The caller hung up.
    Cancelled,
    /// No attempt gave an answer, or the answer broke off.
    Failed,
    /// The node died in between; written by its next life.
    Interrupted,
}

/// Where the token counts come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageSource {
    /// The provider reported them.
    Provider,
    /// The provider reported none; counted by our estimator from what was sent and received.
    Estimated,
    /// No attempt was answered, so nothing was used.
    None,
}

/// One attempt at one endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptEntry {
    /// Where.
    pub endpoint: EndpointId,
    /// At whose.
    pub provider: ProviderId,
    /// When it was sent, milliseconds after the request started.
    pub started_ms: u32,
    /// When its first byte came, milliseconds after the request started.
    pub first_byte_ms: Option<u32>,
    /// The provider's HTTP status, if it gave one.
    pub status: Option<u16>,
    /// Why it failed, if it did: `connect`, `timeout`, `status`, ….
    pub fault: Option<String>,
}

/// One request that reached a provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageEvent {
    /// UUIDv7, also CloudEvents `id`.
    pub id: String,
    /// The request's id, which the caller got as `x-tollway-request-id`.
    pub request_id: RequestId,
    /// The writer's incarnation.
    pub writer: WriterId,
    /// The partition of the usage log.
    pub partition: i32,
    /// Dense per writer and partition, from 1.
    pub sequence: u64,
    /// The cluster.
    pub cluster: ClusterId,
    /// The node's region.
    pub region: Region,
    /// The node.
    pub node: NodeId,
    /// When the request arrived.
    pub started_at: UnixMillisText,
    /// When the answer's first byte was sent to the caller.
    pub first_byte_at: Option<UnixMillisText>,
    /// When the request ended.
    pub finished_at: UnixMillisText,
    /// Who pays.
    pub tenant: TenantPath,
    /// The caller's `user` label, at most 128 characters.
    pub user: Option<String>,
    /// What the caller asked for, as it was written.
    pub requested_model: String,
    /// The model that served, after aliases and fallbacks.
    pub model: ModelId,
    /// The endpoint that served, or the last one tried.
    pub endpoint: EndpointId,
    /// Its provider.
    pub provider: ProviderId,
    /// The provider's wire format.
    pub dialect: Dialect,
    /// Whether the caller asked for a stream.
    pub stream: bool,
    /// How it ended.
    pub end: EndState,
    /// The HTTP status that the caller got; 0 when nobody knows, because the node died in between.
    pub status: u16,
    /// Stable fault code, when it failed.
    pub fault: Option<String>,
    /// The provider's finish reason, normalised.
    pub finish_reason: Option<String>,
    /// Tokens by kind.
    pub tokens: TokenCounts,
    /// Where they come from.
    pub usage_source: UsageSource,
    /// Which estimator counted them, when estimated: `bytes4.v2` (four bytes of text are a token), `bytes-learned.v1` (bytes per token
    /// as learned from what the endpoint's provider counted before).
    pub estimator: Option<String>,
    /// The snapshot revision the request was admitted under.
    pub revision: Revision,
    /// The price version in force at admission.
    pub price_version: PriceId,
    /// Its numbers, so that the charge can be recomputed from the event alone.
    pub prices: Prices,
    /// What it costs at list price, line by line.
    pub charge: Charge,
    /// Served with the organization's own credential, so that its provider bills it there.
    pub byok: bool,
    /// The model that served is offered free ([`ModelId::is_free`]).
    pub free: bool,
    /// Markup or discount of the organization at admission.
    pub adjustment: Adjustment,
    /// What the tenant owes: the charge and the adjustment; nothing when `byok` or `free`. A fee for own credentials is not in it, the
    /// ledger decides that.
    pub billed: NanoUsd,
    /// Every attempt, in order.
    pub attempts: Vec<AttemptEntry>,
}

/// An instant that is RFC 3339 text in JSON and a number in stored form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixMillisText(pub UnixMillis);

impl Serialize for UnixMillisText {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.serialize_str(&self.0.rfc3339())
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for UnixMillisText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
            let at = UnixMillis::parse_rfc3339(&text);
            at.map(Self)
                .ok_or_else(|| serde::de::Error::custom(format!("`{text}` is not an RFC 3339 time")))
        } else {
            UnixMillis::deserialize(deserializer).map(Self)
        }
    }
}

impl UsageEvent {
    /// What its counts cost at its prices: the charge that its writer states and every reader can recompute. Where nothing was used
    /// nothing is due, not even a price per request.
    pub fn due(&self) -> Result<Charge, MoneyFault> {
        match self.usage_source {
            UsageSource::None => Ok(Charge::default()),
            UsageSource::Provider | UsageSource::Estimated => cost::charge(&self.tokens, &self.prices),
        }
    }

    /// What is owed for a charge, by what the event says of its organization, credential and model.
    pub fn bill(&self, charge: &Charge) -> Result<Bill, MoneyFault> {
        let basis = Basis {
            bps: self.adjustment.bps,
            byok: self.byok,
            free: self.free,
        };
        bill::bill(charge.total, basis)
    }

    /// Writes a charge and what is owed for it.
    pub fn state_charge(&mut self, charge: Charge) {
        self.charge = charge;
        // Only beyond all admissible prices and markups is there no answer; the list price is one then.
        let bill = self.bill(&charge).unwrap_or(Bill {
            adjustment: Adjustment::default(),
            billed: charge.total,
        });
        (self.adjustment, self.billed) = (bill.adjustment, bill.billed);
    }

    /// The CloudEvents attributes and content type, as Kafka headers in binary mode.
    pub fn headers(&self) -> [(&'static str, String); 9] {
        [
            ("content-type", CONTENT_TYPE.into()),
            ("ce_specversion", "1.0".into()),
            ("ce_id", self.id.clone()),
            (
                "ce_source",
                format!("/{}/{}/{}", self.cluster, self.region, self.node),
            ),
            ("ce_type", EVENT_TYPE.into()),
            ("ce_time", self.finished_at.0.rfc3339()),
            (
                "ce_subject",
                format!("{}/{}", self.tenant.organization, self.tenant.key),
            ),
            ("ce_dataschema", DATA_SCHEMA.into()),
            ("ce_partitionkey", self.tenant.organization.to_string()),
        ]
    }
}

/// One line of the embedded usage log, which stands in for Kafka where there is none ([`crate::usage_log`]): this object as JSON, and
/// `\n`. Bytes after the last `\n` are a line that is still being written, or was cut by a crash.
#[derive(Debug, Serialize, Deserialize)]
pub struct LogLine<'a> {
    /// What Kafka would carry as headers.
    pub headers: std::collections::BTreeMap<String, String>,
    /// The [`UsageEvent`], as it was written.
    #[serde(borrow)]
    pub event: &'a serde_json::value::RawValue,
}

/// The first file of a partition in the embedded usage log.
pub fn log_file_name(partition: i32) -> String {
    format!("usage-{partition:05}.jsonl")
}

/// The partition of an organization's events: murmur2 as Java clients compute it, so that stream joins line up.
pub fn partition_of(organization: &str, partitions: i32) -> i32 {
    let positive = murmur2(organization.as_bytes()) & 0x7fff_ffff;
    (positive % partitions.max(1).unsigned_abs()) as i32 // below `partitions`, so it fits
}

/// Murmur2 with the seed of Apache Kafka's default partitioner (`org.apache.kafka.common.utils.Utils.murmur2`).
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut h: u32 = 0x9747_b28c ^ (data.len() as u32);
    let mut chunks = data.chunks_exact(4);
    for chunk in &mut chunks {
        let mut k = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]).wrapping_mul(M);
        k ^= k >> 24;
        h = h.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        for (place, byte) in rest.iter().enumerate() {
            h ^= u32::from(*byte) << (8 * place);
        }
        h = h.wrapping_mul(M);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    h ^ (h >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_those_of_the_java_client() {
        // Values of org.apache.kafka.common.utils.UtilsTest.testMurmur2, as unsigned.
        for (text, hash) in [
            ("21", -973_932_308i32),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
        ] {
            assert_eq!(murmur2(text.as_bytes()) as i32, hash, "{text}");
        }
        assert!((0..100).all(|n| (0..6).contains(&partition_of(&format!("org-{n}"), 6))));
    }
}
