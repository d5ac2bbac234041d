//! Several interfaces, all or none; and links that are somebody else's. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{process::Command, thread};

use aya::programs::{Xdp, links::PinnedLink};
use common::{image_of, private_pins};
use glb_director::generation::{Generation, self_test::TEST_INTERFACE};
use glb_host::{
    bpffs::PinFolder,
    generations::{self, SwapError, current_program, detach_all_but, link_pin},
    xdp_link::{AttachError, Mode, attached, program_behind},
};
use nix::sched::{CloneFlags, unshare};

const TABLE: &str = r#"
[[tables]]
name = "t"
hash_key = "12345678901234561234567890123456"
seed = "34567890123456783456789012345678"
binds = [{ ip = "1.1.1.1", proto = "tcp", port = 80 }]
backends = [{ ip = "10.0.0.1", state = "active", healthy = true }]
"#;

/// Runs `test` in a thread with separate mount and network namespaces, which have the interfaces
/// `a`, `b` and `c.1`.
fn alone(test: impl FnOnce(PinFolder) + Send + 'static) {
    let run = move || {
        let pins = private_pins();
        network();
        test(pins);
    };
    if let Err(panic) = thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

fn network() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    for name in ["a", "b", "c.1"] {
        let peer = format!("p{}", &name[..1]);
        let made = Command::new("ip")
            .args(["link", "add", "name", name, "type", "veth", "peer", "name", &peer])
            .status();
        assert!(made.unwrap().success());
    }
}

fn generation(number: u64, pins: &PinFolder) -> Generation {
    let image = image_of(&common::tables(TABLE, glb_table::Format::Toml), TEST_INTERFACE);
    Generation::load(image, number, pins).unwrap_or_else(|error| panic!("{error}"))
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn swap(program: &mut Xdp, interfaces: &[String], pins: &PinFolder) -> Result<(), SwapError> {
    generations::swap(program, interfaces, pins, Mode::Native)
}

fn on(pins: &PinFolder, interface: &str) -> Option<u32> {
    program_behind(&link_pin(pins, interface)).unwrap()
}

#[test]
fn all_interfaces_change_or_none_does() {
    alone(|pins| {
        let (mut first, mut second) = (generation(1, &pins), generation(2, &pins));
        let id = |generation: &mut Generation| generation.program().unwrap().info().unwrap().id();
        let (first_id, second_id) = (id(&mut first), id(&mut second));
        swap(first.program().unwrap(), &names(&["a", "b"]), &pins).unwrap();
        assert_eq!((on(&pins, "a"), on(&pins, "b")), (Some(first_id), Some(first_id)));

        // A name with a dot is an interface like any other; this one is somebody else's just now.
        let others = PinFolder::create(&pins.path().with_file_name("others"), "tests").unwrap();
        let mut foreign = generation(1, &others);
        swap(foreign.program().unwrap(), &names(&["c.1"]), &others).unwrap();
        let all = names(&["a", "b", "c.1"]);
        let refused = swap(second.program().unwrap(), &all, &pins).unwrap_err().to_string();
        assert!(refused.contains("c.1 already has an XDP program"), "{refused}");
        assert_eq!((on(&pins, "a"), on(&pins, "b")), (Some(first_id), Some(first_id)));
        assert_eq!(on(&pins, "c.1"), None);
        assert_eq!(current_program(&all, &pins).unwrap().unwrap().0, 1);

        assert_eq!(detach_all_but(&others, &[]).unwrap(), names(&["c.1"]));
        swap(second.program().unwrap(), &all, &pins).unwrap();
        for interface in &all {
            assert_eq!(on(&pins, interface), Some(second_id), "{interface}");
        }
        // An interface that is not configured any more.
        assert_eq!(detach_all_but(&pins, &names(&["a", "b"])).unwrap(), names(&["c.1"]));
        assert_eq!((on(&pins, "b"), on(&pins, "c.1")), (Some(second_id), None));
    });
}

#[test]
fn a_refused_interface_prevents_the_first_attachment() {
    alone(|pins| {
        let mut first = generation(1, &pins);
        let with_one_that_is_missing = names(&["a", "missing"]);
        assert!(swap(first.program().unwrap(), &with_one_that_is_missing, &pins).is_err());
        assert_eq!(on(&pins, "a"), None);
        assert_eq!(attached("a").unwrap(), None);
    });
}

/// And not a moment later: who says "detached" is believed.
#[test]
fn detaching_takes_effect_at_once() {
    alone(|pins| {
        let mut first = generation(1, &pins);
        for _ in 0..20 {
            swap(first.program().unwrap(), &names(&["a", "b"]), &pins).unwrap();
            assert!(attached("a").unwrap().is_some());
            // Somebody looks at it just now.
            let _link = PinnedLink::from_pin(link_pin(&pins, "a")).unwrap();
            assert_eq!(detach_all_but(&pins, &[]).unwrap(), names(&["a", "b"]));
            assert_eq!((attached("a").unwrap(), attached("b").unwrap()), (None, None));
        }
    });
}

#[test]
fn links_of_other_namespaces_are_ignored() {
    alone(|pins| {
        let mut first = generation(1, &pins);
        swap(first.program().unwrap(), &names(&["a"]), &pins).unwrap();
        let before = on(&pins, "a");
        // The same names and numbers once more, while the first namespace lives on.
        let _first = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        network();
        let mut second = generation(2, &pins);
        let refused = swap(second.program().unwrap(), &names(&["a"]), &pins).unwrap_err();
        assert!(matches!(refused, SwapError::Attach(AttachError::Elsewhere { .. })), "{refused}");
        assert_eq!(on(&pins, "a"), before);
    });
}
