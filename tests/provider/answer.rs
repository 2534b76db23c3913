//! From a request and a behaviour to an answer: which pieces of text, which tool calls, how many tokens.
//!
//! Pure, so that a test can work out the bill by itself. Everything that is not scripted is derived from the text of
//! the conversation, which a translation between dialects leaves alone, and not from the bytes of the body, which it does not.

use serde_json::Value;

use crate::behaviour::{Behaviour, CHUNKS_MAX};
use crate::seen::Used;

/// Content events of an unscripted answer, at most.
const CHUNKS_UNSCRIPTED_MAX: u64 = 12;
/// Longest answer in tokens; a directive above it is cut to it, which keeps sums far from overflow.
const TOKENS_MAX: u64 = 1_000_000_000;

/// What of a request body matters here, in either dialect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Model asked for.
    pub model: String,
    /// Whether a stream is wanted.
    pub stream: bool,
    /// `stream_options.include_usage` of the OpenAI dialect.
    pub include_usage: bool,
    /// The caller's cap on completion tokens.
    pub max_tokens: Option<u64>,
    /// Names of the tools offered.
    pub tools: Vec<String>,
    /// Bytes of text in the conversation.
    pub text_bytes: u64,
    /// Hash of that text.
    pub text_hash: u32,
}

impl Ask {
    /// Reads a request body of either dialect.
    ///
    /// Errors: the public text of what is wrong, naming the field.
    pub fn read(body: &[u8]) -> Result<Self, String> {
        let body: Value =
            serde_json::from_slice(body).map_err(|error| format!("the body is not JSON: {error}"))?;
        let model = body["model"]
            .as_str()
            .filter(|model| !model.is_empty())
            .ok_or("`model` must be a string")?;
        let messages = body["messages"]
            .as_array()
            .filter(|list| !list.is_empty())
            .ok_or("`messages` must be a list")?;
        if body["n"].as_u64().is_some_and(|n| n != 1) {
            return Err("`n` must be 1: this provider writes one answer".to_owned());
        }
        let stream = match &body["stream"] {
            Value::Null => false,
            Value::Bool(stream) => *stream,
            _ => return Err("`stream` must be true or false".to_owned()),
        };
        let mut hasher = crc32fast::Hasher::new();
        let mut text_bytes = 0;
        let mut take = |text: &str| {
            hasher.update(text.as_bytes());
            text_bytes += text.len() as u64;
        };
        for_each_text(&body["system"], &mut take);
        for message in messages {
            if !message["role"].is_string() {
                return Err("`messages[].role` must be a string".to_owned());
            }
            for_each_text(&message["content"], &mut take);
        }
        let tools = body["tools"].as_array().map(Vec::as_slice).unwrap_or_default();
        let tool_name = |tool: &Value| {
            tool["function"]["name"]
                .as_str()
                .or(tool["name"].as_str())
                .map(str::to_owned)
        };
        Ok(Self {
            model: model.to_owned(),
            stream,
            include_usage: body["stream_options"]["include_usage"] == Value::Bool(true),
            max_tokens: body["max_completion_tokens"]
                .as_u64()
                .or(body["max_tokens"].as_u64()),
            tools: tools.iter().filter_map(tool_name).collect(),
            text_bytes,
            text_hash: hasher.finalize(),
        })
    }
}

fn for_each_text(content: &Value, take: &mut impl FnMut(&str)) {
    match content {
        Value::String(text) => take(text),
        Value::Array(parts) => {
            for part in parts {
                for_each_text(&part["text"], take);
                for_each_text(&part["content"], take); // a tool result of the Anthropic dialect
            }
        }
        _ => {}
    }
}

/// One call of a tool in an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// The call's id.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// The arguments, JSON text in pieces as they are streamed.
    pub arguments: Vec<String>,
}

/// Everything an answer says, before a dialect writes it down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Id without the dialect's prefix.
    pub id: String,
    /// The text, in the pieces it is streamed in; a plain answer is their concatenation.
    pub pieces: Vec<String>,
    /// Tool calls after the text.
    pub tool_calls: Vec<ToolCall>,
    /// Tokens of the whole answer.
    pub used: Used,
    /// Whether the caller's cap ended it.
    pub capped: bool,
}

impl Answer {
    /// Works out the answer to `ask` under `behaviour`. `number` makes the id unique and changes nothing else.
    pub fn to(ask: &Ask, behaviour: &Behaviour, number: u64) -> Self {
        let hash = u64::from(ask.text_hash);
        let prompt = behaviour
            .prompt_tokens
            .unwrap_or(3 + ask.text_bytes / 4 + hash % 5)
            .min(TOKENS_MAX);
        let wanted = behaviour
            .completion_tokens
            .unwrap_or(8 + hash % 57)
            .min(TOKENS_MAX);
        let cap = if behaviour.ignore_max {
            u64::MAX
        } else {
            ask.max_tokens.unwrap_or(u64::MAX)
        };
        let completion = wanted.min(cap);
        let cache_read = behaviour.cache_read_tokens.min(prompt);
        let used = Used {
            prompt,
            completion,
            cache_read,
            cache_write: behaviour.cache_write_tokens.min(prompt - cache_read),
            reasoning: behaviour.reasoning_tokens.min(completion),
        };
        let unscripted = if behaviour.tool_calls > 0 {
            0
        } else {
            completion.min(CHUNKS_UNSCRIPTED_MAX) as u32
        };
        let chunks = behaviour.chunks.unwrap_or(unscripted).min(CHUNKS_MAX);
        let seed = ask.text_hash;
        Self {
            id: format!("{number:08x}{seed:08x}"),
            pieces: (0..chunks).map(|index| piece(seed, index)).collect(),
            tool_calls: (0..behaviour.tool_calls)
                .map(|index| tool_call(ask, number, index))
                .collect(),
            used,
            capped: completion < wanted,
        }
    }

    /// Completion tokens generated once `sent` of `all` content events are out.
    pub fn completion_after(&self, sent: u64, all: u64) -> u64 {
        if sent >= all {
            self.used.completion
        } else {
            self.used.completion * sent / all
        }
    }
}

fn piece(seed: u32, index: u32) -> String {
    let word = seed.wrapping_add(index.wrapping_mul(0x9e37_79b9)) >> 8;
    if index == 0 {
        format!("w{word:06x}")
    } else {
        format!(" w{word:06x}")
    }
}

fn tool_call(ask: &Ask, number: u64, index: u32) -> ToolCall {
    let name = ask
        .tools
        .get(index as usize)
        .or(ask.tools.first())
        .map_or("lookup", String::as_str);
    ToolCall {
        id: format!("{number:08x}{index:04x}"),
        name: name.to_owned(),
        arguments: vec![
            "{\"city\":".to_owned(),
            "\"Paris\"".to_owned(),
            format!(",\"number\":{index}}}"),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(body: &str) -> Ask {
        Ask::read(body.as_bytes()).unwrap()
    }

    #[test]
    fn the_same_conversation_costs_the_same_in_both_dialects() {
        let chat = ask(
            r#"{"model":"m","messages":[{"role":"system","content":"be brief"},{"role":"user","content":"h\u00e9llo"}]}"#,
        );
        let messages = ask(
            r#"{"model":"x","max_tokens":999,"system":[{"type":"text","text":"be brief"}],"messages":[{"role":"user","content":[{"type":"text","text":"héllo"}]}]}"#,
        );
        let told = Behaviour::default();
        assert_eq!(
            Answer::to(&chat, &told, 1).used,
            Answer::to(&messages, &told, 1).used
        );
    }

    #[test]
    fn the_cap_of_the_caller_cuts_the_answer_and_says_so() {
        let ask = ask(r#"{"model":"m","max_tokens":5,"messages":[{"role":"user","content":"x"}]}"#);
        let told = Behaviour {
            completion_tokens: Some(50),
            ..Behaviour::default()
        };
        let answer = Answer::to(&ask, &told, 1);
        assert_eq!(
            (answer.used.completion, answer.capped, answer.pieces.len()),
            (5, true, 5)
        );
        assert_eq!(
            Answer::to(
                &ask,
                &Behaviour {
                    ignore_max: true,
                    ..told
                },
                1
            )
            .used
            .completion,
            50
        );
    }

    #[test]
    fn a_body_that_is_wrong_names_its_field() {
        for (body, field) in [
            ("{", "JSON"),
            (r#"{"messages":[]}"#, "`model`"),
            (r#"{"model":"m","messages":[]}"#, "`messages`"),
        ] {
            assert!(Ask::read(body.as_bytes()).unwrap_err().contains(field), "{body}");
        }
    }
}
