//! Usage by label: chargeback. A key's own label holds, else its project's, as both are now; usage without one is a group of its own, so that
//! the groups add up to the total.

use std::collections::BTreeMap;

use tollway_shared::ids::{ApiKeyId, ProjectId};
use tollway_shared::labels::UNLABELLED;
use tollway_shared::tenant::TenantPath;

use super::ask::{Ask, KEYS_MAX};
use super::fee::Fees;
use super::state::Group;
use crate::admin::fault::Fault;
use crate::admin::params::wrong_param;
use crate::billing::cell::Dimension;
use crate::billing::query::Summed;
use crate::state::State;

/// What a group has: its sums, and its fee where it is known.
pub(super) type Told = (Summed, Option<i128>);

/// What tells whose labels hold: where labels are asked for, groups are by these too, behind what they are asked by.
pub(super) const OF_KEY: [Dimension; 3] = [Dimension::Organization, Dimension::Project, Dimension::Key];

/// The values of the asked labels for a key of an organization's project. A project that took another's id has no say in its past.
pub(super) fn values(
    state: &State,
    ask: &Ask,
    [organization, project, key]: [&str; 3],
) -> Vec<Option<String>> {
    if ask.labels.is_empty() {
        return Vec::new();
    }
    let key = state.keys.get(&ApiKeyId::trusted(key));
    let project = state.projects.get(&ProjectId::trusted(project));
    let project = project.filter(|kept| kept.value.organization.as_str() == organization);
    let of = |name: &String| {
        let own = key.and_then(|kept| kept.value.labels.get(name));
        let value = own.or_else(|| project?.value.labels.get(name));
        Some(value.map_or_else(|| UNLABELLED.to_owned(), Clone::clone))
    };
    ask.labels.iter().map(of).collect()
}

/// [`OF_KEY`] of a tenant path.
pub(super) fn of_key(path: &TenantPath) -> [&str; 3] {
    [
        path.organization.as_str(),
        path.project.as_str(),
        path.key.as_str(),
    ]
}

/// Groups by key → the page by label, and whether another one follows.
///
/// - `groups`: by the asked dimensions, then [`OF_KEY`]; `more`: there are others.
pub(super) fn page(
    state: &State,
    ask: &Ask,
    groups: Vec<(Group, Summed)>,
    more: bool,
    fees: &Fees,
) -> Result<(Vec<(Group, Told)>, bool), Fault> {
    if more {
        let detail =
            format!("by label makes more than {KEYS_MAX} groups by key; ask for fewer days or dimensions");
        return Err(wrong_param("group_by", detail));
    }
    let mut folded: BTreeMap<Group, Summed> = BTreeMap::new();
    for (mut group, summed) in groups {
        let of_key = group.split_off(ask.by.len());
        let text = |place: usize| of_key.get(place).and_then(Option::as_deref).unwrap_or_default();
        group.extend(values(state, ask, [text(0), text(1), text(2)]));
        folded.entry(group).or_default().add(&summed);
    }
    let after = ask.after()?;
    let mut rest = folded
        .into_iter()
        .filter(|(group, _)| after.as_ref().is_none_or(|after| group > after));
    let page: Vec<_> = rest
        .by_ref()
        .take(ask.window.limit)
        .map(|(group, summed)| {
            let fee = fees.of_group(&group);
            (group, (summed, fee))
        })
        .collect();
    let more = rest.next().is_some();
    Ok((page, more))
}
