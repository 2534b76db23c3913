//! `#[serde(with = "blob")]` for stored bytes: the same form that serde gives a `Vec<u8>`, written and read as a whole.
//!
//! Without it serde goes through the bytes one by one, which was most of what writing a usage record cost.

use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserializer, Serializer};

/// Room that is made for bytes whose number is only claimed.
const CLAIM_BYTES_MAX: usize = 64 << 10;

/// Writes length and bytes.
pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(bytes)
}

/// Reads what [`serialize`] wrote.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    deserializer.deserialize_byte_buf(Blob)
}

struct Blob;

impl<'de> Visitor<'de> for Blob {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
        Ok(bytes.to_vec())
    }

    fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
        Ok(bytes)
    }

    /// Formats without bytes of their own, such as JSON.
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<u8>, A::Error> {
        let mut bytes = Vec::with_capacity(seq.size_hint().unwrap_or(0).min(CLAIM_BYTES_MAX));
        while let Some(byte) = seq.next_element()? {
            bytes.push(byte);
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use crate::codec::{self, Kind};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Plain(Vec<u8>, u8);

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Whole(#[serde(with = "super")] Vec<u8>, u8);

    #[test]
    fn a_blob_has_the_stored_form_of_a_list_of_bytes() {
        for length in [0, 1, 250, 251, 70_000] {
            let bytes: Vec<u8> = (0..length).map(|n| (n % 256) as u8).collect();
            let plain = codec::encode(Kind::Spool, &Plain(bytes.clone(), 7));
            assert_eq!(
                plain,
                codec::encode(Kind::Spool, &Whole(bytes.clone(), 7)),
                "{length}"
            );
            assert_eq!(
                codec::decode(Kind::Spool, &plain),
                Ok(Whole(bytes, 7)),
                "{length}"
            );
        }
    }
}
