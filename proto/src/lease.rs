//! Lease messages on the wire, to and from [`tollway_shared::lease::message`].
//!
//! What comes from the other side is checked here for form: ids, sixteen bytes of an incarnation, numbers of items. What the
//! counters mean is the protocol's business, which believes none that is out of range.

use tollway_shared::ids::{BudgetId, Incarnation};
use tollway_shared::lease::message::{
    Answer, Ask, ClosedLine, Closing, Confirmed, Epoch, Grant, Line, Recall, Report, Verdict, WANTS_MAX, Want,
};
use tollway_shared::time::UnixMillis;

use crate::push::v1;

/// Most slices in one report. The rest comes with the next.
pub const LINES_MAX: usize = 1_024;
/// Most lines of one closing. A longer one goes in parts: all but the last as reports.
pub const CLOSED_LINES_MAX: usize = 8_192;

/// Why a message makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseFault {
    /// Not sixteen bytes.
    #[error("`incarnation` must have 16 bytes")]
    Incarnation,
    /// Not an id.
    #[error("`{0}` is not a budget's id")]
    Budget(String),
    /// Nothing of what the other side may say.
    #[error("`{0}` is missing")]
    Missing(&'static str),
    /// More than fits.
    #[error("`{field}` has more than {most} items")]
    TooMany {
        /// Of what.
        field: &'static str,
        /// How many there may be.
        most: usize,
    },
}

/// What a node says.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum LeaseCall {
    /// A life of its process has begun.
    Enlist(Incarnation),
    /// It wants room.
    Ask(Ask),
    /// It has spent or given back.
    Report(Report),
    /// A life of its process is over.
    Closing(Closing),
}

/// What it is answered.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum LeaseAnswer {
    /// To an enlistment.
    Enlisted {
        /// Whose.
        incarnation: Incarnation,
        /// Whether it may ask.
        live: bool,
    },
    /// To an ask.
    Answer(Answer),
    /// To a report.
    Confirmed(Confirmed),
    /// To a closing.
    Closed {
        /// Whose.
        incarnation: Incarnation,
        /// Whether this node ever had it, as far as is remembered.
        known: bool,
    },
}

impl LeaseCall {
    /// Whose life it is about.
    pub fn incarnation(&self) -> Incarnation {
        match self {
            Self::Enlist(incarnation) => *incarnation,
            Self::Ask(ask) => ask.incarnation,
            Self::Report(report) => report.incarnation,
            Self::Closing(closing) => closing.incarnation,
        }
    }
}

fn incarnation(bytes: &[u8]) -> Result<Incarnation, LeaseFault> {
    let bytes = bytes.try_into().map_err(|_| LeaseFault::Incarnation)?;
    Ok(Incarnation(u128::from_be_bytes(bytes)))
}

fn written(incarnation: Incarnation) -> prost::bytes::Bytes {
    incarnation.0.to_be_bytes().to_vec().into()
}

fn budget(text: String) -> Result<BudgetId, LeaseFault> {
    BudgetId::parse(&text).map_err(|_| LeaseFault::Budget(text.chars().take(64).collect()))
}

/// Reads each item, of which there may be so many.
fn all<A, B>(
    field: &'static str,
    most: usize,
    items: Vec<A>,
    read: impl Fn(A) -> Result<B, LeaseFault>,
) -> Result<Vec<B>, LeaseFault> {
    if items.len() > most {
        return Err(LeaseFault::TooMany { field, most });
    }
    items.into_iter().map(read).collect()
}

impl From<LeaseCall> for v1::LeaseRequest {
    fn from(call: LeaseCall) -> Self {
        use v1::lease_request::Message;
        let message = match call {
            LeaseCall::Enlist(incarnation) => Message::Enlist(v1::Enlist {
                incarnation: written(incarnation),
            }),
            LeaseCall::Ask(ask) => Message::Ask(v1::Ask {
                incarnation: written(ask.incarnation),
                serial: ask.serial,
                wants: ask.wants.into_iter().map(want).collect(),
            }),
            LeaseCall::Report(report) => Message::Report(v1::Report {
                incarnation: written(report.incarnation),
                serial: report.serial,
                lines: report.lines.into_iter().map(line).collect(),
            }),
            LeaseCall::Closing(closing) => Message::Closing(v1::Closing {
                incarnation: written(closing.incarnation),
                lines: closing.lines.into_iter().map(closed_line).collect(),
                doubtful: closing.doubtful,
            }),
        };
        Self {
            message: Some(message),
        }
    }
}

impl TryFrom<v1::LeaseRequest> for LeaseCall {
    type Error = LeaseFault;

    fn try_from(request: v1::LeaseRequest) -> Result<Self, LeaseFault> {
        use v1::lease_request::Message;
        Ok(match request.message.ok_or(LeaseFault::Missing("message"))? {
            Message::Enlist(enlist) => Self::Enlist(incarnation(&enlist.incarnation)?),
            Message::Ask(ask) => Self::Ask(Ask {
                incarnation: incarnation(&ask.incarnation)?,
                serial: ask.serial,
                wants: all("wants", WANTS_MAX, ask.wants, read_want)?,
            }),
            Message::Report(report) => Self::Report(Report {
                incarnation: incarnation(&report.incarnation)?,
                serial: report.serial,
                lines: all("lines", LINES_MAX, report.lines, read_line)?,
            }),
            Message::Closing(closing) => Self::Closing(Closing {
                incarnation: incarnation(&closing.incarnation)?,
                lines: all("lines", CLOSED_LINES_MAX, closing.lines, read_closed_line)?,
                doubtful: closing.doubtful,
            }),
        })
    }
}

impl From<LeaseAnswer> for v1::LeaseReply {
    fn from(answer: LeaseAnswer) -> Self {
        use v1::lease_reply::Message;
        let message = match answer {
            LeaseAnswer::Enlisted { incarnation, live } => Message::Enlisted(v1::Enlisted {
                incarnation: written(incarnation),
                live,
            }),
            LeaseAnswer::Answer(answer) => {
                let (verdict, about) = verdict(answer.verdict);
                Message::Answer(v1::Answer {
                    incarnation: written(answer.incarnation),
                    serial: answer.serial,
                    verdict: verdict.into(),
                    budget: about.map(|budget| budget.to_string()).unwrap_or_default(),
                    grants: answer.grants.into_iter().map(grant).collect(),
                })
            }
            LeaseAnswer::Confirmed(confirmed) => Message::Confirmed(v1::Confirmed {
                incarnation: written(confirmed.incarnation),
                serial: confirmed.serial,
                live: confirmed.live,
                grants: confirmed.grants.into_iter().map(grant).collect(),
            }),
            LeaseAnswer::Closed { incarnation, known } => Message::Closed(v1::Closed {
                incarnation: written(incarnation),
                known,
            }),
        };
        Self {
            message: Some(message),
        }
    }
}

impl TryFrom<v1::LeaseReply> for LeaseAnswer {
    type Error = LeaseFault;

    fn try_from(reply: v1::LeaseReply) -> Result<Self, LeaseFault> {
        use v1::lease_reply::Message;
        Ok(match reply.message.ok_or(LeaseFault::Missing("message"))? {
            Message::Enlisted(enlisted) => Self::Enlisted {
                incarnation: incarnation(&enlisted.incarnation)?,
                live: enlisted.live,
            },
            Message::Answer(answer) => Self::Answer(Answer {
                incarnation: incarnation(&answer.incarnation)?,
                serial: answer.serial,
                verdict: read_verdict(answer.verdict(), answer.budget)?,
                grants: all("grants", WANTS_MAX, answer.grants, read_grant)?,
            }),
            Message::Confirmed(confirmed) => Self::Confirmed(Confirmed {
                incarnation: incarnation(&confirmed.incarnation)?,
                serial: confirmed.serial,
                live: confirmed.live,
                // As many as a newer control plane may send: the message's size bounds them.
                grants: all("grants", usize::MAX, confirmed.grants, read_grant)?,
            }),
            Message::Closed(closed) => Self::Closed {
                incarnation: incarnation(&closed.incarnation)?,
                known: closed.known,
            },
        })
    }
}

impl From<Recall> for v1::Recall {
    fn from(recall: Recall) -> Self {
        Self {
            incarnation: written(recall.incarnation),
            budget: recall.budget.to_string(),
            epoch: recall.epoch.0,
            recall: recall.recall,
            amount: recall.amount,
        }
    }
}

impl TryFrom<v1::Recall> for Recall {
    type Error = LeaseFault;

    fn try_from(recall: v1::Recall) -> Result<Self, LeaseFault> {
        Ok(Self {
            incarnation: incarnation(&recall.incarnation)?,
            budget: budget(recall.budget)?,
            epoch: Epoch(recall.epoch),
            recall: recall.recall,
            amount: recall.amount,
        })
    }
}

fn verdict(verdict: Verdict) -> (v1::Verdict, Option<BudgetId>) {
    match verdict {
        Verdict::Granted => (v1::Verdict::Granted, None),
        Verdict::Recalling(budget) => (v1::Verdict::Recalling, Some(budget)),
        Verdict::Exhausted(budget) => (v1::Verdict::Exhausted, Some(budget)),
        Verdict::Fenced => (v1::Verdict::Fenced, None),
        Verdict::Unknown(budget) => (v1::Verdict::Unknown, Some(budget)),
    }
}

fn read_verdict(verdict: v1::Verdict, about: String) -> Result<Verdict, LeaseFault> {
    Ok(match verdict {
        v1::Verdict::Unspecified => return Err(LeaseFault::Missing("verdict")),
        v1::Verdict::Granted => Verdict::Granted,
        v1::Verdict::Recalling => Verdict::Recalling(budget(about)?),
        v1::Verdict::Exhausted => Verdict::Exhausted(budget(about)?),
        v1::Verdict::Fenced => Verdict::Fenced,
        v1::Verdict::Unknown => Verdict::Unknown(budget(about)?),
    })
}

/// The fields of a message about one budget, both ways.
macro_rules! about_budget {
    ($wire:ident $write:ident $read:ident { $($field:ident),* } $(ends $ends:ident)?) => {
        fn $write(value: $wire) -> v1::$wire {
            v1::$wire {
                budget: value.budget.to_string(),
                epoch: value.epoch.0,
                $($ends: value.$ends.map(|at| at.0),)?
                $($field: value.$field,)*
            }
        }

        fn $read(value: v1::$wire) -> Result<$wire, LeaseFault> {
            Ok($wire {
                budget: budget(value.budget)?,
                epoch: Epoch(value.epoch),
                $($ends: value.$ends.map(UnixMillis),)?
                $($field: value.$field,)*
            })
        }
    };
}

about_budget!(Want want read_want { seen, room, amount, least, urgent, burn });
about_budget!(Grant grant read_grant {
    granted, spent, returned, reserve, open, short, recall, recall_amount
} ends ends_at);
about_budget!(Line line read_line { spent, returned, seen, held, recall });
about_budget!(ClosedLine closed_line read_closed_line { spent });

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    fn id() -> BudgetId {
        BudgetId::trusted("acme-monthly")
    }

    /// Every field another number, so that two that are swapped show.
    fn a_grant() -> Grant {
        Grant {
            budget: id(),
            epoch: Epoch(7),
            ends_at: Some(UnixMillis(8)),
            granted: 9,
            spent: 10,
            returned: 11,
            reserve: 12,
            open: true,
            short: false,
            recall: 13,
            recall_amount: 14,
        }
    }

    fn calls() -> Vec<LeaseCall> {
        let incarnation = Incarnation(u128::MAX - 5);
        let want = Want {
            budget: id(),
            epoch: Epoch(1),
            seen: 2,
            room: -3,
            amount: 4,
            least: 5,
            urgent: true,
            burn: 6,
        };
        let line = Line {
            budget: id(),
            epoch: Epoch(1),
            spent: 2,
            returned: 3,
            seen: 4,
            held: 5,
            recall: 6,
        };
        let closed = ClosedLine {
            budget: id(),
            epoch: Epoch(1),
            spent: 2,
        };
        vec![
            LeaseCall::Enlist(incarnation),
            LeaseCall::Ask(Ask {
                incarnation,
                serial: 1,
                wants: vec![want],
            }),
            LeaseCall::Report(Report {
                incarnation,
                serial: 2,
                lines: vec![line],
            }),
            LeaseCall::Closing(Closing {
                incarnation,
                lines: vec![closed],
                doubtful: true,
            }),
        ]
    }

    fn answers() -> Vec<LeaseAnswer> {
        let incarnation = Incarnation(3);
        let verdicts = [
            Verdict::Granted,
            Verdict::Recalling(id()),
            Verdict::Exhausted(id()),
            Verdict::Fenced,
            Verdict::Unknown(id()),
        ];
        let answer = |verdict| {
            LeaseAnswer::Answer(Answer {
                incarnation,
                serial: 4,
                verdict,
                grants: vec![a_grant()],
            })
        };
        let mut all: Vec<_> = verdicts.into_iter().map(answer).collect();
        all.push(LeaseAnswer::Enlisted {
            incarnation,
            live: true,
        });
        all.push(LeaseAnswer::Closed {
            incarnation,
            known: true,
        });
        all.push(LeaseAnswer::Confirmed(Confirmed {
            incarnation,
            serial: 5,
            live: true,
            grants: vec![Grant {
                ends_at: None,
                short: true,
                ..a_grant()
            }],
        }));
        all
    }

    #[test]
    fn every_message_comes_back_as_it_was_sent() {
        for call in calls() {
            let bytes = v1::LeaseRequest::from(call.clone()).encode_to_vec();
            let read = v1::LeaseRequest::decode(bytes.as_slice()).unwrap();
            assert_eq!(LeaseCall::try_from(read).unwrap(), call);
        }
        for answer in answers() {
            let bytes = v1::LeaseReply::from(answer.clone()).encode_to_vec();
            let read = v1::LeaseReply::decode(bytes.as_slice()).unwrap();
            assert_eq!(LeaseAnswer::try_from(read).unwrap(), answer);
        }
        let recall = Recall {
            incarnation: Incarnation(1),
            budget: id(),
            epoch: Epoch(2),
            recall: 3,
            amount: 4,
        };
        assert_eq!(
            Recall::try_from(v1::Recall::from(recall.clone())).unwrap(),
            recall
        );
    }

    #[test]
    fn a_message_without_form_is_refused_by_the_field_that_is_wrong() {
        let sent = |edit: fn(&mut v1::Ask)| {
            let mut ask = v1::Ask {
                incarnation: vec![0; 16].into(),
                serial: 1,
                wants: vec![v1::Want {
                    budget: "b".into(),
                    ..v1::Want::default()
                }],
            };
            edit(&mut ask);
            let message = Some(v1::lease_request::Message::Ask(ask));
            LeaseCall::try_from(v1::LeaseRequest { message }).err()
        };
        assert_eq!(sent(|_| ()), None);
        assert_eq!(
            sent(|ask| ask.incarnation = vec![0; 15].into()),
            Some(LeaseFault::Incarnation)
        );
        assert_eq!(
            sent(|ask| ask.wants[0].budget = "a b".into()),
            Some(LeaseFault::Budget("a b".into()))
        );
        let too_many = LeaseFault::TooMany {
            field: "wants",
            most: WANTS_MAX,
        };
        assert_eq!(
            sent(|ask| ask.wants = vec![ask.wants[0].clone(); WANTS_MAX + 1]),
            Some(too_many)
        );
        let nothing = LeaseCall::try_from(v1::LeaseRequest { message: None });
        assert_eq!(nothing, Err(LeaseFault::Missing("message")));
    }
}
