//! What is asked while a node dies, and what providers count of it.
//!
//! A provider's count is told to it by a directive. The rule is bytes per token of that provider, give or take so much by request, as
//! tokenizers are: the node is not told, it can only learn it from answers that were counted.

use rand::Rng;
use tollway_tests::traffic::{Call, Usage};

/// Served by `a`, or by `b` when `a` fails; OpenAI dialect.
pub(crate) const FAST: &str = "acme/fast";
/// Served by `c`; Anthropic dialect.
pub(crate) const LONG: &str = "acme/long";
/// Bytes of a prompt for a hundred tokens, tokens for a hundred chunks of eight bytes, of each provider.
pub(crate) const RULES: [(&str, u64, u64); 3] = [("a", 310, 300), ("b", 270, 260), ("c", 250, 340)];
/// How far a count may be from the rule, in percent.
const NOISE_PERCENT: u64 = 6;
/// Requests that teach a node, of each provider.
const LESSONS: usize = 4;
/// Chunks of a lesson's answer.
const LESSON_CHUNKS: u64 = 80;

/// Words, and what each provider counts of them and of so many chunks.
fn prompt(rng: &mut impl Rng, title: &str, chunks: u64, how: &str) -> String {
    let words = rng.random_range(120..220);
    let words: String = (0..words).map(|_| word(rng)).collect();
    let mut text = format!("{title}: {words}{how} [[tw:chunks={chunks}]]");
    // What follows is part of the prompt as well.
    let bytes = text.len() as u64
        + 3 * "[[tw:only=a]][[tw:prompt_tokens=000]][[tw:completion_tokens=000]]".len() as u64;
    for (provider, bytes_per_hundred, tokens_per_hundred) in RULES {
        let noise = |rng: &mut dyn FnMut() -> u64| 100 - NOISE_PERCENT + rng();
        let mut draw = || rng.random_range(0..=2 * NOISE_PERCENT);
        let prompt = bytes * noise(&mut draw) / bytes_per_hundred;
        let completion = chunks * tokens_per_hundred * noise(&mut draw) / 10_000;
        text += &format!(
            "[[tw:only={provider}]][[tw:prompt_tokens={prompt}]][[tw:completion_tokens={}]]",
            completion.max(1)
        );
    }
    text
}

fn word(rng: &mut impl Rng) -> String {
    let letters = rng.random_range(2..9);
    let mut word: String = (0..letters)
        .map(|_| char::from(b'a' + rng.random_range(0..26)))
        .collect();
    word.push(' ');
    word
}

/// What a node answers before it dies.
pub(crate) fn lessons(rng: &mut impl Rng) -> Vec<Call> {
    let mut calls = Vec::new();
    for _ in 0..LESSONS {
        // Twice at `a`, or it would be set aside for failing as often as not.
        for (model, how) in [(FAST, ""), (FAST, "[[tw:fail_at=a]]"), (FAST, ""), (LONG, "")] {
            calls.push(Call::plain(model, prompt(rng, "a lesson", LESSON_CHUNKS, how)));
        }
    }
    calls
}

/// What a node is asked when it dies: one of each kind, one after the other.
pub(crate) fn requests(rng: &mut impl Rng, run: usize) -> Vec<Call> {
    let title = format!("run {run}");
    let mut text = |chunks, how: &str| prompt(rng, &title, chunks, how);
    vec![
        Call::plain(FAST, text(30, "")),
        Call::streamed(FAST, text(40, "[[tw:delay_ms=8]]"), Usage::Asked),
        Call::plain(FAST, text(30, "[[tw:fail_at=a]]")),
        Call::streamed(
            FAST,
            text(20, "[[tw:fail_at=a]][[tw:delay_ms=8]]"),
            Usage::NotAsked,
        ),
        Call::streamed(LONG, text(40, "[[tw:delay_ms=8]]"), Usage::Asked),
        // Its provider counts nothing.
        Call::streamed(FAST, text(30, "[[tw:no_usage]][[tw:burst]]"), Usage::Asked),
    ]
}
