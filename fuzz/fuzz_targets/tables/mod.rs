//! Small tables in plain memory that use every feature of a director.

use std::sync::LazyLock;

use glb_common::{vip_lookup::{self, NO_TABLE, segment_key, port_key}, encap::EgressLink, flow::{Address as _, V4, V6}, hash::HashFields, abi::{Backend, BindSlot, Config, Ipv6Endpoints, KEEP_TAGS, NO_HOP, NO_ROWS, PrefixEntry, Row, Segment, TableInfo, TableRows}, siphash::SipHash24, tables::Tables};

const SLOTS: u32 = 16;

pub(crate) struct Tables {
    config: Config,
    displacement: u32,
    binds: Vec<BindSlot>,
    segments: Vec<Segment>,
    tables: Vec<TableInfo>,
    backends: Vec<Backend>,
    ways: Vec<Ipv6Endpoints>,
}

fn v6(last: u8) -> V6 {
    V6::new([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last])
}

impl Tables {
    /// Makes one of four configurations.
    pub(crate) fn new(variant: u32) -> Self {
        let config = Config {
            bind_seed: 7,
            displacement_mask: 0,
            bind_mask: SLOTS - 1,
            has_port_ranges: u8::from(variant != 0),
            tos_mask: if variant == 1 { 0 } else { 0xff },
            tos_value: if variant == 1 { 0xb8 } else { 0 },
            may_fragment: u8::from(variant == 2),
            answers_per_second: 0,
            tags: if variant == 3 { 2 } else { KEEP_TAGS },
            tag_words: [0x0500_0081, 0x0600_0081],
            padding: 0,
        };
        let table = |index: u32, fields: HashFields, is_v6: u8, has_more: bool| TableInfo {
            key: [1, 2],
            alt_key: [3, 4],
            rows: index,
            more_rows: if has_more { 10 + index } else { NO_ROWS },
            alt_rows: if has_more { 20 + index } else { NO_ROWS },
            alt_more_rows: if has_more { 30 + index } else { NO_ROWS },
            counter_slot: index + 2,
            hash_fields: fields.bits(),
            alt_hash_fields: if has_more { HashFields::SRC_ADDR.bits() } else { 0 },
            has_more: u8::from(has_more),
            is_v6,
            bank: 0,
            padding: [0; 4],
        };
        let tables = vec![
            table(0, HashFields::SRC_ADDR, 0, false),
            table(1, HashFields::ALL, 0, true),
            table(2, HashFields::SRC_ADDR, 1, true),
        ];
        let way = |mtu, interface| EgressLink {
            next_hop_mac: [2, 0, 0, 0, 0, 1],
            own_mac: [2, 0, 0, 0, 0, 2],
            interface,
            mtu,
            link_mtu: 1500,
        };
        // Four IPv4 backends and four IPv6 backends; one of each has no next hop.
        let mtus = [1500, 9000, 1400, 0];
        let source = [10, 0, 2, 10];
        let mut backends: Vec<Backend> = (0..4)
            .map(|i| {
                way(mtus[i], u32::from(mtus[i] != 0)).to_v4(source, [10, 0, 2, 21 + i as u8], 1)
            })
            .collect();
        backends.extend(mtus.map(|mtu| way(mtu, u32::from(mtu != 0)).to_v6(1)));
        let own = |last| V6::new([0xfd, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]).words();
        let ways = (0..8).map(|i| Ipv6Endpoints { source: own(0x10), address: own(0x20 + i) }).collect();
        let v4 = |last| V4::new([203, 0, 113, last]).words();
        let slot = |address, family, protocol, port, table: u32| BindSlot {
            address,
            port_key: port_key(family, protocol, port),
            table,
            bank: 0,
            plain_rows: if table == 0 && variant != 3 { 0 } else { NO_ROWS },
            first_round: SipHash24::first_round([1, 2]),
        };
        let exact = [
            slot(v4(10), 4, 6, 80, 0),
            slot(v4(10), 4, 17, 53, 0),
            slot(v4(11), 4, 6, 80, 1),
            slot(v4(12), 4, 6, 80, 2),
            slot(v6(0x10).words(), 6, 6, 80, 0),
            slot(v6(0x11).words(), 6, 17, 53, 1),
            slot(v6(0x12).words(), 6, 6, 80, 2),
        ];
        let (displacement, binds) = (0..1 << 20)
            .find_map(|displacement| {
                let mut slots = vec![BindSlot::default(); SLOTS as usize];
                for bind in &exact {
                    let hash = vip_lookup::hash(config.bind_seed, bind.address, bind.port_key);
                    let place = &mut slots[vip_lookup::slot(hash, displacement, SLOTS - 1) as usize];
                    if place.port_key != 0 {
                        return None;
                    }
                    *place = *bind;
                }
                Some((displacement, slots))
            })
            .expect("seven binds find places among sixteen");
        let range = |protocol, first, last, table| Segment {
            first: segment_key(protocol, first),
            last: segment_key(protocol, last),
            table,
            padding: 0,
        };
        let segments = vec![
            range(1, 0, 0, 0),
            range(6, 0, 0, 1),
            range(6, 1000, 2000, 2),
            range(6, 60_000, 65_535, 1),
            range(17, 0, 0, NO_TABLE),
            range(17, 1, 65_535, 0),
            range(58, 0, 0, 2),
        ];
        Self { config, displacement, binds, segments, tables, backends, ways }
    }
}

/// Rows with the four backends from `base` on.
fn rows(base: u16) -> Vec<Row> {
    let row = |row: u16| {
        let second = if row % 7 == 0 { NO_HOP } else { base + row.wrapping_add(1) % 4 };
        Row { first: base + row % 4, second }
    };
    (0..=u16::MAX).map(row).collect()
}

impl Tables for Tables {
    fn config<T: Copy>(&self, field: impl Fn(&Config) -> &T) -> T {
        *field(&self.config)
    }

    fn displacement(&self, index: u32) -> Option<u32> {
        (index == 0).then_some(self.displacement)
    }

    fn bind(&self, index: u32) -> Option<&BindSlot> {
        self.binds.get(index as usize)
    }

    fn prefix(&self, family: u8, address: [u64; 2]) -> Option<PrefixEntry> {
        // 203.0.113.0/24 and 2001:db8::/32.
        let inside = if family == 4 {
            address[1] as u32 & 0x00ff_ffff == 0x0071_00cb
        } else {
            address[0] as u32 == 0xb80d_0120
        };
        inside.then_some(PrefixEntry { start: 0, count: self.segments.len() as u32 })
    }

    fn segment(&self, index: u32) -> Option<&Segment> {
        self.segments.get(index as usize)
    }

    fn table(&self, index: u32) -> Option<&TableInfo> {
        self.tables.get(index as usize)
    }

    fn rows(&self, index: u32) -> Option<&TableRows> {
        // The third table's backends are the second four.
        static ROWS: LazyLock<[Vec<Row>; 2]> = LazyLock::new(|| [0, 4].map(rows));
        let rows = &ROWS[usize::from(index % 10 == 2)];
        if index == NO_ROWS { None } else { rows.first_chunk() }
    }

    fn backend(&self, index: u16, _bank: u32) -> Option<&Backend> {
        self.backends.get(usize::from(index))
    }

    fn ipv6_endpoints(&self, index: u16, _bank: u32) -> Option<&Ipv6Endpoints> {
        self.ways.get(usize::from(index))
    }
}
