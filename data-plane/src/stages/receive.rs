//! Bytes → [`Ask`]: one buffer of the stated size, under a deadline, then one borrowed pass.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout, timeout_at};
use tollway_shared::fault::Fault;

use crate::ask::Ask;
use crate::pipeline::Context;
use crate::plane::Limits;

/// A body without a stated length starts with this much room.
const UNSTATED_BYTES: usize = 16 << 10;

/// How long, and how much, of a refused body is read on. A caller that is still writing would otherwise see its connection break
/// instead of the refusal.
const LINGER: Duration = Duration::from_secs(5);
const LINGER_BYTES_MAX: usize = 64 << 20;

/// Reads a body that nobody wants to its end, within bounds, while its answer is on the way.
pub fn linger(body: Incoming) {
    if body.is_end_stream() {
        return;
    }
    tokio::task::spawn_local(async move {
        // Past the bounds the connection closes, which is what would have happened at once.
        drop(timeout(LINGER, discard(body)).await);
    });
}

async fn discard(mut body: Incoming) {
    let mut left = LINGER_BYTES_MAX;
    while let Some(Ok(frame)) = body.frame().await {
        let length = frame.data_ref().map_or(0, Bytes::len);
        if length > left {
            return;
        }
        left -= length;
    }
}

/// Reads and parses the body.
pub async fn read(cx: &Context, headers: &HeaderMap, body: Incoming) -> Result<Ask, Fault> {
    if let Some(coding) = headers.get(http::header::CONTENT_ENCODING)
        && coding.as_bytes() != b"identity"
    {
        return Err(Fault::InvalidField {
            field: "content-encoding".into(),
            detail: "is not supported; send the body uncompressed".into(),
        });
    }
    Ask::parse(collect(body, &cx.plane.limits).await?)
}

/// By when the next bytes of a body must be here.
///
/// A caller who sends a byte now and then keeps a connection and a buffer for as long as it likes; one who is merely slow does not
/// fall below the floor.
fn deadline(limits: &Limits, began: Instant, received: usize) -> Instant {
    let last = began + limits.body_timeout;
    match limits.body_bytes_per_s_min {
        0 => last,
        floor => {
            let earned = Duration::from_millis(received as u64 * 1_000 / floor);
            last.min(began + limits.body_grace + earned)
        }
    }
}

/// Reads a body that is not larger than allowed, and not slower.
pub async fn collect(mut body: Incoming, limits: &Limits) -> Result<Bytes, Fault> {
    let (max, began, mut received) = (limits.body_bytes_max, Instant::now(), 0);
    let stated = body.size_hint().exact();
    if stated.is_some_and(|length| length > max as u64) {
        linger(body);
        return Err(Fault::TooLarge { max });
    }
    let mut whole: Option<BytesMut> = None;
    let mut first: Option<Bytes> = None;
    loop {
        let frame = timeout_at(deadline(limits, began, received), body.frame());
        let Some(frame) = frame.await.map_err(|_| Fault::SlowBody)? else {
            break;
        };
        let frame = frame.map_err(|_| Fault::InvalidJson {
            detail: "the body broke off".into(),
        })?;
        let Ok(data) = frame.into_data() else { continue };
        received += data.len();
        match (&mut whole, first.take()) {
            // A small body comes in one piece and is used where it lies.
            (None, None) => first = Some(data),
            (None, Some(head)) => {
                let room = stated.map_or(UNSTATED_BYTES, |length| length as usize);
                let mut buffer = BytesMut::with_capacity(room.max(head.len() + data.len()));
                buffer.extend_from_slice(&head);
                buffer.extend_from_slice(&data);
                whole = Some(buffer);
            }
            (Some(buffer), _) => buffer.extend_from_slice(&data),
        }
        if received > max {
            linger(body);
            return Err(Fault::TooLarge { max });
        }
    }
    Ok(whole.map(BytesMut::freeze).or(first).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_earns_its_time_and_no_more_than_the_deadline() {
        let limits = |floor| Limits {
            body_bytes_max: 1 << 25,
            reply_bytes_max: 1,
            body_timeout: Duration::from_secs(60),
            body_grace: Duration::from_secs(5),
            body_bytes_per_s_min: floor,
            attempts_max: 1,
            free_per_minute: 0,
            max_stale_ms: 1,
        };
        let began = Instant::now();
        for (floor, received, seconds) in [
            (1_024, 0, 5),
            (1_024, 1, 5),
            (1_024, 10 << 10, 15),
            (1_024, 1 << 25, 60),
            (0, 0, 60),
            (0, 1 << 25, 60),
        ] {
            let waits = (deadline(&limits(floor), began, received) - began).as_secs();
            assert_eq!(waits, seconds, "{received} bytes at a floor of {floor}");
        }
    }
}
