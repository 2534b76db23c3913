//! The embedded usage log as a test reads it: every segment of it, and each line once, however often it is asked.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use tollway_proto::usage::{LogLine, UsageEvent};
use tollway_proto::usage_log::LogSegment;

/// Events of a log, as far as it was read.
pub(crate) struct Log {
    dir: PathBuf,
    /// How many bytes of each segment.
    read: BTreeMap<LogSegment, u64>,
    /// In the order in which they were found.
    pub(crate) events: Vec<UsageEvent>,
}

impl Log {
    /// The log in this folder, which may not be there yet.
    pub(crate) fn at(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            read: BTreeMap::new(),
            events: Vec::new(),
        }
    }

    /// Reads the whole lines that have come since. Returns how many.
    pub(crate) fn read_on(&mut self) -> usize {
        let before = self.events.len();
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.unwrap().file_name().into_string().ok());
        let mut segments: Vec<LogSegment> = names.filter_map(|name| LogSegment::parse(&name)).collect();
        segments.sort_unstable();
        for segment in segments {
            let at = self.read.entry(segment).or_default();
            let mut file = File::open(self.dir.join(segment.name())).unwrap();
            file.seek(SeekFrom::Start(*at)).unwrap();
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            let whole = bytes
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |end| end + 1);
            *at += whole as u64;
            for line in bytes[..whole].split_inclusive(|byte| *byte == b'\n') {
                let line: LogLine<'_> = serde_json::from_slice(line).unwrap();
                self.events.push(serde_json::from_str(line.event.get()).unwrap());
            }
        }
        self.events.len() - before
    }
}

/// The events of a log.
pub(crate) fn events_in(dir: &Path) -> Vec<UsageEvent> {
    let mut log = Log::at(dir);
    log.read_on();
    log.events
}
