//! The embedded usage log as a source. Format: [`tollway_proto::usage_log`]; offsets are bytes.
//!
//! Reads up to the writer's mark and no further: an offset that is in the Raft log for good is then never beyond what the disk has for
//! good. Removes files that are counted and too old, or too many; the newest of a partition always stays.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::BoxFuture;
use tollway_proto::usage::LogLine;
use tollway_proto::usage_log::{LogMark, LogSegment, MARK_FILE};

use super::rollup::Record;
use super::source::{RECORDS_MAX, SourceFault, UsageSource, WAIT};

/// Bytes read at once per partition, and so the longest line.
const READ_BYTES: u64 = 4 << 20;

/// What of the log is kept once it is counted.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    /// How long a file is kept after its last line.
    pub age: Duration,
    /// Most bytes of a partition; past it the oldest files go, however young.
    pub bytes: u64,
}

/// Reads the log in a folder. The folder may not be there yet.
#[derive(Debug)]
pub struct FileSource {
    dir: PathBuf,
    retention: Retention,
    reached: BTreeMap<i32, i64>,
}

impl FileSource {
    /// A source over the log in `dir`.
    pub fn new(dir: PathBuf, retention: Retention) -> Self {
        Self {
            dir,
            retention,
            reached: BTreeMap::new(),
        }
    }
}

impl UsageSource for FileSource {
    fn seek<'a>(&'a mut self, reached: &'a BTreeMap<i32, i64>) -> BoxFuture<'a, Result<(), SourceFault>> {
        self.reached.clone_from(reached);
        Box::pin(async { Ok(()) })
    }

    fn read(&mut self) -> BoxFuture<'_, Result<Vec<Record>, SourceFault>> {
        Box::pin(async {
            let (dir, reached) = (self.dir.clone(), self.reached.clone());
            let records = blocking(move || read_log(&dir, &reached)).await?;
            for record in &records {
                self.reached.insert(record.partition, record.next);
            }
            if records.is_empty() {
                tokio::time::sleep(WAIT).await;
            }
            Ok(records)
        })
    }

    fn beginnings(&mut self) -> BoxFuture<'_, Result<BTreeMap<i32, i64>, SourceFault>> {
        Box::pin(async {
            let dir = self.dir.clone();
            blocking(move || {
                let first = |(partition, segments): (i32, Vec<LogSegment>)| {
                    let base = segments.first().map_or(0, |segment| segment.base);
                    (partition, i64::try_from(base).unwrap_or(i64::MAX))
                };
                Ok(segments(&dir)?.into_iter().map(first).collect())
            })
            .await
        })
    }

    fn lag(&mut self) -> BoxFuture<'_, Result<BTreeMap<i32, i64>, SourceFault>> {
        Box::pin(async {
            let (dir, reached) = (self.dir.clone(), self.reached.clone());
            blocking(move || {
                let behind = |(partition, end): (i32, u64)| {
                    let reached = reached.get(&partition).copied().unwrap_or(0);
                    (partition, i64::try_from(end).unwrap_or(i64::MAX) - reached)
                };
                Ok(durable(&dir)?.0.into_iter().map(behind).collect())
            })
            .await
        })
    }

    fn release<'a>(&'a mut self, counted: &'a BTreeMap<i32, i64>) -> BoxFuture<'a, Result<(), SourceFault>> {
        Box::pin(async {
            let (dir, retention, counted) = (self.dir.clone(), self.retention, counted.clone());
            blocking(move || Ok(remove_old(&dir, retention, &counted)?)).await
        })
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourceFault> + Send + 'static,
) -> Result<T, SourceFault> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|fault| SourceFault::Other(format!("reading the usage log: {fault}")))?
}

impl From<io::Error> for SourceFault {
    fn from(fault: io::Error) -> Self {
        Self::Other(format!("usage log: {fault}"))
    }
}

/// How far each partition may be read; nowhere while the writer has not said.
fn durable(dir: &Path) -> io::Result<LogMark> {
    match std::fs::read(dir.join(MARK_FILE)) {
        // A loss of power may garble the file; the writer makes it anew when it starts.
        Ok(text) => Ok(serde_json::from_slice(&text).unwrap_or_default()),
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => Ok(LogMark::default()),
        Err(fault) => Err(fault),
    }
}

/// The log's files by partition, oldest first; none when there is no folder yet.
fn segments(dir: &Path) -> io::Result<BTreeMap<i32, Vec<LogSegment>>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(fault) => return Err(fault),
    };
    let mut found: BTreeMap<i32, Vec<LogSegment>> = BTreeMap::new();
    for entry in entries {
        let segment = entry?.file_name().to_str().and_then(LogSegment::parse);
        if let Some(segment) = segment {
            found.entry(segment.partition).or_default().push(segment);
        }
    }
    found.values_mut().for_each(|segments| segments.sort_unstable());
    Ok(found)
}

/// Reads at most [`RECORDS_MAX`] records. Partitions take turns, each with an equal share of what is left: a busy one holds up none of
/// the others, and has all of it when they are quiet.
fn read_log(dir: &Path, reached: &BTreeMap<i32, i64>) -> Result<Vec<Record>, SourceFault> {
    // The mark before the names: a file that is made in between begins at the mark or behind it.
    let durable = durable(dir)?;
    let stretch = |(partition, segments)| Stretch {
        partition,
        from: reached.get(&partition).copied().unwrap_or(0).unsigned_abs(),
        durable: durable.0.get(&partition).copied(),
        segments,
    };
    let mut stretches: Vec<Stretch> = segments(dir)?.into_iter().map(stretch).collect();
    let mut records = Vec::new();
    while !stretches.is_empty() && records.len() < RECORDS_MAX {
        let share = (RECORDS_MAX - records.len()).div_ceil(stretches.len());
        let mut unread = Vec::with_capacity(stretches.len());
        for mut stretch in stretches {
            let most = (records.len() + share).min(RECORDS_MAX);
            let mut may_have_more = true;
            while may_have_more && records.len() < most {
                may_have_more = stretch.read(dir, &mut records, most)?;
            }
            if may_have_more {
                unread.push(stretch);
            }
        }
        stretches = unread;
    }
    Ok(records)
}

/// What is to be read of one partition.
struct Stretch {
    partition: i32,
    from: u64,
    durable: Option<u64>,
    segments: Vec<LogSegment>,
}

impl Stretch {
    /// Reads on in the file that holds `from`, until there are `most` records; returns whether there may be more.
    fn read(&mut self, dir: &Path, records: &mut Vec<Record>, most: usize) -> Result<bool, SourceFault> {
        let Some(durable) = self.durable else {
            return Ok(false);
        };
        let low = self.segments.first().map_or(0, |segment| segment.base);
        let next = self.segments.partition_point(|segment| segment.base <= self.from);
        if next == 0 || durable < self.from {
            return Err(self.range(low, durable));
        }
        let segment = self.segments[next - 1];
        let end = self
            .segments
            .get(next)
            .map_or(durable, |next| next.base.min(durable));
        if end == self.from {
            return Ok(false);
        }
        let wanted = (end - self.from).min(READ_BYTES);
        let mut bytes = vec![0; usize::try_from(wanted).unwrap_or_default()];
        let file = File::open(dir.join(segment.name()))?;
        match file.read_exact_at(&mut bytes, self.from - segment.base) {
            Err(fault) if fault.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(self.range(low, segment.base + file.metadata()?.len()));
            }
            read => read?,
        }
        let from = self.from;
        self.take_lines(&bytes, records, most);
        if self.from == from {
            return Err(SourceFault::Other(format!(
                "partition {} has a line longer than {READ_BYTES} bytes, or one that does not end, at {from}",
                self.partition
            )));
        }
        Ok(true)
    }

    fn take_lines(&mut self, bytes: &[u8], records: &mut Vec<Record>, most: usize) {
        let signed = |offset: u64| i64::try_from(offset).unwrap_or(i64::MAX);
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let Some((b'\n', text)) = line.split_last() else {
                break; // its end is in the next read
            };
            let next = self.from + line.len() as u64;
            // What is no log line goes on as it is: the fold counts and reports it.
            let event = serde_json::from_slice::<LogLine<'_>>(text);
            let value = event.map_or_else(|_| text.to_vec(), |line| line.event.get().as_bytes().to_vec());
            records.push(Record {
                partition: self.partition,
                offset: signed(self.from),
                next: signed(next),
                value,
            });
            self.from = next;
            if records.len() >= most {
                break;
            }
        }
    }

    fn range(&self, low: u64, high: u64) -> SourceFault {
        let signed = |offset: u64| i64::try_from(offset).unwrap_or(i64::MAX);
        SourceFault::Range {
            partition: self.partition,
            reached: signed(self.from),
            low: signed(low),
            high: signed(high),
        }
    }
}

/// Removes files that end at or before what is counted and are too old, or too many.
fn remove_old(dir: &Path, retention: Retention, counted: &BTreeMap<i32, i64>) -> io::Result<()> {
    for (partition, segments) in segments(dir)? {
        let counted = counted.get(&partition).copied().unwrap_or(0).unsigned_abs();
        let Some(newest) = segments.last() else { continue };
        for pair in segments.windows(2) {
            let (segment, end) = (pair[0], pair[1].base);
            if end > counted {
                break;
            }
            let path = dir.join(segment.name());
            // A clock that went back makes a file young, never old.
            let age = std::fs::metadata(&path)?
                .modified()?
                .elapsed()
                .unwrap_or_default();
            if age < retention.age && newest.base - segment.base <= retention.bytes {
                break;
            }
            std::fs::remove_file(&path)?;
            tracing::info!(file = %path.display(), "removed a counted file of the usage log");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "{\"headers\":{},\"event\":{\"a\":1}}\n";
    const KEEP: Retention = Retention {
        age: Duration::from_secs(3600),
        bytes: 1 << 20,
    };

    fn put(dir: &Path, base: u64, text: &str) {
        let segment = LogSegment { partition: 3, base };
        std::fs::write(dir.join(segment.name()), text).unwrap();
    }

    fn mark(dir: &Path, end: u64) {
        let mark = LogMark([(3, end)].into());
        std::fs::write(dir.join(MARK_FILE), serde_json::to_vec(&mark).unwrap()).unwrap();
    }

    #[tokio::test]
    async fn only_durable_lines_are_read_and_reading_goes_on_where_the_state_is() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), 0, &format!("{LINE}not json\n{LINE}{{\"headers\""));
        let mut source = FileSource::new(dir.path().to_owned(), KEEP);
        source.seek(&BTreeMap::new()).await.unwrap();
        assert!(
            source.read().await.unwrap().is_empty(),
            "the writer has said nothing yet"
        );
        mark(dir.path(), 40);
        let records = source.read().await.unwrap();
        let found: Vec<_> = records
            .iter()
            .map(|r| (r.offset, r.next, r.value.as_slice()))
            .collect();
        assert_eq!(found, [(0, 31, b"{\"a\":1}".as_slice()), (31, 40, b"not json")]);
        assert!(
            source.read().await.unwrap().is_empty(),
            "a whole line, but not on disk for good"
        );
        mark(dir.path(), 71);
        assert_eq!(source.lag().await.unwrap()[&3], 31);
        source.seek(&BTreeMap::from([(3, 31)])).await.unwrap();
        assert_eq!(source.read().await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_busy_partition_holds_up_no_other_and_all_is_read_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let lines = [2 * RECORDS_MAX, 0, 3, RECORDS_MAX];
        let mut ends = BTreeMap::new();
        for (partition, lines) in (0..).zip(lines) {
            let segment = LogSegment { partition, base: 0 };
            std::fs::write(dir.path().join(segment.name()), LINE.repeat(lines)).unwrap();
            ends.insert(partition, (LINE.len() * lines) as u64);
        }
        let mark = serde_json::to_vec(&LogMark(ends)).unwrap();
        std::fs::write(dir.path().join(MARK_FILE), mark).unwrap();
        let mut source = FileSource::new(dir.path().to_owned(), KEEP);
        source.seek(&BTreeMap::new()).await.unwrap();
        let mut total = [0; 4];
        let mut next = [0; 4];
        let mut reads = 0;
        loop {
            let records = source.read().await.unwrap();
            if records.is_empty() {
                break;
            }
            reads += 1;
            assert!(records.len() <= RECORDS_MAX);
            for record in &records {
                let partition = usize::try_from(record.partition).unwrap();
                assert_eq!(record.offset, next[partition], "in order and without a gap");
                next[partition] = record.next;
                total[partition] += 1;
            }
            if reads == 1 {
                assert_eq!(total[2], 3, "the quiet one is read to its end at once");
                assert!(total[3] > RECORDS_MAX / 4, "a share for each: {total:?}");
                assert_eq!(
                    records.len(),
                    RECORDS_MAX,
                    "and what is left of it for the busy ones"
                );
            }
        }
        assert_eq!((total, reads), (lines, 4));
    }

    #[tokio::test]
    async fn a_log_shorter_than_what_was_counted_is_an_error() {
        for (end, high) in [(2, 2), (62, 31)] {
            let dir = tempfile::tempdir().unwrap();
            put(dir.path(), 0, if end == 2 { "x\n" } else { LINE });
            mark(dir.path(), end);
            let mut source = FileSource::new(dir.path().to_owned(), KEEP);
            source.seek(&BTreeMap::from([(3, 31)])).await.unwrap();
            let fault = source.read().await.unwrap_err();
            let SourceFault::Range {
                reached: 31,
                high: found,
                ..
            } = fault
            else {
                panic!("{fault}");
            };
            assert_eq!(found, high);
        }
    }

    #[tokio::test]
    async fn reading_goes_on_across_files_and_counted_ones_go_when_they_are_old_or_many() {
        let line = LINE.len() as u64;
        let young = Retention { bytes: 0, ..KEEP };
        let old = Retention {
            age: Duration::ZERO,
            ..KEEP
        };
        for (retention, counted, left) in [
            (KEEP, 3, 3),
            (young, 0, 3),
            (young, 1, 2),
            (old, 3, 1),
            (young, 3, 1),
        ] {
            let dir = tempfile::tempdir().unwrap();
            for base in [0, line, 2 * line] {
                put(dir.path(), base, LINE);
            }
            // What a file has behind the next one's beginning was cut off and is nothing.
            put(dir.path(), line, &format!("{LINE}{LINE}"));
            mark(dir.path(), 3 * line);
            let mut source = FileSource::new(dir.path().to_owned(), retention);
            source.seek(&BTreeMap::new()).await.unwrap();
            let offsets: Vec<_> = source
                .read()
                .await
                .unwrap()
                .iter()
                .map(|r| r.offset.unsigned_abs())
                .collect();
            assert_eq!(offsets, [0, line, 2 * line]);
            let counted = BTreeMap::from([(3, counted * line.cast_signed())]);
            source.release(&counted).await.unwrap();
            assert_eq!(
                segments(dir.path()).unwrap()[&3].len(),
                left,
                "{retention:?} {counted:?}"
            );
            source
                .seek(&BTreeMap::from([(3, 2 * line.cast_signed())]))
                .await
                .unwrap();
            assert_eq!(source.read().await.unwrap().len(), 1);
            if left == 1 {
                source.seek(&BTreeMap::new()).await.unwrap();
                assert!(matches!(
                    source.read().await,
                    Err(SourceFault::Range { low: 62, .. })
                ));
            }
        }
    }
}
