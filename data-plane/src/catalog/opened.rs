//! Provider credentials of the snapshot in use, opened, as headers: made once per seal, wiped when the snapshot has them no more.
//! A version is not enough to know one by: a credential that is removed and made again starts at the first.
//!
//! A header shares its bytes with those in requests on their way; the last of them wipes. What hyper copies into a connection's
//! buffer is its own.

use std::collections::HashMap;

use bytes::Bytes;
use http::HeaderValue;
use tollway_shared::catalog::{AuthScheme, Credential};
use tollway_shared::ids::{CredentialId, ProviderId};
use tollway_shared::seal::Sealed;
use tollway_shared::snapshot::Snapshot;
use zeroize::Zeroizing;

/// Headers by whose credential it is.
#[derive(Debug, Clone, Default)]
pub(super) struct Opened(HashMap<(ProviderId, CredentialId), Header>);

#[derive(Debug, Clone)]
struct Header {
    sealed: Sealed,
    auth: AuthScheme,
    value: HeaderValue,
}

impl Opened {
    /// The header made of this secret for this scheme before.
    pub(super) fn get(&self, credential: &Credential, auth: AuthScheme) -> Option<HeaderValue> {
        let header = self.0.get(&key(credential))?;
        (header.sealed == credential.sealed && header.auth == auth).then(|| header.value.clone())
    }

    /// These, with one more: unless `snapshot` does not have it, or not any more.
    pub(super) fn with(
        &self,
        credential: &Credential,
        auth: AuthScheme,
        value: &HeaderValue,
        snapshot: &Snapshot,
    ) -> Self {
        let mut opened = self.clone();
        let header = Header {
            sealed: credential.sealed.clone(),
            auth,
            value: value.clone(),
        };
        opened.0.insert(key(credential), header);
        opened.kept(snapshot)
    }

    /// Those that `snapshot` has.
    pub(super) fn kept(mut self, snapshot: &Snapshot) -> Self {
        self.0.retain(|(provider, id), header| {
            let credentials = snapshot.credentials.get(provider);
            let credential = credentials.and_then(|all| all.get(id.as_str()));
            credential.is_some_and(|credential| credential.sealed == header.sealed)
        });
        self
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

fn key(credential: &Credential) -> (ProviderId, CredentialId) {
    (credential.provider.clone(), credential.id.clone())
}

/// A secret as a header whose bytes are wiped with its last copy. `None`: it has bytes that no header may have.
pub fn secret_header(prefix: &[u8], secret: &[u8]) -> Option<HeaderValue> {
    // All of it from the start: a buffer that grows leaves what it had behind.
    let mut text = Zeroizing::new(Vec::with_capacity(prefix.len() + secret.len()));
    text.extend_from_slice(prefix);
    text.extend_from_slice(secret);
    shared(text)
}

fn shared(text: impl AsRef<[u8]> + Send + 'static) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(text)).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tollway_shared::snapshot::Resource;
    use tollway_shared::time::UnixMillis;

    use super::super::{Live, NodeSecrets};
    use super::*;
    use crate::clock;

    /// - `seal`: which of its secrets it holds.
    fn credential(provider: &str, version: u32, seal: u8) -> Credential {
        Credential {
            id: CredentialId::trusted("main"),
            provider: ProviderId::trusted(provider),
            version,
            owner: None,
            regions: Vec::new(),
            sealed: Sealed {
                nonce: [seal; 12],
                ciphertext: Vec::new(),
            },
            created_at: UnixMillis(0),
        }
    }

    fn snapshot(credentials: &[Credential]) -> Arc<Snapshot> {
        let mut snapshot = Snapshot::default();
        for (n, credential) in (1..).zip(credentials) {
            snapshot.put(Resource::Credential(credential.clone()), [n; 32]);
        }
        Arc::new(snapshot)
    }

    /// A secret that says when it is gone.
    struct Owner {
        _held: Arc<()>,
    }

    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            b"hunter2"
        }
    }

    #[test]
    fn an_opened_credential_goes_with_its_secret_and_takes_its_bytes_along() {
        let live = Live::new(NodeSecrets::default());
        let (p, q) = (credential("p", 1, 0), credential("q", 1, 0));
        let held = Arc::new(());
        let keep = |credential: &Credential| {
            let value = shared(Owner { _held: held.clone() }).unwrap();
            live.keep_opened(credential, AuthScheme::Bearer, &value);
        };
        let is_open = |credential: &Credential| live.opened(credential, AuthScheme::Bearer).is_some();
        live.set_snapshot(snapshot(&[p.clone(), q.clone()]), clock::now());
        keep(&p);
        keep(&q);
        assert!(is_open(&p) && is_open(&q), "each provider has its own `main`");
        assert!(live.opened(&p, AuthScheme::XApiKey).is_none());
        assert_eq!(Arc::strong_count(&held), 3);

        let newer = credential("p", 2, 1);
        live.set_snapshot(snapshot(&[newer.clone(), q.clone()]), clock::now());
        assert!(!is_open(&p) && !is_open(&newer) && is_open(&q));
        assert_eq!(Arc::strong_count(&held), 2, "the old one's bytes are gone");
        keep(&p); // by a request that still runs on the snapshot before
        assert_eq!((live.opened_count(), Arc::strong_count(&held)), (1, 2));

        keep(&newer);
        let mended = credential("p", 2, 2); // removed and made again
        live.set_snapshot(snapshot(&[mended.clone(), q]), clock::now());
        assert!(!is_open(&mended) && !is_open(&newer));

        live.set_snapshot(snapshot(&[mended]), clock::now());
        assert_eq!((live.opened_count(), Arc::strong_count(&held)), (0, 1));
    }

    #[test]
    fn a_header_of_a_secret_does_not_print_it() {
        let value = secret_header(b"Bearer ", b"hunter2").unwrap();
        assert_eq!(value.as_bytes(), b"Bearer hunter2");
        assert!(!format!("{value:?}").contains("hunter2"));
        assert!(secret_header(b"", b"two\nlines").is_none());
    }
}
