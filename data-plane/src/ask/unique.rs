//! Whether a key occurs twice in one object, anywhere in a body. PURE.
//!
//! Of two values a provider might read the other one than we do, so such a body is refused, with the path of the key. One pass over bytes
//! that are known to be JSON: texts are skipped at the speed of memory, keys are borrowed, and an object of few keys allocates nothing.

use std::borrow::Cow;
use std::collections::HashSet;

use tollway_shared::fault::Fault;

/// Up to so many keys of one object a linear search finds a double faster than a hash set.
const LINEAR_KEYS_MAX: usize = 24;
/// Longest path that is named, in characters; the rest is cut off.
const PATH_CHARS_MAX: usize = 256;

/// Refuses a body in which a key occurs twice in one object. Keys are compared as what they stand for, whatever their escapes.
///
/// - `text`: valid JSON. Anything else is not found out here, but does no harm.
pub(super) fn refuse_duplicates(text: &str) -> Result<(), Fault> {
    let mut scan = Scan {
        text,
        at: 0,
        levels: Vec::with_capacity(16),
        keys: Vec::with_capacity(64),
    };
    scan.run()
}

struct Scan<'a> {
    text: &'a str,
    at: usize,
    /// What is open, outermost first.
    levels: Vec<Level<'a>>,
    /// The keys of all open objects of few keys, outermost first.
    keys: Vec<Cow<'a, str>>,
}

enum Level<'a> {
    Array {
        index: usize,
    },
    Object {
        /// Where its keys begin among all keys.
        from: usize,
        /// Its keys, once there are many.
        many: Option<HashSet<Cow<'a, str>>>,
        /// The key that is being read or was read last, as written.
        key: &'a str,
        /// Whether the next text is a key.
        key_next: bool,
    },
}

impl<'a> Scan<'a> {
    fn run(&mut self) -> Result<(), Fault> {
        while let Some(byte) = self.text.as_bytes().get(self.at) {
            match byte {
                b'"' => self.text()?,
                b'[' => self.levels.push(Level::Array { index: 0 }),
                b'{' => self.levels.push(Level::Object {
                    from: self.keys.len(),
                    many: None,
                    key: "",
                    key_next: true,
                }),
                b']' | b'}' => {
                    if let Some(Level::Object { from, .. }) = self.levels.pop() {
                        self.keys.truncate(from);
                    }
                }
                b',' => match self.levels.last_mut() {
                    Some(Level::Array { index }) => *index += 1,
                    Some(Level::Object { key_next, .. }) => *key_next = true,
                    None => {}
                },
                _ => {}
            }
            self.at += 1;
        }
        Ok(())
    }

    /// Moves on to the closing quote, and notes the text when it is a key.
    fn text(&mut self) -> Result<(), Fault> {
        let from = self.at + 1;
        let end = self.text_end(from);
        self.at = end;
        let Some(Level::Object { key, key_next, .. }) = self.levels.last_mut() else {
            return Ok(());
        };
        if !std::mem::take(key_next) {
            return Ok(());
        }
        *key = self.text.get(from..end).unwrap_or_default();
        let key = if key.contains('\\') {
            Cow::Owned(self.unescaped(from..end)?)
        } else {
            Cow::Borrowed(*key)
        };
        if self.first(key) {
            Ok(())
        } else {
            Err(Fault::DuplicateKey { field: self.path() })
        }
    }

    /// Where the text that begins at `from` has its closing quote. A quote after an odd number of backslashes is part of the text.
    fn text_end(&self, from: usize) -> usize {
        let bytes = self.text.as_bytes();
        let mut searched = from;
        while let Some(found) = bytes.get(searched..).and_then(|rest| memchr::memchr(b'"', rest)) {
            let quote = searched + found;
            let before = bytes[searched..quote].iter().rev();
            if before.take_while(|byte| **byte == b'\\').count() % 2 == 0 {
                return quote;
            }
            searched = quote + 1;
        }
        bytes.len()
    }

    /// Notes a key of the innermost object. False when it was there.
    fn first(&mut self, key: Cow<'a, str>) -> bool {
        let Some(Level::Object { from, many, .. }) = self.levels.last_mut() else {
            return true;
        };
        if let Some(many) = many {
            return many.insert(key);
        }
        if self.keys[*from..].contains(&key) {
            return false;
        }
        self.keys.push(key);
        if self.keys.len() - *from > LINEAR_KEYS_MAX {
            *many = Some(self.keys.drain(*from..).collect());
        }
        true
    }

    fn unescaped(&self, key: std::ops::Range<usize>) -> Result<String, Fault> {
        let quoted = self.text.get(key.start - 1..key.end + 1).unwrap_or_default();
        serde_json::from_str(quoted).map_err(|_| Fault::InvalidJson {
            detail: format!("the key at byte {} is not text", key.start),
        })
    }

    /// The path of the last key of the innermost object.
    fn path(&self) -> String {
        let mut path = String::new();
        for level in &self.levels {
            match level {
                Level::Array { index } => path.push_str(&format!("[{index}]")),
                Level::Object { key, .. } => {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    let plain = serde_json::from_str::<String>(&format!("\"{key}\""));
                    path.push_str(plain.as_deref().unwrap_or(key));
                }
            }
        }
        path.chars().take(PATH_CHARS_MAX).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn double(text: &str) -> Option<String> {
        match refuse_duplicates(text) {
            Ok(()) => None,
            Err(Fault::DuplicateKey { field }) => Some(field),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn doubles_are_found_at_any_depth_and_named() {
        for (text, found) in [
            (r#"{"a":1,"b":{"a":1},"c":[{"a":1},{"a":1}]}"#, None),
            (r#"{"a":"a","b":"a:,{","":"\"a\":1"}"#, None),
            (r#"{"a":1,"a":2}"#, Some("a")),
            (r#"{ "a" : [ 1 , { "b" : {} , "b" : 2 } ] }"#, Some("a[1].b")),
            (r#"{"x":{"é":1,"\u00e9":2}}"#, Some("x.é")),
            (r#"{"a\\":1,"a\"":2,"a":3,"\u0061":4}"#, Some("a")),
            (r#"{"a":{"b":{"c":1}},"b":1,"c":{"d":[],"d":[]}}"#, Some("c.d")),
            (r#"[[{"":1,"":1}]]"#, Some("[0][0].")),
        ] {
            assert_eq!(double(text).as_deref(), found, "{text}");
        }
        let long = format!(r#"{{"{0}":1,"{0}":1}}"#, "x".repeat(9_000));
        assert_eq!(double(&long).unwrap().len(), PATH_CHARS_MAX);
    }

    /// A search through all keys for each key would take minutes.
    #[test]
    fn an_object_of_many_keys_takes_no_longer_per_key() {
        let mut text: String = (0..300_000).map(|n| format!("\"{n}\":{{\"a\":0}},")).collect();
        let whole = format!("{{{}}}", text.trim_end_matches(','));
        assert_eq!(double(&whole), None);
        text.push_str(r#""\u0037":0"#);
        assert_eq!(double(&format!("{{{text}}}")).as_deref(), Some("7"));
    }

    proptest! {
        /// An object has a double when it has more keys as text than as a tree.
        #[test]
        fn it_agrees_with_a_tree(keys in proptest::collection::vec(r#"[abc]|\\\\u006[123]|\\\\\\\\"#, 0..40)) {
            let members: Vec<_> = keys.iter().map(|key| format!("\"{key}\":[\"]\",{{}}]")).collect();
            let text = format!("[{{{}}}]", members.join(","));
            let tree: Value = serde_json::from_str(&text).unwrap();
            let unique = tree[0].as_object().unwrap().len() == keys.len();
            prop_assert_eq!(double(&text).is_none(), unique);
        }

        #[test]
        fn no_text_makes_it_panic(text in r#"[{}\[\]",:\\aé0 ]{0,40}"#) {
            drop(refuse_duplicates(&text));
        }
    }
}
