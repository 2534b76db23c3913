//! `GET /v1/activity`: what the key's project used, by day and endpoint, of the last 30 days and the running one.

use serde::Serialize;
use tollway_proto::push::v1::read_request::Question;
use tollway_proto::push::v1::{SumField, SumFilter, SumGroup, Sums, SumsQuestion};
use tollway_shared::fault::Fault;
use tollway_shared::time::Day;

use super::generation::{completion, prompt};
use super::params::{Params, wrong};
use super::shape::{Data, Usd};
use crate::pipeline::Caller;

/// Days before the running one.
const DAYS: i32 = 30;
/// Most rows.
const ROWS_MAX: u32 = 10_000;
const DAY_HOURS: i64 = 24;

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub struct Wanted {
    first: Day,
    last: Day,
    key: Option<String>,
    /// Its id, where every row is to say it.
    workspace: Option<String>,
}

/// A row.
#[derive(Debug, Serialize)]
pub struct Row<'a> {
    date: &'a str,
    model: &'a str,
    model_permaslug: &'a str,
    endpoint_id: &'a str,
    provider_name: &'a str,
    usage: Usd,
    byok_usage_inference: Usd,
    requests: u64,
    prompt_tokens: u64,
    completion_tokens: u64,
    reasoning_tokens: u64,
    cached_tokens: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    workspace_id: Option<&'a str>,
}

impl Wanted {
    /// Reads the parameters.
    pub fn of(params: &Params, caller: &Caller, today: Day) -> Result<Self, Fault> {
        let earliest = Day(today.0 - DAYS);
        let (first, last) = match params.get("date") {
            None => (earliest, today),
            Some(text) => {
                let day = Day::parse(text).filter(|day| day.to_string() == text);
                let day = day.ok_or_else(|| wrong("date", "is not a UTC day such as 2026-11-22"))?;
                if day < earliest || day > today {
                    return Err(wrong("date", &format!("must be from {earliest} to {today}")));
                }
                (day, day)
            }
        };
        let project = caller.path.project.as_str();
        if params.get("workspace_id").is_some_and(|id| id != project) {
            let detail = format!("must be `{project}`, the project of this API key");
            return Err(wrong("workspace_id", &detail));
        }
        if params.get("user_id").is_some() {
            return Err(wrong(
                "user_id",
                "is not known: API keys belong to projects, not to people",
            ));
        }
        let workspace = match params.get("group_by") {
            None => None,
            Some("workspace") => Some(project.to_owned()),
            Some(_) => return Err(wrong("group_by", "must be `workspace`")),
        };
        Ok(Self {
            first,
            last,
            key: params.get("api_key_hash").map(str::to_owned),
            workspace,
        })
    }

    /// The question to the control plane.
    pub fn question(&self) -> Question {
        let filter = |key: &String| SumFilter {
            field: SumField::Key.into(),
            values: vec![key.clone()],
            none_of: false,
        };
        let by = [
            SumField::Day,
            SumField::Model,
            SumField::Endpoint,
            SumField::Provider,
        ];
        Question::Sums(SumsQuestion {
            from_hour: i64::from(self.first.0) * DAY_HOURS,
            until_hour: (i64::from(self.last.0) + 1) * DAY_HOURS,
            by: by.map(Into::into).to_vec(),
            filters: self.key.iter().map(filter).collect(),
            groups_max: ROWS_MAX,
            latencies: false,
            own_credentials: true,
        })
    }

    /// Why there is no answer when there are too many rows.
    pub fn too_much(&self) -> Fault {
        let detail =
            format!("would have more than {ROWS_MAX} rows; ask for one day, or for one `api_key_hash`");
        wrong("date", &detail)
    }

    /// The answer's body. `None`: the control plane has answered another question.
    pub fn body<'a>(&'a self, sums: &'a Sums) -> Option<Data<Vec<Row<'a>>>> {
        let rows: Option<_> = sums.groups.iter().map(|group| self.row(group)).collect();
        rows.map(|data| Data { data })
    }

    fn row<'a>(&'a self, group: &'a SumGroup) -> Option<Row<'a>> {
        let [date, model, endpoint, provider] = group.values.as_slice() else {
            return None;
        };
        let tokens = group.tokens.unwrap_or_default();
        Some(Row {
            date,
            model,
            model_permaslug: model,
            endpoint_id: endpoint,
            provider_name: provider,
            usage: Usd(group.billed),
            byok_usage_inference: Usd(group.byok_charge),
            requests: group.requests,
            prompt_tokens: prompt(&tokens),
            completion_tokens: completion(&tokens),
            reasoning_tokens: tokens.output_reasoning,
            cached_tokens: tokens.input_cache_read,
            workspace_id: self.workspace.as_deref(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;
    use tollway_proto::push::v1::TokenSums;
    use tollway_shared::ids::{ApiKeyId, OrganizationId, ProjectId};
    use tollway_shared::tenant::{ApiKey, TenantPath};
    use tollway_shared::time::UnixMillis;

    use super::*;

    fn today() -> Day {
        Day::parse("2026-11-22").unwrap()
    }

    fn wanted(query: &str) -> Result<Wanted, Fault> {
        let key = ApiKey {
            id: ApiKeyId::trusted("k"),
            project: ProjectId::trusted("p"),
            name: String::new(),
            digest: [0; 32],
            pepper_version: 1,
            last4: String::new(),
            models: Vec::new(),
            created_at: UnixMillis(0),
            expires_at: None,
            revoked_at: None,
            rotated_from: None,
            labels: tollway_shared::labels::Labels::new(),
        };
        let caller = Caller {
            path: TenantPath {
                organization: OrganizationId::trusted("o"),
                team: None,
                project: key.project.clone(),
                key: key.id.clone(),
            },
            key: Arc::new(key),
            adjustment_bps: 0,
        };
        Wanted::of(&Params::read(Some(query))?, &caller, today())
    }

    fn hours(query: &str) -> (i64, i64) {
        let Question::Sums(question) = wanted(query).unwrap().question() else {
            panic!("sums are asked for");
        };
        let start = i64::from(today().0) * DAY_HOURS;
        (question.from_hour - start, question.until_hour - start)
    }

    #[test]
    fn the_last_thirty_days_and_the_running_one_are_asked_for_or_one_of_them() {
        assert_eq!(hours(""), (-30 * DAY_HOURS, DAY_HOURS));
        assert_eq!(hours("date=2026-11-22"), (0, DAY_HOURS));
        assert_eq!(
            hours("date=2026-10-23&unknown=1"),
            (-30 * DAY_HOURS, -29 * DAY_HOURS)
        );
        for (query, param) in [
            ("date=2026-10-22", "date"),
            ("date=2026-11-23", "date"),
            ("date=today", "date"),
            ("group_by=model", "group_by"),
            ("workspace_id=q", "workspace_id"),
            ("user_id=u", "user_id"),
        ] {
            let fault = wanted(query).unwrap_err();
            assert_eq!((fault.status(), fault.param()), (400, Some(param)), "{query}");
        }
    }

    fn group(billed: i64, byok_charge: i64) -> SumGroup {
        SumGroup {
            values: ["2026-11-22", "a/m", "acme/a/m", "acme"]
                .map(str::to_owned)
                .to_vec(),
            requests: 2,
            tokens: Some(TokenSums {
                input: 5,
                input_cache_read: 3,
                output: 7,
                output_reasoning: 4,
                ..TokenSums::default()
            }),
            charge: 99,
            billed,
            byok_charge,
            ..SumGroup::default()
        }
    }

    #[test]
    fn a_row_tells_what_was_billed_from_what_own_credentials_paid_for() {
        let sums = Sums {
            groups: vec![group(12_100, 500)],
            has_more: false,
        };
        let wanted = wanted("group_by=workspace&workspace_id=p").unwrap();
        let body = serde_json::to_value(wanted.body(&sums).unwrap()).unwrap();
        let row = json!({
            "date": "2026-11-22", "model": "a/m", "model_permaslug": "a/m", "endpoint_id": "acme/a/m", "provider_name": "acme",
            "usage": 1.21e-5, "byok_usage_inference": 5e-7, "requests": 2, "prompt_tokens": 8, "completion_tokens": 11,
            "reasoning_tokens": 4, "cached_tokens": 3, "workspace_id": "p",
        });
        assert_eq!(body, json!({"data": [row]}));
        let other = Sums {
            groups: vec![SumGroup::default()],
            has_more: false,
        };
        assert!(wanted.body(&other).is_none(), "of another question");
    }

    #[test]
    fn rows_say_their_workspace_only_when_asked() {
        let sums = Sums {
            groups: vec![group(1, 0)],
            has_more: false,
        };
        let wanted = wanted("api_key_hash=k").unwrap();
        let body = serde_json::to_value(wanted.body(&sums).unwrap()).unwrap();
        assert_eq!(body["data"][0].get("workspace_id"), None);
        let Question::Sums(question) = wanted.question() else {
            panic!("sums are asked for");
        };
        assert_eq!(question.filters[0].values, ["k"]);
    }
}
