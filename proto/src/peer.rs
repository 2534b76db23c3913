//! What replicas say to each other: the generated types of `tollway/peer/v1/peer.proto`.

/// Generated from `tollway/peer/v1/peer.proto`.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod v1 {
    tonic::include_proto!("tollway.peer.v1");
}

/// Largest message between replicas.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// A checkpoint travels in chunks of this size.
pub const CHECKPOINT_CHUNK_BYTES: usize = 1 << 20;
