//! Brings what was found, and a first tenant, into the catalog, through the admin API like everybody else.
//!
//! Providers follow what was found on every start (an address may have moved). Models, endpoints, prices and tenants are
//! made when they are missing and never written again: from then on they are the operator's.

use std::path::Path;

use anyhow::Context as _;
use serde_json::{Map, Value, json};

use super::discover::Found;
use super::quickstart::{self, Keys};
use crate::apply::{self, Change};
use crate::client::Client;
use crate::demo;
use crate::documents::Document;
use crate::exit::Failure;
use crate::nouns;
use crate::output;

/// The organization and the project of the first key.
const TENANT: &str = "default";

/// Makes the organization, the project and, unless there is one, the inference key. Returns the key.
pub(crate) async fn tenant(client: &Client, data_dir: &Path, keys: &mut Keys) -> Result<String, Failure> {
    if client.find(&format!("organizations/{TENANT}")).await?.is_none() {
        let body = json!({"name": "Default"});
        client
            .put(&format!("organizations/{TENANT}"), &body, None)
            .await?;
    }
    if client.find(&format!("projects/{TENANT}")).await?.is_none() {
        let body = json!({"organization": TENANT, "name": "Default"});
        client.put(&format!("projects/{TENANT}"), &body, None).await?;
    }
    if let Some(key) = &keys.api_key {
        return Ok(key.clone());
    }
    let body = json!({"project": TENANT, "name": "quickstart"});
    let made = client.post("keys", &body).await?;
    let key = made["key"]
        .as_str()
        .context("the answer to a new key has no `key`")?
        .to_owned();
    keys.api_key = Some(key.clone());
    quickstart::write_keys(data_dir, keys)?;
    Ok(key)
}

/// Ids of the providers in the catalog that may be tried, without the built-in one.
pub(crate) async fn enabled_providers(client: &Client) -> Result<Vec<String>, Failure> {
    let answer = client.pages("providers").await?;
    let enabled = output::rows(&answer)
        .into_iter()
        .filter(|row| row["enabled"] == true);
    let ids = enabled
        .filter_map(|row| row["id"].as_str())
        .filter(|id| *id != demo::PROVIDER);
    Ok(ids.map(str::to_owned).collect())
}

/// Brings one provider into the catalog. `reprice`: the operator named prices, so they are set even where there are some.
pub(crate) async fn provider(
    client: &Client,
    found: &Found,
    reprice: bool,
    data_dir: &Path,
    keys: &mut Keys,
) -> Result<(), Failure> {
    for document in &found.documents {
        let change = apply::compare(client, document).await?;
        let write = match (document.noun.kind, &change) {
            (_, Change::Create) => true,
            ("provider", Change::Update(_)) => true,
            ("price", Change::Update(_)) => reprice,
            _ => false,
        };
        if write {
            apply::make(client, document).await?;
        }
        // Its secret right after the provider itself, and before anything that could be routed to.
        if document.noun.kind == "provider" {
            secret(client, found, data_dir, keys).await?;
        }
    }
    Ok(())
}

/// Writes the provider's secret, unless it is the one that was written last.
async fn secret(client: &Client, found: &Found, data_dir: &Path, keys: &mut Keys) -> Result<(), Failure> {
    let Some(secret) = &found.secret else {
        return Ok(());
    };
    let digest = hex::encode(ring::digest::digest(&ring::digest::SHA256, secret.as_bytes()));
    if keys.secrets.get(&found.id) == Some(&digest) {
        return Ok(());
    }
    let document = Document {
        noun: nouns::find("credential").expect("the table has it"),
        id: Some(format!("{}-environment", found.id)),
        fields: Map::from_iter([
            ("provider".to_owned(), Value::from(found.id.as_str())),
            ("secret".to_owned(), Value::from(secret.as_str())),
        ]),
        source: "tollway up".into(),
    };
    apply::make(client, &document).await?;
    keys.secrets.insert(found.id.clone(), digest);
    quickstart::write_keys(data_dir, keys)?;
    Ok(())
}

/// Takes the built-in provider out of routing when it does not run this time.
pub(crate) async fn retire_demo(client: &Client) -> Result<(), Failure> {
    let path = format!("providers/{}", demo::PROVIDER);
    let Some(Value::Object(mut fields)) = client.find(&path).await? else {
        return Ok(());
    };
    if fields.get("enabled") == Some(&Value::Bool(false)) {
        return Ok(());
    }
    fields.insert("enabled".into(), false.into());
    for known_to_the_server in ["id", "revision"] {
        fields.remove(known_to_the_server);
    }
    client.put(&path, &Value::Object(fields), None).await?;
    Ok(())
}

/// Any model with an endpoint at one of these providers: what to ask when this start found nothing new.
pub(crate) async fn any_model(client: &Client, providers: &[String]) -> Result<Option<String>, Failure> {
    let answer = client.pages("endpoints").await?;
    let usable = |row: &&Value| {
        let provider = row["provider"].as_str().unwrap_or_default();
        row["enabled"] == true && providers.iter().any(|id| id == provider)
    };
    let model = output::rows(&answer)
        .into_iter()
        .find(usable)
        .and_then(|row| row["model"].as_str());
    Ok(model.map(str::to_owned))
}
