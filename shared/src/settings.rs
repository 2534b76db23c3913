//! Values in configuration files that cannot be: numbers out of their range, log filters that mean nothing, and their line.

use std::fmt;
use std::ops::RangeInclusive;

/// A day in milliseconds: the longest of most waits.
pub const DAY_MS: i64 = 86_400_000;
/// What a log filter may call a level.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// A number in a configuration, and what it may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Number {
    /// The setting, dotted.
    pub key: &'static str,
    /// Its value. What is too large for the type is its largest: no range goes so far.
    pub value: i64,
    /// What it may be.
    pub range: RangeInclusive<i64>,
}

impl Number {
    /// A setting with its value and range.
    pub fn new<N: TryInto<i64>>(key: &'static str, value: N, range: RangeInclusive<i64>) -> Self {
        Self {
            key,
            value: value.try_into().unwrap_or(i64::MAX),
            range,
        }
    }

    /// What is wrong with it, if anything; to be read after its key.
    pub fn problem(&self) -> Option<String> {
        (!self.range.contains(&self.value)).then(|| format!("is {}; allowed are {self}", self.value))
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.range.start(), self.range.end())
    }
}

/// What is wrong with a log filter, if anything: parts with commas, each a level or `target=level`. A misspelled level alone would
/// be the name of a target that nobody has, and silence.
pub fn log_filter_problem(filter: &str) -> Option<String> {
    let is_level = |word: &str| LEVELS.iter().any(|level| word.eq_ignore_ascii_case(level));
    let is_wrong = |part: &&str| match part.trim().rsplit_once('=') {
        Some((target, level)) => target.is_empty() || !is_level(level.trim()),
        None => !is_level(part.trim()),
    };
    let wrong = filter.split(',').find(is_wrong)?;
    let levels = LEVELS.join("`, `");
    Some(format!(
        "has `{}`; a part is one of `{levels}`, or `target=` and one of them",
        wrong.trim()
    ))
}

/// Whether text is `host:port`, as one process is told where another one listens: a name or an address, `[…]` around an IPv6 one.
pub fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let is_host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => address.parse::<core::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
        }
    };
    let is_port = port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
    is_host && is_port
}

/// The line, from 1, on which TOML text sets a dotted key; for messages, so a guess in odd spellings: then it is where its table begins.
pub fn line_of(text: &str, key: &str) -> Option<usize> {
    let mut table = String::new();
    let mut nearest = None;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[') {
            table = header.split(']').next()?.replace([' ', '"'], "");
            if key.starts_with(&format!("{table}.")) {
                nearest = Some(number);
            }
            continue;
        }
        let Some((name, _)) = line.split_once('=') else {
            continue;
        };
        let name = name.replace([' ', '"'], "");
        let path = if table.is_empty() {
            name
        } else {
            format!("{table}.{name}")
        };
        if path == key {
            return Some(number);
        }
        if key.starts_with(&format!("{path}.")) {
            nearest = Some(number); // an inline table
        }
    }
    nearest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_a_setting_is_found_in_every_spelling() {
        let text = "data_dir = \"x\"\nusage = { partitions = 0 }\n\n[ raft ]\n# heartbeat_ms = 1\nheartbeat_ms=0\n[log]\n";
        for (key, line) in [
            ("data_dir", Some(1)),
            ("usage.partitions", Some(2)),
            ("raft.heartbeat_ms", Some(6)),
            ("raft.kept_entries", Some(4)),
            ("admin.listen", None),
        ] {
            assert_eq!(line_of(text, key), line, "{key}");
        }
        assert_eq!(line_of("usage.partitions = 0", "usage.partitions"), Some(1));
    }

    #[test]
    fn a_host_comes_with_its_port_and_nothing_else() {
        for (text, fits) in [
            ("control-1.example.com:7601", true),
            ("10.0.0.1:7601", true),
            ("[::1]:7601", true),
            ("control-1", false),
            ("control-1:", false),
            ("control-1:0", false),
            ("control-1:70000", false),
            ("control-1:+1", false),
            (":7601", false),
            ("::1:7601", false),
            ("https://control-1:7601", false),
            ("control-1:7601/", false),
            ("user@control-1:7601", false),
            ("", false),
        ] {
            assert_eq!(is_host_and_port(text), fits, "{text}");
        }
    }

    #[test]
    fn a_number_is_compared_with_both_ends_of_its_range() {
        for (value, fits) in [
            (0_u64, false),
            (1, true),
            (9, true),
            (10, false),
            (u64::MAX, false),
        ] {
            assert_eq!(
                Number::new("x", value, 1..=9).problem().is_none(),
                fits,
                "{value}"
            );
        }
        let text = Number::new("x", -1_i32, 1..=9).problem();
        assert_eq!(text.as_deref(), Some("is -1; allowed are 1 to 9"));
    }

    #[test]
    fn a_misspelled_level_is_no_target() {
        for (filter, fits) in [
            ("info", true),
            ("WARN,tollway_control::raft=debug", true),
            ("inof", false),
            ("info,tollway_data=loud", false),
            ("tollway_data", false),
            ("", false),
            ("info,", false),
        ] {
            assert_eq!(log_filter_problem(filter).is_none(), fits, "{filter}");
        }
    }
}
