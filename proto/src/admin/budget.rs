//! Budgets: what one says, where every unit of it is, temporary raises.
//!
//! Amounts are decimal strings in the budget's unit: dollars, or whole tokens or requests.

pub mod burn;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use tollway_shared::budget as stored;
use tollway_shared::budget::terms;
use tollway_shared::budget::terms::TermsFault;
use tollway_shared::ids::{AdminId, BudgetId, Revision};
use tollway_shared::lease::book::Book;
use tollway_shared::money::NanoUsd;
use tollway_shared::time::UnixMillis;
use tollway_shared::window::{Cycle, Every, Span, WindowFault, Zone};
use utoipa::ToSchema;

use super::text::{self, Text, mirror, noun};

/// The level of the tenant path that a budget limits, and its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BudgetScope {
    /// Everything of an organization.
    Organization(text::OrganizationId),
    /// Everything of a team.
    Team(text::TeamId),
    /// Everything of a project.
    Project(text::ProjectId),
    /// One API key, and the keys that replace it by rotation.
    Key(text::ApiKeyId),
}

impl From<BudgetScope> for stored::BudgetScope {
    fn from(scope: BudgetScope) -> Self {
        match scope {
            BudgetScope::Organization(id) => Self::Organization(id.0),
            BudgetScope::Team(id) => Self::Team(id.0),
            BudgetScope::Project(id) => Self::Project(id.0),
            BudgetScope::Key(id) => Self::Key(id.0),
        }
    }
}

impl From<stored::BudgetScope> for BudgetScope {
    fn from(scope: stored::BudgetScope) -> Self {
        match scope {
            stored::BudgetScope::Organization(id) => Self::Organization(Text(id)),
            stored::BudgetScope::Team(id) => Self::Team(Text(id)),
            stored::BudgetScope::Project(id) => Self::Project(Text(id)),
            stored::BudgetScope::Key(id) => Self::Key(Text(id)),
        }
    }
}

/// How often a budget starts again, in its time zone; weeks start on Monday, months on the 1st.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Period {
    /// At midnight.
    Daily,
    /// On Monday at midnight.
    Weekly,
    /// On the 1st at midnight.
    Monthly,
    /// Never.
    Lifetime,
    /// Every `days` days, counted from `first_day`.
    Days,
}

mirror! {
    /// What a budget counts.
    BudgetUnit = terms::Unit {
        /// US dollars.
        Money "money",
        /// Tokens of every kind.
        Tokens "tokens",
        /// Requests that were sent to a provider.
        Requests "requests",
    }
}

mirror! {
    /// What happens when a budget is spent.
    BudgetMode = terms::Mode {
        /// Refuse until the window ends.
        Hard "hard",
        /// Lower the output cap to what remains; refuse when that is too little for any answer.
        Clamp "clamp",
        /// Count and show. Takes no `per_request_max`.
        Soft "soft",
    }
}

fn hard() -> BudgetMode {
    BudgetMode::Hard
}

fn money() -> BudgetUnit {
    BudgetUnit::Money
}

fn utc() -> String {
    "UTC".into()
}

/// So much of a budget's unit, as a decimal number in a string: US dollars with at most nine digits after the point for a budget of
/// money, a whole number for one of tokens or requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(examples("12.50"))]
pub struct Amount(pub String);

impl Amount {
    /// The text of an amount. Beyond what a counter holds it stays at the end of the range.
    pub fn of(unit: terms::Unit, amount: i128) -> Self {
        let bound = if amount < 0 { i64::MIN } else { i64::MAX };
        let amount = i64::try_from(amount).unwrap_or(bound);
        Self(match unit {
            terms::Unit::Money => NanoUsd(amount).to_string(),
            terms::Unit::Tokens | terms::Unit::Requests => amount.to_string(),
        })
    }

    /// Reads it, or says what is wrong with it.
    pub fn read(&self, unit: terms::Unit) -> Result<i64, String> {
        let text = &self.0;
        match unit {
            terms::Unit::Money => NanoUsd::parse(text)
                .map(|amount| amount.0)
                .map_err(|fault| format!("`{text}` {fault}")),
            terms::Unit::Tokens | terms::Unit::Requests => text
                .parse()
                .map_err(|_| format!("`{text}` is not a whole number such as `1000000`")),
        }
    }
}

/// A field of a body that is wrong, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}`: {why}")]
pub struct FieldFault {
    /// The field.
    pub field: &'static str,
    /// What is wrong with it.
    pub why: String,
}

impl FieldFault {
    fn at(field: &'static str) -> impl Fn(String) -> Self {
        move |why| Self { field, why }
    }
}

noun! {
    /// What to make of a budget. Raises that it has stay.
    put BudgetPut;
    /// A limit on what is spent: `limit_in_force` = `settled` + `leased` + `free`.
    record Budget {
        /// Its id.
        id: text::BudgetId,
        /// The limit of the current window, raises included.
        limit_in_force: Amount,
        /// Spent in the current window, as far as is known: what nodes have reported, or of a soft budget what the ledger has recorded.
        settled: Amount,
        /// Given to nodes to spend, and not settled. Nothing of a soft budget is.
        leased: Amount,
        /// What is left to give to nodes. Below zero after a limit was lowered under what is spent or leased.
        free: Amount,
        /// What the ledger has recorded of the current window. It follows `settled` by seconds; in a time zone that is not UTC it
        /// counts the UTC days whose noon lies in the window.
        recorded: Amount,
        /// Whether everything is spent: `settled` has reached `limit_in_force`.
        exhausted: bool,
        /// When the current window began.
        starts_at: text::Instant,
        /// When the next window begins, if ever.
        resets_at: Option<text::Instant>,
        /// What will be settled at the end of the current window if it goes on as until now: `settled` × the window's length ÷ the time
        /// since its beginning, rounded down; `null` without an end.
        forecast: Option<Amount>,
        /// When `settled` reaches `limit_in_force` at that rate, if before the end.
        exhausted_at: Option<text::Instant>,
        /// Temporary raises that are in force.
        raises: Vec<Raise>,
    }
    fields {
        /// What it limits.
        scope: BudgetScope,
        /// Counts only requests for this model; default: all.
        #[serde(default)] model: Option<text::ModelId>,
        /// What is counted; default: `money`.
        #[serde(default = "money")] unit: BudgetUnit,
        /// The most that may be spent in one window, before raises.
        limit: Amount,
        /// When it starts again.
        period: Period,
        /// How many days a window has, for `days`: from 1 to 3660.
        #[serde(default)] days: Option<u16>,
        /// The first day of some window, for `days`.
        #[serde(default)] first_day: Option<text::Day>,
        /// Whose midnight: an IANA time zone; default: `UTC`.
        #[serde(default = "utc")] time_zone: String,
        /// What happens at the limit; default: `hard`.
        #[serde(default = "hard")] mode: BudgetMode,
        /// The most that one request may cost at worst; default: no ceiling. Not for `soft`, which holds no request.
        #[serde(default)] per_request_max: Option<Amount>,
        /// Shares of the limit, in percent and ascending, that are announced when they are reached; default: none.
        #[serde(default)] thresholds_percent: Vec<u8>,
        /// The share of the limit, in parts per million, that each node keeps for the time when it reaches no control plane; default: 0.
        #[serde(default)] standby_ppm: u32,
    }
}

impl BudgetPut {
    /// The stored form under this id.
    pub fn into_stored(self, id: BudgetId) -> Result<stored::Budget, FieldFault> {
        let Self {
            scope,
            model,
            unit,
            limit,
            period,
            days,
            first_day,
            time_zone,
            mode,
            per_request_max,
            thresholds_percent,
            standby_ppm,
        } = self;
        let unit = unit.into();
        let zone = Zone::parse(&time_zone).map_err(|fault| FieldFault::at("time_zone")(fault.to_string()))?;
        let terms = terms::Terms {
            unit,
            limit: limit.read(unit).map_err(FieldFault::at("limit"))?,
            cycle: Cycle {
                every: every(period, days, first_day)?,
                zone,
            },
            mode: mode.into(),
            per_request_max: per_request_max
                .map(|most| most.read(unit).map_err(FieldFault::at("per_request_max")))
                .transpose()?,
            thresholds_percent,
            raises: Vec::new(),
            standby_ppm,
        };
        terms.check().map_err(|fault| unsound(&fault, unit))?;
        Ok(stored::Budget {
            id,
            scope: scope.into(),
            model: model.map(|model| model.0),
            terms,
        })
    }
}

/// What is wrong with terms, by the body's own field and in the budget's own unit.
fn unsound(fault: &TermsFault, unit: terms::Unit) -> FieldFault {
    let field = match fault {
        TermsFault::Limit => {
            return FieldFault::at("limit")(format!("must be above zero and at most {}", most(unit)));
        }
        TermsFault::PerRequest | TermsFault::PerRequestSoft => "per_request_max",
        TermsFault::Thresholds => "thresholds_percent",
        TermsFault::Raises => "raises",
        TermsFault::Standby => "standby_ppm",
        TermsFault::Cycle(fault) => {
            let field = match fault {
                WindowFault::Days(_) => "days",
                WindowFault::Zone(_) | WindowFault::Range => "time_zone",
            };
            return FieldFault::at(field)(fault.to_string());
        }
    };
    let text = fault.to_string();
    let why = text.strip_prefix(&format!("`{field}` ")).unwrap_or(&text);
    FieldFault::at(field)(why.to_owned())
}

/// The most that a limit may be, raises included.
fn most(unit: terms::Unit) -> String {
    let Amount(amount) = Amount::of(unit, terms::LIMIT_MAX.into());
    let of = match unit {
        terms::Unit::Money => "dollars",
        terms::Unit::Tokens => "tokens",
        terms::Unit::Requests => "requests",
    };
    format!("{amount} {of}")
}

fn every(period: Period, days: Option<u16>, first_day: Option<text::Day>) -> Result<Every, FieldFault> {
    let every = match period {
        Period::Daily => Every::Day,
        Period::Weekly => Every::Week,
        Period::Monthly => Every::Month,
        Period::Lifetime => Every::Lifetime,
        Period::Days => {
            let missing = |field| FieldFault::at(field)("is needed when `period` is `days`".into());
            return Ok(Every::Days {
                count: days.ok_or_else(|| missing("days"))?,
                from: first_day.ok_or_else(|| missing("first_day"))?.0,
            });
        }
    };
    let unused = [("days", days.is_some()), ("first_day", first_day.is_some())];
    match unused.into_iter().find(|(_, there)| *there) {
        Some((field, _)) => Err(FieldFault::at(field)("is only for the period `days`".into())),
        None => Ok(every),
    }
}

/// What has been spent of a budget, and how.
#[derive(Debug, Clone, Copy)]
pub struct Standing<'a> {
    /// The leases of its current window, unless it is soft.
    pub book: Option<&'a Book>,
    /// The current window.
    pub window: Span,
    /// What the ledger has recorded of it.
    pub recorded: i64,
}

impl Budget {
    /// The JSON form of a stored budget, with what is spent of it at `now`.
    pub fn of(budget: &stored::Budget, standing: Standing<'_>, now: UnixMillis, revision: Revision) -> Self {
        let stored::Budget {
            id,
            scope,
            model,
            terms,
        } = budget.clone();
        let terms::Terms {
            unit,
            limit,
            cycle,
            mode,
            per_request_max,
            thresholds_percent,
            raises,
            standby_ppm,
        } = terms;
        let in_force = i128::from(budget.terms.limit_at(now));
        let recorded = i128::from(standing.recorded);
        let (settled, leased) = standing
            .book
            .map_or((recorded, 0), |book| (book.settled, book.outstanding));
        let amount = |amount: i128| Amount::of(unit, amount);
        let burn = burn::burn(settled, in_force, standing.window, now);
        let (period, days, first_day) = match cycle.every {
            Every::Day => (Period::Daily, None, None),
            Every::Week => (Period::Weekly, None, None),
            Every::Month => (Period::Monthly, None, None),
            Every::Lifetime => (Period::Lifetime, None, None),
            Every::Days { count, from } => (Period::Days, Some(count), Some(Text(from))),
        };
        Self {
            id: Text(id),
            limit_in_force: amount(in_force),
            settled: amount(settled),
            leased: amount(leased),
            free: amount(in_force - settled - leased),
            recorded: amount(recorded),
            exhausted: settled >= in_force,
            starts_at: Text(standing.window.start),
            resets_at: standing.window.end.map(Text),
            forecast: burn.forecast.map(amount),
            exhausted_at: burn.exhausted_at.map(Text),
            raises: raises.iter().map(|raise| Raise::of(unit, raise)).collect(),
            scope: scope.into(),
            model: model.map(Text),
            unit: unit.into(),
            limit: amount(i128::from(limit)),
            period,
            days,
            first_day,
            time_zone: cycle.zone.to_string(),
            mode: mode.into(),
            per_request_max: per_request_max.map(|most| amount(i128::from(most))),
            thresholds_percent,
            standby_ppm,
            revision: revision.0,
        }
    }
}

/// More of a budget until an instant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RaiseCreate {
    /// How much more, in the budget's unit.
    pub amount: Amount,
    /// From when it is gone.
    pub until: text::Instant,
    /// Why.
    #[serde(default)]
    pub reason: String,
}

impl RaiseCreate {
    /// The stored form of a raise of a budget with these terms.
    pub fn into_stored(
        self,
        terms: &terms::Terms,
        author: AdminId,
        now: UnixMillis,
    ) -> Result<terms::Raise, FieldFault> {
        let wrong = FieldFault::at("amount");
        let amount = self.amount.read(terms.unit).map_err(&wrong)?;
        let raised = terms.limit_at(now).checked_add(amount);
        if amount <= 0 || raised.is_none_or(|raised| raised > terms::LIMIT_MAX) {
            let most = most(terms.unit);
            return Err(wrong(format!(
                "must be above zero, and with the limit in force at most {most}"
            )));
        }
        Ok(terms::Raise {
            amount,
            until: self.until.0,
            author,
            reason: self.reason,
        })
    }
}

/// A temporary raise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Raise {
    /// How much more, in the budget's unit.
    pub amount: Amount,
    /// From when it is gone.
    pub until: text::Instant,
    /// Who raised it.
    pub author: text::AdminId,
    /// Why.
    pub reason: String,
}

impl Raise {
    fn of(unit: terms::Unit, raise: &terms::Raise) -> Self {
        let terms::Raise {
            amount,
            until,
            author,
            reason,
        } = raise.clone();
        Self {
            amount: Amount::of(unit, i128::from(amount)),
            until: Text(until),
            author: Text(author),
            reason,
        }
    }
}
