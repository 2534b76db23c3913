//! Signatures of webhooks: Standard Webhooks 1.0.0, symmetric (`v1`).
//!
//! Signed is `{id}.{timestamp}.{body}` with HMAC-SHA256. Secrets are `whsec_` and base64 of 24 to 64 bytes. Times are given from
//! outside.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;

use crate::secret::Secret;
use crate::time::UnixMillis;

/// What a secret's text starts with.
const SECRET_PREFIX: &str = "whsec_";
/// Bytes of a secret.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// How far from now a timestamp may lie.
pub const TOLERANCE_MS: i64 = 5 * 60 * 1_000;
/// Longest id.
pub const ID_BYTES_MAX: usize = 200;
/// Most signatures that are looked at.
const SIGNATURES_MAX: usize = 16;

/// Why a webhook is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureFault {
    /// The id.
    #[error("`webhook-id` must have 1 to {ID_BYTES_MAX} characters and no `.`")]
    Id,
    /// The timestamp.
    #[error("`webhook-timestamp` must be seconds since 1970, not more than 5 minutes from now")]
    Timestamp,
    /// The signature.
    #[error("`webhook-signature` has no `v1` signature of this body by a secret that is known here")]
    Signature,
}

/// A text that is no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be `whsec_` and base64 of 24 to 64 bytes")]
pub struct SecretFault;

/// The key in a secret's text.
pub fn secret(text: &str) -> Result<Secret<Vec<u8>>, SecretFault> {
    let encoded = text.strip_prefix(SECRET_PREFIX).ok_or(SecretFault)?;
    let key = STANDARD.decode(encoded).map_err(|_| SecretFault)?;
    if SECRET_BYTES.contains(&key.len()) {
        Ok(Secret::new(key))
    } else {
        Err(SecretFault)
    }
}

/// What a sender says about a body.
#[derive(Debug, Clone, Copy)]
pub struct Signed<'a> {
    /// `webhook-id`.
    pub id: &'a str,
    /// `webhook-timestamp`.
    pub timestamp: &'a str,
    /// `webhook-signature`: a list, for changes of secrets.
    pub signature: &'a str,
    /// The body, as it came.
    pub body: &'a [u8],
}

impl Signed<'_> {
    /// Whether one of the secrets has signed it, not long ago.
    pub fn check<'k>(
        &self,
        secrets: impl Iterator<Item = &'k Secret<Vec<u8>>>,
        now: UnixMillis,
    ) -> Result<(), SignatureFault> {
        let printable = self
            .id
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'.');
        if self.id.is_empty() || self.id.len() > ID_BYTES_MAX || !printable {
            return Err(SignatureFault::Id);
        }
        let seconds: i64 = self.timestamp.parse().map_err(|_| SignatureFault::Timestamp)?;
        let at = seconds.checked_mul(1_000).ok_or(SignatureFault::Timestamp)?;
        if at.abs_diff(now.0) > TOLERANCE_MS.unsigned_abs() {
            return Err(SignatureFault::Timestamp);
        }
        let text = [
            self.id.as_bytes(),
            b".",
            self.timestamp.as_bytes(),
            b".",
            self.body,
        ]
        .concat();
        for secret in secrets {
            let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose());
            let given = self.signature.split(' ').take(SIGNATURES_MAX);
            let macs = given.filter_map(|one| STANDARD.decode(one.strip_prefix("v1,")?).ok());
            for mac in macs {
                if hmac::verify(&key, &text, &mac).is_ok() {
                    return Ok(()); // compared in constant time
                }
            }
        }
        Err(SignatureFault::Signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Made with the reference library of the standard's authors in Python.
    const SECRET: &str = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    const BODY: &[u8] = br#"{"type":"budget.threshold.crossed","timestamp":"2026-11-22T00:00:00Z","data":{"budget_id":"bud_1","percent":80}}"#;
    const GOOD: Signed<'_> = Signed {
        id: "msg_01TESTVECTOR0001",
        timestamp: "1795305600",
        signature: "v1,c3uzVWFhPHJRq43NR4eKVSP+faIfGG5k6EArVYYmtd4=",
        body: BODY,
    };
    const AT: UnixMillis = UnixMillis(1_795_305_600_000);

    fn check(signed: Signed<'_>, now: UnixMillis) -> Result<(), SignatureFault> {
        let (other, right) = (Secret::new(vec![7; 32]), secret(SECRET).unwrap());
        signed.check([other, right].iter(), now)
    }

    #[test]
    fn the_vector_of_the_reference_library_is_believed() {
        assert_eq!(check(GOOD, AT), Ok(()));
        let list = format!("v1a,AAAA v1,bm90IGl0 {}", GOOD.signature);
        assert_eq!(
            check(
                Signed {
                    signature: &list,
                    ..GOOD
                },
                AT
            ),
            Ok(())
        );
    }

    #[test]
    fn another_body_id_time_or_secret_is_not() {
        let changed = [BODY, b" "].concat();
        for (signed, fault) in [
            (
                Signed {
                    body: &changed,
                    ..GOOD
                },
                SignatureFault::Signature,
            ),
            (Signed { id: "msg_2", ..GOOD }, SignatureFault::Signature),
            (Signed { id: "msg.2", ..GOOD }, SignatureFault::Id),
            (Signed { id: "", ..GOOD }, SignatureFault::Id),
            (
                Signed {
                    timestamp: "1795305601",
                    ..GOOD
                },
                SignatureFault::Signature,
            ),
            (
                Signed {
                    timestamp: "soon",
                    ..GOOD
                },
                SignatureFault::Timestamp,
            ),
            (
                Signed {
                    timestamp: "9223372036854775807",
                    ..GOOD
                },
                SignatureFault::Timestamp,
            ),
            (
                Signed {
                    signature: "",
                    ..GOOD
                },
                SignatureFault::Signature,
            ),
            (
                Signed {
                    signature: &GOOD.signature[3..],
                    ..GOOD
                },
                SignatureFault::Signature,
            ),
        ] {
            assert_eq!(check(signed, AT), Err(fault), "{signed:?}");
        }
        let none: [Secret<Vec<u8>>; 0] = [];
        assert_eq!(GOOD.check(none.iter(), AT), Err(SignatureFault::Signature));
    }

    #[test]
    fn a_time_five_minutes_off_is_taken_and_one_beyond_is_not() {
        for (off, taken) in [(TOLERANCE_MS, true), (TOLERANCE_MS + 1, false)] {
            for now in [AT.plus_ms(off), AT.plus_ms(-off)] {
                assert_eq!(check(GOOD, now).is_ok(), taken, "{off}");
            }
        }
    }

    #[test]
    fn a_secret_has_its_prefix_and_enough_bytes() {
        assert!(secret(SECRET).is_ok());
        for wrong in ["", "whsec_", "whsec_c2hvcnQ=", "whsec_!!!", &SECRET[6..]] {
            assert!(secret(wrong).is_err(), "{wrong}");
        }
    }
}
