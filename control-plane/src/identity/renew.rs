//! Renewal: at two thirds of a certificate's life a new key and certificate take its place, without a restart.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tollway_shared::time::UnixMillis;

use super::{IdentityFault, LiveCertificate, Material, material};

/// Shortest wait between two attempts.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// Longest wait between two attempts.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// What a renewal works on.
pub struct Renewal {
    /// Where the certificate is kept.
    pub data_dir: PathBuf,
    /// Where it is used.
    pub live: Arc<LiveCertificate>,
    /// What is in use now.
    pub material: Material,
    /// The reader of wall time.
    pub now: fn() -> UnixMillis,
}

impl Renewal {
    /// Renews until `shutdown`. `issue` turns a certificate request (PEM) into a certificate (PEM).
    pub async fn run<F, I>(mut self, issue: I, shutdown: CancellationToken)
    where
        I: Fn(String) -> F,
        F: Future<Output = Result<String, IdentityFault>>,
    {
        let mut failures = 0;
        loop {
            let wait = match failures {
                0 => self.wait(),
                n => RETRY_MIN.saturating_mul(1 << n.min(6)).min(RETRY_MAX),
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            match self.once(&issue).await {
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

    async fn once<F, I>(&mut self, issue: &I) -> Result<(), IdentityFault>
    where
        I: Fn(String) -> F,
        F: Future<Output = Result<String, IdentityFault>>,
    {
        let (key_pem, request) = material::request()?;
        let next = Material {
            certificate_pem: issue(request).await?,
            key_pem,
            authority_pem: self.material.authority_pem.clone(),
        };
        self.live.swap(&next)?;
        next.store(&self.data_dir)?;
        self.material = next;
        Ok(())
    }

    /// Until two thirds of the life are over; at least [`RETRY_MIN`], so that a wrong clock cannot spin.
    fn wait(&self) -> Duration {
        let Ok((from, to)) = material::validity(&self.material) else {
            return RETRY_MIN;
        };
        let due = from.0 + (to.0 - from.0) / 3 * 2;
        Duration::from_millis(u64::try_from(due - (self.now)().0).unwrap_or_default()).max(RETRY_MIN)
    }
}
