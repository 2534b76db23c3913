//! A certificate with its key: requested, read, and in use, swapped without a restart. On disk it is `tollway_proto::identity`'s.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
pub use tollway_proto::identity::Material;
use tollway_shared::secret::Secret;
use tollway_shared::time::UnixMillis;

use super::IdentityFault;

/// A new key and a request for a certificate on it, both PEM.
pub fn request() -> Result<(Secret<String>, String), IdentityFault> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key)?.pem()?;
    Ok((Secret::new(key.serialize_pem()), request))
}

/// The form rustls uses; the chain ends with the authority, so that a joiner can find the one it pins.
pub fn certified(material: &Material) -> Result<CertifiedKey, IdentityFault> {
    let certificate = parse_certificate(&material.certificate_pem)?;
    let authority = parse_certificate(&material.authority_pem)?;
    let key = PrivateKeyDer::from_pem_slice(material.key_pem.expose().as_bytes())
        .map_err(|fault| IdentityFault::Bad(format!("private key: {fault}")))?;
    let provider = rustls::crypto::ring::default_provider();
    Ok(CertifiedKey::from_der(
        vec![certificate, authority],
        key,
        &provider,
    )?)
}

/// From when to when the certificate is valid.
pub fn validity(material: &Material) -> Result<(UnixMillis, UnixMillis), IdentityFault> {
    let der = parse_certificate(&material.certificate_pem)?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der)
        .map_err(|fault| IdentityFault::Bad(format!("certificate: {fault}")))?;
    let validity = certificate.validity();
    Ok((
        UnixMillis(validity.not_before.timestamp() * 1000),
        UnixMillis(validity.not_after.timestamp() * 1000),
    ))
}

/// The certificate in use: handshakes read it, renewal replaces it.
pub struct LiveCertificate {
    current: ArcSwap<CertifiedKey>,
}

impl LiveCertificate {
    /// Starts with `material`.
    pub fn new(material: &Material) -> Result<Arc<Self>, IdentityFault> {
        let current = ArcSwap::from_pointee(certified(material)?);
        Ok(Arc::new(Self { current }))
    }

    /// Uses `material` from the next handshake on. Open connections keep theirs.
    pub fn swap(&self, material: &Material) -> Result<(), IdentityFault> {
        self.current.store(Arc::new(certified(material)?));
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

pub(super) fn parse_certificate(pem: &str) -> Result<CertificateDer<'static>, IdentityFault> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|fault| IdentityFault::Bad(format!("not a PEM certificate: {fault}")))
}
