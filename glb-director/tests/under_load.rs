//! Swaps while packets flow, and what many of them leave behind. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{collections::BTreeSet, fs, net::IpAddr, time::Instant};

use aya::programs::loaded_programs;
use common::{
    live::{Site, alone, table},
    private_pins,
    traffic::{Seen, Traffic},
};
use glb_director::{
    compiled_tables::{CompiledTables, ForwardingOptions},
    counters::{self, CounterSlotMap},
    generation::Generation,
};
use glb_host::{bpffs::PinFolder, generations::swap, next_hop::NextHop, xdp_link::Mode};
use glb_table::TableSet;
use nix::net::if_::if_nametoindex;

/// The number of swaps: `GLB_TEST_SWAPS`, or a default.
fn swaps(usual: usize) -> usize {
    std::env::var("GLB_TEST_SWAPS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Two tables, for the VIPs 1 on interface `a` and 2 on interface `b`, with these backends.
fn tables(hosts: [u8; 3]) -> TableSet {
    let text: String = [1u8, 2]
        .iter()
        .map(|network| {
            let name = format!("t{network}");
            let backends = hosts.map(|host| (host, "active"));
            table(&name, 80, &backends)
                .replace("10.0.1.", &format!("10.0.{network}."))
                .replace("198.51.100.1", &format!("198.51.100.{network}"))
        })
        .collect();
    common::tables(&text, glb_table::Format::Toml)
}

fn load(
    tables: &TableSet,
    number: u64,
    identities: &CounterSlotMap,
    pins: &PinFolder,
) -> Generation {
    let hop = |interface: &str, network: u8| NextHop {
        interface: if_nametoindex(interface).unwrap(),
        own_mac: [2, 0, 0, 0, 0, 0xaa],
        mac: [2, 0, 0, 0, network, 2],
        source: Some(IpAddr::from([10, 0, network, 1])),
        mtu: 1500,
        link_mtu: 1500,
    };
    let backends = tables.tables.iter().flat_map(|table| &table.backends);
    let ways = backends.map(|backend| {
        let IpAddr::V4(address) = backend.address else { panic!("{backend:?}") };
        let network = address.octets()[2];
        (backend.address, Ok(hop(if network == 1 { "a" } else { "b" }, network)))
    });
    let options = ForwardingOptions::default();
    let image = CompiledTables::new(tables, identities, &ways.collect(), &options).unwrap();
    Generation::load(image, number, pins).unwrap()
}

fn encapsulated(pins: &PinFolder, table: &str) -> u64 {
    let report = counters::read(pins).unwrap();
    let table = report.tables.into_iter().find(|found| found.name == table);
    table.map_or(0, |table| {
        let of = |name: &str| table.reasons.get(name).map_or(0, |count| count.packets);
        of("encapsulated")
    })
}

fn whole(seen: &Seen) {
    assert_eq!(seen.sent, seen.back, "{seen:?}");
    let of = |hosts: std::ops::Range<u8>| {
        let of = |hops: &&Vec<u8>| hops.iter().all(|hop| hosts.contains(hop));
        seen.by_hops.iter().filter(|(hops, _)| of(hops)).map(|(_, count)| count).sum::<u64>()
    };
    let (first, second) = (of(11..14), of(14..17));
    assert_eq!(first + second, seen.sent, "handled by two tables: {seen:?}");
    assert!(first > 1000 && second > 1000, "{first} and {second}: {seen:?}");
}

/// Swaps between two generations while packets flow on all these interfaces.
fn swap_under_load(interfaces: &'static [&'static str], count: usize) {
    alone(move |_site| {
        let pins = private_pins();
        pins.make(&pins.join(counters::pins::FOLDER)).unwrap();
        let mut identities = CounterSlotMap::open_or_create(&pins).unwrap();
        let sets = [tables([11, 12, 13]), tables([14, 15, 16])];
        for set in &sets {
            assert_eq!(identities.assign(set).unwrap(), counters::Overflow::default());
        }
        let mut generations: Vec<Generation> = sets
            .iter()
            .zip(1..)
            .map(|(set, number)| load(set, number, &identities, &pins))
            .collect();
        let names: Vec<String> = interfaces.iter().map(ToString::to_string).collect();
        let mut put = |which: usize| {
            let program = generations[which].program().unwrap();
            let begun = Instant::now();
            swap(program, &names, &pins, Mode::Native).unwrap();
            begun.elapsed()
        };
        put(0);
        let traffic: Vec<(&str, Traffic)> = interfaces
            .iter()
            .map(|name| (*name, Traffic::start(name, if *name == "a" { 1 } else { 2 })))
            .collect();
        let mut took: Vec<_> = (1..=count).map(|round| put(round % 2)).collect();
        took.sort_unstable();
        for (name, traffic) in traffic {
            let seen = traffic.stop();
            whole(&seen);
            let table = if name == "a" { "t1" } else { "t2" };
            assert_eq!(encapsulated(&pins, table), seen.sent, "counted on {name}: {seen:?}");
            println!(
                "{name}: {} packets through {count} swaps, none lost, each by one table; slowest \
                 window of 32: {:?}",
                seen.sent, seen.slowest
            );
        }
        println!("a swap of {} interface(s): median {:?}", names.len(), took[count / 2]);
    });
}

#[test]
fn swaps_on_one_interface_lose_nothing() {
    swap_under_load(&["a"], swaps(500));
}

#[test]
fn swaps_on_several_interfaces_lose_nothing() {
    swap_under_load(&["a", "b"], swaps(500));
}

/// Kernel objects and descriptors of one director.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    programs: usize,
    maps: usize,
    pins: usize,
    descriptors: usize,
    state_files: usize,
}

impl Held {
    fn now(site: &Site, process: u32) -> Self {
        // Programs that count where this director counts are its own.
        let pin = site.pins.join(counters::pins::TABLES);
        let own = aya::maps::MapData::from_pin(&pin).unwrap().info().unwrap().id();
        let programs: Vec<Vec<u32>> = loaded_programs()
            .filter_map(|program| program.ok()?.map_ids().ok()?)
            .filter(|maps| maps.contains(&own))
            .collect();
        let maps: BTreeSet<u32> = programs.iter().flatten().copied().collect();
        Self {
            programs: programs.len(),
            maps: maps.len(),
            pins: common::live::files_below(&site.pins).len(),
            descriptors: fs::read_dir(format!("/proc/{process}/fd")).unwrap().count(),
            state_files: common::live::files_below(&site.at("state")).len(),
        }
    }

    /// Once what is under way has ended.
    fn settled(site: &Site, process: u32) -> Self {
        let mut last = Self::now(site, process);
        let mut same = 0;
        for _ in 0..600 {
            std::thread::sleep(std::time::Duration::from_millis(100));
            let now = Self::now(site, process);
            same = if now == last { same + 1 } else { 0 };
            last = now;
            // On a busy machine the preloading may not have ended.
            if same == 20 {
                break;
            }
        }
        last
    }
}

/// Memory of the process's own, in kB.
fn own_memory(process: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn many_reloads_leave_nothing_behind() {
    alone(|site| {
        let count = swaps(60);
        let states = [["active", "active"], ["draining", "active"], ["active", "draining"]];
        let text = |round: usize| {
            let [first, second] = states[round % states.len()];
            table("t", 80, &[(11, first), (12, second), (13, "active"), (14, "active")])
        };
        site.write(&text(0));
        let daemon = site.start();
        let process = daemon.child.id();
        let reload = |round: usize| {
            site.write(&text(round));
            let (well, said) = site.run("reload", &[]);
            assert!(well, "{said}");
        };
        (1..=20).for_each(reload);
        let (before, memory) = (Held::settled(&site, process), own_memory(process));
        (21..=20 + count).for_each(reload);
        let (after, memory_after) = (Held::settled(&site, process), own_memory(process));
        println!("after {count} reloads: {after:?}, {memory} kB before, {memory_after} kB after");
        assert_eq!(before, after);
        // The memory that loading takes for a moment is released again.
        assert!(memory < 16_384, "{memory} kB");
        // The allocator takes some time to be level.
        assert!(memory_after < memory + 4_096, "{memory} kB, then {memory_after} kB");
    });
}
