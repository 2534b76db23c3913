//! The file of one incarnation ([`tollway_proto::lease_journal`]): written so that killing the process loses nothing of it.
//!
//! A checkpoint replaces the file; a slice that came since is one more line, written before any core can see the slice. Nothing
//! waits for the disk: after a loss of power what is out stays charged anyway.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tollway_proto::lease_journal::{Checkpoint, Note};
use tollway_shared::ids::Incarnation;
use tollway_shared::lease::message::{ClosedLine, Closing};

/// How a file's name ends.
const SUFFIX: &str = ".lease";

/// The journal of a living incarnation.
#[derive(Debug)]
pub(super) struct Journal {
    folder: PathBuf,
    incarnation: Incarnation,
    file: File,
}

impl Journal {
    /// Begins the file of a new incarnation.
    pub(super) fn create(folder: &Path, incarnation: Incarnation, first: &Checkpoint) -> io::Result<Self> {
        let file = replace(folder, incarnation, &Note::Checkpoint(first.clone()))?;
        // The name must be on disk before the control plane hears it: nobody could close what is not known to have been.
        file.sync_all()?;
        File::open(folder)?.sync_all()?;
        Ok(Self {
            folder: folder.to_owned(),
            incarnation,
            file,
        })
    }

    /// Replaces everything.
    pub(super) fn checkpoint(&mut self, checkpoint: &Checkpoint) -> io::Result<()> {
        let note = Note::Checkpoint(checkpoint.clone());
        self.file = replace(&self.folder, self.incarnation, &note)?;
        Ok(())
    }

    /// Takes back all that it says, which a full disk allows too: killed now, this life is closed with what is out charged.
    pub(super) fn void(&mut self) -> io::Result<()> {
        OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(path(&self.folder, self.incarnation))
            .map(drop)
    }

    /// Adds a slice. After an error the next checkpoint must succeed before anything else may be believed.
    pub(super) fn opened(&mut self, line: ClosedLine) -> io::Result<()> {
        self.file.write_all(&written(&Note::Opened(line))?)
    }
}

/// Makes sure that no other process keeps journals here, for as long as the file is open.
pub(super) fn lock(folder: &Path) -> io::Result<File> {
    std::fs::create_dir_all(folder)?;
    let lock = File::create(folder.join("lock"))?;
    lock.try_lock()
        .map_err(|_| io::Error::other("they are in use by another process"))?;
    Ok(lock)
}

/// Writes the end of an incarnation, durably.
pub(super) fn end(folder: &Path, closing: &Closing) -> io::Result<()> {
    let file = replace(folder, closing.incarnation, &Note::Closing(closing.clone()))?;
    file.sync_all()?;
    File::open(folder)?.sync_all()
}

/// Removes the file of an incarnation that is closed.
pub(super) fn forget(folder: &Path, incarnation: Incarnation) -> io::Result<()> {
    match std::fs::remove_file(path(folder, incarnation)) {
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// The incarnations that have a file.
pub(super) fn list(folder: &Path) -> io::Result<Vec<Incarnation>> {
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(folder) {
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        let stem = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
        found.extend(stem.and_then(Incarnation::parse));
    }
    found.sort();
    Ok(found)
}

/// What a file says, up to a line that is cut short or damaged.
pub(super) fn read(folder: &Path, incarnation: Incarnation) -> io::Result<Vec<Note>> {
    let bytes = std::fs::read(path(folder, incarnation))?;
    let lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let whole = lines.take_while(|line| line.ends_with(b"\n"));
    Ok(whole
        .map_while(|line| serde_json::from_slice(line).ok())
        .collect())
}

fn path(folder: &Path, incarnation: Incarnation) -> PathBuf {
    folder.join(format!("{incarnation}{SUFFIX}"))
}

fn written(note: &Note) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(note)?;
    line.push(b'\n');
    Ok(line)
}

fn replace(folder: &Path, incarnation: Incarnation, note: &Note) -> io::Result<File> {
    let draft = folder.join(format!("{incarnation}.draft"));
    let line = written(note)?;
    let replaced = File::create(&draft).and_then(|mut file| {
        file.write_all(&line)?;
        std::fs::rename(&draft, path(folder, incarnation))?;
        Ok(file)
    });
    // What there is of it may be the room that is missing.
    replaced.inspect_err(|_| drop(std::fs::remove_file(&draft)))
}
