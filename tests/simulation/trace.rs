//! What happened, as one hash and the last few lines.

use std::collections::VecDeque;
use std::sync::Mutex;

use tokio::time::Instant;

/// Lines that are kept for the report of a failure.
const LINES_KEPT: usize = 60;

/// The record of a run.
pub(crate) struct Trace {
    began: Instant,
    inner: Mutex<Inner>,
    /// Prints every line as it happens.
    loud: bool,
}

#[derive(Default)]
struct Inner {
    hash: u64,
    events: u64,
    lines: VecDeque<String>,
}

impl Trace {
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            inner: Mutex::default(),
            loud: std::env::var_os("TOLLWAY_SIM_TRACE").is_some(),
        }
    }

    /// Milliseconds of simulated time since the start.
    pub(crate) fn elapsed_ms(&self) -> i64 {
        i64::try_from(self.began.elapsed().as_millis()).expect("a run is shorter than that")
    }

    /// Notes an event.
    pub(crate) fn note(&self, text: &str) {
        let nanos = self.began.elapsed().as_nanos();
        let mut inner = self.inner.lock().unwrap();
        let mut hash = inner.hash ^ 0xcbf2_9ce4_8422_2325;
        for byte in nanos.to_le_bytes().iter().chain(text.as_bytes()) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
        inner.hash = hash;
        inner.events += 1;
        if inner.lines.len() == LINES_KEPT {
            inner.lines.pop_front();
        }
        let line = format!("{:>10.3} ms  {text}", nanos as f64 / 1e6);
        if self.loud {
            println!("{line}");
        }
        inner.lines.push_back(line);
    }

    /// The hash of all events with their times, and how many there were.
    pub(crate) fn hash(&self) -> (u64, u64) {
        let inner = self.inner.lock().unwrap();
        (inner.hash, inner.events)
    }

    /// The last lines, oldest first.
    pub(crate) fn tail(&self) -> String {
        let inner = self.inner.lock().unwrap();
        inner.lines.iter().cloned().collect::<Vec<_>>().join("\n")
    }
}
