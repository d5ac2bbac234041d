//! The kernels that are supported, and the checks that run on each. This is the file to edit.

/// A kernel of Debian's.
#[derive(Debug)]
pub(super) struct Kernel {
    /// The column's name in the table.
    pub(super) name: &'static str,
    /// The suite of Debian's archive whose `linux-image-amd64` it is.
    pub(super) suite: &'static str,
}

/// The kernels, oldest first.
pub(super) const KERNELS: [Kernel; 3] = [
    Kernel { name: "6.1", suite: "bookworm" },
    Kernel { name: "6.12", suite: "bookworm-backports" },
    Kernel { name: "newest", suite: "sid" },
];

/// Something that must hold on every kernel.
#[derive(Debug)]
pub(super) struct Check {
    /// The row's name in the table.
    pub(super) name: &'static str,
    pub(super) work: Work,
}

/// How a check is made.
#[derive(Debug)]
pub(super) enum Work {
    /// By tests of a crate.
    Tests {
        package: &'static str,
        target: &'static str,
        /// A part of the tests' names; empty for all.
        filter: &'static str,
    },
    /// By a function of `guest/checks.sh`.
    Script(&'static str),
}

const fn tests(
    name: &'static str,
    package: &'static str,
    target: &'static str,
    filter: &'static str,
) -> Check {
    Check { name, work: Work::Tests { package, target, filter } }
}

/// The checks, in the order in which they run.
pub(super) const CHECKS: &[Check] = &[
    tests("director: programs load", "glb-director", "verifier_margin", ""),
    tests("backend: programs load", "glb-redirect", "verifier_margin", ""),
    tests("director: packet cases", "glb-director", "packet_cases", ""),
    tests("backend: frames", "glb-redirect", "frames", ""),
    tests("backend: real sockets", "glb-redirect", "kernel", ""),
    tests("MSS clamp: on the wire, attached and detached", "glb-redirect", "mss", ""),
    Check { name: "virtio_net, two queues: native XDP", work: Work::Script("virtio_net") },
    tests(
        "drain: a git clone survives",
        "glb-e2e",
        "cases",
        "drain::a_clone_survives_the_drain_of_its_backend",
    ),
];

/// The checks' names, for a message.
pub(super) fn check_names() -> String {
    CHECKS.iter().map(|check| check.name).collect::<Vec<_>>().join("; ")
}
