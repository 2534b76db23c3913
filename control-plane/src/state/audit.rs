//! The audit trail: one record per admin write, each with the hash of the one before, so that a changed record shows.

use serde::{Deserialize, Serialize};
use tollway_proto::command::Entry;
use tollway_shared::ids::Revision;
use tollway_shared::lease::message::Effect;
use tollway_shared::seal::sha256;
use tollway_shared::time::UnixMillis;

use super::State;

/// Records kept in the state. Older ones are dropped; the chain's hash goes on.
pub const RECORDS_MAX: usize = 100_000;

/// One admin write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// Dense, from 1.
    pub sequence: u64,
    /// The leader's stamp.
    pub at: UnixMillis,
    /// Who.
    pub actor: String,
    /// What: `key.revoke`, `price.add`, ….
    pub action: String,
    /// On which record.
    pub target: String,
    /// The log index of the write.
    pub revision: Revision,
    /// The record before, as JSON without secrets.
    pub before: Option<String>,
    /// The record after, as JSON without secrets.
    pub after: Option<String>,
    /// The hash of the record before this one; zeros for the first.
    pub previous: [u8; 32],
}

impl AuditRecord {
    /// SHA-256 over the record's JSON, its predecessor's hash included.
    pub fn hash(&self) -> [u8; 32] {
        sha256(&serde_json::to_vec(self).expect("plain fields serialize"))
    }
}

/// What a command touched.
pub(crate) struct Touched {
    pub(crate) target: String,
    pub(crate) before: Option<String>,
    pub(crate) after: Option<String>,
}

/// A record as JSON, without ciphertexts and digests.
pub(crate) fn redacted<T: Serialize>(value: &T) -> String {
    let mut json = serde_json::to_value(value).expect("our records serialize");
    if let Some(fields) = json.as_object_mut() {
        fields.retain(|name, _| !matches!(name.as_str(), "sealed" | "digest" | "authority_key"));
    }
    json.to_string()
}

/// Adds a record to the end of the chain.
pub(crate) fn append(state: &mut State, entry: &Entry, touched: Touched) {
    add(state, entry.at, &entry.actor, entry.command.name(), touched);
}

/// Notes that a budget's window has reached a threshold, or that an organization has little credit left.
pub(crate) fn crossed(state: &mut State, effect: &Effect) {
    let (action, target, after) = match effect {
        Effect::Crossed {
            budget,
            span,
            percent,
        } => {
            let after = format!("{percent} % of the window from {}", span.start.rfc3339());
            ("budget.threshold", budget.to_string(), after)
        }
        Effect::LowBalance {
            organization,
            available,
            top_up,
        } => {
            let target = organization.to_string();
            match top_up {
                None => ("credit.low", target, format!("{available} dollars are left")),
                Some(amount) => {
                    let after = format!("{available} dollars are left, {amount} more are wanted");
                    ("credit.top_up_wanted", target, after)
                }
            }
        }
        Effect::Recall(_) => return,
    };
    let touched = Touched {
        target,
        before: None,
        after: Some(after),
    };
    add(state, state.now, "system", action, touched);
}

fn add(state: &mut State, at: UnixMillis, actor: &str, action: &str, touched: Touched) {
    state.audit_count += 1;
    let record = AuditRecord {
        sequence: state.audit_count,
        at,
        actor: actor.to_owned(),
        action: action.to_owned(),
        target: touched.target,
        revision: Revision(state.applied),
        before: touched.before,
        after: touched.after,
        previous: state.audit_head,
    };
    state.audit_head = record.hash();
    state.audit.push_back(record);
    if state.audit.len() > RECORDS_MAX {
        state.audit.pop_front();
    }
}

/// The first record whose predecessor's hash does not match, if any.
pub fn first_broken(state: &State) -> Option<u64> {
    let mut records = state.audit.iter();
    let mut hash = records.next()?.hash();
    for record in records {
        if record.previous != hash {
            return Some(record.sequence);
        }
        hash = record.hash();
    }
    (hash != state.audit_head).then_some(state.audit_count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::samples;

    #[test]
    fn a_changed_record_breaks_the_chain() {
        let mut state = samples::catalog();
        assert!(state.audit.len() > 3);
        assert_eq!(first_broken(&state), None);
        let mut forged = state.audit[1].clone();
        forged.actor = "somebody-else".into();
        state.audit.set(1, forged);
        assert_eq!(first_broken(&state), Some(3));
    }

    #[test]
    fn secrets_are_not_in_the_trail() {
        let state = samples::catalog();
        assert!(state.audit.iter().any(|record| record.action == "credential.put"));
        for record in &state.audit {
            let text = format!("{:?}{:?}", record.before, record.after);
            assert!(!text.contains("ciphertext") && !text.contains("digest"), "{text}");
        }
    }
}
