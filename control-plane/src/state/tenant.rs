//! Commands on who asks and who pays: organizations, teams, projects, API keys.

use tollway_proto::command::{Refusal, RefusalCode};
use tollway_shared::bill::{self, BPS_MAX, BPS_MIN};
use tollway_shared::credit::ORGANIZATION_BYTES_MAX;
use tollway_shared::ids::{ApiKeyId, OrganizationId, ProjectId, TeamId};
use tollway_shared::labels::{self, Labels};
use tollway_shared::snapshot::ResourceKind;
use tollway_shared::tenant::{self, ApiKey, Organization, Project, ROTATIONS_MAX, Team};
use tollway_shared::time::UnixMillis;

use super::view::key;
use super::{State, Step, credit, must_be_unused, must_exist, not_found, quota, refuse};

pub(super) fn put_organization(
    state: &mut State,
    step: &mut Step<'_>,
    organization: &Organization,
) -> Result<(), Refusal> {
    let bytes = organization.id.as_str().len();
    if bytes > ORGANIZATION_BYTES_MAX {
        let detail = format!(
            "has {bytes} bytes; an organization's may have at most {ORGANIZATION_BYTES_MAX}, as the budgets that hold it to its credit are named after it"
        );
        return Err(refuse(RefusalCode::Invalid, "id", detail));
    }
    if !bill::admissible(organization.adjustment_bps) {
        let detail = format!("must be between {BPS_MIN} and {BPS_MAX}");
        return Err(refuse(RefusalCode::Invalid, "adjustment_bps", detail));
    }
    step.put(
        &mut state.organizations,
        organization.id.clone(),
        organization.clone(),
    )?;
    step.changed
        .push(key(ResourceKind::Organization, organization.id.text()));
    credit::settle(state, step, &organization.id);
    quota::follow(state, step, &organization.id);
    Ok(())
}

pub(super) fn remove_organization(
    state: &mut State,
    step: &mut Step<'_>,
    id: &OrganizationId,
) -> Result<(), Refusal> {
    let project = state
        .projects
        .values()
        .find(|kept| kept.value.organization == *id);
    must_be_unused(
        project.map(|kept| format!("project `{}`", kept.value.id)),
        "organization",
    )?;
    let team = state.teams.values().find(|kept| kept.value.organization == *id);
    must_be_unused(
        team.map(|kept| format!("team `{}`", kept.value.id)),
        "organization",
    )?;
    let own = state
        .credentials
        .values()
        .map(|kept| &kept.value)
        .find(|credential| {
            credential
                .owner
                .as_ref()
                .is_some_and(|owner| owner.organization == *id)
        });
    must_be_unused(
        own.map(|credential| format!("credential `{}`", credential.key())),
        "organization",
    )?;
    credit::must_be_settled(state, id)?;
    step.take(&mut state.organizations, id, "organization")?;
    step.changed.push(key(ResourceKind::Organization, id.text()));
    credit::forget(state, step, id);
    Ok(())
}

pub(super) fn put_team(state: &mut State, step: &mut Step<'_>, team: &Team) -> Result<(), Refusal> {
    must_exist(
        state.organizations.contains_key(&team.organization),
        "organization",
        "organization",
        &team.organization,
    )?;
    stays_in(
        state.teams.get(&team.id).map(|kept| &kept.value.organization),
        &team.organization,
    )?;
    step.put(&mut state.teams, team.id.clone(), team.clone())?;
    step.changed.push(key(ResourceKind::Team, team.id.text()));
    Ok(())
}

pub(super) fn remove_team(state: &mut State, step: &mut Step<'_>, id: &TeamId) -> Result<(), Refusal> {
    let project = state
        .projects
        .values()
        .find(|kept| kept.value.team.as_ref() == Some(id));
    must_be_unused(project.map(|kept| format!("project `{}`", kept.value.id)), "team")?;
    step.take(&mut state.teams, id, "team")?;
    step.changed.push(key(ResourceKind::Team, id.text()));
    Ok(())
}

pub(super) fn put_project(state: &mut State, step: &mut Step<'_>, project: &Project) -> Result<(), Refusal> {
    let organization = &project.organization;
    must_exist(
        state.organizations.contains_key(organization),
        "organization",
        "organization",
        organization,
    )?;
    stays_in(
        state
            .projects
            .get(&project.id)
            .map(|kept| &kept.value.organization),
        organization,
    )?;
    if let Some(team) = &project.team {
        let there = state
            .teams
            .get(team)
            .is_some_and(|kept| kept.value.organization == *organization);
        must_exist(there, "team", "a team of this organization", team)?;
    }
    sound(&project.labels)?;
    step.put(&mut state.projects, project.id.clone(), project.clone())?;
    step.changed.push(key(ResourceKind::Project, project.id.text()));
    Ok(())
}

/// Keys that can no longer be used go with their project.
pub(super) fn remove_project(state: &mut State, step: &mut Step<'_>, id: &ProjectId) -> Result<(), Refusal> {
    let now = step.entry.at;
    let keys: Vec<ApiKey> = state
        .keys
        .values()
        .filter(|kept| kept.value.project == *id)
        .map(|kept| kept.value.clone())
        .collect();
    let live = keys
        .iter()
        .find(|key| key.revoked_at.is_none() && key.expires_at.is_none_or(|at| at > now));
    must_be_unused(live.map(|key| format!("API key `{}`", key.id)), "project")?;
    step.take(&mut state.projects, id, "project")?;
    step.changed.push(key(ResourceKind::Project, id.text()));
    for dead in keys {
        state.keys.remove(&dead.id);
        step.changed.push(key(ResourceKind::ApiKey, dead.id.text()));
    }
    Ok(())
}

pub(super) fn create_key(state: &mut State, step: &mut Step<'_>, new: &ApiKey) -> Result<(), Refusal> {
    must_exist(
        state.projects.contains_key(&new.project),
        "project",
        "project",
        &new.project,
    )?;
    if state.keys.contains_key(&new.id) {
        return Err(refuse(
            RefusalCode::Conflict,
            "id",
            format!("API key `{}` exists", new.id),
        ));
    }
    for model in &new.models {
        must_exist(state.models.contains_key(model), "models", "model", model)?;
    }
    if new.expires_at.is_some_and(|at| at <= step.entry.at) {
        return Err(refuse(
            RefusalCode::Invalid,
            "expires_at",
            "must be in the future",
        ));
    }
    sound(&new.labels)?;
    step.put(&mut state.keys, new.id.clone(), new.clone())?;
    step.changed.push(key(ResourceKind::ApiKey, new.id.text()));
    Ok(())
}

/// The new key takes over everything of the old one but its id, digest and dates. A budget on the old one goes on as it is and
/// covers both: see [`tollway_shared::tenant::line`].
pub(super) fn rotate_key(
    state: &mut State,
    step: &mut Step<'_>,
    old: &ApiKeyId,
    old_expires_at: UnixMillis,
    new: &ApiKey,
) -> Result<(), Refusal> {
    let Some(kept) = state.keys.get(old).cloned() else {
        return Err(not_found("API key", old));
    };
    step.expect_revision(Some(kept.revision))?;
    if kept.value.revoked_at.is_some() {
        return Err(Refusal {
            code: RefusalCode::Conflict,
            field: None,
            detail: format!("API key `{old}` was revoked"),
        });
    }
    if let Some(successor) = successor(state, old, &kept.value) {
        return Err(Refusal {
            code: RefusalCode::Conflict,
            field: None,
            detail: format!("API key `{old}` was replaced by `{successor}`; rotate that one"),
        });
    }
    if state.keys.contains_key(&new.id) {
        return Err(refuse(
            RefusalCode::Conflict,
            "id",
            format!("API key `{}` exists", new.id),
        ));
    }
    if line(state, old).count() > ROTATIONS_MAX {
        return Err(Refusal {
            code: RefusalCode::Conflict,
            field: None,
            detail: format!("API key `{old}` comes from {ROTATIONS_MAX} rotations; make a new key instead"),
        });
    }
    let mut ending = kept.value.clone();
    ending.expires_at = Some(
        ending
            .expires_at
            .map_or(old_expires_at, |at| at.min(old_expires_at)),
    );
    let mut successor = new.clone();
    successor.project = kept.value.project.clone();
    successor.models = kept.value.models.clone();
    successor.labels = kept.value.labels.clone();
    successor.rotated_from = Some(old.clone());
    state.keys.insert(
        successor.id.clone(),
        super::Kept {
            value: successor,
            revision: step.revision,
        },
    );
    step.put(&mut state.keys, old.clone(), ending)?;
    step.changed.push(key(ResourceKind::ApiKey, old.text()));
    step.changed.push(key(ResourceKind::ApiKey, new.id.text()));
    Ok(())
}

/// A key and those that it came from by rotation, the newest first.
pub(super) fn line(state: &State, key: &ApiKeyId) -> impl Iterator<Item = ApiKeyId> {
    tenant::line(key.clone(), |key| state.keys.get(key)?.value.rotated_from.clone())
}

/// The key that replaced this one. A rotation always sets an end, so that a key without one needs no search among all keys.
fn successor(state: &State, old: &ApiKeyId, key: &ApiKey) -> Option<ApiKeyId> {
    key.expires_at?;
    let mut newer = state.keys.iter();
    newer
        .find(|(_, kept)| kept.value.rotated_from.as_ref() == Some(old))
        .map(|(id, _)| id.clone())
}

/// Revoking twice keeps the first date and is not an error.
pub(super) fn revoke_key(state: &mut State, step: &mut Step<'_>, id: &ApiKeyId) -> Result<(), Refusal> {
    let Some(kept) = state.keys.get(id).cloned() else {
        return Err(not_found("API key", id));
    };
    if kept.value.revoked_at.is_some() {
        return step.expect_revision(Some(kept.revision));
    }
    let mut revoked = kept.value;
    revoked.revoked_at = Some(step.entry.at);
    step.put(&mut state.keys, id.clone(), revoked)?;
    step.changed.push(key(ResourceKind::ApiKey, id.text()));
    Ok(())
}

/// Sets the labels of a key, a dead one's too: what it used is still reported.
pub(super) fn label_key(
    state: &mut State,
    step: &mut Step<'_>,
    id: &ApiKeyId,
    labels: &Labels,
) -> Result<(), Refusal> {
    let Some(kept) = state.keys.get(id).cloned() else {
        return Err(not_found("API key", id));
    };
    sound(labels)?;
    let mut labelled = kept.value;
    labelled.labels = labels.clone();
    step.put(&mut state.keys, id.clone(), labelled)
}

fn sound(labels: &Labels) -> Result<(), Refusal> {
    labels::check(labels).map_err(|fault| refuse(RefusalCode::Invalid, "labels", fault.to_string()))
}

fn stays_in(stored: Option<&OrganizationId>, wanted: &OrganizationId) -> Result<(), Refusal> {
    match stored {
        Some(stored) if stored != wanted => Err(refuse(
            RefusalCode::Conflict,
            "organization",
            format!("cannot change: it belongs to `{stored}`"),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use tollway_proto::command::{Command, Outcome};

    use super::*;
    use crate::state::samples;

    #[test]
    fn a_key_is_rotated_so_often_and_no_more() {
        let mut state = samples::catalog();
        let mut outcome = None;
        for n in 0..=ROTATIONS_MAX {
            let old = if n == 0 { "k".to_owned() } else { format!("k{n}") };
            let mut new = samples::api_key(&format!("k{}", n + 1), 2);
            new.digest[..8].copy_from_slice(&n.to_be_bytes());
            let rotate = Command::RotateKey {
                old: ApiKeyId::trusted(old),
                old_expires_at: samples::NOON,
                new,
            };
            assert!(!matches!(outcome, Some(Outcome::Refused(_))), "after {n}");
            outcome = Some(samples::run(&mut state, rotate));
        }
        let Some(Outcome::Refused(refusal)) = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!(refusal.code, RefusalCode::Conflict);
        let last = ApiKeyId::trusted(format!("k{ROTATIONS_MAX}"));
        assert_eq!(
            line(&state, &last).last(),
            Some(ApiKeyId::trusted("k")),
            "the first one is reached"
        );
    }
}
