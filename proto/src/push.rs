//! The push stream's generated types, and resources in their stored form.

use serde::{Deserialize, Serialize};
use tollway_shared::seal::sha256;
use tollway_shared::snapshot::{Digest, Resource};

use crate::codec::{self, CodecFault, Kind};

/// Generated from `tollway/push/v1/push.proto` and `account.proto`.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod v1 {
    tonic::include_proto!("tollway.push.v1");
}

/// Resources per chunk stop at this many bytes; one larger resource travels alone.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;
/// Largest message either side accepts.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// How often a replica vouches for what it has sent, as long as a majority confirms it.
pub const HEARTBEAT_MS: u64 = 1_000;
/// A node that has heard nothing for this long connects elsewhere.
pub const SILENCE_MS_MAX: u64 = 5_000;
/// The control plane waits this long for the answer to a full snapshot or a delta.
pub const ANSWER_MS_MAX: u64 = 60_000;

/// Metadata of a refusal that names its cause to programs.
pub const REFUSAL: &str = "tollway-refusal";
/// [`REFUSAL`] of a node that is not registered. Said only of state that a majority confirmed after the node had asked.
pub const NOT_REGISTERED: &str = "not-registered";

/// A resource as it is sent, hashed and written to a node's disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum StoredResource {
    /// The first released shape.
    V1(Resource),
}

/// A resource's stored bytes.
pub fn encode_resource(resource: &Resource) -> Vec<u8> {
    codec::encode(Kind::Resource, &StoredResource::V1(resource.clone()))
}

/// Reads a resource and its digest.
pub fn decode_resource(bytes: &[u8]) -> Result<(Resource, Digest), CodecFault> {
    let StoredResource::V1(resource) = codec::decode(Kind::Resource, bytes)?;
    Ok((resource, sha256(bytes)))
}
