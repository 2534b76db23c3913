//! TLS to the control plane: 1.3 only, the cluster's authority as the only root, the certificate read at each handshake.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tollway_shared::seal::sha256;
use tonic::transport::Endpoint;

use super::{IdentityFault, Material};
use crate::catalog::Dial;

/// The name that every replica's certificate has.
const CONTROL_NAME: &str = "control.tollway.internal";
/// A silent connection is probed this often.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// A probe without an answer for this long ends the connection.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The certificate in use: handshakes read it, renewal replaces it.
pub struct LiveCertificate(ArcSwap<CertifiedKey>);

impl LiveCertificate {
    /// Starts with `material`.
    pub fn new(material: &Material) -> Result<Arc<Self>, IdentityFault> {
        Ok(Arc::new(Self(ArcSwap::from_pointee(certified(material)?))))
    }

    /// Uses `material` from the next handshake on.
    pub fn swap(&self, material: &Material) -> Result<(), IdentityFault> {
        self.0.store(Arc::new(certified(material)?));
        Ok(())
    }
}

impl fmt::Debug for LiveCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LiveCertificate")
    }
}

impl ResolvesClientCert for LiveCertificate {
    fn resolve(&self, _roots: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Connects to control peers with mutual TLS.
pub(super) fn dial(own: Arc<LiveCertificate>, authority_pem: &str) -> Result<Dial, IdentityFault> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate(authority_pem)?)?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_cert_resolver(own);
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    let tls = TlsConnector::from(Arc::new(config));
    Ok(Arc::new(move |peer: &str| {
        let (tls, peer) = (tls.clone(), peer.to_owned());
        Box::pin(async move {
            let connector = tower::service_fn(move |_uri: http::Uri| {
                let (tls, peer) = (tls.clone(), peer.clone());
                async move {
                    let stream = TcpStream::connect(peer).await?;
                    stream.set_nodelay(true)?;
                    Ok::<_, io::Error>(TokioIo::new(tls.connect(control_name(), stream).await?))
                }
            });
            // TLS is the connector's; the name only fills `:authority`.
            let endpoint = Endpoint::from_static("http://control.tollway.internal")
                .http2_keep_alive_interval(KEEP_ALIVE)
                .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
                .keep_alive_while_idle(true);
            Ok(endpoint.connect_with_connector(connector).await?)
        })
    }))
}

/// TLS for the join itself: the server must be a replica of the authority whose certificate has this hash.
pub(super) fn pinned(authority: [u8; 32]) -> Result<ClientConfig, IdentityFault> {
    let verifier = Arc::new(Pinned {
        authority,
        provider: provider(),
    });
    Ok(ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

/// Trusts the one authority with the right hash, if the server shows it, and then verifies as usual. The host in the URL does not
/// matter: only a replica's certificate has [`CONTROL_NAME`].
#[derive(Debug)]
struct Pinned {
    authority: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authority = intermediates
            .iter()
            .find(|certificate| sha256(certificate) == self.authority)
            .ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|fault| Error::General(fault.to_string()))?
            .verify_server_cert(end_entity, &[], &control_name(), ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn control_name() -> ServerName<'static> {
    ServerName::try_from(CONTROL_NAME).expect("a constant host name")
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Reads a PEM certificate.
pub(super) fn certificate(pem: &str) -> Result<CertificateDer<'static>, IdentityFault> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|fault| IdentityFault::Bad(format!("not a PEM certificate: {fault}")))
}

fn certified(material: &Material) -> Result<CertifiedKey, IdentityFault> {
    let key = PrivateKeyDer::from_pem_slice(material.key_pem.expose().as_bytes())
        .map_err(|fault| IdentityFault::Bad(format!("private key: {fault}")))?;
    Ok(CertifiedKey::from_der(
        vec![certificate(&material.certificate_pem)?],
        key,
        &rustls::crypto::ring::default_provider(),
    )?)
}
