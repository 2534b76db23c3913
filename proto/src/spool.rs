//! Usage records on a node's disk.
//!
//! An intent is written before the first byte goes to a provider, an outcome after the last one came, and in between, while an answer
//! streams, now and then how far it has got. After a crash every intent without an outcome becomes one event marked `interrupted`.

use serde::{Deserialize, Serialize};
use tollway_shared::budget::terms::Unit;
use tollway_shared::ids::{BudgetId, Incarnation, ModelId, RequestId, WriterId};
use tollway_shared::lease::message::Epoch;
use tollway_shared::tokens::TokenCounts;

use crate::usage::UsageEvent;

/// Room for an event as JSON; most are a little shorter.
const EVENT_BYTES: usize = 2 << 10;

/// A record in its stored form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum SpoolRecord {
    /// The first record of every segment.
    Header(SegmentHeader),
    /// A request is about to reach a provider: its event as known so far, without a sequence. Again, in place of the one before, when
    /// it goes to another endpoint.
    ///
    /// Its `tokens` are what is billed, as an estimate, if nothing more is ever known. Nothing while there is no connection that the request
    /// could go out on: it is written again once there is one. Then the prompt, because a provider bills it from the
    /// first byte on, and of the answer what the provider is expected to bill although nobody hears it. Where it stops when its caller
    /// is gone, that is nothing; where it works on (`bills_after_cancel`), the length its answers usually have, within the request's cap:
    /// as the core that serves it has seen since the node started, 0 before the first. A caller's whole hold is not billed: it is many times what answers use.
    Intent(Box<UsageEvent>),
    /// A request has ended.
    Outcome(OutcomeRecord),
    /// The answer to a request streams.
    Progress(ProgressRecord),
    /// [`SpoolRecord::Intent`] of a request that holds leased money. One that goes to another endpoint writes a plain intent; what it
    /// holds stays.
    Held(Box<HeldIntent>),
}

/// A request that is about to reach a provider, and what it holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeldIntent {
    /// Its event as known so far.
    pub event: UsageEvent,
    /// What is charged to the leases if its end is never known.
    pub held: Held,
}

/// What a request has set aside on its node's slices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Under which incarnation of its node.
    pub incarnation: Incarnation,
    /// How many checkpoints of the slices had begun when it was set aside: what has a lower number than a checkpoint is in that
    /// checkpoint's counters.
    pub mark: u64,
    /// The parts, outermost level first.
    pub parts: Vec<HeldPart>,
}

/// What a request has set aside on one slice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldPart {
    /// The budget.
    pub budget: BudgetId,
    /// Which of its windows.
    pub epoch: Epoch,
    /// What the amount counts.
    pub unit: Unit,
    /// How much.
    pub amount: i64,
    /// The only model that the budget counts, if it has one.
    pub model: Option<ModelId>,
}

/// How far an answer has got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressRecord {
    /// Of the intent of the same id.
    pub request_id: RequestId,
    /// What the answer so far would be billed for, if it broke off here. The last record counts.
    pub tokens: TokenCounts,
}

/// [`SpoolRecord`] by reference, so that a record on the request path is encoded without a copy of it. Same bytes.
#[derive(Debug, Serialize)]
pub enum SpoolRecordRef<'a> {
    /// [`SpoolRecord::Header`].
    Header(&'a SegmentHeader),
    /// [`SpoolRecord::Intent`].
    Intent(&'a UsageEvent),
    /// [`SpoolRecord::Outcome`].
    Outcome(&'a OutcomeRecord),
    /// [`SpoolRecord::Progress`].
    Progress(ProgressRecordRef<'a>),
    /// [`SpoolRecord::Held`].
    Held(HeldIntentRef<'a>),
}

/// [`HeldIntent`] by reference.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct HeldIntentRef<'a> {
    /// Its event as known so far.
    pub event: &'a UsageEvent,
    /// What it holds.
    pub held: &'a Held,
}

/// [`ProgressRecord`] by reference.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct ProgressRecordRef<'a> {
    /// Of the intent of the same id.
    pub request_id: &'a RequestId,
    /// The counts so far.
    pub tokens: TokenCounts,
}

/// The start of a [`SpoolRecord`], for whoever only ships outcomes: of an intent no more than its ids is made.
///
/// Read with [`crate::codec::decode_start`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub enum SpoolStart {
    /// [`SpoolRecord::Header`].
    Header(SegmentHeader),
    /// [`SpoolRecord::Intent`].
    Intent(IntentStart),
    /// [`SpoolRecord::Outcome`].
    Outcome(OutcomeRecord),
    /// [`SpoolRecord::Progress`].
    Progress(ProgressRecord),
    /// [`SpoolRecord::Held`], which begins with its event.
    Held(IntentStart),
}

/// The first fields of an intent's [`UsageEvent`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct IntentStart {
    /// The event's id.
    pub id: String,
    /// The request's.
    pub request_id: RequestId,
}

/// What a segment starts with, so that it can be read without the ones before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentHeader {
    /// The writer.
    pub writer: WriterId,
    /// The segment's number within the writer, from 1.
    pub segment: u64,
    /// The last sequence given out per partition when the segment began.
    pub sequences: Vec<u64>,
}

/// The final event of a request, ready to be produced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutcomeRecord {
    /// Closes the intent of the same id.
    pub request_id: RequestId,
    /// The partition.
    pub partition: i32,
    /// The sequence within writer and partition.
    pub sequence: u64,
    /// The event's key.
    pub organization: String,
    /// The event's headers.
    pub headers: Vec<(String, String)>,
    /// The event, as JSON.
    #[serde(with = "crate::blob")]
    pub event: Vec<u8>,
}

impl OutcomeRecord {
    /// The outcome of a request whose event is complete, with partition and sequence already in it.
    pub fn of(event: &UsageEvent) -> Self {
        let mut json = Vec::with_capacity(EVENT_BYTES);
        serde_json::to_writer(&mut json, event).expect("an event has only text keys, so it is JSON");
        Self {
            request_id: event.request_id.clone(),
            partition: event.partition,
            sequence: event.sequence,
            organization: event.tenant.organization.to_string(),
            headers: event.headers().map(|(name, text)| (name.to_owned(), text)).into(),
            event: json,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{self, Kind};

    #[test]
    fn a_record_by_reference_has_the_bytes_of_the_record_and_its_start_can_be_read() {
        let event: UsageEvent =
            serde_json::from_str(include_str!("../examples/usage-event.v1.json")).unwrap();
        let header = SegmentHeader {
            writer: event.writer,
            segment: 7,
            sequences: vec![0, 300],
        };
        let outcome = OutcomeRecord::of(&event);
        let progress = ProgressRecord {
            request_id: event.request_id.clone(),
            tokens: event.tokens,
        };
        let held = Held {
            incarnation: Incarnation(5),
            mark: 3,
            parts: vec![HeldPart {
                budget: BudgetId::trusted("b"),
                epoch: Epoch(2),
                unit: Unit::Tokens,
                amount: 300,
                model: Some(event.model.clone()),
            }],
        };
        for (by_ref, by_value) in [
            (
                SpoolRecordRef::Header(&header),
                SpoolRecord::Header(header.clone()),
            ),
            (
                SpoolRecordRef::Intent(&event),
                SpoolRecord::Intent(Box::new(event.clone())),
            ),
            (
                SpoolRecordRef::Progress(ProgressRecordRef {
                    request_id: &progress.request_id,
                    tokens: progress.tokens,
                }),
                SpoolRecord::Progress(progress.clone()),
            ),
            (
                SpoolRecordRef::Held(HeldIntentRef {
                    event: &event,
                    held: &held,
                }),
                SpoolRecord::Held(Box::new(HeldIntent {
                    event: event.clone(),
                    held: held.clone(),
                })),
            ),
            (
                SpoolRecordRef::Outcome(&outcome),
                SpoolRecord::Outcome(outcome.clone()),
            ),
        ] {
            let bytes = codec::encode(Kind::Spool, &by_ref);
            assert_eq!(bytes, codec::encode(Kind::Spool, &by_value));
            assert_eq!(
                codec::decode::<SpoolRecord>(Kind::Spool, &bytes).unwrap(),
                by_value
            );
            let intent = |event: UsageEvent| IntentStart {
                id: event.id,
                request_id: event.request_id,
            };
            let start = match by_value {
                SpoolRecord::Header(header) => SpoolStart::Header(header),
                SpoolRecord::Intent(event) => SpoolStart::Intent(intent(*event)),
                SpoolRecord::Outcome(outcome) => SpoolStart::Outcome(outcome),
                SpoolRecord::Progress(progress) => SpoolStart::Progress(progress),
                SpoolRecord::Held(record) => SpoolStart::Held(intent(record.event)),
            };
            assert_eq!(codec::decode_start(Kind::Spool, &bytes), Ok(start));
            let cut = &bytes[..bytes.len() - 1];
            assert!(codec::decode_start::<SpoolStart>(Kind::Spool, cut).is_err());
        }
    }
}
