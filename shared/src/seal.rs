//! Sealing secrets at rest, and deriving keys from the cluster's sealing key.
//!
//! AES-256-GCM with additional data that names the owner, so that a ciphertext moved to another record does not open. The
//! nonce is derived from key, additional data and plaintext (a synthetic nonce): every replica that re-seals the same
//! secret for the same region gets the same bytes, and a nonce repeats only for the very same message.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::{digest, hkdf, hmac};
use serde::{Deserialize, Serialize};

use crate::secret::Secret;

/// A 256-bit key.
pub type Key = Secret<[u8; 32]>;

/// A sealed secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// The nonce.
    pub nonce: [u8; NONCE_LEN],
    /// Ciphertext and tag.
    pub ciphertext: Vec<u8>,
}

/// The ciphertext does not open: another key, another owner, or damaged bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the sealed secret does not open with this key")]
pub struct SealFault;

fn cipher(key: &Key) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.expose()).expect("a 32-byte key fits AES-256"))
}

/// Seals `plain` for the owner named by `aad`.
pub fn seal(key: &Key, aad: &[u8], plain: &[u8]) -> Sealed {
    let mac = hmac::Key::new(hmac::HMAC_SHA256, derive(key, "seal-nonce").expose());
    let mut message = hmac::Context::with_key(&mac);
    message.update(&(aad.len() as u64).to_be_bytes());
    message.update(aad);
    message.update(plain);
    let mut nonce = [0; NONCE_LEN];
    nonce.copy_from_slice(&message.sign().as_ref()[..NONCE_LEN]);
    let mut ciphertext = plain.to_vec();
    cipher(key)
        .seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(aad),
            &mut ciphertext,
        )
        .expect("secrets are far below the cipher's length limit");
    Sealed { nonce, ciphertext }
}

/// Opens what [`seal`] made with the same key and `aad`.
pub fn open(key: &Key, aad: &[u8], sealed: &Sealed) -> Result<Secret<Vec<u8>>, SealFault> {
    let mut bytes = sealed.ciphertext.clone();
    let nonce = Nonce::assume_unique_for_key(sealed.nonce);
    let length = cipher(key)
        .open_in_place(nonce, Aad::from(aad), &mut bytes)
        .map_err(|_| SealFault)?
        .len();
    bytes.truncate(length);
    Ok(Secret::new(bytes))
}

/// Derives the key for one purpose from a root key (HKDF-SHA256; the label is the info input).
pub fn derive(root: &Key, label: &str) -> Key {
    let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"tollway");
    let info = [label.as_bytes()];
    let mut out = [0; 32];
    salt.extract(root.expose())
        .expand(&info, hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(&mut out))
        .expect("32 bytes is one HKDF block");
    Secret::new(out)
}

/// The key that nodes of a region open pushed credentials with.
pub fn region_key(root: &Key, region: &crate::ids::Region) -> Key {
    derive(root, &format!("region:{region}"))
}

/// The pepper of a version, under which API keys are digested.
pub fn pepper(root: &Key, version: u32) -> Key {
    derive(root, &format!("api-key-pepper:{version}"))
}

/// HMAC-SHA256 of a key's text under a pepper.
pub fn key_digest(pepper: &Key, text: &str) -> [u8; 32] {
    let key = hmac::Key::new(hmac::HMAC_SHA256, pepper.expose());
    let mut out = [0; 32];
    out.copy_from_slice(hmac::sign(&key, text.as_bytes()).as_ref());
    out
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_secret_opens_only_for_its_owner_and_key() {
        let key = Key::new([7; 32]);
        let sealed = seal(&key, b"owner", b"hunter2");
        assert_eq!(open(&key, b"owner", &sealed).unwrap().expose(), b"hunter2");
        assert_eq!(open(&key, b"other", &sealed), Err(SealFault));
        assert_eq!(open(&Key::new([8; 32]), b"owner", &sealed), Err(SealFault));
        let mut torn = sealed.clone();
        torn.ciphertext.truncate(3);
        assert_eq!(open(&key, b"owner", &torn), Err(SealFault));
    }

    #[test]
    fn sealing_twice_gives_the_same_bytes_and_other_messages_other_nonces() {
        let key = Key::new([7; 32]);
        assert_eq!(seal(&key, b"a", b"x"), seal(&key, b"a", b"x"));
        assert_ne!(seal(&key, b"a", b"x").nonce, seal(&key, b"a", b"y").nonce);
        assert_ne!(seal(&key, b"a", b"xy").nonce, seal(&key, b"ax", b"y").nonce);
    }
}
