//! A usage event, read without copying its text. What counts as an event is what [`UsageEvent`](tollway_proto::usage::UsageEvent)
//! reads: a test alters every field of one and both must agree. The replicated sums and the billing store read this one.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tollway_proto::usage::{EndState, UnixMillisText, UsageSource};
use tollway_shared::bill::{self, Adjustment, Basis, Bill};
use tollway_shared::catalog::Dialect;
use tollway_shared::cost::{self, Charge, Prices};
use tollway_shared::ids::{Revision, WriterId};
use tollway_shared::money::{MoneyFault, NanoUsd};
use tollway_shared::tokens::TokenCounts;

use super::rollup::Record;

/// Text of the event, borrowed unless something in it is escaped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Str<'a>(pub Cow<'a, str>);

impl Str<'_> {
    /// The text.
    pub fn get(&self) -> &str {
        &self.0
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Str<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Str<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Str<'de>, E> {
                Ok(Str(Cow::Borrowed(text)))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Str<'de>, E> {
                Ok(Str(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// Who pays.
#[derive(Debug, Deserialize)]
pub struct Path<'a> {
    /// The organization.
    #[serde(borrow)]
    pub organization: Str<'a>,
    /// The team, if any.
    #[serde(borrow)]
    pub team: Option<Str<'a>>,
    /// The project.
    #[serde(borrow)]
    pub project: Str<'a>,
    /// The API key's id.
    #[serde(borrow)]
    pub key: Str<'a>,
}

/// One attempt, only to know that it is one.
#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "read to be checked; the store keeps the text")]
struct Attempt<'a> {
    #[serde(borrow)]
    endpoint: Str<'a>,
    #[serde(borrow)]
    provider: Str<'a>,
    started_ms: u32,
    first_byte_ms: Option<u32>,
    status: Option<u16>,
    #[serde(borrow)]
    fault: Option<Str<'a>>,
}

/// The fields of a usage event, under their names there.
#[derive(Debug, Deserialize)]
#[expect(missing_docs, reason = "the usage event says what they are")]
pub struct Event<'a> {
    #[serde(borrow)]
    pub id: Str<'a>,
    #[serde(borrow)]
    pub request_id: Str<'a>,
    pub writer: WriterId,
    pub partition: i32,
    pub sequence: u64,
    #[serde(borrow)]
    pub cluster: Str<'a>,
    #[serde(borrow)]
    pub region: Str<'a>,
    #[serde(borrow)]
    pub node: Str<'a>,
    pub started_at: UnixMillisText,
    pub first_byte_at: Option<UnixMillisText>,
    pub finished_at: UnixMillisText,
    #[serde(borrow)]
    pub tenant: Path<'a>,
    #[serde(borrow)]
    pub user: Option<Str<'a>>,
    #[serde(borrow)]
    pub requested_model: Str<'a>,
    #[serde(borrow)]
    pub model: Str<'a>,
    #[serde(borrow)]
    pub endpoint: Str<'a>,
    #[serde(borrow)]
    pub provider: Str<'a>,
    pub dialect: Dialect,
    pub stream: bool,
    pub end: EndState,
    pub status: u16,
    #[serde(borrow)]
    pub fault: Option<Str<'a>>,
    #[serde(borrow)]
    pub finish_reason: Option<Str<'a>>,
    pub tokens: TokenCounts,
    pub usage_source: UsageSource,
    #[serde(borrow)]
    pub estimator: Option<Str<'a>>,
    pub revision: Revision,
    #[serde(borrow)]
    pub price_version: Str<'a>,
    pub prices: Prices,
    pub charge: Charge,
    pub byok: bool,
    pub free: bool,
    pub adjustment: Adjustment,
    pub billed: NanoUsd,
    #[serde(borrow)]
    pub attempts: &'a RawValue,
}

impl<'a> Event<'a> {
    /// Reads the event of a record of `partition`, or says why it is none.
    pub fn read(record: &'a Record, partition: i32) -> Result<Self, String> {
        let event: Self =
            serde_json::from_slice(&record.value).map_err(|fault| format!("not a usage event: {fault}"))?;
        serde_json::from_str::<Vec<Attempt<'_>>>(event.attempts.get())
            .map_err(|fault| format!("not a usage event: `attempts`: {fault}"))?;
        if event.partition != partition {
            let stated = event.partition;
            return Err(format!("an event of partition {stated} lies in {partition}"));
        }
        Ok(event)
    }

    /// What its counts cost at its prices: see [`UsageEvent::due`](tollway_proto::usage::UsageEvent::due).
    pub fn due(&self) -> Result<Charge, MoneyFault> {
        match self.usage_source {
            UsageSource::None => Ok(Charge::default()),
            UsageSource::Provider | UsageSource::Estimated => cost::charge(&self.tokens, &self.prices),
        }
    }

    /// What is owed for that: see [`UsageEvent::bill`](tollway_proto::usage::UsageEvent::bill).
    pub fn bill(&self, charge: &Charge) -> Result<Bill, MoneyFault> {
        let basis = Basis {
            bps: self.adjustment.bps,
            byok: self.byok,
            free: self.free,
        };
        bill::bill(charge.total, basis)
    }
}

/// How it ended, as the event's JSON writes it.
pub fn end(end: EndState) -> &'static str {
    match end {
        EndState::Completed => "completed",
        EndState::Cancelled => "cancelled",
        EndState::Failed => "failed",
        EndState::Interrupted => "interrupted",
    }
}

/// Where its counts come from, as the event's JSON writes it.
pub fn source(source: UsageSource) -> &'static str {
    match source {
        UsageSource::Provider => "provider",
        UsageSource::Estimated => "estimated",
        UsageSource::None => "none",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tollway_proto::usage::UsageEvent;

    use super::*;

    /// Every way to a value inside.
    fn places(value: &Value, at: &str, out: &mut Vec<String>) {
        match value {
            Value::Object(fields) => fields
                .iter()
                .for_each(|(name, value)| places(value, &format!("{at}/{name}"), out)),
            Value::Array(items) => items
                .iter()
                .enumerate()
                .for_each(|(n, value)| places(value, &format!("{at}/{n}"), out)),
            _ => {}
        }
        out.push(at.to_owned());
    }

    fn without(event: &Value, place: &str) -> Option<Value> {
        let (parent, name) = place.rsplit_once('/')?;
        let mut event = event.clone();
        event.pointer_mut(parent)?.as_object_mut()?.remove(name)?;
        Some(event)
    }

    #[test]
    fn it_is_an_event_here_when_and_only_when_it_is_one_to_everybody_else() {
        let example = include_str!("../../../proto/examples/usage-event.v1.json");
        let event: Value = serde_json::from_str(example).unwrap();
        let mut found = Vec::new();
        places(&event, "", &mut found);
        assert!(found.len() > 60, "{found:?}");
        let mut refused = 0;
        for place in &found {
            let mut altered: Vec<Value> = without(&event, place).into_iter().collect();
            for value in [
                json!(null),
                json!(true),
                json!(7),
                json!(-7),
                json!("7"),
                json!("x"),
                json!("\"\\\u{e9}"),
                json!([]),
                json!({}),
            ] {
                let mut one = event.clone();
                *one.pointer_mut(place).unwrap() = value;
                altered.push(one);
            }
            for one in altered {
                let value = serde_json::to_vec(&one).unwrap();
                let record = Record {
                    partition: 3,
                    offset: 0,
                    next: 1,
                    value,
                };
                let theirs = serde_json::from_slice::<UsageEvent>(&record.value).map(|event| event.partition);
                let ours = Event::read(&record, theirs.as_ref().copied().unwrap_or(3));
                assert_eq!(ours.is_ok(), theirs.is_ok(), "{place}: {ours:?} {theirs:?} {one}");
                refused += usize::from(ours.is_err());
            }
        }
        assert!(refused > 200, "{refused}");
    }
}
