//! Messages as turns: `system` and `developer` become the system prompt, tool results become user turns, neighbours of one role are
//! joined. A last assistant message stays what it is in both dialects: the start of the answer.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tollway_shared::fault::Fault;

use super::request::invalid;

/// A conversation in this dialect.
pub(super) struct Turns<'a> {
    /// The turns of users and assistants, in turn. Never empty.
    pub(super) messages: Vec<MessageOut<'a>>,
    /// The system prompt.
    pub(super) system: Vec<Block<'a>>,
}

#[derive(Deserialize)]
pub(super) struct MessageIn<'a> {
    #[serde(borrow)]
    role: Cow<'a, str>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow)]
    tool_calls: Option<Vec<CallIn<'a>>>,
    #[serde(borrow)]
    tool_call_id: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct CallIn<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    function: FunctionIn<'a>,
}

#[derive(Deserialize)]
struct FunctionIn<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow, default)]
    arguments: Cow<'a, str>,
}

#[derive(Deserialize)]
struct PartIn<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow)]
    image_url: Option<ImageIn<'a>>,
    #[serde(borrow)]
    cache_control: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct ImageIn<'a> {
    #[serde(borrow)]
    url: Cow<'a, str>,
}

#[derive(Serialize)]
pub(super) struct MessageOut<'a> {
    role: &'static str,
    content: Vec<Block<'a>>,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Block<'a> {
    Text {
        text: Cow<'a, str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        cache_control: Option<&'a RawValue>,
    },
    Image {
        source: Source,
        #[serde(skip_serializing_if = "Option::is_none")]
        cache_control: Option<&'a RawValue>,
    },
    ToolUse {
        id: Cow<'a, str>,
        name: Cow<'a, str>,
        input: Box<RawValue>,
    },
    ToolResult {
        tool_use_id: Cow<'a, str>,
        content: Vec<Block<'a>>,
    },
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Source {
    Base64 { media_type: String, data: String },
    Url { url: String },
}

/// Translates a conversation.
pub(super) fn turns(messages: Vec<MessageIn<'_>>) -> Result<Turns<'_>, Fault> {
    let mut out = Turns {
        messages: Vec::with_capacity(messages.len()),
        system: Vec::new(),
    };
    for (index, message) in messages.into_iter().enumerate() {
        add(&mut out, message, index)?;
    }
    trim_prefill(&mut out.messages);
    if out.messages.is_empty() {
        let detail = "has no turn of a user or an assistant, and this provider needs one; add a message of role `user`";
        return Err(invalid("messages", detail.into()));
    }
    Ok(out)
}

fn add<'a>(out: &mut Turns<'a>, message: MessageIn<'a>, index: usize) -> Result<(), Fault> {
    let mut blocks = blocks(message.content, index)?;
    let role = match &*message.role {
        "system" | "developer" => {
            out.system.append(&mut blocks);
            return Ok(());
        }
        "user" => "user",
        "assistant" => {
            for (place, call) in message.tool_calls.into_iter().flatten().enumerate() {
                blocks.push(tool_use(call, index, place)?);
            }
            "assistant"
        }
        "tool" | "function" => {
            let Some(tool_use_id) = message.tool_call_id else {
                return Err(invalid(
                    &format!("messages[{index}].tool_call_id"),
                    "is required".into(),
                ));
            };
            blocks = vec![Block::ToolResult {
                tool_use_id,
                content: blocks,
            }];
            "user"
        }
        other => {
            let detail = format!("is `{other}`; use system, developer, user, assistant or tool");
            return Err(invalid(&format!("messages[{index}].role"), detail));
        }
    };
    match out.messages.last_mut() {
        Some(last) if last.role == role => last.content.append(&mut blocks),
        _ if blocks.is_empty() => {} // an empty turn is an error in this dialect
        _ => out.messages.push(MessageOut {
            role,
            content: blocks,
        }),
    }
    Ok(())
}

fn blocks<'a>(content: Option<&'a RawValue>, index: usize) -> Result<Vec<Block<'a>>, Fault> {
    let Some(content) = content.filter(|raw| raw.get() != "null") else {
        return Ok(Vec::new());
    };
    if content.get().starts_with('"') {
        let text: String = serde_json::from_str(content.get()).map_err(|fault| {
            invalid(
                &format!("messages[{index}].content"),
                format!("is not text: {fault}"),
            )
        })?;
        return Ok(text_block(text.into(), None).into_iter().collect());
    }
    let parts: Vec<PartIn<'a>> = serde_json::from_str(content.get()).map_err(|_| {
        let detail = "must be text or an array of parts with a `type`".into();
        invalid(&format!("messages[{index}].content"), detail)
    })?;
    let mut out = Vec::with_capacity(parts.len());
    for (place, part) in parts.into_iter().enumerate() {
        let field = || format!("messages[{index}].content[{place}]");
        match (&*part.kind, part.text, part.image_url) {
            ("text", Some(text), _) => out.extend(text_block(text, part.cache_control)),
            ("image_url", _, Some(image)) => out.push(Block::Image {
                source: source(&image.url).ok_or_else(|| {
                    invalid(
                        &format!("{}.image_url.url", field()),
                        "must be an https URL or a base64 data URL".into(),
                    )
                })?,
                cache_control: part.cache_control,
            }),
            ("text" | "image_url", ..) => return Err(invalid(&field(), "has no content".into())),
            (kind, ..) => {
                let detail = format!("is `{kind}`, which this provider does not take; use text or image_url");
                return Err(invalid(&format!("{}.type", field()), detail));
            }
        }
    }
    Ok(out)
}

/// Empty text blocks are an error in this dialect.
fn text_block<'a>(text: Cow<'a, str>, cache_control: Option<&'a RawValue>) -> Option<Block<'a>> {
    (!text.is_empty()).then_some(Block::Text { text, cache_control })
}

fn source(url: &str) -> Option<Source> {
    if url.starts_with("https://") {
        return Some(Source::Url { url: url.to_owned() });
    }
    let (media_type, data) = url.strip_prefix("data:")?.split_once(";base64,")?;
    Some(Source::Base64 {
        media_type: media_type.to_owned(),
        data: data.to_owned(),
    })
}

fn tool_use<'a>(call: CallIn<'a>, index: usize, place: usize) -> Result<Block<'a>, Fault> {
    let arguments = call.function.arguments.trim();
    let arguments = if arguments.is_empty() { "{}" } else { arguments };
    let input = RawValue::from_string(arguments.to_owned())
        .ok()
        .filter(|raw| raw.get().starts_with('{'))
        .ok_or_else(|| {
            let field = format!("messages[{index}].tool_calls[{place}].function.arguments");
            invalid(&field, "is not a JSON object".into())
        })?;
    Ok(Block::ToolUse {
        id: call.id,
        name: call.function.name,
        input,
    })
}

/// The start of an answer may not end in white space in this dialect.
fn trim_prefill(messages: &mut Vec<MessageOut<'_>>) {
    let Some(last) = messages.last_mut().filter(|last| last.role == "assistant") else {
        return;
    };
    if let Some(Block::Text { text, .. }) = last.content.last_mut() {
        let kept = text.trim_end().len();
        if kept == 0 {
            last.content.pop();
        } else if kept < text.len() {
            text.to_mut().truncate(kept);
        }
    }
    if last.content.is_empty() {
        messages.pop();
    }
}
