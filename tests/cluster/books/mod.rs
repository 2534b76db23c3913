//! Everybody's books of the same events: the replicated sums, the billing stores, the example consumers on SQLite and PostgreSQL, and
//! ClickHouse. Events come twice, the broker goes away, replicas and readers are killed, partitions move, offsets are set back, a
//! store is thrown away: 0 cells by (organization, key, model, hour) differ from the generator's own count.
//!
//! `TOLLWAY_BOOKS_EVENTS` says how many events, 50,000 unless it is set. From a million on the broker's absences are a minute, and three
//! minutes for an hour (one second for twenty); below that, seconds for both.

mod flood;
mod readers;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tollway_proto::usage::UsageEvent;
use tollway_shared::time::UnixMillis;
use tollway_tests::cluster::{PARTITIONS, Plan, TOPIC};
use tollway_tests::postgres::Postgres;
use tollway_tests::process::Process;
use tollway_tests::traffic::{self, Call, Usage};
use tollway_tests::{events, wait};

use self::flood::Flood;
use self::readers::{Cells, ClickHouse, agree};
use crate::chaos::kill_and_restart;
use crate::world::{self, FAST, World};

/// Events of the short run, and from where on it is the long one.
const EVENTS: (u64, u64) = (50_000, 1_000_000);
/// The broker's absences: for a minute and for an hour; of the short and of the long run.
const AWAY: [(Duration, Duration); 2] = [
    (Duration::from_secs(2), Duration::from_secs(6)),
    (Duration::from_secs(60), Duration::from_secs(180)),
];
/// The run in so many parts, with something happening between them.
const PARTS: u64 = 8;
/// Requests that go through real nodes.
const REQUESTS: usize = 200;
/// How long everybody may take to have counted everything.
const PATIENCE: Duration = Duration::from_secs(600);
/// The seed of the events.
const SEED: u64 = 20_261_123;

/// Reads somebody's books.
type Read<'a> = Box<dyn FnMut() -> Result<Cells> + 'a>;

/// The readers that are not replicas.
struct Readers {
    dir: tempfile::TempDir,
    bootstrap: String,
    sqlite: PathBuf,
    postgres: Postgres,
    rust: Vec<Process>,
    python: Vec<Process>,
    clickhouse: ClickHouse,
}

impl Readers {
    fn start(bootstrap: &str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("tollway-books-").tempdir()?;
        let mut readers = Self {
            sqlite: dir.path().join("rust.db"),
            postgres: Postgres::start()?,
            clickhouse: ClickHouse::start(dir.path(), bootstrap, "clickhouse-1")?,
            bootstrap: bootstrap.to_owned(),
            rust: Vec::new(),
            python: Vec::new(),
            dir,
        };
        readers.join()?;
        Ok(readers)
    }

    /// One more of each consumer: partitions move.
    fn join(&mut self) -> Result<()> {
        let (dir, store) = (self.dir.path(), format!("sqlite:///{}", self.sqlite.display()));
        self.rust
            .push(readers::rust_consumer("rust", dir, &self.bootstrap, &store)?);
        let python = readers::python_consumer("python", dir, &self.bootstrap, &self.postgres.url())?;
        self.python.push(python);
        Ok(())
    }

    /// The first of each consumer dies: partitions move again.
    fn kill_first(&mut self) {
        self.rust.remove(0).kill();
        self.python.remove(0).kill();
    }

    /// Stored offsets go back under running consumers, and ClickHouse, killed, reads the whole topic again.
    fn rewind(&mut self) -> Result<()> {
        let back = "UPDATE usage_offsets SET next_offset = next_offset / 2";
        let sqlite = rusqlite::Connection::open(&self.sqlite)?;
        sqlite.busy_timeout(Duration::from_secs(30))?;
        let moved = sqlite.execute(back, [])?;
        assert_eq!(
            moved,
            usize::try_from(PARTITIONS)?,
            "every partition of the Rust consumer"
        );
        let mut postgres = postgres::Client::connect(&self.postgres.url(), postgres::NoTls)?;
        // All of it at once: the consumer's transactions take its rows in another order.
        let mut rewind = postgres.transaction()?;
        rewind.batch_execute("LOCK TABLE usage_offsets IN EXCLUSIVE MODE")?;
        let moved = rewind.execute(back, &[])?;
        rewind.commit()?;
        assert_eq!(
            moved,
            u64::from(PARTITIONS.unsigned_abs()),
            "every partition of the Python consumer"
        );
        self.clickhouse.kill();
        self.clickhouse = ClickHouse::start(self.dir.path(), &self.bootstrap, "clickhouse-2")?;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn nobodys_books_differ_from_the_generators_count_in_any_cell() -> Result<()> {
    let _turn = crate::turn().await;
    let count = match std::env::var("TOLLWAY_BOOKS_EVENTS") {
        Ok(text) => text.parse().context("TOLLWAY_BOOKS_EVENTS is a number")?,
        Err(_) => EVENTS.0,
    };
    let (minute, hour) = AWAY[usize::from(count >= EVENTS.1)];
    println!("seed {SEED}, {count} events");
    let mut world = World::start(Plan {
        replicas: 3,
        nodes: vec!["eu"],
        brokers: 1,
    })
    .await?;
    world.cluster.announce(" openraft::");
    let bootstrap = world.cluster.kafka.as_ref().context("Kafka")?.bootstrap();
    let now = UnixMillis(i64::try_from(
        std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_millis(),
    )?);
    let address = bootstrap.clone();
    let mut readers = tokio::task::spawn_blocking(move || Readers::start(&address)).await??;
    let mut flood = Flood::new(&bootstrap, SEED, now)?;
    let begun = Instant::now();
    for part in 0..PARTS {
        let sending = tokio::task::spawn_blocking(move || flood.send(count / PARTS).map(|()| flood));
        println!("{:?}: part {part}", begun.elapsed());
        match part {
            0 => requests(&world).await,
            1 => leader_dies(&mut world, begun).await?,
            2 => away(&world, minute).await?,
            3 => readers.join()?,
            4 => {
                readers.kill_first();
                away(&world, hour).await?;
            }
            5 => tokio::task::block_in_place(|| readers.rewind())?,
            6 => store_is_thrown_away(&mut world)?,
            _ => {
                for replica in 0..3 {
                    kill_and_restart(&mut world, replica, "replica", begun).await?;
                }
            }
        }
        flood = sending.await??;
    }
    let flood = tokio::task::spawn_blocking(move || flood.flush().map(|()| flood)).await??;
    let sent = begun.elapsed();
    println!(
        "{sent:?}: {} events are in {} records",
        flood.events, flood.records
    );

    let mut wanted = flood.cells;
    for event in &through_nodes(&world, &bootstrap).await? {
        flood::add(&mut wanted, event);
    }
    everybody_agrees(&world, &mut readers, &wanted, begun).await?;
    println!(
        "{:?}: 0 of {} cells differ, {} requests; counted {:?} after the last was sent",
        begun.elapsed(),
        wanted.len(),
        wanted.values().map(|sums| sums[0]).sum::<i128>(),
        begun.elapsed().saturating_sub(sent)
    );
    for process in readers.rust.iter_mut().chain(&mut readers.python) {
        process.terminate()?;
        assert!(process.wait(PATIENCE)?.success(), "{}", process.last_words());
        assert!(!process.stderr().contains("ALARM"), "{}", process.stderr());
    }
    Ok(())
}

/// Waits until each of the books is the generator's.
async fn everybody_agrees(
    world: &World,
    readers: &mut Readers,
    wanted: &Cells,
    begun: Instant,
) -> Result<()> {
    let days = readers::by_day(wanted);
    wait::until_ok(PATIENCE, "the replicated sums agree", async || {
        agree(&readers::of_raft(&world.cluster).await?, &days)
    })
    .await;
    println!("{:?}: the replicated sums agree", begun.elapsed());
    let mut others: Vec<(String, &Cells, Read<'_>)> = Vec::new();
    for replica in 0..3 {
        let read = move || readers::of_replica(&world.cluster, replica);
        let name = format!("billing store of replica {}", replica + 1);
        others.push((name, wanted, Box::new(read)));
    }
    let (sqlite, url) = (readers.sqlite.clone(), readers.postgres.url());
    others.push((
        "Rust consumer, SQLite".into(),
        wanted,
        Box::new(move || readers::of_consumer(&sqlite)),
    ));
    others.push((
        "Python consumer, PostgreSQL".into(),
        wanted,
        Box::new(move || readers::of_postgres(&url)),
    ));
    let clickhouse = &mut readers.clickhouse;
    others.push(("ClickHouse".into(), wanted, Box::new(move || clickhouse.cells())));
    for (name, wanted, mut read) in others {
        let what = format!("{name} agrees");
        wait::until_ok(PATIENCE, &what, || {
            let done = tokio::task::block_in_place(&mut read).and_then(|found| agree(&found, wanted));
            std::future::ready(done)
        })
        .await;
        println!("{:?}: {what}", begun.elapsed());
    }
    Ok(())
}

async fn leader_dies(world: &mut World, begun: Instant) -> Result<()> {
    let leader = world.cluster.leader().await?;
    kill_and_restart(world, leader, "leader", begun).await
}

/// The broker dies and comes back later.
async fn away(world: &World, time: Duration) -> Result<()> {
    let kafka = world.cluster.kafka.as_ref().context("Kafka")?;
    kafka.kill_broker(1)?;
    tokio::time::sleep(time).await; // not a synchronisation: this is how long it is away
    tokio::task::block_in_place(|| kafka.restart_broker(1))
}

/// A replica dies, and its billing store with it: it is made anew from the topic.
fn store_is_thrown_away(world: &mut World) -> Result<()> {
    world.cluster.replicas[2].kill();
    let file = readers::billing_file(&world.cluster, 2);
    remove_store(&file)?;
    world.cluster.replicas[2].start()
}

fn remove_store(file: &Path) -> Result<()> {
    std::fs::remove_file(file)?;
    for suffix in ["-wal", "-shm"] {
        let beside = PathBuf::from(format!("{}{suffix}", file.display()));
        if beside.exists() {
            std::fs::remove_file(beside)?;
        }
    }
    Ok(())
}

/// Some requests through a real node and its spool.
async fn requests(world: &World) {
    let client = traffic::client();
    let (url, key) = (&world.cluster.nodes[0].api_url, &world.keys[0].1);
    for number in 0..REQUESTS {
        let call = match number % 2 {
            0 => Call::plain(FAST, format!("book {number}")),
            _ => Call::streamed(FAST, format!("book {number} [[tw:chunks=3]]"), Usage::Asked),
        };
        let answer = traffic::send(&client, url, key, &call).await;
        assert!(answer.is_good(), "{answer:?}");
    }
}

/// The events of those requests, after a comparison with what the provider counted.
async fn through_nodes(world: &World, bootstrap: &str) -> Result<Vec<UsageEvent>> {
    let seen = world.seen();
    let found = wait::until_ok(
        PATIENCE,
        "an event for each request through the node",
        async || {
            let bootstrap = bootstrap.to_owned();
            let read = move || events::read_of(&bootstrap, TOPIC, "first");
            let records = tokio::task::spawn_blocking(read).await??;
            let found: Vec<UsageEvent> = events::deduplicated(&records)?.into_iter().cloned().collect();
            anyhow::ensure!(found.len() == seen.len(), "{} of {}", found.len(), seen.len());
            Ok::<_, anyhow::Error>(found)
        },
    )
    .await;
    let compared = world::compare(&seen, &found.iter().collect::<Vec<_>>(), world::listed)?;
    assert_eq!(compared.exact, REQUESTS, "{compared:?}");
    Ok(found)
}
