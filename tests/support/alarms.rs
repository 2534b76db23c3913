//! What wakes somebody up: lines at level ERROR and panics in the logs of the processes under test.
//!
//! A log level says who wakes up, so a test in which nothing goes wrong has no ERROR; one that breaks something on purpose
//! announces what that makes the processes say.

/// The alarms in a log that contain none of the announced texts.
pub fn unannounced<'a>(log: &'a str, announced: &[&str]) -> Vec<&'a str> {
    log.lines()
        .filter(|line| is_alarm(line) && !announced.iter().any(|text| line.contains(text)))
        .collect()
}

/// A line is `INSTANT LEVEL target: …`, in colours when the process takes its output for a terminal; a panic's line stands
/// outside that form.
fn is_alarm(line: &str) -> bool {
    let level = line.split_whitespace().nth(1).unwrap_or_default();
    level.trim_start_matches(is_colour).starts_with("ERROR") || line.contains(" panicked at ")
}

fn is_colour(c: char) -> bool {
    matches!(c, '\u{1b}' | '[' | ';' | 'm' | '0'..='9')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_alarms_that_nobody_announced_are_found() {
        let log = "2026-11-22T18:21:04.125Z  INFO tollway_data: ERROR is a word here\n\
                   2026-11-22T18:21:04.126Z ERROR tollway_data::usage: the disk is full\n\
                   thread 'main' (12) panicked at src/main.rs:1:1:\n\
                   \u{1b}[2m2026-11-22T18:21:04.127Z\u{1b}[0m \u{1b}[31mERROR\u{1b}[0m \u{1b}[2mtollway_data\u{1b}[0m: the broker is gone\n";
        let lines: Vec<&str> = log.lines().collect();
        assert_eq!(unannounced(log, &["broker"]), lines[1..3]);
        assert_eq!(unannounced(log, &[]), lines[1..]);
    }
}
