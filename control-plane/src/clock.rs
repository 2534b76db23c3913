//! The one reader of wall time in this crate. Waiting uses tokio's clock instead, so that tests can pause it.

use std::time::{SystemTime, UNIX_EPOCH};

use tollway_shared::time::UnixMillis;

/// The wall time now.
pub fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
