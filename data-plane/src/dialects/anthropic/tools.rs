//! Tools and the choice among them.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tollway_shared::fault::Fault;

use super::request::invalid;

#[derive(Deserialize)]
pub(super) struct ToolIn<'a> {
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

#[derive(Serialize)]
pub(super) struct ToolOut<'a> {
    name: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<Cow<'a, str>>,
    input_schema: Cow<'a, RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_control: Option<&'a RawValue>,
}

#[derive(Serialize)]
pub(super) struct ChoiceOut {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disable_parallel_tool_use: Option<bool>,
}

/// Translates the tools.
pub(super) fn tools(tools: Vec<ToolIn<'_>>) -> Result<Vec<ToolOut<'_>>, Fault> {
    let mut out = Vec::with_capacity(tools.len());
    for (index, tool) in tools.into_iter().enumerate() {
        let Some(function) = tool.function else {
            return Err(match tool.kind.as_deref() {
                None | Some("function") => invalid(&format!("tools[{index}].function"), "is required".into()),
                Some(kind) => {
                    let detail = format!("is `{kind}`, which this provider does not take; use `function`");
                    invalid(&format!("tools[{index}].type"), detail)
                }
            });
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

/// Translates which of them the model may or must call.
pub(super) fn tool_choice(
    choice: Option<&RawValue>,
    parallel: Option<bool>,
) -> Result<Option<ChoiceOut>, Fault> {
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
