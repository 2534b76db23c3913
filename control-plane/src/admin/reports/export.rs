//! `GET /admin/v1/exports/focus`: charges as they are read, one part of the answer after the other.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State as Shared;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tollway_proto::admin::problem::ProblemCode;
use tollway_shared::ids::OrganizationId;
use tollway_shared::time::UnixMillis;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::Api;
use super::super::account::must_be_of;
use super::super::exchange::{Read, blocking};
use super::super::fault::Fault;
use super::super::params::wrong_param;
use super::days::take_days;
use super::read::{ReadFault, Source, wanted};
use crate::billing::lines::Wanted;
use crate::clock;
use crate::report::account::{self, Movement};
use crate::report::fee::{self, FeeLine};
use crate::report::focus::columns::Row;
use crate::report::focus::{csv, parquet, rows};
use crate::report::invoice::FINAL_AFTER_MS;
use crate::report::line::{Line, Merge};
use crate::state::State;

/// Bytes of one part.
const PART_BYTES: usize = 64 << 10;
/// Parts that wait for the caller.
const PARTS_WAITING: usize = 4;
/// How long a caller may take to accept a part.
const PART_WITHIN: Duration = Duration::from_secs(60);

/// The form of the export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Csv,
    Parquet,
}

impl Format {
    fn read(text: &str) -> Result<Self, Fault> {
        match text {
            "csv" => Ok(Self::Csv),
            "parquet" => Ok(Self::Parquet),
            other => Err(wrong_param(
                "format",
                format!("`{other}` is neither `csv` nor `parquet`"),
            )),
        }
    }

    fn spec(self) -> (&'static str, &'static str) {
        match self {
            Self::Csv => ("text/csv; charset=utf-8; header=present", "csv"),
            Self::Parquet => ("application/vnd.apache.parquet", "parquet"),
        }
    }
}

/// Exports charges as FOCUS 1.4 Cost and Usage: one row per hour, API key, meter and endpoint, then rows for rounding, markup and
/// discount, then fees on own credentials by the day. Exact: `ListCost` sums to the ledger's list cost and those fees, and `EffectiveCost`
/// to what is owed, to the nano-dollar. In Parquet every number is a decimal. Refused where this replica's billing store does not have all
/// of it, and where movements of credit or fees of a part of a month are wanted that are only known of the month. An answer that breaks off is not whole.
#[utoipa::path(get, path = "/exports/focus", tag = "reports",
    params(
        ("from" = String, Query, description = "The first UTC day."),
        ("to" = String, Query, description = "The last UTC day."),
        ("format" = Option<String>, Query, description = "`csv` (default) or `parquet`."),
        ("organization" = Option<String>, Query, description = "Only this organization's charges."),
    ),
    responses((status = 200, description = "The charges.",
        content((String = "text/csv"), (Vec<u8> = "application/vnd.apache.parquet")))),
    security(("admin_key" = ["owner", "admin", "operator", "viewer"])))]
async fn export_focus(Shared(api): Shared<Arc<Api>>, mut read: Read) -> Result<Response, Fault> {
    let days = take_days(&mut read.params)?;
    let format = read.params.take("format");
    let format = format.as_deref().map_or(Ok(Format::Csv), Format::read)?;
    let organization: Option<OrganizationId> = read.params.take_text("organization")?;
    let seen = read.seen(&api).await?;
    must_be_of(&seen.state, organization.as_ref())?;
    let (source, stand) = Source::whole(&api, &seen.state, days, organization.as_ref()).await?;
    let (state, of) = (seen.state.clone(), organization.clone());
    let wanted = wanted(days, organization);
    let (start, end) = (wanted.from, wanted.to);
    let (fees, movements) = blocking(move || {
        let accounts = state.accounts.keys();
        let (mut fees, mut movements) = (Vec::new(), Vec::new());
        for id in accounts.filter(|id| of.as_ref().is_none_or(|of| of == *id)) {
            let (from, to) = days;
            let lines = fee::lines(&state, id, fee::Days { from, to })?;
            fees.extend(lines.into_iter().filter(|line| line.fee != 0));
            let moved = account::movements(&state, id, start, end)?;
            movements.extend(moved.into_iter().map(|movement| (id.clone(), movement)));
        }
        Ok((fees, movements))
    })
    .await?;
    let export = Export {
        state: seen.state.clone(),
        wanted,
        fees,
        movements,
        final_before: stand.as_of(clock::now()).plus_ms(-FINAL_AFTER_MS),
        format,
    };
    let (sender, mut parts) = mpsc::channel(PARTS_WAITING);
    tokio::task::spawn_blocking(move || {
        let mut pipe = Pipe::new(sender);
        match export.write(&source, &mut pipe) {
            Ok(()) => pipe.is_whole = true,
            Err(fault) => tracing::warn!(error = %fault, "an export broke off"),
        }
    });
    // What goes wrong before the first part is a proper refusal; later the answer breaks off.
    let first = match parts.recv().await {
        Some(Ok(part)) => Ok(part),
        Some(Err(fault)) => return Err(refusal(&fault)),
        None => return Err(refusal(&io::Error::other("the export ended before it began"))),
    };
    let body = Body::from_stream(futures::stream::once(async { first }).chain(ReceiverStream::new(parts)));
    let (media, ending) = format.spec();
    let name = format!("attachment; filename=\"focus-{}-{}.{ending}\"", days.0, days.1);
    let headers = [
        (header::CONTENT_TYPE, media.to_owned()),
        (header::CONTENT_DISPOSITION, name),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    Ok((headers, body).into_response())
}

fn refusal(fault: &io::Error) -> Fault {
    tracing::debug!(error = %fault, "an export could not begin");
    Fault::new(
        ProblemCode::Unavailable,
        "the billing store cannot be read right now",
    )
}

/// What to export, and in which form.
struct Export {
    state: Arc<State>,
    wanted: Wanted,
    fees: Vec<FeeLine>,
    movements: Vec<(OrganizationId, Movement)>,
    final_before: UnixMillis,
    format: Format,
}

impl Export {
    fn write(&self, source: &Source, pipe: &mut Pipe) -> io::Result<()> {
        match self.format {
            Format::Csv => {
                csv::header(pipe)?;
                self.rows(source, |row| csv::row(pipe, &row))?;
            }
            Format::Parquet => {
                let mut file = parquet::Writer::new(&mut *pipe).map_err(io::Error::other)?;
                self.rows(source, |row| file.push(row).map_err(io::Error::other))?;
                file.finish().map_err(io::Error::other)?;
            }
        }
        pipe.flush()
    }

    fn rows(&self, source: &Source, mut each: impl FnMut(Row) -> io::Result<()>) -> io::Result<()> {
        let mut merge = Merge::default();
        let mut charge = |line: Option<Line>| {
            let rows = line.map(|line| rows::charges(&line, &self.state, self.final_before));
            rows.into_iter().flatten().try_for_each(&mut each)
        };
        source.lines(&self.wanted, |line| charge(merge.push(line)).map_err(Broken))?;
        charge(merge.finish())?;
        let fees = self.fees.iter();
        let fees = fees.map(|line| rows::fee(line, &self.state, self.final_before));
        let movements = self.movements.iter();
        let movements =
            movements.flat_map(|(id, movement)| rows::movement(id, movement, &self.state, self.final_before));
        fees.chain(movements).try_for_each(each)
    }
}

/// An export that did not come to its end.
struct Broken(io::Error);

impl From<ReadFault> for Broken {
    fn from(fault: ReadFault) -> Self {
        Self(io::Error::other(fault))
    }
}

impl From<Broken> for io::Error {
    fn from(broken: Broken) -> Self {
        broken.0
    }
}

/// Parts of an answer on their way to the caller.
struct Pipe {
    sender: mpsc::Sender<io::Result<Bytes>>,
    part: Vec<u8>,
    is_whole: bool,
}

impl Drop for Pipe {
    /// Makes an answer that did not come to its end break off, so that nobody takes it for whole.
    fn drop(&mut self) {
        if !self.is_whole {
            // A caller who is gone need not be told.
            let _ = self.send(Err(io::Error::other("the export broke off")));
        }
    }
}

impl Pipe {
    fn new(sender: mpsc::Sender<io::Result<Bytes>>) -> Self {
        Self {
            sender,
            part: Vec::with_capacity(PART_BYTES),
            is_whole: false,
        }
    }

    fn send(&mut self, part: io::Result<Bytes>) -> io::Result<()> {
        let sent = in_time(self.sender.send(part));
        match sent {
            Some(Ok(())) => Ok(()),
            Some(Err(_)) => Err(io::ErrorKind::BrokenPipe.into()),
            None => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// Waits on this thread, which is none of those that answer.
fn in_time<F: Future>(what: F) -> Option<F::Output> {
    Handle::current()
        .block_on(async { tokio::time::timeout(PART_WITHIN, what).await })
        .ok()
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.part.extend_from_slice(bytes);
        if self.part.len() >= PART_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.part.is_empty() {
            return Ok(());
        }
        let part = std::mem::replace(&mut self.part, Vec::with_capacity(PART_BYTES));
        self.send(Ok(part.into()))
    }
}

/// The routes of exports.
pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(export_focus))
}
