//! Events for the tests of this module.

use tollway_proto::usage::UsageEvent;
use tollway_shared::ids::WriterId;

/// The example event, as another writer's.
pub(crate) fn event(writer: u128, sequence: u64) -> UsageEvent {
    let example = include_str!("../../../proto/examples/usage-event.v1.json");
    let mut event: UsageEvent = serde_json::from_str(example).unwrap();
    (event.writer, event.sequence) = (WriterId(writer), sequence);
    event
}
