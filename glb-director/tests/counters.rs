//! Counters: each packet is counted once, for its own table and backend, over reloads and restarts. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{fmt::Write as _, sync::Arc};

use common::{alone, gateway, generate::frame, golden, hex, load, private_pins, varied};
use glb_common::abi::{BACKEND_SLOTS, TABLE_SLOTS};
use glb_director::{
    compiled_tables::{CompiledTables, ForwardingOptions},
    counters::CounterSlots as _,
    counters::{self, CounterSlotMap, Overflow},
    generation::self_test::{TEST_INTERFACE, compare},
    oracle,
};
use glb_table::TableSet;
use proptest::{
    strategy::{Strategy as _, ValueTree as _},
    test_runner::TestRunner,
};

#[test]
fn each_packet_is_counted_once() {
    alone(|| {
        let pins = private_pins();
        let tables = varied();
        pins.make(&pins.join("counters")).unwrap();
        let mut identities = CounterSlotMap::open_or_create(&pins).unwrap();
        assert_eq!(identities.assign(&tables).unwrap(), Overflow::default());
        let next_hops = gateway(&tables, TEST_INTERFACE, [2, 0, 0, 0, 0, 1]);
        let image =
            CompiledTables::new(&tables, &identities, &next_hops, &ForwardingOptions::default())
                .unwrap();
        let mut generation = load(&image, 1, &pins);
        let mut runner = TestRunner::deterministic();
        let strategy = frame();
        let mut expected = std::collections::BTreeMap::<(u32, &str), (u64, u64)>::new();
        for _ in 0..5_000 {
            let packet = strategy.new_tree(&mut runner).unwrap().current();
            compare(generation.program().unwrap(), &image, &packet).unwrap();
            let answer = oracle::expected_outcome(&image, &packet);
            let count = expected.entry((answer.counter_slot, answer.reason.name())).or_default();
            count.0 += 1;
            count.1 += packet.len() as u64;
        }
        let report = counters::read(&pins).unwrap();
        let mut counted = std::collections::BTreeMap::new();
        let slot = |name: &str| identities.table(name);
        for (reason, count) in &report.reasons {
            counted.insert((0, reason.as_str()), (count.packets, count.bytes));
        }
        for table in &report.tables {
            for (reason, count) in &table.reasons {
                counted.insert((slot(&table.name), reason.as_str()), (count.packets, count.bytes));
            }
        }
        assert_eq!(counted, expected);
        let sent: u64 = report.tables.iter().map(|t| t.reasons["encapsulated"].packets).sum();
        assert_eq!(report.backends.iter().map(|b| b.count.packets).sum::<u64>(), sent);
    });
}

/// A number of tables whose names begin with `prefix`.
fn crowd(prefix: &str, count: u32) -> TableSet {
    let mut text = String::new();
    for index in 0..count {
        let (high, low) = (index >> 8, index & 255);
        writeln!(
            text,
            "[[tables]]\nname = \"{prefix}{index}\"\n\
             hash_key = \"12345678901234561234567890123456\"\n\
             seed = \"34567890123456783456789012345678\"\n\
             binds = [{{ ip = \"1.2.{high}.{low}\", proto = \"tcp\", port = 80 }}]\n\
             backends = [{{ ip = \"10.0.0.1\", state = \"active\", healthy = true }}]"
        )
        .unwrap();
    }
    common::tables(&text, glb_table::Format::Toml)
}

#[test]
fn counters_survive_restarts_and_reassigned_slots_begin_at_zero() {
    alone(|| {
        let pins = private_pins();
        pins.make(&pins.join("counters")).unwrap();
        let tables = varied();
        let mut identities = CounterSlotMap::open_or_create(&pins).unwrap();
        identities.assign(&tables).unwrap();
        let next_hops = gateway(&tables, TEST_INTERFACE, [2, 0, 0, 0, 0, 1]);
        let image =
            CompiledTables::new(&tables, &identities, &next_hops, &ForwardingOptions::default())
                .unwrap();
        let packet = hex(golden()["vectors"][0]["input"].as_str().unwrap());
        let counted = || {
            let report = counters::read(&pins).unwrap();
            let plain = report.tables.into_iter().find(|table| table.name == "plain");
            plain.map(|table| table.reasons.get("encapsulated").map_or(0, |count| count.packets))
        };
        let mut first = load(&image, 1, &pins);
        compare(first.program().unwrap(), &image, &packet).unwrap();
        // A reload, and a restart that finds everything by its pin.
        let mut second = load(&image, 2, &pins);
        compare(second.program().unwrap(), &image, &packet).unwrap();
        drop((first, second, identities));
        let mut identities = CounterSlotMap::open(&pins).unwrap().unwrap();
        identities.assign(&tables).unwrap();
        assert_eq!(counted(), Some(2));
        // New names that need every slot, and then the old names again.
        identities.assign(&crowd("a", TABLE_SLOTS - 2)).unwrap();
        assert_eq!(counted(), None);
        identities.assign(&tables).unwrap();
        assert_eq!(counted(), Some(0));
    });
}

/// A table whose backends are 10.0.0.0 and the next ones.
fn many(name: &str, first: u32, count: u32) -> TableSet {
    let mut text = format!(
        "[[tables]]\nname = \"{name}\"\nhash_key = \"12345678901234561234567890123456\"\n\
         seed = \"34567890123456783456789012345678\"\n\
         binds = [{{ ip = \"1.1.1.1\", proto = \"tcp\", port = 80 }}]\nbackends = [\n"
    );
    for number in first..first + count {
        let address = std::net::Ipv4Addr::from(0x0a00_0000 + number);
        writeln!(text, "{{ ip = \"{address}\", state = \"active\", healthy = true }},").unwrap();
    }
    common::tables(&(text + "]\n"), glb_table::Format::Toml)
}

/// While a generation can still count packets, its slots are not reassigned, neither before the next one is
/// swapped in nor as long as there is a way back.
#[test]
fn slots_of_retained_generations_are_not_reassigned() {
    alone(|| {
        let pins = private_pins();
        pins.make(&pins.join("counters")).unwrap();
        let mut identities = CounterSlotMap::open_or_create(&pins).unwrap();
        let packet = hex(golden()["vectors"][0]["input"].as_str().unwrap());
        let tables = many("t", 0, 8);
        assert_eq!(identities.assign(&tables).unwrap(), Overflow::default());
        let image = |tables: &TableSet, identities: &CounterSlotMap| {
            let next_hops = gateway(tables, TEST_INTERFACE, [2, 0, 0, 0, 0, 1]);
            CompiledTables::new(tables, identities, &next_hops, &ForwardingOptions::default())
                .unwrap()
        };
        let first_image = image(&tables, &identities);
        let mut first = load(&first_image, 1, &pins);
        identities.retain(1, Some(Arc::new(tables)));
        let sent = |name: &str| {
            let report = counters::read(&pins).unwrap();
            let of = report.backends.iter().filter(|backend| backend.table == name);
            of.map(|backend| backend.count.packets).sum::<u64>()
        };
        compare(first.program().unwrap(), &first_image, &packet).unwrap();
        assert_eq!(sent("t"), 1);

        // All slots are used, eight of them by who runs and the others by who is gone.
        let room = BACKEND_SLOTS - 2;
        let gone = many("gone", 0, room - 8);
        assert_eq!(identities.assign(&gone).unwrap(), Overflow::default());
        let wanted = many("wanted", 0, room - 4);
        let uncounted = identities.assign(&wanted).unwrap();
        assert_eq!(uncounted, Overflow { tables: 0, backends: 4 });
        // The running generation still counts in its own slots.
        compare(first.program().unwrap(), &first_image, &packet).unwrap();
        assert_eq!((sent("t"), sent("wanted")), (2, 0));

        // Packets of tables without a slot are counted under no table: none is lost.
        let others = many("others", 0, 4);
        identities.retain(2, Some(Arc::new(wanted)));
        assert_eq!(identities.assign(&others).unwrap(), Overflow { tables: 0, backends: 4 });
        let others_image = image(&others, &identities);
        let mut third = load(&others_image, 3, &pins);
        compare(third.program().unwrap(), &others_image, &packet).unwrap();
        let report = counters::read(&pins).unwrap();
        assert_eq!((report.reasons["encapsulated"].packets, sent("others")), (1, 0));
        assert_eq!(sent("t"), 2);

        // After a restart the tables of an old generation are unknown: it keeps all its slots.
        drop(identities);
        let mut identities = CounterSlotMap::open(&pins).unwrap().unwrap();
        identities.retain(1, None);
        assert_eq!(identities.assign(&others).unwrap(), Overflow { tables: 0, backends: 4 });
        // Once it has gone, its slots are free, and begin at 0; its sums stay its table's.
        identities.retain_only(&[3]);
        identities.retain(3, Some(Arc::new(others.clone())));
        assert_eq!(identities.assign(&others).unwrap(), Overflow::default());
        assert_eq!(sent("others"), 0);
        let report = counters::read(&pins).unwrap();
        let all = report.tables.iter().filter_map(|table| table.reasons.get("encapsulated"));
        let all: u64 = all.map(|count| count.packets).sum();
        assert_eq!(all + report.reasons["encapsulated"].packets, 3);
    });
}
