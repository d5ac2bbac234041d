//! How many instructions the verifier walks for the backend's programs on this kernel. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "../../glb-common/tests/support/verifier_margin.rs"]
mod verifier_margin;

use std::{collections::BTreeSet, path::Path};

use aya::programs::ProgramInfo;
use glb_redirect::{config::Config, generation::Generation, program_data::ProgramData};

#[test]
fn every_program_stays_far_below_the_limit_of_the_verifier() {
    let text = "interfaces = [\"e0\"]\nvips = [\"203.0.113.10\", \"2001:db8::10\"]\n\
                directors = [\"10.0.2.10\", \"10.0.3.0/24\"]\n";
    let config = Config::parse(text, Path::new("test")).unwrap();
    let mut data = ProgramData::new(&config, &BTreeSet::new());
    // With a limit of 0 the verifier sees that the clamp does nothing.
    (data.settings.mss_v4, data.settings.mss_v6) = (1420, 1400);
    let mut generation = Generation::load(&data, None).unwrap();
    let clamp = generation.mss_clamp().unwrap().info().unwrap();
    let infos: Vec<(&str, ProgramInfo)> = generation.infos().unwrap().into_iter().collect();
    verifier_margin::assert(infos.into_iter().chain([("glb_mss_clamp", clamp)]));
}
