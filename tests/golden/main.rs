//! Recorded streams of providers, and what callers must get from them, whatever the reads were cut into.
//!
//! A case is a folder `<dialect>-<what>`: `provider.sse` as received; `caller.sse` for a caller who asked for usage; `tally.txt`, what is
//! metered. `UPDATE_GOLDEN=1` rewrites the last two.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod usage;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use tollway_data::dialects::sse::{Frame, Parser};
use tollway_data::dialects::usage::Billed;
use tollway_data::dialects::{Emit, Events, Tally};
use tollway_shared::catalog::Dialect;
use tollway_shared::money::NanoUsd;
use tollway_shared::tokens::TokenCounts;

/// The second that translated chunks are stamped with.
const CREATED: i64 = 1_764_000_000;

fn cases() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let mut found: Vec<_> = std::fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    found.sort();
    found
}

fn dialect(case: &Path) -> Dialect {
    let name = case.file_name().unwrap().to_str().unwrap();
    if name.starts_with("anthropic-") {
        Dialect::Anthropic
    } else {
        Dialect::OpenAi
    }
}

/// A bill as the node's would be, without its estimator and prices.
fn billed(tally: &Tally) -> Billed {
    let estimate = TokenCounts {
        input: 7,
        output: tally.text_bytes,
        ..TokenCounts::default()
    };
    Billed {
        tokens: tally.usage.unwrap_or(estimate),
        estimated: tally.usage.is_none(),
        cost: NanoUsd(12_100),
    }
}

/// What a caller gets and what is metered when `body` comes in reads of `step` bytes.
fn relayed(dialect: Dialect, wants_usage: bool, body: &[u8], step: usize) -> (String, Tally) {
    let (mut parser, mut tally) = (Parser::default(), Tally::default());
    let mut events = Events::new(dialect, wants_usage, "acme/one", CREATED);
    let mut out = String::new();
    let mut take = |frame: Frame, tally: &mut Tally| {
        let comment = frame.data.is_none();
        match events.take(&frame, tally) {
            Emit::Pass(_) if comment => {}
            Emit::Pass(bytes) => out.push_str(std::str::from_utf8(&bytes).unwrap().trim_start()),
            Emit::Skip => {}
            Emit::Done => {
                let usage = events.usage_chunk(&billed(tally)).unwrap_or_default();
                out.push_str(std::str::from_utf8(&usage).unwrap());
                out.push_str("data: [DONE]\n\n");
            }
            Emit::Error(error) => out.push_str(&format!("error {:?} {}\n\n", error.status, error.message)),
            Emit::Garbled => out.push_str("garbled\n\n"),
        }
    };
    for read in body.chunks(step.max(1)) {
        parser.push(Bytes::copy_from_slice(read));
        while let Some(frame) = parser.next_frame().unwrap() {
            take(frame, &mut tally);
        }
    }
    if let Some(frame) = parser.finish() {
        take(frame, &mut tally);
    }
    (out, tally)
}

fn same(path: &Path, actual: &str) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, actual).unwrap();
    }
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(actual, expected, "{}", path.display());
}

#[test]
fn callers_get_what_was_recorded() {
    let cases = cases();
    assert!(cases.len() >= 5, "{cases:?}");
    for case in cases {
        let body = std::fs::read(case.join("provider.sse")).unwrap();
        let (out, tally) = relayed(dialect(&case), true, &body, body.len());
        same(&case.join("caller.sse"), &out);
        same(&case.join("tally.txt"), &format!("{tally:#?}\n"));
    }
}

#[test]
fn any_reads_give_the_same_events() {
    for case in cases() {
        let body = std::fs::read(case.join("provider.sse")).unwrap();
        for wants_usage in [true, false] {
            let whole = relayed(dialect(&case), wants_usage, &body, body.len());
            for step in 1..=body.len() {
                let cut = relayed(dialect(&case), wants_usage, &body, step);
                assert_eq!(cut, whole, "{}: reads of {step} bytes", case.display());
            }
        }
    }
}

#[test]
fn usage_is_metered_alike_whether_or_not_it_is_shown() {
    for case in cases() {
        let body = std::fs::read(case.join("provider.sse")).unwrap();
        let shown = relayed(dialect(&case), true, &body, body.len());
        let hidden = relayed(dialect(&case), false, &body, body.len());
        assert_eq!(shown.1, hidden.1, "{}", case.display());
        assert!(hidden.0.len() <= shown.0.len());
    }
}
