//! A request body as slices around what was changed: the caller's bytes leave as they came, in one vectored write.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// One change: these bytes go, those come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// What goes; empty for an insertion.
    pub range: Range<usize>,
    /// What comes.
    pub with: Bytes,
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
        let next = self.parts.pop_front();
        if let Some(part) = &next {
            self.left -= part.len() as u64;
        }
        Poll::Ready(next.map(|part| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.parts.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
