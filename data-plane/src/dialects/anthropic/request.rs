//! A chat completions body as a messages body.
//!
//! Roles: `system` and `developer` become the system prompt, tool results become user turns, neighbours of one role are joined.
//! A last assistant message stays what it is in both dialects: the start of the answer.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tollway_shared::catalog::Endpoint;
use tollway_shared::fault::Fault;

use crate::ask::Ask;
use crate::dialects::Encoded;

/// The dialect insists on a limit; this one holds when neither caller nor endpoint has one.
const MAX_TOKENS_DEFAULT: u32 = 4_096;

#[derive(Deserialize)]
struct In<'a> {
    #[serde(borrow)]
    messages: Vec<MessageIn<'a>>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    #[serde(borrow)]
    stop: Option<&'a RawValue>,
    #[serde(borrow)]
    temperature: Option<&'a RawValue>,
    #[serde(borrow)]
    top_p: Option<&'a RawValue>,
    #[serde(borrow)]
    top_k: Option<&'a RawValue>,
    #[serde(borrow)]
    tools: Option<Vec<ToolIn<'a>>>,
    #[serde(borrow)]
    tool_choice: Option<&'a RawValue>,
    parallel_tool_calls: Option<bool>,
    #[serde(borrow)]
    response_format: Option<FormatIn<'a>>,
}

#[derive(Deserialize)]
struct MessageIn<'a> {
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
struct ToolIn<'a> {
    #[serde(borrow, rename = "type", default)]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow)]
    function: Option<DefinitionIn<'a>>,
    #[serde(borrow)]
    cache_control: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct DefinitionIn<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    description: Option<Cow<'a, str>>,
    #[serde(borrow)]
    parameters: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct FormatIn<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    json_schema: Option<SchemaIn<'a>>,
}

#[derive(Deserialize)]
struct SchemaIn<'a> {
    #[serde(borrow)]
    schema: Option<&'a RawValue>,
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
struct Out<'a> {
    model: &'a str,
    max_tokens: u32,
    messages: Vec<MessageOut<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    system: Vec<Block<'a>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    stream: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stop_sequences: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_k: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<ToolOut<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_choice: Option<ChoiceOut>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<MetadataOut<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_config: Option<OutputOut<'a>>,
}

#[derive(Serialize)]
struct MessageOut<'a> {
    role: &'static str,
    content: Vec<Block<'a>>,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Block<'a> {
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
enum Source {
    Base64 { media_type: String, data: String },
    Url { url: String },
}

#[derive(Serialize)]
struct ToolOut<'a> {
    name: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<Cow<'a, str>>,
    input_schema: Cow<'a, RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_control: Option<&'a RawValue>,
}

#[derive(Serialize)]
struct ChoiceOut {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disable_parallel_tool_use: Option<bool>,
}

#[derive(Serialize)]
struct MetadataOut<'a> {
    user_id: &'a str,
}

#[derive(Serialize)]
struct OutputOut<'a> {
    format: FormatOut<'a>,
}

#[derive(Serialize)]
struct FormatOut<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    schema: &'a RawValue,
}

/// What is sent. Errors: `InvalidField`, when a field has no counterpart in this dialect.
pub fn encode(ask: &Ask, endpoint: &Endpoint) -> Result<Encoded, Fault> {
    let body: In<'_> = serde_json::from_slice(&ask.body).map_err(|fault| {
        let text = fault.to_string();
        invalid("body", format!("does not fit a chat completions request: {text}"))
    })?;
    let cap = endpoint.max_output_tokens;
    let asked = body.max_completion_tokens.or(body.max_tokens);
    let mut out = Out {
        model: &endpoint.upstream_model,
        max_tokens: asked.or(cap).unwrap_or(MAX_TOKENS_DEFAULT),
        messages: Vec::with_capacity(body.messages.len()),
        system: Vec::new(),
        stream: ask.stream,
        stop_sequences: stops(body.stop)?,
        temperature: body.temperature,
        top_p: body.top_p,
        top_k: body.top_k,
        tools: tools(body.tools.unwrap_or_default())?,
        tool_choice: None,
        metadata: ask.user.as_deref().map(|user_id| MetadataOut { user_id }),
        output_config: output_config(body.response_format)?,
    };
    if !out.tools.is_empty() {
        out.tool_choice = tool_choice(body.tool_choice, body.parallel_tool_calls)?;
    }
    for (index, message) in body.messages.into_iter().enumerate() {
        add(&mut out, message, index)?;
    }
    trim_prefill(&mut out.messages);
    Ok(Encoded {
        path: "/messages",
        headers: &[("anthropic-version", "2023-06-01")],
        body: bytes::Bytes::from(serde_json::to_vec(&out).expect("text and raw values serialize")).into(),
    })
}

fn invalid(field: &str, detail: String) -> Fault {
    Fault::InvalidField {
        field: field.into(),
        detail,
    }
}

fn add<'a>(out: &mut Out<'a>, message: MessageIn<'a>, index: usize) -> Result<(), Fault> {
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

fn stops(stop: Option<&RawValue>) -> Result<Vec<String>, Fault> {
    let Some(stop) = stop else { return Ok(Vec::new()) };
    let one = serde_json::from_str::<String>(stop.get()).map(|text| vec![text]);
    one.or_else(|_| serde_json::from_str(stop.get()))
        .map_err(|_| invalid("stop", "must be text or an array of texts".into()))
}

fn tools(tools: Vec<ToolIn<'_>>) -> Result<Vec<ToolOut<'_>>, Fault> {
    let mut out = Vec::with_capacity(tools.len());
    for (index, tool) in tools.into_iter().enumerate() {
        let Some(function) = tool.function else {
            let kind = tool.kind.unwrap_or_default();
            let detail = format!("is `{kind}`, which this provider does not take; use `function`");
            return Err(invalid(&format!("tools[{index}].type"), detail));
        };
        out.push(ToolOut {
            name: function.name,
            description: function.description,
            input_schema: function.parameters.map_or_else(
                || {
                    let any = RawValue::from_string(r#"{"type":"object","properties":{}}"#.into());
                    Cow::Owned(any.expect("the text is JSON"))
                },
                Cow::Borrowed,
            ),
            cache_control: tool.cache_control,
        });
    }
    Ok(out)
}

fn tool_choice(choice: Option<&RawValue>, parallel: Option<bool>) -> Result<Option<ChoiceOut>, Fault> {
    #[derive(Deserialize)]
    struct Named {
        function: Name,
    }
    #[derive(Deserialize)]
    struct Name {
        name: String,
    }
    let (kind, name) = match choice.map(RawValue::get) {
        None => ("auto", None),
        Some("\"auto\"") => ("auto", None),
        Some("\"none\"") => ("none", None),
        Some("\"required\"") => ("any", None),
        Some(other) => match serde_json::from_str::<Named>(other) {
            Ok(named) => ("tool", Some(named.function.name)),
            Err(_) => {
                let detail = "must be `auto`, `none`, `required` or name a function".into();
                return Err(invalid("tool_choice", detail));
            }
        },
    };
    let serial = parallel == Some(false) && kind != "none";
    if choice.is_none() && !serial {
        return Ok(None);
    }
    Ok(Some(ChoiceOut {
        kind,
        name,
        disable_parallel_tool_use: serial.then_some(true),
    }))
}

fn output_config(format: Option<FormatIn<'_>>) -> Result<Option<OutputOut<'_>>, Fault> {
    let Some(format) = format else { return Ok(None) };
    match (&*format.kind, format.json_schema.and_then(|schema| schema.schema)) {
        ("text", _) => Ok(None),
        ("json_schema", Some(schema)) => Ok(Some(OutputOut {
            format: FormatOut {
                kind: "json_schema",
                schema,
            },
        })),
        ("json_schema", None) => Err(invalid(
            "response_format.json_schema.schema",
            "is required".into(),
        )),
        (kind, _) => {
            let detail = format!("is `{kind}`, which this provider does not take; use `json_schema`");
            Err(invalid("response_format.type", detail))
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use serde_json::{Value, json};
    use tollway_shared::ids::{EndpointId, ModelId, ProviderId};

    fn encoded(body: &Value) -> Result<Value, Fault> {
        let endpoint = Endpoint {
            id: EndpointId::trusted("e"),
            model: ModelId::trusted("a/b"),
            provider: ProviderId::trusted("p"),
            upstream_model: "claude-x".into(),
            region: None,
            max_output_tokens: Some(900),
            rank: 0,
            enabled: true,
        };
        let ask = Ask::parse(Bytes::from(body.to_string())).unwrap();
        encode(&ask, &endpoint).map(|e| serde_json::from_slice(&e.body.to_bytes()).unwrap())
    }

    #[test]
    fn a_whole_conversation_with_tools_is_translated() {
        let out = encoded(&json!({
            "model": "a/b", "stream": true, "stop": "END", "temperature": 0.5, "user": "u", "max_completion_tokens": 7,
            "parallel_tool_calls": false, "tool_choice": "required",
            "tools": [{"type": "function", "function": {"name": "add", "description": "d", "parameters": {"type": "object"}}}],
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": [
                    {"type": "text", "text": "look"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
                    {"type": "image_url", "image_url": {"url": "https://x/y.png"}}]},
                {"role": "assistant", "content": null, "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{\"a\":1}"}},
                    {"id": "c2", "type": "function", "function": {"name": "add", "arguments": ""}}]},
                {"role": "tool", "tool_call_id": "c1", "content": "2"},
                {"role": "tool", "tool_call_id": "c2", "content": "0"},
                {"role": "user", "content": "go on"},
                {"role": "assistant", "content": "So "}
            ]
        }))
        .unwrap();
        assert_eq!(
            out,
            json!({
                "model": "claude-x", "max_tokens": 7, "stream": true, "stop_sequences": ["END"], "temperature": 0.5,
                "metadata": {"user_id": "u"}, "system": [{"type": "text", "text": "be brief"}],
                "tools": [{"name": "add", "description": "d", "input_schema": {"type": "object"}}],
                "tool_choice": {"type": "any", "disable_parallel_tool_use": true},
                "messages": [
                    {"role": "user", "content": [
                        {"type": "text", "text": "look"},
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}},
                        {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}]},
                    {"role": "assistant", "content": [
                        {"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 1}},
                        {"type": "tool_use", "id": "c2", "name": "add", "input": {}}]},
                    {"role": "user", "content": [
                        {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "2"}]},
                        {"type": "tool_result", "tool_use_id": "c2", "content": [{"type": "text", "text": "0"}]},
                        {"type": "text", "text": "go on"}]},
                    {"role": "assistant", "content": [{"type": "text", "text": "So"}]}
                ]
            })
        );
    }

    #[test]
    fn the_limit_is_the_callers_then_the_endpoints() {
        let messages = json!([{"role": "user", "content": "x"}]);
        let out = encoded(&json!({"model": "a/b", "messages": messages})).unwrap();
        assert_eq!(out["max_tokens"], 900);
        assert_eq!(out.get("stream"), None);
        let out = encoded(&json!({"model": "a/b", "messages": messages, "max_tokens": 3})).unwrap();
        assert_eq!(out["max_tokens"], 3);
    }

    #[test]
    fn what_has_no_counterpart_is_refused_by_name() {
        for (messages, extra, field) in [
            (
                json!([{"role": "user", "content": [{"type": "input_audio"}]}]),
                json!({}),
                "messages[0].content[0].type",
            ),
            (
                json!([{"role": "tool", "content": "x"}]),
                json!({}),
                "messages[0].tool_call_id",
            ),
            (
                json!([{"role": "robot", "content": "x"}]),
                json!({}),
                "messages[0].role",
            ),
            (
                json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc"}}]}]),
                json!({}),
                "messages[0].content[0].image_url.url",
            ),
            (
                json!([{"role": "user", "content": "x"}]),
                json!({"response_format": {"type": "json_object"}}),
                "response_format.type",
            ),
        ] {
            let mut body = json!({"model": "a/b", "messages": messages});
            body.as_object_mut()
                .unwrap()
                .extend(extra.as_object().unwrap().clone());
            let fault = encoded(&body).unwrap_err();
            assert_eq!(fault.param(), Some(field), "{fault}");
        }
    }
}
