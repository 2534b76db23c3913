//! Plain GETs of our own processes, and the metrics in their answers.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

/// Longest wait for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// Status line, headers and body.
pub(crate) fn get(address: SocketAddr, path: &str, api_key: Option<&str>) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    let key = api_key.map_or_else(String::new, |key| format!("authorization: Bearer {key}\r\n"));
    let head = format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n{key}\r\n");
    stream.write_all(head.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The metrics of a process at one moment.
pub(crate) struct Metrics(String);

impl Metrics {
    /// Of the process that has this port on loopback.
    pub(crate) fn of(port: u16) -> Result<Self> {
        let text = get((Ipv4Addr::LOCALHOST, port).into(), "/metrics", None)
            .with_context(|| format!("no metrics at port {port}"))?;
        ensure!(text.starts_with("HTTP/1.1 200 "), "no metrics at port {port}");
        Ok(Self(text))
    }

    /// A metric, summed over all labels.
    pub(crate) fn sum(&self, name: &str) -> f64 {
        self.lines(name).map(|(_, value)| value).sum()
    }

    /// A metric where a label has a value.
    pub(crate) fn of_label(&self, name: &str, label: &str, value: &str) -> f64 {
        let wanted = format!("{label}=\"{value}\"");
        let lines = self.lines(name).filter(|(labels, _)| labels.contains(&wanted));
        lines.map(|(_, value)| value).sum()
    }

    fn lines<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        self.0.lines().filter_map(move |line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            let whole = labels.is_empty() || labels.starts_with('{');
            Some((labels, value.parse().ok()?)).filter(|_| whole)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_its_labels_and_not_mixed_up_with_one_that_begins_alike() {
        let text =
            "# HELP a_total x\na_total{stage=\"read\"} 1.5\na_total{stage=\"fold\"} 2\na_total_more 7\nb 3\n";
        let metrics = Metrics(text.to_owned());
        assert!((metrics.sum("a_total") - 3.5).abs() < 1e-9);
        assert!((metrics.of_label("a_total", "stage", "fold") - 2.0).abs() < 1e-9);
        assert!((metrics.sum("b") - 3.0).abs() < 1e-9);
        assert!(metrics.sum("c").abs() < 1e-9);
    }
}
