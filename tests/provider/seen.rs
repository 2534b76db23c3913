//! What the provider saw and served: the billing oracle's books.
//!
//! Every request has one entry, opened when its body has arrived and closed exactly once: at the last byte, at the
//! scripted break, or when the caller's connection is gone.

use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Entries kept in memory; past it a request is still served and counted, but `Provider::seen` lacks it.
pub(crate) const SEEN_MAX: usize = 1_000_000;

/// Which endpoint was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// `POST /v1/chat/completions`, the OpenAI dialect.
    Chat,
    /// `POST /v1/messages`, the Anthropic dialect.
    Messages,
    /// `GET /v1/models`.
    Models,
    /// Anything else; answered 404.
    Unknown,
}

/// How a request ended, as the provider knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// Still being served.
    Open,
    /// The whole answer was handed to the socket.
    Finished,
    /// Answered with an error status; nothing was generated and nothing is billed.
    Refused,
    /// The script broke it: a cut connection or an error event.
    Broken,
    /// The caller left before the end.
    HungUp,
}

/// Tokens of one request. On a request that did not finish, `completion` is what was sent until then.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// All prompt tokens, cached ones included.
    pub prompt: u64,
    /// All completion tokens, reasoning included.
    pub completion: u64,
    /// Part of `prompt` that was read from the cache.
    pub cache_read: u64,
    /// Part of `prompt` that was written to the cache.
    pub cache_write: u64,
    /// Part of `completion` spent on reasoning.
    pub reasoning: u64,
}

/// One request as the provider saw it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Seen {
    /// Order of arrival at this provider, from 0.
    pub number: u64,
    /// Name of the provider.
    pub provider: String,
    /// Which endpoint was asked.
    pub route: Route,
    /// Path and query as received.
    pub path: String,
    /// Fingerprint of the credential that came with it (`fingerprint`); none when none came.
    pub credential: Option<String>,
    /// The gateway's `x-tollway-request-id`, if it sent one.
    pub request_id: Option<String>,
    /// The gateway's `x-tollway-attempt`, if it sent one.
    pub attempt: Option<String>,
    /// All request headers in order, credentials replaced by their fingerprint.
    pub headers: Vec<(String, String)>,
    /// Model asked for.
    pub model: String,
    /// Whether a stream was asked for.
    pub stream: bool,
    /// Length of the request body.
    pub body_bytes: usize,
    /// The request body; not in the record file.
    #[serde(skip)]
    pub body: Bytes,
    /// The status answered.
    pub status: u16,
    /// The answer's own id; empty when refused.
    pub answer_id: String,
    /// What it used.
    pub used: Used,
    /// Whether the caller was told the usage (false also when it left before).
    pub usage_told: bool,
    /// Events handed to the socket, of every kind; 1 for a plain answer.
    pub events_sent: u64,
    /// How it ended.
    pub end: End,
}

/// Sums over all requests, kept even when entries are not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Inference requests received (`Chat` and `Messages`).
    pub received: u64,
    /// Of these, ended as `Finished`.
    pub finished: u64,
    /// Ended as `Refused`.
    pub refused: u64,
    /// Ended as `Broken`.
    pub broken: u64,
    /// Ended as `HungUp`.
    pub hung_up: u64,
    /// Prompt tokens of all ended requests that were not refused.
    pub prompt_tokens: u64,
    /// Completion tokens of the same.
    pub completion_tokens: u64,
}

/// Sixteen hex digits that stand for a secret in records (64-bit FNV-1a; identifies, does not protect).
pub fn fingerprint(secret: &str) -> String {
    let hash = secret.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// Reads a record file written by `tollway-provider --record`. A last line still being written is left out.
///
/// Errors: the file cannot be read, or a complete line is not an entry.
pub fn read_record(path: &Path) -> std::io::Result<Vec<Seen>> {
    let text = std::fs::read_to_string(path)?;
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    complete
        .lines()
        .map(|line| serde_json::from_str(line).map_err(std::io::Error::other))
        .collect()
}

#[derive(Default)]
struct Tally {
    arrivals: AtomicU64,
    received: AtomicU64,
    finished: AtomicU64,
    refused: AtomicU64,
    broken: AtomicU64,
    hung_up: AtomicU64,
    prompt_tokens: AtomicU64,
    completion_tokens: AtomicU64,
}

/// The books of one provider.
pub(crate) struct Books {
    tally: Tally,
    in_memory: Option<Mutex<Vec<Seen>>>,
    file: Option<Mutex<std::fs::File>>,
}

impl Books {
    pub(crate) fn new(in_memory: bool, file: Option<std::fs::File>) -> Self {
        Self {
            tally: Tally::default(),
            in_memory: in_memory.then(Mutex::default),
            file: file.map(Mutex::new),
        }
    }

    /// Whether anybody reads entries; without it only the counts are kept.
    pub(crate) fn keeps_entries(&self) -> bool {
        self.in_memory.is_some() || self.file.is_some()
    }

    pub(crate) fn next_number(&self) -> u64 {
        self.tally.arrivals.fetch_add(1, Relaxed)
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.in_memory
            .as_ref()
            .map(|entries| lock(entries).clone())
            .unwrap_or_default()
    }

    pub(crate) fn counts(&self) -> Counts {
        let tally = &self.tally;
        Counts {
            received: tally.received.load(Relaxed),
            finished: tally.finished.load(Relaxed),
            refused: tally.refused.load(Relaxed),
            broken: tally.broken.load(Relaxed),
            hung_up: tally.hung_up.load(Relaxed),
            prompt_tokens: tally.prompt_tokens.load(Relaxed),
            completion_tokens: tally.completion_tokens.load(Relaxed),
        }
    }

    fn count_end(&self, entry: &Seen) {
        if !is_inference(entry.route) {
            return;
        }
        let tally = &self.tally;
        let ended = match entry.end {
            End::Open => return,
            End::Finished => &tally.finished,
            End::Refused => &tally.refused,
            End::Broken => &tally.broken,
            End::HungUp => &tally.hung_up,
        };
        tally.prompt_tokens.fetch_add(entry.used.prompt, Relaxed);
        tally.completion_tokens.fetch_add(entry.used.completion, Relaxed);
        ended.fetch_add(1, Relaxed);
    }

    fn write(&self, entry: &Seen) {
        if let Some(file) = &self.file {
            let mut line = serde_json::to_vec(entry).expect("an entry has string keys only");
            line.push(b'\n');
            // One write call per line on a file opened for appending: a reader never sees half of an older line.
            lock(file)
                .write_all(&line)
                .expect("the record file takes every entry, or the oracle is worthless");
        }
    }
}

fn is_inference(route: Route) -> bool {
    matches!(route, Route::Chat | Route::Messages)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The open entry of one request; closing it happens once, at the latest when it is dropped.
pub(crate) struct Entry {
    books: Arc<Books>,
    slot: Option<usize>,
    pub(crate) seen: Seen,
}

impl Entry {
    pub(crate) fn open(books: Arc<Books>, seen: Seen) -> Self {
        if is_inference(seen.route) {
            books.tally.received.fetch_add(1, Relaxed);
        }
        let slot = books.in_memory.as_ref().and_then(|entries| {
            let mut entries = lock(entries);
            (entries.len() < SEEN_MAX).then(|| {
                entries.push(seen.clone());
                entries.len() - 1
            })
        });
        Self { books, slot, seen }
    }

    /// Shows `Provider::seen` how far this request has come.
    pub(crate) fn progress(&self) {
        if let (Some(entries), Some(slot)) = (&self.books.in_memory, self.slot) {
            let shown = &mut lock(entries)[slot];
            shown.events_sent = self.seen.events_sent;
            shown.usage_told = self.seen.usage_told;
            shown.used = self.seen.used;
        }
    }

    /// Closes the entry; a second call changes nothing.
    pub(crate) fn close(&mut self, end: End) {
        if self.seen.end != End::Open {
            return;
        }
        self.seen.end = end;
        if end == End::Refused {
            self.seen.used = Used::default();
        }
        if let (Some(entries), Some(slot)) = (&self.books.in_memory, self.slot) {
            lock(entries)[slot].clone_from(&self.seen);
        }
        self.books.write(&self.seen);
        self.books.count_end(&self.seen);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.close(End::HungUp);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_tell_credentials_apart_and_do_not_show_them() {
        assert_ne!(fingerprint("sk-one"), fingerprint("sk-two"));
        assert_eq!(fingerprint("sk-one").len(), 16);
        assert!(!fingerprint("sk-one").contains("sk"));
    }
}
