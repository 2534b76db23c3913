//! A chat completions body as a messages body.
//!
//! A field that has no counterpart and changes the answer is refused by name; another endpoint may have one.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tollway_shared::catalog::Endpoint;
use tollway_shared::fault::Fault;

use super::tools::{ChoiceOut, ToolIn, ToolOut, tool_choice, tools};
use super::turns::{Block, MessageIn, MessageOut, Turns, turns};
use crate::ask::Ask;
use crate::dialects::Encoded;

/// The dialect insists on a limit; this one holds when neither caller nor endpoint has one.
pub const MAX_TOKENS_DEFAULT: u32 = 4_096;

#[derive(Deserialize)]
struct In<'a> {
    #[serde(borrow)]
    messages: Vec<MessageIn<'a>>,
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
    let body: In<'_> = serde_json::from_slice(&ask.body).map_err(|_| unfit(&ask.body))?;
    if ask.answers > 1 {
        let detail = format!(
            "is {}, but this provider gives one answer to a request; use 1",
            ask.answers
        );
        return Err(invalid("n", detail));
    }
    let most = endpoint.max_output_tokens;
    // What a budget allows may be more than the endpoint does.
    let cap = ask.clamped.map(|cap| most.map_or(cap, |most| most.min(cap)));
    let cap = cap.or(ask.output_tokens_max).or(most);
    let Turns { messages, system } = turns(body.messages)?;
    let mut out = Out {
        model: &endpoint.upstream_model,
        max_tokens: cap.unwrap_or(MAX_TOKENS_DEFAULT),
        messages,
        system,
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
    Ok(Encoded {
        path: "/messages",
        headers: &[("anthropic-version", "2023-06-01")],
        body: bytes::Bytes::from(serde_json::to_vec(&out).expect("text and raw values serialize")).into(),
    })
}

/// Names what keeps a body from being read: it is read once more, slowly.
fn unfit(body: &[u8]) -> Fault {
    let mut reader = serde_json::Deserializer::from_slice(body);
    let Err(error) = serde_path_to_error::deserialize::<_, In<'_>>(&mut reader) else {
        return invalid("body", "does not fit a chat completions request".into());
    };
    let path = error.path().to_string();
    let text = error.inner().to_string();
    // Without the reader's " at line 1 column 7": the field says where.
    let what = text
        .rsplit_once(" at line ")
        .map_or(text.as_str(), |(what, _)| what);
    let missing = what
        .strip_prefix("missing field `")
        .and_then(|rest| rest.strip_suffix('`'));
    match (missing, path.as_str()) {
        (Some(name), "" | ".") => invalid(name, "is required".into()),
        (Some(name), path) => invalid(&format!("{path}.{name}"), "is required".into()),
        (None, "" | ".") => invalid("body", format!("does not fit a chat completions request: {what}")),
        (None, path) => invalid(path, format!("is not what it should be: {what}")),
    }
}

pub(super) fn invalid(field: &str, detail: String) -> Fault {
    Fault::InvalidField {
        field: field.into(),
        detail,
    }
}

fn stops(stop: Option<&RawValue>) -> Result<Vec<String>, Fault> {
    let Some(stop) = stop else { return Ok(Vec::new()) };
    let one = serde_json::from_str::<String>(stop.get()).map(|text| vec![text]);
    one.or_else(|_| serde_json::from_str(stop.get()))
        .map_err(|_| invalid("stop", "must be text or an array of texts".into()))
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
            on_disconnect: None,
            rank: 0,
            enabled: true,
        };
        let ask = Ask::parse(Bytes::from(body.to_string())).unwrap();
        encode(&ask, &endpoint).map(|e| serde_json::from_slice(&e.body.to_bytes()).unwrap())
    }

    #[test]
    fn what_does_not_fit_is_named_where_it_is() {
        for (tools, field) in [
            (json!([{"type": "function"}]), "tools[0].function"),
            (json!([{}]), "tools[0].function"),
            (json!([{"type": "custom", "custom": {}}]), "tools[0].type"),
            (
                json!([{"type": "function", "function": {"name": "f"}}, {"type": "function", "function": {}}]),
                "tools[1].function.name",
            ),
            (json!([{"function": {"name": 7}}]), "tools[0].function.name"),
            (json!({}), "tools"),
        ] {
            let body =
                json!({"model": "a/b", "messages": [{"role": "user", "content": "x"}], "tools": tools});
            let fault = encoded(&body).unwrap_err();
            assert_eq!(fault.param(), Some(field), "{fault}");
            assert!(!fault.to_string().contains(" at line "), "{fault}");
        }
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
