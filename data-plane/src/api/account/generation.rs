//! `GET /v1/generation`: the record of one request. Fields that nothing here knows of are null.

use serde::Serialize;
use tollway_proto::push::v1::{Generation, TokenSums};
use tollway_shared::time::UnixMillis;

use super::shape::{Data, Usd};

/// OpenRouter's record, in the order of its reference.
#[derive(Debug, Serialize)]
pub struct GenerationOut<'a> {
    id: &'a str,
    request_id: &'a str,
    upstream_id: Option<()>,
    created_at: String,
    model: &'a str,
    provider_name: &'a str,
    api_type: &'static str,
    origin: &'static str,
    app_id: Option<()>,
    http_referer: Option<()>,
    user_agent: Option<()>,
    external_user: Option<&'a str>,
    session_id: Option<()>,
    preset_id: Option<()>,
    router: Option<()>,
    workspace_id: &'a str,
    data_region: &'a str,
    service_tier: Option<()>,
    streamed: bool,
    cancelled: bool,
    finish_reason: Option<&'a str>,
    native_finish_reason: Option<()>,
    latency: i64,
    generation_time: Option<i64>,
    moderation_latency: Option<()>,
    tokens_prompt: Option<u64>,
    tokens_completion: Option<u64>,
    native_tokens_prompt: Option<u64>,
    native_tokens_completion: Option<u64>,
    native_tokens_reasoning: Option<u64>,
    native_tokens_cached: Option<u64>,
    native_tokens_completion_images: Option<()>,
    num_media_prompt: Option<()>,
    num_input_audio_prompt: Option<()>,
    num_media_completion: Option<()>,
    num_search_results: Option<()>,
    num_fetches: Option<()>,
    web_search_engine: Option<()>,
    usage: Usd,
    total_cost: Usd,
    upstream_inference_cost: Option<Usd>,
    cache_discount: Option<Usd>,
    is_byok: bool,
    provider_responses: Vec<ProviderResponse<'a>>,
    response_cache_source_id: Option<()>,
    /// Ours: the counts are an estimate.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    estimated: bool,
}

/// One attempt.
#[derive(Debug, Serialize)]
struct ProviderResponse<'a> {
    id: Option<()>,
    endpoint_id: &'a str,
    provider_name: &'a str,
    model_permaslug: &'a str,
    status: Option<u32>,
    latency: Option<u32>,
    is_byok: bool,
    routed_service_tier: Option<()>,
}

/// Prompt tokens of every kind.
pub fn prompt(tokens: &TokenSums) -> u64 {
    tokens
        .input
        .saturating_add(tokens.input_cache_read)
        .saturating_add(tokens.input_cache_write)
        .saturating_add(tokens.input_cache_write_1h)
}

/// Completion tokens of every kind.
pub fn completion(tokens: &TokenSums) -> u64 {
    tokens.output.saturating_add(tokens.output_reasoning)
}

/// The answer's body.
pub fn body(found: &Generation) -> Data<GenerationOut<'_>> {
    let tokens = found.tokens.unwrap_or_default();
    // Nobody served it: there is nothing that could be counted.
    let counted = |count: u64| (found.usage_source != "none").then_some(count);
    let cached =
        tokens.input_cache_read > 0 || tokens.input_cache_write > 0 || tokens.input_cache_write_1h > 0;
    let responses = found.attempts.iter().map(|attempt| ProviderResponse {
        id: None,
        endpoint_id: &attempt.endpoint,
        provider_name: &attempt.provider,
        model_permaslug: &found.model,
        status: attempt.status,
        latency: attempt
            .first_byte_ms
            .map(|at| at.saturating_sub(attempt.started_ms)),
        is_byok: found.byok,
        routed_service_tier: None,
    });
    Data {
        data: GenerationOut {
            id: &found.request_id,
            request_id: &found.request_id,
            upstream_id: None,
            created_at: UnixMillis(found.started_at).rfc3339(),
            model: &found.model,
            provider_name: &found.provider,
            api_type: "completions",
            origin: "",
            app_id: None,
            http_referer: None,
            user_agent: None,
            external_user: Some(found.user.as_str()).filter(|user| !user.is_empty()),
            session_id: None,
            preset_id: None,
            router: None,
            workspace_id: &found.project,
            data_region: &found.region,
            service_tier: None,
            streamed: found.stream,
            cancelled: found.end_state == "cancelled",
            finish_reason: found.finish_reason.as_deref(),
            native_finish_reason: None,
            latency: found.finished_at.saturating_sub(found.started_at),
            generation_time: found.first_byte_at.map(|at| found.finished_at.saturating_sub(at)),
            moderation_latency: None,
            tokens_prompt: counted(prompt(&tokens)),
            tokens_completion: counted(completion(&tokens)),
            native_tokens_prompt: counted(prompt(&tokens)),
            native_tokens_completion: counted(completion(&tokens)),
            native_tokens_reasoning: counted(tokens.output_reasoning),
            native_tokens_cached: counted(tokens.input_cache_read),
            native_tokens_completion_images: None,
            num_media_prompt: None,
            num_input_audio_prompt: None,
            num_media_completion: None,
            num_search_results: None,
            num_fetches: None,
            web_search_engine: None,
            usage: Usd(found.billed),
            total_cost: Usd(found.billed),
            upstream_inference_cost: found.byok.then_some(Usd(found.charge)),
            cache_discount: cached.then_some(Usd(found.cache_savings)),
            is_byok: found.byok,
            provider_responses: responses.collect(),
            response_cache_source_id: None,
            estimated: found.usage_source == "estimated",
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tollway_proto::push::v1::GenerationAttempt;

    use super::*;

    fn found() -> Generation {
        Generation {
            request_id: "gen-1".into(),
            project: "p".into(),
            user: "ann".into(),
            started_at: 1_795_371_664_125,
            first_byte_at: Some(1_795_371_664_225),
            finished_at: 1_795_371_665_125,
            model: "a/m".into(),
            endpoint: "acme/a/m".into(),
            provider: "acme".into(),
            region: "eu".into(),
            stream: true,
            end_state: "completed".into(),
            status: 200,
            finish_reason: Some("stop".into()),
            usage_source: "provider".into(),
            byok: false,
            tokens: Some(TokenSums {
                input: 5,
                input_cache_read: 3,
                input_cache_write: 2,
                input_cache_write_1h: 1,
                output: 7,
                output_reasoning: 4,
            }),
            charge: 200,
            cache_savings: -3,
            billed: 210,
            attempts: vec![
                GenerationAttempt {
                    endpoint: "slow/a/m".into(),
                    provider: "slow".into(),
                    started_ms: 1,
                    first_byte_ms: None,
                    status: Some(503),
                },
                GenerationAttempt {
                    endpoint: "acme/a/m".into(),
                    provider: "acme".into(),
                    started_ms: 40,
                    first_byte_ms: Some(100),
                    status: Some(200),
                },
            ],
        }
    }

    fn json(found: &Generation) -> Value {
        serde_json::to_value(body(found)).unwrap()["data"].clone()
    }

    #[test]
    fn a_generation_has_every_field_of_the_shape_and_null_where_nothing_is_known() {
        let nulls = [
            "upstream_id",
            "app_id",
            "http_referer",
            "user_agent",
            "session_id",
            "preset_id",
            "router",
            "service_tier",
            "native_finish_reason",
            "moderation_latency",
            "native_tokens_completion_images",
            "num_media_prompt",
            "num_input_audio_prompt",
            "num_media_completion",
            "num_search_results",
            "num_fetches",
            "web_search_engine",
            "upstream_inference_cost",
            "response_cache_source_id",
        ];
        let response = |endpoint: &str, provider: &str, status: u16, latency: Value| {
            json!({
                "id": null, "endpoint_id": endpoint, "provider_name": provider, "model_permaslug": "a/m", "status": status,
                "latency": latency, "is_byok": false, "routed_service_tier": null,
            })
        };
        let mut expected = json!({
            "id": "gen-1", "request_id": "gen-1", "created_at": "2026-11-22T18:21:04.125Z", "model": "a/m",
            "provider_name": "acme", "api_type": "completions", "origin": "", "external_user": "ann", "workspace_id": "p",
            "data_region": "eu", "streamed": true, "cancelled": false, "finish_reason": "stop", "latency": 1000,
            "generation_time": 900, "tokens_prompt": 11, "tokens_completion": 11, "native_tokens_prompt": 11,
            "native_tokens_completion": 11, "native_tokens_reasoning": 4, "native_tokens_cached": 3,
        });
        expected["usage"] = json!(2.1e-7);
        expected["total_cost"] = json!(2.1e-7);
        expected["cache_discount"] = json!(-3e-9);
        expected["is_byok"] = json!(false);
        let slow = response("slow/a/m", "slow", 503, json!(null));
        expected["provider_responses"] = json!([slow, response("acme/a/m", "acme", 200, json!(60))]);
        for field in nulls {
            expected[field] = Value::Null;
        }
        assert_eq!(json(&found()), expected);
    }

    #[test]
    fn what_nobody_served_has_no_counts_and_what_is_estimated_says_so() {
        let failed = Generation {
            usage_source: "none".into(),
            end_state: "cancelled".into(),
            first_byte_at: None,
            tokens: Some(TokenSums::default()),
            user: String::new(),
            billed: 0,
            ..found()
        };
        let failed = json(&failed);
        for field in [
            "tokens_prompt",
            "native_tokens_completion",
            "cache_discount",
            "generation_time",
            "external_user",
        ] {
            assert_eq!(failed[field], Value::Null, "{field}");
        }
        assert_eq!(
            (&failed["cancelled"], &failed["usage"]),
            (&json!(true), &json!(0))
        );
        assert_eq!(failed.get("estimated"), None);

        let own = Generation {
            usage_source: "estimated".into(),
            byok: true,
            billed: 0,
            ..found()
        };
        let own = json(&own);
        assert_eq!((&own["estimated"], &own["is_byok"]), (&json!(true), &json!(true)));
        assert_eq!(
            (&own["usage"], &own["upstream_inference_cost"]),
            (&json!(0), &json!(2e-7))
        );
    }
}
