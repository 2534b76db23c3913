//! A disk of a few megabytes: a tmpfs, for tests that run in a mount namespace of their own ([`crate::own`]).

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::own;

/// A mounted tmpfs. Dropping it unmounts.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one of so many bytes on a folder, which is made if it is missing.
    pub fn mount(at: &Path, bytes: u64) -> Result<Self> {
        std::fs::create_dir_all(at)?;
        let size = format!("size={bytes}");
        let folder = at.to_str().context("temporary folders have plain names")?;
        own::run("mount", &["-t", "tmpfs", "-o", &size, "none", folder])?;
        Ok(Self(at.to_owned()))
    }

    /// Puts a copy of everything that is in a folder onto it.
    pub fn take_over(&self, folder: &Path) -> Result<()> {
        let text = |path: &Path| path.to_str().map(str::to_owned).context("a plain name");
        let (from, to) = (text(&folder.join("."))?, text(&self.0)?);
        own::run("cp", &["-a", &from, &to])
    }

    /// Somebody else's file takes all that is left, to the last byte; returns the file, and how much it took. Into one that is there
    /// already it goes on writing.
    pub fn fill(&self) -> Result<(PathBuf, u64)> {
        let path = self.0.join("of-somebody-else");
        let mut file = File::options().append(true).create(true).open(&path)?;
        let (block, mut bytes) = ([1_u8; 4096], 0);
        loop {
            match file.write(&block) {
                Ok(written) => bytes += written as u64,
                Err(fault) if fault.kind() == ErrorKind::StorageFull => return Ok((path, bytes)),
                Err(fault) => bail!("{}: {fault}", path.display()),
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: whoever still has a file there has lost it anyway. If it fails, the namespace's end does it.
        let folder = self.0.to_string_lossy();
        let _ = own::run("umount", &["--lazy", &folder]);
    }
}
