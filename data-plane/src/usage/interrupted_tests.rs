//! What is billed for requests that were running when their node died.

use tollway_proto::usage::{EndState, UsageEvent, UsageSource};

use tollway_shared::cost::Charge;
use tollway_shared::tokens::TokenCounts;

use super::sample;
use super::segment;
use super::space::SpoolState;
use super::tests::{Bench, assert_complete, folder_with, outcomes, recovered};

#[test]
fn an_interrupted_request_is_billed_for_what_its_intent_estimated() {
    let bench = Bench::new(1 << 20, 1 << 20);
    let mut intent = sample::event("one", "acme");
    (intent.tokens.output, intent.tokens.output_reasoning) = (0, 0);
    bench.writer.intent(&intent).unwrap();
    let recovered = recovered(bench.folder()).unwrap().unwrap();
    assert_eq!(recovered.interrupted, 1);
    let event: UsageEvent = serde_json::from_slice(&outcomes(bench.folder())[0].event).unwrap();
    assert_eq!(event.end, EndState::Interrupted);
    assert_eq!(event.usage_source, UsageSource::Estimated);
    assert_eq!(event.id, intent.id);
    assert_eq!(event.charge.total.to_string(), "0.0016"); // the prompt alone, cache reads included
}

#[test]
fn a_request_that_had_not_gone_out_when_its_node_died_costs_nothing_not_even_a_price_per_request() {
    let bench = Bench::new(1 << 20, 1 << 20);
    let mut intent = sample::event("one", "acme");
    intent.prices.request = Some(tollway_shared::money::NanoUsd(7));
    intent.tokens = TokenCounts::default();
    bench.writer.intent(&intent).unwrap();
    assert_eq!(recovered(bench.folder()).unwrap().unwrap().interrupted, 1);
    let event: UsageEvent = serde_json::from_slice(&outcomes(bench.folder())[0].event).unwrap();
    assert_eq!(
        (event.end, event.usage_source, event.charge),
        (EndState::Interrupted, UsageSource::None, Charge::default())
    );
}

#[test]
fn an_interrupted_answer_is_billed_for_how_far_it_had_got_and_no_less_than_was_expected() {
    for (expected, progress, output) in [
        (0, &[][..], 0),
        (0, &[100, 4_000], 4_000),
        (700, &[], 700),
        (700, &[100], 700),
        (700, &[100, 701], 701),
    ] {
        let bench = Bench::new(1 << 20, 1 << 20);
        let mut intent = sample::event("one", "acme");
        (intent.tokens.output, intent.tokens.output_reasoning) = (expected, 0);
        bench.writer.intent(&intent).unwrap();
        bench.writer.intent(&sample::event("two", "acme")).unwrap();
        bench.writer.outcome(sample::event("two", "acme"));
        for so_far in progress {
            intent.tokens.output = *so_far;
            assert!(bench.writer.progress(&intent.request_id, intent.tokens));
            assert!(
                bench
                    .writer
                    .progress(&sample::event("two", "acme").request_id, intent.tokens)
            );
        }
        assert_eq!(recovered(bench.folder()).unwrap().unwrap().interrupted, 1);
        let event: UsageEvent = serde_json::from_slice(&outcomes(bench.folder())[1].event).unwrap();
        assert_eq!(
            (event.request_id.as_str(), event.end, event.usage_source),
            ("one", EndState::Interrupted, UsageSource::Estimated)
        );
        assert_eq!(event.tokens.completion(), output, "{expected} {progress:?}");
        assert_eq!(
            event.charge,
            tollway_shared::cost::charge(&event.tokens, &event.prices).unwrap()
        );
    }
}

#[test]
fn a_crash_at_any_byte_of_a_stream_bills_the_last_progress_that_was_written() {
    let bench = Bench::new(1 << 20, 1 << 20);
    let mut intent = sample::event("one", "acme");
    (intent.tokens.output, intent.tokens.output_reasoning) = (0, 0);
    bench.writer.intent(&intent).unwrap();
    let mut ends = vec![(bench.lane.extent.written().offset, 0)];
    for so_far in [64, 500, 4_000] {
        intent.tokens.output = so_far;
        bench.writer.progress(&intent.request_id, intent.tokens);
        ends.push((bench.lane.extent.written().offset, so_far));
    }
    let whole = std::fs::read(segment::path(bench.folder(), 1)).unwrap();
    for length in usize::try_from(ends[0].0).unwrap()..=whole.len() {
        let (_dir, folder) = folder_with(&whole[..length]);
        recovered(&folder).unwrap().unwrap();
        assert_complete(&folder, &format!("cut at {length}"));
        let event: UsageEvent = serde_json::from_slice(&outcomes(&folder)[0].event).unwrap();
        let (_, told) = ends.iter().rfind(|(end, _)| *end <= length as u64).unwrap();
        assert_eq!(event.tokens.output, *told, "cut at {length}");
    }
}

#[test]
fn an_interrupted_request_is_billed_where_it_went_last() {
    let bench = Bench::new(1 << 20, 1 << 20);
    let mut intent = sample::event("one", "acme");
    bench.writer.intent(&intent).unwrap();
    intent.prices.output.0 *= 3;
    bench.writer.redirected(&intent).unwrap();
    assert_eq!(recovered(bench.folder()).unwrap().unwrap().interrupted, 1);
    let event: UsageEvent = serde_json::from_slice(&outcomes(bench.folder())[0].event).unwrap();
    assert_eq!(event.prices, intent.prices);
}

#[test]
fn progress_never_takes_what_intents_and_outcomes_need() {
    let bench = Bench::new(1 << 20, 1 << 20);
    let event = sample::event("one", "acme");
    bench.writer.intent(&event).unwrap();
    let before = bench.lane.extent.written();
    bench.space.decide(1 << 20, 0);
    assert!(!bench.writer.progress(&event.request_id, event.tokens), "full");
    bench.space.decide(0, 0);
    bench.lane.fail_next_write();
    assert!(!bench.writer.progress(&event.request_id, event.tokens), "failed");
    assert_eq!(bench.space.state(), SpoolState::Disk);
    bench.space.probe_disk();
    assert_eq!(bench.lane.extent.written(), before);
    bench.writer.outcome(event);
    assert_complete(bench.folder(), "after progress was refused");
}
