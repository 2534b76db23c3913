//! The text form of keys: `sk-tw-v1-` + 43 base62 digits (256 random bits) + 6 base62 digits of CRC-32.
//!
//! The checksum covers the random part only, so a scanner can tell a key from noise without asking anybody.

use crate::secret::Secret;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const ENTROPY_DIGITS: usize = 43;
const CHECK_DIGITS: usize = 6;

/// What a key opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// The public API of nodes.
    Inference,
    /// The admin API of the control plane.
    Admin,
    /// One join of one replica or node.
    Join,
}

impl KeyKind {
    /// The text before the random part.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Inference => "sk-tw-v1-",
            Self::Admin => "ak-tw-v1-",
            Self::Join => "jt-tw-v1-",
        }
    }
}

/// Writes a new key. `entropy` must come from the operating system's generator.
pub fn mint(kind: KeyKind, entropy: &[u8; 32]) -> Secret<String> {
    let random = base62(entropy, ENTROPY_DIGITS);
    let check = base62(&crc32fast::hash(random.as_bytes()).to_be_bytes(), CHECK_DIGITS);
    Secret::new(format!("{}{random}{check}", kind.prefix()))
}

/// Whether a text has the form of a key of this kind, checksum included.
pub fn is_well_formed(kind: KeyKind, text: &str) -> bool {
    let Some(rest) = text.strip_prefix(kind.prefix()) else {
        return false;
    };
    if rest.len() != ENTROPY_DIGITS + CHECK_DIGITS || !rest.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return false;
    }
    let (random, check) = rest.split_at(ENTROPY_DIGITS);
    base62(&crc32fast::hash(random.as_bytes()).to_be_bytes(), CHECK_DIGITS) == check
}

/// The last four characters, for lists.
pub fn last4(text: &str) -> String {
    text.get(text.len().saturating_sub(4)..)
        .unwrap_or_default()
        .to_owned()
}

/// A join token and the certificate authority it pins: `jt-tw-v1-<random><check>-<64 hex digits>`.
///
/// The hex digits are SHA-256 of the authority's certificate (DER), so that a joiner trusts the right cluster before it sends
/// anything. `digest` of [`crate::seal::sha256`] over the whole text is what the cluster stores.
pub fn join_token(entropy: &[u8; 32], authority: &[u8; 32]) -> Secret<String> {
    let token = mint(KeyKind::Join, entropy);
    Secret::new(format!("{}-{}", token.expose(), hex::encode(authority)))
}

/// The certificate authority's hash that a join token pins, when the text is a join token.
pub fn join_token_authority(text: &str) -> Option<[u8; 32]> {
    let (token, authority) = text.rsplit_once('-')?;
    let mut hash = [0; 32];
    hex::decode_to_slice(authority, &mut hash).ok()?;
    is_well_formed(KeyKind::Join, token).then_some(hash)
}

/// Big-endian bytes as base62, padded with `0` on the left to `digits`.
fn base62(bytes: &[u8], digits: usize) -> String {
    let mut number = bytes.to_vec();
    let mut out = vec![b'0'; digits];
    for slot in out.iter_mut().rev() {
        let mut rest = 0u32;
        for byte in &mut number {
            let value = rest * 256 + u32::from(*byte);
            *byte = (value / 62) as u8; // value < 62 * 256, so the quotient fits
            rest = value % 62;
        }
        *slot = ALPHABET[rest as usize];
    }
    String::from_utf8(out).expect("the alphabet is ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minted_key_is_well_formed_and_one_changed_digit_is_noticed() {
        let key = mint(KeyKind::Inference, &[0xab; 32]);
        assert_eq!(key.expose().len(), 9 + 49);
        assert!(is_well_formed(KeyKind::Inference, key.expose()));
        assert!(!is_well_formed(KeyKind::Admin, key.expose()));
        for place in 9..key.expose().len() {
            let mut changed = key.expose().clone().into_bytes();
            changed[place] = if changed[place] == b'x' { b'y' } else { b'x' };
            assert!(
                !is_well_formed(KeyKind::Inference, &String::from_utf8(changed).unwrap()),
                "digit {place}"
            );
        }
    }

    #[test]
    fn the_checksum_is_the_published_scheme() {
        // Known pair of the scheme: CRC-32/IEEE over the random part, base62, six digits.
        let random = "zQWBuTSOoRi4A9spHcVY5ncnsDkxkJ";
        assert_eq!(
            base62(&crc32fast::hash(random.as_bytes()).to_be_bytes(), 6),
            "0mLq17"
        );
    }

    #[test]
    fn a_join_token_carries_the_authority_it_pins() {
        let text = join_token(&[1; 32], &[0xfe; 32]);
        assert_eq!(join_token_authority(text.expose()), Some([0xfe; 32]));
        let (token, _) = text.expose().rsplit_once('-').unwrap();
        for bad in [
            "",
            token,
            &text.expose()[..100],
            &text.expose().replace("jt-", "ak-"),
        ] {
            assert_eq!(join_token_authority(bad), None, "{bad}");
        }
    }

    #[test]
    fn all_ones_fit_in_43_digits() {
        assert_ne!(&base62(&[0xff; 32], 43)[..1], "0");
    }
}
