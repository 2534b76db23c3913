//! `tollway-floor`: the cheapest HTTP/1.1 reverse proxy we know how to write, the floor every figure is a ratio to.
//!
//! One current-thread runtime per core with its own listener and its own pool of upstream connections; heads and
//! bodies go through as they came, nothing is parsed beyond HTTP, nothing is checked, counted or logged. It is
//! not safe for the world: no deadlines, no limits, loopback only.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use clap::Parser;
use http::{HeaderValue, Request, Response, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Idle upstream connections kept by one runtime.
const IDLE_MAX: usize = 1024;
/// Connections waiting to be accepted.
const BACKLOG: u32 = 1024;

thread_local! {
    static IDLE: RefCell<VecDeque<SendRequest<Incoming>>> = const { RefCell::new(VecDeque::new()) };
}

/// A bare reverse proxy for one upstream.
#[derive(Parser)]
#[command(name = "tollway-floor")]
struct Arguments {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Address of the upstream
    #[arg(long)]
    upstream: SocketAddr,
    /// Runtimes, each on a thread of its own (default: one per core)
    #[arg(long)]
    threads: Option<usize>,
}

fn main() -> anyhow::Result<()> {
    let Arguments {
        listen,
        upstream,
        threads,
    } = Arguments::parse();
    let threads = match threads {
        Some(threads) => threads.max(1),
        None => std::thread::available_parallelism()?.get(),
    };
    let mut address = listen;
    let mut sockets = Vec::with_capacity(threads);
    for _ in 0..threads {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.set_reuseport(true)?;
        socket.bind(address)?;
        address = socket.local_addr()?;
        sockets.push(socket);
    }
    let host = HeaderValue::from_str(&upstream.to_string())?;
    let runs: Vec<_> = sockets
        .into_iter()
        .map(|socket| {
            let host = host.clone();
            std::thread::spawn(move || run(socket, upstream, host))
        })
        .collect();
    println!("listening http://{address}");
    for run in runs {
        run.join().map_err(|_| anyhow::anyhow!("a runtime panicked"))??;
    }
    Ok(())
}

fn run(socket: TcpSocket, upstream: SocketAddr, host: HeaderValue) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async move {
        let listener: TcpListener = socket.listen(BACKLOG)?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let host = host.clone();
            let service = service_fn(move |request| forward(request, upstream, host.clone()));
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::spawn(async move {
                let _ = connection.await; // a caller that left
            });
        }
    })
}

async fn forward(
    mut request: Request<Incoming>,
    upstream: SocketAddr,
    host: HeaderValue,
) -> Result<Response<Pooled>, Box<dyn std::error::Error + Send + Sync>> {
    request.headers_mut().insert(header::HOST, host);
    let mut sender = connection(upstream).await?;
    let response = sender.send_request(request).await?;
    Ok(response.map(|body| Pooled {
        body,
        sender: Some(sender),
    }))
}

/// An idle connection, or a new one.
async fn connection(
    upstream: SocketAddr,
) -> Result<SendRequest<Incoming>, Box<dyn std::error::Error + Send + Sync>> {
    while let Some(mut sender) = IDLE.with_borrow_mut(VecDeque::pop_front) {
        // It was given back at the last byte; its connection task may still have to notice that.
        if sender.ready().await.is_ok() {
            return Ok(sender);
        }
    }
    let stream = TcpStream::connect(upstream).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        let _ = connection.await; // the next `ready` tells
    });
    Ok(sender)
}

/// A response body that gives its connection back at its end; dropped earlier, it closes the connection.
struct Pooled {
    body: Incoming,
    sender: Option<SendRequest<Incoming>>,
}

impl Pooled {
    fn give_back(&mut self) {
        if let Some(sender) = self.sender.take() {
            IDLE.with_borrow_mut(|idle| {
                if idle.len() < IDLE_MAX {
                    idle.push_back(sender);
                }
            });
        }
    }
}

impl Body for Pooled {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(polled, Poll::Ready(None)) || self.body.is_end_stream() {
            self.give_back();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
