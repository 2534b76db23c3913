//! Connections to PostgreSQL: plain or TLS, with the settings that everything here relies on.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect};
use tokio_postgres::{Client, Config, Socket};
use tokio_rustls::TlsConnector;

use super::StoreFault;
use super::postgres::schema;

/// How long a connection may take to open.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// Where PostgreSQL is, and how to reach it.
#[derive(Clone)]
pub struct Server {
    config: Config,
    tls: Tls,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The library hides the password.
        self.config.fmt(f)
    }
}

impl Server {
    /// Says what is wrong with a connection URL, or with `key=value` pairs as libpq takes them.
    pub fn check(url: &str) -> Result<(), String> {
        let config: Config = url
            .parse()
            .map_err(|fault| format!("is no address of PostgreSQL: {fault}"))?;
        if config.get_password().is_some() {
            return Err(
                "has a password in it; put it into the variable that `billing.password_env` names".to_owned(),
            );
        }
        Ok(())
    }

    /// A server by its address.
    ///
    /// - `authority`: the PEM file of who signs the server's certificate; without one, the public authorities.
    pub fn new(url: &str, password: Option<&str>, authority: Option<&Path>) -> Result<Self, String> {
        let mut config: Config = url
            .parse()
            .map_err(|fault| format!("is no address of PostgreSQL: {fault}"))?;
        if let Some(password) = password {
            config.password(password);
        }
        config.connect_timeout(CONNECT_WITHIN);
        config.application_name("tollway-control");
        let mut roots = RootCertStore::empty();
        match authority {
            None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
            Some(file) => {
                let shown = file.display();
                let read =
                    CertificateDer::pem_file_iter(file).map_err(|fault| format!("{shown}: {fault}"))?;
                for certificate in read {
                    let certificate = certificate.map_err(|fault| format!("{shown}: {fault}"))?;
                    roots
                        .add(certificate)
                        .map_err(|fault| format!("{shown}: {fault}"))?;
                }
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|fault| fault.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            config,
            tls: Tls(Arc::new(tls)),
        })
    }
}

/// Opens a connection. Its other half ends by itself when the client is dropped.
///
/// - `within`: how long the server may work on one statement. It goes on for so long, too, when nobody waits for the answer any more.
pub async fn connect(server: &Server, within: Duration) -> Result<Client, StoreFault> {
    let opening = server.config.connect(server.tls.clone());
    let (client, connection) = tokio::time::timeout(CONNECT_WITHIN, opening)
        .await
        .map_err(|_| StoreFault::Slow)??;
    tokio::spawn(async move {
        if let Err(fault) = connection.await {
            tracing::debug!(error = %fault, "a connection to PostgreSQL ended");
        }
    });
    client.batch_execute(&settings(within)).await?;
    Ok(client)
}

fn settings(within: Duration) -> String {
    format!(
        "SET search_path TO {}; SET statement_timeout TO {}; SET timezone TO 'UTC'",
        schema(),
        within.as_millis()
    )
}

/// TLS for the library. Thirty lines instead of a crate that brings an X.509 parser for channel binding, which we do not use.
#[derive(Clone)]
struct Tls(Arc<ClientConfig>);

impl MakeTlsConnect<Socket> for Tls {
    type Stream = Encrypted;
    type TlsConnect = Handshake;
    type Error = io::Error;

    fn make_tls_connect(&mut self, host: &str) -> io::Result<Handshake> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        Ok(Handshake {
            connector: TlsConnector::from(self.0.clone()),
            name,
        })
    }
}

struct Handshake {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl TlsConnect<Socket> for Handshake {
    type Stream = Encrypted;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Encrypted>>;

    fn connect(self, stream: Socket) -> Self::Future {
        Box::pin(async move {
            let stream = self.connector.connect(self.name, stream).await?;
            Ok(Encrypted(Box::new(stream)))
        })
    }
}

struct Encrypted(Box<tokio_rustls::client::TlsStream<Socket>>);

impl tokio_postgres::tls::TlsStream for Encrypted {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Encrypted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Encrypted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_works_on_a_statement_no_longer_than_it_is_told() {
        let settings = settings(Duration::from_secs(20));
        assert!(
            settings.contains("; SET statement_timeout TO 20000;"),
            "{settings}"
        );
    }
}
