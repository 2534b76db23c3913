//! The parts of a fault's public text that are there only sometimes: a date, a successor, what a provider said.

use super::UpstreamNote;
use crate::ids::ModelId;
use crate::lease::hold::Left;
use crate::time::UnixMillis;

pub(super) fn said(note: Option<UpstreamNote<'_>>) -> String {
    let message = note.and_then(|note| note.message);
    message.map_or_else(String::new, |message| format!(": {message}"))
}

pub(super) fn date(at: UnixMillis) -> String {
    at.day().to_string()
}

pub(super) fn successor_hint(successor: Option<&ModelId>) -> String {
    successor.map_or_else(String::new, |model| format!("; use `{model}`"))
}

/// What a budget has left.
pub(super) fn left_hint(left: Left) -> &'static str {
    match left {
        Left::Nothing => "is spent",
        Left::Less => "has less left than this request could cost; lower its cap on the answer",
    }
}

/// The same of credit.
pub(super) fn left_of_credit_hint(left: Left) -> &'static str {
    match left {
        Left::Nothing => "is used up; buy more",
        Left::Less => "is less than this request could cost; lower its cap on the answer, or buy more",
    }
}

pub(super) fn resets_hint(at: Option<UnixMillis>) -> String {
    at.map_or_else(String::new, |at| format!("; it starts again at {}", at.rfc3339()))
}

pub(super) fn close_matches(close: &[ModelId]) -> String {
    if close.is_empty() {
        return String::new();
    }
    let names: Vec<String> = close.iter().map(|model| format!("`{model}`")).collect();
    format!("; did you mean {}?", names.join(" or "))
}

#[cfg(test)]
mod tests {
    use super::super::Fault;
    use super::*;

    #[test]
    fn messages_name_the_thing_and_say_what_to_do() {
        let fault = Fault::ModelNotFound {
            model: "gpt".into(),
            close: vec![ModelId::trusted("openai/gpt-5")],
        };
        assert_eq!(
            fault.to_string(),
            "model `gpt` does not exist; did you mean `openai/gpt-5`?"
        );
        assert_eq!(fault.status(), 404);
    }
}
