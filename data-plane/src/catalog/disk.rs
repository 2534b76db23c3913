//! Snapshots on disk: a node boots and serves from the newest good one with every replica gone.
//!
//! A file is a header frame and one frame per resource, all in the stored form of `proto::codec`, so every byte is under a
//! checksum; the header's hash covers the whole. A file appears under its name only when it is complete and synced.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tollway_proto::codec::{self, CodecFault, Kind};
use tollway_proto::push::{decode_resource, encode_resource};
use tollway_shared::ids::{ClusterId, Revision};
use tollway_shared::snapshot::Snapshot;
use tollway_shared::time::UnixMillis;

/// Snapshots that are kept.
pub const COPIES_KEPT: usize = 5;
/// Largest file that is read: more than a full snapshot may have.
const FILE_BYTES_MAX: u64 = 1 << 30;

#[derive(Debug, Serialize, Deserialize)]
enum StoredHeader {
    V1(Header),
}

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    cluster: ClusterId,
    revision: Revision,
    hash: [u8; 32],
    count: u64,
    /// When the control plane vouched for it.
    at: UnixMillis,
}

/// The folder of the last good snapshots.
#[derive(Debug, Clone)]
pub struct Disk {
    folder: PathBuf,
    cluster: ClusterId,
}

/// A snapshot from disk.
#[derive(Debug)]
pub struct Loaded {
    /// Complete, hashed right and consistent.
    pub snapshot: Snapshot,
    /// When the control plane was last heard of while it was in use.
    pub at: UnixMillis,
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
enum DiskFault {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Codec(#[from] CodecFault),
    #[error("it is larger than {FILE_BYTES_MAX} bytes")]
    Large,
    #[error("it belongs to cluster `{0}`")]
    Cluster(ClusterId),
    #[error("it is not what its header says")]
    Mismatch,
    #[error("{0}: {1}")]
    Inconsistent(String, String),
}

impl Disk {
    /// Opens `<data_dir>/catalog`, making it when it is not there.
    pub fn open(data_dir: &Path, cluster: ClusterId) -> io::Result<Self> {
        let folder = data_dir.join("catalog");
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)?;
        Ok(Self { folder, cluster })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes a snapshot, heard of at `at`, and forgets all but the newest [`COPIES_KEPT`].
    pub fn write(&self, snapshot: &Snapshot, at: UnixMillis) -> io::Result<()> {
        let path = self.path(snapshot.revision);
        let beside = path.with_extension("new");
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)?;
        let mut out = BufWriter::with_capacity(1 << 18, file);
        let header = Header {
            cluster: self.cluster.clone(),
            revision: snapshot.revision,
            hash: snapshot.hash().to_bytes(),
            count: snapshot.len() as u64,
            at,
        };
        out.write_all(&codec::encode(Kind::SnapshotFile, &StoredHeader::V1(header)))?;
        for resource in snapshot.resources() {
            out.write_all(&encode_resource(resource))?;
        }
        out.into_inner()
            .map_err(io::IntoInnerError::into_error)?
            .sync_all()?;
        std::fs::rename(&beside, &path)?;
        File::open(&self.folder)?.sync_all()?;
        for (_, old) in self.files().into_iter().skip(COPIES_KEPT) {
            std::fs::remove_file(old)?;
        }
        Ok(())
    }

    /// The newest snapshot that loads and checks, other than `except`. Files that do not are passed over with a warning.
    pub fn newest(&self, except: Option<Revision>) -> Option<Loaded> {
        for (revision, path) in self.files() {
            if Some(revision) == except {
                continue;
            }
            match self.load(&path, revision) {
                Ok(mut loaded) => {
                    loaded.at = loaded.at.max(self.contact().unwrap_or(loaded.at));
                    return Some(loaded);
                }
                Err(fault) => tracing::warn!(%revision, %fault, "a snapshot on disk cannot be used"),
            }
        }
        None
    }

    /// The revisions on disk, newest first.
    pub fn revisions(&self) -> Vec<Revision> {
        self.files().into_iter().map(|(revision, _)| revision).collect()
    }

    /// Notes when the control plane was last heard of, so that a restart knows the age of what it starts with.
    pub fn note_contact(&self, at: UnixMillis) -> io::Result<()> {
        let beside = self.folder.join("contact.new");
        std::fs::write(&beside, at.0.to_string())?;
        std::fs::rename(beside, self.folder.join("contact"))
    }

    fn contact(&self) -> Option<UnixMillis> {
        let text = std::fs::read_to_string(self.folder.join("contact")).ok()?;
        text.trim().parse().ok().map(UnixMillis)
    }

    fn load(&self, path: &Path, revision: Revision) -> Result<Loaded, DiskFault> {
        let file = File::open(path)?;
        if file.metadata()?.len() > FILE_BYTES_MAX {
            return Err(DiskFault::Large);
        }
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
        let mut rest = &bytes[..];
        let StoredHeader::V1(header) = codec::decode(Kind::SnapshotFile, frame(&mut rest)?)?;
        if header.cluster != self.cluster {
            return Err(DiskFault::Cluster(header.cluster));
        }
        let mut snapshot = Snapshot::at(header.revision);
        while !rest.is_empty() {
            let (resource, digest) = decode_resource(frame(&mut rest)?)?;
            snapshot.put(resource, digest);
        }
        let whole = header.revision == revision
            && snapshot.len() as u64 == header.count
            && snapshot.hash().to_bytes() == header.hash;
        if !whole {
            return Err(DiskFault::Mismatch);
        }
        if let Some(found) = snapshot.check(None).into_iter().next() {
            return Err(DiskFault::Inconsistent(found.resource.to_string(), found.reason));
        }
        Ok(Loaded {
            snapshot,
            at: header.at,
        })
    }

    fn path(&self, revision: Revision) -> PathBuf {
        self.folder.join(format!("{:020}.snapshot", revision.0))
    }

    fn files(&self) -> Vec<(Revision, PathBuf)> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut files: Vec<_> = entries
            .filter_map(|entry| {
                let path = entry.path();
                let name = path.file_name()?.to_str()?.strip_suffix(".snapshot")?;
                Some((Revision(name.parse().ok()?), path))
            })
            .collect();
        files.sort_by(|a, b| b.cmp(a));
        files
    }
}

/// Takes the next frame off `rest`.
fn frame<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], CodecFault> {
    let length = codec::frame_length(rest)?;
    let frame = rest.get(..length).ok_or(CodecFault::Short)?;
    *rest = &rest[length..];
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    fn disk(folder: &tempfile::TempDir) -> Disk {
        Disk::open(folder.path(), ClusterId::trusted("c1")).unwrap()
    }

    #[test]
    fn the_newest_of_the_last_five_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let disk = disk(&folder);
        assert!(disk.newest(None).is_none());
        for revision in 1..=7 {
            let snapshot = samples::snapshot(revision, revision as i64);
            disk.write(&snapshot, UnixMillis(revision as i64)).unwrap();
        }
        assert_eq!(disk.revisions(), [7, 6, 5, 4, 3].map(Revision));
        let loaded = disk.newest(None).unwrap();
        assert_eq!(loaded.snapshot.revision, Revision(7));
        assert_eq!(loaded.snapshot.hash(), samples::snapshot(7, 7).hash());
        assert_eq!(loaded.at, UnixMillis(7));
        disk.note_contact(UnixMillis(99)).unwrap();
        assert_eq!(disk.newest(None).unwrap().at, UnixMillis(99));
        assert_eq!(
            disk.newest(Some(Revision(7))).unwrap().snapshot.revision,
            Revision(6)
        );
    }

    #[test]
    fn a_file_cut_or_changed_anywhere_is_passed_over_for_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let disk = disk(&folder);
        disk.write(&samples::snapshot(1, 1), UnixMillis(1)).unwrap();
        disk.write(&samples::snapshot(2, 2), UnixMillis(2)).unwrap();
        let path = disk.path(Revision(2));
        let good = std::fs::read(&path).unwrap();
        let newest = || disk.newest(None).unwrap().snapshot.revision;
        for cut in 0..good.len() {
            std::fs::write(&path, &good[..cut]).unwrap();
            assert_eq!(newest(), Revision(1), "cut at {cut}");
        }
        for place in 0..good.len() {
            let mut bad = good.clone();
            bad[place] ^= 0x10;
            std::fs::write(&path, &bad).unwrap();
            assert_eq!(newest(), Revision(1), "changed at {place}");
        }
        std::fs::write(&path, &good).unwrap();
        assert_eq!(newest(), Revision(2));
        std::fs::write(path.with_extension("new"), b"half").unwrap();
        assert_eq!(newest(), Revision(2));
    }

    #[test]
    fn a_copy_of_another_cluster_or_under_another_name_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let disk = disk(&folder);
        disk.write(&samples::snapshot(2, 2), UnixMillis(2)).unwrap();
        let other = Disk::open(folder.path(), ClusterId::trusted("c2")).unwrap();
        assert!(other.newest(None).is_none());
        std::fs::rename(disk.path(Revision(2)), disk.path(Revision(3))).unwrap();
        assert!(disk.newest(None).is_none());
    }
}
