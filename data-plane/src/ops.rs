//! Health and metrics, on a port of their own: `/livez`, `/readyz`, `/startupz`, `/metrics`.

use std::convert::Infallible;
use std::fmt::Write as _;
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
use tokio::net::TcpListener;
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
    let mut upkeep = tokio::time::interval(UPKEEP_EVERY);
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => return,
            accepted = listener.accept() => accepted,
            _ = upkeep.tick() => {
                if let Some(metrics) = &ops.metrics {
                    metrics.run_upkeep();
                }
                continue;
            }
        };
        let Ok((stream, _)) = accepted else {
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
    fn ready(&self) -> [(&'static str, bool); 3] {
        [
            ("snapshot", self.live.snapshot().is_some()),
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
