//! What the provider does with one request, and the directives in a prompt that say so.
//!
//! A directive is `[[tw:name]]` or `[[tw:name=value]]` anywhere in the request body, so that it travels through a
//! gateway, a translation of dialects and an SDK unharmed. An unknown directive is refused, never ignored: a typing
//! error in a test must not turn it into a test of nothing.

use std::time::Duration;

/// Longest wait that can be asked for. A stall is bounded by it, so a forgotten provider ends by itself.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(600);
/// Most content events in one answer.
pub(crate) const CHUNKS_MAX: u32 = 100_000;
/// Longest directive, brackets not counted.
const DIRECTIVE_BYTES_MAX: usize = 128;

/// What to do with one request. The default serves it well and at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behaviour {
    /// HTTP status; anything but 200 is answered with the dialect's error body, 3xx points to a path that does not
    /// exist. `[[tw:status=503]]`
    pub status: u16,
    /// `retry-after` header in seconds. `[[tw:retry_after=2]]`
    pub retry_after_s: Option<u64>,
    /// Wait before the status line. `[[tw:stall_ms=500]]`
    pub stall: Duration,
    /// Wait between the headers and the first body byte. `[[tw:slow_ms=500]]`
    pub slow: Duration,
    /// Wait between two events. Zero still writes each event by itself. `[[tw:delay_ms=20]]`
    pub delay: Duration,
    /// Hands over all events at once, as a provider with a backlog does. `[[tw:burst]]`
    pub burst: bool,
    /// Content events of the answer; by default derived from the prompt. `[[tw:chunks=100]]`
    pub chunks: Option<u32>,
    /// Breaks the connection after so many content events (a plain answer breaks half way). `[[tw:cut_after=3]]`
    pub cut_after: Option<u32>,
    /// Falls silent after so many content events, with the connection open. `[[tw:stall_after=3]]`
    pub stall_after: Option<u32>,
    /// Sends an error event after so many content events, then ends. `[[tw:error_event]]` (= 1), `[[tw:error_event=3]]`
    pub error_event: Option<u32>,
    /// Whether usage is told at all. `[[tw:no_usage]]`
    pub usage: bool,
    /// Tokens of the prompt, cached ones included. `[[tw:prompt_tokens=10]]`
    pub prompt_tokens: Option<u64>,
    /// Tokens of the answer, before the caller's cap. `[[tw:completion_tokens=10]]`
    pub completion_tokens: Option<u64>,
    /// Prompt tokens read from the cache. `[[tw:cache_read_tokens=4]]`
    pub cache_read_tokens: u64,
    /// Prompt tokens written to the cache (told by the Anthropic dialect only). `[[tw:cache_write_tokens=4]]`
    pub cache_write_tokens: u64,
    /// Completion tokens spent on reasoning (told by the OpenAI dialect only). `[[tw:reasoning_tokens=4]]`
    pub reasoning_tokens: u64,
    /// Serves past the caller's `max_tokens`, as a broken provider would. `[[tw:ignore_max]]`
    pub ignore_max: bool,
    /// Tool calls in the answer. `[[tw:tool_call]]` (= 1), `[[tw:tool_call=2]]`
    pub tool_calls: u32,
    /// Sends a keep-alive before each content event. `[[tw:ping]]`
    pub ping: bool,
    /// Answers 200 with bytes that are not JSON. `[[tw:garbage]]`
    pub garbage: bool,
    /// Answers a request for a stream with one plain JSON body, as servers that cannot stream do. `[[tw:plain]]`
    pub plain: bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            status: 200,
            retry_after_s: None,
            stall: Duration::ZERO,
            slow: Duration::ZERO,
            delay: Duration::ZERO,
            burst: false,
            chunks: None,
            cut_after: None,
            stall_after: None,
            error_event: None,
            usage: true,
            prompt_tokens: None,
            completion_tokens: None,
            cache_read_tokens: 0,
            cache_write_tokens: 0,
            reasoning_tokens: 0,
            ignore_max: false,
            tool_calls: 0,
            ping: false,
            garbage: false,
            plain: false,
        }
    }
}

impl Behaviour {
    /// Answers with an error status and the dialect's error body.
    pub fn refuse(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    /// Applies the directives in `body` that concern the provider called `provider`, in their order.
    ///
    /// - `[[tw:only=a]]` limits the directives after it to provider `a`, until the next `only`; `only=*` ends that.
    /// - `[[tw:fail_at=a]]` is short for a 503 at provider `a`; several names are separated by `+`.
    ///
    /// Errors: the text of the first directive that is unknown or malformed.
    pub fn directed(mut self, body: &[u8], provider: &str) -> Result<Self, String> {
        const OPEN: &[u8] = b"[[tw:";
        let mut concerned = true;
        for start in memchr::memmem::find_iter(body, OPEN) {
            let rest = &body[start + OPEN.len()..];
            let rest = &rest[..rest.len().min(DIRECTIVE_BYTES_MAX)];
            let text = memchr::memmem::find(rest, b"]]")
                .and_then(|end| std::str::from_utf8(&rest[..end]).ok())
                .ok_or_else(|| "a directive `[[tw:` without its end".to_owned())?;
            let (name, value) = match text.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (text, None),
            };
            if name == "only" {
                concerned = matches!(value, Some(only) if only == "*" || only == provider);
            } else if concerned {
                self.direct(name, value, provider)
                    .map_err(|()| format!("unknown or malformed directive `{text}`"))?;
            }
        }
        Ok(self)
    }

    fn direct(&mut self, name: &str, value: Option<&str>, provider: &str) -> Result<(), ()> {
        let number = || value.and_then(|text| text.parse::<u64>().ok()).ok_or(());
        let count = || {
            number()
                .and_then(|n| u32::try_from(n).map_err(|_| ()))
                .map(|n| n.min(CHUNKS_MAX))
        };
        let count_or_one = || if value.is_none() { Ok(1) } else { count() };
        let millis = || number().map(|ms| Duration::from_millis(ms).min(WAIT_MAX));
        match name {
            "status" => {
                self.status = number()
                    .ok()
                    .and_then(|n| u16::try_from(n).ok())
                    .filter(|n| (200..600).contains(n))
                    .ok_or(())?
            }
            "fail_at" => {
                if value.ok_or(())?.split('+').any(|name| name == provider) {
                    self.status = 503;
                }
            }
            "retry_after" => self.retry_after_s = Some(number()?),
            "stall_ms" => self.stall = millis()?,
            "slow_ms" => self.slow = millis()?,
            "delay_ms" => self.delay = millis()?,
            "burst" => self.burst = true,
            "chunks" => self.chunks = Some(count()?),
            "cut_after" => self.cut_after = Some(count()?),
            "stall_after" => self.stall_after = Some(count()?),
            "error_event" => self.error_event = Some(count_or_one()?),
            "no_usage" => self.usage = false,
            "prompt_tokens" => self.prompt_tokens = Some(number()?),
            "completion_tokens" => self.completion_tokens = Some(number()?),
            "cache_read_tokens" => self.cache_read_tokens = number()?,
            "cache_write_tokens" => self.cache_write_tokens = number()?,
            "reasoning_tokens" => self.reasoning_tokens = number()?,
            "ignore_max" => self.ignore_max = true,
            "tool_call" => self.tool_calls = count_or_one()?,
            "ping" => self.ping = true,
            "garbage" => self.garbage = true,
            "plain" => self.plain = true,
            _ => return Err(()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(provider: &str, text: &str) -> Result<Behaviour, String> {
        Behaviour::default().directed(text.as_bytes(), provider)
    }

    #[test]
    fn a_prompt_without_directives_is_served_well() {
        assert_eq!(
            at("a", "say [[hello]] and [tw:status=500]"),
            Ok(Behaviour::default())
        );
    }

    #[test]
    fn directives_add_up_and_the_last_of_one_name_wins() {
        let told = at(
            "a",
            "x [[tw:chunks=3]] y [[tw:delay_ms=20]][[tw:chunks=4]] [[tw:no_usage]]",
        )
        .unwrap();
        assert_eq!(
            told,
            Behaviour {
                chunks: Some(4),
                delay: Duration::from_millis(20),
                usage: false,
                ..Behaviour::default()
            }
        );
    }

    #[test]
    fn a_directive_for_one_provider_does_not_concern_another() {
        let text = "[[tw:only=a]][[tw:status=429]][[tw:only=*]][[tw:chunks=2]] [[tw:fail_at=c+d]]";
        assert_eq!(at("a", text).unwrap().status, 429);
        assert_eq!(
            at("b", text).unwrap(),
            Behaviour {
                chunks: Some(2),
                ..Behaviour::default()
            }
        );
        assert_eq!(at("d", text).unwrap().status, 503);
    }

    #[test]
    fn a_directive_nobody_knows_is_named_and_refused() {
        for text in [
            "[[tw:stal_ms=3]]",
            "[[tw:chunks]]",
            "[[tw:status=9]]",
            "[[tw:chunks=3",
        ] {
            assert!(at("a", text).is_err(), "{text}");
        }
        assert!(at("a", "[[tw:stal_ms=3]]").unwrap_err().contains("stal_ms"));
    }
}
