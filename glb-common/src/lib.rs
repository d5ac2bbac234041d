//! The packet path of the load balancer, without any dependency on a kernel: wire formats, parsing, flow
//! hash, encapsulation and second chance.
//!
//! The BPF programs (crate `glb-ebpf`) run this code on packets in a driver's memory. Tests, traces and
//! replays run the same code on slices. The programs add only maps, bounds and helper calls.
//!
//! # A packet's way
//!
//! A client's packet to a VIP reaches any director, which sends it through a tunnel to a backend.
//!
//! **The director** (`glb-ebpf/src/director.rs`)
//!
//! 1. [`fast_path::match_v4`] and [`fast_path::match_v6`] recognise ordinary packets and find their bind.
//!    [`fast_path::send`] hashes the client's address, picks the row and writes the outer headers. All
//!    other packets take the next steps, which give the same result.
//! 2. [`parse::parse`] finds VLAN tags, IP header and ports, and yields a [`parse::Packet`] with its
//!    [`flow::FiveTuple`]. An ICMP error gets the flow of the packet that it quotes.
//! 3. [`vip_lookup::find`] turns VIP, protocol and port into a table.
//! 4. [`forwarding::plan_encapsulation`] hashes the flow ([`hash::flow_hash`]), reads the row, picks its
//!    first hop as the backend, lists the other hops, and compares the size with the path MTU.
//! 5. [`encap::write`] writes Ethernet, IP, UDP, GUE and the hop list in front of the packet.
//!    A packet that is too big becomes an ICMP error ([`icmp_too_big`]).
//!
//! **The backend** (`glb-ebpf/src/redirect.rs`)
//!
//! 1. [`second_chance::fast_path::decide`] handles ordinary packets; [`second_chance::decide`] handles all,
//!    and both give the same decision.
//! 2. `second_chance::tunnel` checks the outer headers, the sender and the destination.
//! 3. `second_chance::inner_packet` checks the inner headers and asks the kernel whose flow it is
//!    ([`second_chance::Host::find_socket`]).
//! 4. A packet of this machine is decapsulated ([`second_chance::Decap`]) and passed to the kernel. Any
//!    other packet goes to the next hop of its list ([`second_chance::Forward`]), and the last hop takes
//!    what is left.
//! 5. The reply leaves the backend directly. [`mss::clamp`] lowers the MSS of a VIP's SYN-ACK so that the
//!    client's segments fit the tunnel.
//!
//! Every decision has a [`reason`], which counters, metrics and traces show.
//!
//! # Layers
//!
//! | Layer | Modules |
//! |---|---|
//! | decisions | [`fast_path`], [`forwarding`], [`second_chance`], [`icmp_too_big`], [`mss`] |
//! | formats and look-ups | [`parse`], [`encap`], [`vip_lookup`], [`hash`], [`flow_dissector`] |
//! | shared with user space | [`abi`], [`second_chance::abi`], [`trace`], [`reason`], [`map_value`] |
//! | leaves | [`flow`], [`tables`], [`wire`], [`packet_access`], [`perfect_hash`], [`siphash`], [`checksum`] |
//!
//! A module uses modules of its own layer or of the layers below. The outer format is written in [`encap`]
//! and read in `second_chance::tunnel`, and nowhere else but in the two fast paths.
//!
//! # Example
//!
//! ```
//! use glb_common::{
//!     flow::{Address as _, V4},
//!     hash::{HashFields, flow_hash},
//!     parse::parse,
//! };
//!
//! // A UDP packet from 192.0.2.1, port 4000, to 203.0.113.10, port 53.
//! let mut frame = [0u8; 14 + 20 + 8];
//! frame[12..14].copy_from_slice(&[0x08, 0x00]);
//! frame[14..18].copy_from_slice(&[0x45, 0, 0, 28]);
//! frame[22..24].copy_from_slice(&[64, 17]);
//! frame[26..34].copy_from_slice(&[192, 0, 2, 1, 203, 0, 113, 10]);
//! frame[34..38].copy_from_slice(&[0x0f, 0xa0, 0, 53]);
//!
//! let packet = parse(&frame[..]).expect("an ordinary packet");
//! assert_eq!(packet.flow.destination, V4::new([203, 0, 113, 10]).words());
//! assert_eq!(packet.flow.destination_port, 53);
//! // The low 16 bits choose one of the table's 65,536 rows.
//! let row = flow_hash([1, 2], HashFields::default(), &packet.flow) as u16;
//! assert_eq!(row, flow_hash([1, 2], HashFields::SRC_ADDR, &packet.flow) as u16);
//! ```
#![cfg_attr(not(test), no_std)]

pub mod abi;
pub mod checksum;
pub mod encap;
pub mod fast_path;
pub mod flow;
pub mod flow_dissector;
pub mod forwarding;
pub mod hash;
pub mod icmp_too_big;
pub mod map_value;
pub mod mss;
pub mod packet_access;
pub mod parse;
pub mod perfect_hash;
pub mod reason;
pub mod second_chance;
pub mod siphash;
pub mod tables;
pub mod trace;
pub mod vip_lookup;
pub mod wire;
