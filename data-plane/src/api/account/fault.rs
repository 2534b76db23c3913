//! A fault as OpenRouter's clients read it: `error.code` is the HTTP status, and the cause's own name is in `error.metadata`.

use http::HeaderMap;
use serde::Serialize;
use tollway_shared::fault::Fault;

use crate::api::reply::{self, Reply};

#[derive(Serialize)]
struct Body<'a> {
    error: Out<'a>,
}

#[derive(Serialize)]
struct Out<'a> {
    code: u16,
    message: &'a str,
    metadata: Metadata<'a>,
}

#[derive(Serialize)]
struct Metadata<'a> {
    error_type: &'static str,
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    param: Option<&'a str>,
}

/// The whole answer.
pub fn reply(fault: &Fault) -> Reply {
    let status = fault.status();
    let body = Body {
        error: Out {
            code: status,
            message: &fault.to_string(),
            metadata: Metadata {
                error_type: error_type(status),
                code: fault.spec().code,
                param: fault.param(),
            },
        },
    };
    let mut headers = HeaderMap::new();
    reply::retry(&mut headers, fault);
    if let Fault::MethodNotAllowed { allow, .. } = fault {
        reply::text(&mut headers, "allow", allow);
    }
    reply::json(status, headers, &body)
}

/// OpenRouter's name for what a status means.
fn error_type(status: u16) -> &'static str {
    match status {
        401 => "authentication",
        402 => "payment_required",
        403 => "permission_denied",
        404 => "not_found",
        408 => "timeout",
        413 => "payload_too_large",
        429 => "rate_limit_exceeded",
        400..=499 => "invalid_request",
        _ => "server",
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use serde_json::{Value, json};

    use super::*;

    async fn told(fault: Fault) -> (u16, Option<String>, Value) {
        let reply = reply(&fault);
        let status = reply.status().as_u16();
        let retry = reply.headers().get("retry-after");
        let retry = retry.map(|value| value.to_str().unwrap().to_owned());
        let body = reply.into_body().collect().await.unwrap().to_bytes();
        (status, retry, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn an_error_has_its_status_as_a_number_and_its_name_beside_it() {
        let (status, retry, body) = told(Fault::UsageUnavailable).await;
        assert_eq!((status, retry.as_deref()), (503, Some("2")));
        let message = Fault::UsageUnavailable.to_string();
        let metadata = json!({"error_type": "server", "code": "usage_unavailable"});
        assert_eq!(
            body,
            json!({"error": {"code": 503, "message": message, "metadata": metadata}})
        );

        let absent = Fault::GenerationNotFound { id: "gen-1".into() };
        let (status, retry, body) = told(absent).await;
        assert_eq!((status, retry), (404, None));
        assert_eq!(body["error"]["code"], 404);
        assert_eq!(body["error"]["metadata"]["error_type"], "not_found");
        let message = body["error"]["message"].as_str().unwrap();
        assert!(
            message.contains("`gen-1`") && message.contains("seconds"),
            "{message}"
        );
    }
}
