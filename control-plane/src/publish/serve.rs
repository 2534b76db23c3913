//! The gRPC service `tollway.push.v1.Push`: one task per node around a [`SessionCore`].
//!
//! Two bounded queues lead to a node: stops, recalls and signs of life go through the fast one, snapshots through the slow one, and the
//! stream drains the fast one first. A node that does not answer in time is disconnected.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::Stream;
use futures::stream::{PollNext, StreamExt as _, select_with_strategy};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tollway_proto::push::v1::control_message::Message as Says;
use tollway_proto::push::v1::node_message::Message as Hears;
use tollway_proto::push::v1::push_server::{Push, PushServer};
use tollway_proto::push::v1::{
    ControlMessage, FullBegin, FullEnd, Heartbeat, Hello, LeaseReply, LeaseRequest, NodeMessage, RenewReply,
    RenewRequest,
};
use tollway_proto::push::{ANSWER_MS_MAX, HEARTBEAT_MS, MESSAGE_BYTES_MAX};
use tollway_shared::ids::{NodeId, Region};
use tollway_shared::lease::message::Effect;
use tollway_shared::snapshot::ResourceKey;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status, Streaming};

use super::Publisher;
use super::build::RegionView;
use super::fleet::{FleetNode, refusal};
use super::lease::recall_for;
use super::session::{Send, SessionCore};
use crate::identity::admit::{OnlyNodes, is_registered, peer};
use crate::identity::{Authority, PeerIdentity};
use crate::state::State;

/// A node that has not introduced itself in this time is disconnected.
const HELLO_WITHIN: Duration = Duration::from_secs(5);
/// Stops, recalls and signs of life that may wait for one node.
const FAST_MAX: usize = 64;
/// Chunks that may wait for one node.
const SLOW_MAX: usize = 2;
/// Tells connections of one node apart.
static SESSIONS: AtomicU64 = AtomicU64::new(1);

/// Serves nodes.
#[derive(Clone)]
pub struct PushService {
    publisher: Publisher,
    leaf_life: Duration,
}

impl Publisher {
    /// The service to serve on the peer port. `leaf_life`: how long renewed certificates last.
    pub fn service(&self, leaf_life: Duration) -> InterceptedService<PushServer<PushService>, OnlyNodes> {
        let service = PushService {
            publisher: self.clone(),
            leaf_life,
        };
        let server = PushServer::new(service)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        InterceptedService::new(server, OnlyNodes)
    }
}

type Messages = Pin<Box<dyn Stream<Item = Result<ControlMessage, Status>> + std::marker::Send>>;

#[tonic::async_trait]
impl Push for PushService {
    type SubscribeStream = Messages;

    async fn subscribe(
        &self,
        request: Request<Streaming<NodeMessage>>,
    ) -> Result<Response<Messages>, Status> {
        let identity = peer(&request)?.clone();
        self.publisher.registered(&identity).await?;
        let mut inbound = request.into_inner();
        let (fast, fast_out) = mpsc::channel(FAST_MAX);
        let (slow, slow_out) = mpsc::channel(SLOW_MAX);
        let publisher = self.publisher.clone();
        // The node hears that it is connected before it has introduced itself: both sides would wait otherwise.
        tokio::spawn(async move {
            let hello = match timeout(HELLO_WITHIN, hello(&mut inbound)).await {
                Ok(hello) => hello.and_then(|hello| check(&publisher, &identity, hello)),
                Err(_) => Err(Status::deadline_exceeded("the first message must be a hello")),
            };
            let wanted = match hello {
                Ok(wanted) => publisher.0.contact.wait().await.map(|()| wanted),
                Err(status) => Err(status),
            };
            let end = match wanted {
                Ok((node, region, hello)) => {
                    let outbound = Outbound {
                        fast: fast.clone(),
                        slow,
                    };
                    Session::open(publisher, identity, node, region, &hello, outbound)
                        .await
                        .run(inbound)
                        .await
                }
                Err(status) => status,
            };
            // The node may be gone already.
            let _ = fast.try_send(Err(end));
        });
        let fast_first = |_: &mut ()| PollNext::Left;
        let messages = select_with_strategy(
            ReceiverStream::new(fast_out),
            ReceiverStream::new(slow_out),
            fast_first,
        );
        Ok(Response::new(messages.boxed()))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewReply>, Status> {
        let identity = peer(&request)?.clone();
        self.publisher.registered(&identity).await?;
        let inner = &self.publisher.0;
        let state = inner.source.watch().borrow().clone();
        let issue = || {
            let authority = Authority::of_state(&state, &inner.sealing_key)?;
            let request_pem = &request.get_ref().request_pem;
            let certificate_pem =
                authority.issue(request_pem, &identity, &[], (inner.now)(), self.leaf_life)?;
            Ok::<_, crate::identity::IdentityFault>(RenewReply {
                certificate_pem,
                authority_pem: authority.certificate_pem().to_owned(),
            })
        };
        issue()
            .map(Response::new)
            .map_err(|fault| Status::invalid_argument(fault.to_string()))
    }

    async fn lease(&self, request: Request<LeaseRequest>) -> Result<Response<LeaseReply>, Status> {
        let identity = peer(&request)?.clone();
        self.publisher.registered(&identity).await?;
        let reply = self.publisher.lease(&identity, request.into_inner()).await?;
        Ok(Response::new(reply))
    }
}

async fn hello(inbound: &mut Streaming<NodeMessage>) -> Result<Hello, Status> {
    match inbound.message().await?.and_then(|message| message.message) {
        Some(Hears::Hello(hello)) => Ok(hello),
        _ => Err(Status::invalid_argument("the first message must be a hello")),
    }
}

/// A node is who its certificate says, whatever its hello says.
fn check(
    publisher: &Publisher,
    identity: &PeerIdentity,
    hello: Hello,
) -> Result<(NodeId, Region, Hello), Status> {
    let PeerIdentity::Node { region, id } = identity else {
        return Err(Status::permission_denied("only nodes may subscribe"));
    };
    if hello.node != id.as_str() || hello.region != region.as_str() {
        return Err(Status::permission_denied(format!(
            "this certificate is for node `{id}` in region `{region}`"
        )));
    }
    let states = publisher.0.source.watch();
    let cluster = states.borrow().cluster.as_ref().map(|cluster| cluster.id.clone());
    match cluster {
        Some(cluster) if cluster.as_str() == hello.cluster => Ok((id.clone(), region.clone(), hello)),
        Some(cluster) => Err(Status::failed_precondition(format!(
            "this is cluster `{cluster}`"
        ))),
        None => Err(Status::unavailable("this replica does not know its cluster yet")),
    }
}

/// The two queues to a node.
struct Outbound {
    fast: mpsc::Sender<Result<ControlMessage, Status>>,
    slow: mpsc::Sender<Result<ControlMessage, Status>>,
}

/// A full snapshot on its way.
struct Sending {
    view: RegionView,
    nonce: u64,
    after: Option<ResourceKey>,
    begun: bool,
}

impl Sending {
    /// The next message, and whether it is the last.
    fn next(&mut self) -> (Says, bool) {
        if !std::mem::replace(&mut self.begun, true) {
            let begin = FullBegin {
                revision: self.view.revision.0,
                nonce: self.nonce,
                resources: self.view.len() as u64,
            };
            return (Says::FullBegin(begin), false);
        }
        match self.view.chunk(self.nonce, self.after.as_ref()) {
            Some((chunk, last)) => {
                self.after = Some(last);
                (Says::FullChunk(chunk), false)
            }
            None => {
                let end = FullEnd {
                    nonce: self.nonce,
                    hash: self.view.hash().to_bytes().to_vec().into(),
                };
                (Says::FullEnd(end), true)
            }
        }
    }
}

struct Session {
    id: u64,
    publisher: Publisher,
    identity: PeerIdentity,
    node: NodeId,
    region: Region,
    core: SessionCore,
    view: watch::Receiver<RegionView>,
    states: watch::Receiver<Arc<State>>,
    effects: broadcast::Receiver<Effect>,
    outbound: Outbound,
    sending: Option<Sending>,
    /// When an answer is due.
    due: Option<Instant>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.publisher.0.fleet.disconnected(self.id, &self.node);
    }
}

impl Session {
    async fn open(
        publisher: Publisher,
        identity: PeerIdentity,
        node: NodeId,
        region: Region,
        hello: &Hello,
        outbound: Outbound,
    ) -> Self {
        let id = SESSIONS.fetch_add(1, Ordering::Relaxed);
        let core = SessionCore::new(hello);
        let entry = FleetNode {
            node: node.clone(),
            region: region.clone(),
            version: hello.version.chars().take(64).collect(),
            revision: core.revision(),
            lag: 0,
            connected_at: (publisher.0.now)(),
            last_ack_at: None,
            last_refusal: None,
        };
        publisher.0.fleet.connected(id, entry);
        Self {
            id,
            view: publisher.region(region.clone()).await,
            states: publisher.0.source.watch(),
            effects: publisher.0.source.effects(),
            publisher,
            identity,
            node,
            region,
            core,
            outbound,
            sending: None,
            due: None,
        }
    }

    /// Serves the node until its stream ends; returns what it is told last.
    async fn run(mut self, mut inbound: Streaming<NodeMessage>) -> Status {
        let mut heartbeat = tokio::time::interval(Duration::from_millis(HEARTBEAT_MS));
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // First of all: what a node takes over is as fresh as the last heartbeat.
        heartbeat.tick().await;
        if let Err(status) = self.vouch() {
            return status;
        }
        let shutdown = self.publisher.0.shutdown.clone();
        loop {
            if let Err(status) = self.turn() {
                return status;
            }
            let due = self.due;
            tokio::select! {
                () = shutdown.cancelled() => return Status::unavailable("this replica is stopping"),
                message = inbound.message() => match message {
                    Ok(Some(NodeMessage { message: Some(message) })) => self.hear(message),
                    Ok(Some(NodeMessage { message: None })) => {}
                    Ok(None) | Err(_) => return Status::ok("the node is gone"),
                },
                changed = self.view.changed() => if changed.is_err() {
                    return Status::unavailable("this replica is stopping");
                },
                changed = self.states.changed() => {
                    if changed.is_err() {
                        return Status::unavailable("this replica is stopping");
                    }
                    if !is_registered(&self.states.borrow_and_update(), &self.identity) {
                        let gone = self.publisher.registered(&self.identity).await;
                        return gone.err().unwrap_or_else(|| Status::unavailable("this node was registered anew"));
                    }
                }
                effect = self.effects.recv() => match effect {
                    Ok(effect) => if let Err(status) = self.tell(effect) {
                        return status;
                    },
                    // What was missed is told again with the node's next report.
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return Status::unavailable("this replica is stopping"),
                },
                _ = heartbeat.tick() => if let Err(status) = self.vouch() {
                    return status;
                },
                room = self.outbound.slow.clone().reserve_owned(), if self.sending.is_some() => {
                    let (Ok(room), Some(sending)) = (room, &mut self.sending) else {
                        return Status::ok("the node is gone");
                    };
                    let (message, is_last) = sending.next();
                    room.send(say(message));
                    // Time runs from each chunk the node has made room for: a large snapshot may take long, a stall may not.
                    self.due = Some(Instant::now() + Duration::from_millis(ANSWER_MS_MAX));
                    if is_last {
                        self.sending = None;
                    }
                }
                () = until(due) => return Status::deadline_exceeded("the node did not answer in time"),
            }
        }
    }

    /// Tells the node that what it has been sent is what a majority has; ends the stream when that cannot be said.
    fn vouch(&self) -> Result<(), Status> {
        self.publisher.check(&self.region)?;
        let revision = self.view.borrow().revision.0;
        self.fast(Says::Heartbeat(Heartbeat { revision }))
    }

    /// Asks the node for money back, if it is meant. Never in the way of a stop: a recall is told again with the next report.
    fn tell(&self, effect: Effect) -> Result<(), Status> {
        if let Some(recall) = recall_for(&self.states.borrow(), &self.node, effect)
            && self.outbound.fast.capacity() > FAST_MAX / 2
        {
            self.fast(Says::Recall(recall.into()))?;
        }
        Ok(())
    }

    fn turn(&mut self) -> Result<(), Status> {
        let view = self.view.borrow_and_update().clone();
        let source = &self.publisher.0.source;
        let turn = self.core.turn(&view, |revision| source.changes_since(revision));
        for send in turn {
            match send {
                Send::Stop(stop) => self.fast(Says::Stop(stop))?,
                Send::Delta(delta) => {
                    self.due = Some(Instant::now() + Duration::from_millis(ANSWER_MS_MAX));
                    let sent = self.outbound.slow.try_send(say(Says::Delta(delta)));
                    sent.map_err(|_| Status::resource_exhausted("the node does not keep up"))?;
                }
                Send::Full(nonce) => {
                    self.due = Some(Instant::now() + Duration::from_millis(ANSWER_MS_MAX));
                    self.sending = Some(Sending {
                        view: view.clone(),
                        nonce,
                        after: None,
                        begun: false,
                    });
                }
            }
        }
        Ok(())
    }

    fn hear(&mut self, message: Hears) {
        let fleet = &self.publisher.0.fleet;
        match message {
            Hears::Hello(_) => {}
            Hears::Ack(ack) => {
                if self.core.acked(&ack) {
                    let now = (self.publisher.0.now)();
                    fleet.update(self.id, &self.node, |node| {
                        node.revision = self.core.revision();
                        node.last_ack_at = Some(now);
                    });
                }
            }
            Hears::Nack(nack) => {
                let refusal = refusal(&nack);
                tracing::warn!(node = %self.node, %refusal, "a node refused a revision");
                if self.core.refused(&nack) {
                    self.sending = None; // what is left of it is of no use
                }
                fleet.update(self.id, &self.node, |node| node.last_refusal = Some(refusal));
            }
        }
        if !self.core.is_waiting() {
            self.due = None;
        }
    }

    fn fast(&self, message: Says) -> Result<(), Status> {
        self.outbound
            .fast
            .try_send(say(message))
            .map_err(|_| Status::resource_exhausted("the node does not keep up"))
    }
}

fn say(message: Says) -> Result<ControlMessage, Status> {
    Ok(ControlMessage {
        message: Some(message),
    })
}

/// Never, when nothing is due.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
