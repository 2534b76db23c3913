//! Joining: a single-use token becomes a certificate, the region's secrets and the control plane's addresses.
//!
//! The token pins the cluster's authority, so the server is known to be the right one before the token is sent. Plain HTTP is
//! taken only on loopback, where the answer's authority is compared with the pin.

use std::path::Path;
use std::time::Duration;

use tollway_proto::admin::cluster::{JoinRequest, JoinSecrets, Joined, JoiningNode};
use tollway_proto::admin::text::{SecretText, Text};
use tollway_shared::ids::NodeId;
use tollway_shared::key_text::join_token_authority;
use tollway_shared::seal::sha256;

use super::{Identity, IdentityFault, Material, Membership, node_secrets, request, tls};

/// The whole join takes no longer.
const JOIN_WITHIN: Duration = Duration::from_secs(20);
/// Longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Joins the cluster at `control_url` as `node` and writes the identity into `data_dir`.
pub async fn join(
    control_url: &str,
    token: &str,
    node: NodeId,
    data_dir: &Path,
) -> Result<Identity, IdentityFault> {
    let pin = join_token_authority(token)
        .ok_or_else(|| IdentityFault::Bad("the token is not a join token, or was copied in part".into()))?;
    let (key_pem, request_pem) = request()?;
    let body = JoinRequest {
        token: SecretText::new(token),
        request_pem,
        node: Some(JoiningNode {
            id: Text(node.clone()),
            region: None,
        }),
        replica: None,
    };
    let joined = ask(control_url, pin, &body).await?;
    if sha256(&tls::certificate(&joined.authority_pem)?) != pin {
        return Err(IdentityFault::Bad(
            "the answer names another certificate authority than the token".into(),
        ));
    }
    let (
        JoinSecrets::Node {
            region_key_b64,
            peppers,
        },
        Some(region),
    ) = (joined.secrets, joined.region)
    else {
        return Err(IdentityFault::Bad("the answer is not for a node".into()));
    };
    let peppers = peppers
        .into_iter()
        .map(|(version, pepper)| (version, pepper.expose().to_owned()));
    let identity = Identity::new(
        Membership {
            cluster: joined.cluster.0,
            node,
            region: region.0,
            peers: joined
                .members
                .into_iter()
                .map(|member| member.peer_address)
                .collect(),
        },
        node_secrets(region_key_b64.expose(), peppers.collect())?,
        Material {
            certificate_pem: joined.certificate_pem,
            key_pem,
            authority_pem: joined.authority_pem,
        },
    )?;
    identity.store(data_dir)?;
    Ok(identity)
}

async fn ask(control_url: &str, pin: [u8; 32], body: &JoinRequest) -> Result<Joined, IdentityFault> {
    let url = format!("{}/admin/v1/join", control_url.trim_end_matches('/'));
    let parsed = reqwest::Url::parse(&url)
        .map_err(|fault| IdentityFault::Bad(format!("`{control_url}` is not a URL: {fault}")))?;
    let loopback = match parsed.host_str() {
        Some("localhost" | "[::1]") => true,
        Some(host) => host
            .parse::<std::net::Ipv4Addr>()
            .is_ok_and(|ip| ip.is_loopback()),
        None => false,
    };
    if parsed.scheme() != "https" && !loopback {
        return Err(IdentityFault::Bad(format!(
            "`{control_url}` must start with `https://`: plain HTTP is for loopback only"
        )));
    }
    let unreachable = |fault: reqwest::Error| {
        let cause = std::error::Error::source(&fault).map(|cause| format!(": {cause}"));
        IdentityFault::Unreachable {
            url: control_url.to_owned(),
            detail: format!("{}{}", fault.without_url(), cause.unwrap_or_default()),
        }
    };
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls::pinned(pin)?)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(JOIN_WITHIN)
        .build()
        .map_err(unreachable)?;
    let mut answer = client.post(parsed).json(body).send().await.map_err(unreachable)?;
    let status = answer.status();
    let mut bytes = Vec::new();
    while let Some(part) = answer.chunk().await.map_err(unreachable)? {
        bytes.extend_from_slice(&part);
        if bytes.len() > ANSWER_BYTES_MAX {
            return Err(IdentityFault::Bad("the answer to the join is too long".into()));
        }
    }
    if !status.is_success() {
        let problem: Option<serde_json::Value> = serde_json::from_slice(&bytes).ok();
        let detail = problem
            .as_ref()
            .and_then(|problem| problem.get("detail")?.as_str());
        return Err(IdentityFault::Refused(
            detail.map_or_else(|| status.to_string(), str::to_owned),
        ));
    }
    // Without the parser's message: it may quote a secret.
    serde_json::from_slice(&bytes)
        .map_err(|_| IdentityFault::Bad("the answer to the join cannot be read".into()))
}
