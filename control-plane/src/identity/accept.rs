//! The peer port: TLS handshakes run beside the accept loop, and each connection carries who is on its other end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tollway_shared::ids::ClusterId;
use tonic::transport::server::Connected;

use super::PeerIdentity;

/// Handshakes at a time; more wait in the kernel's accept queue.
const HANDSHAKES_MAX: usize = 64;
/// A handshake that takes longer is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed `accept`, which is usually a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A connection whose other end is known.
pub struct PeerStream {
    inner: TlsStream<TcpStream>,
    peer: PeerIdentity,
}

impl Connected for PeerStream {
    type ConnectInfo = PeerIdentity;

    fn connect_info(&self) -> PeerIdentity {
        self.peer.clone()
    }
}

/// Accepts mutual-TLS connections for tonic's `serve_with_incoming` until `shutdown`. Each request's extensions hold the
/// [`PeerIdentity`] of its connection.
pub fn incoming(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    cluster: ClusterId,
    shutdown: CancellationToken,
) -> ReceiverStream<io::Result<PeerStream>> {
    let (send, receive) = mpsc::channel(HANDSHAKES_MAX);
    tokio::spawn(accept_loop(listener, tls.into(), cluster, send, shutdown));
    ReceiverStream::new(receive)
}

async fn accept_loop(
    listener: TcpListener,
    tls: TlsAcceptor,
    cluster: ClusterId,
    send: mpsc::Sender<io::Result<PeerStream>>,
    shutdown: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let slot = slots
            .clone()
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            () = send.closed() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(fault) => {
                tracing::warn!(%fault, "the peer port could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (tls, cluster, send) = (tls.clone(), cluster.clone(), send.clone());
        tokio::spawn(async move {
            let _slot = slot;
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(stream, tls, &cluster)).await {
                Ok(Ok(peer)) => drop(send.send(Ok(peer)).await),
                Ok(Err(fault)) => tracing::info!(%fault, "a connection to the peer port was refused"),
                Err(_) => tracing::info!("a handshake on the peer port took too long"),
            }
        });
    }
}

async fn handshake(stream: TcpStream, tls: TlsAcceptor, cluster: &ClusterId) -> io::Result<PeerStream> {
    stream.set_nodelay(true)?;
    let inner = tls.accept(stream).await?;
    let peer = inner
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .and_then(|certificate| PeerIdentity::of_certificate(certificate, cluster))
        .ok_or_else(|| {
            io::Error::other("the certificate names neither a replica nor a node of this cluster")
        })?;
    Ok(PeerStream { inner, peer })
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
