//! Nodes: the real keeper, desk, journals and usage spool of the data plane, on a folder in memory; what kills them, and what their
//! disks forget then.

use std::cell::{Cell, RefCell};
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use rand::Rng as _;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tollway_data::lease::keeper::Keeper;
use tollway_data::lease::{Desk, Inheritance, Places};
use tollway_data::usage::by_hand::ByHand;
use tollway_data::usage::spool::Writer;
use tollway_shared::ids::{Incarnation, NodeId, WriterId};
use tollway_shared::snapshot::Snapshot;
use tollway_shared::time::UnixMillis;

use super::plan::PARTITIONS;
use super::run::World;
use super::wire;

/// What a spool may take: more than a run writes.
const SPOOL_BYTES_MAX: u64 = 2 << 20;

tokio::task_local! {
    /// The clock of the node whose task runs.
    static CLOCK: Clock;
}

/// A node's clock.
#[derive(Clone)]
pub(crate) struct Clock {
    pub(crate) began: Instant,
    pub(crate) begin: UnixMillis,
    pub(crate) skew_ms: Rc<Cell<i64>>,
}

impl Clock {
    pub(crate) fn now(&self) -> UnixMillis {
        let passed = i64::try_from(self.began.elapsed().as_millis()).unwrap_or(0);
        self.begin.plus_ms(passed + self.skew_ms.get())
    }
}

/// The product's clock is a function: of the task that asks.
fn now() -> UnixMillis {
    CLOCK.with(Clock::now)
}

/// A machine with a disk, and what runs on it.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) dir: PathBuf,
    pub(crate) clock: Clock,
    /// Nothing gets through to it, nor from it.
    pub(crate) cut: bool,
    /// Since when it runs and can be reached.
    pub(crate) near_since: Option<Instant>,
    pub(crate) process: Option<Process>,
    /// Lives whose journal may be on its disk.
    lives: Vec<Incarnation>,
}

/// A running process.
#[derive(Clone)]
pub(crate) struct Process {
    pub(crate) desk: Desk,
    pub(crate) writer: Writer,
    pub(crate) spool: Rc<RefCell<ByHand>>,
    pub(crate) snapshot: Rc<RefCell<Rc<Snapshot>>>,
    pub(crate) clock: Clock,
    /// The power switch.
    pub(crate) kill: CancellationToken,
    stop: CancellationToken,
    keeper: Rc<RefCell<Option<JoinHandle<()>>>>,
    /// Incarnations that it had, the newest last.
    pub(crate) lives: Rc<RefCell<Vec<Incarnation>>>,
}

impl Node {
    pub(crate) fn new(id: NodeId, dir: PathBuf, clock: Clock) -> Self {
        Self {
            id,
            dir,
            clock,
            cut: false,
            near_since: None,
            process: None,
            lives: Vec::new(),
        }
    }

    /// Notes whether it can be reached now.
    pub(crate) fn look(&mut self) {
        let near = self.process.is_some() && !self.cut;
        self.near_since = near.then(|| self.near_since.unwrap_or_else(Instant::now));
    }
}

/// Starts a node's process, if none runs.
pub(crate) fn start(world: &Rc<World>, n: usize) {
    let (dir, clock, running) = {
        let nodes = world.nodes.borrow();
        let node = &nodes[n];
        (node.dir.clone(), node.clock.clone(), node.process.is_some())
    };
    if running {
        return;
    }
    let places = Places {
        folder: dir.join("leases"),
        spool: dir.join("spool"),
    };
    let inheritance = Inheritance::read(&places).expect("a folder in memory can be read");
    forget_writers(&places.spool);
    let writer = WriterId(world.draw(|rng| rng.random()));
    let segment_bytes = world.plan.segment_bytes;
    let spool = ByHand::open(&places.spool, writer, PARTITIONS, SPOOL_BYTES_MAX, segment_bytes)
        .expect("a folder in memory takes files");
    let (call, said) = wire::line();
    let opened = CLOCK.sync_scope(clock.clone(), || {
        Keeper::new(places, inheritance, spool.track(), call, now)
    });
    let (keeper, desk) = opened.expect("a folder in memory takes files");
    let (kill, stop) = (CancellationToken::new(), CancellationToken::new());
    let runs = {
        let (kill, stop) = (kill.clone(), stop.clone());
        spawn_local(CLOCK.scope(clock.clone(), async move {
            tokio::select! {
                biased;
                () = kill.cancelled() => {}
                () = keeper.run(stop) => {}
            }
        }))
    };
    spawn_local(wire::carry(world.clone(), n, said));
    let process = Process {
        writer: spool.writer(),
        spool: Rc::new(RefCell::new(spool)),
        snapshot: Rc::new(RefCell::new(world.control.borrow().snapshot())),
        desk,
        clock,
        kill,
        stop,
        keeper: Rc::new(RefCell::new(Some(runs))),
        lives: Rc::new(RefCell::new(Vec::new())),
    };
    process.note_life();
    world.note(|| format!("node {n} starts as {}", process.desk.shelf().incarnation));
    spawn_local(keep(world.clone(), n, process.clone()));
    let mut nodes = world.nodes.borrow_mut();
    nodes[n].process = Some(process);
    nodes[n].look();
}

/// The spools of former lives are delivered as soon as they were read.
fn forget_writers(spool: &Path) {
    for entry in fs::read_dir(spool).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

impl Process {
    fn note_life(&self) {
        let life = self.desk.shelf().incarnation;
        let mut lives = self.lives.borrow_mut();
        if lives.last() != Some(&life) {
            lives.push(life);
        }
    }

    /// Waits until nothing of it runs any more.
    async fn ended(&self) {
        let keeper = self.keeper.borrow_mut().take();
        if let Some(keeper) = keeper {
            let ended = keeper.await;
            assert!(ended.is_ok(), "a keeper panicked: {ended:?}");
        }
    }
}

/// The disk syncs now and then, delivered segments go, newer snapshots come.
async fn keep(world: Rc<World>, n: usize, process: Process) {
    while !process.kill.is_cancelled() {
        sleep(Duration::from_millis(world.draw(|rng| rng.random_range(20..300)))).await;
        process.note_life();
        let near = world.nodes.borrow()[n].near_since.is_some();
        if near {
            *process.snapshot.borrow_mut() = world.control.borrow().snapshot();
        }
        let mut spool = process.spool.borrow_mut();
        spool.sync();
        let (segment, _) = spool.synced();
        let _ = spool.remove_before(segment); // the disk may be gone
    }
}

/// The process is gone at once. Its requests end where they are.
pub(crate) async fn kill(world: &Rc<World>, n: usize) -> Option<Process> {
    let process = {
        let mut nodes = world.nodes.borrow_mut();
        let process = nodes[n].process.take()?;
        nodes[n].look();
        process.note_life();
        let lives = process.lives.borrow().clone();
        nodes[n].lives.extend(lives);
        process
    };
    world.note(|| format!("node {n} is killed"));
    world.dying.update(|dying| dying + 1);
    process.kill.cancel();
    process.ended().await;
    world.settle_down().await;
    world.dying.update(|dying| dying - 1);
    Some(process)
}

/// The machine loses power: what no fsync has covered may be gone, and it boots anew.
pub(crate) async fn lose_power(world: &Rc<World>, n: usize) {
    let dir = world.nodes.borrow()[n].dir.clone();
    let Some(process) = kill(world, n).await else {
        return;
    };
    let (segment, synced) = process.spool.borrow().synced();
    world
        .truth
        .borrow_mut()
        .doubted
        .extend(process.lives.borrow().iter());
    drop(process);
    for writer in folders(&dir.join("spool")) {
        for file in files(&writer) {
            let name = file.file_stem().and_then(|name| name.to_str()?.parse().ok());
            let Some(number) = name.filter(|number: &u64| *number >= segment) else {
                continue;
            };
            let least = if number == segment { synced } else { 0 };
            let bytes = fs::metadata(&file).map_or(0, |meta| meta.len());
            let kept = world.draw(|rng| rng.random_range(least.min(bytes)..=bytes));
            let file = fs::OpenOptions::new().write(true).open(&file);
            file.and_then(|file| file.set_len(kept))
                .expect("a file in memory can be cut");
        }
    }
    // Another boot: the journal names the one before. Its newest lines may be gone, too.
    for file in files(&dir.join("leases")) {
        if file.extension().is_some_and(|ending| ending == "lease") {
            let text = fs::read_to_string(&file).unwrap_or_default();
            let mut lines: Vec<&str> = text.lines().collect();
            let kept = world.draw(|rng| rng.random_range(1..=lines.len().max(1)));
            lines.truncate(kept);
            let text = lines.join("\n").replace("\"boot\":\"", "\"boot\":\"before ") + "\n";
            fs::write(&file, text).expect("a file in memory can be written");
        }
    }
    world.note(|| format!("node {n} lost power"));
}

/// The machine is gone with its disk.
pub(crate) async fn lose_disk(world: &Rc<World>, n: usize) {
    if kill(world, n).await.is_none() {
        return;
    }
    let mut nodes = world.nodes.borrow_mut();
    let dir = nodes[n].dir.clone();
    fs::remove_dir_all(dir).expect("a folder in memory can be removed");
    let lives = std::mem::take(&mut nodes[n].lives);
    world.note(|| format!("node {n} lost its disk with {lives:?}"));
    world.truth.borrow_mut().lost.extend(lives);
}

/// The process is told to end: requests first, then the leases.
pub(crate) async fn stop(world: &Rc<World>, n: usize) {
    let Some(process) = world.nodes.borrow()[n].process.clone() else {
        return;
    };
    // Requests that still run are given up, but not without an outcome.
    world.note(|| format!("node {n} is stopped"));
    world.draining.borrow_mut()[n] = true;
    for _ in 0..400 {
        if world.running.borrow()[n] == 0 {
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    process.stop.cancel();
    process.ended().await;
    process.kill.cancel();
    world.draining.borrow_mut()[n] = false;
    {
        let mut nodes = world.nodes.borrow_mut();
        // It may have been killed meanwhile, and another one may have started.
        let still = |now: &Process| Rc::ptr_eq(&now.spool, &process.spool);
        if nodes[n].process.as_ref().is_some_and(still) {
            process.note_life();
            let lives = process.lives.borrow().clone();
            nodes[n].lives.extend(lives);
            nodes[n].process = None;
            nodes[n].look();
        }
    }
    world.settle_down().await;
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect();
    found.sort();
    found
}

fn folders(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect();
    found.sort();
    found
}
