//! The push stream's node end: connects to whichever replica answers, hands messages to the [`Intake`] and does what it says, in
//! the order disk → swap → answer.
//!
//! Runs beside the serving threads: decoding and checking happen here, the request path only ever loads a finished snapshot. An
//! error here leaves what is in force in force.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use metrics::{counter, gauge};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tollway_proto::push::v1::control_message::Message as Hears;
use tollway_proto::push::v1::node_message::Message as Says;
use tollway_proto::push::v1::push_client::PushClient;
use tollway_proto::push::v1::{Ack, ControlMessage, Hello, NodeMessage};
use tollway_proto::push::{MESSAGE_BYTES_MAX, SILENCE_MS_MAX};
use tollway_shared::ids::{ClusterId, NodeId, Region, Revision};
use tollway_shared::snapshot::Snapshot;
use tollway_shared::time::UnixMillis;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::Live;
use super::copying::{Copied, Copying, finished};
use super::disk::Disk;
use super::form::{Form, is_urgent};
use super::freshness::Freshness;
use super::intake::{Action, Caps, Intake};
use super::recall::{self, Recalls};
use super::removal::Removal;
use super::trial::{LASTED, Trial};
use crate::clock;
use crate::metrics::{CONTROL_CONNECTED, SNAPSHOT_REJECTED_TOTAL};

/// Longest wait before the first new attempt.
const FIRST_RETRY_MAX: Duration = Duration::from_millis(250);
/// Longest wait between attempts while no replica answers: new revisions must reach a node within seconds of their return.
const RETRY_MAX: Duration = Duration::from_secs(3);
/// Longest wait between attempts after a replica has refused this node.
const REFUSED_RETRY_MAX: Duration = Duration::from_secs(30);
/// A connection that cannot be made in this time is given up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Answers that wait to be sent; the control plane asks one question at a time.
const ANSWERS_MAX: usize = 16;
/// Snapshots up to this many resources are on disk before they are in force. Larger ones are in force first: a copy takes seconds.
const DISK_FIRST_RESOURCES_MAX: usize = 20_000;
/// Messages that wait while a copy is written; the rest waits in the stream.
const HELD_MAX: usize = 4;
/// How often the time of the last contact is noted on disk.
const CONTACT_NOTED_EVERY: Duration = Duration::from_secs(60);

/// Why a connection could not be made.
pub type DialFault = Box<dyn std::error::Error + Send + Sync>;
/// Connects to a control peer (`host:port`): mutual TLS in a real node, plain TCP in tests.
pub type Dial = Arc<dyn Fn(&str) -> BoxFuture<'static, Result<Channel, DialFault>> + Send + Sync>;

/// What a subscription needs to know.
#[derive(Clone)]
pub struct Config {
    /// The cluster this node belongs to.
    pub cluster: ClusterId,
    /// This node.
    pub node: NodeId,
    /// Where it runs.
    pub region: Region,
    /// Control peers, `host:port`, tried in random order.
    pub peers: Vec<String>,
    /// Where the last good snapshots are kept.
    pub data_dir: PathBuf,
    /// How to connect.
    pub dial: Dial,
    /// What a snapshot may hold at most.
    pub caps: Caps,
    /// Who obeys recalls of leases.
    pub recalls: Recalls,
}

/// Serves from disk at once, then follows the control plane until `shutdown`.
///
/// Run it on a thread of its own (see [`spawn`]) or at least not on a serving thread.
pub async fn run(live: Live, config: Config, shutdown: CancellationToken) -> std::io::Result<()> {
    let mut node = Node::boot(live, config)?;
    let mut failures = 0;
    loop {
        let started = Instant::now();
        let ended = tokio::select! {
            () = shutdown.cancelled() => break,
            ended = node.follow() => ended,
        };
        failures = if ended.heard { 1 } else { failures + 1 };
        let most = match failures {
            1 => FIRST_RETRY_MAX,
            n if ended.refused => Duration::from_secs(1 << u32::min(n, 6)).min(REFUSED_RETRY_MAX),
            n => Duration::from_millis(250 << u32::min(n, 6)).min(RETRY_MAX),
        };
        tracing::info!(
            reason = %ended.reason,
            lasted_ms = started.elapsed().as_millis() as u64,
            "not connected to the control plane"
        );
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = tokio::time::sleep(most.mul_f64(random_fraction())) => {}
        }
    }
    node.trial.end();
    Ok(())
}

/// Runs [`run`] on a thread of its own, so that decoding a large snapshot never takes a serving thread.
pub fn spawn(
    live: Live,
    config: Config,
    shutdown: CancellationToken,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new().name("catalog".into()).spawn(move || {
        if let Err(fault) = runtime.block_on(run(live, config, shutdown)) {
            tracing::error!(%fault, "the catalog cannot be kept");
        }
    })
}

/// Puts the newest good snapshot on disk in force; run by [`run`], and by a node that wants to be ready before it listens.
pub fn boot(live: &Live, disk: &Disk, trial: &mut Trial) -> Option<Arc<Snapshot>> {
    let loaded = disk.newest(trial.quarantined())?;
    let snapshot = Arc::new(loaded.snapshot);
    trial.begin(snapshot.revision);
    live.set_snapshot(snapshot.clone(), loaded.at);
    tracing::info!(revision = %snapshot.revision, resources = snapshot.len(), "serving from the copy on disk");
    Some(snapshot)
}

struct Node {
    live: Live,
    config: Config,
    disk: Disk,
    trial: Trial,
    intake: Intake,
    /// When the snapshot in force has lasted.
    lasts_at: Option<Instant>,
    contact_noted: Option<Instant>,
    freshness: Freshness,
    removal: Removal,
    copying: Option<Copying>,
    /// A newer snapshot came into force while one was being copied.
    copy_again: bool,
}

/// How a connection ended.
struct Ended {
    reason: String,
    /// The control plane said something on it.
    heard: bool,
    /// The control plane does not want this node.
    refused: bool,
}

impl Node {
    fn boot(live: Live, config: Config) -> std::io::Result<Self> {
        let disk = Disk::open(&config.data_dir, config.cluster.clone())?;
        let removal = Removal::open(live.clone(), disk.folder());
        let mut trial = Trial::open(disk.folder(), &disk.revisions());
        let current = boot(&live, &disk, &mut trial);
        let lasts_at = current.is_some().then(|| Instant::now() + LASTED);
        let intake = Intake::new(current, config.caps, trial.quarantined());
        let freshness = Freshness::new(UnixMillis(clock::now().0 - live.age_ms()));
        Ok(Self {
            live,
            config,
            disk,
            trial,
            intake,
            lasts_at,
            contact_noted: None,
            freshness,
            removal,
            copying: None,
            copy_again: false,
        })
    }

    /// Tries every peer once, from a random one on, and follows the first that answers until the stream ends.
    async fn follow(&mut self) -> Ended {
        let peers = self.config.peers.clone();
        let first = (random_fraction() * peers.len() as f64) as usize;
        let mut last = Ended {
            reason: "no control peer is configured".into(),
            heard: false,
            refused: false,
        };
        for peer in peers.iter().cycle().skip(first).take(peers.len()) {
            last = match self.connect(peer).await {
                Ok((answers, stream)) => {
                    tracing::info!(%peer, "connected to the control plane");
                    gauge!(CONTROL_CONNECTED).set(1.0);
                    let ended = self.listen(answers, stream).await;
                    gauge!(CONTROL_CONNECTED).set(0.0);
                    ended
                }
                Err(ended) => ended,
            };
            if last.heard {
                break;
            }
        }
        last
    }

    async fn connect(
        &mut self,
        peer: &str,
    ) -> Result<(mpsc::Sender<NodeMessage>, Streaming<ControlMessage>), Ended> {
        let ended = |reason: String, refused| Ended {
            reason: format!("{peer}: {reason}"),
            heard: false,
            refused,
        };
        let channel = match timeout(CONNECT_TIMEOUT, (self.config.dial)(peer)).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(fault)) => return Err(ended(chain(&*fault), false)),
            Err(_) => return Err(ended("no connection in time".into(), false)),
        };
        let (send, receive) = mpsc::channel(ANSWERS_MAX);
        self.intake.reconnected();
        let hello = self.hello();
        send.try_send(say(Says::Hello(hello)))
            .expect("a new queue has room");
        let mut client = PushClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let subscribing = client.subscribe(ReceiverStream::new(receive));
        match timeout(CONNECT_TIMEOUT, subscribing).await {
            Ok(Ok(stream)) => Ok((send, stream.into_inner())),
            Ok(Err(status)) => Err(ended(status.message().to_owned(), self.is_refusal(&status))),
            Err(_) => Err(ended("no answer in time".into(), false)),
        }
    }

    fn hello(&self) -> Hello {
        let current = self.intake.current();
        Hello {
            cluster: self.config.cluster.to_string(),
            node: self.config.node.to_string(),
            region: self.config.region.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            have_revision: current.map_or(0, |snapshot| snapshot.revision.0),
            have_hash: current
                .map(|snapshot| snapshot.hash().to_bytes().to_vec().into())
                .unwrap_or_default(),
        }
    }

    async fn listen(
        &mut self,
        answers: mpsc::Sender<NodeMessage>,
        stream: Streaming<ControlMessage>,
    ) -> Ended {
        let ended = self.hear(&answers, stream).await;
        if self.is_waiting() {
            // What was accepted is put in force, stream or no stream.
            let done = finished(&mut self.copying).await;
            self.copied(done, &answers);
        }
        ended
    }

    async fn hear(
        &mut self,
        answers: &mpsc::Sender<NodeMessage>,
        mut stream: Streaming<ControlMessage>,
    ) -> Ended {
        let silence = Duration::from_millis(SILENCE_MS_MAX);
        let mut heard = false;
        let mut silent_at = Instant::now() + silence;
        let mut held = VecDeque::with_capacity(HELD_MAX);
        loop {
            while !self.is_waiting()
                && let Some(message) = held.pop_front()
            {
                self.take_in(message, answers);
                silent_at = Instant::now() + silence;
            }
            let lasts_at = self.lasts_at;
            tokio::select! {
                done = finished(&mut self.copying) => self.copied(done, answers),
                message = stream.message(), if held.len() < HELD_MAX => match message {
                    Ok(Some(message)) => {
                        heard = true;
                        if let Some(Hears::Heartbeat(heartbeat)) = &message.message {
                            self.vouched(Revision(heartbeat.revision));
                        }
                        if self.is_waiting() && !is_urgent(&message) {
                            held.push_back(message);
                        } else {
                            self.take_in(message, answers);
                        }
                        // Taking in a large snapshot takes seconds, in which nothing was listened for.
                        silent_at = Instant::now() + silence;
                    }
                    Ok(None) => return Ended { reason: "the control plane closed the stream".into(), heard, refused: false },
                    Err(status) => {
                        let refused = self.is_refusal(&status);
                        return Ended { reason: status.message().to_owned(), heard: heard && !refused, refused };
                    }
                },
                () = until(lasts_at) => {
                    self.lasts_at = None;
                    self.trial.lasted();
                }
                () = tokio::time::sleep_until(silent_at), if held.len() < HELD_MAX => {
                    return Ended { reason: "the control plane went silent".into(), heard, refused: false };
                }
            }
        }
    }

    /// Whether the control plane does not want this node.
    fn is_refusal(&self, status: &Status) -> bool {
        self.removal.refused(status);
        matches!(
            status.code(),
            Code::PermissionDenied | Code::Unauthenticated | Code::FailedPrecondition
        )
    }

    /// Whether a snapshot waits for its copy before it may be put in force.
    fn is_waiting(&self) -> bool {
        self.copying
            .as_ref()
            .is_some_and(|copying| copying.waiting.is_some())
    }

    /// Does what the intake says. A panic in it costs one message, not the node.
    fn take_in(&mut self, message: ControlMessage, answers: &mpsc::Sender<NodeMessage>) {
        if recall::is_passed_on(&message, &self.config.recalls) {
            return;
        }
        let form = Form::of(&message);
        let intake = &mut self.intake;
        let Ok(action) = catch_unwind(AssertUnwindSafe(|| intake.feed(message))) else {
            tracing::error!("a message of the control plane could not be taken in");
            self.intake.reconnected();
            return;
        };
        match action {
            None => {}
            Some(Action::Stop(stops)) => self.live.set_stops(stops),
            Some(Action::Install { snapshot, ack }) => {
                form.count();
                self.install(snapshot, ack, answers);
            }
            Some(Action::Ack(ack)) => answer(answers, Says::Ack(ack)),
            Some(Action::Nack(nack)) => {
                counter!(SNAPSHOT_REJECTED_TOTAL).increment(1);
                let reason = nack.reasons.first();
                tracing::warn!(
                    revision = nack.rejected_revision,
                    kept = nack.kept_revision,
                    kind = reason.map_or("", |reason| &reason.kind),
                    id = reason.map_or("", |reason| &reason.id),
                    reason = reason.map_or("", |reason| &reason.text),
                    "a revision was refused"
                );
                answer(answers, Says::Nack(nack));
            }
        }
    }

    /// Small snapshots are on disk before they are in force; large ones are copied behind, one copy at a time.
    fn install(&mut self, snapshot: Arc<Snapshot>, ack: Ack, answers: &mpsc::Sender<NodeMessage>) {
        if self.copying.is_some() {
            self.copy_again = true;
            self.use_now(Some((snapshot, ack)), answers);
        } else if snapshot.len() > DISK_FIRST_RESOURCES_MAX {
            self.copying = Some(self.copy(snapshot.clone(), None));
            self.use_now(Some((snapshot, ack)), answers);
        } else {
            self.copying = Some(self.copy(snapshot.clone(), Some((snapshot, ack))));
        }
    }

    fn copy(&self, snapshot: Arc<Snapshot>, waiting: Option<(Arc<Snapshot>, Ack)>) -> Copying {
        let (disk, at) = (self.disk.clone(), self.freshness.of(snapshot.revision));
        let task = tokio::task::spawn_blocking(move || disk.write(&snapshot, at));
        Copying { task, waiting }
    }

    fn copied(&mut self, done: Copied, answers: &mpsc::Sender<NodeMessage>) {
        self.copying = None;
        if let Err(fault) = done.written {
            // Without a disk the node still has to follow: prices and revocations matter more than the next start.
            tracing::error!(%fault, "a snapshot could not be kept on disk");
        }
        self.use_now(done.waiting, answers);
        if std::mem::take(&mut self.copy_again)
            && let Some(newest) = self.intake.current().cloned()
        {
            self.copying = Some(self.copy(newest, None));
        }
    }

    fn use_now(&mut self, waiting: Option<(Arc<Snapshot>, Ack)>, answers: &mpsc::Sender<NodeMessage>) {
        let Some((snapshot, ack)) = waiting else {
            return;
        };
        let revision = snapshot.revision;
        self.trial.begin(revision);
        self.lasts_at = Some(Instant::now() + LASTED);
        self.live
            .set_snapshot(snapshot, self.freshness.comes_into_force(revision));
        tracing::info!(%revision, "a new revision is in force");
        answer(answers, Says::Ack(ack));
    }

    /// Only this makes what is in force fresher: a replica without a majority may still send what it has, but does not vouch for it.
    fn vouched(&mut self, revision: Revision) {
        let now = clock::now();
        let current = self.live.snapshot().map(|snapshot| snapshot.revision);
        if !self.freshness.vouched(revision, now, current) {
            return;
        }
        self.live.touch(now);
        self.removal.vouched();
        if self
            .contact_noted
            .is_none_or(|at| at.elapsed() >= CONTACT_NOTED_EVERY)
        {
            self.contact_noted = Some(Instant::now());
            if let Err(fault) = self.disk.note_contact(now) {
                tracing::warn!(%fault, "the time of the last contact cannot be noted");
            }
        }
    }
}

/// Never, when there is nothing to wait for.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn say(message: Says) -> NodeMessage {
    NodeMessage {
        message: Some(message),
    }
}

/// The control plane asks one question at a time, so a full queue is a stream that is ending.
fn answer(answers: &mpsc::Sender<NodeMessage>, message: Says) {
    if answers.try_send(say(message)).is_err() {
        tracing::warn!("an answer to the control plane could not be sent");
    }
}

fn chain(fault: &(dyn std::error::Error + 'static)) -> String {
    let mut text = fault.to_string();
    let mut cause = fault.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}

/// Between 0 and 1, from the operating system's generator.
fn random_fraction() -> f64 {
    let bits = getrandom::u32().unwrap_or(u32::MAX / 2);
    f64::from(bits) / (f64::from(u32::MAX) + 1.0)
}
