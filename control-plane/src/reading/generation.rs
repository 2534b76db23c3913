//! One request, as the billing store has it.

use tollway_proto::push::v1::{Generation, GenerationAttempt, TokenSums};
use tollway_proto::usage::AttemptEntry;
use tonic::Status;

use super::{Reader, unread};
use crate::billing::Billing;
use crate::billing::query::{Statement, Value};

/// Longest id of a request that is looked for.
const ID_BYTES_MAX: usize = 200;

/// Columns, in the order of [`Row`]'s reads.
const COLUMNS: [&str; 26] = [
    "request_id",
    "project",
    "user_label",
    "started_at",
    "first_byte_at",
    "finished_at",
    "model",
    "endpoint",
    "provider",
    "region",
    "stream",
    "end_state",
    "status",
    "finish_reason",
    "usage_source",
    "byok",
    "tokens_input",
    "tokens_input_cache_read",
    "tokens_input_cache_write",
    "tokens_input_cache_write_1h",
    "tokens_output",
    "tokens_output_reasoning",
    "charge",
    "cache_savings",
    "billed",
    "attempts",
];

/// The request of the reader's project with this id; `NOT_FOUND` for every other one, wherever it is.
pub async fn find(billing: &Billing, reader: &Reader, id: &str) -> Result<Generation, Status> {
    let absent = || Status::not_found("there is no such request of this project");
    if id.len() > ID_BYTES_MAX {
        return Err(absent());
    }
    let table = billing.select(vec![statement(reader, id)]).await;
    let rows = table.map_err(|fault| unread(&fault))?.pop().unwrap_or_default();
    let row = rows.into_iter().next().ok_or_else(absent)?;
    generation(row).ok_or_else(|| Status::internal("a row of the billing store is not as it should be"))
}

fn statement(reader: &Reader, id: &str) -> Statement {
    let place = |name: &&str| match *name {
        "project" | "user_label" | "model" | "endpoint" | "provider" | "region" | "byok" => {
            format!("series.{name}")
        }
        name => format!("generation.{name}"),
    };
    let columns: Vec<String> = COLUMNS.iter().map(place).collect();
    let text = format!(
        "SELECT {} FROM generation JOIN series ON series.id = generation.series \
         WHERE generation.request_id = ?1 AND generation.organization = ?2 AND series.project = ?3 \
         ORDER BY generation.id LIMIT 1",
        columns.join(", ")
    );
    let values = [id, reader.organization().as_str(), reader.project().as_str()];
    Statement {
        text,
        values: values
            .iter()
            .map(|text| Value::Text((*text).to_owned()))
            .collect(),
    }
}

/// A row, column by column.
struct Row(std::vec::IntoIter<Value>);

impl Row {
    fn text(&mut self) -> Option<String> {
        match self.0.next()? {
            Value::Text(text) => Some(text),
            Value::Int(_) | Value::None => None,
        }
    }

    fn int(&mut self) -> Option<i64> {
        match self.0.next()? {
            Value::Int(number) => Some(number),
            Value::Text(_) | Value::None => None,
        }
    }

    fn count(&mut self) -> Option<u64> {
        self.int()?.try_into().ok()
    }
}

fn generation(row: Vec<Value>) -> Option<Generation> {
    let mut row = Row(row.into_iter());
    Some(Generation {
        request_id: row.text()?,
        project: row.text()?,
        user: row.text()?,
        started_at: row.int()?,
        first_byte_at: row.int(),
        finished_at: row.int()?,
        model: row.text()?,
        endpoint: row.text()?,
        provider: row.text()?,
        region: row.text()?,
        stream: row.int()? != 0,
        end_state: row.text()?,
        status: row.int()?.try_into().ok()?,
        finish_reason: row.text(),
        usage_source: row.text()?,
        byok: row.text()? == "true",
        tokens: Some(TokenSums {
            input: row.count()?,
            input_cache_read: row.count()?,
            input_cache_write: row.count()?,
            input_cache_write_1h: row.count()?,
            output: row.count()?,
            output_reasoning: row.count()?,
        }),
        charge: row.int()?,
        cache_savings: row.int()?,
        billed: row.int()?,
        attempts: attempts(&row.text()?)?,
    })
}

fn attempts(json: &str) -> Option<Vec<GenerationAttempt>> {
    let attempts: Vec<AttemptEntry> = serde_json::from_str(json).ok()?;
    let shown = |attempt: AttemptEntry| GenerationAttempt {
        endpoint: attempt.endpoint.to_string(),
        provider: attempt.provider.to_string(),
        started_ms: attempt.started_ms,
        first_byte_ms: attempt.first_byte_ms,
        status: attempt.status.map(u32::from),
    };
    Some(attempts.into_iter().map(shown).collect())
}
