//! Health and metrics, on a port of their own: `/livez`, `/readyz`, `/startupz`, `/metrics`.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics::gauge;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::catalog::Live;
use crate::metrics::{SNAPSHOT_AGE, SNAPSHOT_VERSION};
use crate::plane::Phase;
use crate::usage::Usage;

/// Deadline of a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a failed `accept`: one for want of file descriptors fails again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often the histograms' waiting values are folded in, scraped or not.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// What is asked about.
pub struct Ops {
    /// The snapshot.
    pub live: Live,
    /// The usage pipeline.
    pub usage: Weak<Usage>,
    /// How far the end has come.
    pub phase: Arc<Phase>,
    /// Metrics, when this process's recorder is ours.
    pub metrics: Option<PrometheusHandle>,
}

/// Serves until cancelled.
pub async fn serve(ops: Arc<Ops>, listener: TcpListener, cancel: CancellationToken) {
    serve_accepted(ops, listener, cancel).await;
}

/// Where connections come from.
trait Accept: Send {
    fn next(&mut self) -> impl Future<Output = io::Result<TcpStream>> + Send;
}

impl Accept for TcpListener {
    async fn next(&mut self) -> io::Result<TcpStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

/// Serves what the listener gives; an error of it never ends the loop, because the next connection may be good again.
async fn serve_accepted(ops: Arc<Ops>, mut listener: impl Accept, cancel: CancellationToken) {
    let mut upkeep = tokio::time::interval(UPKEEP_EVERY);
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => return,
            accepted = listener.next() => accepted,
            _ = upkeep.tick() => {
                if let Some(metrics) = &ops.metrics {
                    metrics.run_upkeep();
                }
                continue;
            }
        };
        let Ok(stream) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (ops, cancel) = (ops.clone(), cancel.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let answer = ops.answer(&request);
                async move { Ok::<_, Infallible>(answer) }
            });
            let serving = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                () = cancel.cancelled() => {}
                _ = serving => {} // who asks for health does not mind how its connection ends
            }
        });
    }
}

impl Ops {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let query = request.uri().query().unwrap_or_default();
        match request.uri().path() {
            "/livez" | "/healthz" => text(StatusCode::OK, "ok\n".into()),
            "/readyz" => self.checks(&self.ready(), query),
            "/startupz" => self.checks(&[("snapshot", self.live.snapshot().is_some())], query),
            "/metrics" => self.metrics(),
            _ => text(StatusCode::NOT_FOUND, "not found\n".into()),
        }
    }

    /// What a node must have to take requests. Not the control plane itself: a good snapshot is enough.
    fn ready(&self) -> [(&'static str, bool); 4] {
        [
            ("snapshot", self.live.snapshot().is_some()),
            ("registered", !self.live.is_removed()),
            ("draining", !self.phase.reached(Phase::DRAINING)),
            (
                "usage",
                self.usage.upgrade().is_some_and(|usage| !usage.state().sheds()),
            ),
        ]
    }

    fn checks(&self, checks: &[(&'static str, bool)], query: &str) -> Response<Full<Bytes>> {
        let options = || {
            query
                .split('&')
                .filter_map(|option| option.split_once('=').or(Some((option, ""))))
        };
        let excluded = |name: &str| options().any(|option| option == ("exclude", name));
        let mut out = String::new();
        let mut good = true;
        for (name, ok) in checks.iter().filter(|(name, _)| !excluded(name)) {
            good &= ok;
            // Writing to a String does not fail.
            let _ = writeln!(out, "[{}] {name}", if *ok { '+' } else { '-' });
        }
        let status = if good {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        let verbose = !good || options().any(|(name, _)| name == "verbose");
        text(status, if verbose { out } else { "ok\n".into() })
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        let Some(metrics) = &self.metrics else {
            return text(
                StatusCode::NOT_FOUND,
                "metrics are served by the other part of this process\n".into(),
            );
        };
        if let Some(snapshot) = self.live.snapshot() {
            gauge!(SNAPSHOT_VERSION).set(snapshot.revision.0 as f64);
            gauge!(SNAPSHOT_AGE).set(self.live.age_ms() as f64 / 1_000.0);
        }
        text(StatusCode::OK, metrics.render())
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::catalog::NodeSecrets;

    /// `EMFILE`: no file descriptor is left.
    const NO_DESCRIPTOR: i32 = 24;

    /// A listener of a process that runs out of descriptors for a while.
    struct Exhausted {
        failures: u32,
        listener: TcpListener,
    }

    impl Accept for Exhausted {
        async fn next(&mut self) -> io::Result<TcpStream> {
            if self.failures > 0 {
                self.failures -= 1;
                return Err(io::Error::from_raw_os_error(NO_DESCRIPTOR));
            }
            self.listener.next().await
        }
    }

    #[tokio::test]
    async fn accepts_that_fail_do_not_end_the_listener() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let ops = Arc::new(Ops {
            live: Live::new(NodeSecrets::default()),
            usage: Weak::new(),
            phase: Arc::default(),
            metrics: None,
        });
        let asked = async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let request = b"GET /livez HTTP/1.1\r\nhost: ops\r\nconnection: close\r\n\r\n";
            stream.write_all(request).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let answer = tokio::select! {
            () = serve_accepted(ops, Exhausted { failures: 3, listener }, CancellationToken::new()) => panic!("the listener ended"),
            answer = asked => answer,
        };
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}
