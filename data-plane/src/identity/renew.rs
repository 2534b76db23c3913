//! Renewal: at two thirds of the certificate's life a new key and certificate take its place, without a restart.

use std::path::PathBuf;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tollway_proto::push::v1::RenewRequest;
use tollway_proto::push::v1::push_client::PushClient;
use tollway_shared::time::UnixMillis;

use super::{Identity, IdentityFault, Material, request, tls};
use crate::catalog::Dial;
use crate::clock;

/// Shortest wait between two attempts.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// Longest wait between two attempts.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// One attempt takes no longer.
const RENEW_WITHIN: Duration = Duration::from_secs(10);

/// Renews until `shutdown`, asking `peers` in turn.
pub async fn run(mut identity: Identity, peers: Vec<String>, data_dir: PathBuf, shutdown: CancellationToken) {
    let dial = match identity.dial() {
        Ok(dial) => dial,
        Err(fault) => return tracing::error!(%fault, "the certificate cannot be renewed"),
    };
    let mut failures = 0usize;
    loop {
        let wait = match failures {
            0 => due(&identity.material),
            n => RETRY_MIN.saturating_mul(1 << n.min(6)).min(RETRY_MAX),
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        let Some(peer) = peers.get(failures % peers.len().max(1)) else {
            return tracing::error!("the certificate cannot be renewed: no control peer is configured");
        };
        let renewed = match tokio::time::timeout(RENEW_WITHIN, ask(&dial, peer)).await {
            Ok(renewed) => renewed,
            Err(_) => Err(IdentityFault::Unreachable {
                url: peer.clone(),
                detail: "no answer in time".into(),
            }),
        };
        let used = renewed.and_then(|material| {
            identity.live.swap(&material)?;
            identity.material = material;
            Ok(identity.material.store(&data_dir)?)
        });
        match used {
            Ok(()) => {
                failures = 0;
                tracing::info!("the certificate was renewed");
            }
            Err(fault) => {
                failures += 1;
                tracing::warn!(%fault, failures, "the certificate could not be renewed");
            }
        }
    }
}

async fn ask(dial: &Dial, peer: &str) -> Result<Material, IdentityFault> {
    let (key_pem, request_pem) = request()?;
    let channel = dial(peer).await.map_err(|fault| IdentityFault::Unreachable {
        url: peer.to_owned(),
        detail: fault.to_string(),
    })?;
    let reply = PushClient::new(channel)
        .renew(RenewRequest { request_pem })
        .await
        .map_err(|status| IdentityFault::Refused(status.message().to_owned()))?
        .into_inner();
    Ok(Material {
        certificate_pem: reply.certificate_pem,
        key_pem,
        authority_pem: reply.authority_pem,
    })
}

/// Until two thirds of the life are over; at least [`RETRY_MIN`], so that a wrong clock cannot spin.
fn due(material: &Material) -> Duration {
    let Ok((from, to)) = validity(material) else {
        return RETRY_MIN;
    };
    let due = from.0 + (to.0 - from.0) / 3 * 2;
    Duration::from_millis(u64::try_from(due - clock::now().0).unwrap_or_default()).max(RETRY_MIN)
}

/// From when to when the certificate is valid.
fn validity(material: &Material) -> Result<(UnixMillis, UnixMillis), IdentityFault> {
    let der = tls::certificate(&material.certificate_pem)?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der)
        .map_err(|fault| IdentityFault::Bad(format!("certificate: {fault}")))?;
    let validity = certificate.validity();
    Ok((
        UnixMillis(validity.not_before.timestamp() * 1000),
        UnixMillis(validity.not_after.timestamp() * 1000),
    ))
}
