//! A member's certificate on disk: the same one file on replicas and nodes.
//!
//! Certificate, authority and key are PEM blocks of `<data_dir>/identity/leaf.pem`, in that order. They change together at a
//! renewal, so they are one file: a pair that does not match cannot be read, whenever the machine died and whoever reads meanwhile.

use std::io;
use std::path::{Path, PathBuf};

use tollway_shared::secret::Secret;

use crate::private_file::{self, FileFault};

/// How a PEM block starts; its label and five dashes follow.
const BEGIN: &str = "-----BEGIN ";
/// How its last line starts.
const END: &str = "-----END ";
/// What ends both lines.
const DASHES: &str = "-----";

/// A certificate, its key, and the authority that issued it; all PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Material {
    /// The certificate.
    pub certificate_pem: String,
    /// Its private key (PKCS#8).
    pub key_pem: Secret<String>,
    /// The authority's certificate.
    pub authority_pem: String,
}

impl Material {
    /// Reads what [`Material::store`] wrote. Does not say whether key and certificate belong together.
    pub fn load(data_dir: &Path) -> Result<Self, FileFault> {
        let path = Self::path(data_dir);
        let text = std::fs::read_to_string(&path).map_err(|source| FileFault::new(&path, source))?;
        Self::parse(&Secret::new(text)).ok_or_else(|| {
            let detail = "not a certificate, its authority's and its key, as PEM";
            FileFault::new(&path, io::Error::new(io::ErrorKind::InvalidData, detail))
        })
    }

    /// Whether a data folder holds one.
    pub fn exists(data_dir: &Path) -> bool {
        Self::path(data_dir).exists()
    }

    /// Writes it into a data folder, readable by the owner only, in place of what was there.
    pub fn store(&self, data_dir: &Path) -> Result<(), FileFault> {
        private_file::make_folder(&folder(data_dir))?;
        let parts = [&self.certificate_pem, &self.authority_pem, self.key_pem.expose()];
        let text = Secret::new(parts.map(|part| format!("{}\n", part.trim_end())).concat());
        private_file::write(&Self::path(data_dir), text.expose().as_bytes())
    }

    /// The file.
    pub fn path(data_dir: &Path) -> PathBuf {
        folder(data_dir).join("leaf.pem")
    }

    fn parse(text: &Secret<String>) -> Option<Self> {
        let mut blocks = text
            .expose()
            .match_indices(BEGIN)
            .map(|(at, _)| block(&text.expose()[at..]));
        let mut next = |label: &str| {
            let (found, block) = blocks.next()??;
            (found == label).then(|| format!("{block}\n"))
        };
        let material = Self {
            certificate_pem: next("CERTIFICATE")?,
            authority_pem: next("CERTIFICATE")?,
            key_pem: Secret::new(next("PRIVATE KEY")?),
        };
        blocks.next().is_none().then_some(material)
    }
}

/// Where everything about who a member is stands.
pub fn folder(data_dir: &Path) -> PathBuf {
    data_dir.join("identity")
}

/// The label and the whole of the block at the start of `text`.
fn block(text: &str) -> Option<(&str, &str)> {
    let (label, _) = text.strip_prefix(BEGIN)?.split_once(DASHES)?;
    let last = text.find(&format!("{END}{label}{DASHES}"))?;
    let end = last + END.len() + label.len() + DASHES.len();
    Some((label, &text[..end]))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::private_file::beside;

    fn pem(label: &str, body: &str) -> String {
        format!("{BEGIN}{label}{DASHES}\n{body}\n{END}{label}{DASHES}\n")
    }

    /// Certificate and key of one renewal have one number.
    fn material(number: u32) -> Material {
        let body = format!("{number:064}");
        Material {
            certificate_pem: pem("CERTIFICATE", &body),
            key_pem: Secret::new(pem("PRIVATE KEY", &body)),
            authority_pem: pem("CERTIFICATE", "authority"),
        }
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn a_renewal_shows_whoever_reads_the_old_pair_or_the_new_one() {
        let folder = tempfile::tempdir().unwrap();
        material(0).store(folder.path()).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 1..=100 {
                    material(number).store(folder.path()).unwrap();
                }
                done.store(true, Ordering::Release);
            });
            while !done.load(Ordering::Acquire) {
                let read = Material::load(folder.path()).unwrap();
                let number = read.certificate_pem.lines().nth(1).unwrap().parse().unwrap();
                assert_eq!(read, material(number), "the pair does not match");
            }
        });
        assert_eq!(Material::load(folder.path()).unwrap(), material(100));
    }

    #[test]
    fn a_renewal_that_stopped_anywhere_leaves_the_old_pair_and_the_next_one_works() {
        let folder = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        material(1).store(folder.path()).unwrap();
        material(2).store(other.path()).unwrap();
        let new = std::fs::read(Material::path(other.path())).unwrap();
        for written in 0..=new.len() {
            std::fs::write(beside(&Material::path(folder.path())), &new[..written]).unwrap();
            let read = Material::load(folder.path()).unwrap();
            assert_eq!(read, material(1), "stopped after {written} bytes");
        }
        material(2).store(folder.path()).unwrap();
        assert_eq!(Material::load(folder.path()).unwrap(), material(2));
        for file in files(&super::folder(folder.path())) {
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
        for cut in 0..new.len() - 1 {
            std::fs::write(Material::path(folder.path()), &new[..cut]).unwrap();
            let fault = Material::load(folder.path()).unwrap_err();
            assert!(fault.to_string().contains("leaf.pem"), "cut at {cut}: {fault}");
        }
    }
}
