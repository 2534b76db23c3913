//! Makes this machine a replica of an existing cluster: a single-use token in, an identity and the sealing key out.
//!
//! The token names the cluster's authority by its hash, so the answer is believed only from a server that this authority vouches
//! for; nothing has to be installed before.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tollway_proto::admin::cluster::{self as json, JoinRequest, JoinSecrets, JoiningReplica};
use tollway_proto::admin::problem::Problem;
use tollway_proto::admin::text::SecretText;
use tollway_proto::private_file;
use tollway_shared::ids::{ClusterId, ReplicaId};
use tollway_shared::key_text::{self, KeyKind};
use tollway_shared::seal::{self, Key};

use super::StartFault;
use super::home::{self, Home, Seed};
use crate::config::Config;
use crate::identity::material::{self, Material};

/// How long the cluster may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// Largest answer.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// A replica that may start.
#[derive(Debug)]
pub struct Joined {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its id.
    pub replica: ReplicaId,
}

/// Asks the cluster at `control` (base URL of any replica's admin API) to let this machine in. The replica does not run when this
/// returns; it becomes a voter after its first start.
pub async fn join(config: &Config, control: &str, token: &str) -> Result<Joined, StartFault> {
    config.check()?;
    let folder = config.data_dir.display().to_string();
    if Home::exists(&config.data_dir) {
        return Err(StartFault::Exists(folder));
    }
    if config.data_dir.join("raft").exists() {
        return Err(StartFault::Unfinished(format!("{folder}/raft")));
    }
    for (key, address) in [
        ("admin.listen", config.admin.listen),
        ("peer.listen", config.peer.listen),
    ] {
        if address.port() == 0 {
            return Err(StartFault::Join(format!(
                "`{key}` has port 0: the others must know where this replica will listen"
            )));
        }
    }
    let pinned = pinned_hash(token)?;
    home::make_folder(&config.data_dir)?;
    let (key_pem, request_pem) = material::request()?;
    let request = JoinRequest {
        token: SecretText::new(token),
        request_pem,
        node: None,
        replica: Some(JoiningReplica {
            peer_address: config.peer_address(config.peer.listen),
            admin_url: config.admin_url(config.admin.listen),
        }),
    };
    let answer = ask(control, pinned, &request).await?;
    let (JoinSecrets::Replica { sealing_key_b64 }, Some(id)) = (&answer.secrets, answer.replica_id) else {
        return Err(StartFault::Join(
            "the token is for a node, not for a replica".into(),
        ));
    };
    let key = sealing_key(sealing_key_b64.expose())?;
    home::write_key(config, &key)?;
    let material = Material {
        certificate_pem: answer.certificate_pem,
        key_pem,
        authority_pem: answer.authority_pem,
    };
    material.store(&config.data_dir)?;
    private_file::write(&config.data_dir.join("ca.pem"), material.authority_pem.as_bytes())?;
    let seeds = answer.members.into_iter().map(|member| Seed {
        id: ReplicaId(member.id),
        peer_address: member.peer_address,
    });
    let home = Home {
        cluster: answer.cluster.0.clone(),
        replica: ReplicaId(id),
        seal_check: home::seal_check(&key),
        voted: false,
        seeds: seeds.collect(),
    };
    home.check_key(&home::read_key(config)?, &home::key_place(config))?;
    home.store(&config.data_dir)?;
    Ok(Joined {
        cluster: answer.cluster.0,
        replica: ReplicaId(id),
    })
}

fn sealing_key(text: &str) -> Result<Key, StartFault> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok();
    bytes
        .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
        .map(Key::new)
        .ok_or_else(|| StartFault::Join("the answer's sealing key is not 32 bytes".into()))
}

/// The hash of the authority's certificate that a token names.
fn pinned_hash(token: &str) -> Result<[u8; 32], StartFault> {
    let wrong = || {
        StartFault::Join(
            "this is not a join token: join tokens start with `jt-tw-v1-` and end with 64 hex digits".into(),
        )
    };
    let (key, hash) = token.rsplit_once('-').ok_or_else(wrong)?;
    if !key_text::is_well_formed(KeyKind::Join, key) {
        return Err(wrong());
    }
    hex::decode(hash)
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(wrong)
}

async fn ask(control: &str, pinned: [u8; 32], request: &JoinRequest) -> Result<json::Joined, StartFault> {
    let fault = |error: reqwest::Error| {
        let text = format!("{:#}", anyhow::Error::from(error.without_url()));
        StartFault::Join(format!("{control}: {text}"))
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| StartFault::Join(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned {
            hash: pinned,
            provider,
        }))
        .with_no_client_auth();
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .timeout(ANSWER_WITHIN)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(fault)?;
    let url = format!("{}/admin/v1/join", control.trim_end_matches('/'));
    let mut answer = client.post(url).json(request).send().await.map_err(fault)?;
    let status = answer.status();
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(fault)? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > ANSWER_BYTES_MAX {
            return Err(StartFault::Join(format!(
                "{control}: the answer is larger than {ANSWER_BYTES_MAX} bytes"
            )));
        }
    }
    if !status.is_success() {
        let detail = serde_json::from_slice::<Problem>(&bytes).map(|problem| problem.detail);
        let detail = detail.unwrap_or_else(|_| format!("{control} answered with status {status}"));
        return Err(StartFault::Join(detail));
    }
    serde_json::from_slice(&bytes).map_err(|error| StartFault::Join(format!("{control}: {error}")))
}

/// Believes a server whose certificate was issued by the authority with this hash, for the name it was asked under.
#[derive(Debug)]
struct Pinned {
    hash: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = intermediates
            .iter()
            .find(|certificate| seal::sha256(certificate) == self.hash);
        let authority = authority.ok_or_else(|| {
            rustls::Error::General("the server is not of the cluster that the token was made for".into())
        })?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let schemes = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, schemes)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_its_authority_and_noise_is_refused() {
        let key = key_text::mint(KeyKind::Join, &[7; 32]);
        let token = format!("{}-{}", key.expose(), "ab".repeat(32));
        assert_eq!(pinned_hash(&token).unwrap(), [0xab; 32]);
        for bad in [
            "",
            "jt-tw-v1-x",
            key.expose().as_str(),
            &format!("{}-{}", key.expose(), "ab".repeat(31)),
        ] {
            assert!(pinned_hash(bad).is_err(), "{bad}");
        }
    }
}
