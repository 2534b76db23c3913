//! `GET /admin/v1/usage/forecast`: where spending is heading, from the sums in the replicated state.

use std::sync::Arc;

use axum::extract::State as Shared;
use tollway_proto::admin::problem::ProblemCode;
use tollway_proto::admin::report::Forecast;
use tollway_shared::ids::{ApiKeyId, OrganizationId, ProjectId, TeamId};
use tollway_shared::time::{Day, Period};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::Api;
use super::super::account::must_be_of;
use super::super::exchange::{Answer, Read};
use super::super::fault::Fault;
use super::super::params::wrong_param;
use crate::clock;
use crate::report::forecast;
use crate::state::{State, usage};

/// Most sums that a forecast reads.
const CELLS_READ_MAX: usize = 200_000;

/// Forecasts the cost at list price to the end of the current period, of everything or of one organization, team, project or key. A
/// straight line: what was spent, and what was spent per second since 00:00 UTC seven days ago, or of the first day since then that has
/// usage (sums are kept by the day), for the seconds that are left. Refused where sums of the period's days were forgotten.
#[utoipa::path(get, path = "/usage/forecast", tag = "reports",
    params(
        ("period" = Option<String>, Query, description = "`daily`, `weekly` or `monthly` (default), UTC."),
        ("organization" = Option<String>, Query), ("team" = Option<String>, Query),
        ("project" = Option<String>, Query), ("key" = Option<String>, Query),
    ),
    responses((status = 200, body = Forecast)), security(("admin_key" = ["owner", "admin", "operator", "viewer"])))]
async fn get_forecast(Shared(api): Shared<Arc<Api>>, mut read: Read) -> Result<Answer<Forecast>, Fault> {
    let period = match read.params.take("period").as_deref() {
        Some("daily") => Period::Daily,
        Some("weekly") => Period::Weekly,
        None | Some("monthly") => Period::Monthly,
        Some(other) => {
            let why = format!("`{other}` is none of `daily`, `weekly`, `monthly`");
            return Err(wrong_param("period", why));
        }
    };
    let organization: Option<OrganizationId> = read.params.take_text("organization")?;
    let team: Option<TeamId> = read.params.take_text("team")?;
    let project: Option<ProjectId> = read.params.take_text("project")?;
    let key: Option<ApiKeyId> = read.params.take_text("key")?;
    let seen = read.seen(&api).await?;
    must_be_of(&seen.state, organization.as_ref())?;
    let now = clock::now();
    let (start, end) = period.window(now);
    let Some(end) = end else {
        return Err(wrong_param("period", "has no end"));
    };
    must_be_kept(&seen.state, start.day())?;
    let first = forecast::first_day(start, now);
    let mut read = 0;
    let cells = usage::cells(&seen.state, first, Day(i32::MAX), organization.as_ref())
        .take_while(|_| {
            read += 1;
            read <= CELLS_READ_MAX
        })
        .filter(|(cell, _)| {
            team.as_ref()
                .is_none_or(|team| cell.path.team.as_ref() == Some(team))
                && project
                    .as_ref()
                    .is_none_or(|project| cell.path.project == *project)
                && key.as_ref().is_none_or(|key| cell.path.key == *key)
        })
        .map(|(cell, sums)| (cell, sums.cost));
    let forecast = forecast::forecast((start, end), now, cells)
        .map_err(|fault| Fault::new(ProblemCode::Internal, format!("the sum {fault}")))?;
    if read > CELLS_READ_MAX {
        let detail = format!(
            "this would read more than {CELLS_READ_MAX} sums; name an organization, or a shorter period"
        );
        return Err(Fault::new(ProblemCode::TooLarge, detail));
    }
    Ok(seen.answer(forecast))
}

/// Refuses a period of which only a part would be told as what was spent.
fn must_be_kept(state: &State, start: Day) -> Result<(), Fault> {
    let since = state.usage_since;
    if since <= start {
        return Ok(());
    }
    let why = format!(
        "begins on {start}, and the sums of days before {since} are forgotten; ask for a shorter one"
    );
    Err(wrong_param("period", why))
}

/// The routes of forecasts.
pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(get_forecast))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::samples::{self, NOON};

    #[test]
    fn a_period_of_which_sums_are_forgotten_is_refused() {
        let mut state = samples::catalog();
        let start = NOON.day().month();
        for (days, is_kept) in [(-1, true), (0, true), (1, false)] {
            state.usage_since = Day(start.0 + days);
            assert_eq!(must_be_kept(&state, start).is_ok(), is_kept, "{days}");
        }
        let problem = must_be_kept(&state, start).unwrap_err().problem();
        assert_eq!(problem.field.as_deref(), Some("period"));
        assert!(problem.detail.contains("before 2026-11-02"), "{problem:?}");
    }
}
