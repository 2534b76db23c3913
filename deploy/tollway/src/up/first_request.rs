//! The first request: streamed through the public API like anybody's, shown as it comes, then found again in the usage
//! log and in the ledger.

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures::StreamExt as _;
use serde_json::{Value, json};
use tollway_proto::usage::{LogLine, UsageEvent};
use tollway_proto::usage_log::LogSegment;

use super::quickstart::Quickstart;
use crate::client::Client;
use crate::output::{self, say};

/// What is asked.
pub(crate) const QUESTION: &str = "Say hello in one short sentence.";
/// Longest answer in tokens: it may be a model that costs money.
const ANSWER_TOKENS_MAX: u32 = 64;
/// Longest wait for the whole answer; a local model may have to be loaded first.
const ANSWER_MAX: Duration = Duration::from_secs(180);
/// Longest line of a stream.
const LINE_BYTES_MAX: usize = 1024 * 1024;
/// Longest wait for the event in the usage log, and for the ledger to have counted it.
const EVENT_MAX: Duration = Duration::from_secs(15);
/// Between two looks.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// Where the event of a request is, and what it says.
#[derive(Debug)]
pub(crate) struct Recorded {
    /// The file of the usage log.
    pub(crate) file: PathBuf,
    /// The byte at which its line starts.
    pub(crate) offset: u64,
    /// The offset after its line, counted from the start of its partition as the ledger does.
    pub(crate) end: u64,
    /// The event.
    pub(crate) event: UsageEvent,
}

/// Asks, and shows the answer as it comes. Returns the request's id.
pub(crate) async fn ask(quickstart: &Quickstart) -> anyhow::Result<String> {
    let http = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([])
        .timeout(ANSWER_MAX)
        .build()
        .context("cannot make an HTTP client")?;
    let body = json!({
        "model": quickstart.model, "stream": true, "max_tokens": ANSWER_TOKENS_MAX,
        "messages": [{"role": "user", "content": QUESTION}],
    });
    let answer = http
        .post(format!("{}/chat/completions", quickstart.api_url))
        .bearer_auth(&quickstart.api_key)
        .json(&body)
        .send()
        .await
        .map_err(reqwest::Error::without_url)
        .context("the public API did not answer")?;
    let status = answer.status();
    let id = answer
        .headers()
        .get("x-tollway-request-id")
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    if !status.is_success() {
        let text = answer.text().await.unwrap_or_default();
        bail!("it was answered with status {status}: {}", message(&text));
    }
    let mut lines = Lines::default();
    let mut parts = answer.bytes_stream();
    while let Some(part) = parts.next().await {
        let part = part
            .map_err(reqwest::Error::without_url)
            .context("the answer broke off")?;
        for line in lines.push(&part)? {
            if let Some(text) = delta(&line)? {
                let _ = write!(std::io::stdout(), "{text}");
                // Shown piece by piece: that is the point. A closed output is no reason to stop serving.
                let _ = std::io::stdout().flush();
            }
        }
    }
    say!();
    id.context("the answer has no `x-tollway-request-id`")
}

/// The text that one line of the stream adds.
fn delta(line: &str) -> anyhow::Result<Option<String>> {
    let Some(data) = line.strip_prefix("data:").map(str::trim) else {
        return Ok(None);
    };
    if data == "[DONE]" {
        return Ok(None);
    }
    let chunk: Value = serde_json::from_str(data).context("the stream holds something that is not JSON")?;
    if chunk.get("error").is_some_and(|error| !error.is_null()) {
        bail!("the stream ended in an error: {}", message(data));
    }
    Ok(chunk["choices"][0]["delta"]["content"]
        .as_str()
        .map(str::to_owned))
}

/// The message of an error body, or the body.
fn message(text: &str) -> String {
    let parsed: Value = serde_json::from_str(text).unwrap_or_default();
    parsed["error"]["message"].as_str().unwrap_or(text).to_owned()
}

/// Cuts bytes, however they arrive, into lines.
#[derive(Debug, Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn push(&mut self, bytes: &[u8]) -> anyhow::Result<Vec<String>> {
        self.0.extend_from_slice(bytes);
        let mut out = Vec::new();
        while let Some(end) = self.0.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.0.drain(..=end).collect();
            out.push(String::from_utf8_lossy(&line).trim_end().to_owned());
        }
        if self.0.len() > LINE_BYTES_MAX {
            bail!("a line of the stream is longer than {LINE_BYTES_MAX} bytes");
        }
        Ok(out)
    }
}

/// How far the usage log reached at some moment: nothing before it needs to be read.
#[derive(Debug, Default)]
pub(crate) struct Mark(std::collections::BTreeMap<PathBuf, u64>);

impl Mark {
    /// The log's present end.
    pub(crate) fn of(log: &Path) -> anyhow::Result<Self> {
        let ends = files(log)?.into_iter().map(|file| {
            let length = file.metadata().map(|data| data.len())?;
            Ok((file, length))
        });
        ends.collect::<std::io::Result<_>>()
            .map(Self)
            .context("cannot read the usage log")
    }
}

fn files(log: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(log) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", log.display())),
    };
    let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    Ok(paths
        .filter(|path| path.extension().is_some_and(|ending| ending == "jsonl"))
        .collect())
}

/// Waits until the event of a request is in the usage log, and reads it from there.
pub(crate) async fn recorded(log: &Path, since: &Mark, request: &str) -> anyhow::Result<Recorded> {
    let deadline = tokio::time::Instant::now() + EVENT_MAX;
    loop {
        for file in files(log)? {
            let from = since.0.get(&file).copied().unwrap_or(0);
            if let Some(found) = search(&file, from, request)? {
                return Ok(found);
            }
        }
        if tokio::time::Instant::now() > deadline {
            bail!(
                "its event is not in {} after {} s",
                log.display(),
                EVENT_MAX.as_secs()
            );
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

fn search(file: &Path, from: u64, request: &str) -> anyhow::Result<Option<Recorded>> {
    let mut log = std::fs::File::open(file)?;
    log.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    log.read_to_end(&mut bytes)?;
    let name = file.file_name().and_then(|name| name.to_str());
    let base = name.and_then(LogSegment::parse).map_or(0, |segment| segment.base);
    let mut offset = from;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let end = offset + line.len() as u64;
        // Without its end the line is still being written.
        if line.ends_with(b"\n") {
            let parsed: LogLine<'_> = serde_json::from_slice(line)
                .with_context(|| format!("{} has a bad line at byte {offset}", file.display()))?;
            let event: UsageEvent = serde_json::from_str(parsed.event.get())
                .with_context(|| format!("{} has a bad event at byte {offset}", file.display()))?;
            if event.request_id.as_str() == request {
                return Ok(Some(Recorded {
                    file: file.to_owned(),
                    offset,
                    end: base + end,
                    event,
                }));
            }
        }
        offset = end;
    }
    Ok(None)
}

/// Waits until the ledger has counted up to the end of the event.
pub(crate) async fn counted(client: &Client, recorded: &Recorded) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + EVENT_MAX;
    loop {
        let usage = client
            .get("usage")
            .await
            .map_err(|failure| anyhow::anyhow!("{failure}"))?;
        let partitions = usage.get("freshness").map(output::rows).unwrap_or_default();
        let done = partitions.iter().any(|row| {
            row["partition"].as_i64() == Some(recorded.event.partition.into())
                && row["offset"]
                    .as_u64()
                    .is_some_and(|offset| offset >= recorded.end)
        });
        if done {
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            bail!("the ledger has not counted it after {} s", EVENT_MAX.as_secs());
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_whole_however_the_bytes_are_cut() {
        let stream = "data: {\"a\":1}\r\n\n: comment\ndata: [DONE]\n";
        for step in 1..=stream.len() {
            let mut lines = Lines::default();
            let cut: Vec<String> = stream
                .as_bytes()
                .chunks(step)
                .flat_map(|part| lines.push(part).unwrap())
                .collect();
            assert_eq!(
                cut,
                ["data: {\"a\":1}", "", ": comment", "data: [DONE]"],
                "{step}"
            );
        }
    }

    #[test]
    fn an_error_event_is_not_taken_for_the_end() {
        let error = delta(r#"data: {"error":{"message":"it broke"}}"#).unwrap_err();
        assert!(error.to_string().contains("it broke"));
        let text = delta(r#"data: {"choices":[{"delta":{"content":"hi"}}]}"#).unwrap();
        assert_eq!(text.as_deref(), Some("hi"));
        assert_eq!(delta(r#"data: {"choices":[]}"#).unwrap(), None);
        assert_eq!(delta(": keep-alive").unwrap(), None);
    }

    #[test]
    fn an_event_is_found_with_its_place_and_a_half_written_one_is_not() {
        let dir = std::env::temp_dir().join(format!("tollway-log-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let event: Value =
            serde_json::from_str(include_str!("../../../../proto/examples/usage-event.v1.json")).unwrap();
        let id = event["request_id"].as_str().unwrap();
        let line = json!({"headers": {}, "event": event}).to_string();
        let file = dir.join(tollway_proto::usage::log_file_name(0));
        std::fs::write(&file, format!("{line}\n{line}")).unwrap();
        assert_eq!(search(&file, 0, id).unwrap().unwrap().offset, 0);
        let end = line.len() as u64 + 1;
        assert!(search(&file, end, id).unwrap().is_none());
        std::fs::write(&file, format!("{line}\n{line}\n")).unwrap();
        let found = search(&file, end, id).unwrap().unwrap();
        assert_eq!((found.offset, found.end), (end, 2 * end));
        assert!(search(&file, 0, "gen-other").unwrap().is_none());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
