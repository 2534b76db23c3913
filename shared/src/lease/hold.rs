//! Setting the worst case of a request aside on every budget of its path, and settling it.
//!
//! This is the hot path: per level one look at the slice and one compare-and-swap, no lock, no allocation but the list of what
//! was taken.

use std::sync::Arc;

use super::message::{Epoch, Want};
use super::slice::{Reach, Slice};
use crate::budget::terms::{Mode, Terms, Unit};
use crate::ids::BudgetId;
use crate::money::NanoUsd;
use crate::time::UnixMillis;

/// An amount in each unit that budgets count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Money.
    pub money: NanoUsd,
    /// Tokens of every kind.
    pub tokens: i64,
    /// Requests to providers.
    pub requests: i64,
}

impl Amounts {
    /// The amount in a unit, never below zero.
    pub fn of(&self, unit: Unit) -> i64 {
        let amount = match unit {
            Unit::Money => self.money.0,
            Unit::Tokens => self.tokens,
            Unit::Requests => self.requests,
        };
        amount.max(0)
    }

    /// Lowers what is above `most` in a unit.
    pub fn lower(&mut self, unit: Unit, most: i64) {
        match unit {
            Unit::Money => self.money = self.money.min(NanoUsd(most)),
            Unit::Tokens => self.tokens = self.tokens.min(most),
            Unit::Requests => self.requests = self.requests.min(most),
        }
    }
}

/// One budget on a request's path.
#[derive(Debug, Clone, Copy)]
pub struct Level<'a> {
    /// The budget.
    pub budget: &'a BudgetId,
    /// What it says, from the pinned snapshot.
    pub terms: &'a Terms,
    /// The node's slice of it, if it has one.
    pub slice: Option<&'a Arc<Slice>>,
}

/// A request's claim.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    /// The most that it can cost, over every candidate of its plan.
    pub worst: Amounts,
    /// The least that is any use where a budget clamps: the prompt and one token of an answer.
    pub least: Amounts,
}

/// Why nothing is held. Nothing has been taken from any level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Short {
    /// Ask the control plane for all of these in one [`super::message::Ask`], merge the answer, try again; at most a few times. If it
    /// cannot be asked: 503, never 403, for nobody knows that the budget is spent.
    Lease(Vec<Want>),
    /// Budgets clamp: lower the output cap so that the worst case fits into this, say so in a header, and try again.
    Clamp(Amounts),
    /// The budget at this place of the path is spent, or has too little left for this request, as the control plane has said.
    Spent {
        /// Index into the levels.
        level: usize,
        /// What is left of it, as far as is known.
        left: Left,
        /// When its window ends, if it does.
        resets_at: Option<UnixMillis>,
    },
    /// The request is dearer than what this budget allows for one.
    PerRequest {
        /// Index into the levels.
        level: usize,
        /// What it allows.
        most: i64,
    },
}

/// What a budget has left that refuses a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Nothing that is any use.
    Nothing,
    /// Less than this request could cost at most; with a lower cap on its answer it may fit.
    Less,
}

/// Money set aside on every level of one request. Exactly one of [`Hold::settle`] and [`Hold::release`] ends it; dropped
/// without either, it is spent whole, for something may have been sent.
#[derive(Debug)]
#[must_use = "a hold that is dropped is spent whole"]
pub struct Hold {
    parts: Vec<Part>,
}

/// What a hold took from one slice.
#[derive(Debug, Clone)]
pub struct Part {
    /// The slice.
    pub slice: Arc<Slice>,
    /// What the amount counts.
    pub unit: Unit,
    /// How much.
    pub amount: i64,
}

impl Hold {
    /// A hold of these parts.
    pub fn of(parts: Vec<Part>) -> Self {
        Self { parts }
    }

    /// What it holds.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The parts, to be settled by whoever takes them.
    pub fn into_parts(mut self) -> Vec<Part> {
        std::mem::take(&mut self.parts)
    }

    /// The request cost this much.
    pub fn settle(mut self, actual: &Amounts) {
        for part in self.parts.drain(..) {
            part.slice.settle(part.amount, actual.of(part.unit));
        }
    }

    /// Nothing was sent to anybody.
    pub fn release(mut self) {
        for part in self.parts.drain(..) {
            part.slice.untake(part.amount);
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        for part in self.parts.drain(..) {
            part.slice.settle(part.amount, part.amount);
        }
    }
}

/// Sets the claim aside on every level, outermost first, or on none.
pub fn hold(levels: &[Level<'_>], claim: &Claim, now: UnixMillis, reach: Reach) -> Result<Hold, Short> {
    let mut parts: Vec<Part> = Vec::with_capacity(levels.len());
    for (place, level) in levels.iter().enumerate() {
        if level.terms.mode == Mode::Soft {
            continue;
        }
        let unit = level.terms.unit;
        let amount = claim.worst.of(unit);
        if amount == 0 {
            continue; // nothing to set aside, and no reason to ask for a slice
        }
        let cheap = level.terms.per_request_max.is_none_or(|most| amount <= most);
        match level.slice {
            Some(slice) if cheap && slice.current(now, reach) && slice.take(amount, reach) => {
                let slice = slice.clone();
                parts.push(Part { slice, unit, amount });
            }
            _ => {
                Hold { parts }.release();
                return Err(short(levels, place, claim, now, reach));
            }
        }
    }
    Ok(Hold { parts })
}

/// The cold path: what to do about it.
fn short(levels: &[Level<'_>], place: usize, claim: &Claim, now: UnixMillis, reach: Reach) -> Short {
    let level = &levels[place];
    let (unit, worst) = (level.terms.unit, claim.worst.of(level.terms.unit));
    let clamps = level.terms.mode == Mode::Clamp;
    if let Some(most) = level.terms.per_request_max.filter(|most| worst > *most) {
        return if clamps && claim.least.of(unit) <= most {
            clamp(levels, claim, now, reach)
        } else {
            Short::PerRequest { level: place, most }
        };
    }
    let Some(slice) = level.slice.filter(|slice| slice.current(now, reach)) else {
        return ask(levels, claim, now, reach);
    };
    let least = if clamps { claim.least.of(unit) } else { worst };
    if clamps && slice.room(reach) >= least && at_the_end(slice, now, worst) {
        clamp(levels, claim, now, reach)
    } else if slice.dry(now, least) {
        spent(place, slice, claim.least.of(unit), now)
    } else {
        ask(levels, claim, now, reach)
    }
}

/// A refusal by a budget that is known not to have enough. What the least of a request was never refused for may be there.
fn spent(level: usize, slice: &Slice, least: i64, now: UnixMillis) -> Short {
    Short::Spent {
        level,
        left: if slice.dry(now, least) {
            Left::Nothing
        } else {
            Left::Less
        },
        resets_at: slice.ends_at,
    }
}

/// What to clamp to, if the least fits on every level that clamps; else what to do about the first on which it does not.
fn clamp(levels: &[Level<'_>], claim: &Claim, now: UnixMillis, reach: Reach) -> Short {
    let least_of = |level: &Level<'_>| claim.least.of(level.terms.unit);
    let too_dear = |level: &Level<'_>| {
        let most = level.terms.per_request_max;
        most.filter(|most| level.terms.mode == Mode::Clamp && *most < least_of(level))
    };
    let ceilings = levels.iter().map(too_dear).enumerate();
    if let Some((level, most)) = ceilings.filter_map(|(place, most)| Some((place, most?))).next() {
        return Short::PerRequest { level, most };
    }
    for (place, level) in levels.iter().enumerate() {
        let unit = level.terms.unit;
        let ends = |slice: &&Arc<Slice>| {
            level.terms.mode == Mode::Clamp && at_the_end(slice, now, claim.worst.of(unit))
        };
        let least = least_of(level);
        let Some(slice) = level.slice.filter(ends).filter(|slice| slice.room(reach) < least) else {
            continue;
        };
        if slice.dry(now, least) {
            return spent(place, slice, claim.least.of(unit), now);
        }
        return ask(levels, claim, now, reach);
    }
    Short::Clamp(room(levels, claim, now, reach))
}

/// Whether nothing more of this much is to be had at once.
fn at_the_end(slice: &Slice, now: UnixMillis, amount: i64) -> bool {
    slice.short(now) || slice.dry(now, amount)
}

/// The claim, lowered to what clamping levels have left. A level that may still be granted more does not lower it.
fn room(levels: &[Level<'_>], claim: &Claim, now: UnixMillis, reach: Reach) -> Amounts {
    let mut most = claim.worst;
    for level in levels.iter().filter(|level| level.terms.mode == Mode::Clamp) {
        if let Some(ceiling) = level.terms.per_request_max {
            most.lower(level.terms.unit, ceiling);
        }
        let unit = level.terms.unit;
        let ends = |slice: &&Arc<Slice>| at_the_end(slice, now, claim.worst.of(unit));
        if let Some(slice) = level.slice.filter(ends) {
            most.lower(unit, slice.room(reach).max(0));
        }
    }
    most
}

/// Asks for a whole path, unless a level of it is known to be spent: that one would have all of them refused again and again.
fn ask(levels: &[Level<'_>], claim: &Claim, now: UnixMillis, reach: Reach) -> Short {
    for (place, level) in levels.iter().enumerate() {
        let unit = level.terms.unit;
        let least = match level.terms.mode {
            Mode::Soft => continue,
            Mode::Clamp => claim.least.of(unit),
            Mode::Hard => claim.worst.of(unit),
        };
        let slice = level.slice.filter(|slice| slice.current(now, reach));
        if let Some(slice) = slice.filter(|slice| slice.room(reach) < least && slice.dry(now, least)) {
            return spent(place, slice, claim.least.of(unit), now);
        }
    }
    Short::Lease(wants(levels, claim, reach))
}

/// The ask for a whole path.
fn wants(levels: &[Level<'_>], claim: &Claim, reach: Reach) -> Vec<Want> {
    let leased = levels.iter().filter(|level| level.terms.mode != Mode::Soft);
    leased
        .map(|level| {
            let amount = claim.worst.of(level.terms.unit);
            let least = match level.terms.mode {
                Mode::Clamp => claim.least.of(level.terms.unit).min(amount),
                Mode::Hard | Mode::Soft => amount,
            };
            match level.slice {
                Some(slice) => slice.want(amount, least, true, reach),
                None => Want {
                    budget: level.budget.clone(),
                    epoch: Epoch(0),
                    seen: 0,
                    room: 0,
                    amount,
                    least,
                    urgent: true,
                    burn: 0,
                },
            }
        })
        .collect()
}
