//! Events for the tests of this module.

use tollway_proto::usage::UsageEvent;
use tollway_shared::ids::{OrganizationId, RequestId};

/// The example event, as another request of another organization.
pub(super) fn event(request: &str, organization: &str) -> UsageEvent {
    let example = include_str!("../../../proto/examples/usage-event.v1.json");
    let mut event: UsageEvent = serde_json::from_str(example).unwrap();
    event.request_id = RequestId::parse(request).unwrap();
    event.tenant.organization = OrganizationId::parse(organization).unwrap();
    event
}
