//! The models that a key may ask for, in a shape that OpenAI's and OpenRouter's clients read.

use std::borrow::Cow;
use std::rc::Rc;

use http::HeaderMap;
use serde::Serialize;
use tollway_shared::catalog::Model;
use tollway_shared::cost::Prices;
use tollway_shared::fault::Fault;
use tollway_shared::money::Price;
use tollway_shared::snapshot::Snapshot;
use tollway_shared::time::UnixMillis;

use super::reply::{self, Reply};
use crate::pipeline::{Arrival, Caller};
use crate::plane::Plane;
use crate::routing::eligible;
use crate::stages::authenticate;

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Item<'a>>,
    links: Links,
    total_count: usize,
}

#[derive(Serialize)]
struct Links {
    next: Option<&'static str>,
}

#[derive(Serialize)]
struct Item<'a> {
    id: &'a str,
    canonical_slug: &'a str,
    object: &'static str,
    owned_by: &'a str,
    name: &'a str,
    description: &'a str,
    created: i64,
    context_length: u32,
    architecture: Architecture,
    pricing: Pricing,
    top_provider: TopProvider,
    per_request_limits: Option<()>,
    supported_parameters: [&'static str; 8],
    default_parameters: Option<()>,
    supported_voices: Option<()>,
    expiration_date: Option<String>,
}

#[derive(Serialize)]
struct Architecture {
    modality: &'static str,
    input_modalities: [&'static str; 1],
    output_modalities: [&'static str; 1],
    tokenizer: &'static str,
    instruct_type: Option<()>,
}

#[derive(Serialize)]
struct TopProvider {
    context_length: u32,
    max_completion_tokens: Option<u32>,
    is_moderated: bool,
}

/// Decimal dollars per token, never with an exponent.
#[derive(Serialize)]
struct Pricing {
    prompt: String,
    completion: String,
    request: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    input_cache_read: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input_cache_write: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    internal_reasoning: Option<String>,
}

/// `GET /v1/models`.
pub fn list(plane: &Rc<Plane>, headers: &HeaderMap) -> Reply {
    answer(plane, headers, |snapshot, caller, now| {
        let models = snapshot.models.values().map(AsRef::as_ref);
        let data: Vec<_> = models
            .filter_map(|model| item(snapshot, caller, model, now))
            .collect();
        let list = List {
            object: "list",
            total_count: data.len(),
            data,
            links: Links { next: None },
        };
        Ok(reply::json(200, HeaderMap::new(), &list))
    })
}

/// `GET /v1/models/{author}/{slug}`. The slash may come encoded: OpenAI's clients send the id as one segment.
pub fn one(plane: &Rc<Plane>, headers: &HeaderMap, encoded: &str) -> Reply {
    answer(plane, headers, |snapshot, caller, now| {
        let slug = decoded(encoded)?;
        let found = snapshot.models.get(slug.as_ref());
        let item = found.and_then(|model| item(snapshot, caller, model, now));
        let item = item.ok_or_else(|| Fault::ModelNotFound {
            model: slug.chars().take(tollway_shared::ids::ID_BYTES_MAX).collect(),
            close: Vec::new(),
        })?;
        Ok(reply::json(200, HeaderMap::new(), &item))
    })
}

/// An id as it stands in a path. The decoder lets a `%` without two hex digits pass; here it is refused.
fn decoded(encoded: &str) -> Result<Cow<'_, str>, Fault> {
    let bad = || Fault::InvalidField {
        field: "model".into(),
        detail: "is not percent-encoded UTF-8: write `%` as `%25`".into(),
    };
    let hex = |digit: Option<&u8>| digit.is_some_and(u8::is_ascii_hexdigit);
    let escapes = |rest: &str| hex(rest.as_bytes().first()) && hex(rest.as_bytes().get(1));
    if !encoded.split('%').skip(1).all(escapes) {
        return Err(bad());
    }
    percent_encoding::percent_decode_str(encoded)
        .decode_utf8()
        .map_err(|_| bad())
}

fn answer(
    plane: &Rc<Plane>,
    headers: &HeaderMap,
    make: impl FnOnce(&Snapshot, &Caller, UnixMillis) -> Result<Reply, Fault>,
) -> Reply {
    let Arrival { request_id, at, .. } = Arrival::new(&plane.dice);
    let made = authenticate::snapshot(plane).and_then(|snapshot| {
        let caller = authenticate::find(plane, &snapshot, headers, at)?;
        make(&snapshot, &caller, at)
    });
    let mut answer = made.unwrap_or_else(|fault| reply::fault(&fault, None, HeaderMap::new()));
    reply::name(answer.headers_mut(), &request_id);
    answer
}

/// A model as an entry of the list. `None` for one that is not offered.
fn item<'a>(snapshot: &Snapshot, caller: &Caller, model: &'a Model, now: UnixMillis) -> Option<Item<'a>> {
    let first = eligible::offered(snapshot, &caller.key, &model.id, now)?;
    let sunset = eligible::notices(snapshot, &model.id)
        .filter_map(|notice| notice.sunset_at)
        .min();
    Some(Item {
        id: model.id.as_str(),
        canonical_slug: model.id.as_str(),
        object: "model",
        owned_by: model.id.author(),
        name: &model.name,
        description: &model.description,
        created: model.created_at.0 / 1_000,
        context_length: model.context_tokens,
        architecture: Architecture {
            modality: "text->text",
            input_modalities: ["text"],
            output_modalities: ["text"],
            tokenizer: "Other",
            instruct_type: None,
        },
        pricing: pricing(&first.price.prices),
        top_provider: TopProvider {
            context_length: model.context_tokens,
            max_completion_tokens: first.endpoint.max_output_tokens,
            is_moderated: false,
        },
        per_request_limits: None,
        supported_parameters: [
            "temperature",
            "top_p",
            "max_tokens",
            "stop",
            "tools",
            "tool_choice",
            "parallel_tool_calls",
            "response_format",
        ],
        default_parameters: None,
        supported_voices: None,
        expiration_date: sunset.map(|at| at.day().to_string()),
    })
}

fn pricing(prices: &Prices) -> Pricing {
    Pricing {
        prompt: per_token(prices.input),
        completion: per_token(prices.output),
        request: prices.request.unwrap_or_default().to_string(),
        input_cache_read: prices.input_cache_read.map(per_token),
        input_cache_write: prices.input_cache_write.map(per_token),
        internal_reasoning: prices.output_reasoning.map(per_token),
    }
}

/// A price per million as decimal text per token: the point moves six places.
fn per_token(price: Price) -> String {
    let size = price.0.max(0).unsigned_abs();
    let digits = format!("{size:016}"); // nano-dollars per million = 10^-15 dollars per token
    let (whole, fraction) = digits.split_at(digits.len() - 15);
    let fraction = fraction.trim_end_matches('0');
    if fraction.is_empty() {
        whole.to_owned()
    } else {
        format!("{whole}.{fraction}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_in_a_path_is_decoded_once_and_a_bad_escape_is_refused() {
        for (encoded, id) in [
            ("demo/echo", Some("demo/echo")),
            ("demo%2Fecho", Some("demo/echo")),
            ("demo%2fecho", Some("demo/echo")),
            ("demo%252Fecho", Some("demo%2Fecho")),
            ("a/b%3Afree", Some("a/b:free")),
            ("demo%2", None),
            ("demo%", None),
            ("demo%+1echo", None),
            ("demo%zzecho", None),
            ("demo%ffecho", None),
        ] {
            assert_eq!(decoded(encoded).ok().as_deref(), id, "{encoded}");
        }
        assert_eq!(decoded("%").unwrap_err().spec().status, 400);
    }

    #[test]
    fn prices_per_token_are_exact_decimals() {
        for (per_million, per_token_text) in [
            ("0", "0"),
            ("2.5", "0.0000025"),
            ("0.0375", "0.0000000375"),
            ("1000000", "1"),
            ("0.000000001", "0.000000000000001"),
        ] {
            assert_eq!(per_token(Price::parse(per_million).unwrap()), per_token_text);
        }
    }
}
