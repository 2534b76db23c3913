//! Files that take the place of others, and names that last, whatever the disk does: for the spool and for the embedded log.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::path::Path;

use super::spool::remove_if_there;
use super::sync::Fsync;

/// A file that is to replace another of the same content.
pub(super) const PART: &str = "part";

/// Puts a new file in the place of `to`, with the first `length` bytes of `from`. Durable once the folder is fsynced.
pub(super) fn duplicate(from: &Path, length: u64, to: &Path, fsync: &mut Fsync) -> io::Result<()> {
    let part = to.with_extension(PART);
    let mut file = create(&part)?;
    if io::copy(&mut File::open(from)?.take(length), &mut file)? != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    fsync(&file)?;
    std::fs::rename(part, to)
}

/// Makes the names in a folder durable.
pub(super) fn sync_dir(dir: &Path, fsync: &mut Fsync) -> io::Result<()> {
    fsync(&File::open(dir)?)
}

/// A new file, whatever was there: one that failed before may not be written to again.
pub(super) fn create(path: &Path) -> io::Result<File> {
    remove_if_there(path)?;
    OpenOptions::new().append(true).create_new(true).open(path)
}
