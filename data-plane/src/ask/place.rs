//! Where things are in a body, so that it can be changed without writing the rest again. PURE.

use std::ops::Range;

use serde_json::value::RawValue;
use tollway_shared::fault::Fault;

/// Deepest nesting of a body.
pub(super) const DEPTH_MAX: usize = 128;

/// Where `part`, a slice of `text`, is.
pub(super) fn place(text: &str, part: &str) -> Range<usize> {
    let start = part.as_ptr() as usize - text.as_ptr() as usize;
    start..start + part.len()
}

/// The key of the member whose value is at `value`, with its quotes.
pub(super) fn key(text: &str, value: &Range<usize>) -> Range<usize> {
    let before = |end: usize, byte: u8| memchr::memrchr(byte, &text.as_bytes()[..end]).unwrap_or(0);
    let closing = before(before(value.start, b':'), b'"');
    before(closing, b'"')..closing + 1
}

/// The ranges of whole members (key, value and one comma) given the places of their keys and values, in order.
pub(super) fn members(text: &str, ours: &[(&str, &RawValue)]) -> Vec<Range<usize>> {
    let bytes = text.as_bytes();
    let mut out: Vec<Range<usize>> = Vec::with_capacity(ours.len());
    for (key, value) in ours {
        let start = place(text, key).start - 1; // its opening quote
        let end = place(text, value.get()).end;
        let before = bytes[..start]
            .iter()
            .rposition(|b| !b.is_ascii_whitespace())
            .unwrap_or(0);
        let gone = out.last().is_some_and(|last| before < last.end);
        if bytes[before] == b',' && !gone {
            out.push(before..end);
        } else {
            // Nothing is left before it, so the comma after it goes.
            let after = bytes[end..]
                .iter()
                .position(|b| !b.is_ascii_whitespace())
                .map_or(end, |n| end + n);
            out.push(
                start..if bytes.get(after) == Some(&b',') {
                    after + 1
                } else {
                    end
                },
            );
        }
    }
    out
}

/// Nesting can be no deeper than there are opening brackets, and most bodies have few: only the others are looked at closely.
pub(super) fn refuse_depth(body: &[u8]) -> Result<(), Fault> {
    if memchr::memchr2_iter(b'[', b'{', body).nth(DEPTH_MAX).is_none() {
        return Ok(());
    }
    let (mut depth, mut text, mut escaped) = (0usize, false, false);
    for byte in body {
        match (text, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => text = !text,
            (false, b'[' | b'{') => {
                depth += 1;
                if depth > DEPTH_MAX {
                    return Err(Fault::TooDeep { max: DEPTH_MAX });
                }
            }
            (false, b']' | b'}') => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}
