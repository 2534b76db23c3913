//! Answers of idempotent writes, so that a retry applies once and gets the first answer.

use imbl::{OrdMap, Vector};
use serde::{Deserialize, Serialize};
use tollway_proto::command::{Idempotency, Outcome, Receipt, Refusal, RefusalCode, Replay};
use tollway_shared::ids::{ReplicaId, Revision};
use tollway_shared::seal::Sealed;
use tollway_shared::time::{DAY_MS, UnixMillis};

/// How long an answer is remembered.
pub const REMEMBERED_MS: i64 = DAY_MS;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Answer {
    request: [u8; 32],
    revision: Revision,
    replica: Option<ReplicaId>,
    answer: Option<Sealed>,
}

/// The answers of the last 24 hours, by actor and key.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Answers {
    answers: OrdMap<(String, String), Answer>,
    order: Vector<(UnixMillis, String, String)>,
}

impl Answers {
    /// Drops what is older than [`REMEMBERED_MS`].
    pub(crate) fn forget_old(&mut self, now: UnixMillis) {
        while let Some((at, actor, key)) = self.order.front() {
            if now.0 - at.0 <= REMEMBERED_MS {
                return;
            }
            self.answers.remove(&(actor.clone(), key.clone()));
            self.order.pop_front();
        }
    }

    /// The outcome of a retry, or `None` for a first time.
    pub(crate) fn find(&self, actor: &str, asked: &Idempotency) -> Option<Outcome> {
        let found = self.answers.get(&(actor.to_owned(), asked.key.clone()))?;
        if found.request != asked.request {
            return Some(Outcome::Refused(Refusal {
                code: RefusalCode::IdempotencyReused,
                field: Some("Idempotency-Key".into()),
                detail: "was used for another request in the last 24 hours; use a new key".into(),
            }));
        }
        Some(Outcome::Done(Receipt {
            revision: found.revision,
            replayed: Some(Replay {
                answer: found.answer.clone(),
            }),
            replica: found.replica,
            lease: None, // nodes send no idempotency key: their messages may be repeated as they are
        }))
    }

    /// Remembers a first answer.
    pub(crate) fn remember(&mut self, now: UnixMillis, actor: &str, asked: &Idempotency, receipt: &Receipt) {
        let answer = Answer {
            request: asked.request,
            revision: receipt.revision,
            replica: receipt.replica,
            answer: asked.answer.clone(),
        };
        self.answers.insert((actor.to_owned(), asked.key.clone()), answer);
        self.order.push_back((now, actor.to_owned(), asked.key.clone()));
    }
}
