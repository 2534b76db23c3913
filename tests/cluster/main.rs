//! One file per promise, each shown on a whole cluster: real processes, real Kafka, `kill -9`.
//!
//! The tests share one machine, so they take turns.

mod accounting;
mod books;
mod budget;
mod chaos;
mod cold_start;
mod full_disk;
mod partition;
mod propagation;
mod spend;
mod stranded;
mod world;

use tokio::sync::{Mutex, MutexGuard};

/// One cluster at a time: they would only slow each other down past their deadlines.
pub(crate) async fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}
