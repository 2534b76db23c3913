//! Leased budgets over the push service: a node's word becomes a command at the leader, and its outcome the answer.
//!
//! Nothing is decided here. Whatever is not answered may have been applied; every message may be repeated, at any replica.

use tollway_proto::command::{Outcome, Receipt, RefusalCode};
use tollway_proto::lease::{LeaseAnswer, LeaseCall};
use tollway_proto::push::v1::{LeaseReply, LeaseRequest};
use tollway_shared::ids::{Incarnation, NodeId};
use tollway_shared::lease::message::{Effect, Recall};
use tonic::Status;

use super::Publisher;
use crate::identity::PeerIdentity;
use crate::raft::ProposeFault;
use crate::state::{State, lease};

impl Publisher {
    /// Answers one message of a node.
    pub(super) async fn lease(
        &self,
        identity: &PeerIdentity,
        request: LeaseRequest,
    ) -> Result<LeaseReply, Status> {
        let PeerIdentity::Node { id, .. } = identity else {
            return Err(Status::permission_denied("only nodes hold leases"));
        };
        let call =
            LeaseCall::try_from(request).map_err(|fault| Status::invalid_argument(fault.to_string()))?;
        let state = self.0.source.watch().borrow().clone();
        if let Some(answer) = lease::unchanged(&state, id, &call) {
            // Only while a majority confirms what is here: a fenced node must not be told for ever that it lives.
            self.0.contact.check()?;
            return Ok(answer.into());
        }
        let outcome = self.0.source.lease(id.clone(), call).await;
        answer(outcome).map(Into::into)
    }
}

fn answer(outcome: Result<Outcome, ProposeFault>) -> Result<LeaseAnswer, Status> {
    match outcome {
        Ok(Outcome::Done(Receipt {
            lease: Some(answer), ..
        })) => Ok(*answer),
        Ok(Outcome::Done(_)) => Err(Status::internal("the command left no answer")),
        Ok(Outcome::Refused(refusal)) => Err(match refusal.code {
            RefusalCode::Forbidden => Status::permission_denied(refusal.detail),
            _ => Status::failed_precondition(refusal.detail),
        }),
        Err(fault @ ProposeFault::Timeout) => Err(Status::deadline_exceeded(fault.to_string())),
        Err(fault @ ProposeFault::TooLarge) => Err(Status::invalid_argument(fault.to_string())),
        Err(fault) => Err(Status::unavailable(fault.to_string())),
    }
}

/// The recall in an effect, if it is for this node.
pub(super) fn recall_for(state: &State, node: &NodeId, effect: Effect) -> Option<Recall> {
    let Effect::Recall(recall) = effect else {
        return None;
    };
    let of = |incarnation: &Incarnation| state.books.members.get(incarnation).map(|member| &member.node);
    (of(&recall.incarnation) == Some(node)).then_some(recall)
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
