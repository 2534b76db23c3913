//! What the suites share: the real parts they start, and how they wait for them.

pub mod admin;
pub mod aggregates;
pub mod alarms;
pub mod cluster;
mod config;
pub mod events;
pub mod kafka;
mod member;
pub mod network;
pub mod own;
pub mod postgres;
pub mod process;
pub mod small_disk;
pub mod traffic;
pub mod wait;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

/// The scripted provider, a package of its own so that the bench and other processes can use it.
pub use tollway_provider as provider;

/// A text that no other call in any process gives.
pub fn unique(prefix: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos());
    format!(
        "{prefix}-{}-{now:x}-{}",
        std::process::id(),
        COUNT.fetch_add(1, Relaxed)
    )
}

/// Makes ring the process's TLS provider; calling it again does nothing.
pub fn install_crypto() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // An error means that somebody else in this process has chosen already: then that one stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}
