//! Lets a replica or node in: a single-use token and a certificate request in, an identity and its secrets out.
//!
//! Authenticated by the token, not by an admin key. The request is checked before the token is used up; a retry of the very same
//! request gets the same answer, so that a lost answer does not cost a token.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{FromRequest, Request, State as Shared};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tollway_proto::admin::cluster::{JoinRequest, JoinSecrets, Joined, hex};
use tollway_proto::admin::problem::ProblemCode;
use tollway_proto::admin::text::{SecretText, Text};
use tollway_proto::command::{self, Command, Idempotency, Member, NodeRecord};
use tollway_shared::ids::{Region, ReplicaId};
use tollway_shared::key_text::{self, KeyKind};
use tollway_shared::seal;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::auth::PEPPER_VERSION;
use super::body::{BODY_BYTES_MAX, parse_body, read_body};
use super::exchange::{Answer, Head};
use super::fault::Fault;
use crate::clock;
use crate::identity::authority::{LEAF_LIFE, host_of};
use crate::identity::{Authority, IdentityFault, PeerIdentity};
use crate::state::State;

/// Who is named in the audit trail for a join.
const ACTOR: &str = "join-token";

/// A join request, and what a retry of it has in common with it.
struct Asked {
    body: JoinRequest,
    request: [u8; 32],
}

impl FromRequest<Arc<Api>> for Asked {
    type Rejection = Fault;

    async fn from_request(request: Request, _api: &Arc<Api>) -> Result<Self, Fault> {
        let (parts, body) = request.into_parts();
        let bytes = read_body(&parts.headers, body, BODY_BYTES_MAX).await?;
        Ok(Self {
            body: parse_body(&bytes)?,
            request: seal::sha256(&bytes),
        })
    }
}

/// Who wants to join, as the token and the body together say.
enum Joiner {
    Node(NodeRecord),
    Replica(Member),
}

/// Joins the cluster with a single-use token.
#[utoipa::path(post, path = "/join", tag = "cluster", request_body = JoinRequest,
    responses((status = 200, body = Joined)), security(()))]
async fn join(Shared(api): Shared<Arc<Api>>, asked: Asked) -> Result<Answer<Joined>, Fault> {
    let Asked { body, request } = asked;
    let digest = token_digest(body.token.expose())?;
    api.cluster.barrier().await?;
    let state = api.cluster.state();
    let joiner = joiner(&state, &digest, &body)?;
    let authority = Authority::of_state(&state, &api.root).map_err(unavailable)?;
    let hosts = match &joiner {
        Joiner::Node(_) => Vec::new(),
        Joiner::Replica(member) => vec![host_of(&member.peer_address), host_of(&member.admin_url)],
    };
    let issue = |identity: &PeerIdentity| {
        authority.issue(&body.request_pem, identity, &hosts, clock::now(), LEAF_LIFE)
    };
    // A request that cannot be signed must not use the token up.
    issue(&PeerIdentity::Replica(ReplicaId(0))).map_err(bad_request)?;

    let node = match &joiner {
        Joiner::Node(record) => Some(record.clone()),
        Joiner::Replica(_) => None,
    };
    let head = Head {
        actor: ACTOR.to_owned(),
        if_revision: None,
        idempotency: Some(Idempotency {
            key: hex(&digest),
            request,
            answer: None,
        }),
    };
    let receipt = api.write(head, Command::Join { token: digest, node }).await?;
    let (identity, secrets) = match &joiner {
        Joiner::Node(record) => {
            let identity = PeerIdentity::Node {
                region: record.region.clone(),
                id: record.id.clone(),
            };
            (identity, api.node_secrets(&record.region))
        }
        Joiner::Replica(_) => {
            let id = receipt
                .replica
                .ok_or_else(|| Fault::new(ProblemCode::Internal, "the join reserved no replica id"))?;
            (PeerIdentity::Replica(id), api.replica_secrets())
        }
    };
    let joined = Joined {
        cluster: Text(authority.cluster().clone()),
        certificate_pem: issue(&identity).map_err(unavailable)?,
        authority_pem: authority.certificate_pem().to_owned(),
        replica_id: receipt.replica.map(|id| id.0),
        region: match joiner {
            Joiner::Node(record) => Some(Text(record.region)),
            Joiner::Replica(_) => None,
        },
        members: super::member::replicas(api.cluster.status().members),
        secrets,
    };
    Ok(Answer::of(receipt.revision, joined))
}

fn token_digest(token: &str) -> Result<[u8; 32], Fault> {
    let key = token.rsplit_once('-').map_or("", |(key, _)| key);
    if key_text::is_well_formed(KeyKind::Join, key) {
        return Ok(seal::sha256(token.as_bytes()));
    }
    let detail = "`token` is not a join token: join tokens start with `jt-tw-v1-` and end with 64 hex digits";
    Err(Fault::at(ProblemCode::Invalid, "token", detail))
}

/// The token's kind decides; for a token that is used up, a retry, the body does. The state has the last word.
fn joiner(state: &State, digest: &[u8; 32], body: &JoinRequest) -> Result<Joiner, Fault> {
    let missing = |field: &'static str| {
        let detail = format!("`{field}` is missing: the token is for one");
        Fault::at(ProblemCode::Invalid, field, detail)
    };
    let kind = state.join_tokens.get(digest).map(|token| token.kind.clone());
    let region = match (&kind, &body.node, &body.replica) {
        (Some(command::JoinKind::Replica) | None, None, Some(replica)) => {
            return Ok(Joiner::Replica(Member {
                peer_address: replica.peer_address.clone(),
                admin_url: replica.admin_url.clone(),
            }));
        }
        (Some(command::JoinKind::Replica), _, _) => return Err(missing("replica")),
        (Some(command::JoinKind::Node(region)), _, _) => Some(region.clone()),
        (None, _, _) => None,
    };
    let node = body.node.as_ref().ok_or_else(|| missing("node"))?;
    let known = || state.nodes.get(&node.id.0).map(|record| record.region.clone());
    let region = node
        .region
        .as_ref()
        .map(|region| region.0.clone())
        .or(region)
        .or_else(known);
    let unknown = || {
        Fault::at(
            ProblemCode::Forbidden,
            "token",
            "`token` is unknown or was used; ask for a new one",
        )
    };
    Ok(Joiner::Node(NodeRecord {
        id: node.id.0.clone(),
        region: region.ok_or_else(unknown)?,
        joined_at: clock::now(),
    }))
}

fn bad_request(fault: IdentityFault) -> Fault {
    Fault::at(
        ProblemCode::Invalid,
        "request_pem",
        format!("`request_pem` cannot be signed: {fault}"),
    )
}

fn unavailable(fault: IdentityFault) -> Fault {
    tracing::error!(%fault, "the certificate authority cannot be used");
    Fault::new(
        ProblemCode::Unavailable,
        "this replica cannot issue certificates right now; ask another one",
    )
}

impl Api {
    fn node_secrets(&self, region: &Region) -> JoinSecrets {
        let b64 = |key: &seal::Key| SecretText::new(STANDARD.encode(key.expose()));
        JoinSecrets::Node {
            region_key_b64: b64(&seal::region_key(&self.root, region)),
            peppers: BTreeMap::from([(PEPPER_VERSION, b64(&seal::pepper(&self.root, PEPPER_VERSION)))]),
        }
    }

    fn replica_secrets(&self) -> JoinSecrets {
        JoinSecrets::Replica {
            sealing_key_b64: SecretText::new(STANDARD.encode(self.root.expose())),
        }
    }
}

/// The route of joining.
pub(crate) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(join))
}
