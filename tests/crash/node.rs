//! The node that dies, and all that it needs to live.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tollway_data::usage::OLDEST_UNACKED_SECONDS;
use tollway_tests::cluster::{Cluster, Plan, TOPIC};
use tollway_tests::events::{self, Recorded};
use tollway_tests::provider::{End, Provider, Route, Seen};
use tollway_tests::traffic;
use tollway_tests::wait;

use crate::phase::Phase;
use crate::tracer::{self, Point, Thread, Tracer};
use crate::workload::{self, FAST, LONG};

/// The seed of all prompts.
const SEED: u64 = 20_261_123;
/// How long the threads behind the requests may take to die after the last of these.
const DIES_WITHIN: Duration = Duration::from_millis(400);
/// How long a start may take to come to its point: deleting what is delivered comes a second late.
const START_WITHIN: Duration = Duration::from_secs(4);
/// How long a node may take to have all its threads.
const THREADS_WITHIN: Duration = Duration::from_secs(20);
/// How long the last events may take.
const DELIVERED_WITHIN: Duration = Duration::from_secs(60);
/// How long it may take until a reader of the topic has all: with every point taken it is 100,000 records, each checked against the schema.
const READ_WITHIN: Duration = Duration::from_secs(300);
/// Calls of a start that may change or lose what is on disk.
const CALLS_OF_START: &str =
    "write,pwrite64,fsync,fdatasync,ftruncate,unlink,unlinkat,rmdir,rename,renameat,renameat2";
/// The reads, one of which a node dies at that shall leave a stream open.
const OPEN_AT: std::ops::Range<usize> = 14..34;
/// What a path of the spool has in it.
const SPOOL: &str = "/spool/";

/// A run that a point was tried in.
#[derive(Debug, Clone)]
pub(crate) struct Hit {
    /// The point.
    pub(crate) point: Point,
    /// In which phase the node died; none when it did not come to the point.
    pub(crate) died_in: Option<Phase>,
}

/// A node with its control plane, broker and providers.
pub(crate) struct Node {
    cluster: Cluster,
    providers: BTreeMap<&'static str, Provider>,
    key: String,
    rng: ChaCha8Rng,
    traces: PathBuf,
    /// It runs and has learned what it has to.
    fit: bool,
}

impl Node {
    /// Starts everything.
    pub(crate) async fn start() -> Result<Self> {
        let cluster = Cluster::start(Plan {
            replicas: 1,
            nodes: vec!["eu"],
            brokers: 1,
        })
        .await?;
        let mut providers = BTreeMap::new();
        for (name, ..) in workload::RULES {
            let provider = Provider::start(name);
            let dialect = if name == "c" { "anthropic" } else { "openai" };
            cluster.add_provider(name, dialect, &provider).await?;
            providers.insert(name, provider);
        }
        let price = ["0.137", "0.419"];
        cluster
            .add_model(FAST, &[("a", "tw-small", 0, price), ("b", "tw-small", 1, price)])
            .await?;
        cluster.add_model(LONG, &[("c", "tw-large", 0, price)]).await?;
        let (_, key) = cluster.add_tenant("first").await?;
        let status = cluster.admin.get("cluster").await?;
        let revision = status["revision"].as_u64().context("the cluster's revision")?;
        cluster.settled_at(revision, Duration::from_secs(20)).await;
        // One core, so that one thread has all requests; connections that are too old by the next one, so that each connects.
        let config = cluster.nodes[0].data_dir.join("data.toml");
        let text =
            std::fs::read_to_string(&config)? + "[server]\nthreads = 1\n[upstream]\nidle_timeout_ms = 1\n";
        std::fs::write(&config, text)?;
        let traces = cluster.dir.path().join("traces");
        std::fs::create_dir_all(&traces)?;
        Ok(Self {
            cluster,
            providers,
            key,
            rng: ChaCha8Rng::seed_from_u64(SEED),
            traces,
            fit: false,
        })
    }

    /// The calls that a thread makes while the requests pass.
    pub(crate) async fn points(&mut self, thread: Thread) -> Result<Vec<Point>> {
        self.revive().await?;
        let trace = self.traces.join(format!("{}.all", thread.name()));
        let id = self.id_of(thread).await?;
        let tracer = Tracer::attach(&id, None, &trace)?;
        self.ask(0).await;
        tokio::time::sleep(DIES_WITHIN).await; // what the threads behind do comes later
        tracer.ended()?;
        Ok(tracer::calls(
            thread,
            &std::fs::read_to_string(trace)?,
            &self.ports(),
        ))
    }

    /// The calls on the spool that a start makes after a death.
    pub(crate) async fn points_of_start(&mut self) -> Result<Vec<Point>> {
        self.leave_one_open().await?;
        let trace = self.traces.join("start.all");
        self.member()
            .start_under(&tracer::wrapper(None, CALLS_OF_START, &trace))?;
        self.ready().await;
        tokio::time::sleep(START_WITHIN).await;
        self.kill();
        let text = std::fs::read_to_string(trace)?;
        // Each line begins with its thread's id; counts are by thread.
        let mut by_thread: BTreeMap<&str, String> = BTreeMap::new();
        for (id, line) in text.lines().filter_map(|line| line.split_once(' ')) {
            let lines = by_thread.entry(id).or_default();
            *lines += line.trim_start();
            lines.push('\n');
        }
        let mut points = Vec::new();
        for lines in by_thread.values() {
            let calls = tracer::calls(Thread::All, lines, &[]);
            let spool = lines
                .lines()
                .filter(|line| crate::phase::Line::read(line).is_some())
                .map(|line| line.contains(SPOOL));
            points.extend(
                calls
                    .into_iter()
                    .zip(spool)
                    .filter(|(_, spool)| *spool)
                    .map(|(point, _)| point),
            );
        }
        Ok(points)
    }

    /// Runs up to the point, and says where the node died.
    pub(crate) async fn run(&mut self, point: Point, number: usize) -> Result<Hit> {
        let trace = self.traces.join(format!("{number}"));
        if point.thread == Thread::All {
            self.leave_one_open().await?;
            let wrapper = tracer::wrapper(Some(&point), CALLS_OF_START, &trace);
            self.member().start_under(&wrapper)?;
            let died = self.dies(START_WITHIN).await;
            self.kill();
            let died_in = died.then_some(point.phase);
            return Ok(Hit { point, died_in });
        }
        self.revive().await?;
        let id = self.id_of(point.thread).await?;
        let tracer = Tracer::attach(&id, Some(&point), &trace)?;
        self.ask(number).await;
        let died = self.dies(DIES_WITHIN).await;
        tracer.ended()?;
        let last = if died {
            self.kill();
            let text = std::fs::read_to_string(&trace)?;
            tracer::calls(point.thread, &text, &self.ports()).pop()
        } else {
            None
        };
        Ok(Hit {
            point,
            died_in: last.map(|last| last.phase),
        })
    }

    /// A last life, in which all is delivered: what the providers saw, by request, and what Kafka holds.
    pub(crate) async fn ended(&mut self) -> Result<(BTreeMap<String, Vec<Seen>>, Vec<Recorded>)> {
        self.revive().await?;
        let bootstrap = self.cluster.kafka.as_ref().context("Kafka")?.bootstrap();
        let seen = self.seen()?;
        let all = async || {
            let bootstrap = bootstrap.clone();
            tokio::task::spawn_blocking(move || events::read_all(&bootstrap, TOPIC)).await?
        };
        wait::until_ok(READ_WITHIN, "an event for every request", async || {
            let records = all().await?;
            let missing = seen.keys().find(|id| {
                !records
                    .iter()
                    .any(|record| record.event.request_id.as_str() == **id)
            });
            ensure!(missing.is_none(), "{missing:?} has none");
            Ok::<_, anyhow::Error>(())
        })
        .await;
        // Once more, when nothing is under way: what is compared must be all there is.
        self.stopped().await?;
        Ok((seen, all().await?))
    }

    /// Waits until the node's spool has nothing left to deliver, and ends it.
    async fn stopped(&mut self) -> Result<()> {
        let node = &self.cluster.nodes[0].member;
        wait::until_ok(DELIVERED_WITHIN, "everything is delivered", async || {
            let oldest = node.metric(&self.cluster.http, OLDEST_UNACKED_SECONDS).await?;
            ensure!(oldest == 0.0, "the oldest waits for {oldest} s");
            Ok::<_, anyhow::Error>(())
        })
        .await;
        self.kill();
        Ok(())
    }

    fn seen(&self) -> Result<BTreeMap<String, Vec<Seen>>> {
        let mut all: BTreeMap<String, Vec<Seen>> = BTreeMap::new();
        for seen in self.providers.values().flat_map(Provider::seen) {
            if !matches!(seen.route, Route::Chat | Route::Messages) {
                continue;
            }
            ensure!(seen.end != End::Open, "a provider still serves {seen:?}");
            let id = seen.request_id.clone().context("requests have ids")?;
            all.entry(id).or_default().push(seen);
        }
        Ok(all)
    }

    /// Makes it a node that runs and has learned.
    async fn revive(&mut self) -> Result<()> {
        if self.fit && self.member().is_running() {
            return Ok(());
        }
        self.kill();
        self.member().start()?;
        self.ready().await;
        let client = traffic::client();
        for call in workload::lessons(&mut self.rng) {
            let answer = traffic::send(&client, &self.cluster.nodes[0].api_url, &self.key, &call).await;
            ensure!(answer.is_good(), "{call:?}: {answer:?}");
        }
        self.fit = true;
        Ok(())
    }

    /// Leaves a spool behind with a request that has begun and not ended.
    async fn leave_one_open(&mut self) -> Result<()> {
        self.revive().await?;
        let point = Point {
            thread: Thread::Core,
            call: "recvfrom".into(),
            nth: self.rng.random_range(OPEN_AT),
            phase: Phase::MidStream,
        };
        let id = self.id_of(point.thread).await?;
        let tracer = Tracer::attach(&id, Some(&point), &self.traces.join("open"))?;
        self.ask(0).await;
        ensure!(self.dies(DIES_WITHIN).await, "it wrote less than expected");
        tracer.ended()?;
        self.kill();
        Ok(())
    }

    /// Sends the requests one after the other until the node is dead. Run 0 is none of those that are compared by phase.
    async fn ask(&mut self, run: usize) {
        let client = traffic::client();
        for call in workload::requests(&mut self.rng, run) {
            if !self.member().is_running() {
                break;
            }
            // Whatever comes of it: the books know.
            traffic::send(&client, &self.cluster.nodes[0].api_url, &self.key, &call).await;
        }
    }

    async fn dies(&mut self, within: Duration) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < within {
            if !self.member().is_running() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        false
    }

    fn kill(&mut self) {
        self.fit = false;
        self.member().kill();
    }

    async fn ready(&self) {
        self.cluster.nodes[0].member.ready(&self.cluster.http).await;
    }

    fn member(&mut self) -> &mut tollway_tests::cluster::Member {
        &mut self.cluster.nodes[0].member
    }

    /// The id of one of its threads, some of which begin a little late.
    async fn id_of(&mut self, thread: Thread) -> Result<String> {
        let pid = self.member().pid().context("it runs")?;
        Ok(
            wait::until_ok(THREADS_WITHIN, "the node has all its threads", async || {
                thread.id(pid)
            })
            .await,
        )
    }

    fn ports(&self) -> Vec<u16> {
        self.providers
            .values()
            .map(|provider| provider.address().port())
            .collect()
    }
}
