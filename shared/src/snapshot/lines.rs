//! Which forebears of a rotated key have a budget: worked out when the snapshot changes, so that a request looks up what holds for it and
//! nothing else, however often its key has been rotated.

use imbl::{OrdMap, OrdSet};

use crate::ids::ApiKeyId;

/// Per key, the nearest forebear with a budget; from there on it is that one's nearest.
#[derive(Debug, Clone, Default)]
pub(super) struct Lines {
    /// What a key replaces, of keys that came from a rotation.
    replaces: OrdMap<ApiKeyId, ApiKeyId>,
    /// The other way round.
    replaced_by: OrdMap<ApiKeyId, OrdSet<ApiKeyId>>,
    /// Keys that have a budget.
    limited: OrdSet<ApiKeyId>,
    nearest: OrdMap<ApiKeyId, ApiKeyId>,
}

impl Lines {
    /// The nearest forebear of a key that has a budget.
    pub(super) fn nearest(&self, key: &ApiKeyId) -> Option<&ApiKeyId> {
        self.nearest.get(key)
    }

    /// A key that came from a rotation is there.
    pub(super) fn put(&mut self, key: &ApiKeyId, replaces: &ApiKeyId) {
        self.replaces.insert(key.clone(), replaces.clone());
        let others = self.replaced_by.entry(replaces.clone()).or_default();
        others.insert(key.clone());
        self.resolve(vec![key.clone()]);
    }

    /// It is gone.
    pub(super) fn remove(&mut self, key: &ApiKeyId, replaces: &ApiKeyId) {
        self.replaces.remove(key);
        if let Some(others) = self.replaced_by.get_mut(replaces) {
            others.remove(key);
            if others.is_empty() {
                self.replaced_by.remove(replaces);
            }
        }
        self.resolve(vec![key.clone()]);
    }

    /// Whether there is a budget of a key now.
    pub(super) fn limit(&mut self, key: &ApiKeyId, limited: bool) {
        let changed = if limited {
            self.limited.insert(key.clone()).is_none()
        } else {
            self.limited.remove(key).is_some()
        };
        if changed {
            self.resolve(self.successors(key));
        }
    }

    fn successors(&self, key: &ApiKeyId) -> Vec<ApiKeyId> {
        let successors = self.replaced_by.get(key);
        successors.into_iter().flatten().cloned().collect()
    }

    /// Works these keys out anew, and of those that came from them the ones for which that makes a difference: so it ends, whatever
    /// the keys say of each other.
    fn resolve(&mut self, mut keys: Vec<ApiKeyId>) {
        while let Some(key) = keys.pop() {
            let nearest = self.replaces.get(&key).and_then(|forebear| {
                let is_limited = self.limited.contains(forebear);
                if is_limited {
                    Some(forebear)
                } else {
                    self.nearest(forebear)
                }
            });
            if nearest == self.nearest(&key) {
                continue;
            }
            match nearest.cloned() {
                Some(nearest) => self.nearest.insert(key.clone(), nearest),
                None => self.nearest.remove(&key),
            };
            keys.extend(self.successors(&key));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::tenant;

    /// A key and what it replaces, or a key that gets a budget.
    #[derive(Debug, Clone, Copy)]
    enum Event {
        Key(&'static str, &'static str),
        Budget(&'static str),
    }

    /// The same by walking the whole line each time.
    #[derive(Default)]
    struct Naive {
        replaces: BTreeMap<&'static str, &'static str>,
        limited: BTreeSet<&'static str>,
    }

    impl Naive {
        fn line(&self, key: &'static str) -> Vec<&'static str> {
            let forebears = std::iter::successors(Some(key), |key| self.replaces.get(key).copied());
            forebears
                .skip(1)
                .filter(|key| self.limited.contains(key))
                .collect()
        }
    }

    fn run(lines: &mut Lines, naive: &mut Naive, event: Event, there: bool) {
        let id = ApiKeyId::trusted;
        match (event, there) {
            (Event::Key(key, replaces), true) => {
                lines.put(&id(key), &id(replaces));
                naive.replaces.insert(key, replaces);
            }
            (Event::Key(key, replaces), false) => {
                lines.remove(&id(key), &id(replaces));
                naive.replaces.remove(key);
            }
            (Event::Budget(key), true) => {
                lines.limit(&id(key), true);
                naive.limited.insert(key);
            }
            (Event::Budget(key), false) => {
                lines.limit(&id(key), false);
                naive.limited.remove(key);
            }
        }
        for key in ["k1", "k2", "k3", "k4", "k5"] {
            let found = tenant::line(id(key), |key| lines.nearest(key).cloned());
            let found: Vec<String> = found.skip(1).map(|key| key.to_string()).collect();
            assert_eq!(found, naive.line(key), "of {key} after {event:?}");
        }
    }

    /// Calls `visit` with every order of the events.
    fn orders(events: &mut [Event], from: usize, visit: &mut impl FnMut(&[Event])) {
        if from == events.len() {
            return visit(events);
        }
        for other in from..events.len() {
            events.swap(from, other);
            orders(events, from + 1, visit);
            events.swap(from, other);
        }
    }

    #[test]
    fn in_whatever_order_keys_and_budgets_come_and_go_a_key_has_the_budgets_of_its_line() {
        let mut events = [
            Event::Key("k2", "k1"),
            Event::Key("k3", "k2"),
            Event::Key("k4", "k3"),
            Event::Key("k5", "k2"),
            Event::Budget("k1"),
            Event::Budget("k3"),
        ];
        orders(&mut events, 0, &mut |events| {
            let (mut lines, mut naive) = (Lines::default(), Naive::default());
            for there in [true, false] {
                for event in events {
                    run(&mut lines, &mut naive, *event, there);
                }
            }
            assert!(lines.nearest.is_empty() && lines.replaced_by.is_empty());
        });
    }

    #[test]
    fn keys_that_replace_each_other_in_a_circle_are_worked_out_all_the_same() {
        let id = ApiKeyId::trusted;
        let mut lines = Lines::default();
        lines.limit(&id("k1"), true);
        lines.put(&id("k1"), &id("k2"));
        lines.put(&id("k2"), &id("k1"));
        lines.limit(&id("k1"), false);
        lines.remove(&id("k1"), &id("k2"));
        lines.remove(&id("k2"), &id("k1"));
        assert!(lines.nearest.is_empty());
    }
}
