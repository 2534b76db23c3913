//! Recalls of leases, which travel on the push stream's fast lane.

use std::sync::Arc;

use tollway_proto::push::v1::ControlMessage;
use tollway_proto::push::v1::control_message::Message as Hears;
use tollway_shared::lease::message::Recall;

/// Takes recalls.
pub type Recalls = Arc<dyn Fn(Recall) + Send + Sync>;

/// Passes a recall on. Says whether the message was one.
pub(super) fn is_passed_on(message: &ControlMessage, recalls: &Recalls) -> bool {
    let Some(Hears::Recall(recall)) = &message.message else {
        return false;
    };
    match Recall::try_from(recall.clone()) {
        Ok(recall) => recalls(recall),
        Err(fault) => tracing::warn!(%fault, "a recall of a lease makes no sense"),
    }
    true
}
