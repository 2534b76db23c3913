//! The disk of a node's usage spool is full, to the last byte: first because Kafka is away for too long, then because somebody else's
//! file is on it, when the node starts or while answers are running.
//!
//! Requests are refused before they could reach a provider, with an error that says why and that another try is worthwhile; answers
//! that run go on to their ends; what reached the provider has exactly one event; and once there is room the node serves again by
//! itself. The settings of the spool are the defaults, which were made for a larger disk.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use tollway_tests::cluster::Plan;
use tollway_tests::events;
use tollway_tests::small_disk::SmallDisk;
use tollway_tests::traffic::{self, Answer, Call, Usage};
use tollway_tests::{own, wait};

use crate::world::{self, FAST, World};

/// The disk: the reserve of a spool with default settings, and as much for records.
const DISK_BYTES: u64 = (32 << 20) + (2 << 20);
/// A model that costs nothing. It has events all the same, and what cannot be recorded is not served.
const GIFT: &str = "acme/gift:free";
/// What records take of it before the rest is taken at once, a page, and what a record and the two of a request take at least.
const RECORDS_BYTES: u64 = 3 << 19;
const PAGE: u64 = 4096;
const RECORD_LEAST: u64 = 256;
const BOTH_RECORDS: u64 = 1_200;
/// Callers at a time, and how many times all of them ask before we give up filling the disk.
const CALLERS: usize = 32;
const ROUNDS_MAX: usize = 200;
/// How long a full disk is watched: longer than the node waits before it looks for room again, several times.
const WATCHED: Duration = Duration::from_secs(3);
/// When to give up waiting for one thing.
const DEADLINE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_sheds_and_loses_nothing_and_serves_again_once_there_is_room() -> Result<()> {
    let _turn = crate::turn().await;
    let name = "full_disk::a_full_disk_sheds_and_loses_nothing_and_serves_again_once_there_is_room";
    if !tokio::task::block_in_place(|| own::enter(name, &[]))? {
        return Ok(());
    }
    let mut world = World::start(Plan {
        replicas: 1,
        nodes: vec!["eu"],
        brokers: 1,
    })
    .await?;
    for said in [
        "the usage spool refused",
        "no room on the disk",
        "an earlier usage spool cannot be recovered yet",
    ] {
        world.cluster.announce(said);
    }
    let gift = ("a", "tw-small", 0, world::prices_text("a"));
    world.cluster.add_model(GIFT, &[gift]).await?;
    let disk = with_small_disk(&mut world).await?;
    let mut answers = kafka_is_away(&world, &disk).await?;
    answers.extend(a_node_starts(&mut world, &disk).await?);
    answers.extend(somebody_else_fills_it(&world, &disk).await?);

    let records = world.events(DEADLINE).await?;
    let events = events::deduplicated(&records)?;
    let found = world::compare(&world.seen(), &events, world::listed)?;
    for answer in answers.iter().filter(|answer| answer.status == Some(200)) {
        let id = answer
            .request_id
            .as_deref()
            .context("every answer names itself")?;
        ensure!(
            events.iter().any(|event| event.request_id.as_str() == id),
            "{id} was served and has no event"
        );
    }
    let billed = world.ledger_agrees(&events, DEADLINE).await?;
    println!(
        "{} events, {found:?}; the ledger has {billed} dollars",
        events.len()
    );
    drop(disk);
    Ok(())
}

/// Starts the node again with its spool on a disk of its own.
async fn with_small_disk(world: &mut World) -> Result<SmallDisk> {
    let node = &mut world.cluster.nodes[0];
    node.member.kill();
    let (spool, before) = (node.data_dir.join("spool"), node.data_dir.join("spool-before"));
    std::fs::rename(&spool, &before)?;
    let disk = SmallDisk::mount(&spool, DISK_BYTES)?;
    disk.take_over(&before)?;
    node.member.start()?;
    node.member.ready(&world.cluster.http).await;
    wait::until_ok(DEADLINE, "the free model is served", || serves(world, GIFT)).await;
    Ok(disk)
}

/// Records fill the disk until it refuses the next request's first one, with nothing running whose end could make room. Then Kafka comes
/// back, and what it takes makes room for all that comes.
async fn kafka_is_away(world: &World, disk: &SmallDisk) -> Result<Vec<Answer>> {
    broker(world, false).await?;
    let mut answers = Vec::new();
    while segments(world)?.values().sum::<u64>() < RECORDS_BYTES {
        let round = batch(world, CALLERS).await;
        all_good(&round)?;
        answers.extend(round);
    }
    let client = traffic::client(); // with one connection, so to one core and its segment
    answers.extend(up_to_the_brim(world, &client).await?);
    let (file, taken) = disk.fill()?;
    let refused = ask_by(world, &client, &Call::plain(FAST, "one too many")).await;
    is_refused(&refused)?;
    let log = world.cluster.nodes[0].member.log();
    ensure!(
        log.contains("refused an intent") && !log.contains("refused an outcome"),
        "the disk was full of something else"
    );
    println!("{} requests and {taken} bytes filled the disk", answers.len());
    sheds(world).await?;
    broker(world, true).await?;
    let begun = Instant::now();
    serves_again(world).await;
    println!("served again {:?} after Kafka came back", begun.elapsed());
    let again = batch(world, 4 * CALLERS).await;
    all_good(&again)?;
    std::fs::remove_file(file)?;
    answers.extend(again);
    Ok(answers)
}

/// Asks until a segment leaves less of its last page than any record takes: the next one needs a page more.
async fn up_to_the_brim(world: &World, client: &reqwest::Client) -> Result<Vec<Answer>> {
    let mut answers = Vec::new();
    for _ in 0..ROUNDS_MAX {
        let before = segments(world)?;
        answers.push(ask_by(world, client, &Call::plain(FAST, "one more")).await);
        let mut length = 0;
        wait::until(DEADLINE, "both records are written", || {
            let now = segments(world).unwrap_or_default();
            let grown = |(path, bytes): (&PathBuf, &u64)| {
                let more = bytes - before.get(path).unwrap_or(bytes);
                (more >= BOTH_RECORDS).then_some(*bytes)
            };
            length = now.iter().find_map(grown).unwrap_or_default();
            length > 0
        })
        .await;
        if length.next_multiple_of(PAGE) - length < RECORD_LEAST {
            all_good(&answers)?;
            return Ok(answers);
        }
    }
    anyhow::bail!("no segment ended close to the end of a page")
}

/// The files of records, and how long they are.
fn segments(world: &World) -> Result<BTreeMap<PathBuf, u64>> {
    let mut found = BTreeMap::new();
    for writer in std::fs::read_dir(world.cluster.nodes[0].data_dir.join("spool"))? {
        let writer = writer?.path();
        let files = writer.is_dir().then(|| std::fs::read_dir(&writer)).transpose()?;
        for file in files.into_iter().flatten() {
            let file = file?;
            if file.path().extension().is_some_and(|kind| kind == "seg") {
                found.insert(file.path(), file.metadata()?.len());
            }
        }
    }
    Ok(found)
}

/// A node that is started on a disk without a free byte runs, and sheds or serves, as there is room.
async fn a_node_starts(world: &mut World, disk: &SmallDisk) -> Result<Vec<Answer>> {
    let (file, _) = disk.fill()?;
    let http = world.cluster.http.clone();
    let node = &mut world.cluster.nodes[0].member;
    node.kill();
    node.start()?;
    wait::until_ok(DEADLINE, "the node runs", || {
        world.cluster.nodes[0].member.check(&http, "/livez")
    })
    .await;
    // What its last life has left may make room enough once it is delivered.
    let answers = batch(world, CALLERS).await;
    answers
        .iter()
        .filter(|answer| !answer.is_good())
        .try_for_each(is_refused)?;
    std::fs::remove_file(file)?;
    serves_again(world).await;
    Ok(answers)
}

/// A file that is none of ours takes the whole disk, and then what the node gives up of its reserve. Answers are running meanwhile.
async fn somebody_else_fills_it(world: &World, disk: &SmallDisk) -> Result<Vec<Answer>> {
    let seen = provider_calls(world);
    let client = traffic::client();
    let (url, key) = (&world.cluster.nodes[0].api_url, &world.keys[0].1);
    // The ones end on the reserve, the others when that is gone too.
    let calls: Vec<Call> = [20, 20, 20, 60, 60, 60]
        .iter()
        .map(|chunks| format!("a long answer [[tw:chunks={chunks}]] [[tw:delay_ms=100]]"))
        .map(|prompt| Call::streamed(FAST, prompt, Usage::Asked))
        .collect();
    let running = join_all(calls.iter().map(|call| traffic::send(&client, url, key, call)));
    let reserve = world.cluster.nodes[0].data_dir.join("spool/reserve");
    let filling = async {
        wait::until(DEADLINE, "the answers are running", || {
            provider_calls(world) == seen + calls.len()
        })
        .await;
        let (file, taken) = disk.fill()?;
        let mut answers = until_shed(world).await?;
        wait::until(DEADLINE, "the reserve is given up", || !reserve.exists()).await;
        let more = disk.fill()?.1;
        println!("somebody else took {taken} bytes and then {more}");
        answers.extend(sheds(world).await?);
        Ok::<(PathBuf, Vec<Answer>), anyhow::Error>((file, answers))
    };
    let (long, filled) = tokio::join!(running, filling);
    let (file, mut answers) = filled?;
    for answer in &long {
        ensure!(answer.is_good(), "an answer that was running broke: {answer:?}");
    }
    std::fs::remove_file(file)?;
    serves_again(world).await;
    answers.extend(long);
    Ok(answers)
}

/// Asks until somebody is refused. Everybody is served, or refused as they should be.
async fn until_shed(world: &World) -> Result<Vec<Answer>> {
    let mut answers = Vec::new();
    for _ in 0..ROUNDS_MAX {
        let round = batch(world, CALLERS).await;
        let mut refused = false;
        for answer in &round {
            if !answer.is_good() {
                is_refused(answer)?;
                refused = true;
            }
        }
        answers.extend(round);
        if refused {
            return Ok(answers);
        }
    }
    anyhow::bail!("{} requests did not fill the disk", answers.len())
}

/// For a while nobody is served, whatever they ask for; no provider hears of it; and the node says why.
async fn sheds(world: &World) -> Result<Vec<Answer>> {
    let member = &world.cluster.nodes[0].member;
    let http = &world.cluster.http;
    let seen = provider_calls(world);
    let mut answers = vec![ask(world, &Call::plain(GIFT, "for nothing")).await];
    is_refused(&answers[0])?;
    let begun = Instant::now();
    while begun.elapsed() < WATCHED {
        let round = batch(world, CALLERS).await;
        round.iter().try_for_each(is_refused)?;
        answers.extend(round);
        let shedding = member.metric(http, "tollway_usage_shedding").await?;
        ensure!(
            shedding > 0.0 || begun.elapsed() < WATCHED / 2,
            "no metric says so"
        );
    }
    ensure!(
        provider_calls(world) == seen,
        "a request that was refused reached a provider"
    );
    let unready = member.check(http, "/readyz").await?;
    ensure!(unready.0 == 503 && unready.1.contains("[-] usage"), "{unready:?}");
    ensure!(member.check(http, "/livez").await?.0 == 200, "it is alive");
    let models = http
        .get(format!("{}/models", world.cluster.nodes[0].api_url))
        .bearer_auth(&world.keys[0].1)
        .send()
        .await?;
    ensure!(
        models.status() == 200,
        "what costs nothing is answered: {models:?}"
    );
    Ok(answers)
}

/// A refusal as the README's table has it: the caller may try again, and is told when.
fn is_refused(answer: &Answer) -> Result<()> {
    let header = |name: &str| {
        let value = answer.headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    ensure!(answer.status == Some(503), "{answer:?}");
    let error = &answer.json()["error"];
    ensure!(
        error["code"] == "billing_unavailable" && error["type"] == "server_error",
        "{answer:?}"
    );
    ensure!(
        header("retry-after").parse::<u64>().is_ok() && header("x-should-retry") == "true",
        "{answer:?}"
    );
    Ok(())
}

/// So many requests at once, whole answers and streams.
async fn batch(world: &World, count: usize) -> Vec<Answer> {
    let calls: Vec<Call> = (0..count)
        .map(|number| match number % 4 {
            0 => Call::streamed(FAST, "fill it [[tw:chunks=4]] [[tw:delay_ms=5]]", Usage::NotAsked),
            _ => Call::plain(FAST, "fill it [[tw:fail_at=a]]"),
        })
        .collect();
    join_all(calls.iter().map(|call| ask(world, call))).await
}

async fn ask(world: &World, call: &Call) -> Answer {
    ask_by(world, &world.cluster.http, call).await
}

async fn ask_by(world: &World, client: &reqwest::Client, call: &Call) -> Answer {
    traffic::send(client, &world.cluster.nodes[0].api_url, &world.keys[0].1, call).await
}

fn all_good(answers: &[Answer]) -> Result<()> {
    let bad = answers.iter().find(|answer| !answer.is_good());
    bad.map_or(Ok(()), |bad| anyhow::bail!("{bad:?}"))
}

async fn serves_again(world: &World) {
    wait::until_ok(DEADLINE, "the node serves again", || serves(world, FAST)).await;
    world.cluster.nodes[0].member.ready(&world.cluster.http).await;
}

async fn serves(world: &World, model: &str) -> Result<()> {
    let answer = ask(world, &Call::plain(model, "once more")).await;
    ensure!(answer.is_good(), "{answer:?}");
    Ok(())
}

fn provider_calls(world: &World) -> usize {
    world.seen().values().map(Vec::len).sum()
}

async fn broker(world: &World, runs: bool) -> Result<()> {
    let kafka = world.cluster.kafka.as_ref().context("this cluster has Kafka")?;
    tokio::task::block_in_place(|| {
        if runs {
            kafka.restart_broker(1)
        } else {
            kafka.kill_broker(1)
        }
    })
}
