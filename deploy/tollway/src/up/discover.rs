//! Finds providers: keys in the environment, servers on this machine, servers named on the command line.
//!
//! What is found is written as documents, the same that `tollway apply` takes; nothing here changes the cluster.

use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::{Map, Value, json};
use tollway_shared::ids::ModelId;

use super::list_prices::{self, HOSTED, Hosted};
use super::options::{Options, PricePair, Upstream};
use crate::demo::{self, Demo};
use crate::documents::Document;
use crate::nouns;

/// Servers on this machine: name, id, port.
const LOCAL: [(&str, &str, u16); 4] = [
    ("Ollama", "ollama", 11434),
    ("vLLM", "vllm", 8000),
    ("llama.cpp", "llamacpp", 8080),
    ("LM Studio", "lmstudio", 1234),
];
/// How long a server on this machine may take to list its models.
const LOCAL_MAX: Duration = Duration::from_millis(300);
/// How long a named server may take.
const UPSTREAM_MAX: Duration = Duration::from_secs(10);
/// Most models taken from one server.
const MODELS_MAX: usize = 500;
/// Largest list of models.
const LIST_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Context window of a model whose server does not name it.
const CONTEXT_TOKENS: u32 = 131_072;

/// A provider that can be used.
#[derive(Debug)]
pub(crate) struct Found {
    /// Its id.
    pub(crate) id: String,
    /// One line for people: what it is and where its prices come from.
    pub(crate) about: String,
    /// Its secret.
    pub(crate) secret: Option<String>,
    /// The provider, its models, endpoints and prices.
    pub(crate) documents: Vec<Document>,
    /// The model to ask first.
    pub(crate) model: Option<String>,
}

/// Looks everywhere that the options allow. The first one found is the one to ask first.
pub(crate) async fn all(options: &Options) -> anyhow::Result<Vec<Found>> {
    let http = client()?;
    let price = options.upstream_price.clone().unwrap_or_default();
    let mut found = Vec::new();
    for upstream in &options.upstreams {
        found.push(named(&http, upstream, &price).await?);
    }
    if options.demo {
        return Ok(found);
    }
    let local = LOCAL.iter().filter(|(.., port)| *port != options.api_port());
    let probes = local.map(|(name, id, port)| local_server(&http, name, id, *port, &price));
    found.extend(futures::future::join_all(probes).await.into_iter().flatten());
    for provider in HOSTED {
        if let Some(secret) = std::env::var(provider.key_env)
            .ok()
            .filter(|key| !key.trim().is_empty())
        {
            found.push(hosted(provider, secret.trim()));
        }
    }
    // A provider named on the command line wins over one of the same id that was found.
    let mut seen = std::collections::BTreeSet::new();
    found.retain(|found| seen.insert(found.id.clone()));
    Ok(found)
}

/// The built-in provider.
pub(crate) fn built_in(running: &Demo) -> Found {
    let [input, output] = demo::PRICES;
    let price = PricePair {
        input: input.into(),
        output: output.into(),
    };
    let mut documents = vec![provider(
        demo::PROVIDER,
        json!({"name": "Demo (built in)", "dialect": "openai", "base_url": running.base_url(), "auth": "none",
            "private_network": true, "stream_usage": true, "enabled": true}),
    )];
    let name = "Demo echo";
    let model = Offered {
        upstream: demo::UPSTREAM_MODEL.into(),
        context_tokens: demo::CONTEXT_TOKENS,
    };
    documents.extend(offered(demo::PROVIDER, demo::MODEL, name, &model, prices(&price)));
    Found {
        id: demo::PROVIDER.into(),
        about: format!(
            "demo: the built-in demo provider on {}; no language model; {} at an invented price of ${input}/${output} per million tokens",
            running.address,
            demo::MODEL
        ),
        secret: None,
        documents,
        model: Some(demo::MODEL.into()),
    }
}

fn hosted(provider_of: &Hosted, secret: &str) -> Found {
    let mut documents = vec![provider(
        provider_of.id,
        json!({"name": provider_of.name, "dialect": provider_of.dialect, "base_url": provider_of.base_url,
            "auth": provider_of.auth, "stream_usage": provider_of.dialect == "openai", "enabled": true}),
    )];
    for listed in provider_of.models {
        let mut prices = json!({"input": listed.input, "output": listed.output});
        if let Some(price) = listed.cache_read {
            prices["input_cache_read"] = price.into();
        }
        if let Some(price) = listed.cache_write {
            prices["input_cache_write"] = price.into();
        }
        let model = Offered {
            upstream: listed.upstream.into(),
            context_tokens: listed.context_tokens,
        };
        documents.extend(offered(
            provider_of.id,
            listed.model,
            listed.model,
            &model,
            prices,
        ));
    }
    Found {
        id: provider_of.id.into(),
        about: format!(
            "{}: {} by {}; {} models at list prices of {}",
            provider_of.id,
            provider_of.name,
            provider_of.key_env,
            provider_of.models.len(),
            list_prices::AS_OF
        ),
        secret: Some(secret.to_owned()),
        documents,
        model: provider_of.models.first().map(|listed| listed.model.to_owned()),
    }
}

async fn local_server(
    http: &reqwest::Client,
    name: &str,
    id: &str,
    port: u16,
    price: &PricePair,
) -> Option<Found> {
    let base_url = format!("http://127.0.0.1:{port}/v1");
    // Whatever answers otherwise is some other program, which is nobody's business.
    let models = models_of(http, &base_url, None, LOCAL_MAX).await.ok()?;
    if models.is_empty() {
        return None;
    }
    Some(server(id, name, &base_url, None, &models, price))
}

async fn named(http: &reqwest::Client, upstream: &Upstream, price: &PricePair) -> anyhow::Result<Found> {
    let secret = std::env::var(key_variable(&upstream.name))
        .ok()
        .filter(|key| !key.is_empty());
    let models = models_of(http, &upstream.base_url, secret.as_deref(), UPSTREAM_MAX)
        .await
        .with_context(|| {
            format!(
                "cannot read the models of --upstream {} at {}/models",
                upstream.name, upstream.base_url
            )
        })?;
    if models.is_empty() {
        bail!(
            "--upstream {} lists no models at {}/models",
            upstream.name,
            upstream.base_url
        );
    }
    Ok(server(
        &upstream.name,
        &upstream.name,
        &upstream.base_url,
        secret,
        &models,
        price,
    ))
}

/// The environment variable with the key of an upstream.
fn key_variable(name: &str) -> String {
    let upper = name.chars().map(|c| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_uppercase()
        } else {
            '_'
        }
    });
    format!("TOLLWAY_UPSTREAM_KEY_{}", upper.collect::<String>())
}

fn server(
    id: &str,
    name: &str,
    base_url: &str,
    secret: Option<String>,
    models: &[Offered],
    price: &PricePair,
) -> Found {
    let auth = if secret.is_some() { "bearer" } else { "none" };
    let mut documents = vec![provider(
        id,
        json!({"name": name, "dialect": "openai", "base_url": base_url, "auth": auth, "private_network": true,
            "stream_usage": true, "enabled": true}),
    )];
    let mut first = None;
    let mut seen = std::collections::BTreeSet::new();
    for model in models {
        let Some(model_id) = model_id(id, &model.upstream).filter(|id| seen.insert(id.clone())) else {
            continue;
        };
        documents.extend(offered(id, &model_id, &model.upstream, model, prices(price)));
        first.get_or_insert(model_id);
    }
    Found {
        id: id.to_owned(),
        about: format!(
            "{id}: {name} at {base_url}; {} models; new ones at ${}/${} per million tokens (--upstream-price)",
            seen.len(),
            price.input,
            price.output
        ),
        secret,
        documents,
        model: first,
    }
}

/// A model as its server lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Offered {
    upstream: String,
    context_tokens: u32,
}

async fn models_of(
    http: &reqwest::Client,
    base_url: &str,
    secret: Option<&str>,
    within: Duration,
) -> anyhow::Result<Vec<Offered>> {
    let mut request = http.get(format!("{base_url}/models")).timeout(within);
    if let Some(secret) = secret {
        request = request.bearer_auth(secret);
    }
    let answer = request.send().await.map_err(reqwest::Error::without_url)?;
    if !answer.status().is_success() {
        bail!("it answered with status {}", answer.status());
    }
    let bytes = answer.bytes().await.map_err(reqwest::Error::without_url)?;
    if bytes.len() > LIST_BYTES_MAX {
        bail!("its answer is longer than {LIST_BYTES_MAX} bytes");
    }
    let list: Value = serde_json::from_slice(&bytes).context("its answer is not JSON")?;
    let rows = list["data"].as_array().context("its answer has no list `data`")?;
    Ok(rows.iter().filter_map(offer).take(MODELS_MAX).collect())
}

fn offer(row: &Value) -> Option<Offered> {
    // vLLM, LM Studio and gateways, llama.cpp: each says it elsewhere.
    let context = [
        &row["max_model_len"],
        &row["context_length"],
        &row["meta"]["n_ctx_train"],
    ];
    let context = context
        .into_iter()
        .find_map(Value::as_u64)
        .filter(|tokens| *tokens > 0);
    Some(Offered {
        upstream: row["id"].as_str()?.to_owned(),
        context_tokens: context.map_or(CONTEXT_TOKENS, |tokens| u32::try_from(tokens).unwrap_or(u32::MAX)),
    })
}

/// `author/slug` of a server's model: its own name when it has that form, else under the provider's. Files lose folder
/// and ending; characters that mean something in our ids (`:` starts a variant) become `-`.
fn model_id(provider: &str, upstream: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let has_form = upstream.split_once('/').is_some_and(|(author, slug)| {
        !author.is_empty() && !slug.is_empty() && author.chars().all(plain) && slug.chars().all(plain)
    });
    if has_form && !upstream.starts_with('.') {
        return Some(upstream.to_owned());
    }
    let name = upstream.rsplit('/').next().unwrap_or(upstream);
    let name = name.strip_suffix(".gguf").unwrap_or(name);
    let slug: String = name.chars().map(|c| if plain(c) { c } else { '-' }).collect();
    let id = format!("{provider}/{slug}");
    ModelId::parse_author_slug(&id).is_ok().then_some(id)
}

fn document(kind: &str, id: Option<String>, fields: Value) -> Document {
    let fields = match fields {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    Document {
        noun: nouns::find(kind).expect("only kinds of the table are written here"),
        id,
        fields,
        source: "tollway up".into(),
    }
}

fn provider(id: &str, fields: Value) -> Document {
    document("provider", Some(id.to_owned()), fields)
}

fn prices(pair: &PricePair) -> Value {
    json!({"input": pair.input, "output": pair.output})
}

/// A model, its endpoint at a provider, and the endpoint's prices.
fn offered(provider: &str, id: &str, name: &str, model: &Offered, prices: Value) -> [Document; 3] {
    let endpoint = format!("{provider}/{id}");
    [
        document(
            "model",
            Some(id.into()),
            json!({"name": name, "context_tokens": model.context_tokens}),
        ),
        document(
            "endpoint",
            Some(endpoint.clone()),
            json!({"model": id, "provider": provider, "upstream_model": model.upstream}),
        ),
        document("price", None, json!({"endpoint": endpoint, "prices": prices})),
    ]
}

fn client() -> anyhow::Result<reqwest::Client> {
    let builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy();
    // A bare machine may have no certificates; its servers then speak http, and https is refused with a reason.
    builder
        .build()
        .or_else(|_| {
            let plain = reqwest::Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                .no_proxy();
            plain.tls_certs_only([]).build()
        })
        .context("cannot make an HTTP client")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_model_gets_an_author_and_a_slug() {
        for (upstream, id) in [
            ("gemma3-270m", "local/gemma3-270m"),
            ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B"),
            ("llama3.2:1b", "local/llama3.2-1b"),
            ("/srv/models/tiny model.gguf", "local/tiny-model"),
            ("a/b/c", "local/c"),
        ] {
            assert_eq!(model_id("local", upstream).as_deref(), Some(id), "{upstream}");
        }
        assert_eq!(model_id("local", ""), None);
        assert_eq!(model_id("local", "models/"), None);
    }

    #[test]
    fn the_context_window_is_found_where_each_server_says_it() {
        let tokens = |row: Value| offer(&row).unwrap().context_tokens;
        assert_eq!(tokens(json!({"id": "m", "max_model_len": 4096})), 4096);
        assert_eq!(tokens(json!({"id": "m", "meta": {"n_ctx_train": 32768}})), 32768);
        assert_eq!(tokens(json!({"id": "m"})), CONTEXT_TOKENS);
        assert_eq!(offer(&json!({"object": "model"})), None);
    }

    #[test]
    fn a_key_variable_is_named_after_the_upstream() {
        assert_eq!(key_variable("my-gpu.1"), "TOLLWAY_UPSTREAM_KEY_MY_GPU_1");
    }

    #[tokio::test]
    async fn the_models_of_a_server_become_documents_with_prices() {
        crate::install_crypto();
        let running = Demo::start().await.unwrap();
        let upstream = Upstream {
            name: "gpu".into(),
            base_url: running.base_url(),
        };
        let found = named(&client().unwrap(), &upstream, &PricePair::default())
            .await
            .unwrap();
        assert_eq!(found.model.as_deref(), Some("gpu/echo"));
        let kinds: Vec<_> = found
            .documents
            .iter()
            .map(|document| document.noun.kind)
            .collect();
        assert_eq!(kinds, ["provider", "model", "endpoint", "price"]);
        assert_eq!(found.documents[3].fields["prices"]["input"], "0.10");
        running.stop(Duration::from_secs(5)).await;
    }

    #[tokio::test]
    async fn a_named_server_that_is_not_there_is_an_error_that_names_it() {
        crate::install_crypto();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let upstream = Upstream {
            name: "gpu".into(),
            base_url: format!("http://{}/v1", free.local_addr().unwrap()),
        };
        drop(free);
        let error = named(&client().unwrap(), &upstream, &PricePair::default())
            .await
            .unwrap_err();
        assert!(error.to_string().contains("--upstream gpu"), "{error:#}");
    }
}
