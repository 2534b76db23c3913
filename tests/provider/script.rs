//! An answer as a list of writes: what goes out, what it was worth, and how it ends.

use bytes::Bytes;

/// One write to the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) bytes: Bytes,
    /// Whether it carries content; only such writes count for `cut_after` and generate tokens.
    pub(crate) content: bool,
    /// Whether it tells the usage.
    pub(crate) usage: bool,
}

impl Write {
    pub(crate) fn content(bytes: impl Into<Bytes>) -> Self {
        Self {
            bytes: bytes.into(),
            content: true,
            usage: false,
        }
    }

    pub(crate) fn frame(bytes: impl Into<Bytes>) -> Self {
        Self {
            bytes: bytes.into(),
            content: false,
            usage: false,
        }
    }

    pub(crate) fn usage(bytes: impl Into<Bytes>) -> Self {
        Self {
            bytes: bytes.into(),
            content: false,
            usage: true,
        }
    }
}

/// What happens after the last write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The body ends as HTTP wants it.
    Whole,
    /// The body ends as HTTP wants it, after an error event.
    Error,
    /// The connection breaks.
    Cut,
    /// Nothing more comes and the connection stays open.
    Silence,
}

/// Ends `writes` where the behaviour says so; `error` is the dialect's error event.
///
/// The first of the scripted ends wins; without one the list is whole.
pub(crate) fn ended(mut writes: Vec<Write>, told: &crate::Behaviour, error: Write) -> (Vec<Write>, Ending) {
    let ends = [
        (told.cut_after, Ending::Cut),
        (told.stall_after, Ending::Silence),
        (told.error_event, Ending::Error),
    ];
    let Some((after, ending)) = ends
        .into_iter()
        .filter_map(|(after, ending)| Some((after?, ending)))
        .min_by_key(|(after, _)| *after)
    else {
        return (writes, Ending::Whole);
    };
    // Framing before the first content event stays, so that `cut_after=0` cuts after the headers and the opening events.
    let mut content = 0;
    let mut keep = 0;
    for write in &writes {
        if write.content {
            content += 1;
        }
        if content > after || (content == after && !write.content && content > 0) {
            break;
        }
        keep += 1;
    }
    writes.truncate(keep);
    if ending == Ending::Error {
        writes.push(error);
    }
    (writes, ending)
}
