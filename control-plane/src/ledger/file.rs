//! The embedded usage log as a source. Format: [`tollway_proto::usage::LogLine`]; offsets are bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use futures::future::BoxFuture;
use tollway_proto::usage::{LogLine, log_file_name};

use super::rollup::Record;
use super::source::{RECORDS_MAX, SourceFault, UsageSource, WAIT};

/// Bytes read at once per partition, and so the longest line.
const READ_BYTES: usize = 4 << 20;

/// Reads the log in a folder. The folder may not be there yet.
#[derive(Debug)]
pub struct FileSource {
    dir: PathBuf,
    reached: BTreeMap<i32, i64>,
}

impl FileSource {
    /// A source over the log in `dir`.
    pub fn new(dir: PathBuf) -> Self {
        Self {
            dir,
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

    fn lag(&mut self) -> BoxFuture<'_, Result<BTreeMap<i32, i64>, SourceFault>> {
        Box::pin(async {
            let (dir, reached) = (self.dir.clone(), self.reached.clone());
            blocking(move || {
                let mut lag = BTreeMap::new();
                for (partition, path) in partitions(&dir)? {
                    let end = i64::try_from(std::fs::metadata(&path)?.len()).unwrap_or(i64::MAX);
                    lag.insert(partition, end - reached.get(&partition).copied().unwrap_or(0));
                }
                Ok(lag)
            })
            .await
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

/// The log's files by partition; none when there is no folder yet.
fn partitions(dir: &Path) -> io::Result<Vec<(i32, PathBuf)>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(fault) => return Err(fault),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix("usage-")?.strip_suffix(".jsonl"));
        let number: Option<i32> = number.and_then(|digits| digits.parse().ok());
        found.extend(
            number
                .filter(|n| name.to_str() == Some(&log_file_name(*n)))
                .map(|n| (n, entry.path())),
        );
    }
    found.sort();
    Ok(found)
}

fn read_log(dir: &Path, reached: &BTreeMap<i32, i64>) -> Result<Vec<Record>, SourceFault> {
    let mut records = Vec::new();
    for (partition, path) in partitions(dir)? {
        if records.len() < RECORDS_MAX {
            let from = reached.get(&partition).copied().unwrap_or(0);
            read_partition(&path, partition, from, &mut records)?;
        }
    }
    Ok(records)
}

fn read_partition(
    path: &Path,
    partition: i32,
    from: i64,
    records: &mut Vec<Record>,
) -> Result<(), SourceFault> {
    let file = File::open(path)?;
    let length = i64::try_from(file.metadata()?.len()).unwrap_or(i64::MAX);
    if length < from {
        return Err(SourceFault::Range {
            partition,
            reached: from,
            low: 0,
            high: length,
        });
    }
    let wanted = usize::try_from(length - from)
        .unwrap_or(READ_BYTES)
        .min(READ_BYTES);
    let mut bytes = vec![0; wanted];
    file.read_exact_at(&mut bytes, from.unsigned_abs())?;
    let before = records.len();
    let mut offset = from;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let Some((b'\n', text)) = line.split_last() else {
            break; // still being written
        };
        let next = offset + i64::try_from(line.len()).unwrap_or(0);
        // What is no log line goes on as it is: the fold counts and reports it.
        let event = serde_json::from_slice::<LogLine<'_>>(text);
        let value = event.map_or_else(|_| text.to_vec(), |line| line.event.get().as_bytes().to_vec());
        records.push(Record {
            partition,
            offset,
            next,
            value,
        });
        offset = next;
        if records.len() >= RECORDS_MAX {
            break;
        }
    }
    if records.len() > before {
        // The offset will be in the Raft log for good, so the lines must be on the disk for good: the writer syncs them before it
        // forgets them, but may not have come to it yet.
        file.sync_data()?;
    } else if wanted == READ_BYTES {
        return Err(SourceFault::Other(format!(
            "partition {partition} has a line longer than {READ_BYTES} bytes at {from}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_whole_lines_are_read_and_reading_goes_on_where_the_state_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(log_file_name(3));
        let line = "{\"headers\":{},\"event\":{\"a\":1}}\n";
        std::fs::write(&path, format!("{line}not json\n{{\"headers\"")).unwrap();
        let mut source = FileSource::new(dir.path().to_owned());
        source.seek(&BTreeMap::new()).await.unwrap();
        let records = source.read().await.unwrap();
        let found: Vec<_> = records
            .iter()
            .map(|r| (r.offset, r.next, r.value.as_slice()))
            .collect();
        assert_eq!(found, [(0, 31, b"{\"a\":1}".as_slice()), (31, 40, b"not json")]);
        assert!(source.read().await.unwrap().is_empty());
        assert_eq!(source.lag().await.unwrap()[&3], 10);
        source.seek(&BTreeMap::from([(3, 31)])).await.unwrap();
        assert_eq!(source.read().await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_log_shorter_than_what_was_counted_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(log_file_name(0)), "x\n").unwrap();
        let mut source = FileSource::new(dir.path().to_owned());
        source.seek(&BTreeMap::from([(0, 3)])).await.unwrap();
        assert!(matches!(
            source.read().await,
            Err(SourceFault::Range {
                reached: 3,
                high: 2,
                ..
            })
        ));
    }
}
