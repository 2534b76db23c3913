//! The embedded usage log: what `tollway up` has instead of Kafka. Format: [`tollway_proto::usage_log`].
//!
//! A record is delivered once its line is on disk (fsync) and the mark, on disk too, says so; readers go no further than the mark. After
//! a failed write or fsync the file is cut back to the mark and never written again: the next line goes into a new segment. A file of an
//! earlier life that fails its first fsync becomes a new file of the same content. One process owns a log, which a lock file makes
//! sure of. Old segments are removed by the ledger, which knows what it has counted.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tollway_proto::spool::OutcomeRecord;
use tollway_proto::usage_log::{LogMark, LogSegment, MARK_FILE};

use super::durable;
use super::sink::{Handed, Sink, SinkFault, Ticket};
use super::sync::Fsync;

/// Lines kept in memory before they are written.
const BUFFER_BYTES_MAX: usize = 1 << 20;
/// Read at once when looking for the last line's end.
const TAIL_BYTES: u64 = 64 * 1024;
/// A segment that has reached this is followed by another.
const SEGMENT_BYTES: u64 = 16 << 20;

/// Partitions whose file failed. Outlives the sink, which is given up after a fault.
#[derive(Debug, Clone, Default)]
pub(super) struct Suspects(Arc<Mutex<BTreeMap<i32, Suspect>>>);

/// What can be trusted of a partition whose last file failed an fsync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Suspect {
    /// What this life wrote, up to this offset: nothing behind it was delivered.
    Until(u64),
    /// What an earlier life wrote, once it is written again: of how much of it was delivered nothing is known.
    AsCopy,
}

impl Suspects {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<i32, Suspect>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The log, open for appending.
pub(super) struct FileSink {
    dir: PathBuf,
    _lock: File,
    files: BTreeMap<i32, LogFile>,
    suspects: Suspects,
    fsync: Fsync,
    segment_bytes: u64,
    buffered: usize,
    tickets: Vec<Ticket>,
}

struct LogFile {
    file: File,
    segment: LogSegment,
    /// The offset up to which it is durable.
    end: u64,
    buffer: Vec<u8>,
}

impl FileSink {
    /// Opens the log, making its folder when it is not there, and says how far it is good.
    pub(super) fn open(dir: &Path, suspects: &Suspects) -> Result<Self, SinkFault> {
        Self::open_on(dir, suspects, Box::new(File::sync_all))
    }

    fn open_on(dir: &Path, suspects: &Suspects, fsync: Fsync) -> Result<Self, SinkFault> {
        let opened = move || -> io::Result<Self> {
            std::fs::create_dir_all(dir)?;
            let lock = File::create(dir.join("lock"))?;
            lock.try_lock().map_err(io::Error::other)?;
            let mut sink = Self {
                dir: dir.to_owned(),
                _lock: lock,
                files: BTreeMap::new(),
                suspects: suspects.clone(),
                fsync,
                segment_bytes: SEGMENT_BYTES,
                buffered: 0,
                tickets: Vec::new(),
            };
            sink.open_files()?;
            sink.publish()?;
            Ok(sink)
        };
        opened().map_err(|fault| SinkFault(format!("usage log `{}`: {fault}", dir.display())))
    }

    /// Opens the last segment of every partition.
    fn open_files(&mut self) -> io::Result<()> {
        let mut segments: BTreeMap<i32, Vec<LogSegment>> = BTreeMap::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let found = entry?.file_name().to_str().and_then(LogSegment::parse);
            if let Some(segment) = found {
                segments.entry(segment.partition).or_default().push(segment);
            }
        }
        for partition in self.suspects.lock().keys() {
            segments.entry(*partition).or_default();
        }
        for (partition, mut segments) in segments {
            segments.sort_unstable();
            let suspect = self.suspects.lock().get(&partition).copied();
            let log = match (suspect, segments.last()) {
                (Some(Suspect::Until(end)), _) => self.replace(partition, end, &segments)?,
                (_, Some(last)) => self.reopen(*last, suspect.is_none())?,
                (_, None) => continue,
            };
            self.files.insert(partition, log);
            self.suspects.lock().remove(&partition);
        }
        Ok(())
    }

    /// Goes on in a segment of an earlier life. What it has of whole lines is made durable first, whoever wrote them.
    ///
    /// - `trusted`: no fsync of it has failed. Of one that has, the disk may lack what memory still shows, whatever the next one says.
    fn reopen(&mut self, segment: LogSegment, trusted: bool) -> io::Result<LogFile> {
        let path = self.dir.join(segment.name());
        let append = || OpenOptions::new().append(true).read(true).open(&path);
        let mut file = append()?;
        let length = cut_torn_line(&mut file)?;
        let synced = trusted
            && {
                let synced = (self.fsync)(&file);
                synced
                .inspect_err(|fault| {
                    tracing::warn!(error = %fault, path = %path.display(), "fsync of the usage log failed: writing the file again");
                    self.suspects.lock().insert(segment.partition, Suspect::AsCopy);
                })
                .is_ok()
            };
        if !synced {
            durable::duplicate(&path, length, &path, &mut self.fsync)?;
            file = append()?;
        }
        Ok(LogFile {
            file,
            segment,
            end: segment.base + length,
            buffer: Vec::new(),
        })
    }

    /// Cuts a partition back to `end`, behind which nothing was ever delivered, and goes on in a new file.
    fn replace(&mut self, partition: i32, end: u64, segments: &[LogSegment]) -> io::Result<LogFile> {
        for segment in segments {
            let path = self.dir.join(segment.name());
            if segment.base >= end {
                std::fs::remove_file(path)?;
            } else if std::fs::metadata(&path)?.len() >= end - segment.base {
                // Also when it has that length: the fsync of an earlier cut may have failed, and the cut must be on disk before more lines.
                let cut = OpenOptions::new().write(true).open(path)?;
                cut.set_len(end - segment.base)?;
                (self.fsync)(&cut)?;
            }
        }
        self.create(LogSegment { partition, base: end })
    }

    fn create(&mut self, segment: LogSegment) -> io::Result<LogFile> {
        let path = self.dir.join(segment.name());
        let file = OpenOptions::new().append(true).create_new(true).open(path)?;
        durable::sync_dir(&self.dir, &mut self.fsync)?;
        Ok(LogFile {
            file,
            segment,
            end: segment.base,
            buffer: Vec::new(),
        })
    }

    fn file(&mut self, partition: i32) -> io::Result<&mut LogFile> {
        let full = self
            .files
            .get(&partition)
            .is_none_or(|log| log.buffer.is_empty() && log.end - log.segment.base >= self.segment_bytes);
        if full {
            let base = self.files.get(&partition).map_or(0, |log| log.end);
            let log = self.create(LogSegment { partition, base })?;
            self.files.insert(partition, log);
        }
        self.files
            .get_mut(&partition)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        for (partition, log) in self.files.iter_mut().filter(|(_, log)| !log.buffer.is_empty()) {
            let written = log
                .file
                .write_all(&log.buffer)
                .and_then(|()| (self.fsync)(&log.file));
            written.inspect_err(|_| {
                self.suspects.lock().insert(*partition, Suspect::Until(log.end));
            })?;
            log.end += log.buffer.len() as u64;
            log.buffer.clear();
        }
        self.buffered = 0;
        self.publish()
    }

    /// Lets readers go as far as the log is durable. So is the mark: a reader that has counted a line must find it so ever after.
    fn publish(&mut self) -> io::Result<()> {
        let ends = self.files.iter().map(|(partition, log)| (*partition, log.end));
        let text = serde_json::to_vec(&LogMark(ends.collect()))?;
        let draft = self.dir.join("durable.tmp");
        let mut file = File::create(&draft)?;
        file.write_all(&text)?;
        (self.fsync)(&file)?;
        std::fs::rename(&draft, self.dir.join(MARK_FILE))?;
        durable::sync_dir(&self.dir, &mut self.fsync)
    }
}

impl Sink for FileSink {
    fn hand(&mut self, ticket: Ticket, record: &OutcomeRecord) -> Result<Handed, SinkFault> {
        if self.buffered >= BUFFER_BYTES_MAX {
            return Ok(Handed::Busy);
        }
        let log = self
            .file(record.partition)
            .map_err(|fault| SinkFault(format!("usage log: {fault}")))?;
        let before = log.buffer.len();
        write_line(record, &mut log.buffer).map_err(|fault| SinkFault(format!("usage log: {fault}")))?;
        let length = log.buffer.len() - before;
        self.buffered += length;
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

/// Writes a [`LogLine`]. The event is JSON in one line already: it is what [`OutcomeRecord::of`] made, checksummed ever since.
///
/// [`LogLine`]: tollway_proto::usage::LogLine
fn write_line(record: &OutcomeRecord, out: &mut Vec<u8>) -> serde_json::Result<()> {
    out.extend_from_slice(b"{\"headers\":{");
    for (place, (name, value)) in record.headers.iter().enumerate() {
        if place > 0 {
            out.push(b',');
        }
        serde_json::to_writer(&mut *out, name)?;
        out.push(b':');
        serde_json::to_writer(&mut *out, value)?;
    }
    out.extend_from_slice(b"},\"event\":");
    out.extend_from_slice(&record.event);
    out.extend_from_slice(b"}\n");
    Ok(())
}

/// Removes what a crash left after the last line's end; returns the length then.
fn cut_torn_line(file: &mut File) -> io::Result<u64> {
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
    Ok(end)
}

#[cfg(test)]
mod tests {
    use tollway_proto::usage::{LogLine, log_file_name};

    use super::super::disk_tests::Disk;
    use super::super::sample;
    use super::*;

    fn ticket(sequence: u64) -> Ticket {
        Ticket {
            stream: 1,
            partition: 3,
            sequence,
        }
    }

    fn open(dir: &Path) -> FileSink {
        FileSink::open(dir, &Suspects::default()).unwrap()
    }

    /// Hands one record over and waits for it.
    fn write(sink: &mut FileSink, sequence: u64, record: &OutcomeRecord) -> Result<(), SinkFault> {
        assert_eq!(sink.hand(ticket(sequence), record)?, Handed::Taken);
        let mut delivered = Vec::new();
        sink.delivered(&mut delivered)?;
        assert_eq!(delivered, [ticket(sequence)]);
        Ok(())
    }

    fn mark(dir: &Path) -> u64 {
        let mark: LogMark = serde_json::from_slice(&std::fs::read(dir.join(MARK_FILE)).unwrap()).unwrap();
        mark.0[&3]
    }

    fn names(dir: &Path) -> Vec<String> {
        let names = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name.ends_with(".jsonl")).collect();
        names.sort();
        names
    }

    #[test]
    fn a_line_is_delivered_once_it_is_in_the_file_and_a_torn_one_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let record = OutcomeRecord::of(&sample::event("one", "acme"));
        let path = dir.path().join(log_file_name(record.partition));
        let mut sink = open(dir.path());
        write(&mut sink, 1, &record).unwrap();
        let first = std::fs::read(&path).unwrap();
        assert_eq!(mark(dir.path()), first.len() as u64);
        let text = std::str::from_utf8(&first).unwrap();
        let line: LogLine = serde_json::from_str(text.trim_end()).unwrap();
        assert_eq!(line.event.get().as_bytes(), record.event);
        assert_eq!(line.headers["ce_type"], "io.tollway.usage.recorded.v1");
        drop(sink);

        // As an earlier version left it: no mark, and a line that a crash has cut.
        std::fs::write(&path, [first.as_slice(), b"{\"headers\":{\"ce_id"].concat()).unwrap();
        std::fs::remove_file(dir.path().join(MARK_FILE)).unwrap();
        let mut sink = open(dir.path());
        assert_eq!(mark(dir.path()), first.len() as u64);
        write(&mut sink, 2, &record).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), [first.as_slice(), &first].concat());
    }

    #[test]
    fn after_a_failed_fsync_the_log_goes_on_in_a_new_file_from_the_mark() {
        for durable in [0, 2] {
            let dir = tempfile::tempdir().unwrap();
            let record = OutcomeRecord::of(&sample::event("one", "acme"));
            let suspects = Suspects::default();
            let mut sink = FileSink::open(dir.path(), &suspects).unwrap();
            for sequence in 1..=durable {
                write(&mut sink, sequence, &record).unwrap();
            }
            let good = if durable == 0 { 0 } else { mark(dir.path()) };
            sink.fsync = Box::new(|_| Err(io::Error::other("scripted")));
            assert!(write(&mut sink, durable + 1, &record).is_err());
            drop(sink);
            let mut sink = FileSink::open(dir.path(), &suspects).unwrap();
            assert_eq!(mark(dir.path()), good);
            write(&mut sink, durable + 1, &record).unwrap();
            let next = LogSegment {
                partition: 3,
                base: good,
            };
            let length = std::fs::metadata(dir.path().join(next.name())).unwrap().len();
            assert_eq!(mark(dir.path()), good + length);
            if durable > 0 {
                assert_eq!(
                    std::fs::metadata(dir.path().join(log_file_name(3)))
                        .unwrap()
                        .len(),
                    good
                );
                assert_eq!(names(dir.path()).len(), 2);
            }
        }
    }

    /// What is delivered is on disk, and the mark as well, whichever fsyncs of the first and of a later life fail.
    #[test]
    fn what_was_delivered_and_the_mark_outlive_a_loss_of_power() {
        let record = OutcomeRecord::of(&sample::event("one", "acme"));
        for fails in 0..8 {
            let dir = tempfile::tempdir().unwrap();
            write(&mut open(dir.path()), 1, &record).unwrap();
            let line = mark(dir.path());
            // Nothing of the earlier life is known to be on disk. The second to fail is one after the first try.
            let disk = Disk::failing([fails, fails + 2]).with(dir.path());
            let suspects = Suspects::default();
            let mut delivered = (1..5).filter(|sequence| {
                FileSink::open_on(dir.path(), &suspects, disk.fsync())
                    .and_then(|mut sink| write(&mut sink, *sequence, &record))
                    .is_ok()
            });
            assert!(delivered.next().is_some(), "fails {fails}");
            disk.lose_power(dir.path());
            let durable = mark(dir.path());
            assert!(durable >= 2 * line, "fails {fails}");
            let lines = names(dir.path()).into_iter().map(|name| {
                let bytes = std::fs::read(dir.path().join(&name)).unwrap();
                let base = LogSegment::parse(&name).unwrap().base;
                (base, bytes)
            });
            let mut end = 0;
            for (base, bytes) in lines.collect::<BTreeMap<_, _>>() {
                assert_eq!(base, end, "fails {fails}");
                end += bytes.len() as u64;
                assert!(bytes.ends_with(b"\n") && bytes[0] == b'{', "fails {fails}");
            }
            assert!(end >= durable, "fails {fails}");
        }
    }

    #[test]
    fn a_full_segment_is_followed_by_one_whose_name_says_where_it_begins() {
        let dir = tempfile::tempdir().unwrap();
        let record = OutcomeRecord::of(&sample::event("one", "acme"));
        let mut sink = open(dir.path());
        sink.segment_bytes = 1;
        write(&mut sink, 1, &record).unwrap();
        let line = mark(dir.path());
        write(&mut sink, 2, &record).unwrap();
        drop(sink);
        let mut sink = open(dir.path());
        sink.segment_bytes = 1;
        write(&mut sink, 3, &record).unwrap();
        let expected = [0, line, 2 * line].map(|base| LogSegment { partition: 3, base }.name());
        let mut expected = expected.to_vec();
        expected.sort();
        assert_eq!(names(dir.path()), expected);
        assert_eq!(mark(dir.path()), 3 * line);
    }

    #[test]
    fn a_log_has_one_owner() {
        let dir = tempfile::tempdir().unwrap();
        let _owner = open(dir.path());
        assert!(FileSink::open(dir.path(), &Suspects::default()).is_err());
    }
}
