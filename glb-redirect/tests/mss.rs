//! The tc program that lowers the MSS, compared with the reference function on synthetic frames, and on
//! the kernel's own SYN-ACKs. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;
#[path = "../../glb-common/tests/support/mod.rs"]
mod support;

use std::{
    collections::BTreeSet,
    io::Read as _,
    net::{IpAddr, SocketAddr, TcpListener},
    os::fd::{AsRawFd as _, FromRawFd as _},
    path::{Path, PathBuf},
    process::Command,
};

use aya::programs::{TestRun as _, TestRunOptions};
use common::{in_namespace, ip};
use glb_common::{
    flow::Address,
    mss::{Limits, Vips, clamp},
};
use glb_host::{
    bpffs::PinFolder,
    tc_egress::{self, Hook},
};
use glb_redirect::{config::Config, generation::Generation, program_data::ProgramData};
use support::{
    OWN_MAC, ip_of,
    packet::{ACK, RST, SYN, ethernet, segment},
    socket,
};

const LIMITS: Limits = Limits { v4: 1420, v6: 1400 };

struct Configured(BTreeSet<IpAddr>);

impl Vips for Configured {
    fn is_vip<A: Address>(&self, address: &A) -> bool {
        self.0.contains(&ip_of(address))
    }
}

/// A generation with `vips` VIPs of each family.
fn generation(vips: u8) -> (Generation, Configured) {
    let list: Vec<String> = (0..vips)
        .flat_map(|n| [format!("203.0.113.{}", 10 + n), format!("2001:db8::{}", 10 + n)])
        .collect();
    let text = format!("interfaces = [\"e0\"]\nvips = {list:?}\ndirectors = [\"10.0.2.10\"]\n");
    let config = Config::parse(&text, Path::new("x")).unwrap();
    let mut image = ProgramData::new(&config, &BTreeSet::new());
    (image.settings.mss_v4, image.settings.mss_v6) = (LIMITS.v4.into(), LIMITS.v6.into());
    (Generation::load(&image, None).unwrap(), Configured(config.vips))
}

/// A segment from a VIP with TCP options and no data.
fn frame(from: SocketAddr, to: SocketAddr, flags: u8, options: &[u8]) -> Vec<u8> {
    let mut packet = segment(from, to, flags).packet();
    let tcp = if from.is_ipv4() { 20 } else { 40 };
    packet[tcp + 12] = (((20 + options.len()) / 4) << 4) as u8;
    packet.extend(options);
    let length = packet.len() as u16;
    if from.is_ipv4() {
        packet[2..4].copy_from_slice(&length.to_be_bytes());
    } else {
        packet[4..6].copy_from_slice(&(length - 40).to_be_bytes());
    }
    ethernet(&packet)
}

#[test]
fn the_program_and_the_reference_function_agree() {
    in_namespace(|_| {
        for vips in [1, 20] {
            let (mut generation, configured) = generation(vips);
            let program = generation.mss_clamp().unwrap();
            let mut changed = 0;
            let addresses = [
                ("203.0.113.10:80", "198.51.100.7:1"),
                ("203.0.113.29:80", "198.51.100.7:1"),
                ("[2001:db8::10]:80", "[2001:db8:9::7]:1"),
                ("[2001:db8::29]:80", "[2001:db8:9::7]:1"),
            ];
            for (from, to) in addresses {
                for flags in [SYN, ACK, SYN | ACK, SYN | ACK | RST] {
                    for options in [
                        &[][..],
                        &[2, 4, 5, 180],
                        &[2, 4, 5, 0],
                        &[1, 2, 4, 0x23, 0, 0, 0, 0],
                        &[4, 2, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 3, 3, 7, 2, 4, 5, 180, 0],
                        &[[1; 35].as_slice(), &[2, 4, 5, 180, 0]].concat(),
                        &[0, 1, 1, 1, 2, 4, 5, 180],
                        &[9, 0, 1, 1, 2, 4, 5, 180],
                        &[9, 200, 1, 1, 2, 4, 5, 180],
                    ] {
                        let sent = frame(socket(from), socket(to), flags, options);
                        let mut expected = sent.clone();
                        if let Some(change) = clamp(&&sent[..], LIMITS, &configured) {
                            assert!(change.write(&mut expected[..]));
                            changed += 1;
                        }
                        let mut out = vec![0; sent.len() + 64];
                        let result = program
                            .test_run(TestRunOptions {
                                data_in: Some(&sent),
                                data_out: Some(&mut out),
                                ..TestRunOptions::default()
                            })
                            .unwrap();
                        // TC_ACT_UNSPEC
                        assert_eq!(result.return_value.cast_signed(), -1);
                        out.truncate(result.data_size_out as usize);
                        assert_eq!(out, expected, "{from} {flags:#x} {options:?}");
                    }
                }
            }
            assert_eq!(changed, if vips == 1 { 8 } else { 16 }, "with {vips} VIPs");
        }
    });
}

/// The folder of the clamp's pins, on a BPF file system of this thread's own.
fn pin_folder() -> (PinFolder, PathBuf) {
    let pins = PinFolder::private().unwrap();
    let folder = pins.join("clamps");
    pins.make(&folder).unwrap();
    (pins, folder)
}

/// The forms that this kernel has: tcx came with Linux 6.6.
fn hooks() -> impl Iterator<Item = Hook> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let has_tcx = (numbers.next(), numbers.next()) >= (Some(6), Some(6));
    [Hook::Tcx, Hook::Clsact].into_iter().filter(move |hook| has_tcx || *hook == Hook::Clsact)
}

/// The command's output.
fn tc(arguments: &str) -> String {
    let output = Command::new("tc").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "tc {arguments}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn attaching_takes_the_form_that_the_kernel_has_and_detaching_leaves_nothing() {
    in_namespace(|_| {
        ip("link add e0 type veth peer name e1");
        let (_pins, folder) = pin_folder();
        assert_eq!(tc_egress::attached("e0", &folder).unwrap(), None);
        let hook = tc_egress::attach(generation(1).0.mss_clamp().unwrap(), "e0", &folder).unwrap();
        assert_eq!(Some(hook), hooks().next());
        assert_eq!(tc_egress::attached("e0", &folder).unwrap(), Some(hook));
        assert_eq!(tc_egress::detach_all_but(&folder, &["e0".into()]).unwrap(), [""; 0]);
        assert_eq!(tc_egress::detach_all_but(&folder, &[]).unwrap(), ["e0"]);
        assert_eq!(tc_egress::attached("e0", &folder).unwrap(), None);
        assert!(!tc("qdisc show dev e0").contains("clsact"));
    });
}

#[test]
fn a_clsact_filter_is_replaced_by_the_next_generation_and_outlives_the_program_that_made_it() {
    in_namespace(|_| {
        ip("link add e0 type veth peer name e1");
        let (_pins, folder) = pin_folder();
        let filters = || tc("filter show dev e0 egress").matches("handle 0x474c").count();
        for _ in 0..2 {
            let (mut generation, _) = generation(1);
            let clamp = generation.mss_clamp().unwrap();
            tc_egress::attach_by(Hook::Clsact, clamp, "e0", &folder).unwrap();
            drop(generation);
            assert_eq!(filters(), 1);
        }
        // The pin says which form it is; another daemon goes on with it.
        let hook = tc_egress::attach(generation(1).0.mss_clamp().unwrap(), "e0", &folder).unwrap();
        assert_eq!((hook, filters()), (Hook::Clsact, 1));
        tc("filter del dev e0 egress");
        assert_eq!(tc_egress::attached("e0", &folder).unwrap(), None);
        tc_egress::attach(generation(1).0.mss_clamp().unwrap(), "e0", &folder).unwrap();
        assert_eq!(filters(), 1);
        assert_eq!(tc_egress::detach_all_but(&folder, &[]).unwrap(), ["e0"]);
        assert!(!tc("qdisc show dev e0").contains("clsact"));
    });
}

#[test]
fn a_clsact_qdisc_and_filters_of_others_stay() {
    const OTHER: &str =
        "filter add dev e0 egress prio 100 protocol all u32 match u32 0 0 flowid 1:1";
    in_namespace(|_| {
        let (_pins, folder) = pin_folder();
        // Somebody else's qdisc; then ours, on which somebody puts a filter.
        for before in [true, false] {
            ip("link add e0 type veth peer name e1");
            if before {
                tc("qdisc add dev e0 clsact");
            }
            let (mut generation, _) = generation(1);
            let clamp = generation.mss_clamp().unwrap();
            tc_egress::attach_by(Hook::Clsact, clamp, "e0", &folder).unwrap();
            if !before {
                tc(OTHER);
            }
            assert_eq!(tc_egress::detach_all_but(&folder, &[]).unwrap(), ["e0"]);
            assert!(tc("qdisc show dev e0").contains("clsact"));
            let filters = tc("filter show dev e0 egress");
            assert!(!filters.contains("glb_mss_clamp"), "{filters}");
            assert_eq!(filters.contains("u32"), !before, "{filters}");
            ip("link del e0");
        }
    });
}

/// Sends SYNs to a VIP behind a veth and reads the SYN-ACKs that arrive.
#[test]
fn the_mss_of_real_syn_acks_is_lowered() {
    hooks().for_each(kernels_syn_acks);
}

fn kernels_syn_acks(hook: Hook) {
    in_namespace(move |_| {
        ip("link add e0 mtu 9000 type veth peer name e1 mtu 9000");
        ip("link set e0 up");
        ip("link set e1 up");
        ip("route replace default dev e0");
        ip("-6 route replace default dev e0");
        let own = OWN_MAC.map(|byte| format!("{byte:02x}")).join(":");
        ip(&format!("link set e0 address {own}"));
        ip("neigh add 198.51.100.7 lladdr 02:00:00:00:00:09 dev e0");
        ip("-6 neigh add 2001:db8:9::7 lladdr 02:00:00:00:00:09 dev e0");
        let (mut generation, _) = generation(1);
        let (_pins, folder) = pin_folder();
        tc_egress::attach_by(hook, generation.mss_clamp().unwrap(), "e0", &folder).unwrap();
        let mut wire = Raw::open("e1");
        for offload in [true, false] {
            set_checksum_offload("e0", offload);
            for (client, vip, limit) in [
                ("198.51.100.7:40000", "203.0.113.10:80", LIMITS.v4),
                ("[2001:db8:9::7]:40000", "[2001:db8::10]:80", LIMITS.v6),
            ] {
                let (client, vip) = (socket(client), socket(vip));
                let _listener = TcpListener::bind(vip).unwrap();
                let mut syn = frame(client, vip, SYN, &[2, 4, 0x23, 0]);
                fix_checksum(&mut syn);
                wire.send(&syn);
                let answer = wire.syn_ack(vip);
                let sliced = etherparse::SlicedPacket::from_ethernet(&answer).unwrap();
                let Some(etherparse::TransportSlice::Tcp(tcp)) = sliced.transport else {
                    panic!("no TCP")
                };
                let mss = tcp.options_iterator().find_map(|option| match option {
                    Ok(etherparse::TcpOptionElement::MaximumSegmentSize(mss)) => Some(mss),
                    _ => None,
                });
                assert_eq!(mss, Some(limit), "offload {offload}");
                // With checksum offload, the segment carries the pseudo-header's sum only.
                let whole = checksum_is_right(&answer);
                assert_eq!(whole, !offload, "offload {offload}");
                if offload {
                    assert_eq!(tcp.checksum(), pseudo_sum(&answer));
                }
            }
        }
    });
}

fn sums(frame: &[u8]) -> (Vec<u8>, usize) {
    let v4 = frame[12] == 8;
    let (addresses, tcp) = if v4 { (26..34, 34) } else { (22..54, 54) };
    let mut pseudo = frame[addresses].to_vec();
    pseudo.extend([0, 6]);
    pseudo.extend(((frame.len() - tcp) as u16).to_be_bytes());
    (pseudo, tcp)
}

fn checksum_is_right(frame: &[u8]) -> bool {
    let (pseudo, tcp) = sums(frame);
    support::packet::checksum(&[&pseudo, &frame[tcp..]]) == 0
}

fn pseudo_sum(frame: &[u8]) -> u16 {
    !support::packet::checksum(&[&sums(frame).0])
}

fn fix_checksum(frame: &mut [u8]) {
    let (pseudo, tcp) = sums(frame);
    frame[tcp + 16..tcp + 18].fill(0);
    let sum = support::packet::checksum(&[&pseudo, &frame[tcp..]]);
    frame[tcp + 16..tcp + 18].copy_from_slice(&sum.to_be_bytes());
    if frame[12] == 8 {
        frame[24..26].fill(0);
        let sum = support::packet::checksum(&[&frame[14..34]]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Turns checksum offload on or off, as `ethtool -K IF tx on` does.
fn set_checksum_offload(interface: &str, on: bool) {
    // SIOCETHTOOL and ETHTOOL_STXCSUM of the kernel's headers.
    const ETHTOOL: libc::Ioctl = 0x8946;
    const SET_TX_CHECKSUMS: u32 = 0x17;
    let control = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let mut value = [SET_TX_CHECKSUMS, u32::from(on)];
    // SAFETY: all-zero bytes are a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    // SAFETY: request and value live through the call and have the layout that it expects.
    let done = unsafe { libc::ioctl(control.as_raw_fd(), ETHTOOL, &mut request) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// A packet socket on an interface.
struct Raw(std::fs::File);

impl Raw {
    fn open(interface: &str) -> Self {
        let protocol = i32::from((libc::ETH_P_ALL as u16).to_be());
        // SAFETY: a plain system call.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, protocol) };
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: the descriptor is new and has no other owner.
        let file = unsafe { std::fs::File::from_raw_fd(fd) };
        // SAFETY: all zeroes are a valid address.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = nix::net::if_::if_nametoindex(interface).unwrap() as i32;
        let patience = libc::timeval { tv_sec: 3, tv_usec: 0 };
        // SAFETY: both structs live through the calls and are as long as is said.
        let done = unsafe {
            libc::setsockopt(
                fd,
                libc::SOL_SOCKET,
                libc::SO_RCVTIMEO,
                (&raw const patience).cast(),
                size_of::<libc::timeval>() as u32,
            ) | libc::bind(fd, (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32)
        };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        Self(file)
    }

    fn send(&mut self, frame: &[u8]) {
        std::io::Write::write_all(&mut self.0, frame).unwrap();
    }

    fn syn_ack(&mut self, from: SocketAddr) -> Vec<u8> {
        let mut buffer = vec![0; 10_000];
        loop {
            let length = self.0.read(&mut buffer).expect("a SYN-ACK within 3 s");
            let frame = &buffer[..length];
            let Ok(sliced) = etherparse::SlicedPacket::from_ethernet(frame) else { continue };
            if let Some(etherparse::TransportSlice::Tcp(tcp)) = sliced.transport
                && tcp.syn()
                && tcp.ack()
                && tcp.source_port() == from.port()
                && (frame[12] == 8) == from.is_ipv4()
            {
                return frame.to_vec();
            }
        }
    }
}
