//! Checkpoints: the whole state at one log position, as bytes, and where they are kept.
//!
//! A file is written beside its name, synced, renamed, and its folder synced; the bytes carry checksums. The newest two are kept,
//! so that a damaged one leaves something to start from.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use openraft::SnapshotMeta;
use serde::{Deserialize, Serialize};
use tollway_proto::codec::{self, Kind};

use super::types::{LeaderId, LogIdOf, MembersAt, Position, StoredMembershipOf, damaged};
use crate::state::State;

pub(super) type Meta = SnapshotMeta<LeaderId, u64, tollway_proto::command::Member>;

/// Checkpoints that are kept.
const KEPT: usize = 2;
const EXTENSION: &str = "checkpoint";

/// The position of a checkpoint, in front of its state.
#[derive(Debug, Serialize, Deserialize)]
enum StoredHead {
    V1 {
        at: Option<Position>,
        members: MembersAt,
    },
}

/// A decoded checkpoint.
#[derive(Debug, Clone, Default)]
pub(super) struct Checkpoint {
    pub(super) at: Option<LogIdOf>,
    pub(super) members: StoredMembershipOf,
    pub(super) state: State,
}

impl Checkpoint {
    pub(super) fn meta(&self) -> Meta {
        SnapshotMeta {
            last_log_id: self.at,
            last_membership: self.members.clone(),
        }
    }

    pub(super) fn encode(&self) -> Bytes {
        let head = StoredHead::V1 {
            at: self.at.map(Into::into),
            members: (&self.members).into(),
        };
        let mut bytes = codec::encode(Kind::RaftMeta, &head);
        bytes.extend_from_slice(&self.state.encode());
        bytes.into()
    }

    /// Reads a checkpoint; every checksum must match.
    pub(super) fn decode(bytes: &[u8]) -> io::Result<Self> {
        let head = codec::frame_length(bytes).map_err(damaged)?;
        if head > bytes.len() {
            return Err(damaged("the checkpoint is cut short"));
        }
        let StoredHead::V1 { at, members } =
            codec::decode(Kind::RaftMeta, &bytes[..head]).map_err(damaged)?;
        Ok(Self {
            at: at.map(Into::into),
            members: members.try_into()?,
            state: State::decode(&bytes[head..]).map_err(damaged)?,
        })
    }
}

/// Where a replica keeps its checkpoints.
#[derive(Debug, Clone)]
pub(super) enum Shelf {
    Folder(PathBuf),
    Memory(MemoryShelf),
}

/// Checkpoints in memory, for the simulation; they survive a crash of their replica.
#[derive(Debug, Clone, Default)]
pub struct MemoryShelf(Arc<Mutex<Option<Bytes>>>);

impl Shelf {
    /// Makes the folder if needed.
    pub(super) fn folder(path: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&path)?;
        Ok(Self::Folder(path))
    }

    /// Whether writing waits for hardware.
    pub(super) fn blocks(&self) -> bool {
        matches!(self, Self::Folder(_))
    }

    /// Keeps a checkpoint; afterwards it is what [`Shelf::newest`] gives.
    pub(super) fn put(&self, at: Option<LogIdOf>, bytes: Bytes) -> io::Result<()> {
        match self {
            Self::Memory(shelf) => {
                *shelf.0.lock().expect("no code panics while it holds the shelf") = Some(bytes);
                Ok(())
            }
            Self::Folder(folder) => put_file(folder, at.map_or(0, |id| id.index), &bytes),
        }
    }

    /// The newest checkpoint that is whole. A damaged one is reported and passed over: what the log still has decides whether an
    /// older one will do.
    pub(super) fn newest(&self) -> io::Result<Option<(Checkpoint, Bytes)>> {
        match self {
            Self::Memory(shelf) => {
                let bytes = shelf
                    .0
                    .lock()
                    .expect("no code panics while it holds the shelf")
                    .clone();
                bytes
                    .map(|bytes| Ok((Checkpoint::decode(&bytes)?, bytes)))
                    .transpose()
            }
            Self::Folder(folder) => {
                for path in files(folder)? {
                    let bytes = Bytes::from(fs::read(&path)?);
                    match Checkpoint::decode(&bytes) {
                        Ok(checkpoint) => return Ok(Some((checkpoint, bytes))),
                        Err(fault) => {
                            tracing::error!(file = %path.display(), error = %fault, "a checkpoint is damaged");
                        }
                    }
                }
                Ok(None)
            }
        }
    }
}

fn put_file(folder: &Path, index: u64, bytes: &[u8]) -> io::Result<()> {
    let path = folder.join(format!("{index:020}.{EXTENSION}"));
    let partial = path.with_extension("partial");
    let mut file = File::create(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&partial, &path)?;
    File::open(folder)?.sync_all()?;
    for old in files(folder)?.into_iter().skip(KEPT) {
        fs::remove_file(old)?;
    }
    Ok(())
}

/// The checkpoint files, newest first.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == EXTENSION) {
            found.push(path);
        }
    }
    found.sort();
    found.reverse();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use openraft::LogId;
    use openraft::vote::RaftLeaderId as _;

    fn checkpoint(index: u64) -> Checkpoint {
        let mut checkpoint = Checkpoint {
            at: Some(LogId::new(LeaderId::new(1, 1), index)),
            ..Checkpoint::default()
        };
        checkpoint.state.applied = index;
        checkpoint
    }

    #[test]
    fn the_newest_whole_checkpoint_is_found_and_two_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::folder(folder.path().into()).unwrap();
        assert!(shelf.newest().unwrap().is_none());
        for index in [5, 9, 100] {
            let checkpoint = checkpoint(index);
            shelf.put(checkpoint.at, checkpoint.encode()).unwrap();
        }
        assert_eq!(files(folder.path()).unwrap().len(), KEPT);
        assert_eq!(shelf.newest().unwrap().unwrap().0.state.applied, 100);

        let newest = &files(folder.path()).unwrap()[0];
        let mut bytes = fs::read(newest).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(newest, bytes).unwrap();
        assert_eq!(shelf.newest().unwrap().unwrap().0.state.applied, 9);
    }

    #[test]
    fn every_cut_of_a_checkpoint_is_noticed() {
        let bytes = checkpoint(7).encode();
        assert_eq!(Checkpoint::decode(&bytes).unwrap().state.applied, 7);
        for cut in 0..bytes.len() {
            assert!(Checkpoint::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }
}
