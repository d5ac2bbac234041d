//! A process that forbids core dumps; it is this test's own, so it is alone in its file.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[test]
fn core_dumps_are_disabled() {
    use nix::sys::{
        prctl::get_dumpable,
        resource::{Resource, getrlimit},
    };
    assert!(get_dumpable().unwrap());
    glb_host::privilege::disable_core_dumps().unwrap();
    assert_eq!(getrlimit(Resource::RLIMIT_CORE).unwrap(), (0, 0));
    assert!(!get_dumpable().unwrap());
}
