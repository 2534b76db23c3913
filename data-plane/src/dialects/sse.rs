//! Server-sent events, incrementally: bytes in as they come, whole events out, the same ones for any split of the bytes.
//!
//! An event is handed out as the slice of bytes it was, so that it can be passed on untouched. Lines end with LF, CR or CRLF; a BOM and
//! a missing final newline are tolerated.

use bytes::{Buf, Bytes, BytesMut};
use memchr::memchr2_iter;

/// Longest line, in bytes.
pub const LINE_BYTES_MAX: usize = 1 << 20;
/// Longest event, in bytes.
pub const EVENT_BYTES_MAX: usize = 4 << 20;

/// Not an event stream, or not one we are willing to hold in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SseFault {
    /// A line is longer than [`LINE_BYTES_MAX`].
    #[error("a line of the event stream is longer than {LINE_BYTES_MAX} bytes")]
    LineTooLong,
    /// An event is longer than [`EVENT_BYTES_MAX`].
    #[error("an event of the stream is longer than {EVENT_BYTES_MAX} bytes")]
    EventTooLong,
}

/// One event, or one block of comments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The bytes as received, blank line included.
    pub raw: Bytes,
    /// The event's name; empty when it has none.
    pub event: Bytes,
    /// The joined data lines; `None` for a block without any.
    pub data: Option<Bytes>,
}

/// The parser's state between reads.
#[derive(Debug, Default)]
pub struct Parser {
    window: Bytes,
    line: usize,
    scanned: usize,
    after_cr: bool,
    begun: bool,
}

impl Parser {
    /// Takes the next bytes in.
    pub fn push(&mut self, bytes: Bytes) {
        if self.window.is_empty() {
            self.window = bytes;
            return;
        }
        // A unique buffer grows in place, so that an event that comes byte by byte is not copied once per byte.
        let mut joined = std::mem::take(&mut self.window)
            .try_into_mut()
            .unwrap_or_else(|shared| {
                let mut copy = BytesMut::with_capacity((shared.len() + bytes.len()).next_power_of_two());
                copy.extend_from_slice(&shared);
                copy
            });
        joined.extend_from_slice(&bytes);
        self.window = joined.freeze();
    }

    /// The next whole event among the bytes so far.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, SseFault> {
        while let Some(end) = self.block_end()? {
            let mut raw = self.window.split_to(end);
            (self.line, self.scanned) = (0, 0);
            if self.after_cr && raw.ends_with(b"\r\n\r") {
                // The event goes on now, its last LF comes with the next read and is dropped there: some clients look for CRLF CRLF.
                let mut whole = BytesMut::from(&raw[..]);
                whole.extend_from_slice(b"\n");
                raw = whole.freeze();
            }
            if let Some(frame) = self.frame(raw) {
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }

    /// The event that the end of the stream cut off before its blank line, if there is one.
    pub fn finish(&mut self) -> Option<Frame> {
        let raw = std::mem::take(&mut self.window);
        if raw.is_empty() {
            return None;
        }
        let mut whole = BytesMut::from(&raw[..]);
        whole.extend_from_slice(b"\n\n");
        self.frame(whole.freeze())
    }

    /// Where the first block ends, its blank line included.
    fn block_end(&mut self) -> Result<Option<usize>, SseFault> {
        if self.after_cr && self.window.len() > self.scanned {
            // The LF of a CRLF that was split between two reads.
            self.after_cr = false;
            if self.window[self.scanned..].first() == Some(&b'\n') {
                if self.scanned == 0 {
                    self.window.advance(1);
                } else {
                    self.scanned += 1;
                    self.line = self.scanned;
                }
            }
        }
        let bytes = &self.window[..];
        let mut skip = None;
        for place in memchr2_iter(b'\n', b'\r', &bytes[self.scanned..]) {
            let place = place + self.scanned;
            if skip == Some(place) {
                continue;
            }
            let crlf = bytes[place] == b'\r' && bytes.get(place + 1) == Some(&b'\n');
            let next = place + 1 + usize::from(crlf);
            skip = crlf.then_some(place + 1);
            self.after_cr = bytes[place] == b'\r' && place + 1 == bytes.len();
            if place == self.line {
                return Ok(Some(next));
            }
            if place - self.line > LINE_BYTES_MAX {
                return Err(SseFault::LineTooLong);
            }
            self.line = next;
        }
        self.scanned = bytes.len();
        if bytes.len() - self.line.min(bytes.len()) > LINE_BYTES_MAX {
            return Err(SseFault::LineTooLong);
        }
        if bytes.len() > EVENT_BYTES_MAX {
            return Err(SseFault::EventTooLong);
        }
        Ok(None)
    }

    /// Reads a block's lines. `None` for a block without lines.
    fn frame(&mut self, mut raw: Bytes) -> Option<Frame> {
        if !std::mem::replace(&mut self.begun, true) && raw.starts_with(b"\xef\xbb\xbf") {
            raw.advance(3);
        }
        let mut event = Bytes::new();
        let mut data: Option<Bytes> = None;
        let mut lines = 0;
        let (mut start, bytes) = (0, &raw[..]);
        while start < bytes.len() {
            let end = memchr::memchr2(b'\n', b'\r', &bytes[start..]).map_or(bytes.len(), |n| start + n);
            let line = &bytes[start..end];
            start = end + 1;
            if line.is_empty() {
                continue;
            }
            lines += 1;
            let colon = memchr::memchr(b':', line).unwrap_or(line.len());
            let value = line.get(colon + 1..).unwrap_or_default();
            let value = value.strip_prefix(b" ").unwrap_or(value);
            match &line[..colon] {
                b"data" => {
                    let value = slice_of(&raw, value);
                    data = Some(data.map_or_else(|| value.clone(), |first| joined(&first, &value)));
                }
                b"event" => event = slice_of(&raw, value),
                _ => {}
            }
        }
        (lines > 0).then_some(Frame { raw, event, data })
    }
}

/// `part` as a slice of `whole`; an empty part has no place of its own.
fn slice_of(whole: &Bytes, part: &[u8]) -> Bytes {
    if part.is_empty() {
        Bytes::new()
    } else {
        whole.slice_ref(part)
    }
}

fn joined(first: &[u8], second: &[u8]) -> Bytes {
    let mut both = BytesMut::with_capacity(first.len() + 1 + second.len());
    both.extend_from_slice(first);
    both.extend_from_slice(b"\n");
    both.extend_from_slice(second);
    both.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Names and data of the events of `body`, cut at `cuts`.
    fn events(body: &[u8], mut cuts: Vec<usize>) -> Vec<(String, String)> {
        cuts.retain(|cut| *cut <= body.len());
        cuts.extend([0, body.len()]);
        cuts.sort_unstable();
        let mut parser = Parser::default();
        let mut found = Vec::new();
        let mut take = |frame: Frame| {
            if let Some(data) = frame.data {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                found.push((text(&frame.event), text(&data)));
            }
        };
        for pair in cuts.windows(2) {
            parser.push(Bytes::copy_from_slice(&body[pair[0]..pair[1]]));
            while let Some(frame) = parser.next_frame().unwrap() {
                take(frame);
            }
        }
        parser.finish().into_iter().for_each(take);
        found
    }

    fn check(body: &str, expected: &[(&str, &str)]) {
        let owned: Vec<_> = expected
            .iter()
            .map(|(event, data)| ((*event).to_owned(), (*data).to_owned()))
            .collect();
        for cut in 0..=body.len() {
            assert_eq!(
                events(body.as_bytes(), vec![cut]),
                owned,
                "cut at {cut} of {body:?}"
            );
        }
    }

    #[test]
    fn every_line_end_and_every_cut_gives_the_same_events() {
        check("data: a\n\ndata: b\n\n", &[("", "a"), ("", "b")]);
        check(
            "event: x\r\ndata: a\r\n\r\ndata: b\r\n\r\n",
            &[("x", "a"), ("", "b")],
        );
        check("data: a\r\rdata: b\r\r", &[("", "a"), ("", "b")]);
        check("data: a\n\r\ndata: b\r\n\n", &[("", "a"), ("", "b")]);
        check("\u{feff}: hello\n\n: more\ndata:a\ndata: b\n\n", &[("", "a\nb")]);
        check(
            "\n\n\ndata: a\n\n\n\ndata\n\ndata: [DONE]",
            &[("", "a"), ("", ""), ("", "[DONE]")],
        );
    }

    #[test]
    fn asking_between_a_cr_and_its_lf_changes_no_event() {
        let body = b"data: a\r\n\r\n: note\r\n\r\nevent: x\r\ndata: b\r\n\r\n";
        let mut parser = Parser::default();
        let mut raw = Vec::new();
        for byte in body {
            parser.push(Bytes::copy_from_slice(&[*byte]));
            // A reader that finds nothing to read asks again.
            for _ in 0..3 {
                raw.extend(parser.next_frame().unwrap().map(|frame| frame.raw));
            }
        }
        assert_eq!(
            raw,
            [
                &b"data: a\r\n\r\n"[..],
                b": note\r\n\r\n",
                b"event: x\r\ndata: b\r\n\r\n"
            ]
        );
        assert_eq!(parser.finish(), None);
    }

    #[test]
    fn an_event_in_one_read_is_passed_on_without_a_copy() {
        let body = Bytes::from_static(b"data: a\n\n: note\n\n");
        let mut parser = Parser::default();
        parser.push(body.clone());
        let frame = parser.next_frame().unwrap().unwrap();
        assert_eq!(frame.raw.as_ptr(), body.as_ptr());
        assert_eq!(frame.raw, &b"data: a\n\n"[..]);
        let note = parser.next_frame().unwrap().unwrap();
        assert_eq!((note.data, note.raw), (None, Bytes::from_static(b": note\n\n")));
    }

    #[test]
    fn a_line_past_the_cap_is_refused_whether_or_not_it_ends() {
        let long = vec![b'x'; LINE_BYTES_MAX + 1];
        let mut parser = Parser::default();
        parser.push(Bytes::from(long.clone()));
        assert_eq!(parser.next_frame(), Err(SseFault::LineTooLong));
        let mut parser = Parser::default();
        parser.push(Bytes::from([&long[..], b"\n\n"].concat()));
        assert_eq!(parser.next_frame(), Err(SseFault::LineTooLong));
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_cuts_give_the_same_events(
            body in "(data: ?|event: ?|id|: ?|a|é|\u{feff}|\r|\n|\r\n|\n\n){0,40}",
            cuts in proptest::collection::vec(0usize..80, 0..12),
        ) {
            prop_assert_eq!(events(body.as_bytes(), cuts), events(body.as_bytes(), Vec::new()));
        }
    }
}
