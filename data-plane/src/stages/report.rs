//! One usage event per request that was about to reach a provider, and the counters: exactly once, on every exit.
//!
//! The record is closed at the last byte, by a fault, or by its drop, which is how a caller who hangs up ends a request.

use std::rc::Rc;

use tokio::time::Instant;
use tollway_proto::usage::{AttemptEntry, EndState, UnixMillisText, UsageEvent, UsageSource};
use tollway_shared::bill::Adjustment;
use tollway_shared::cost::Charge;
use tollway_shared::fault::Fault;
use tollway_shared::ids::{Revision, WriterId};
use tollway_shared::money::NanoUsd;
use tollway_shared::tokens::TokenCounts;

use super::hold::Holding;
use super::progress::Pace;
use super::settle::{self, Basis};
use crate::ask::Ask;
use crate::clock;
use crate::dialects::Tally;
use crate::dialects::estimate::Size;
use crate::dialects::usage::Billed;
use crate::lease::inherit;
use crate::metrics::Ended;
use crate::pipeline::{Arrival, Caller};
use crate::plane::Plane;
use crate::ratios::Counted;
use crate::routing::Candidate;

/// Under which snapshot an attempt is made, and with whose credential.
#[derive(Debug, Clone, Copy)]
pub struct Serving {
    /// The snapshot's.
    pub revision: Revision,
    /// The organization's own.
    pub byok: bool,
    /// There is no connection yet that it can go out on.
    pub connects: bool,
    /// The most completion tokens of one answer where the caller has no cap, as far as anybody knows.
    pub output_tokens_max: Option<u32>,
}

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
    /// What is set aside for it.
    pub holding: Option<Holding>,
}

/// A request whose intent is in the spool.
struct Open {
    event: Box<UsageEvent>,
    candidate: Candidate,
    size: Size,
    first_byte: Option<Instant>,
    /// The running attempt's request has left, so that its provider may be at work.
    reached: bool,
    /// What is billed if nothing more is ever known is not written down yet: there is no connection that the request could go out on.
    unpriced: bool,
    /// What the running attempt's provider bills of an answer that nobody waits for.
    expected: u64,
    /// The answer was read to its end: nothing more is expected of it.
    whole: bool,
    /// How far the answer is written down.
    pace: Pace,
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
            holding: None,
        }
    }

    /// An attempt begins. Before the first one the intent goes to the spool: nothing is sent that could not be billed.
    pub fn begin(
        &mut self,
        candidate: &Candidate,
        caller: &Caller,
        ask: &Ask,
        serving: Serving,
    ) -> Result<(), Fault> {
        let attempt = AttemptEntry {
            endpoint: candidate.endpoint.id.clone(),
            provider: candidate.provider.id.clone(),
            started_ms: self.elapsed_ms(Instant::now()),
            first_byte_ms: None,
            status: None,
            fault: None,
        };
        let learned = self.plane.ratios.borrow().of(&candidate.endpoint.id);
        let size = ask.size(serving.output_tokens_max, learned);
        let expected = self.expected(candidate, ask, &size);
        let Some(open) = &mut self.open else {
            let mut event = self.intent(candidate, caller, ask, serving);
            event.attempts.append(&mut self.unsent);
            event.attempts.push(attempt);
            if !serving.connects {
                estimate(&mut event, &size, expected);
            }
            let written = match &self.holding {
                None => self.plane.writer.intent(&event),
                Some(holding) => self.plane.writer.intent_holding(&event, &holding.held),
            };
            written.map_err(|fault| {
                // One line a request: that this node sheds, and why, is said once by the spool.
                tracing::debug!(%fault, "a request was shed because its usage could not be recorded");
                Fault::BillingUnavailable
            })?;
            self.plane
                .meters
                .overhead(self.arrival.started.elapsed().as_secs_f64());
            self.open = Some(Open {
                event: Box::new(event),
                candidate: candidate.clone(),
                size,
                first_byte: None,
                reached: false,
                unpriced: serving.connects,
                expected,
                whole: false,
                pace: Pace::new(self.arrival.started),
            });
            return Ok(());
        };
        open.point_to(candidate);
        open.event.byok = serving.byok;
        open.event.attempts.push(attempt);
        (open.size, open.expected) = (size, expected);
        open.unpriced = serving.connects;
        (open.event.tokens, open.event.estimator) = (TokenCounts::default(), None);
        if !serving.connects {
            estimate(&mut open.event, &size, expected);
        }
        self.rewrite();
        Ok(())
    }

    /// Writes the intent again, in place of the one before.
    fn rewrite(&self) {
        let Some(open) = &self.open else { return };
        if let Err(fault) = self.plane.writer.redirected(&open.event) {
            // The one before stands: were the node to die now, it would be billed as that one says.
            tracing::warn!(%fault, request = %self.arrival.request_id, "where a request goes could not be recorded");
        }
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

    /// The running attempt's request leaves: from now on a caller who hangs up leaves a provider behind that bills.
    ///
    /// - `is_out`: false when it came back unsent.
    pub fn attempt_sent(&mut self, is_out: bool) {
        let Some(open) = &mut self.open else { return };
        open.reached = is_out;
        if is_out && std::mem::take(&mut open.unpriced) {
            estimate(&mut open.event, &open.size, open.expected);
            self.rewrite();
        }
    }

    /// The running attempt failed.
    pub fn attempt_failed(&mut self, fault: &'static str) {
        if let Some(open) = &mut self.open {
            open.reached = false;
            if let Some(entry) = open.event.attempts.last_mut() {
                entry.fault = Some(fault.to_owned());
            }
        }
        self.tally = Tally::default();
    }

    /// More of the answer came. Writes down, now and then, how far it has got.
    ///
    /// - `now`: when it came.
    pub fn progress(&mut self, now: Instant) {
        let Some(open) = &mut self.open else { return };
        let tokens = settle::so_far(&self.tally, &open.size);
        let completion = tokens.completion();
        if open.pace.is_due(now, completion) && self.plane.writer.progress(&open.event.request_id, tokens) {
            open.pace.wrote(now, completion);
        }
    }

    /// The provider has said everything, whether or not the caller gets to hear it.
    pub fn whole(&mut self) {
        if let Some(open) = &mut self.open {
            open.whole = true;
        }
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
        let basis = Basis {
            size: open.size,
            used: open.reached,
            expected: 0,
        };
        let settled = settle::settled(&open.event.prices, &self.tally, basis);
        Some(Billed {
            tokens: settled.tokens,
            estimated: settled.source == UsageSource::Estimated,
            cost: open
                .event
                .bill(&settled.charge)
                .map_or(settled.charge.total, |bill| bill.billed),
        })
    }

    /// Completion tokens so far.
    pub fn completion(&self) -> u64 {
        let open = self.open.as_ref();
        open.map_or(0, |open| settle::so_far(&self.tally, &open.size).completion())
    }

    /// How many attempts were made.
    pub fn attempts(&self) -> usize {
        let open = self.open.as_ref();
        open.map_or(self.unsent.len(), |open| open.event.attempts.len())
    }

    /// The end. Later calls change nothing.
    pub fn close(&mut self, end: EndState, status: u16, fault: Option<&Fault>) {
        let code = fault.map_or("", |fault| fault.spec().code);
        let holding = self.holding.take();
        let Some(mut open) = self.open.take() else {
            holding.into_iter().for_each(Holding::release);
            if !std::mem::replace(&mut self.counted, true) {
                self.plane.meters.refused(status, code);
            }
            return;
        };
        self.counted = true;
        let used = match end {
            EndState::Completed => true,
            // As its provider bills it, which has the request.
            EndState::Cancelled | EndState::Interrupted => open.reached,
            // Nobody pays for an error alone, whatever providers did before they failed.
            EndState::Failed => open.first_byte.is_some(),
        };
        let cut_off = end == EndState::Cancelled && !open.whole;
        let basis = Basis {
            size: open.size,
            used,
            expected: if cut_off { open.expected } else { 0 },
        };
        let event = &mut *open.event;
        event.end = end;
        event.status = status;
        event.fault = fault.map(|_| code.to_owned());
        event.finished_at = UnixMillisText(clock::now());
        event.finish_reason = self.tally.finish_reason.take();
        settle::charge(event, &self.tally, basis);
        if event.usage_source == UsageSource::Provider {
            let completion = Counted {
                tokens: event.tokens.completion(),
                bytes: self.tally.text_bytes,
            };
            let prompt = open.size.counted_prompt(&event.tokens);
            self.plane
                .ratios
                .borrow_mut()
                .note(&event.endpoint, prompt, completion);
        }
        let started = self.arrival.started;
        let known = open.whole || event.usage_source == UsageSource::Provider;
        if known && open.candidate.provider.bills_after_cancel {
            let asked_ms = event
                .attempts
                .last()
                .map_or(0, |attempt| u64::from(attempt.started_ms));
            let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.plane.lengths.borrow_mut().note(
                &event.endpoint,
                event.tokens.completion(),
                ms.saturating_sub(asked_ms),
            );
        }
        self.plane.meters.ended(&Ended {
            candidate: &open.candidate,
            status,
            fault: code,
            seconds: started.elapsed().as_secs_f64(),
            first_seconds: open.first_byte.map(|at| (at - started).as_secs_f64()),
            tokens: &event.tokens,
            cost: event.charge.total,
        });
        // In this order: what is settled after a checkpoint has an outcome after it.
        let used = holding.map(|holding| (holding, inherit::used(event), event.model.clone()));
        self.plane.writer.outcome(*open.event);
        if let Some((holding, used, served)) = used {
            holding.settle(&used, &served);
        }
    }

    /// What an endpoint bills of an answer to this ask that nobody waits for ([`SpoolRecord::Intent`] says why).
    ///
    /// [`SpoolRecord::Intent`]: tollway_proto::spool::SpoolRecord::Intent
    fn expected(&self, candidate: &Candidate, ask: &Ask, size: &Size) -> u64 {
        if !candidate.provider.bills_after_cancel {
            return 0;
        }
        let usual = self.plane.lengths.borrow().usual(&candidate.endpoint.id);
        let sold = candidate.endpoint.max_output_tokens.map_or(u64::MAX, u64::from);
        usual
            .min(size.completion_tokens_max)
            .min(sold.saturating_mul(u64::from(ask.answers)))
    }

    fn attempt(&mut self) -> Option<&mut AttemptEntry> {
        self.open.as_mut()?.event.attempts.last_mut()
    }

    fn elapsed_ms(&self, now: Instant) -> u32 {
        u32::try_from((now - self.arrival.started).as_millis()).unwrap_or(u32::MAX)
    }

    fn intent(&self, candidate: &Candidate, caller: &Caller, ask: &Ask, serving: Serving) -> UsageEvent {
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
            tokens: TokenCounts::default(),
            usage_source: UsageSource::Estimated,
            estimator: None,
            revision: serving.revision,
            price_version: candidate.price.id.clone(),
            prices: candidate.price.prices.clone(),
            charge: Charge::default(),
            byok: serving.byok,
            free: candidate.endpoint.model.is_free(),
            adjustment: Adjustment {
                bps: caller.adjustment_bps,
                amount: NanoUsd::ZERO,
            },
            billed: NanoUsd::ZERO,
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

/// Writes down what is billed if nothing more is ever known.
fn estimate(event: &mut UsageEvent, size: &Size, expected: u64) {
    event.tokens.input = size.prompt_tokens();
    event.tokens.output = expected;
    event.estimator = Some(size.estimator().to_owned());
}

impl Open {
    fn point_to(&mut self, candidate: &Candidate) {
        let event = &mut *self.event;
        event.model = candidate.endpoint.model.clone();
        event.free = event.model.is_free();
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
        if let Some(holding) = self.holding.take_if(|_| self.open.is_none()) {
            holding.release(); // nothing was sent
        }
        if std::thread::panicking() {
            self.close(EndState::Failed, 500, Some(&Fault::Internal));
        } else if self.open.is_some() {
            let answered = self.open.as_ref().is_some_and(|open| open.first_byte.is_some());
            // 499 is the usual status for a caller who did not wait for one.
            self.close(EndState::Cancelled, if answered { 200 } else { 499 }, None);
        }
    }
}
