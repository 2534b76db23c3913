//! Bytes → [`Ask`]: one buffer of the stated size, under a deadline, then one borrowed pass.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;
use tollway_shared::fault::Fault;

use crate::ask::Ask;
use crate::pipeline::Context;

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
    let max = cx.plane.limits.body_bytes_max;
    let bytes = timeout(cx.plane.limits.body_timeout, collect(body, max)).await;
    Ask::parse(bytes.map_err(|_| Fault::SlowBody)??)
}

async fn collect(mut body: Incoming, max: usize) -> Result<Bytes, Fault> {
    let stated = body.size_hint().exact();
    if stated.is_some_and(|length| length > max as u64) {
        linger(body);
        return Err(Fault::TooLarge { max });
    }
    let mut whole: Option<BytesMut> = None;
    let mut first: Option<Bytes> = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Fault::InvalidJson {
            detail: "the body broke off".into(),
        })?;
        let Ok(data) = frame.into_data() else { continue };
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
        if whole
            .as_ref()
            .map_or(0, BytesMut::len)
            .max(first.as_ref().map_or(0, Bytes::len))
            > max
        {
            linger(body);
            return Err(Fault::TooLarge { max });
        }
    }
    Ok(whole.map(BytesMut::freeze).or(first).unwrap_or_default())
}
