//! A node that is removed and registered again, and a replica that has not heard of it.

use tollway_control::identity::authority::LEAF_LIFE;
use tollway_control::identity::material;
use tollway_proto::command::Command;
use tollway_proto::push::REFUSAL;
use tollway_proto::push::v1::RenewRequest;
use tollway_proto::push::v1::push_client::PushClient;
use tollway_shared::ids::NodeId;
use tonic::Code;

use super::{Control, Follower, cut, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_takes_no_requests_until_it_is_registered_again_and_a_replica_that_is_behind_removes_nobody()
 {
    let (control_dir, node_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let control = Control::start(control_dir.path(), LEAF_LIFE).await;
    let behind = cut::Other::start(&control).await;
    behind.cut_off();
    let identity = control.join("n1", node_dir.path()).await;
    let refusal = async |peer: String| {
        let channel = (identity.dial().unwrap())(&peer).await.unwrap();
        let (_, request_pem) = material::request().unwrap();
        let asked = RenewRequest { request_pem };
        let mut client = PushClient::new(channel);
        let status = client.renew(asked).await.unwrap_err();
        (status.code(), status.metadata().contains_key(REFUSAL))
    };
    let unsure = refusal(behind.peer_address.to_string()).await;
    assert_eq!(unsure, (Code::Unavailable, false));

    let follower = Follower::start(&identity, node_dir.path());
    follower.reaches(control.cluster.state().revision).await;
    assert!(!follower.live.is_removed());
    control.run(Command::RemoveNode(NodeId::trusted("n1"))).await;
    until(|| follower.live.is_removed()).await;
    let definite = refusal(control.peer_address.to_string()).await;
    assert_eq!(definite, (Code::PermissionDenied, true));
    // It knows after a start without the control plane, too.
    let mut unheard = identity.clone();
    unheard.membership.peers.clear();
    let alone = Follower::start(&unheard, node_dir.path());
    until(|| alone.live.snapshot().is_some()).await;
    assert!(alone.live.is_removed());
    drop(alone);

    let elsewhere = tempfile::tempdir().unwrap();
    control.join("n1", elsewhere.path()).await;
    until(|| !follower.live.is_removed()).await;
    drop(follower);
    let again = Follower::start(&unheard, node_dir.path());
    until(|| again.live.snapshot().is_some()).await;
    assert!(!again.live.is_removed());
}
