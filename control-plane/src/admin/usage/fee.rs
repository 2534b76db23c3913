//! Fees on own credentials, for the groups of an answer of the billing store: from the replicated sums, which alone have them.
//!
//! They are known by organization, team, project, key, model, provider, day and month. By what else usage may be grouped or chosen,
//! they are not, and an answer says none rather than a wrong one; where there are no fees at all, they are zero by anything.

use std::collections::BTreeMap;

use tollway_proto::admin::text::{Text, Usd};
use tollway_proto::admin::usage::UsageDimension as By;
use tollway_shared::money::NanoUsd;

use super::ask::Ask;
use super::label;
use super::state::{Group, value};
use crate::report::fee::{Days, FeeLine, lines};
use crate::state::State;

/// Hours in a day.
const DAY_HOURS: i64 = 24;

/// What is known of the fees of an answer.
#[derive(Debug, Default)]
pub(super) struct Fees {
    groups: Option<BTreeMap<Group, i128>>,
    total: Option<i128>,
}

impl Fees {
    /// Those that an answer to `ask` is about.
    pub(super) fn of(state: &State, ask: &Ask) -> Self {
        let Some(lines) = wanted(state, ask) else {
            return Self::default();
        };
        if lines.is_empty() {
            return Self {
                groups: Some(BTreeMap::new()),
                total: Some(0),
            };
        }
        let mut groups = Some(BTreeMap::new());
        let mut total = Some(0);
        for line in &lines {
            match ask.takes(line) {
                Some(true) => {}
                Some(false) => continue,
                None => total = None,
            }
            total = total.map(|total: i128| total + line.fee);
            let group: Option<Group> = ask.by.iter().map(|by| named(line, *by)).collect();
            let group = group.and_then(|mut group| {
                if !ask.labels.is_empty() {
                    let of_key = label::of_key(&line.cell.as_ref()?.path);
                    group.extend(label::values(state, ask, of_key));
                }
                Some(group)
            });
            groups = groups.zip(group).map(|(mut groups, group)| {
                *groups.entry(group).or_insert(0i128) += line.fee;
                groups
            });
        }
        Self {
            groups: groups.filter(|_| total.is_some()),
            total,
        }
    }

    /// The fee of a group.
    pub(super) fn of_group(&self, group: &[Option<String>]) -> Option<i128> {
        let groups = self.groups.as_ref()?;
        Some(groups.get(group).copied().unwrap_or_default())
    }

    /// The fee of everything wanted.
    pub(super) fn total(&self) -> Option<i128> {
        self.total
    }
}

/// An amount, unless it is beyond the range of money.
pub(super) fn usd(nano: i128) -> Option<Usd> {
    i64::try_from(nano).ok().map(|nano| Text(NanoUsd(nano)))
}

/// The fees of the wanted days, if they are known by whole days and by no less.
fn wanted(state: &State, ask: &Ask) -> Option<Vec<FeeLine>> {
    let hours = ask.hours();
    let (from, to) = ask.days();
    let only = ask.organization(state);
    let mut found = Vec::new();
    for (id, account) in &state.accounts {
        let is_wanted = only.as_ref().is_none_or(|only| only == id);
        let has_fees = || account.owed.values().any(|owed| owed.fee != NanoUsd::ZERO);
        if !is_wanted || from > to || !has_fees() {
            continue;
        }
        found.extend(lines(state, id, Days { from, to }).ok()?);
    }
    let is_whole = |hour: i64| hour == i64::MIN || hour == i64::MAX || hour.rem_euclid(DAY_HOURS) == 0;
    (found.is_empty() || (is_whole(hours.from) && is_whole(hours.until))).then_some(found)
}

impl Ask {
    /// Whether it is about a fee; `None` where that is not known.
    fn takes(&self, line: &FeeLine) -> Option<bool> {
        for (by, wanted) in &self.equal {
            let is_time = matches!(by, By::Hour | By::Day | By::Month); // among the hours already
            if !is_time && named(line, *by)?.as_ref() != Some(wanted) {
                return Some(false);
            }
        }
        Some(true)
    }
}

/// A fee's value in a dimension, which may be none; the outer `None` where it is not known.
fn named(line: &FeeLine, by: By) -> Option<Option<String>> {
    match (by, &line.cell) {
        (By::Byok, _) => Some(Some("true".to_owned())),
        (By::User | By::Endpoint | By::Region | By::PriceVersion | By::Hour, _) => None,
        (by, Some(cell)) => Some(value(cell, by)),
        (By::Organization, None) => Some(Some(line.organization.to_string())),
        (By::Month, None) => Some(Some(line.month.month_text())),
        (By::Team | By::Project | By::Key | By::Model | By::Provider | By::Day, None) => None,
    }
}
