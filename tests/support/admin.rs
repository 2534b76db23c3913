//! A client of the admin API that behaves like a careful operator's script: it retries elsewhere, with the same
//! idempotency key, when a replica is gone or has no leader.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// One attempt at one replica.
const ATTEMPT: Duration = Duration::from_secs(8);
/// Pause between rounds over all replicas.
const PAUSE: Duration = Duration::from_millis(50);

/// The admin API of a cluster.
#[derive(Clone)]
pub struct Admin {
    urls: Vec<String>,
    key: String,
    http: reqwest::Client,
}

/// An answer of the admin API.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Value,
}

impl Reply {
    /// The revision at which a write took effect.
    pub fn revision(&self) -> u64 {
        self.body["revision"]
            .as_u64()
            .unwrap_or_else(|| panic!("no revision in {}", self.body))
    }
}

impl Admin {
    /// A client of replicas at `urls`, who trust the certificate authority `ca_pem`.
    pub fn new(urls: Vec<String>, key: &str, ca_pem: &[u8]) -> Result<Self> {
        Ok(Self {
            urls,
            key: key.to_owned(),
            http: Self::http(ca_pem)?,
        })
    }

    /// A client that trusts the cluster's certificate authority and nobody else.
    pub fn http(ca_pem: &[u8]) -> Result<reqwest::Client> {
        crate::install_crypto();
        let client = reqwest::Client::builder()
            .timeout(ATTEMPT)
            .connect_timeout(Duration::from_secs(2))
            .tls_certs_only([reqwest::Certificate::from_pem(ca_pem)?]);
        Ok(client.build()?)
    }

    /// The admin key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The base URL of the first replica of this client.
    pub fn first_url(&self) -> String {
        self.urls[0].clone()
    }

    /// The same client, asking one replica only.
    pub fn at(&self, replica: usize) -> Self {
        Self {
            urls: vec![self.urls[replica].clone()],
            ..self.clone()
        }
    }

    /// One request to the first replica of this client, whatever comes of it.
    pub async fn once(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        idempotency: Option<&str>,
    ) -> Result<Reply> {
        self.attempt(&self.urls[0], method, path, body, idempotency).await
    }

    async fn attempt(
        &self,
        url: &str,
        method: &str,
        path: &str,
        body: Option<&Value>,
        idempotency: Option<&str>,
    ) -> Result<Reply> {
        let method = method.parse().context("an HTTP method")?;
        let mut request = self
            .http
            .request(method, format!("{url}/admin/v1/{path}"))
            .bearer_auth(&self.key);
        if let Some(key) = idempotency {
            request = request.header("idempotency-key", key);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await?;
        let status = response.status().as_u16();
        let text = response.text().await?;
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok(Reply { status, body })
    }

    /// Retries over all replicas until an answer that is not 5xx comes, for at most `within`.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        within: Duration,
    ) -> Result<Reply> {
        let begun = Instant::now();
        let key = crate::unique("write");
        let mut last = String::from("nothing was tried");
        for round in 0.. {
            for url in &self.urls {
                match self.attempt(url, method, path, body, Some(&key)).await {
                    Ok(reply) if reply.status < 500 => return Ok(reply),
                    Ok(reply) => last = format!("{url}: {} {}", reply.status, reply.body),
                    Err(error) => last = format!("{url}: {error:#}"),
                }
            }
            if begun.elapsed() > within {
                bail!("{method} {path}: no answer within {within:?} in {round} rounds; last: {last}");
            }
            tokio::time::sleep(PAUSE).await;
        }
        unreachable!("the loop ends by returning")
    }

    async fn expect(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Reply> {
        let reply = self.send(method, path, body, Duration::from_secs(30)).await?;
        if reply.status >= 300 {
            bail!("{method} {path}: {} {}", reply.status, reply.body);
        }
        Ok(reply)
    }

    /// Reads.
    pub async fn get(&self, path: &str) -> Result<Value> {
        Ok(self.expect("GET", path, None).await?.body)
    }

    /// Makes or replaces.
    pub async fn put(&self, path: &str, body: Value) -> Result<Reply> {
        self.expect("PUT", path, Some(&body)).await
    }

    /// Makes or acts.
    pub async fn post(&self, path: &str, body: Value) -> Result<Reply> {
        self.expect("POST", path, Some(&body)).await
    }
}
