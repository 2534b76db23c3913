//! The admin API over HTTP: one request, its bounded retries over the given replicas, and its refusals as typed failures.
//!
//! Every write carries an idempotency key that is minted once and kept over retries, so a write whose answer was lost
//! happens once.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use reqwest::Method;
use serde_json::Value;

use crate::cli::Global;
use crate::exit::{Failure, Problem};
use crate::up::quickstart;

/// Longest wait for a connection.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// Longest wait for one answer; the server bounds a write without quorum to 5 s.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// Rounds over all given addresses.
const ROUNDS_MAX: u32 = 3;
/// Longest wait for a download's end; the server stops one that reads its store for longer.
const DOWNLOAD_MAX: Duration = Duration::from_secs(20 * 60);
/// Rows asked for at once.
const PAGE_ROWS: u32 = 1_000;
/// Most pages of one list: every API key of the largest cluster.
const PAGES_MAX: u32 = 1_100;
/// What a replica answers when it has waited for a majority in vain.
const NO_QUORUM: &str = "no_quorum";
/// Pause after the first round; doubles.
const PAUSE: Duration = Duration::from_millis(150);

/// How to reach an admin API.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// Base URLs of replicas, tried in order.
    pub(crate) urls: Vec<String>,
    /// The admin key.
    pub(crate) key: String,
    /// The cluster's certificate authority, PEM.
    pub(crate) ca: Option<PathBuf>,
}

impl Target {
    /// Where to send requests: flags and environment first, then what `tollway up` left on this machine.
    pub(crate) fn named(global: &Global) -> Result<Self, Failure> {
        let (mut urls, mut key) = (global.url.clone(), global.key.clone());
        if urls.is_empty() || key.is_none() {
            let file = quickstart::default_data_dir().join(quickstart::FILE);
            let missing = || {
                Failure::Usage(format!(
                    "no cluster is named: give --url and --key (or TOLLWAY_ADMIN_URL and TOLLWAY_ADMIN_KEY), or start one here by `tollway up`, which leaves {}",
                    file.display()
                ))
            };
            // Never one cluster's key to another cluster's address.
            if !urls.is_empty() || key.is_some() {
                let absent = if key.is_none() { "--key" } else { "--url" };
                return Err(Failure::Usage(format!(
                    "{absent} is missing: --url and --key go together"
                )));
            }
            let found = quickstart::read(&file).map_err(|_| missing())?;
            urls = vec![found.admin_url];
            key = Some(found.admin_key);
        }
        for url in &urls {
            let parsed = reqwest::Url::parse(url).ok();
            if !parsed.is_some_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host()) {
                return Err(Failure::Usage(format!(
                    "--url `{url}`: wanted is the base URL of an admin API, such as https://control-1.example.com:7600"
                )));
            }
        }
        Ok(Self {
            urls,
            key: key.unwrap_or_default(),
            ca: global.ca.clone(),
        })
    }
}

/// A client of one cluster.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    urls: Vec<String>,
    key: String,
}

impl Client {
    /// Prepares; connects to nothing yet.
    pub(crate) fn new(target: Target) -> Result<Self, Failure> {
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_MAX)
            .timeout(ANSWER_MAX)
            // An environment's proxy must not see an admin key, and cannot reach loopback.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none());
        if let Some(file) = &target.ca {
            let pem = std::fs::read(file)
                .map_err(|error| Failure::Usage(format!("--ca {}: {error}", file.display())))?;
            let roots = reqwest::Certificate::from_pem_bundle(&pem)
                .map_err(|error| Failure::Usage(format!("--ca {}: {error}", file.display())))?;
            builder = builder.tls_certs_only(roots);
        } else if target.urls.iter().all(|url| url.starts_with("http://")) {
            // Without TLS no roots are needed, and a bare machine has none.
            builder = builder.tls_certs_only([]);
        }
        let http = builder.build().context("cannot make an HTTP client")?;
        let urls = target
            .urls
            .iter()
            .map(|url| url.trim_end_matches('/').to_owned())
            .collect();
        Ok(Self {
            http,
            urls,
            key: target.key,
        })
    }

    /// Reads `path` (below `/admin/v1/`).
    pub(crate) async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.send(Method::GET, path, None, None).await
    }

    /// Reads every page of a list, as one page.
    pub(crate) async fn pages(&self, path: &str) -> Result<Value, Failure> {
        let joint = if path.contains('?') { '&' } else { '?' };
        let mut all = self.get(&format!("{path}{joint}limit={PAGE_ROWS}")).await?;
        for _ in 1..PAGES_MAX {
            let Some(next) = all.get("next").and_then(Value::as_str) else {
                return Ok(all);
            };
            let after = segment(next);
            let mut page = self
                .get(&format!("{path}{joint}limit={PAGE_ROWS}&after={after}"))
                .await?;
            all["next"] = page["next"].take();
            if let (Some(rows), Value::Array(more)) = (all["data"].as_array_mut(), page["data"].take()) {
                rows.extend(more);
            }
        }
        let rows = u64::from(PAGES_MAX) * u64::from(PAGE_ROWS);
        Err(Failure::Usage(format!(
            "more than {rows} rows; narrow the request"
        )))
    }

    /// Like [`Client::get`], and `None` for what does not exist.
    pub(crate) async fn find(&self, path: &str) -> Result<Option<Value>, Failure> {
        match self.get(path).await {
            Ok(value) => Ok(Some(value)),
            Err(Failure::Refused(problem)) if problem.status == 404 => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Makes or replaces `path`, if it was last changed at `if_revision`.
    pub(crate) async fn put(
        &self,
        path: &str,
        body: &Value,
        if_revision: Option<u64>,
    ) -> Result<Value, Failure> {
        self.send(Method::PUT, path, Some(body), if_revision).await
    }

    /// Makes something, or acts on `path`.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.send(Method::POST, path, Some(body), None).await
    }

    /// Removes `path`.
    pub(crate) async fn delete(&self, path: &str, if_revision: Option<u64>) -> Result<Value, Failure> {
        self.send(Method::DELETE, path, None, if_revision).await
    }

    /// Writes what `path` answers to `out` as it comes, from the first replica that begins to answer. One that breaks off is an error:
    /// what was written until then is not whole.
    pub(crate) async fn download(&self, path: &str, out: &mut dyn std::io::Write) -> Result<(), Failure> {
        let mut answer = self.answered(Method::GET, path, None).await?;
        let broken = |error: reqwest::Error| {
            let cause = anyhow::Error::from(error.without_url());
            Failure::Unreachable(format!("the answer broke off: {cause:#}"))
        };
        while let Some(part) = answer.chunk().await.map_err(broken)? {
            out.write_all(&part).context("cannot write what came")?;
        }
        out.flush().context("cannot write what came")?;
        Ok(())
    }

    /// Sends a file to `path`, and reads the JSON answer.
    pub(crate) async fn upload(
        &self,
        path: &str,
        media: &'static str,
        text: String,
    ) -> Result<Value, Failure> {
        let answer = self.answered(Method::POST, path, Some((media, text))).await?;
        let bytes = answer.bytes().await.map_err(|error| {
            Failure::Unreachable(format!("the answer broke off: {}", error.without_url()))
        })?;
        serde_json::from_slice(&bytes)
            .context("the answer is not JSON")
            .map_err(Failure::Local)
    }

    /// The first successful answer of any replica, with its body still to come. Only for what may be asked twice.
    async fn answered(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, String)>,
    ) -> Result<reqwest::Response, Failure> {
        let mut last = None;
        for url in &self.urls {
            let mut request = self
                .http
                .request(method.clone(), format!("{url}/admin/v1/{path}"))
                .timeout(DOWNLOAD_MAX)
                .bearer_auth(&self.key);
            if let Some((media, text)) = &body {
                request = request.header("content-type", *media).body(text.clone());
            }
            match request.send().await {
                Ok(answer) if answer.status().is_success() => return Ok(answer),
                Ok(answer) => {
                    let status = answer.status();
                    let bytes = answer.bytes().await.unwrap_or_default();
                    let problem = refused(url, status, &bytes);
                    if problem.status != 503 {
                        return Err(Failure::Refused(problem));
                    }
                    last = Some(Failure::Refused(problem));
                }
                Err(error) => {
                    let cause = anyhow::Error::from(error.without_url());
                    let silent = Failure::Unreachable(format!("no answer from {url}: {cause:#}"));
                    last = last.or(Some(silent));
                }
            }
        }
        Err(last.unwrap_or_else(|| Failure::Usage("no admin URL is given".into())))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        if_revision: Option<u64>,
    ) -> Result<Value, Failure> {
        let path = match if_revision {
            Some(revision) => format!("{path}?if_revision={revision}"),
            None => path.to_owned(),
        };
        let idempotency = (method != Method::GET).then(fresh_key).transpose()?;
        let mut pause = PAUSE;
        let (mut refused, mut unreachable) = (None, None);
        for round in 1..=ROUNDS_MAX {
            for url in &self.urls {
                match self.once(url, &method, &path, body, idempotency.as_deref()).await {
                    Err(failure @ Failure::Unreachable(_)) => unreachable = Some(failure),
                    Err(Failure::Refused(problem)) if problem.status == 503 => refused = Some(problem),
                    decided => return decided,
                }
            }
            // The replica has waited for a majority as long as anybody should; only another replica could know better.
            let is_final = refused.as_ref().is_some_and(|problem| problem.code == NO_QUORUM);
            if is_final || round == ROUNDS_MAX {
                break;
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        // What a replica said tells more than that others are silent.
        let last = refused.map(Failure::Refused).or(unreachable);
        Err(last.unwrap_or_else(|| Failure::Usage("no admin URL is given".into())))
    }

    async fn once(
        &self,
        url: &str,
        method: &Method,
        path: &str,
        body: Option<&Value>,
        idempotency: Option<&str>,
    ) -> Result<Value, Failure> {
        let unreachable = |error: reqwest::Error| {
            let cause = anyhow::Error::from(error.without_url());
            Failure::Unreachable(format!("no answer from {url}: {cause:#}"))
        };
        let mut request = self
            .http
            .request(method.clone(), format!("{url}/admin/v1/{path}"))
            .bearer_auth(&self.key);
        if let Some(key) = idempotency {
            request = request.header("idempotency-key", key);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.map_err(unreachable)?;
        let status = answer.status();
        let bytes = answer.bytes().await.map_err(unreachable)?;
        if status.is_success() {
            if bytes.is_empty() {
                return Ok(Value::Null);
            }
            return serde_json::from_slice(&bytes)
                .with_context(|| format!("the answer of {url} is not JSON"))
                .map_err(Failure::Local);
        }
        Err(Failure::Refused(refused(url, status, &bytes)))
    }
}

/// A refusal. Whatever answers without a problem document is not our admin API, but its status still says something.
fn refused(url: &str, status: reqwest::StatusCode, bytes: &[u8]) -> Problem {
    let mut problem: Problem = serde_json::from_slice(bytes).unwrap_or_default();
    problem.status = status.as_u16();
    if problem.detail.is_empty() && problem.title.is_empty() {
        problem.detail = format!("{url} answered with status {status} and no explanation");
    }
    problem
}

fn fresh_key() -> Result<String, Failure> {
    let mut random = [0u8; 16];
    getrandom::fill(&mut random)
        .map_err(|error| Failure::Local(anyhow::anyhow!("no randomness: {error}")))?;
    Ok(format!("cli-{}", hex::encode(random)))
}

/// A text as one segment of a path. Ids may contain `/` and `:`, which would otherwise change the path.
pub(crate) fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte.into());
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    #[test]
    fn an_id_with_slashes_stays_one_segment() {
        assert_eq!(segment("openai/gpt-5:free"), "openai%2Fgpt-5%3Afree");
    }

    #[tokio::test]
    async fn without_a_majority_the_one_replica_that_answers_is_heard_and_asked_once() {
        use std::sync::Arc;
        use std::sync::atomic::{AtomicU32, Ordering};

        use axum::http::StatusCode;
        use axum::response::IntoResponse as _;

        crate::install_crypto();
        let asked = Arc::new(AtomicU32::new(0));
        let counter = asked.clone();
        let handler = async move || {
            counter.fetch_add(1, Ordering::SeqCst);
            let problem = serde_json::json!({"code": "no_quorum", "detail": "no majority"});
            (StatusCode::SERVICE_UNAVAILABLE, axum::Json(problem)).into_response()
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let alive = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(handler)).await });
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let dead = format!("http://{}", free.local_addr().unwrap());
        drop(free);
        let client = Client::new(Target {
            urls: vec![dead.clone(), alive, dead],
            key: "k".into(),
            ca: None,
        })
        .unwrap();
        let failure = client.put("models/a", &Value::Null, None).await.unwrap_err();
        assert_eq!(failure.code(), 8, "{failure}");
        assert!(failure.to_string().contains("no_quorum"), "{failure}");
        assert_eq!(
            asked.load(Ordering::SeqCst),
            1,
            "each answer took it four seconds"
        );
    }

    #[tokio::test]
    async fn an_address_where_nobody_listens_is_unreachable_and_names_it() {
        crate::install_crypto();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", free.local_addr().unwrap());
        drop(free);
        let client = Client::new(Target {
            urls: vec![url.clone()],
            key: "k".into(),
            ca: None,
        })
        .unwrap();
        let failure = client.get("models").await.unwrap_err();
        assert_eq!(failure.code(), 3);
        assert!(failure.to_string().contains(&url), "{failure}");
    }

    #[test]
    fn an_address_that_is_none_is_refused_before_anything_is_sent() {
        for (url, is_good) in [
            ("foo", false),
            ("foo:7600", false),
            ("ftp://foo", false),
            ("", false),
            ("https://foo:7600/", true),
        ] {
            let global = Global {
                url: vec![url.into()],
                key: Some("ak".into()),
                ca: None,
                output: Format::Table,
            };
            match Target::named(&global) {
                Ok(_) => assert!(is_good, "{url}"),
                Err(failure) => {
                    assert!(!is_good && failure.code() == 2, "{url}");
                    assert!(failure.to_string().contains("--url"), "{failure}");
                }
            }
        }
    }

    #[test]
    fn one_half_of_an_address_and_key_is_refused() {
        let global = Global {
            url: vec!["http://127.0.0.1:1".into()],
            key: None,
            ca: None,
            output: Format::Table,
        };
        assert!(Target::named(&global).unwrap_err().to_string().contains("--key"));
    }
}
