//! A private network namespace with VIPs and a TUN device, for tests of the program in the kernel.
#![allow(dead_code, unreachable_pub, reason = "each test uses its part")]

pub mod program;
pub mod tcp;
pub mod tun;

use std::{
    net::{IpAddr, Ipv6Addr},
    process::Command,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, unshare};

/// Runs a test on a thread in a new network namespace. lo has the VIPs; all clients are behind the TUN
/// device `wire0`.
pub fn in_namespace(test: impl FnOnce(tun::Tun) + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root (CAP_SYS_ADMIN)");
        ip("link set lo up");
        for vip in VIPS {
            let family: IpAddr = vip.parse().unwrap();
            let length = if family.is_ipv4() { 32 } else { 128 };
            ip(&format!("addr add {vip}/{length} dev lo"));
        }
        let wire = tun::Tun::new("wire0");
        ip("link set wire0 up");
        ip("route add default dev wire0");
        ip("-6 route add default dev wire0");
        // An idle interface to attach the program to: program.rs explains why.
        ip("link add idle0 type veth peer name idle1");
        VIPS.iter().for_each(|vip| wait_until_local(vip));
        test(wire);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Waits until the kernel accepts packets for an IPv6 address, which happens asynchronously after `ip`
/// has ended. Earlier packets would be lost, and tests do not retransmit.
fn wait_until_local(vip: &str) {
    const LOCAL: u32 = 0x8000_0000;
    let Ok(vip) = vip.parse::<Ipv6Addr>() else { return };
    let destination = format!("{:032x}", u128::from(vip));
    let is_local = |line: &str| {
        let flags = line.split_whitespace().nth(8);
        let flags = flags.and_then(|flags| u32::from_str_radix(flags, 16).ok()).unwrap();
        line.starts_with(&destination) && flags & LOCAL != 0
    };
    let begun = Instant::now();
    loop {
        let routes = std::fs::read_to_string("/proc/thread-self/net/ipv6_route").unwrap();
        if routes.lines().any(is_local) {
            return;
        }
        assert!(begun.elapsed() < tun::PATIENCE, "{vip} is not local:\n{routes}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The VIPs of the test host; the golden cases use two of them.
pub const VIPS: [&str; 4] =
    ["203.0.113.10", "2001:db8::10", "10.10.10.10", "fd2c:394c:33a3:26bf::1"];

pub fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split_whitespace()).status().unwrap();
    assert!(status.success(), "ip {arguments}: {status}");
}

/// A sysctl of this thread's network namespace.
pub fn sysctl(name: &str, value: &str) {
    let path = format!("/proc/sys/net/{}", name.replace('.', "/"));
    std::fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
}
