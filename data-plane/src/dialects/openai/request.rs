//! The caller's body with `model` replaced, our own members taken out, and usage asked for.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::value::RawValue;
use tollway_shared::catalog::{Endpoint, Provider, output_cap};

use crate::ask::Ask;
use crate::dialects::Encoded;
use crate::dialects::slices::{Edit, Slices};

const ASK_FOR_USAGE: &str = r#","stream_options":{"include_usage":true}"#;

/// What is sent: the caller's bytes around the edits.
pub fn encode(ask: &Ask, endpoint: &Endpoint, provider: &Provider) -> Encoded {
    let mut model = serde_json::to_vec(&endpoint.upstream_model).expect("text serializes");
    let mut edits: Vec<Edit> = ask
        .ours_at
        .iter()
        .map(|range| Edit {
            range: range.clone(),
            with: Bytes::new(),
        })
        .collect();
    if ask.stream && !ask.wants_usage && provider.stream_usage {
        match &ask.stream_options_at {
            Some(range) => edits.push(Edit {
                range: range.clone(),
                with: with_usage(&ask.body[range.clone()]),
            }),
            None => model.extend_from_slice(ASK_FOR_USAGE.as_bytes()),
        }
    }
    // A server ignores a name that it does not know, and its answer would have no cap.
    let name = output_cap(provider);
    let lowered = ask
        .clamped
        .map(|cap| endpoint.max_output_tokens.map_or(cap, |most| most.min(cap)));
    let held = || {
        endpoint
            .max_output_tokens
            .filter(|_| ask.is_held && ask.output_tokens_max.is_none())
    };
    let ours = lowered.or_else(held).map(|cap| cap.to_string());
    match (&ask.caps[..], ours) {
        ([], None) => {}
        ([], Some(ours)) => model.extend_from_slice(format!(r#","{}":{ours}"#, name.as_str()).as_bytes()),
        ([cap], ours) => {
            if cap.name != name {
                edits.push(Edit {
                    range: cap.key_at.clone(),
                    with: format!(r#""{}""#, name.as_str()).into(),
                });
            }
            edits.extend(ours.map(|ours| Edit {
                range: cap.value_at.clone(),
                with: ours.into(),
            }));
        }
        (caps, ours) => {
            // One value goes under both names, as some servers refuse two that differ; where one of them is `null`, that stays the name
            // which the server does not know.
            let value = ours.or_else(|| ask.output_tokens_max.map(|cap| cap.to_string()));
            let both = caps.iter().all(|cap| !cap.is_null);
            edits.extend(
                caps.iter()
                    .zip(std::iter::repeat(value))
                    .filter_map(|(cap, value)| {
                        let with = if both || cap.name == name {
                            value?
                        } else {
                            "null".into()
                        };
                        Some(Edit {
                            range: cap.value_at.clone(),
                            with: with.into(),
                        })
                    }),
            );
        }
    }
    edits.push(Edit {
        range: ask.model_at.clone(),
        with: model.into(),
    });
    edits.sort_by_key(|edit| edit.range.start);
    Encoded {
        path: "/chat/completions",
        headers: &[],
        body: Slices::edited(&ask.body, &edits),
    }
}

/// The caller's stream options, with usage switched on.
fn with_usage(options: &[u8]) -> Bytes {
    let mut members: BTreeMap<&str, &RawValue> = serde_json::from_slice(options).unwrap_or_default();
    let on = RawValue::from_string("true".into()).expect("`true` is JSON");
    members.insert("include_usage", &on);
    serde_json::to_vec(&members).expect("raw values serialize").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;
    use tollway_shared::catalog::{AuthScheme, Dialect, OutputCap};
    use tollway_shared::ids::{EndpointId, ModelId, ProviderId};

    fn encoded(body: &str, stream_usage: bool) -> String {
        encoded_at("http://127.0.0.1", body, stream_usage, None)
    }

    fn encoded_at(base_url: &str, body: &str, stream_usage: bool, cap: Option<u32>) -> String {
        encoded_with(base_url, None, body, stream_usage, cap)
    }

    fn encoded_with(
        base_url: &str,
        output_cap: Option<OutputCap>,
        body: &str,
        stream_usage: bool,
        cap: Option<u32>,
    ) -> String {
        let endpoint = Endpoint {
            id: EndpointId::trusted("e"),
            model: ModelId::trusted("a/b"),
            provider: ProviderId::trusted("p"),
            upstream_model: "b-\"1".into(),
            region: None,
            max_output_tokens: None,
            on_disconnect: None,
            rank: 0,
            enabled: true,
        };
        let provider = Provider {
            id: ProviderId::trusted("p"),
            name: "P".into(),
            dialect: Dialect::OpenAi,
            base_url: base_url.into(),
            auth: AuthScheme::None,
            private_network: true,
            stream_usage,
            output_cap,
            bills_after_cancel: false,
            on_disconnect: None,
            connect_timeout_ms: 1,
            first_byte_timeout_ms: 1,
            idle_timeout_ms: 1,
            enabled: true,
        };
        let mut ask = Ask::parse(Bytes::copy_from_slice(body.as_bytes())).unwrap();
        cap.into_iter().for_each(|cap| ask.clamp(cap));
        String::from_utf8(encode(&ask, &endpoint, &provider).body.to_bytes().to_vec()).unwrap()
    }

    #[test]
    fn only_the_changed_fields_change() {
        const REST: &str = r#""x" : 1.00,"messages":[{"role":"user"}]"#;
        for (body, usage, expected) in [
            (r#"{"model":"a/b",REST}"#, true, r#"{"model":"b-\"1",REST}"#),
            (
                r#"{REST,"model":"a/b","stream":true}"#,
                true,
                r#"{REST,"model":"b-\"1","stream_options":{"include_usage":true},"stream":true}"#,
            ),
            (
                r#"{REST,"model":"a/b","stream":true}"#,
                false,
                r#"{REST,"model":"b-\"1","stream":true}"#,
            ),
            (
                r#"{"stream_options":{"include_usage":false,"z":[1]},REST,"model":"a/b","stream":true,"provider":{}}"#,
                true,
                r#"{"stream_options":{"include_usage":true,"z":[1]},REST,"model":"b-\"1","stream":true}"#,
            ),
            (
                r#"{"stream_options":{"include_usage":true},REST,"model":"a/b","stream":true}"#,
                true,
                r#"{"stream_options":{"include_usage":true},REST,"model":"b-\"1","stream":true}"#,
            ),
            (
                r#"{"stream_options":null,REST,"model":"a/b","stream":true}"#,
                true,
                r#"{"stream_options":{"include_usage":true},REST,"model":"b-\"1","stream":true}"#,
            ),
        ] {
            assert_eq!(
                encoded(&body.replace("REST", REST), usage),
                expected.replace("REST", REST)
            );
        }
    }

    #[test]
    fn a_clamped_cap_takes_the_place_of_the_callers_or_is_added_under_the_name_that_the_server_knows() {
        const REST: &str = r#""messages":[{"role":"user"}]"#;
        let (openai, other) = ("https://api.openai.com", "http://10.0.0.1:8000");
        for (url, body, expected) in [
            (
                other,
                r#"{"max_tokens":900,"model":"a/b",REST}"#,
                r#"{"max_tokens":7,"model":"b-\"1",REST}"#,
            ),
            (
                other,
                r#"{"model":"a/b",REST,"max_completion_tokens" : 900,"max_tokens":800}"#,
                r#"{"model":"b-\"1",REST,"max_completion_tokens" : 7,"max_tokens":7}"#,
            ),
            (
                other,
                r#"{"model":"a/b",REST}"#,
                r#"{"model":"b-\"1","max_tokens":7,REST}"#,
            ),
            (
                other,
                r#"{"model":"a/b",REST,"stream":true}"#,
                r#"{"model":"b-\"1","stream_options":{"include_usage":true},"max_tokens":7,REST,"stream":true}"#,
            ),
            (
                other,
                r#"{"model":"a/b",REST,"max_tokens":null}"#,
                r#"{"model":"b-\"1",REST,"max_tokens":7}"#,
            ),
            (
                openai,
                r#"{"model":"a/b",REST,"max_tokens":null,"max_completion_tokens":9}"#,
                r#"{"model":"b-\"1",REST,"max_tokens":null,"max_completion_tokens":7}"#,
            ),
            (
                openai,
                r#"{"model":"a/b",REST}"#,
                r#"{"model":"b-\"1","max_completion_tokens":7,REST}"#,
            ),
        ] {
            let sent = encoded_at(url, &body.replace("REST", REST), true, Some(7));
            assert_eq!(sent, expected.replace("REST", REST));
        }
    }

    #[test]
    fn a_cap_goes_under_the_name_that_the_server_knows() {
        const REST: &str = r#""model":"a/b","messages":[{"role":"user"}]"#;
        const SENT: &str = r#""model":"b-\"1","messages":[{"role":"user"}]"#;
        let (openai, other) = ("https://api.openai.com/v1", "http://10.0.0.1:8000/v1");
        let (older, newer) = (Some(OutputCap::MaxTokens), Some(OutputCap::MaxCompletionTokens));
        for (url, setting, body, expected) in [
            (
                other,
                None,
                r#"{"max_completion_tokens" : 9,REST}"#,
                r#"{"max_tokens" : 9,REST}"#,
            ),
            (
                other,
                None,
                r#"{REST,"max\u005fcompletion_tokens":9}"#,
                r#"{REST,"max_tokens":9}"#,
            ),
            (
                other,
                None,
                r#"{"max_tokens":9,REST}"#,
                r#"{"max_tokens":9,REST}"#,
            ),
            (
                other,
                newer,
                r#"{"max_tokens":9,REST}"#,
                r#"{"max_completion_tokens":9,REST}"#,
            ),
            (
                openai,
                None,
                r#"{"max_tokens":9,REST}"#,
                r#"{"max_completion_tokens":9,REST}"#,
            ),
            (
                openai,
                older,
                r#"{"max_tokens":9,REST}"#,
                r#"{"max_tokens":9,REST}"#,
            ),
            (
                other,
                None,
                r#"{"max_completion_tokens":9,REST,"max_tokens":null}"#,
                r#"{"max_completion_tokens":null,REST,"max_tokens":9}"#,
            ),
            (
                openai,
                None,
                r#"{"max_completion_tokens":null,REST,"max_tokens":9}"#,
                r#"{"max_completion_tokens":9,REST,"max_tokens":null}"#,
            ),
            (
                openai,
                None,
                r#"{"max_completion_tokens":null,REST,"max_tokens":null}"#,
                r#"{"max_completion_tokens":null,REST,"max_tokens":null}"#,
            ),
        ] {
            let sent = encoded_with(url, setting, &body.replace("REST", REST), true, None);
            assert_eq!(sent, expected.replace("REST", SENT));
        }
    }

    #[test]
    fn what_is_held_for_an_answer_without_a_cap_is_sent_as_its_cap() {
        let sent = |is_held, body: &str| {
            let mut ask = Ask::parse(Bytes::copy_from_slice(body.as_bytes())).unwrap();
            ask.is_held = is_held;
            let endpoint = Endpoint {
                max_output_tokens: Some(900),
                ..sample::endpoint("p", 0)
            };
            let provider = sample::provider("p", Dialect::OpenAi, "http://10.0.0.1:8000/v1");
            let body = encode(&ask, &endpoint, &provider).body.to_bytes();
            serde_json::from_slice::<serde_json::Value>(&body).unwrap()["max_tokens"].clone()
        };
        let uncapped = r#"{"model":"a/b","messages":[{"role":"user"}]}"#;
        let capped = r#"{"model":"a/b","messages":[{"role":"user"}],"max_tokens":5000}"#;
        assert_eq!(
            (sent(true, uncapped), sent(false, uncapped)),
            (900.into(), serde_json::Value::Null)
        );
        assert_eq!(sent(true, capped), 5_000, "so much is held for it");
        let nulls =
            r#"{"model":"a/b","messages":[{"role":"user"}],"max_tokens":null,"max_completion_tokens":null}"#;
        assert_eq!(sent(true, nulls), 900);
    }

    #[test]
    fn two_caps_of_a_caller_become_one() {
        let body =
            r#"{"model":"a/b","messages":[{"role":"user"}],"max_tokens":100000,"max_completion_tokens":1}"#;
        let sent = encoded_at("http://10.0.0.1:8000", body, true, None);
        assert_eq!(
            sent,
            r#"{"model":"b-\"1","messages":[{"role":"user"}],"max_tokens":1,"max_completion_tokens":1}"#
        );
    }
}
