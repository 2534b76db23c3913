//! Nodes that hold leases of a real replica's budgets over gRPC: granted, held, settled, recalled, refused, closed, fenced.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt as _, TryStreamExt as _};
use tokio::net::TcpListener;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tollway_proto::command::{Command, JoinKind, JoinToken, Member, NodeRecord, Outcome};
use tollway_proto::lease::{LeaseAnswer, LeaseCall};
use tollway_proto::push::v1::control_message::Message as Hears;
use tollway_proto::push::v1::node_message::Message as Says;
use tollway_proto::push::v1::push_client::PushClient;
use tollway_proto::push::v1::{Hello, NodeMessage};
use tollway_shared::budget::{Budget, BudgetScope};
use tollway_shared::ids::{
    ApiKeyId, BudgetId, ClusterId, Incarnation, NodeId, OrganizationId, Region, ReplicaId,
};
use tollway_shared::lease::hold::{Amounts, Claim, Hold, Level, Short, hold};
use tollway_shared::lease::holder::Holder;
use tollway_shared::lease::message::{Recall, Verdict, Want};
use tollway_shared::lease::slice::Reach;
use tollway_shared::money::NanoUsd;
use tollway_shared::seal::Key;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::clock;
use crate::identity::PeerIdentity;
use crate::publish::Publisher;
use crate::raft::{self, Cluster, PeerConnector, Proposal, RaftConfig, Timings};
use crate::state::samples;

/// What every wait is given; none comes near it.
const DEADLINE: Duration = Duration::from_secs(20);
const CENT: i64 = 10_000_000;

struct Nobody;

impl PeerConnector for Nobody {
    fn channel(&self, _: ReplicaId, _: &str) -> Channel {
        Endpoint::from_static("http://127.0.0.1:1").connect_lazy()
    }
}

/// A replica with a dollar for organization `o`, forty cents of it for key `k`, and two nodes that may connect.
struct World {
    cluster: Cluster,
    address: String,
    _stop: DropGuard,
    _dir: tempfile::TempDir,
}

impl World {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = RaftConfig {
            id: ReplicaId(1),
            cluster: ClusterId::trusted("c1"),
            data_dir: dir.path().to_owned(),
            timings: Timings::default(),
        };
        let cluster = raft::start(config, Arc::new(Nobody), Arc::new(clock::now))
            .await
            .unwrap();
        cluster.init(Member::default()).await.unwrap();
        let stop = CancellationToken::new();
        let key = Key::new([7; 32]);
        let publisher = Publisher::start(Arc::new(cluster.clone()), key, clock::now, stop.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let world = Self {
            cluster,
            address: format!("http://{}", listener.local_addr().unwrap()),
            _stop: stop.clone().drop_guard(),
            _dir: dir,
        };
        for command in samples::commands() {
            world.run(command).await;
        }
        world
            .budget(
                "org",
                BudgetScope::Organization(OrganizationId::trusted("o")),
                100 * CENT,
            )
            .await;
        world
            .budget("key", BudgetScope::Key(ApiKeyId::trusted("k")), 40 * CENT)
            .await;
        for (place, node) in [(1, "eu-1"), (2, "eu-2")] {
            world.join(place, node).await;
        }
        // In place of the certificate, which this test leaves out.
        let named = |mut request: Request<()>| {
            let id = request.metadata().get("x-node").and_then(|id| id.to_str().ok());
            let id = NodeId::trusted(id.ok_or_else(|| Status::unauthenticated("who?"))?);
            let region = Region::trusted("eu");
            request.extensions_mut().insert(PeerIdentity::Node { region, id });
            Ok(request)
        };
        let service = InterceptedService::new(publisher.service(Duration::from_secs(60)), named);
        let incoming =
            TcpListenerStream::new(listener).inspect_ok(|stream| stream.set_nodelay(true).unwrap());
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()));
        world
    }

    async fn run(&self, command: Command) {
        let name = command.name();
        let outcome = self.cluster.propose(Proposal::system(command)).await.unwrap();
        assert!(matches!(outcome, Outcome::Done(_)), "{name}: {outcome:?}");
    }

    async fn budget(&self, id: &str, scope: BudgetScope, limit: i64) {
        let budget = Budget {
            id: BudgetId::trusted(id),
            scope,
            ..samples::budget(limit).budget
        };
        self.run(Command::PutBudget(budget.into())).await;
    }

    async fn join(&self, place: u8, node: &str) {
        let token = JoinToken {
            digest: [place; 32],
            kind: JoinKind::Node(Region::trusted("eu")),
            expires_at: clock::now().plus_ms(60_000),
        };
        self.run(Command::CreateJoinToken(token)).await;
        let node = NodeRecord {
            id: NodeId::trusted(node),
            region: Region::trusted("eu"),
            joined_at: clock::now(),
        };
        let token = [place; 32];
        let node = Some(node);
        self.run(Command::Join { token, node }).await;
    }

    /// Settled, leased, free, in cents.
    fn book(&self, budget: &str) -> (i128, i128, i128) {
        let state = self.cluster.state();
        let account = state.books.accounts.get(&BudgetId::trusted(budget)).unwrap();
        assert_eq!(state.books.broken(), None);
        let book = &account.book;
        let cents = |amount: i128| amount / i128::from(CENT);
        (cents(book.settled), cents(book.outstanding), cents(book.free))
    }

    async fn node(&self, node: &'static str, incarnation: u128) -> Node {
        let channel = Endpoint::from_shared(self.address.clone())
            .unwrap()
            .connect_lazy();
        let mut node = Node {
            name: node,
            client: PushClient::new(channel),
            holder: Holder::new(Incarnation(incarnation)),
        };
        let enlisted = node
            .say(LeaseCall::Enlist(Incarnation(incarnation)))
            .await
            .unwrap();
        assert!(
            matches!(enlisted, LeaseAnswer::Enlisted { live: true, .. }),
            "{enlisted:?}"
        );
        node
    }

    /// What a request on the path of key `k` that may cost so much gets from what a node holds.
    fn hold(&self, node: &Node, cents: i64) -> Result<Hold, Short> {
        let state = self.cluster.state();
        let ids = ["org", "key"].map(BudgetId::trusted);
        let levels: Vec<Level<'_>> = ids
            .iter()
            .map(|budget| Level {
                budget,
                terms: &state.budgets.get(budget).unwrap().value.terms,
                slice: node.holder.slices().get(budget),
            })
            .collect();
        let worst = Amounts {
            money: NanoUsd(cents * CENT),
            ..Amounts::default()
        };
        hold(
            &levels,
            &Claim { worst, least: worst },
            clock::now(),
            Reach::Connected,
        )
    }

    /// Holds as a node does that asks when it is short, until it has it or the budget is spent.
    async fn held(&self, node: &mut Node, cents: i64) -> Result<Hold, Verdict> {
        let wants = match self.hold(node, cents) {
            Ok(hold) => return Ok(hold),
            Err(Short::Lease(wants)) => wants,
            Err(other) => panic!("{other:?}"),
        };
        match node.ask(wants).await {
            Verdict::Granted => Ok(self.hold(node, cents).unwrap()),
            other => Err(other),
        }
    }
}

/// A node without anything but its leases.
struct Node {
    name: &'static str,
    client: PushClient<Channel>,
    holder: Holder,
}

impl Node {
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert("x-node", self.name.parse().unwrap());
        request
    }

    async fn say(&mut self, call: LeaseCall) -> Result<LeaseAnswer, Status> {
        let request = self.request(call.into());
        let reply = self.client.lease(request).await?;
        Ok(reply.into_inner().try_into().unwrap())
    }

    async fn ask(&mut self, wants: Vec<Want>) -> Verdict {
        let ask = self.holder.ask(wants);
        let LeaseAnswer::Answer(answer) = self.say(LeaseCall::Ask(ask)).await.unwrap() else {
            panic!("not an answer to an ask");
        };
        self.holder.take(&answer, clock::now());
        answer.verdict
    }

    async fn report(&mut self) {
        let report = self.holder.report(clock::now(), 100);
        let confirmed = self.say(LeaseCall::Report(report.clone())).await.unwrap();
        let LeaseAnswer::Confirmed(confirmed) = confirmed else {
            panic!("{confirmed:?}");
        };
        self.holder.confirmed(&report, &confirmed, clock::now());
    }

    /// Follows the stream until it brings a recall.
    async fn recalled(&self) -> BoxFuture<'static, Recall> {
        let (send, receive) = tokio::sync::mpsc::channel(4);
        let hello = Hello {
            cluster: "c1".into(),
            node: self.name.into(),
            region: "eu".into(),
            ..Hello::default()
        };
        let message = Some(Says::Hello(hello));
        send.try_send(NodeMessage { message }).unwrap();
        let request = self.request(ReceiverStream::new(receive));
        let mut stream = self.client.clone().subscribe(request).await.unwrap().into_inner();
        // Once it has heard something it will miss nothing.
        let first = stream.message().await.unwrap();
        assert!(first.is_some());
        let recall = async move {
            let _open = send;
            loop {
                let message = stream.message().await.unwrap().expect("the stream goes on");
                if let Some(Hears::Recall(recall)) = message.message {
                    return Recall::try_from(recall).unwrap();
                }
            }
        };
        recall.boxed()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_share_a_budget_and_never_spend_more_than_it_has() {
    let world = World::start().await;
    let (mut one, mut two) = (world.node("eu-1", 1).await, world.node("eu-2", 2).await);

    // One request, held and settled with what it really cost; the report makes it known.
    let held = world.held(&mut one, 30).await.unwrap();
    held.settle(&Amounts {
        money: NanoUsd(25 * CENT),
        ..Amounts::default()
    });
    one.report().await;
    let (settled, leased, free) = world.book("key");
    assert_eq!((settled, leased + free), (25, 15));
    assert_eq!(world.book("org").0, 25, "every level is charged");

    // What the other node wants is idle at the first, which is told so on its stream and gives it back.
    let recall = one.recalled().await;
    let idle = world.book("key").1;
    assert!(idle >= 5, "the first has {idle} cents to spare");
    assert_eq!(
        world.held(&mut two, 14).await.unwrap_err(),
        Verdict::Recalling(BudgetId::trusted("key"))
    );
    let recall = tokio::time::timeout(DEADLINE, recall).await.unwrap();
    assert_eq!(recall.incarnation, Incarnation(1));
    one.holder.recall(&recall);
    one.report().await;
    let held = world.held(&mut two, 14).await.unwrap();
    two.report().await; // that it is held, and not to be had

    // One cent is left for both of them, whoever asks.
    let key = BudgetId::trusted("key");
    assert_eq!(
        world.held(&mut one, 2).await.unwrap_err(),
        Verdict::Exhausted(key)
    );
    drop(held); // nobody settled it: it counts whole
    two.report().await;

    // Both go, with all that they spent. A repeated closing changes nothing.
    for node in [&mut one, &mut two] {
        let closing = node.holder.closing();
        for _ in 0..2 {
            let closed = node.say(LeaseCall::Closing(closing.clone())).await.unwrap();
            assert!(
                matches!(closed, LeaseAnswer::Closed { known: true, .. }),
                "{closed:?}"
            );
        }
    }
    assert_eq!(world.book("key"), (39, 0, 1));
    assert_eq!(world.book("org"), (39, 0, 61));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_life_hears_it_and_its_money_stays_charged() {
    let world = World::start().await;
    let mut node = world.node("eu-1", 1).await;
    let held = world.held(&mut node, 30).await.unwrap();
    node.report().await;
    let applied = world.cluster.state().applied;
    node.report().await;
    node.report().await;
    let quiet = world.cluster.state().applied;
    assert!(
        quiet <= applied + 1,
        "what says nothing is not written: {applied} to {quiet}"
    );
    world.run(Command::FenceIncarnation(Incarnation(1))).await;
    let (_, leased, _) = world.book("key");
    assert!(leased >= 30, "{leased}");
    node.report().await;
    assert!(node.holder.fenced());

    // Its node starts anew, and closes the old life with what it knows: the request that runs counts whole.
    let mut next = world.node("eu-1", 2).await;
    let closing = node.holder.closing();
    next.say(LeaseCall::Closing(closing)).await.unwrap();
    assert_eq!(world.book("key"), (30, 0, 10));
    drop(held);

    // Another node's life is nobody else's.
    let stolen = LeaseCall::Enlist(Incarnation(2));
    let mut other = world.node("eu-2", 3).await;
    assert_eq!(
        other.say(stolen).await.unwrap_err().code(),
        Code::FailedPrecondition
    );
}
