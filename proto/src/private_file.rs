//! Files that only their owner can read, replaced whole: whoever reads one, even after a crash, finds the old bytes or the new.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What went wrong with a file or folder.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct FileFault {
    /// Which one.
    pub path: String,
    /// Why.
    pub source: io::Error,
}

impl FileFault {
    /// Names the path that `source` is about.
    pub fn new(path: &Path, source: io::Error) -> Self {
        Self {
            path: path.display().to_string(),
            source,
        }
    }
}

/// Replaces the file at `path`, mode 0600: new bytes beside it, synced, renamed over it, the folder synced. One writer at a time.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), FileFault> {
    replace(path, bytes).map_err(|source| FileFault::new(path, source))
}

/// Makes a folder that only its owner can enter, with its parents. One that is there stays as it is.
pub fn make_folder(path: &Path) -> Result<(), FileFault> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| FileFault::new(path, source))
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = beside(path);
    // What an interrupted write left may have another mode.
    match std::fs::remove_file(&beside) {
        Err(fault) if fault.kind() != io::ErrorKind::NotFound => return Err(fault),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    // Until the folder is synced, a power loss may take the new name back.
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

/// Where the new bytes grow.
pub(crate) fn beside(path: &Path) -> PathBuf {
    path.with_extension("new")
}
