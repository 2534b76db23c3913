//! Which of a provider's credentials a request is sent with. PURE: time and chance are arguments.
//!
//! Requests are spread evenly over those that work. One that the provider refused (401, 402, 403) or that is at its limit (429) is set
//! aside for a while; one that was rewritten since starts afresh. None is ever taken out: when all are set aside, the one whose time
//! ends first is used, because a provider's only credential is better tried than not.

use std::collections::HashMap;
use std::sync::Arc;

use tollway_shared::catalog::Credential;
use tollway_shared::fault::AttemptFault;
use tollway_shared::ids::{CredentialId, ProviderId};
use tollway_shared::time::UnixMillis;

/// How long a credential that the provider does not take (401, 402), or that does not open, is set aside.
pub const REFUSED_MS: i64 = 60_000;
/// The same after a 403, which some providers also say to what a caller wrote.
pub const FORBIDDEN_MS: i64 = 15_000;
/// How long one at its limit is set aside when the provider does not say.
pub const LIMITED_MS: i64 = 10_000;
/// The longest that a provider's `Retry-After` is believed.
const LIMITED_MS_MAX: i64 = 300_000;

/// What one core knows of credentials.
#[derive(Debug, Default)]
pub struct Keyring {
    /// Set aside: in which version, and until when.
    aside: HashMap<(ProviderId, CredentialId), (u32, UnixMillis)>,
}

impl Keyring {
    /// The credential to use, of those that this request has not tried. `None` when there is none left.
    ///
    /// - `all`: the provider's credentials, asked for more than once.
    /// - `chance`: gives a number in `0.0..1.0`; asked when there is a choice.
    pub fn pick<'a, All: Iterator<Item = &'a Arc<Credential>>>(
        &self,
        all: impl Fn() -> All,
        tried: &[CredentialId],
        now: UnixMillis,
        chance: impl FnOnce() -> f64,
    ) -> Option<&'a Arc<Credential>> {
        let left = || all().filter(|credential| !tried.contains(&credential.id));
        let fit = || left().filter(|credential| self.is_fit(credential, now));
        match fit().count() {
            0 => left().min_by_key(|credential| self.aside.get(&key(credential)).map(|(_, until)| *until)),
            1 => fit().next(),
            count => fit().nth(((count as f64 * chance()) as usize).min(count - 1)),
        }
    }

    /// Whether a credential is not set aside.
    pub fn is_fit(&self, credential: &Credential, now: UnixMillis) -> bool {
        if self.aside.is_empty() {
            return true; // every request, usually
        }
        let aside = self.aside.get(&key(credential));
        !aside.is_some_and(|(version, until)| *version == credential.version && now < *until)
    }

    /// Notes how an attempt with a credential ended.
    ///
    /// - `retry_after`: seconds that the provider asked for.
    pub fn note(
        &mut self,
        credential: &Credential,
        fault: Option<AttemptFault>,
        retry_after: Option<u64>,
        now: UnixMillis,
    ) {
        let pause = match fault {
            None if self.aside.is_empty() => return, // every request, usually
            None => {
                self.aside.remove(&key(credential));
                return;
            }
            Some(AttemptFault::Status(401 | 402) | AttemptFault::Credential) => REFUSED_MS,
            Some(AttemptFault::Status(403)) => FORBIDDEN_MS,
            Some(AttemptFault::Status(429)) => retry_after.map_or(LIMITED_MS, |seconds| {
                i64::try_from(seconds).map_or(LIMITED_MS_MAX, |s| {
                    s.saturating_mul(1_000).clamp(1_000, LIMITED_MS_MAX)
                })
            }),
            Some(_) => return, // says nothing about the credential
        };
        self.aside.retain(|_, (_, until)| now < *until);
        let until = UnixMillis(now.0.saturating_add(pause));
        self.aside.insert(key(credential), (credential.version, until));
    }
}

/// Ids are each provider's own.
fn key(credential: &Credential) -> (ProviderId, CredentialId) {
    (credential.provider.clone(), credential.id.clone())
}

/// Whether a fault is about the credential, so that another one of the same provider may do.
pub fn another_may_do(fault: AttemptFault) -> bool {
    matches!(
        fault,
        AttemptFault::Status(401 | 402 | 403 | 429) | AttemptFault::Credential
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use tollway_shared::ids::ProviderId;
    use tollway_shared::seal::{self, Key};

    fn credentials(count: usize) -> Vec<Arc<Credential>> {
        let made = |n: usize| Credential {
            id: CredentialId::trusted(format!("c{n}")),
            provider: ProviderId::trusted("p"),
            version: 1,
            owner: None,
            regions: Vec::new(),
            sealed: seal::seal(&Key::new([0; 32]), b"", b"secret"),
            created_at: UnixMillis(0),
        };
        (0..count).map(|n| Arc::new(made(n))).collect()
    }

    fn picked(ring: &Keyring, all: &[Arc<Credential>], tried: &[CredentialId], now: i64) -> Vec<String> {
        let at = |chance| ring.pick(|| all.iter(), tried, UnixMillis(now), || chance);
        let mut names: Vec<_> = [0.0, 0.4, 0.7, 0.999]
            .into_iter()
            .filter_map(at)
            .map(|credential| credential.id.to_string())
            .collect();
        names.dedup();
        names
    }

    const LIMITED: Option<AttemptFault> = Some(AttemptFault::Status(429));

    #[test]
    fn requests_are_spread_over_the_credentials_that_are_not_set_aside() {
        let (mut ring, all) = (Keyring::default(), credentials(3));
        assert_eq!(picked(&ring, &all, &[], 0), ["c0", "c1", "c2"]);
        ring.note(&all[1], LIMITED, None, UnixMillis(0));
        assert_eq!(picked(&ring, &all, &[], LIMITED_MS - 1), ["c0", "c2"]);
        assert_eq!(picked(&ring, &all, &[], LIMITED_MS), ["c0", "c1", "c2"]);
        let tried = [all[0].id.clone()];
        assert_eq!(picked(&ring, &all, &tried, 1), ["c2"]);
        ring.note(&all[1], None, None, UnixMillis(1));
        assert_eq!(picked(&ring, &all, &tried, 1), ["c1", "c2"], "it works again");
    }

    #[test]
    fn when_all_are_set_aside_the_one_whose_time_ends_first_is_used() {
        let (mut ring, all) = (Keyring::default(), credentials(2));
        ring.note(&all[0], Some(AttemptFault::Status(401)), None, UnixMillis(0));
        ring.note(&all[1], LIMITED, Some(30), UnixMillis(0));
        assert_eq!(picked(&ring, &all, &[], 29_999), ["c1"]);
        assert_eq!(picked(&ring, &all, &[all[1].id.clone()], 29_999), ["c0"]);
        let both = [all[0].id.clone(), all[1].id.clone()];
        assert!(picked(&ring, &all, &both, 0).is_empty());
    }

    #[test]
    fn a_rewritten_credential_starts_afresh_and_other_faults_are_not_its_own() {
        let (mut ring, all) = (Keyring::default(), credentials(1));
        ring.note(&all[0], Some(AttemptFault::Status(500)), None, UnixMillis(0));
        ring.note(&all[0], Some(AttemptFault::Timeout), None, UnixMillis(0));
        assert!(ring.is_fit(&all[0], UnixMillis(0)));
        ring.note(&all[0], Some(AttemptFault::Status(403)), None, UnixMillis(0));
        assert!(!ring.is_fit(&all[0], UnixMillis(FORBIDDEN_MS - 1)));
        let rewritten = Credential {
            version: 2,
            ..Credential::clone(&all[0])
        };
        assert!(ring.is_fit(&rewritten, UnixMillis(0)));
        let namesake = Credential {
            provider: ProviderId::trusted("other"),
            ..Credential::clone(&all[0])
        };
        assert!(ring.is_fit(&namesake, UnixMillis(0)), "another provider's");
        ring.note(&all[0], LIMITED, Some(u64::MAX), UnixMillis(0));
        assert!(
            ring.is_fit(&all[0], UnixMillis(LIMITED_MS_MAX)),
            "a pause has a bound"
        );
    }
}
