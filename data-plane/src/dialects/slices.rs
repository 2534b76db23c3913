//! A body as slices around what was changed: what was written by others leaves as it came, in one vectored write.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};

/// One change: these bytes go, those come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// What goes; empty for an insertion.
    pub range: Range<usize>,
    /// What comes.
    pub with: Bytes,
}

impl Edit {
    /// The same change at another place.
    pub fn moved(&self, to: impl Fn(usize) -> usize) -> Self {
        Self {
            range: to(self.range.start)..to(self.range.end),
            with: self.with.clone(),
        }
    }
}

/// Where `part`, a slice of `whole`, is in it; `None` for a slice of something else.
pub fn place(whole: &[u8], part: &[u8]) -> Option<Range<usize>> {
    let start = (part.as_ptr() as usize).checked_sub(whole.as_ptr() as usize)?;
    let end = start.checked_add(part.len())?;
    (end <= whole.len()).then_some(start..end)
}

/// `body` with `edits`, whose places are counted from `start`, in one piece: for an event of a stream, which is copied more cheaply than it is written in parts.
pub fn spliced(body: &[u8], start: usize, edits: &[Edit]) -> Bytes {
    let more: usize = edits.iter().map(|edit| edit.with.len()).sum();
    let mut out = BytesMut::with_capacity(body.len() + more);
    let mut from = 0;
    for edit in edits {
        out.extend_from_slice(&body[from..start + edit.range.start]);
        out.extend_from_slice(&edit.with);
        from = start + edit.range.end;
    }
    out.extend_from_slice(&body[from..]);
    out.freeze()
}

/// Bytes in pieces, sent in order.
#[derive(Debug, Clone, Default)]
pub struct Slices {
    parts: VecDeque<Bytes>,
    left: u64,
}

impl Slices {
    /// `body` with `edits`, which are in order and do not overlap.
    pub fn edited(body: &Bytes, edits: &[Edit]) -> Self {
        let mut out = Self {
            parts: VecDeque::with_capacity(edits.len() * 2 + 1),
            left: 0,
        };
        let mut from = 0;
        for edit in edits {
            out.add(body.slice(from..edit.range.start));
            out.add(edit.with.clone());
            from = edit.range.end;
        }
        out.add(body.slice(from..));
        out
    }

    /// Everything in one piece.
    pub fn to_bytes(&self) -> Bytes {
        let parts: Vec<&[u8]> = self.parts.iter().map(|part| &part[..]).collect();
        parts.concat().into()
    }

    /// Bytes that were not taken yet.
    pub fn bytes_left(&self) -> u64 {
        self.left
    }

    /// The next piece, of `max` bytes at most.
    pub fn take(&mut self, max: usize) -> Option<Bytes> {
        let first = self.parts.front_mut()?;
        let part = first.split_to(first.len().min(max.max(1)));
        if first.is_empty() {
            self.parts.pop_front();
        }
        self.left -= part.len() as u64;
        Some(part)
    }

    fn add(&mut self, part: Bytes) {
        if !part.is_empty() {
            self.left += part.len() as u64;
            self.parts.push_back(part);
        }
    }
}

impl From<Bytes> for Slices {
    fn from(bytes: Bytes) -> Self {
        let mut out = Self::default();
        out.add(bytes);
        out
    }
}

impl Body for Slices {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.take(usize::MAX).map(|part| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.parts.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
