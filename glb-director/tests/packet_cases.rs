//! The table of packets with the one right answer to each: through the pure functions, and through the
//! program in the kernel, whose verdict, bytes and counter are compared. The answers come from
//! data/packet_cases.py, which shares no code with either. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use common::{hex, private_pins};
use glb_director::{
    compiled_tables::{CompiledTables, ForwardingOptions},
    counters::{self, CounterSlotMap},
    generation::{
        Generation,
        self_test::{TEST_INTERFACE, test_run},
    },
    oracle::{self, Verdict},
};
use glb_table::{Format, TableSet};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct Case {
    name: String,
    about: String,
    options: CaseOptions,
    input: String,
    verdict: String,
    reason: String,
    table: Option<String>,
    output: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(default, deny_unknown_fields)]
struct CaseOptions {
    vlan: Option<Vec<u16>>,
    tos: Option<u8>,
    forward_echo: Option<bool>,
    may_fragment: bool,
}

impl CaseOptions {
    fn options(&self) -> ForwardingOptions {
        ForwardingOptions {
            answers_per_second: 0,
            vlan: self.vlan.clone(),
            outer_tos: self.tos,
            forward_echo: self.forward_echo.unwrap_or(true),
            fragment_tunnel: self.may_fragment,
            ..ForwardingOptions::default()
        }
    }

    /// As it stands in a director's configuration.
    fn shown(&self) -> String {
        let mut keys = Vec::new();
        if let Some(vlan) = &self.vlan {
            keys.push(format!("`vlan = {vlan:?}`"));
        }
        if let Some(tos) = self.tos {
            keys.push(format!("`outer_tos = {tos}`"));
        }
        if let Some(forward) = self.forward_echo {
            keys.push(format!("`forward_echo = {forward}`"));
        }
        if self.may_fragment {
            keys.push("`may_fragment = \"tunnel\"`".into());
        }
        keys.join(", ")
    }
}

fn cases() -> Vec<Case> {
    serde_json::from_str(include_str!("data/packet_cases.json")).unwrap()
}

fn tables() -> TableSet {
    common::tables(include_str!("data/packet_cases.toml"), Format::Toml)
}

/// The verdict's name, and the frame that leaves.
fn answer(verdict: Verdict, input: &[u8]) -> (&'static str, Option<Vec<u8>>) {
    match verdict {
        Verdict::Pass => ("passed", Some(input.to_vec())),
        Verdict::Drop => ("dropped", None),
        Verdict::Send { frame, .. } | Verdict::Answer { frame } => ("sent", Some(frame)),
    }
}

#[test]
fn oracle_gives_the_documented_answers() {
    let tables = tables();
    let next_hops = common::gateway(&tables, TEST_INTERFACE, [2, 0, 0, 0, 0, 1]);
    let mut wrong = Vec::new();
    for case in cases() {
        let image = CompiledTables::new(
            &tables,
            &common::Fixed::new(&tables),
            &next_hops,
            &case.options.options(),
        )
        .unwrap();
        let input = hex(&case.input);
        let got = oracle::expected_outcome(&image, &input);
        let reason = got.reason.name();
        let (verdict, output) = answer(got.verdict, &input);
        if (reason, verdict, &output)
            != (case.reason.as_str(), case.verdict.as_str(), &case.output.as_deref().map(hex))
        {
            wrong.push(format!("{}: {verdict}, {reason}, {output:02x?}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn program_gives_the_documented_answers_and_counts_each_once() {
    std::thread::spawn(|| {
        let tables = tables();
        let next_hops = common::gateway(&tables, TEST_INTERFACE, [2, 0, 0, 0, 0, 1]);
        let mut by_options = BTreeMap::<CaseOptions, Vec<Case>>::new();
        for case in cases() {
            by_options.entry(case.options.clone()).or_default().push(case);
        }
        for (options, cases) in by_options {
            let pins = private_pins();
            pins.make(&pins.join("counters")).unwrap();
            let mut identities = CounterSlotMap::open_or_create(&pins).unwrap();
            identities.assign(&tables).unwrap();
            let image =
                CompiledTables::new(&tables, &identities, &next_hops, &options.options()).unwrap();
            let mut generation = Generation::load(image, 1, &pins).unwrap();
            let program = generation.program().unwrap();
            let mut before = counted(&pins);
            for case in cases {
                let input = hex(&case.input);
                let (verdict, frame) = test_run(program, &input).unwrap();
                let verdict =
                    ["aborted", "dropped", "passed", "sent", "redirected"][verdict as usize];
                assert_eq!(verdict, case.verdict, "{}", case.name);
                if let Some(expected) = &case.output {
                    assert_eq!(frame, hex(expected), "{}", case.name);
                }
                let after = counted(&pins);
                let mut expected = before.clone();
                let key = (case.table.clone().unwrap_or_default(), case.reason.clone());
                let count = expected.entry(key).or_default();
                *count = (count.0 + 1, count.1 + input.len() as u64);
                assert_eq!(after, expected, "{}", case.name);
                before = after;
            }
        }
    })
    .join()
    .unwrap();
}

/// Packets and bytes by table (none is empty) and reason.
fn counted(pins: &glb_host::bpffs::PinFolder) -> BTreeMap<(String, String), (u64, u64)> {
    let report = counters::read(pins).unwrap();
    let none = report.reasons.into_iter().map(|(reason, count)| ((String::new(), reason), count));
    let tables = report.tables.into_iter().flat_map(|table| {
        let name = table.name;
        table.reasons.into_iter().map(move |(reason, count)| ((name.clone(), reason), count))
    });
    none.chain(tables)
        .map(|(key, count)| (key, (count.packets, count.bytes)))
        .filter(|(_, count)| count.0 > 0)
        .collect()
}

/// docs/packet-cases.md says what the cases say: `GLB_BLESS=1` writes it.
#[test]
fn documentation_lists_the_tested_cases() {
    let mut text = String::from(
        "# Packets and the right answer to each\n\n\
         Made from `glb-director/tests/data/packet_cases.py`, whose answers the pure functions and the \
         program in the kernel must both give\n(`./x test -- packet_cases`; `GLB_BLESS=1` writes this \
         page anew). The tables are those of\n`packet_cases.toml` beside it; the way to every backend \
         has an MTU of 1,600 bytes. Each packet is counted once,\nunder the reason that stands here, \
         for the table if there is one. Bytes are in hex; those of long packets are\ncut short here, \
         but not in the test.\n",
    );
    for Case { name, about, options, input, verdict, reason, table, output } in cases() {
        let table = table.map_or(String::new(), |table| format!(" (table `{table}`)"));
        let options = options.shown();
        let options = if options.is_empty() { options } else { format!(" With {options}.") };
        writeln!(
            text,
            "\n## {name}\n\n{about}.{options} **{verdict}**, counted as `{reason}`{table}.\n"
        )
        .unwrap();
        writeln!(text, "```\nin   {}", shown(&input)).unwrap();
        match output {
            Some(output) if output == input => text.push_str("out  the same\n```\n"),
            Some(output) => writeln!(text, "out  {}\n```", shown(&output)).unwrap(),
            None => text.push_str("out  nothing\n```\n"),
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/packet-cases.md");
    if std::env::var_os("GLB_BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == text, "docs/packet-cases.md is old: GLB_BLESS=1 ./x test -- packet_cases");
}

fn shown(hex: &str) -> String {
    const MOST: usize = 2 * 160;
    if hex.len() <= MOST {
        hex.to_owned()
    } else {
        format!("{}… {} bytes", &hex[..MOST], hex.len() / 2)
    }
}
