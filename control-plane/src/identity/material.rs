//! A certificate with its key: on disk (mode 0600) and in use, swapped without a restart.

use std::fmt;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tollway_shared::secret::Secret;
use tollway_shared::time::UnixMillis;

use super::IdentityFault;

/// A certificate, its key, and the authority that issued it; all PEM.
#[derive(Debug, Clone)]
pub struct Material {
    /// The certificate.
    pub certificate_pem: String,
    /// Its private key (PKCS#8).
    pub key_pem: Secret<String>,
    /// The authority's certificate.
    pub authority_pem: String,
}

impl Material {
    /// A new key and a request for a certificate on it, both PEM.
    pub fn request() -> Result<(Secret<String>, String), IdentityFault> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key)?.pem()?;
        Ok((Secret::new(key.serialize_pem()), request))
    }

    /// Reads `<data_dir>/identity`.
    pub fn load(data_dir: &Path) -> Result<Self, IdentityFault> {
        let read = |name: &str| {
            let path = folder(data_dir).join(name);
            std::fs::read_to_string(&path).map_err(|source| file_fault(&path, source))
        };
        Ok(Self {
            certificate_pem: read("cert.pem")?,
            key_pem: Secret::new(read("key.pem")?),
            authority_pem: read("ca.pem")?,
        })
    }

    /// Whether `<data_dir>/identity` holds one.
    pub fn exists(data_dir: &Path) -> bool {
        folder(data_dir).join("cert.pem").exists()
    }

    /// Writes `<data_dir>/identity`, readable by the owner only. The certificate goes last: a crash in between leaves a pair that
    /// does not match, which [`Material::certified`] reports and a new join or renewal repairs.
    pub fn store(&self, data_dir: &Path) -> Result<(), IdentityFault> {
        let folder = folder(data_dir);
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|source| file_fault(&folder, source))?;
        let files = [
            ("ca.pem", &self.authority_pem),
            ("key.pem", self.key_pem.expose()),
            ("cert.pem", &self.certificate_pem),
        ];
        for (name, text) in files {
            write_private(&folder.join(name), text.as_bytes())?;
        }
        Ok(())
    }

    /// The form rustls uses; the chain ends with the authority, so that a joiner can find the one it pins.
    pub fn certified(&self) -> Result<CertifiedKey, IdentityFault> {
        let certificate = parse_certificate(&self.certificate_pem)?;
        let authority = parse_certificate(&self.authority_pem)?;
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.expose().as_bytes())
            .map_err(|fault| IdentityFault::Bad(format!("private key: {fault}")))?;
        let provider = rustls::crypto::ring::default_provider();
        Ok(CertifiedKey::from_der(
            vec![certificate, authority],
            key,
            &provider,
        )?)
    }

    /// From when to when the certificate is valid.
    pub fn validity(&self) -> Result<(UnixMillis, UnixMillis), IdentityFault> {
        let der = parse_certificate(&self.certificate_pem)?;
        let (_, certificate) = x509_parser::parse_x509_certificate(&der)
            .map_err(|fault| IdentityFault::Bad(format!("certificate: {fault}")))?;
        let validity = certificate.validity();
        Ok((
            UnixMillis(validity.not_before.timestamp() * 1000),
            UnixMillis(validity.not_after.timestamp() * 1000),
        ))
    }
}

/// The certificate in use: handshakes read it, renewal replaces it.
pub struct LiveCertificate {
    current: ArcSwap<CertifiedKey>,
}

impl LiveCertificate {
    /// Starts with `material`.
    pub fn new(material: &Material) -> Result<Arc<Self>, IdentityFault> {
        let current = ArcSwap::from_pointee(material.certified()?);
        Ok(Arc::new(Self { current }))
    }

    /// Uses `material` from the next handshake on. Open connections keep theirs.
    pub fn swap(&self, material: &Material) -> Result<(), IdentityFault> {
        self.current.store(Arc::new(material.certified()?));
        Ok(())
    }
}

impl fmt::Debug for LiveCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LiveCertificate")
    }
}

impl ResolvesServerCert for LiveCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

impl ResolvesClientCert for LiveCertificate {
    fn resolve(&self, _roots: &[&[u8]], _schemes: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Writes a file that only its owner can read: new bytes beside it, fsync, rename.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), IdentityFault> {
    let beside = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    };
    write().map_err(|source| file_fault(path, source))
}

pub(super) fn parse_certificate(pem: &str) -> Result<CertificateDer<'static>, IdentityFault> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|fault| IdentityFault::Bad(format!("not a PEM certificate: {fault}")))
}

fn folder(data_dir: &Path) -> PathBuf {
    data_dir.join("identity")
}

fn file_fault(path: &Path, source: std::io::Error) -> IdentityFault {
    IdentityFault::File {
        path: path.display().to_string(),
        source,
    }
}
