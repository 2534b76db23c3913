//! The request path as a list. Every chat route runs through [`handle`]; there is no other way to a provider.

use std::cell::Cell;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;

use futures::FutureExt;
use http::{HeaderMap, Request};
use hyper::body::Incoming;
use tokio::time::Instant;
use tollway_proto::usage::EndState;
use tollway_shared::fault::Fault;
use tollway_shared::ids::RequestId;
use tollway_shared::money::NanoUsd;
use tollway_shared::snapshot::Snapshot;
use tollway_shared::tenant::{ApiKey, TenantPath};
use tollway_shared::time::UnixMillis;

use crate::api::reply::{self, Reply};
use crate::ask::Ask;
use crate::clock;
use crate::plane::{Dice, Plane};
use crate::stages::abandon::{Left, Outliving};
use crate::stages::plan::Plan;
use crate::stages::report::Record;
use crate::stages::{admit, attempt, authenticate, hold, plan, receive, relay};

/// When a request came, and what it is called.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// Minted here; never taken from a caller.
    pub request_id: RequestId,
    /// Wall time.
    pub at: UnixMillis,
    /// The same, for measuring.
    pub started: Instant,
}

impl Arrival {
    /// Now.
    pub fn new(dice: &Dice) -> Self {
        let at = clock::now();
        Self {
            request_id: request_id(dice, at),
            at,
            started: Instant::now(),
        }
    }
}

/// Who asks.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The key.
    pub key: Arc<ApiKey>,
    /// Its whole tenant path.
    pub path: TenantPath,
    /// Markup or discount of its organization, hundredths of a percent.
    pub adjustment_bps: i32,
}

/// What the stages of one request share.
pub struct Context {
    /// The core.
    pub plane: Rc<Plane>,
    /// When, and under which name.
    pub arrival: Arrival,
    /// One revision from the first byte to the last.
    pub snapshot: Arc<Snapshot>,
    /// Headers that stages add to the answer.
    pub headers: HeaderMap,
    /// The account.
    pub record: Record,
    /// Whether the caller is still there.
    pub left: Rc<Left>,
}

/// Answers one chat request and accounts for it exactly once.
pub async fn handle(plane: &Rc<Plane>, request: Request<Incoming>) -> Reply {
    let arrival = Arrival::new(&plane.dice);
    let id = arrival.request_id.clone();
    // A panic unwinds through the record, whose drop reports it; the caller gets a 500 and nobody else notices.
    let served = AssertUnwindSafe(serve(plane, arrival, request))
        .catch_unwind()
        .await;
    served.unwrap_or_else(|_| {
        plane.meters.panics.increment(1);
        tracing::error!(request = %id, "a request panicked");
        reply::fault(&Fault::Internal, Some(&id), HeaderMap::new())
    })
}

async fn serve(plane: &Rc<Plane>, arrival: Arrival, request: Request<Incoming>) -> Reply {
    let id = arrival.request_id.clone();
    let mut record = Record::new(plane.clone(), arrival.clone());
    let snapshot = match authenticate::snapshot(plane) {
        Ok(snapshot) => snapshot,
        Err(fault) => {
            record.close(EndState::Failed, fault.status(), Some(&fault));
            return reply::fault(&fault, Some(&id), HeaderMap::new());
        }
    };
    let mut cx = Context {
        plane: plane.clone(),
        arrival,
        snapshot,
        headers: HeaderMap::new(),
        record,
        left: Rc::default(),
    };
    match stages(&mut cx, request).await {
        Ok(planned) => {
            let left = cx.left.clone();
            Outliving::new(plane, left, answered(cx, planned)).await
        }
        Err(fault) => refused(cx, &fault),
    }
}

/// A request that is ready to go out.
struct Planned {
    caller: Caller,
    ask: Ask,
    plan: Plan,
}

/// The path up to where a provider is called. Every stage is the file of the same name in `stages/`.
async fn stages(cx: &mut Context, request: Request<Incoming>) -> Result<Planned, Fault> {
    let (head, body) = request.into_parts();
    // Ahead of the body: a stranger cannot make this node hold 32 MiB.
    let caller = match authenticate::caller(cx, &head.headers) {
        Ok(caller) => caller,
        Err(fault) => {
            // One that asked to be told first has not sent anything yet.
            if !head.headers.contains_key(http::header::EXPECT) {
                receive::linger(body);
            }
            return Err(fault);
        }
    };
    let mut ask = receive::read(cx, &head.headers, body).await?;
    let models = admit::check(cx, &caller, &ask)?;
    let mut plan = plan::order(cx, &ask, &models)?;
    hold::worst_case(cx, &caller, &mut plan, &mut ask).await?;
    Ok(Planned { caller, ask, plan })
}

/// The rest of it: providers, one after the other, and what the caller gets.
async fn answered(mut cx: Context, planned: Planned) -> Reply {
    let Planned { caller, ask, plan } = planned;
    match attempt::first_byte(&mut cx, &plan, &caller, &ask).await {
        Ok((candidate, opened)) => relay::answer(cx, candidate, opened), // its end settles and reports
        Err(fault) => refused(cx, &fault),
    }
}

fn refused(mut cx: Context, fault: &Fault) -> Reply {
    cx.record.close(EndState::Failed, fault.status(), Some(fault));
    // Nobody served it, so nobody pays: the caller is told with the error.
    reply::text(&mut cx.headers, "x-tollway-cost-usd", &NanoUsd::ZERO.to_string());
    reply::fault(
        fault,
        Some(&cx.arrival.request_id),
        std::mem::take(&mut cx.headers),
    )
}

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// `gen-<seconds>-<20 random letters and digits>`.
fn request_id(dice: &Dice, at: UnixMillis) -> RequestId {
    let bits = Cell::new((dice.bits(), dice.bits()));
    let digit = |first: bool| {
        let (a, b) = bits.get();
        let value = if first { a } else { b };
        bits.set(if first { (a / 62, b) } else { (a, b / 62) });
        char::from(DIGITS[(value % 62) as usize])
    };
    let random: String = (0..20).map(|place| digit(place < 10)).collect();
    RequestId::trusted(format!("gen-{}-{random}", at.0 / 1_000))
}
