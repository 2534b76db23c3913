//! The embedded usage log: what stands in for Kafka where there is none.
//!
//! A folder. Each partition is one row of bytes, cut into files ([`LogSegment`]) that are only ever appended to; every line is a
//! [`LogLine`](crate::usage::LogLine). An offset counts bytes from the start of the partition, so it goes on across files, and
//! stays what it was when old files are removed. How far a reader may go stands in [`MARK_FILE`]: everything before it is whole lines
//! and on the disk for good. What lies behind it may never have been: the writer cuts it off.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The file with the [`LogMark`], put in place whole after every fsync.
pub const MARK_FILE: &str = "durable.json";

/// One file of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogSegment {
    /// The partition.
    pub partition: i32,
    /// The offset of its first byte.
    pub base: u64,
}

impl LogSegment {
    /// `usage-00003.jsonl` for the first, `usage-00003-00000000000000067108.jsonl` for those after it.
    pub fn name(self) -> String {
        match self {
            Self { partition, base: 0 } => crate::usage::log_file_name(partition),
            Self { partition, base } => format!("usage-{partition:05}-{base:020}.jsonl"),
        }
    }

    /// Reads a file's name; `None` for any other file.
    pub fn parse(name: &str) -> Option<Self> {
        let numbers = name.strip_prefix("usage-")?.strip_suffix(".jsonl")?;
        let (partition, base) = numbers.split_once('-').unwrap_or((numbers, "0"));
        let segment = Self {
            partition: partition.parse().ok()?,
            base: base.parse().ok()?,
        };
        (segment.name() == name).then_some(segment)
    }
}

/// The offset up to which each partition is durable.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LogMark(pub BTreeMap<i32, u64>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segments_name_says_what_it_is_and_other_names_say_nothing() {
        for (partition, base) in [(0, 0), (3, 67_108), (123_456, u64::MAX)] {
            let segment = LogSegment { partition, base };
            assert_eq!(LogSegment::parse(&segment.name()), Some(segment));
        }
        for name in [
            "usage-1.jsonl",
            "usage-00000-0.jsonl",
            "usage-00000.jsonl.gz",
            "durable.json",
            "usage--0001.jsonl",
        ] {
            assert_eq!(LogSegment::parse(name), None, "{name}");
        }
        let mark = LogMark([(0, 5), (2, 7)].into());
        let text = serde_json::to_string(&mark).unwrap();
        assert_eq!(text, r#"{"0":5,"2":7}"#);
        assert_eq!(serde_json::from_str::<LogMark>(&text).unwrap(), mark);
    }
}
