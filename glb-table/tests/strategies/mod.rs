//! Random tables.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test file uses a part; the prefix is a constant"
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use glb_table::{Backend, Bind, HashFields, Key, Order, Proto, State, Table};
use proptest::prelude::*;

pub(crate) fn state() -> impl Strategy<Value = State> {
    prop_oneof![4 => Just(State::Active), 1 => Just(State::Filling), 2 => Just(State::Draining), 2 => Just(State::Inactive)]
}

/// Plain backends 10.0.0.1 and on.
pub(crate) fn backends(n: u16) -> Vec<Backend> {
    (1..=n).map(|n| Backend::new(Ipv4Addr::from(0x0a00_0000 + u32::from(n)).into())).collect()
}

pub(crate) fn address(v6: bool, n: u16) -> IpAddr {
    let n = u32::from(n) + 1;
    if v6 {
        Ipv6Addr::from(0x2001_0db8_u128 << 96 | u128::from(n)).into()
    } else {
        Ipv4Addr::from(0x0a00_0000 + n).into()
    }
}

fn bind() -> Bind {
    Bind { prefix: "203.0.113.10/32".parse().unwrap(), proto: Proto::Tcp, ports: 80..=80 }
}

/// Any table of 2 to `most` backends.
pub(crate) fn table(most: u16) -> impl Strategy<Value = Table> {
    let backend = (any::<u16>(), state(), prop::bool::weighted(0.8), 1..6_u16, 0..3_usize);
    let backends = prop::collection::btree_map(any::<u16>(), backend, 2..=usize::from(most));
    (
        any::<[u8; 16]>(),
        any::<bool>(),
        backends,
        2..=4_u8,
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(seed, v6, backends, hops, weighted, zoned, glb)| {
            let zones = ["a", "b", "c"];
            let mut backends: Vec<Backend> = backends
                .into_iter()
                .map(|(n, (_, state, healthy, weight, zone))| Backend {
                    state,
                    healthy,
                    weight: if weighted { weight } else { 1 },
                    zone: if zoned && hops > 2 { zones[zone].to_owned() } else { String::new() },
                    ..Backend::new(address(v6, n))
                })
                .collect();
            if backends.iter().all(|backend| backend.state == State::Inactive) {
                backends[0].state = State::Active;
            }
            Table {
                name: "web".into(),
                hash_key: Key::new([3; 16]),
                seed: Key::new(seed),
                hash_fields: HashFields::default(),
                alt_hash_fields: None,
                alt_hash_key: None,
                alt_seed: None,
                hops,
                order: if glb && hops == 2 { Order::Glb } else { Order::HealthyFirst },
                binds: vec![bind()],
                backends,
                healthchecks: None,
            }
        })
}

/// The same table twice, its backends in different order.
pub(crate) fn shuffled(most: u16) -> impl Strategy<Value = (Table, Table)> {
    table(most).prop_flat_map(|table| {
        let backends = Just(table.backends.clone()).prop_shuffle();
        (Just(table), backends).prop_map(|(table, backends)| {
            let shuffled = Table { backends, ..table.clone() };
            (table, shuffled)
        })
    })
}

/// A healthy table of so many backends and hops.
pub(crate) fn plain(n: u16, hops: u8) -> Table {
    Table {
        name: "web".into(),
        hash_key: Key::new([3; 16]),
        seed: Key::new([5; 16]),
        hash_fields: HashFields::default(),
        alt_hash_fields: None,
        alt_hash_key: None,
        alt_seed: None,
        hops,
        order: Order::HealthyFirst,
        binds: vec![bind()],
        backends: backends(n),
        healthchecks: None,
    }
}

/// A healthy table of three to ten backends, to be changed step by step.
pub(crate) fn one_table() -> impl Strategy<Value = Table> {
    (table(2), 3..=10_u16, 2..=4_u8).prop_map(|(table, n, hops)| Table {
        backends: backends(n),
        hops,
        order: Order::HealthyFirst,
        ..table
    })
}
