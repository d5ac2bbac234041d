//! The programs that show their decisions: what they show is what they decide, and what the plain
//! ones decide.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;

use common::{golden, golden_tables, hex, image_of, private_pins};
use glb_common::{abi::TABLE_SLOTS, trace::TraceSettings};
use glb_director::{
    compiled_tables::CompiledTables,
    generation::{
        Generation, LoadedProgram, ProgramSpec,
        self_test::{TEST_INTERFACE, compare},
    },
    oracle::{self, Verdict},
    replay::REASONS,
};
use glb_host::{
    bpffs::PinFolder,
    generations,
    packet_trace::{
        filter::TraceFilter,
        replay::test_run,
        trace::{EventReader, TraceRecord},
    },
};

struct Traced {
    generation: Generation,
    events: EventReader,
}

impl Traced {
    fn new(image: &CompiledTables, pins: &PinFolder) -> Self {
        let shell = LoadedProgram::load(ProgramSpec::of(image).with_trace(), Some(pins)).unwrap();
        // A preloaded ordinary program is not used for tracing, and vice versa.
        assert!(!shell.fits(image));
        let generation = shell.fill(image.clone(), 1).unwrap();
        generation.pin_below(pins).unwrap();
        let events = EventReader::open(&generations::folder(pins, 1)).unwrap();
        Self { generation, events }
    }

    fn show(&mut self, filter: &str, slot: Option<u32>) {
        let wanted = TraceFilter::parse(&[filter.to_owned()], &REASONS).unwrap();
        let filter = wanted.compile(&REASONS, slot).unwrap();
        let settings = TraceSettings { filter, sample: 0, per_second: 0, snap: 4096, padding: 0 };
        self.generation.configure_trace(&settings).unwrap();
    }

    fn shown(&mut self) -> Vec<TraceRecord> {
        std::iter::from_fn(|| self.events.next_record()).collect()
    }
}

fn vectors() -> Vec<(String, Vec<u8>)> {
    let golden = golden();
    let vectors = golden["vectors"].as_array().unwrap().iter();
    vectors
        .map(|vector| (vector["name"].to_string(), hex(vector["input"].as_str().unwrap())))
        .collect()
}

#[test]
fn traced_decisions_are_the_programs_decisions() {
    let pins = private_pins();
    let image = image_of(&golden_tables(&golden(), "default"), TEST_INTERFACE);
    let mut traced = Traced::new(&image, &pins);
    let vectors = vectors();
    // At first it shows nothing: neither self-tests nor what comes before it has been told.
    compare(traced.generation.program().unwrap(), &image, &vectors[0].1).unwrap();
    assert!(traced.shown().is_empty());
    traced.show("", None);
    let mut seen = BTreeSet::new();
    for (name, frame) in &vectors {
        compare(traced.generation.program().unwrap(), &image, frame).unwrap();
        let expected = oracle::expected_outcome(&image, frame);
        let shown = traced.shown();
        let [shown] = &shown[..] else { panic!("{name}: {shown:?}") };
        assert_eq!(shown.event.reason, expected.reason as u32, "{name}");
        assert_eq!(shown.event.slot, expected.counter_slot, "{name}");
        assert_eq!(shown.event.interface, TEST_INTERFACE, "{name}");
        assert_eq!(shown.before, *frame, "{name}");
        let sent = match expected.verdict {
            Verdict::Pass | Verdict::Drop => None,
            Verdict::Send { frame, .. } | Verdict::Answer { frame } => Some(frame),
        };
        assert_eq!(shown.after, sent, "{name}");
        seen.insert(expected.reason);
    }
    assert!(seen.len() >= 6, "{seen:?}");
    assert_eq!(traced.events.tally().unwrap().shown, vectors.len() as u64);
}

#[test]
fn the_filter_is_evaluated_in_the_kernel() {
    let pins = private_pins();
    let image = image_of(&golden_tables(&golden(), "default"), TEST_INTERFACE);
    let mut traced = Traced::new(&image, &pins);
    let vectors = vectors();
    let second = image.tables[1].counter_slot;
    assert!(second < TABLE_SLOTS);
    for (filter, slot) in [
        ("verdict passed", None),
        ("reason no_bind", None),
        ("", Some(second)),
        ("port 443", None),
        ("1.1.1.1 tcp", None),
        ("1.1.1.0/24 port 80 verdict sent", Some(second)),
    ] {
        traced.show(filter, slot);
        let wanted = TraceFilter::parse(&[filter.to_owned()], &REASONS).unwrap();
        let wanted = wanted.compile(&REASONS, slot).unwrap();
        let mut count = 0;
        for (name, frame) in &vectors {
            test_run(traced.generation.program().unwrap(), frame).unwrap();
            let expected = oracle::expected_outcome(&image, frame);
            let decision = wanted.matches_decision(expected.reason as u32, expected.counter_slot);
            let headers = !wanted.needs_headers()
                || glb_common::flow_dissector::visit(&frame[..], |ends| wanted.matches_flow(ends));
            let shown = traced.shown().len();
            assert_eq!(shown, usize::from(decision && headers), "{filter}: {name}");
            count += shown;
        }
        assert!(count > 0 && count < vectors.len(), "{filter}: {count}");
    }
}
