//! What becomes of records when the disk fails: nothing that it reported is believed twice.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use super::segment;
use super::space::SpoolState;
use super::spool::SpoolFault;
use super::sync::Fsync;
use super::tests::{
    Bench, PARTITIONS, ROUNDS_MAX, Script, assert_complete, bytes_in, outcomes, recovered, scratch,
};
use super::{recover, sample};

/// A disk under the page cache. It has what a good fsync gave it; after one that failed it never gets what that was to cover, although
/// the next ones report success: so does Linux.
#[derive(Clone, Default)]
pub(super) struct Disk(Arc<Mutex<Platter>>);

#[derive(Default)]
struct Platter {
    /// Names in folders, by the folder's inode, as of their last good fsync.
    names: HashMap<u64, BTreeMap<String, u64>>,
    files: HashMap<u64, Vec<u8>>,
    failed: HashSet<u64>,
    /// Kept open, so that no inode's number comes again.
    held: Vec<File>,
    calls: usize,
    /// The calls that fail.
    fails: BTreeSet<usize>,
    /// Those of them at which the file loses in memory, too, what it has not on disk.
    drops: BTreeSet<usize>,
}

impl Disk {
    pub(super) fn failing(calls: impl IntoIterator<Item = usize>) -> Self {
        let platter = Platter {
            fails: calls.into_iter().collect(),
            ..Platter::default()
        };
        Self(Arc::new(Mutex::new(platter)))
    }

    fn dropping(self, call: usize) -> Self {
        self.0.lock().unwrap().drops.insert(call);
        self
    }

    /// A folder whose names are durable; of its files nothing is.
    pub(super) fn with(self, folder: &Path) -> Self {
        self.0.lock().unwrap().sync_names(folder);
        self
    }

    pub(super) fn fsync(&self) -> Fsync {
        let disk = self.clone();
        Box::new(move |file| disk.0.lock().unwrap().fsync(file))
    }

    pub(super) fn calls(&self) -> usize {
        self.0.lock().unwrap().calls
    }

    /// Leaves in `folder` what a loss of power would.
    pub(super) fn lose_power(&self, folder: &Path) {
        let platter = self.0.lock().unwrap();
        let names = &platter.names[&std::fs::metadata(folder).unwrap().ino()];
        for entry in std::fs::read_dir(folder).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
        for (name, inode) in names {
            let bytes = platter.files.get(inode).cloned().unwrap_or_default();
            std::fs::write(folder.join(name), bytes).unwrap();
        }
    }
}

impl Platter {
    fn fsync(&mut self, file: &File) -> io::Result<()> {
        let (fails, drops) = (self.fails.contains(&self.calls), self.drops.contains(&self.calls));
        self.calls += 1;
        let (kind, inode) = (file.metadata().unwrap(), file.metadata().unwrap().ino());
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        self.held.push(file.try_clone().unwrap());
        if kind.is_dir() {
            if !fails {
                self.sync_names(Path::new(&path));
            }
        } else if fails {
            self.failed.insert(inode);
            if drops {
                let kept = self.files.get(&inode).map_or(0, Vec::len);
                let lost = usize::try_from(kind.len()).unwrap().saturating_sub(kept);
                let memory = OpenOptions::new().write(true).open(path).unwrap();
                memory.write_all_at(&vec![0; lost], kept as u64).unwrap();
            }
        } else if self.failed.contains(&inode) {
            let length = usize::try_from(kind.len()).unwrap();
            self.files.entry(inode).or_default().truncate(length);
        } else {
            self.files.insert(inode, std::fs::read(path).unwrap());
        }
        if fails {
            return Err(io::Error::other("scripted"));
        }
        Ok(())
    }

    fn sync_names(&mut self, folder: &Path) {
        let mut names = BTreeMap::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let file = File::open(entry.unwrap().path()).unwrap();
            let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            names.insert(name, file.metadata().unwrap().ino());
            self.held.push(file);
        }
        self.names.insert(std::fs::metadata(folder).unwrap().ino(), names);
    }
}

fn intent(bench: &Bench, request: &str) -> Result<(), SpoolFault> {
    bench.writer.intent(&sample::event(request, "acme"))
}

fn outcome(bench: &Bench, request: &str) {
    bench.writer.outcome(sample::event(request, "acme"));
}

/// A spool with a durable request and two that no fsync has covered yet; `two` has its outcome.
fn begun(disk: &Disk, segment_bytes: u64) -> Bench {
    let mut bench = Bench::new(1 << 20, segment_bytes);
    bench.syncer.set_fsync(disk.fsync(), Duration::ZERO);
    let _ = disk.clone().with(bench.folder());
    for request in ["one", "two"] {
        intent(&bench, request).unwrap();
    }
    outcome(&bench, "one");
    assert!(bench.syncer.round(0));
    outcome(&bench, "two");
    intent(&bench, "three").unwrap();
    bench
}

/// How many calls of fsync [`begun`] makes, by the size of its segments.
fn calls_before(segment_bytes: u64) -> usize {
    let disk = Disk::default();
    drop(begun(&disk, segment_bytes));
    disk.calls()
}

fn requests(folder: &Path) -> Vec<String> {
    let ids = outcomes(folder)
        .into_iter()
        .map(|outcome| outcome.request_id.to_string());
    let mut ids: Vec<_> = ids.collect();
    ids.sort();
    ids
}

/// A copy of a folder, as a process finds it that starts after `kill -9` of this one.
fn copied(folder: &Path) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = scratch();
    let copy = dir.path().join(folder.file_name().unwrap());
    std::fs::create_dir(&copy).unwrap();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    (dir, copy)
}

/// Whichever fsyncs fail, one of a segment and then any other: no moment in which a crash would lose a record or find it twice, no wrong
/// count of bytes, and in the end everything is on disk, in order.
#[test]
fn what_a_failed_fsync_may_have_dropped_is_written_again_and_a_crash_at_any_fsync_loses_nothing() {
    let cases = (1..10).flat_map(|second| [(second, 1 << 20), (second, 1)]);
    for ((second, segment_bytes), drops) in cases.flat_map(|case| (0..3).map(move |drops| (case, drops))) {
        let context = format!("call {second}, {drops} drop, segments of {segment_bytes}");
        let first = calls_before(segment_bytes);
        let mut disk = Disk::failing([first, first + second]);
        for dropping in [first + second, first].into_iter().take(drops) {
            disk = disk.dropping(dropping);
        }
        let mut bench = begun(&disk, segment_bytes);
        let script = Script::default();
        let mut shipper = bench.shipper(&script);
        let (folder, mut fsync) = (bench.folder().to_owned(), disk.fsync());
        let crashes = Arc::new(Mutex::new(Vec::new()));
        let crashed = crashes.clone();
        let watched: Fsync = Box::new(move |file| {
            crashed.lock().unwrap().push(copied(&folder));
            fsync(file)
        });
        bench.syncer.set_fsync(watched, Duration::ZERO);
        for round in 0..4 {
            let before = bench.lane.extent.synced();
            let done = bench.syncer.round(0);
            assert_eq!(done, bench.lane.extent.synced() > before, "{context}");
            if bench.space.state() == SpoolState::Disk {
                bench.space.probe_disk(); // the reserve says nothing about what is lost
                assert_eq!(intent(&bench, "shed"), Err(SpoolFault::Disk), "{context}");
            } else {
                assert_eq!(bench.lane.extent.bytes(), bytes_in(bench.folder()), "{context}");
            }
            if round == 0 {
                outcome(&bench, "three");
            }
            shipper.round();
            if drops < 2 {
                crashes.lock().unwrap().push(copied(bench.folder()));
            }
            for (_dir, folder) in crashes.lock().unwrap().drain(..) {
                recovered(&folder).unwrap().unwrap();
                assert_complete(&folder, &context);
                assert_eq!(requests(&folder), ["one", "three", "two"], "{context}");
            }
        }
        assert_eq!(bench.space.state(), SpoolState::Open, "{context}");
        intent(&bench, "four").unwrap();
        outcome(&bench, "four");
        assert!(bench.syncer.round(0), "{context}");
        let shipped = (0..ROUNDS_MAX).any(|_| {
            shipper.round();
            shipper.retry_now();
            shipper.idle()
        });
        assert!(shipped, "{context}");
        let sequences: Vec<_> = script.taken().into_iter().map(|(_, sequence)| sequence).collect();
        assert_eq!(sequences, [1, 2, 3, 4], "{context}");
        assert_complete(bench.folder(), &context);
        disk.lose_power(bench.folder());
        let recovered = recovered(bench.folder()).unwrap().unwrap();
        assert_eq!(
            (recovered.interrupted, recovered.damaged_bytes),
            (0, 0),
            "{context}"
        );
        assert_eq!(
            requests(bench.folder()),
            ["four", "one", "three", "two"],
            "{context}"
        );
        assert_complete(bench.folder(), &context);
    }
}

#[test]
fn a_request_does_not_wait_for_the_disk_while_records_are_written_again() {
    let disk = Disk::failing([calls_before(1 << 20)]);
    let mut bench = begun(&disk, 1 << 20);
    let (writer, mut fsync) = (bench.writer.clone(), disk.fsync());
    bench.syncer.set_fsync(
        Box::new(move |file| {
            let (done, wait) = mpsc::channel();
            let writer = writer.clone();
            std::thread::spawn(move || {
                writer.outcome(sample::event("during", "acme"));
                done.send(()).unwrap();
            });
            wait.recv_timeout(Duration::from_secs(10)).expect("not blocked");
            fsync(file)
        }),
        Duration::ZERO,
    );
    assert!(bench.syncer.round(0));
    assert!(disk.calls() > calls_before(1 << 20) + 3, "it was written again");
}

#[test]
fn a_segment_that_cannot_be_opened_is_tried_again_and_nothing_is_shed() {
    let mut bench = Bench::new(1 << 20, 1 << 20);
    intent(&bench, "one").unwrap();
    bench.syncer.set_fsync(Disk::default().fsync(), Duration::ZERO);
    let (path, away) = (segment::path(bench.folder(), 1), bench.folder().join("away"));
    std::fs::rename(&path, &away).unwrap();
    std::os::unix::fs::symlink(&path, &path).unwrap(); // opening it fails as it does without a free descriptor
    assert!(!bench.syncer.round(0));
    assert_eq!(bench.space.state(), SpoolState::Open);
    intent(&bench, "two").unwrap();
    std::fs::rename(&away, &path).unwrap();
    assert!(bench.syncer.round(0));
    assert_eq!(segment::list(bench.folder()).unwrap(), [1]);
    assert_eq!(bench.lane.extent.synced(), bench.lane.extent.written());
}

#[test]
fn a_disk_that_fails_is_left_alone_for_a_while_and_a_stop_gives_it_more_chances() {
    let first = calls_before(1 << 20);
    let disk = Disk::failing(first..first + 5);
    let mut bench = begun(&disk, 1 << 20);
    bench.syncer.set_fsync(disk.fsync(), Duration::from_secs(3600));
    for _ in 0..3 {
        assert!(!bench.syncer.round(0));
        assert_eq!(disk.calls(), first + 2, "the segment's, and the copy's");
    }
    bench.syncer.set_fsync(disk.fsync(), Duration::ZERO);
    assert!(bench.syncer.finish(0));
    assert_eq!(bench.lane.extent.synced(), bench.lane.extent.written());

    let first = calls_before(1 << 20);
    let mut bench = begun(&Disk::failing(first..1_000_000), 1 << 20);
    assert!(!bench.syncer.finish(0), "but it ends");
}

#[test]
fn nothing_is_appended_to_a_segment_in_which_a_write_failed() {
    let bench = Bench::new(1 << 20, 1 << 20);
    intent(&bench, "one").unwrap();
    let first = segment::path(bench.folder(), 1);
    let before = std::fs::read(&first).unwrap();
    bench.lane.fail_next_write();
    assert_eq!(
        bench.writer.intent(&sample::event("two", "acme")),
        Err(SpoolFault::Disk)
    );
    bench.writer.outcome(sample::event("one", "acme"));
    assert_eq!(std::fs::read(&first).unwrap(), before);
    assert_eq!(outcomes(bench.folder()).len(), 1);
    assert_complete(bench.folder(), "second segment");
}

/// The earlier life has left segments of which nothing is known to be on disk.
#[test]
fn recovery_makes_every_segment_durable_and_believes_no_fsync_after_one_that_failed() {
    for fails in 0..12 {
        let context = format!("fails {fails}");
        let bench = Bench::new(1 << 20, 1);
        for request in ["one", "two", "three"] {
            intent(&bench, request).unwrap();
        }
        outcome(&bench, "two");
        let disk = Disk::failing([fails, fails + 1]).with(bench.folder());
        let (mut doubts, mut fsync) = (BTreeSet::new(), disk.fsync());
        let recovered =
            (0..3).find_map(|_| recover::complete(bench.folder(), PARTITIONS, &mut doubts, &mut fsync).ok());
        let recovered = recovered.flatten().expect(&context);
        assert_eq!(recovered.extent.bytes(), bytes_in(bench.folder()), "{context}");
        disk.lose_power(bench.folder());
        assert_complete(bench.folder(), &context);
        assert_eq!(requests(bench.folder()), ["one", "three", "two"], "{context}");
    }
}

/// A process that dies while its disk fails leaves a draft, and the next must not take the disk's word either.
#[test]
fn a_draft_tells_the_next_life_that_an_fsync_has_failed() {
    let first = calls_before(1 << 20);
    let disk = Disk::failing(first..1_000_000);
    let mut bench = begun(&disk, 1 << 20);
    assert!(!bench.syncer.round(0));
    disk.0.lock().unwrap().fails.clear(); // from here on it says that all is well
    let mut fsync = disk.fsync();
    recover::complete(bench.folder(), PARTITIONS, &mut BTreeSet::new(), &mut fsync).unwrap();
    disk.lose_power(bench.folder());
    assert_complete(bench.folder(), "second life");
    assert_eq!(requests(bench.folder()), ["one", "three", "two"]);
}
