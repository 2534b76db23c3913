//! rustls configurations: TLS 1.3 only, the cluster's authority as the only root, certificates read at each handshake.

use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::IdentityFault;
use super::material::{LiveCertificate, parse_certificate};

/// What HTTP/2 is called in ALPN.
const H2: &[u8] = b"h2";
/// What HTTP/1.1 is called in ALPN.
const HTTP1: &[u8] = b"http/1.1";

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(authority_pem: &str) -> Result<Arc<RootCertStore>, IdentityFault> {
    let mut roots = RootCertStore::empty();
    roots.add(parse_certificate(authority_pem)?)?;
    Ok(Arc::new(roots))
}

/// The peer port: whoever connects must show a certificate of the cluster's authority.
pub fn peer_server(
    own: Arc<LiveCertificate>,
    authority_pem: &str,
) -> Result<Arc<ServerConfig>, IdentityFault> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(authority_pem)?, provider())
        .build()
        .map_err(|fault| IdentityFault::Bad(format!("client certificates cannot be verified: {fault}")))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(own);
    config.alpn_protocols = vec![H2.to_vec()];
    // A resumed session would keep the certificate, and so the identity, of the first handshake.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// The admin port: callers authenticate with admin keys, not certificates.
pub fn admin_server(own: Arc<LiveCertificate>) -> Result<Arc<ServerConfig>, IdentityFault> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(own);
    config.alpn_protocols = vec![H2.to_vec(), HTTP1.to_vec()];
    Ok(Arc::new(config))
}

/// Calls to other replicas' peer ports.
pub fn peer_client(
    own: Arc<LiveCertificate>,
    authority_pem: &str,
) -> Result<Arc<ClientConfig>, IdentityFault> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(authority_pem)?)
        .with_client_cert_resolver(own);
    config.alpn_protocols = vec![H2.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}
