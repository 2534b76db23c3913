//! Reads a provider's answer up to where it may go to the caller: a whole one to its end, a stream to its first token.
//!
//! A stream opens with events that say nothing yet: a role, the start of a message. They are held, within bounds, so that a provider
//! that dies after them is still replaced by another. Once the deadline of the first byte has passed they are let go: a provider that
//! thinks for long is alive, and the caller shall see that.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout, timeout_at};
use tollway_shared::fault::AttemptFault;

use super::attempt::Failed;
use crate::dialects::sse::{Frame, Parser};
use crate::dialects::{Emit, Events, Reply, Tally};
use crate::upstream::AnswerBody;

/// Most events that are held; with one more they are let go, whatever they say.
const HELD_EVENTS_MAX: usize = 64;
/// Most bytes of them, as the provider wrote them.
const HELD_BYTES_MAX: usize = 64 << 10;

/// What the caller is answered with.
pub enum Opened {
    /// A whole answer.
    Whole(Reply),
    /// A stream that has begun.
    Stream(Box<Begun>),
}

/// A stream that has begun.
pub struct Begun {
    /// The rest of the provider's body; none when it has said everything.
    pub body: Option<AnswerBody>,
    /// What was read of it and not looked at yet.
    pub parser: Parser,
    /// The dialect.
    pub events: Events,
    /// What the events so far became.
    pub first: Vec<Emit>,
    held_bytes: usize,
}

impl Begun {
    /// A stream of which everything is here.
    pub fn finished(events: Events, first: Vec<Emit>) -> Self {
        Self {
            body: None,
            parser: Parser::default(),
            events,
            first,
            held_bytes: 0,
        }
    }

    /// Looks at the next event. True when the stream has begun with it.
    fn take(&mut self, frame: &Frame, tally: &mut Tally) -> Result<bool, Failed> {
        if frame.data.is_none() {
            return Ok(false); // a comment
        }
        match self.events.take(frame, tally) {
            Emit::Skip => {}
            Emit::Garbled => return Err(AttemptFault::Garbled.into()),
            Emit::Error(error) => return Err(error.into()),
            Emit::Done => {
                self.first.push(Emit::Done);
                return Ok(true);
            }
            held @ Emit::Pass(_) => {
                self.first.push(held);
                self.held_bytes += frame.raw.len();
            }
        }
        let full = self.first.len() > HELD_EVENTS_MAX || self.held_bytes > HELD_BYTES_MAX;
        Ok(full || self.events.begun())
    }
}

/// Reads a stream until it has begun.
///
/// - `deadline`: of its first event; once it has passed, what is held is let go.
/// - `idle`: how long the stream may be silent after its first event.
pub(super) async fn begun(
    tally: &mut Tally,
    body: AnswerBody,
    events: Events,
    deadline: Instant,
    idle: Duration,
) -> Result<Begun, Failed> {
    let mut begun = Begun {
        body: Some(body),
        parser: Parser::default(),
        events,
        first: Vec::new(),
        held_bytes: 0,
    };
    loop {
        while let Some(frame) = begun.parser.next_frame().map_err(|_| AttemptFault::Garbled)? {
            if begun.take(&frame, tally)? {
                return Ok(begun);
            }
        }
        let opened = !begun.first.is_empty();
        let wait = if opened {
            deadline.min(Instant::now() + idle)
        } else {
            deadline
        };
        let Some(body) = &mut begun.body else {
            return Err(AttemptFault::CutShort.into());
        };
        match timeout_at(wait, body.frame()).await {
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    begun.parser.push(data);
                }
            }
            Ok(Some(Err(_))) => return Err(AttemptFault::CutShort.into()),
            Ok(None) => {
                begun.body = None;
                // The last event may lack its blank line.
                return match begun.parser.finish() {
                    Some(frame) if begun.take(&frame, tally)? => Ok(begun),
                    _ => Err(AttemptFault::CutShort.into()),
                };
            }
            Err(_) if opened && wait == deadline => return Ok(begun),
            Err(_) => return Err(AttemptFault::Timeout.into()),
        }
    }
}

/// A whole body, with a bound on its size and on its silences.
pub(super) async fn whole(mut body: AnswerBody, max: usize, idle: Duration) -> Result<Bytes, AttemptFault> {
    let mut first: Option<Bytes> = None;
    let mut rest = BytesMut::new();
    loop {
        let frame = timeout(idle, body.frame())
            .await
            .map_err(|_| AttemptFault::Timeout)?;
        let Some(frame) = frame else { break };
        let Ok(data) = frame.map_err(|_| AttemptFault::CutShort)?.into_data() else {
            continue;
        };
        match first.take() {
            None if rest.is_empty() => first = Some(data),
            head => {
                rest.extend_from_slice(&head.unwrap_or_default());
                rest.extend_from_slice(&data);
            }
        }
        if rest.len().max(first.as_ref().map_or(0, Bytes::len)) > max {
            return Err(AttemptFault::Garbled);
        }
    }
    Ok(first.unwrap_or_else(|| rest.freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tollway_shared::catalog::Dialect;

    /// How many events are held when the stream counts as begun.
    fn held(event: &str) -> Option<usize> {
        let frame = Frame {
            raw: Bytes::copy_from_slice(event.as_bytes()),
            event: Bytes::new(),
            data: Some(Bytes::copy_from_slice(event.as_bytes())),
        };
        let events = Events::new(Dialect::OpenAi, false, "a/b", 0);
        let (mut begun, mut tally) = (Begun::finished(events, Vec::new()), Tally::default());
        (0..1_000).find_map(|_| match begun.take(&frame, &mut tally) {
            Ok(begins) => begins.then_some(begun.first.len()),
            Err(_) => None,
        })
    }

    #[test]
    fn events_that_say_nothing_are_held_within_bounds() {
        let chunk = |delta: &str| format!(r#"{{"choices":[{{"delta":{delta},"finish_reason":null}}]}}"#);
        for speaks in [
            r#"{"content":"a"}"#,
            r#"{"refusal":"no"}"#,
            r#"{"reasoning_content":"hm"}"#,
            r#"{"role":"assistant","tool_calls":[{"index":0}]}"#,
        ] {
            assert_eq!(held(&chunk(speaks)), Some(1), "{speaks}");
        }
        let end = r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#;
        assert_eq!(held(end), Some(1));
        for silent in [
            r#"{"role":"assistant","content":"","refusal":null,"tool_calls":[]}"#,
            "{}",
            "null",
        ] {
            assert_eq!(held(&chunk(silent)), Some(HELD_EVENTS_MAX + 1), "{silent}");
        }
        let long = chunk(&format!(r#"{{"role":"{}"}}"#, "x".repeat(HELD_BYTES_MAX / 2)));
        assert_eq!(held(&long), Some(2));
    }
}
