//! Connections of callers: one accept loop per core, a deadline for every state a connection can be in, and an orderly end.

mod crowd;
mod guard;

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::api;
use crate::api::reply::ReplyBody;
use crate::metrics;
use crate::plane::Plane;
use crowd::Place;
use guard::{Guard, Moment};

pub use crowd::{Crowd, Network};
pub use guard::Deadlines;

/// Most connections waiting to be accepted.
const BACKLOG: i32 = 4_096;
/// Pause after accept(2) failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often idle upstream connections are looked through.
const SWEEP_EVERY: Duration = Duration::from_secs(15);

/// Bounds of a core's connections.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Deadlines of a connection.
    pub deadlines: Deadlines,
    /// Most connections of this core.
    pub connections_max: usize,
    /// The connections of all cores by address.
    pub crowd: Crowd,
    /// Largest request head.
    pub head_bytes_max: usize,
}

/// How far the end of the node has come, as told to every core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Serving.
    Serve,
    /// No new connections; running answers go on.
    Finish,
    /// Running answers end now.
    End,
}

/// A listening socket that shares its address with those of the other cores.
pub fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let domain = if address.is_ipv4() {
        Domain::IPV4
    } else {
        Domain::IPV6
    };
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Serves until told to end. Returns once every connection of this core is closed.
pub async fn serve(
    plane: Rc<Plane>,
    listener: std::net::TcpListener,
    settings: Settings,
    mut stage: watch::Receiver<Stage>,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let settings = Rc::new(settings);
    let open = Rc::new(Cell::new(0));
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => admit(&plane, (stream, from.ip()), &settings, &open, &stage),
                Err(fault) => {
                    tracing::warn!(%fault, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            _ = sweep.tick() => plane.upstream.sweep(),
            changed = stage.changed() => if changed.is_err() || *stage.borrow() > Stage::Serve { break },
        }
    }
    drop(listener);
    let mut told = false;
    while open.get() > 0 {
        if *stage.borrow() == Stage::End && !told {
            plane.streams.wake_all();
            told = true;
        }
        // Connections end one by one; each is seen at the next look.
        drop(tokio::time::timeout(ACCEPT_PAUSE, stage.changed()).await);
    }
    Ok(())
}

fn admit(
    plane: &Rc<Plane>,
    (stream, from): (TcpStream, IpAddr),
    settings: &Rc<Settings>,
    open: &Rc<Cell<usize>>,
    stage: &watch::Receiver<Stage>,
) {
    if open.get() >= settings.connections_max {
        ::metrics::counter!(metrics::CONNECTIONS_REFUSED_TOTAL, "reason" => "cap").increment(1);
        return; // dropped: the kernel closes it
    }
    let Some(place) = settings.crowd.enter(from) else {
        ::metrics::counter!(metrics::CONNECTIONS_REFUSED_TOTAL, "reason" => "address").increment(1);
        return;
    };
    // Small writes must not wait for acknowledgements: every event is one.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let counted = Counted::new(open, plane, place);
    let (plane, settings, stage) = (plane.clone(), settings.clone(), stage.clone());
    tokio::task::spawn_local(async move {
        let _counted = counted;
        connection(plane, stream, &settings, stage).await;
    });
}

/// One open connection in the counts, for as long as it lives.
struct Counted {
    open: Rc<Cell<usize>>,
    plane: Rc<Plane>,
    _place: Place,
}

impl Counted {
    fn new(open: &Rc<Cell<usize>>, plane: &Rc<Plane>, place: Place) -> Self {
        open.set(open.get() + 1);
        plane.meters.connections.increment(1.0);
        Self {
            open: open.clone(),
            plane: plane.clone(),
            _place: place,
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.open.set(self.open.get() - 1);
        self.plane.meters.connections.decrement(1.0);
    }
}

async fn connection(
    plane: Rc<Plane>,
    stream: TcpStream,
    settings: &Settings,
    mut stage: watch::Receiver<Stage>,
) {
    let moment = Rc::new(Cell::new(Moment::opened()));
    let io = TokioIo::new(Guard::new(stream, moment.clone(), settings.deadlines.clone()));
    let service = service_fn(|request: Request<Incoming>| {
        let (plane, moment) = (plane.clone(), moment.clone());
        async move {
            moment.set(Moment::Working);
            let reply = api::route(&plane, request).await;
            Ok::<_, Infallible>(reply.map(|body| Timed { body, moment }))
        }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(None) // the guard's, which also knows the time before the first byte and between requests
        .max_header_size(settings.head_bytes_max)
        .serve_connection(io, service);
    tokio::pin!(serving);
    let mut ending = *stage.borrow() > Stage::Serve;
    if ending {
        serving.as_mut().graceful_shutdown();
    }
    loop {
        tokio::select! {
            // Callers that break off, deadlines and malformed heads all end here; hyper has answered what can be answered.
            _ = serving.as_mut() => return,
            changed = stage.changed(), if !ending => {
                if changed.is_err() || *stage.borrow() > Stage::Serve {
                    ending = true;
                    serving.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

/// A body whose end starts the wait for the next request.
struct Timed {
    body: ReplyBody,
    moment: Rc<Cell<Moment>>,
}

impl Drop for Timed {
    fn drop(&mut self) {
        self.moment.set(Moment::idle());
    }
}

impl http_body::Body for Timed {
    type Data = bytes::Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, Infallible>>> {
        std::pin::Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
