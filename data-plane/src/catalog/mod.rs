//! What this node routes on: the live snapshot, the stops that are ahead of it, and the secrets to read it with.
//!
//! | file | what |
//! |---|---|
//! | [`Live`] | the snapshot in force, behind an atomic swap |
//! | `opened` | the snapshot's provider credentials, opened |
//! | [`intake`] | pure: what to do with each message of the push stream |
//! | `freshness` | pure: how far behind what is in force may be |
//! | [`subscribe`], `form`, `copying` | the stream to whichever replica answers, and the order disk → swap → answer |
//! | `removal` | a node that is not registered any more takes no requests |
//! | [`recall`] | recalls of leases, on their way to the task that has them |
//! | [`disk`], [`trial`] | the last good snapshots; which of them a process may not have survived |

mod copying;
pub mod disk;
mod form;
mod freshness;
pub mod intake;
mod live;
mod opened;
pub mod recall;
mod removal;
pub mod subscribe;
pub mod trial;

pub use live::{Live, NodeSecrets, Stops};
pub use opened::secret_header;
pub use subscribe::{Config, Dial, run};

#[cfg(test)]
mod samples;
