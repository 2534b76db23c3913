//! The embedded usage log: what `tollway up` has instead of Kafka. Format: [`tollway_proto::usage::LogLine`].
//!
//! A record is delivered once its line is on disk (fsync). One process owns a log, which a lock file makes sure of.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tollway_proto::spool::OutcomeRecord;
use tollway_proto::usage::{LogLine, log_file_name};

use super::sink::{Handed, Sink, SinkFault, Ticket};

/// Lines kept in memory before they are written.
const BUFFER_BYTES_MAX: usize = 1 << 20;
/// Read at once when looking for the last line's end.
const TAIL_BYTES: u64 = 64 * 1024;

/// The log, open for appending.
#[derive(Debug)]
pub(super) struct FileSink {
    dir: PathBuf,
    _lock: File,
    files: BTreeMap<i32, LogFile>,
    buffered: usize,
    tickets: Vec<Ticket>,
}

#[derive(Debug)]
struct LogFile {
    file: File,
    buffer: Vec<u8>,
}

impl FileSink {
    /// Opens the log, making its folder when it is not there.
    pub(super) fn open(dir: &Path) -> Result<Self, SinkFault> {
        let opened = || -> io::Result<File> {
            std::fs::create_dir_all(dir)?;
            let lock = File::create(dir.join("lock"))?;
            lock.try_lock().map_err(io::Error::other)?;
            Ok(lock)
        };
        let lock = opened().map_err(|fault| SinkFault(format!("usage log `{}`: {fault}", dir.display())))?;
        Ok(Self {
            dir: dir.to_owned(),
            _lock: lock,
            files: BTreeMap::new(),
            buffered: 0,
            tickets: Vec::new(),
        })
    }

    fn file(&mut self, partition: i32) -> io::Result<&mut LogFile> {
        match self.files.entry(partition) {
            std::collections::btree_map::Entry::Occupied(held) => Ok(held.into_mut()),
            std::collections::btree_map::Entry::Vacant(free) => {
                let mut file = OpenOptions::new()
                    .append(true)
                    .read(true)
                    .create(true)
                    .open(self.dir.join(log_file_name(partition)))?;
                cut_torn_line(&mut file)?;
                File::open(&self.dir)?.sync_all()?;
                Ok(free.insert(LogFile {
                    file,
                    buffer: Vec::new(),
                }))
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        for log in self.files.values_mut().filter(|log| !log.buffer.is_empty()) {
            log.file.write_all(&log.buffer)?;
            log.file.sync_data()?;
            log.buffer.clear();
        }
        self.buffered = 0;
        Ok(())
    }
}

impl Sink for FileSink {
    fn hand(&mut self, ticket: Ticket, record: &OutcomeRecord) -> Result<Handed, SinkFault> {
        if self.buffered >= BUFFER_BYTES_MAX {
            return Ok(Handed::Busy);
        }
        let line = line(record).map_err(|fault| SinkFault(format!("a usage event is not JSON: {fault}")))?;
        self.buffered += line.len();
        let log = self
            .file(record.partition)
            .map_err(|fault| SinkFault(format!("usage log: {fault}")))?;
        log.buffer.extend_from_slice(&line);
        self.tickets.push(ticket);
        Ok(Handed::Taken)
    }

    fn delivered(&mut self, tickets: &mut Vec<Ticket>) -> Result<(), SinkFault> {
        if self.tickets.is_empty() {
            return Ok(());
        }
        self.flush()
            .map_err(|fault| SinkFault(format!("usage log: {fault}")))?;
        tickets.append(&mut self.tickets);
        Ok(())
    }
}

fn line(record: &OutcomeRecord) -> serde_json::Result<Vec<u8>> {
    let line = LogLine {
        headers: record.headers.iter().cloned().collect(),
        event: serde_json::from_slice(&record.event)?,
    };
    let mut bytes = serde_json::to_vec(&line)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Removes what a crash left after the last line's end.
fn cut_torn_line(file: &mut File) -> io::Result<()> {
    let length = file.metadata()?.len();
    let mut end = length;
    while end > 0 {
        let start = end.saturating_sub(TAIL_BYTES);
        let mut block = vec![0; usize::try_from(end - start).unwrap_or(0)];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut block)?;
        if let Some(place) = memchr::memrchr(b'\n', &block) {
            end = start + place as u64 + 1;
            break;
        }
        end = start;
    }
    if end < length {
        file.set_len(end)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    fn ticket(sequence: u64) -> Ticket {
        Ticket {
            stream: 1,
            partition: 3,
            sequence,
        }
    }

    #[test]
    fn a_line_is_delivered_once_it_is_in_the_file_and_a_torn_one_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let record = OutcomeRecord::of(&sample::event("one", "acme"));
        let path = dir.path().join(log_file_name(record.partition));
        let mut sink = FileSink::open(dir.path()).unwrap();
        assert_eq!(sink.hand(ticket(1), &record).unwrap(), Handed::Taken);
        let mut delivered = Vec::new();
        sink.delivered(&mut delivered).unwrap();
        assert_eq!(delivered, [ticket(1)]);
        let first = std::fs::read(&path).unwrap();
        let text = std::str::from_utf8(&first).unwrap();
        let line: LogLine = serde_json::from_str(text.trim_end()).unwrap();
        assert_eq!(line.event.get().as_bytes(), record.event);
        assert_eq!(line.headers["ce_type"], "io.tollway.usage.recorded.v1");
        drop(sink);

        std::fs::write(&path, [first.as_slice(), b"{\"headers\":{\"ce_id"].concat()).unwrap();
        let mut sink = FileSink::open(dir.path()).unwrap();
        sink.hand(ticket(2), &record).unwrap();
        sink.delivered(&mut delivered).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), [first.as_slice(), &first].concat());
    }

    #[test]
    fn a_log_has_one_owner() {
        let dir = tempfile::tempdir().unwrap();
        let _owner = FileSink::open(dir.path()).unwrap();
        assert!(FileSink::open(dir.path()).is_err());
    }
}
