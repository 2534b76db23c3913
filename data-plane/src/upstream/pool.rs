//! Kept connections of one core, and what is sent over them.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tollway_shared::catalog::Provider;
use tollway_shared::fault::AttemptFault;

use super::address;
use super::origin::Origin;
use super::sending::{Sending, Taken};
use crate::dialects::slices::Slices;

/// Largest head of an answer.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Most addresses of a name that are tried.
const ADDRESSES_MAX: usize = 4;

/// Bounds of a pool.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Idle connections kept per provider and core.
    pub idle_max: usize,
    /// How long an idle connection is kept.
    pub idle_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            idle_max: 256,
            idle_timeout: Duration::from_secs(55),
        }
    }
}

/// The pool of one core. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Upstream(Rc<Pool>);

#[derive(Debug)]
struct Pool {
    settings: Settings,
    tls: Arc<ClientConfig>,
    idle: RefCell<HashMap<Place, Vec<Idle>>>,
    origins: RefCell<HashMap<Arc<str>, Known>>,
    opened: Cell<u64>,
}

/// A base URL and its parts.
type Known = (String, Rc<Origin>);

/// What a kept connection may be used for again: the permission is part of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Place {
    origin: Rc<Origin>,
    private_network: bool,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
}

impl Idle {
    fn is_fit(&self, now: Instant, settings: &Settings) -> bool {
        now - self.since <= settings.idle_timeout && !self.connection.sender.is_closed()
    }
}

#[derive(Debug)]
struct Connection {
    sender: SendRequest<Sending>,
    _driver: Driver,
}

/// The task that moves a connection's bytes; ends with its owner.
#[derive(Debug)]
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A provider's answer.
#[derive(Debug)]
pub struct Answer {
    /// Status and headers.
    pub head: response::Parts,
    /// When the last of the request was handed over.
    pub sent_at: Instant,
    /// The body, tied to its connection.
    pub body: AnswerBody,
}

/// A body that gives its connection back when read to its end, and closes it otherwise.
#[derive(Debug)]
pub struct AnswerBody {
    incoming: Incoming,
    home: Option<(Connection, Place, Upstream)>,
}

impl Upstream {
    /// An empty pool.
    pub fn new(settings: Settings, tls: Arc<ClientConfig>) -> Self {
        Self(Rc::new(Pool {
            settings,
            tls,
            idle: RefCell::default(),
            origins: RefCell::default(),
            opened: Cell::new(0),
        }))
    }

    /// How many connections were opened so far.
    pub fn opened(&self) -> u64 {
        self.0.opened.get()
    }

    /// The parts of a provider's base URL.
    pub fn origin(&self, provider: &Provider) -> Option<Rc<Origin>> {
        let mut origins = self.0.origins.borrow_mut();
        if let Some((url, origin)) = origins.get(provider.id.as_str())
            && *url == provider.base_url
        {
            return Some(origin.clone());
        }
        let origin = Rc::new(Origin::parse(&provider.base_url)?);
        let entry = (provider.base_url.clone(), origin.clone());
        origins.insert(provider.id.text(), entry);
        Some(origin)
    }

    /// Whether there is a connection that can be used again, as far as is known.
    pub fn keeps(&self, provider: &Provider, origin: &Rc<Origin>) -> bool {
        let place = Place {
            origin: origin.clone(),
            private_network: provider.private_network,
        };
        let idle = self.0.idle.borrow();
        let last = idle.get(&place).and_then(|list| list.last());
        last.is_some_and(|kept| kept.is_fit(Instant::now(), &self.0.settings))
    }

    /// Sends a request and waits for the answer's head. Deadlines: the provider's for a connection, and for the first byte from the
    /// request's last one.
    ///
    /// - `is_out`: called with true when the request is about to go out: from then on the provider may have it, until it is called with
    ///   false, because the request came back unsent.
    pub async fn send(
        &self,
        provider: &Provider,
        origin: Rc<Origin>,
        request: Request<Slices>,
        mut is_out: impl FnMut(bool),
    ) -> Result<Answer, AttemptFault> {
        let connect = Duration::from_millis(u64::from(provider.connect_timeout_ms.max(1)));
        let first_byte = Duration::from_millis(u64::from(provider.first_byte_timeout_ms.max(1)));
        let taken = Taken::new();
        let mut request = request.map(|body| Sending::new(body, taken.clone()));
        let place = Place {
            origin,
            private_network: provider.private_network,
        };
        // A kept connection may have died unseen; what was never sent comes back and goes to the next one.
        while let Some(mut connection) = self.kept(&place) {
            if !matches!(timeout(connect, connection.sender.ready()).await, Ok(Ok(()))) {
                continue;
            }
            is_out(true);
            taken.note();
            let sent = connection.sender.try_send_request(request);
            match taken
                .answer(first_byte, sent)
                .await
                .ok_or(AttemptFault::Timeout)?
            {
                Ok(answer) => return Ok(self.answer(answer, connection, place, taken.at())),
                Err(mut fault) => match fault.take_message() {
                    Some(unsent) => {
                        is_out(false);
                        request = unsent;
                    }
                    None => return Err(unanswered(fault.error())),
                },
            }
        }
        let mut connection = match timeout(connect, self.open(&place)).await {
            Ok(opened) => opened?,
            Err(_) => return Err(AttemptFault::Connect),
        };
        is_out(true);
        taken.note();
        let sent = connection.sender.try_send_request(request);
        match taken
            .answer(first_byte, sent)
            .await
            .ok_or(AttemptFault::Timeout)?
        {
            Ok(answer) => Ok(self.answer(answer, connection, place, taken.at())),
            Err(mut fault) => Err(match fault.take_message() {
                Some(_unsent) => AttemptFault::Connect,
                None => unanswered(fault.error()),
            }),
        }
    }

    fn answer(
        &self,
        answer: http::Response<Incoming>,
        connection: Connection,
        place: Place,
        sent_at: Instant,
    ) -> Answer {
        let (head, incoming) = answer.into_parts();
        Answer {
            head,
            sent_at,
            body: AnswerBody {
                incoming,
                home: Some((connection, place, self.clone())),
            },
        }
    }

    /// The most recently used connection that has not expired.
    fn kept(&self, place: &Place) -> Option<Connection> {
        let mut idle = self.0.idle.borrow_mut();
        let list = idle.get_mut(place)?;
        let now = Instant::now();
        while let Some(kept) = list.pop() {
            if now - kept.since > self.0.settings.idle_timeout {
                list.clear(); // older ones are below
                return None;
            }
            if !kept.connection.sender.is_closed() {
                return Some(kept.connection);
            }
        }
        None
    }

    fn keep(&self, connection: Connection, place: Place) {
        if connection.sender.is_closed() {
            return;
        }
        let mut idle = self.0.idle.borrow_mut();
        let list = idle.entry(place).or_default();
        if list.len() < self.0.settings.idle_max {
            list.push(Idle {
                connection,
                since: Instant::now(),
            });
        }
    }

    /// Closes what has been idle for too long. Called now and then by the core.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.0.idle.borrow_mut().retain(|_, list| {
            list.retain(|kept| kept.is_fit(now, &self.0.settings));
            !list.is_empty()
        });
    }

    async fn open(&self, place: &Place) -> Result<Connection, AttemptFault> {
        let origin = &place.origin;
        let addresses = tokio::net::lookup_host((origin.host.as_str(), origin.port))
            .await
            .map_err(|_| AttemptFault::Connect)?;
        let addresses: Vec<SocketAddr> = addresses.collect();
        let allowed: Vec<_> = addresses
            .iter()
            .filter(|found| address::allowed(found.ip(), place.private_network))
            .take(ADDRESSES_MAX)
            .collect();
        if allowed.is_empty() && !addresses.is_empty() {
            return Err(AttemptFault::Address);
        }
        let mut stream = Err(AttemptFault::Connect);
        for found in allowed {
            if let Ok(opened) = TcpStream::connect(found).await {
                stream = Ok(opened);
                break;
            }
        }
        let stream = stream?;
        // Without it the second segment of a request waits for the provider's delayed acknowledgement.
        stream.set_nodelay(true).map_err(|_| AttemptFault::Connect)?;
        self.0.opened.set(self.0.opened.get() + 1);
        if !origin.tls {
            return drive(stream).await;
        }
        let name = ServerName::try_from(origin.host.clone()).map_err(|_| AttemptFault::Connect)?;
        let stream = TlsConnector::from(self.0.tls.clone()).connect(name, stream).await;
        drive(stream.map_err(|_| AttemptFault::Connect)?).await
    }
}

/// Why a request that was sent has no answer.
fn unanswered(fault: &hyper::Error) -> AttemptFault {
    if fault.is_parse() {
        AttemptFault::Garbled
    } else {
        AttemptFault::Broken
    }
}

async fn drive<S: AsyncRead + AsyncWrite + Unpin + 'static>(stream: S) -> Result<Connection, AttemptFault> {
    let (sender, connection) = http1::Builder::new()
        .max_header_size(HEAD_BYTES_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|_| AttemptFault::Connect)?;
    let driver = Driver(tokio::task::spawn_local(async move {
        // Its end reaches whoever waits for an answer; there is nobody else to tell.
        drop(connection.await);
    }));
    Ok(Connection {
        sender,
        _driver: driver,
    })
}

impl AnswerBody {
    fn give_back(&mut self) {
        if let Some((connection, place, upstream)) = self.home.take() {
            upstream.keep(connection, place);
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.incoming).poll_frame(cx);
        if matches!(polled, Poll::Ready(None)) {
            self.give_back();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use http_body_util::BodyExt;
    use tollway_shared::catalog::Dialect;

    use super::*;
    use crate::sample;

    /// Answers every request on this machine, each connection on a thread of its own.
    fn server() -> std::net::SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    let mut request = [0; 4096];
                    while stream.read(&mut request).is_ok_and(|read| read > 0) {
                        stream
                            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                            .unwrap();
                    }
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn a_request_that_comes_back_unsent_is_not_out_until_it_leaves_again() {
        let base_url = format!("http://{}", server());
        let provider = sample::provider("p", Dialect::OpenAi, &base_url);
        let tls = super::super::client_config(None).unwrap();
        let upstream = Upstream::new(Settings::default(), tls);
        let ask = async || {
            let mut out = Vec::new();
            let request = Request::new(Slices::default());
            let origin = upstream.origin(&provider).unwrap();
            let answer = upstream.send(&provider, origin, request, |is_out| out.push(is_out));
            assert_eq!(answer.await.unwrap().body.collect().await.unwrap().to_bytes(), "");
            out
        };
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                assert_eq!(ask().await, [true]);
                assert_eq!(ask().await, [true], "over the kept connection");
                assert_eq!(upstream.opened(), 1);
                // It dies, and nobody has noticed yet.
                for idle in upstream.0.idle.borrow().values().flatten() {
                    idle.connection._driver.0.abort();
                }
                assert_eq!(ask().await, [true, false, true]);
                assert_eq!(upstream.opened(), 2);
            })
            .await;
    }
}
