//! What becomes of records when the disk fails: nothing that it reported is believed twice.

use tollway_proto::spool::SpoolRecord;

use super::segment;
use super::space::SpoolState;
use super::spool::SpoolFault;
use super::tests::{Bench, PARTITIONS, Script, assert_complete, bytes_in, outcomes, records, recovered};
use super::{recover, sample};

/// Fsync that fails as often as told, each time with what Linux then does to the pages: they are gone, and the next one succeeds.
fn failing(bench: &Bench, mut times: u32) -> super::sync::Fsync {
    let extent = bench.lane.extent.clone();
    Box::new(move |_| {
        if times == 0 {
            return Ok(());
        }
        times -= 1;
        let synced = extent.synced();
        for number in segment::list(&extent.dir).unwrap() {
            let path = segment::path(&extent.dir, number);
            let mut bytes = std::fs::read(&path).unwrap();
            let kept = match number.cmp(&synced.segment) {
                std::cmp::Ordering::Less => bytes.len(),
                std::cmp::Ordering::Equal => usize::try_from(synced.offset).unwrap(),
                std::cmp::Ordering::Greater => 0,
            };
            bytes[kept..].fill(0);
            std::fs::write(&path, bytes).unwrap();
        }
        Err(std::io::Error::other("scripted"))
    })
}

#[test]
fn what_a_failed_fsync_may_have_dropped_is_written_again_to_a_new_segment() {
    for (failures, segment_bytes) in [(1, 1 << 20), (3, 1 << 20), (2, 4 << 10)] {
        let mut bench = Bench::new(1 << 20, segment_bytes);
        let script = Script::default();
        let mut shipper = bench.shipper(&script);
        let intent =
            |bench: &Bench, request: &str| bench.writer.intent(&sample::event(request, "acme"), None);
        let outcome = |bench: &Bench, request: &str| bench.writer.outcome(sample::event(request, "acme"));
        intent(&bench, "one").unwrap();
        outcome(&bench, "one");
        intent(&bench, "two").unwrap();
        assert!(bench.syncer.round(0));
        shipper.round();
        outcome(&bench, "two");
        for request in ["three", "four"] {
            intent(&bench, request).unwrap();
        }
        outcome(&bench, "three");
        bench.syncer.set_fsync(failing(&bench, failures));
        for _ in 0..failures {
            assert!(!bench.syncer.round(0));
            assert_eq!(bench.space.state(), SpoolState::Disk);
            bench.space.probe_disk(); // the reserve says nothing about what is lost
            assert_eq!(intent(&bench, "shed"), Err(SpoolFault::Disk));
            shipper.round();
            assert_eq!(script.taken().len(), 1);
        }
        outcome(&bench, "four");
        assert!(bench.syncer.round(0));
        intent(&bench, "five").unwrap();
        outcome(&bench, "five");
        assert!(bench.syncer.round(0));
        assert_eq!(
            records(bench.folder())
                .iter()
                .filter(|r| matches!(r, SpoolRecord::Outcome(_)))
                .count(),
            5
        );
        assert_complete(bench.folder(), "rewritten");
        while !shipper.idle() {
            shipper.round();
        }
        let sequences: Vec<_> = script.taken().into_iter().map(|(_, sequence)| sequence).collect();
        assert_eq!(sequences, [1, 2, 3, 4, 5]);
        // What the disk has would do for a next life, too.
        let recovered = recovered(bench.folder()).unwrap().unwrap();
        assert_eq!((recovered.interrupted, recovered.damaged_bytes), (0, 0));
        assert_eq!(bench.lane.extent.bytes(), bytes_in(bench.folder()));
    }
}

#[test]
fn nothing_is_appended_to_a_segment_in_which_a_write_failed() {
    let bench = Bench::new(1 << 20, 1 << 20);
    bench.writer.intent(&sample::event("one", "acme"), None).unwrap();
    let first = segment::path(bench.folder(), 1);
    let before = std::fs::read(&first).unwrap();
    bench.lane.fail_next_write();
    assert_eq!(
        bench.writer.intent(&sample::event("two", "acme"), None),
        Err(SpoolFault::Disk)
    );
    bench.writer.outcome(sample::event("one", "acme"));
    assert_eq!(std::fs::read(&first).unwrap(), before);
    assert_eq!(outcomes(bench.folder()).len(), 1);
    assert_complete(bench.folder(), "second segment");
}

#[test]
fn recovery_does_not_believe_what_a_failed_fsync_has_left() {
    let bench = Bench::new(1 << 20, 1 << 20);
    bench.writer.intent(&sample::event("one", "acme"), None).unwrap();
    let mut rounds = 0;
    let mut second_fails: super::sync::Fsync = Box::new(move |_| {
        rounds += 1;
        if rounds == 2 {
            return Err(std::io::Error::other("scripted"));
        }
        Ok(())
    });
    assert!(recover::complete(bench.folder(), PARTITIONS, &mut second_fails).is_err());
    assert_eq!(outcomes(bench.folder()), [], "it may be in memory alone");
    let recovered = recovered(bench.folder()).unwrap().unwrap();
    assert_eq!(recovered.interrupted, 1);
    assert_complete(bench.folder(), "second try");
}
