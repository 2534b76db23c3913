//! Halves of surrogate pairs: `\ud83d` without its other half is JSON by its grammar and no text. PURE.
//!
//! Some providers take it, some answer with an error of their own, and a dialect that is translated cannot write it: so it is refused
//! before any of them is asked.

use memchr::memmem;
use tollway_shared::fault::Fault;

/// Refuses text with half of a surrogate pair in it. Most bodies are known to have none after a search at the speed of memory.
///
/// - `text`: valid JSON.
pub(super) fn refuse_halves(text: &str) -> Result<(), Fault> {
    let bytes = text.as_bytes();
    if memmem::find(bytes, b"\\ud").is_none() && memmem::find(bytes, b"\\uD").is_none() {
        return Ok(());
    }
    match half(bytes) {
        None => Ok(()),
        Some(at) => Err(Fault::InvalidJson {
            detail: format!(
                "`{}` at byte {at} is half of a character; it needs the other half of its surrogate pair",
                &text[at..at + UNIT]
            ),
        }),
    }
}

/// Bytes of `\uXXXX`.
const UNIT: usize = 6;

/// Where the first half without the other one is.
fn half(bytes: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(found) = memchr::memchr(b'\\', &bytes[from..]) {
        let at = from + found;
        from = match unit(bytes, at) {
            Some(0xd800..=0xdbff) => match unit(bytes, at + UNIT) {
                Some(0xdc00..=0xdfff) => at + 2 * UNIT,
                _ => return Some(at),
            },
            Some(0xdc00..=0xdfff) => return Some(at),
            Some(_) => at + UNIT,
            None => at + 2, // another escape
        };
        if from >= bytes.len() {
            break;
        }
    }
    None
}

/// The code unit that is written as `\uXXXX` at `at`.
fn unit(bytes: &[u8], at: usize) -> Option<u16> {
    let digits = bytes.get(at..at + UNIT)?.strip_prefix(b"\\u")?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_a_pair_is_found_and_a_whole_one_is_not() {
        for (text, at) in [
            (r#""plain""#, None),
            (r#""\ud83d\ude00""#, None),
            (r#""\uD83D\uDE00 \u00e9""#, None),
            (r#""\\ud83d""#, None),
            (r#""\\\ud83d""#, Some(3)),
            (r#""\ud83d""#, Some(1)),
            (r#""x\ude00""#, Some(2)),
            (r#""\ud83d\ud83d\ude00""#, Some(1)),
            (r#""\ud83d\n""#, Some(1)),
            (r#""\n\ud83d\u00e9""#, Some(3)),
        ] {
            assert_eq!(half(text.as_bytes()), at, "{text}");
            assert_eq!(refuse_halves(text).is_err(), at.is_some(), "{text}");
            if at.is_some() {
                assert!(
                    refuse_halves(text).unwrap_err().to_string().contains("\\u"),
                    "{text}"
                );
            }
        }
    }
}
