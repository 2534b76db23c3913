//! The HTTP side: sockets, threads, and from a request to its scripted answer.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::mpsc::Sender;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use crate::answer::{Answer, Ask};
use crate::behaviour::Behaviour;
use crate::relay::Relay;
use crate::script::ended;
use crate::seen::{Books, End, Entry, Route, Seen, Used, fingerprint};
use crate::{anthropic, openai};

/// Largest request body served.
const BODY_BYTES_MAX: usize = 64 << 20;
/// Connections waiting to be accepted.
const BACKLOG: u32 = 1024;
/// Pause after a failed accept (out of descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Decides what to do with a request; directives in the prompt come on top of it.
pub type Script = Arc<dyn Fn(&Seen) -> Behaviour + Send + Sync>;

/// What all threads of one provider share.
pub(crate) struct Shared {
    pub(crate) name: String,
    pub(crate) key: Option<String>,
    pub(crate) models: Vec<String>,
    pub(crate) script: RwLock<Option<Script>>,
    pub(crate) books: Arc<Books>,
}

/// Binds one socket per thread to the same address (port 0: to the same free port).
pub(crate) fn bind(listen: SocketAddr, threads: usize) -> std::io::Result<Vec<TcpSocket>> {
    let mut address = listen;
    let mut sockets = Vec::with_capacity(threads);
    for _ in 0..threads {
        let socket = if listen.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        socket.set_reuseaddr(true)?;
        if threads > 1 {
            socket.set_reuseport(true)?;
        }
        socket.bind(address)?;
        address = socket.local_addr()?;
        sockets.push(socket);
    }
    Ok(sockets)
}

/// Serves one socket on a runtime of its own until `stop` says so; open connections break then.
pub(crate) fn run(
    socket: TcpSocket,
    shared: Arc<Shared>,
    mut stop: watch::Receiver<bool>,
    ready: Sender<()>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime needs only file descriptors");
    runtime.block_on(async move {
        let listener = socket.listen(BACKLOG).expect("a bound socket can listen");
        drop(ready); // the starter waits until every thread has got here
        tokio::select! {
            () = accept(&listener, &shared) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    });
}

async fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(connection(stream, Arc::clone(shared)));
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    if stream.set_nodelay(true).is_err() {
        return; // the caller is gone already
    }
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(serve(&shared, request).await) }
    });
    // An error here is a caller that left or a scripted cut; the entry in the books says which.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn serve(shared: &Shared, request: Request<Incoming>) -> Response<Relay> {
    let (head, body) = request.into_parts();
    let route = match (&head.method, head.uri.path()) {
        (&Method::POST, "/v1/chat/completions") => Route::Chat,
        (&Method::POST, "/v1/messages") => Route::Messages,
        (&Method::GET, "/v1/models") => Route::Models,
        _ => Route::Unknown,
    };
    let credential = credential(&head.headers);
    // The list of models has one path in both dialects; only this header tells them apart.
    let anthropic =
        route == Route::Messages || (route != Route::Chat && head.headers.contains_key("anthropic-version"));
    let body = match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(413),
        Err(_) => Err(400),
    };
    let ask = body.as_ref().ok().map(|body| Ask::read(body));
    let seen = seen(
        shared,
        route,
        &head,
        credential,
        body.as_ref().ok(),
        ask.as_ref().and_then(|ask| ask.as_ref().ok()),
    );
    let number = seen.number;
    let script = shared
        .script
        .read()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .clone();
    let told = script.map(|script| script(&seen)).unwrap_or_default();
    let entry = Entry::open(Arc::clone(&shared.books), seen);
    let refuse = |entry, status: u16, message: &str| refusal(entry, status, None, message, anthropic);

    match (credential, &shared.key) {
        (Some(given), Some(key)) if given == key => {}
        (_, Some(_)) => return refuse(entry, 401, "wrong or missing credential"),
        (_, None) => {}
    }
    match route {
        Route::Models => {
            let list = if anthropic {
                anthropic::models(&shared.models)
            } else {
                openai::models(&shared.models)
            };
            return respond(200, "application/json", Relay::fixed(entry, list, End::Finished));
        }
        Route::Unknown => return refuse(entry, 404, "no such route"),
        Route::Chat | Route::Messages => {}
    }
    let (body, ask) = match (body, ask) {
        (Ok(body), Some(Ok(ask))) => (body, ask),
        (Ok(_), Some(Err(message))) => return refuse(entry, 400, &message),
        (Err(status), _) => return refuse(entry, status, "the body could not be read"),
        (Ok(_), None) => return refuse(entry, 400, "no body"),
    };
    if route == Route::Messages && !head.headers.contains_key("anthropic-version") {
        return refuse(entry, 400, "`anthropic-version` header is required");
    }
    if route == Route::Messages && ask.max_tokens.is_none() {
        return refuse(entry, 400, "`max_tokens` is required");
    }
    match told.directed(&body, &shared.name) {
        Ok(told) => answer(entry, &ask, &told, number, anthropic).await,
        Err(message) => refuse(entry, 400, &message),
    }
}

async fn answer(
    mut entry: Entry,
    ask: &Ask,
    told: &Behaviour,
    number: u64,
    anthropic: bool,
) -> Response<Relay> {
    if !told.stall.is_zero() {
        tokio::time::sleep(told.stall).await; // dropped here when the caller leaves, which closes the entry
    }
    if told.status != 200 {
        return refusal(
            entry,
            told.status,
            told.retry_after_s,
            &format!("scripted status {}", told.status),
            anthropic,
        );
    }
    let mut answer = Answer::to(ask, told, number);
    if !anthropic {
        answer.used.cache_write = 0; // the dialect has no word for it, so it cannot be billed
    } else {
        answer.used.reasoning = 0;
    }
    entry.seen.status = 200;
    entry.seen.answer_id = if anthropic {
        anthropic::answer_id(&answer)
    } else {
        openai::answer_id(&answer)
    };
    if told.garbage {
        return respond(
            200,
            "application/json",
            Relay::fixed(entry, b"{\"id\": <not json>".to_vec(), End::Broken),
        );
    }
    if !ask.stream || told.plain {
        let body = if anthropic {
            anthropic::plain(ask, told, &answer)
        } else {
            openai::plain(ask, told, &answer)
        };
        return respond(200, "application/json", Relay::plain(entry, told, answer, body));
    }
    let (writes, error) = if anthropic {
        (anthropic::stream(ask, told, &answer), anthropic::error_event())
    } else {
        (openai::stream(ask, told, &answer), openai::error_event())
    };
    let content_all = writes.iter().filter(|write| write.content).count() as u64;
    let (writes, ending) = ended(writes, told, error);
    let relay = Relay::stream(entry, told, answer, writes, ending, content_all);
    let mut response = respond(200, "text/event-stream; charset=utf-8", relay);
    response.headers_mut().insert(
        header::CACHE_CONTROL,
        header::HeaderValue::from_static("no-cache"),
    );
    response
}

fn refusal(
    mut entry: Entry,
    status: u16,
    retry_after_s: Option<u64>,
    message: &str,
    anthropic: bool,
) -> Response<Relay> {
    entry.seen.status = status;
    let body = if anthropic {
        anthropic::error_body(status, message)
    } else {
        openai::error_body(status, message)
    };
    let mut response = respond(
        status,
        "application/json",
        Relay::fixed(entry, body, End::Refused),
    );
    if (300..400).contains(&status) {
        // Whoever follows it shows up in the books.
        response
            .headers_mut()
            .insert(header::LOCATION, header::HeaderValue::from_static("/v1/followed"));
    }
    if let Some(seconds) = retry_after_s {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

fn respond(status: u16, content_type: &'static str, relay: Relay) -> Response<Relay> {
    let mut response = Response::new(relay);
    *response.status_mut() =
        http::StatusCode::from_u16(status).expect("directives and callers here keep to 200-599");
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(content_type),
    );
    response
}

/// The credential of either dialect, without its scheme.
fn credential(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let key = headers.get("x-api-key").and_then(|value| value.to_str().ok());
    bearer
        .map(|text| text.strip_prefix("Bearer ").unwrap_or(text))
        .or(key)
}

fn seen(
    shared: &Shared,
    route: Route,
    head: &http::request::Parts,
    credential: Option<&str>,
    body: Option<&Bytes>,
    ask: Option<&Ask>,
) -> Seen {
    let wanted = shared.books.keeps_entries();
    let text = |name: &str| {
        head.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned)
    };
    let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        let value = String::from_utf8_lossy(value.as_bytes());
        let secret = name == header::AUTHORIZATION || name == "x-api-key";
        (
            name.as_str().to_owned(),
            if secret {
                fingerprint(&value)
            } else {
                value.into_owned()
            },
        )
    };
    let mut seen = Seen {
        number: shared.books.next_number(),
        provider: String::new(),
        route,
        path: String::new(),
        credential: None,
        request_id: None,
        attempt: None,
        headers: Vec::new(),
        model: String::new(),
        stream: ask.is_some_and(|ask| ask.stream),
        body_bytes: body.map_or(0, Bytes::len),
        body: Bytes::new(),
        status: 0,
        answer_id: String::new(),
        used: Used::default(),
        usage_told: false,
        events_sent: 0,
        end: End::Open,
    };
    if wanted {
        seen.provider.clone_from(&shared.name);
        seen.path = head
            .uri
            .path_and_query()
            .map_or_else(String::new, ToString::to_string);
        seen.credential = credential.map(fingerprint);
        seen.request_id = text("x-tollway-request-id");
        seen.attempt = text("x-tollway-attempt");
        seen.headers = head.headers.iter().map(header).collect();
        seen.model = ask.map_or_else(String::new, |ask| ask.model.clone());
        seen.body = body.cloned().unwrap_or_default();
    }
    seen
}
