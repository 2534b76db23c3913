//! The built-in catalog: a few models of the providers that an API key in the environment opens.
//!
//! Prices are the providers' public list prices in US dollars per million tokens as of [`AS_OF`], read from the
//! package genai-prices 0.2.3; only models with one flat price are here, so that what is billed is what is listed. They
//! are a start, not a promise: `tollway apply` adds a newer price version, which then applies.

/// The day on which the prices were read.
pub(crate) const AS_OF: &str = "2026-11-22";

/// A provider on the internet that a key opens.
#[derive(Debug)]
pub(crate) struct Hosted {
    /// Its id in the catalog.
    pub(crate) id: &'static str,
    /// For people.
    pub(crate) name: &'static str,
    /// The environment variable that holds its key.
    pub(crate) key_env: &'static str,
    /// Its wire format.
    pub(crate) dialect: &'static str,
    /// Where it wants the key.
    pub(crate) auth: &'static str,
    /// Its base URL.
    pub(crate) base_url: &'static str,
    /// Its models; the first one, a cheap one, is asked first.
    pub(crate) models: &'static [Listed],
}

/// A model at list price.
#[derive(Debug)]
pub(crate) struct Listed {
    /// `author/slug`, the same at every provider.
    pub(crate) model: &'static str,
    /// The provider's own name for it.
    pub(crate) upstream: &'static str,
    /// Context window in tokens.
    pub(crate) context_tokens: u32,
    /// US dollars per million prompt tokens.
    pub(crate) input: &'static str,
    /// US dollars per million completion tokens.
    pub(crate) output: &'static str,
    /// US dollars per million tokens read from the provider's cache.
    pub(crate) cache_read: Option<&'static str>,
    /// US dollars per million tokens written to it.
    pub(crate) cache_write: Option<&'static str>,
}

const fn listed(
    model: &'static str,
    upstream: &'static str,
    context_tokens: u32,
    [input, output]: [&'static str; 2],
    cache_read: Option<&'static str>,
    cache_write: Option<&'static str>,
) -> Listed {
    Listed {
        model,
        upstream,
        context_tokens,
        input,
        output,
        cache_read,
        cache_write,
    }
}

/// The providers, in the order in which their keys are looked for.
pub(crate) const HOSTED: &[Hosted] = &[
    Hosted {
        id: "openai",
        name: "OpenAI",
        key_env: "OPENAI_API_KEY",
        dialect: "openai",
        auth: "bearer",
        base_url: "https://api.openai.com/v1",
        models: &[
            listed(
                "openai/gpt-4o-mini",
                "gpt-4o-mini",
                128_000,
                ["0.15", "0.60"],
                Some("0.075"),
                None,
            ),
            listed(
                "openai/gpt-4.1-mini",
                "gpt-4.1-mini",
                1_000_000,
                ["0.40", "1.60"],
                Some("0.10"),
                None,
            ),
            listed(
                "openai/gpt-4.1",
                "gpt-4.1",
                1_000_000,
                ["2", "8"],
                Some("0.50"),
                None,
            ),
            listed(
                "openai/gpt-5-mini",
                "gpt-5-mini",
                400_000,
                ["0.25", "2"],
                Some("0.025"),
                None,
            ),
            listed(
                "openai/gpt-5",
                "gpt-5",
                400_000,
                ["1.25", "10"],
                Some("0.125"),
                None,
            ),
        ],
    },
    Hosted {
        id: "anthropic",
        name: "Anthropic",
        key_env: "ANTHROPIC_API_KEY",
        dialect: "anthropic",
        auth: "x_api_key",
        base_url: "https://api.anthropic.com/v1",
        models: &[
            listed(
                "anthropic/claude-haiku-4.5",
                "claude-haiku-4-5",
                200_000,
                ["1", "5"],
                Some("0.10"),
                Some("1.25"),
            ),
            listed(
                "anthropic/claude-sonnet-5.5",
                "claude-sonnet-5-5",
                1_000_000,
                ["2", "10"],
                Some("0.10"),
                Some("2.50"),
            ),
            listed(
                "anthropic/claude-opus-5.5",
                "claude-opus-5-5",
                1_000_000,
                ["4", "20"],
                Some("0.20"),
                Some("5"),
            ),
        ],
    },
    Hosted {
        id: "openrouter",
        name: "OpenRouter",
        key_env: "OPENROUTER_API_KEY",
        dialect: "openai",
        auth: "bearer",
        base_url: "https://openrouter.ai/api/v1",
        models: &[
            listed(
                "openai/gpt-4o-mini",
                "openai/gpt-4o-mini",
                128_000,
                ["0.15", "0.60"],
                Some("0.075"),
                None,
            ),
            listed(
                "openai/gpt-5-mini",
                "openai/gpt-5-mini",
                400_000,
                ["0.25", "2"],
                Some("0.025"),
                None,
            ),
            listed(
                "openai/gpt-5",
                "openai/gpt-5",
                400_000,
                ["1.25", "10"],
                Some("0.125"),
                None,
            ),
            listed(
                "anthropic/claude-sonnet-5.5",
                "anthropic/claude-sonnet-5.5",
                1_000_000,
                ["2", "10"],
                Some("0.10"),
                Some("2.50"),
            ),
            listed(
                "anthropic/claude-opus-5.5",
                "anthropic/claude-opus-5.5",
                1_000_000,
                ["4", "20"],
                Some("0.20"),
                Some("5"),
            ),
        ],
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use tollway_shared::ids::ModelId;
    use tollway_shared::money::Price;

    #[test]
    fn every_listed_model_has_a_good_id_and_prices_above_zero() {
        for model in HOSTED.iter().flat_map(|provider| provider.models) {
            assert!(ModelId::parse_author_slug(model.model).is_ok(), "{}", model.model);
            let texts = [
                Some(model.input),
                Some(model.output),
                model.cache_read,
                model.cache_write,
            ];
            for text in texts.into_iter().flatten() {
                assert!(Price::parse(text).unwrap().0 > 0, "{} {text}", model.model);
            }
        }
    }
}
