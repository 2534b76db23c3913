//! What this node routes on: the live snapshot, the stops that are ahead of it, and the secrets to read it with.

mod live;

pub use live::{Live, NodeSecrets, Stops};
