//! The stored form: an envelope around bincode, and the only place that calls bincode.
//!
//! Layout: `TW`, codec (1 = bincode 2 standard), kind, CRC-32 of the payload (big endian), payload length (big endian),
//! payload. bincode is not self-describing, so everything stored is an enum of versions: a released struct is never edited, the
//! next one is a new variant. Never used on a public API, on Kafka, or for bytes from a peer that is not authenticated.

use serde::Serialize;
use serde::de::DeserializeOwned;

const MAGIC: [u8; 2] = *b"TW";
const CODEC: u8 = 1;
/// Bytes before the payload.
pub const HEADER_BYTES: usize = 12;
/// Largest payload that is decoded: a checkpoint of the largest state this is built for.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 30;

/// What a stored value is. The numbers are on disk: never change or reuse one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A Raft log entry.
    LogEntry = 1,
    /// A vote, a committed id, a membership: the Raft log's own values.
    RaftMeta = 2,
    /// The replicated state.
    Checkpoint = 3,
    /// A message between replicas.
    Peer = 4,
    /// A resource of a snapshot.
    Resource = 5,
    /// A usage record in a node's spool.
    Spool = 6,
    /// A snapshot on a node's disk.
    SnapshotFile = 7,
}

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecFault {
    /// Fewer bytes than the header or the stated length needs.
    #[error("the stored value is cut short")]
    Short,
    /// Not one of our values, or of another codec.
    #[error("the stored value has an unknown header")]
    Header,
    /// Another kind than asked for.
    #[error("the stored value is of kind {found}, not {expected}")]
    Kind {
        /// What it is.
        found: u8,
        /// What it should be.
        expected: u8,
    },
    /// The checksum does not match.
    #[error("the stored value is damaged: its checksum does not match")]
    Checksum,
    /// The payload does not decode.
    #[error("the stored value does not decode: {0}")]
    Payload(String),
}

/// Room for a value that is not small, so that it is not moved again and again while it grows.
const ROOM_BYTES: usize = 3 << 10;

/// Writes a value in the stored form.
pub fn encode<T: Serialize>(kind: Kind, value: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(ROOM_BYTES);
    out.resize(HEADER_BYTES, 0);
    bincode::serde::encode_into_std_write(value, &mut out, bincode::config::standard())
        .expect("our types serialize, and a Vec takes every byte");
    let payload = &out[HEADER_BYTES..];
    let (sum, length) = (crc32fast::hash(payload), payload.len() as u32);
    out[..2].copy_from_slice(&MAGIC);
    out[2] = CODEC;
    out[3] = kind as u8;
    out[4..8].copy_from_slice(&sum.to_be_bytes());
    out[8..12].copy_from_slice(&length.to_be_bytes());
    out
}

/// The length of the value that starts at `bytes`, header included, when the header is there and is ours.
pub fn frame_length(bytes: &[u8]) -> Result<usize, CodecFault> {
    let header = bytes.get(..HEADER_BYTES).ok_or(CodecFault::Short)?;
    if header[..2] != MAGIC || header[2] != CODEC {
        return Err(CodecFault::Header);
    }
    let length = u32::from_be_bytes([header[8], header[9], header[10], header[11]]) as usize;
    if length > PAYLOAD_BYTES_MAX {
        Err(CodecFault::Header)
    } else {
        Ok(HEADER_BYTES + length)
    }
}

/// Reads a value that [`encode`] wrote. Bytes after it are an error.
pub fn decode<T: DeserializeOwned>(kind: Kind, bytes: &[u8]) -> Result<T, CodecFault> {
    let payload = checked(kind, bytes)?;
    let (value, read) = decode_payload(payload)?;
    if read == payload.len() {
        Ok(value)
    } else {
        Err(CodecFault::Payload("bytes after the value".into()))
    }
}

/// Reads the start of a value that [`encode`] wrote: `T` has the first fields of its type. All of it is checked as [`decode`] does.
pub fn decode_start<T: DeserializeOwned>(kind: Kind, bytes: &[u8]) -> Result<T, CodecFault> {
    decode_payload(checked(kind, bytes)?).map(|(value, _)| value)
}

fn decode_payload<T: DeserializeOwned>(payload: &[u8]) -> Result<(T, usize), CodecFault> {
    let config = bincode::config::standard().with_limit::<PAYLOAD_BYTES_MAX>();
    bincode::serde::decode_from_slice(payload, config).map_err(|e| CodecFault::Payload(e.to_string()))
}

/// The payload of one whole value of this kind.
fn checked(kind: Kind, bytes: &[u8]) -> Result<&[u8], CodecFault> {
    let length = frame_length(bytes)?;
    match bytes.len().cmp(&length) {
        std::cmp::Ordering::Less => return Err(CodecFault::Short),
        std::cmp::Ordering::Greater => return Err(CodecFault::Payload("bytes after the end".into())),
        std::cmp::Ordering::Equal => {}
    }
    if bytes[3] != kind as u8 {
        return Err(CodecFault::Kind {
            found: bytes[3],
            expected: kind as u8,
        });
    }
    let payload = &bytes[HEADER_BYTES..];
    if crc32fast::hash(payload).to_be_bytes() != bytes[4..8] {
        return Err(CodecFault::Checksum);
    }
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_survives_and_every_single_bit_flip_is_noticed() {
        let value = (7u64, "text".to_owned(), vec![1u8, 2, 3]);
        let bytes = encode(Kind::Spool, &value);
        assert_eq!(
            decode::<(u64, String, Vec<u8>)>(Kind::Spool, &bytes).unwrap(),
            value
        );
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(
                decode::<(u64, String, Vec<u8>)>(Kind::Spool, &flipped).is_err(),
                "bit {bit}"
            );
        }
        for cut in 0..bytes.len() {
            assert!(
                decode::<(u64, String, Vec<u8>)>(Kind::Spool, &bytes[..cut]).is_err(),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn a_value_of_another_kind_is_refused() {
        let bytes = encode(Kind::Spool, &1u8);
        assert_eq!(
            decode::<u8>(Kind::Peer, &bytes),
            Err(CodecFault::Kind {
                found: 6,
                expected: 4
            })
        );
    }
}
