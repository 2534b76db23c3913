//! The state hash: what two sides compare to know that they hold the same resources.

use std::fmt;

use serde::{Deserialize, Serialize};

/// SHA-256 of a resource's stored bytes.
pub type Digest = [u8; 32];

/// The sum of all resources' digests modulo 2^256, as four little-endian words.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StateHash([u64; 4]);

impl StateHash {
    /// Counts a resource in.
    pub fn add(&mut self, digest: &Digest) {
        let mut carry = false;
        for (word, part) in self.0.iter_mut().zip(words(digest)) {
            let (sum, over) = word.overflowing_add(part);
            let (sum, over_carry) = sum.overflowing_add(u64::from(carry));
            *word = sum;
            carry = over || over_carry;
        }
    }

    /// Counts a resource out.
    pub fn remove(&mut self, digest: &Digest) {
        let mut borrow = false;
        for (word, part) in self.0.iter_mut().zip(words(digest)) {
            let (rest, under) = word.overflowing_sub(part);
            let (rest, under_borrow) = rest.overflowing_sub(u64::from(borrow));
            *word = rest;
            borrow = under || under_borrow;
        }
    }

    /// 32 bytes, for the wire.
    pub fn to_bytes(self) -> [u8; 32] {
        let mut out = [0; 32];
        for (slot, word) in out.chunks_exact_mut(8).zip(self.0) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    /// Reads the wire form.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 32] = bytes.try_into().ok()?;
        let mut hash = Self::default();
        hash.add(bytes);
        Some(hash)
    }
}

impl fmt::Debug for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_bytes()
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn words(digest: &Digest) -> impl Iterator<Item = u64> + '_ {
    digest
        .chunks_exact(8)
        .map(|part| u64::from_le_bytes(part.try_into().expect("chunks of eight")))
}
