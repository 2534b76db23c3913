//! One usage event per request that was about to reach a provider, and the counters: exactly once, on every exit.
//!
//! The record is closed at the last byte, by a fault, or by its drop, which is how a caller who hangs up ends a request.

use std::rc::Rc;

use tokio::time::Instant;
use tollway_proto::usage::{AttemptEntry, EndState, UnixMillisText, UsageEvent, UsageSource};
use tollway_shared::cost::Charge;
use tollway_shared::fault::Fault;
use tollway_shared::ids::{Revision, WriterId};
use tollway_shared::tokens::TokenCounts;

use super::settle;
use crate::ask::Ask;
use crate::clock;
use crate::dialects::estimate::Size;
use crate::dialects::usage::Billed;
use crate::dialects::{Tally, estimate};
use crate::metrics::Ended;
use crate::pipeline::{Arrival, Caller};
use crate::plane::Plane;
use crate::routing::Candidate;

/// The account of one request.
pub struct Record {
    plane: Rc<Plane>,
    arrival: Arrival,
    open: Option<Open>,
    /// Endpoints that could not even be called before the intent was written.
    unsent: Vec<AttemptEntry>,
    counted: bool,
    /// What the answer has shown so far.
    pub tally: Tally,
}

/// A request whose intent is in the spool.
struct Open {
    event: Box<UsageEvent>,
    candidate: Candidate,
    size: Size,
    first_byte: Option<Instant>,
    /// An attempt is running or was answered.
    reached: bool,
    /// The last endpoint that failed to answer although it may have worked. It is what is billed when no other one answers.
    worked: Option<Candidate>,
}

impl Record {
    /// The start.
    pub fn new(plane: Rc<Plane>, arrival: Arrival) -> Self {
        Self {
            plane,
            arrival,
            open: None,
            unsent: Vec::new(),
            counted: false,
            tally: Tally::default(),
        }
    }

    /// An attempt begins. Before the first one the intent goes to the spool: nothing is sent that could not be billed.
    pub fn begin(
        &mut self,
        candidate: &Candidate,
        caller: &Caller,
        ask: &Ask,
        revision: Revision,
    ) -> Result<(), Fault> {
        let started_ms = self.elapsed_ms(Instant::now());
        let open = match &mut self.open {
            Some(open) => {
                open.point_to(candidate);
                open
            }
            None => {
                let mut event = self.intent(candidate, caller, ask, revision);
                event.attempts.append(&mut self.unsent);
                let most = completion_tokens_max(candidate, ask);
                self.plane.writer.intent(&event, most).map_err(|fault| {
                    tracing::warn!(%fault, "a request was shed because its usage could not be recorded");
                    Fault::BillingUnavailable
                })?;
                self.plane
                    .meters
                    .overhead(self.arrival.started.elapsed().as_secs_f64());
                self.open.insert(Open {
                    event: Box::new(event),
                    candidate: candidate.clone(),
                    size: ask.size(),
                    first_byte: None,
                    reached: false,
                    worked: None,
                })
            }
        };
        open.reached = true;
        open.event.attempts.push(AttemptEntry {
            endpoint: candidate.endpoint.id.clone(),
            provider: candidate.provider.id.clone(),
            started_ms,
            first_byte_ms: None,
            status: None,
            fault: None,
        });
        Ok(())
    }

    /// An endpoint could not be called, so nothing went out: no usage, but the event of a later attempt names it.
    pub fn attempt_unsent(&mut self, candidate: &Candidate, fault: &'static str) {
        let entry = AttemptEntry {
            endpoint: candidate.endpoint.id.clone(),
            provider: candidate.provider.id.clone(),
            started_ms: self.elapsed_ms(Instant::now()),
            first_byte_ms: None,
            status: None,
            fault: Some(fault.to_owned()),
        };
        match &mut self.open {
            Some(open) => open.event.attempts.push(entry),
            None => self.unsent.push(entry),
        }
    }

    /// The running attempt got its first byte, with this status.
    pub fn attempt_answered(&mut self, status: u16) {
        let first_byte_ms = self.elapsed_ms(Instant::now());
        if let Some(entry) = self.attempt() {
            entry.first_byte_ms = Some(first_byte_ms);
            entry.status = Some(status);
        }
    }

    /// The running attempt failed. `worked`: whether the provider may have used tokens all the same.
    pub fn attempt_failed(&mut self, fault: &'static str, worked: bool) {
        if let Some(open) = &mut self.open {
            open.reached = false;
            if worked {
                open.worked = Some(open.candidate.clone());
            }
            if let Some(entry) = open.event.attempts.last_mut() {
                entry.fault = Some(fault.to_owned());
            }
        }
        self.tally = Tally::default();
    }

    /// The answer's first byte goes to the caller.
    pub fn first_byte(&mut self) {
        if let Some(open) = self.open.as_mut().filter(|open| open.first_byte.is_none()) {
            open.first_byte = Some(Instant::now());
            open.event.first_byte_at = Some(UnixMillisText(clock::now()));
        }
    }

    /// What would be billed if nothing more came.
    pub fn billed(&self) -> Option<Billed> {
        let open = self.open.as_ref()?;
        let settled = settle::settled(&open.event.prices, &self.tally, open.size, open.reached);
        Some(Billed {
            tokens: settled.tokens,
            estimated: settled.source == UsageSource::Estimated,
            cost: settled.charge.total,
        })
    }

    /// How many attempts were made.
    pub fn attempts(&self) -> usize {
        let open = self.open.as_ref();
        open.map_or(self.unsent.len(), |open| open.event.attempts.len())
    }

    /// The end. Later calls change nothing.
    pub fn close(&mut self, end: EndState, status: u16, fault: Option<&Fault>) {
        let code = fault.map_or("", |fault| fault.spec().code);
        let Some(mut open) = self.open.take() else {
            if !std::mem::replace(&mut self.counted, true) {
                self.plane.meters.refused(status, code);
            }
            return;
        };
        self.counted = true;
        if let Some(worked) = open.worked.take_if(|_| !open.reached) {
            open.point_to(&worked);
            open.reached = true;
        }
        let event = &mut *open.event;
        event.end = end;
        event.status = status;
        event.fault = fault.map(|_| code.to_owned());
        event.finished_at = UnixMillisText(clock::now());
        event.finish_reason = self.tally.finish_reason.take();
        settle::charge(event, &self.tally, open.size, open.reached);
        let started = self.arrival.started;
        self.plane.meters.ended(&Ended {
            candidate: &open.candidate,
            status,
            fault: code,
            seconds: started.elapsed().as_secs_f64(),
            first_seconds: open.first_byte.map(|at| (at - started).as_secs_f64()),
            tokens: &event.tokens,
            cost: event.charge.total,
        });
        self.plane.writer.outcome(*open.event);
    }

    fn attempt(&mut self) -> Option<&mut AttemptEntry> {
        self.open.as_mut()?.event.attempts.last_mut()
    }

    fn elapsed_ms(&self, now: Instant) -> u32 {
        u32::try_from((now - self.arrival.started).as_millis()).unwrap_or(u32::MAX)
    }

    fn intent(&self, candidate: &Candidate, caller: &Caller, ask: &Ask, revision: Revision) -> UsageEvent {
        let names = &self.plane.names;
        UsageEvent {
            id: self.event_id(),
            request_id: self.arrival.request_id.clone(),
            writer: WriterId(0),
            partition: 0,
            sequence: 0,
            cluster: names.cluster.clone(),
            region: names.region.clone(),
            node: names.node.clone(),
            started_at: UnixMillisText(self.arrival.at),
            first_byte_at: None,
            finished_at: UnixMillisText(self.arrival.at),
            tenant: caller.path.clone(),
            user: ask.user.clone(),
            requested_model: ask.model.clone(),
            model: candidate.endpoint.model.clone(),
            endpoint: candidate.endpoint.id.clone(),
            provider: candidate.provider.id.clone(),
            dialect: candidate.provider.dialect,
            stream: ask.stream,
            end: EndState::Interrupted,
            status: 0,
            fault: None,
            finish_reason: None,
            tokens: TokenCounts {
                input: ask.prompt_tokens,
                ..TokenCounts::default()
            },
            usage_source: UsageSource::Estimated,
            estimator: Some(estimate::NAME.to_owned()),
            revision,
            price_version: candidate.price.id.clone(),
            prices: candidate.price.prices.clone(),
            charge: Charge::default(),
            attempts: Vec::with_capacity(1),
        }
    }

    /// UUIDv7 from this core's own chance: the library's counter would be shared by all cores.
    fn event_id(&self) -> String {
        let (high, low) = (self.plane.dice.bits(), self.plane.dice.bits());
        let mut random = [0; 10];
        random[..8].copy_from_slice(&high.to_be_bytes());
        random[8..].copy_from_slice(&low.to_be_bytes()[..2]);
        let millis = self.arrival.at.0.max(0).unsigned_abs();
        uuid::Builder::from_unix_timestamp_millis(millis, &random)
            .into_uuid()
            .to_string()
    }
}

/// The most completion tokens that a request can be billed for, where anybody set a cap.
fn completion_tokens_max(candidate: &Candidate, ask: &Ask) -> Option<u64> {
    let asked = ask.output_tokens_max.map(u64::from);
    let each = asked.or(candidate.endpoint.max_output_tokens.map(u64::from))?;
    Some(each.saturating_mul(u64::from(ask.answers)))
}

impl Open {
    fn point_to(&mut self, candidate: &Candidate) {
        let event = &mut *self.event;
        event.model = candidate.endpoint.model.clone();
        event.endpoint = candidate.endpoint.id.clone();
        event.provider = candidate.provider.id.clone();
        event.dialect = candidate.provider.dialect;
        event.price_version = candidate.price.id.clone();
        event.prices = candidate.price.prices.clone();
        self.candidate = candidate.clone();
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.close(EndState::Failed, 500, Some(&Fault::Internal));
        } else if self.open.is_some() {
            let answered = self.open.as_ref().is_some_and(|open| open.first_byte.is_some());
            // 499 is the usual status for a caller who did not wait for one.
            self.close(EndState::Cancelled, if answered { 200 } else { 499 }, None);
        }
    }
}
