#!/usr/bin/env python3
"""Makes packet_cases.json: packets with the one right answer to each.

An implementation of its own, of the wire format and of nothing else, so that the expected bytes do
not come from the program that they test. Run it from any folder; it writes beside itself.
"""

import ipaddress
import json
import pathlib
import struct

MASK = (1 << 64) - 1


def rotl(x, b):
    return ((x << b) | (x >> (64 - b))) & MASK


def siphash(key, data):
    """SipHash-2-4, as a number."""
    k0, k1 = struct.unpack("<QQ", key)
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def rounds(n):
        for _ in range(n):
            v[0] = (v[0] + v[1]) & MASK
            v[1] = rotl(v[1], 13) ^ v[0]
            v[0] = rotl(v[0], 32)
            v[2] = (v[2] + v[3]) & MASK
            v[3] = rotl(v[3], 16) ^ v[2]
            v[0] = (v[0] + v[3]) & MASK
            v[3] = rotl(v[3], 21) ^ v[0]
            v[2] = (v[2] + v[1]) & MASK
            v[1] = rotl(v[1], 17) ^ v[2]
            v[2] = rotl(v[2], 32)

    padded = data + bytes(7 - len(data) % 8) + bytes([len(data) & 255])
    for at in range(0, len(padded), 8):
        word = struct.unpack_from("<Q", padded, at)[0]
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def ip(text):
    return ipaddress.ip_address(text).packed


# The tables. All backends are active and healthy, so that rank alone orders a row.
TABLES = [
    dict(name="plain", fields=["src_addr"], hops=2,
         binds=[("203.0.113.10/32", "tcp", 80, 80), ("203.0.113.10/32", "udp", 53, 53),
                ("2001:db8::10/128", "tcp", 80, 80), ("2001:db8::10/128", "udp", 53, 53)],
         backends=["10.0.0.1", "10.0.0.2", "10.0.0.3"]),
    dict(name="ranges", fields=["src_addr", "src_port"], hops=2,
         binds=[("198.51.100.0/24", "tcp", 1000, 2000), ("2001:db8:100::/48", "tcp", 1000, 2000)],
         backends=["10.0.1.1", "10.0.1.2"]),
    dict(name="inside", fields=["src_addr"], hops=2,
         binds=[("198.51.100.128/25", "tcp", 1500, 1500)],
         backends=["10.0.2.1", "10.0.2.2"]),
    dict(name="four", fields=["src_addr", "dst_addr", "src_port", "dst_port"], alt=["src_addr"], hops=4,
         binds=[("203.0.113.14/32", "tcp", 80, 80), ("2001:db8::14/128", "tcp", 80, 80)],
         backends=["10.0.4.%d" % i for i in range(1, 6)]),
    dict(name="alone", fields=["src_addr"], hops=2,
         binds=[("203.0.113.11/32", "tcp", 80, 80)], backends=["10.0.5.1"]),
    dict(name="six", fields=["src_addr"], hops=3,
         binds=[("203.0.113.16/32", "tcp", 80, 80), ("2001:db8::16/128", "tcp", 80, 80)],
         backends=["2001:db8:1::%d" % i for i in range(1, 5)]),
]
for index, table in enumerate(TABLES):
    table["key"] = bytes([0x10 + index]) * 16
    table["seed"] = bytes([0x40 + index]) * 16

OWN_MAC = bytes.fromhex("0200000000aa")
GATEWAY = bytes.fromhex("020000000001")
SOURCE = {4: ip("65.65.65.65"), 6: ip("2001:db8:aaaa::1")}
MTU, LINK_MTU = 1600, 1700


def row(table, flow, fields):
    """The row's backends, best first."""
    src, dst, sport, dport = flow
    parts = dict(src_addr=src, dst_addr=dst, src_port=struct.pack(">H", sport), dst_port=struct.pack(">H", dport))
    order = ["src_addr", "dst_addr", "src_port", "dst_port"]
    number = siphash(table["key"], b"".join(parts[f] for f in order if f in fields))
    row_seed = struct.pack("<Q", siphash(table["seed"], struct.pack(">I", number & 0xFFFF)))
    score = lambda b: struct.pack("<Q", siphash(table["seed"], row_seed + ip(b)))
    return number, sorted(table["backends"], key=score)[: table["hops"]]


def checksum(data):
    total = sum(struct.unpack(">%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def sent(frame, table, flow, hint, inner=None, tos=None, tags=None, df=True):
    """The frame as it leaves: `flow` is (source, destination, source port, destination port)."""
    table = next(t for t in TABLES if t["name"] == table)
    number, hops = row(table, flow, table["fields"])
    if "alt" in table:
        hops = hops + row(table, flow, table["alt"])[1]
    at = 12
    while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
        at += 4
    kept = frame[12:at]
    packet = frame[at + 2 :]
    version = packet[0] >> 4
    length = struct.unpack_from(">H", packet, 2)[0] if version == 4 else 40 + struct.unpack_from(">H", packet, 4)[0]
    if tos is None:
        tos = packet[1] if version == 4 else (packet[0] << 4 & 0xF0) | packet[1] >> 4
    sport = 0x8000 | ((number ^ hint) & 0x7FFF)
    listed = b"".join(ip(h) for h in hops[1:])
    private = 1 if ":" in hops[0] else 0
    gue = struct.pack(">BBHHBB", 1 + len(listed) // 4, 4 if version == 4 else 41, 0, private, 0, len(hops) - 1) + listed
    udp = struct.pack(">HHHH", sport, 19523, 8 + len(gue) + length, 0)
    if private:
        outer = struct.pack(">IHBB", 6 << 28 | tos << 20 | sport, len(udp) + len(gue) + length, 17, 64)
        outer += SOURCE[6] + ip(hops[0])
        kind = b"\x86\xdd"
    else:
        ident = 0 if df else struct.unpack_from(">H", packet, 4)[0] ^ (number >> 16 & 0xFFFF)
        head = struct.pack(">BBHHHBBH", 0x45, tos, 20 + len(udp) + len(gue) + length, ident, 0x4000 if df else 0, 64, 17, 0)
        head += SOURCE[4] + ip(hops[0])
        outer = head[:10] + struct.pack(">H", checksum(head)) + head[12:]
        kind = b"\x08\x00"
    if tags is None:
        tags = kept
    return GATEWAY + OWN_MAC + tags + kind + outer + udp + gue + packet


# Packets.

CLIENT_MAC = bytes.fromhex("020000000002")
DIRECTOR_MAC = bytes.fromhex("0200000000aa")
CLIENT4, CLIENT6 = ip("192.0.2.7"), ip("2001:db8:77::7")


def eth(packet, tags=b""):
    kind = b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd"
    return DIRECTOR_MAC + CLIENT_MAC + tags + kind + packet


def v4(dst, proto, payload, src=CLIENT4, tos=0, ident=0x1234, frag=0x4000, options=b"", length=None):
    total = 20 + len(options) + len(payload) if length is None else length
    head = struct.pack(">BBHHHBBH", 0x45 + len(options) // 4, tos, total, ident, frag, 64, proto, 0)
    head += src + (ip(dst) if isinstance(dst, str) else dst) + options
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + payload


def v6(dst, proto, payload, src=CLIENT6, tclass=0, label=0xABCDE, length=None):
    head = struct.pack(">IHBB", 6 << 28 | tclass << 20 | label, len(payload) if length is None else length, proto, 64)
    return head + src + (ip(dst) if isinstance(dst, str) else dst) + payload


def tcp(sport, dport, data=b""):
    return struct.pack(">HHIIBBHHH", sport, dport, 1, 2, 0x50, 0x10, 512, 0, 0) + data


def udp(sport, dport, data=b"q"):
    return struct.pack(">HHHH", sport, dport, 8 + len(data), 0) + data


def icmp(kind, code, body, rest=b"\0\0\x05\x78"):
    message = struct.pack(">BBH", kind, code, 0) + rest + body
    message += bytes(len(message) % 2)
    return message[:2] + struct.pack(">H", checksum(message)) + message[4:]


CASES = []


def case(name, about, frame, verdict, reason, table=None, output=None, **options):
    CASES.append(dict(name=name, about=about, options=options, input=frame.hex(), verdict=verdict,
                      reason=reason, table=table, output=None if output is None else output.hex()))


def forwards(name, about, frame, table, flow, hint=None, options=None, **how):
    hint = flow[2] if hint is None else hint
    case(name, about, frame, "sent", "encapsulated", table,
         sent(frame, table, flow, hint, **how), **(options or {}))


def passes(name, about, frame, reason, **options):
    case(name, about, frame, "passed", reason, None, frame, **options)


VIP4, VIP6 = "203.0.113.10", "2001:db8::10"
FLOW4, FLOW6 = (CLIENT4, ip(VIP4), 40000, 80), (CLIENT6, ip(VIP6), 40000, 80)
plain4, plain6 = v4(VIP4, 6, tcp(40000, 80, b"GET")), v6(VIP6, 6, tcp(40000, 80, b"GET"))

forwards("tcp_v4", "TCP over IPv4", eth(plain4), "plain", FLOW4)
forwards("tcp_v6", "TCP over IPv6", eth(plain6), "plain", FLOW6)
forwards("udp_v4", "UDP over IPv4", eth(v4(VIP4, 17, udp(5353, 53))), "plain", (CLIENT4, ip(VIP4), 5353, 53))
forwards("udp_v6", "UDP over IPv6", eth(v6(VIP6, 17, udp(5353, 53))), "plain", (CLIENT6, ip(VIP6), 5353, 53))
forwards("padding", "A short IPv4 packet padded to the shortest frame: the padding is carried along, the IP length counts",
         eth(v4(VIP4, 6, tcp(40000, 80))) + bytes(6), "plain", FLOW4)
forwards("options_v4", "IPv4 options: the ports are behind them", eth(v4(VIP4, 6, tcp(40000, 80), options=b"\x01" * 8)), "plain", FLOW4)
forwards("options_full", "As many IPv4 options as fit", eth(v4(VIP4, 6, tcp(40000, 80), options=b"\x01" * 40)), "plain", FLOW4)
hbh = lambda nxt: bytes([nxt, 0]) + b"\x01\x04\0\0\0\0"
forwards("hop_by_hop", "IPv6 with hop-by-hop options", eth(v6(VIP6, 0, hbh(6) + tcp(40000, 80))), "plain", FLOW6)
forwards("six_extensions", "Six IPv6 extension headers, as many as are walked over",
         eth(v6(VIP6, 60, b"".join(hbh(60) for _ in range(5)) + hbh(6) + tcp(40000, 80))), "plain", FLOW6)
passes("seven_extensions", "One extension header more than is walked over",
       eth(v6(VIP6, 60, b"".join(hbh(60) for _ in range(6)) + hbh(6) + tcp(40000, 80))), "other_protocol")

vlan, qinq = bytes.fromhex("8100a064"), bytes.fromhex("88a800078100a064")
forwards("vlan_kept", "An 802.1Q tag is kept, priority and all", eth(plain4, vlan), "plain", FLOW4)
forwards("qinq_kept", "Two tags (802.1ad) are kept", eth(plain6, qinq), "plain", FLOW6)
forwards("vlan_rewritten", "A tag is rewritten; its priority stays", eth(plain4, vlan), "plain", FLOW4,
         options=dict(vlan=[300]), tags=bytes.fromhex("8100a12c"))
forwards("vlan_added", "A packet without a tag gets the configured one", eth(plain4), "plain", FLOW4,
         options=dict(vlan=[300]), tags=bytes.fromhex("8100012c"))
forwards("qinq_from_vlan", "One tag comes, two are configured", eth(plain4, vlan), "plain", FLOW4,
         options=dict(vlan=[7, 300]), tags=bytes.fromhex("88a8a0078100a12c"))
forwards("vlan_removed", "Tags are taken off", eth(plain6, qinq), "plain", FLOW6, options=dict(vlan=[]), tags=b"")
passes("three_tags", "More tags than are looked behind", eth(plain4, vlan + qinq), "not_ip")
passes("arp", "ARP", DIRECTOR_MAC + CLIENT_MAC + b"\x08\x06" + bytes(28), "not_ip")

forwards("dscp_ecn_v4", "DSCP and ECN are copied outward", eth(v4(VIP4, 6, tcp(40000, 80), tos=0xBB)), "plain", FLOW4)
forwards("dscp_ecn_v6", "The same from IPv6", eth(v6(VIP6, 6, tcp(40000, 80), tclass=0xBB)), "plain", FLOW6)
forwards("tos_fixed", "A fixed outer TOS, as GLB sends", eth(v4(VIP4, 6, tcp(40000, 80), tos=0xBB)), "plain", FLOW4,
         options=dict(tos=0), tos=0)

# ICMP about a flow: what a backend sent from the VIP, quoted.
quote4 = v4(CLIENT4, 6, tcp(80, 40000)[:8], src=ip(VIP4))
quote6 = v6(CLIENT6, 6, tcp(80, 40000), src=ip(VIP6))
router4, router6 = ip("192.0.2.254"), ip("2001:db8:77::fe")
for code in range(16):
    forwards("unreachable_v4_%d" % code, "ICMP unreachable, code %d, about a flow: to that flow's row" % code,
             eth(v4(VIP4, 1, icmp(3, code, quote4), src=router4)), "plain", FLOW4)
forwards("time_exceeded_v4", "ICMP time exceeded about a flow", eth(v4(VIP4, 1, icmp(11, 0, quote4), src=router4)), "plain", FLOW4)
forwards("parameter_problem_v4", "ICMP parameter problem about a flow", eth(v4(VIP4, 1, icmp(12, 0, quote4), src=router4)), "plain", FLOW4)
for kind, word in ((1, "unreachable"), (2, "packet too big"), (3, "time exceeded"), (4, "parameter problem")):
    forwards("icmp6_error_%d" % kind, "ICMPv6 %s about a flow" % word,
             eth(v6(VIP6, 58, icmp(kind, 0, quote6), src=router6)), "plain", FLOW6)
forwards("quoted_options", "The quoted packet has IPv4 options",
         eth(v4(VIP4, 1, icmp(3, 4, v4(CLIENT4, 6, tcp(80, 40000)[:8], src=ip(VIP4), options=b"\x01" * 4)), src=router4)), "plain", FLOW4)
passes("foreign_error_v4", "An error to a VIP about another address",
       eth(v4(VIP4, 1, icmp(3, 4, v4(CLIENT4, 6, tcp(80, 40000)[:8], src=ip("203.0.113.99"))), src=router4)), "foreign_icmp_error")
passes("foreign_error_v6", "The same in IPv6",
       eth(v6(VIP6, 58, icmp(2, 0, v6(CLIENT6, 6, tcp(80, 40000), src=ip("2001:db8::99"))), src=router6)), "foreign_icmp_error")
passes("error_about_icmp", "An error about a ping", eth(v4(VIP4, 1, icmp(3, 1, v4(CLIENT4, 1, icmp(0, 0, b""), src=ip(VIP4))), src=router4)), "other_icmp")
passes("error_about_fragment", "An error about a later fragment: no ports", eth(v4(VIP4, 1, icmp(3, 1, v4(CLIENT4, 6, tcp(80, 40000)[:8], src=ip(VIP4), frag=5)), src=router4)), "later_fragment")
for kind, name in ((60, "destination options"), (0, "hop-by-hop options")):
    forwards("quoted_extension_%d" % kind, "An ICMPv6 error about a packet with %s" % name,
             eth(v6(VIP6, 58, icmp(2, 0, v6(CLIENT6, kind, bytes([6, 0, 1, 4, 0, 0, 0, 0]) + tcp(80, 40000), src=ip(VIP6))), src=router6)), "plain", FLOW6)
quoted6 = lambda nxt, off, data: v6(CLIENT6, 44, struct.pack(">BBHI", nxt, 0, off, 77) + data, src=ip(VIP6))
forwards("quoted_first_fragment", "An ICMPv6 error about a first fragment: a large answer of a backend's, say",
         eth(v6(VIP6, 58, icmp(2, 0, quoted6(17, 1, udp(53, 5353))), src=router6)), "plain", (CLIENT6, ip(VIP6), 5353, 53))
passes("quoted_later_fragment", "An ICMPv6 error about a later fragment: no ports", eth(v6(VIP6, 58, icmp(2, 0, quoted6(17, 0x28, b"x" * 24)), src=router6)), "later_fragment")
passes("quoted_extension_cut", "An ICMPv6 error that quotes nothing behind an extension header", eth(v6(VIP6, 58, icmp(2, 0, quoted6(6, 1, b"")), src=router6)), "malformed")
passes("quoted_no_port", "An error about port 0, which no bind can name", eth(v4(VIP4, 1, icmp(3, 3, v4(CLIENT4, 6, tcp(0, 40000)[:8], src=ip(VIP4))), src=router4)), "no_bind")
passes("error_cut", "An error that quotes fewer than 8 bytes", eth(v4(VIP4, 1, icmp(3, 4, quote4[:24]), src=router4)), "malformed")

echo4, echo6 = icmp(8, 0, b"ping"), icmp(128, 0, b"ping")
forwards("echo_v4", "A ping goes to the row of its addresses", eth(v4(VIP4, 1, echo4)), "plain", (CLIENT4, ip(VIP4), 0, 0), hint=0x1234)
forwards("echo_v6", "The same in IPv6", eth(v6(VIP6, 58, echo6)), "plain", (CLIENT6, ip(VIP6), 0, 0), hint=0xBCDE)
passes("echo_kernel", "A ping that is left to the kernel as configured", eth(v4(VIP4, 1, echo4)), "no_bind", forward_echo=False)
passes("echo_reply", "A ping's answer", eth(v4(VIP4, 1, icmp(0, 0, b"ping"))), "other_icmp")
passes("echo_code", "An echo request with a code that no ping has", eth(v4(VIP4, 1, icmp(8, 1, b"ping"))), "other_icmp")
passes("redirect_v4", "An ICMP redirect", eth(v4(VIP4, 1, icmp(5, 1, quote4))), "other_icmp")
passes("neighbour_solicitation", "Neighbour discovery", eth(v6("ff02::1:ff00:10", 58, icmp(135, 0, ip(VIP6)))), "other_icmp")
passes("router_advertisement", "A router's advertisement", eth(v6("ff02::1", 58, icmp(134, 0, bytes(8)))), "other_icmp")

# Fragments.
forwards("first_fragment", "A first fragment has ports", eth(v4(VIP4, 6, tcp(40000, 80), frag=0x2000)), "plain", FLOW4)
forwards("later_fragment", "A later fragment of a table that hashes addresses: to the same backend",
         eth(v4(VIP4, 6, b"x" * 24, frag=0x2005)), "plain", (CLIENT4, ip(VIP4), 0, 0), hint=0)
forwards("far_fragment", "The same, far behind the first: only the offset's highest bit is set",
         eth(v4(VIP4, 6, b"x" * 24, frag=0x1000)), "plain", (CLIENT4, ip(VIP4), 0, 0), hint=0)
frag6 = lambda nxt, off: struct.pack(">BBHI", nxt, 0, off, 77)
forwards("first_fragment_v6", "A first fragment in IPv6", eth(v6(VIP6, 44, frag6(6, 1) + tcp(40000, 80))), "plain", FLOW6)
forwards("later_fragment_v6", "A later fragment in IPv6", eth(v6(VIP6, 44, frag6(6, 0x28) + b"x" * 24)), "plain", (CLIENT6, ip(VIP6), 0, 0), hint=0)
passes("fragment_ports_hashed", "A later fragment of a table that hashes ports", eth(v4("203.0.113.14", 6, b"x" * 24, frag=5)), "later_fragment")
passes("fragment_two_tables", "A later fragment to an address that two tables bind", eth(v4("198.51.100.200", 6, b"x" * 24, frag=5)), "later_fragment")
passes("fragment_unbound", "A later fragment to nobody's address", eth(v4("203.0.113.99", 6, b"x" * 24, frag=5)), "later_fragment")
forwards("ping_fragment", "A later fragment of a ping: to the same backend as the first",
         eth(v4(VIP4, 1, b"x" * 24, frag=5)), "plain", (CLIENT4, ip(VIP4), 0, 0), hint=0)
forwards("ping_fragment_v6", "The same in IPv6", eth(v6(VIP6, 44, frag6(58, 0x28) + b"x" * 24)), "plain", (CLIENT6, ip(VIP6), 0, 0), hint=0)
passes("ping_fragment_kernel", "The same where pings are left to the kernel", eth(v4(VIP4, 1, b"x" * 24, frag=5)), "later_fragment", forward_echo=False)

# Binds.
passes("port_0_tcp", "Port 0 is nobody's: fragments, which have no port, stand under it", eth(v4(VIP4, 6, tcp(40000, 0))), "no_bind")
passes("port_0_udp", "The same over UDP and IPv6", eth(v6(VIP6, 17, udp(40000, 0))), "no_bind")
passes("other_port", "A port that is not bound", eth(v4(VIP4, 6, tcp(40000, 81))), "no_bind")
passes("other_protocol_bound", "UDP to a port that is bound for TCP", eth(v4(VIP4, 17, udp(40000, 80))), "no_bind")
passes("other_address", "An address that is not bound", eth(v4("203.0.113.99", 6, tcp(40000, 80))), "no_bind")
passes("sctp", "A protocol that no bind can name", eth(v4(VIP4, 132, bytes(20))), "other_protocol")
flow = (CLIENT4, ip("198.51.100.9"), 40000, 1500)
forwards("prefix", "A prefix and a range of ports", eth(v4("198.51.100.9", 6, tcp(40000, 1500))), "ranges", flow)
forwards("range_first", "The range's first port", eth(v4("198.51.100.9", 6, tcp(40000, 1000))), "ranges", (CLIENT4, ip("198.51.100.9"), 40000, 1000))
forwards("range_last", "The range's last port", eth(v4("198.51.100.9", 6, tcp(40000, 2000))), "ranges", (CLIENT4, ip("198.51.100.9"), 40000, 2000))
passes("range_before", "One port before the range", eth(v4("198.51.100.9", 6, tcp(40000, 999))), "no_bind")
passes("range_behind", "One port behind the range", eth(v4("198.51.100.9", 6, tcp(40000, 2001))), "no_bind")
forwards("longer_prefix", "The longest prefix wins", eth(v4("198.51.100.200", 6, tcp(40000, 1500))), "inside", (CLIENT4, ip("198.51.100.200"), 40000, 1500))
forwards("longer_prefix_silent", "A longer prefix that is silent about a port leaves it to the shorter one",
         eth(v4("198.51.100.200", 6, tcp(40000, 1501))), "ranges", (CLIENT4, ip("198.51.100.200"), 40000, 1501))
forwards("prefix_v6", "A prefix in IPv6", eth(v6("2001:db8:100::9", 6, tcp(40000, 1500))), "ranges", (CLIENT6, ip("2001:db8:100::9"), 40000, 1500))

# Hops.
forwards("four_hops_v4", "Four hops, and four of the alternative row", eth(v4("203.0.113.14", 6, tcp(40000, 80))), "four", (CLIENT4, ip("203.0.113.14"), 40000, 80))
forwards("four_hops_v6", "The same in IPv6", eth(v6("2001:db8::14", 6, tcp(40000, 80))), "four", (CLIENT6, ip("2001:db8::14"), 40000, 80))
forwards("no_further_hop", "One backend: no hop is listed", eth(v4("203.0.113.11", 6, tcp(40000, 80))), "alone", (CLIENT4, ip("203.0.113.11"), 40000, 80))
forwards("outer_v6_of_v4", "IPv4 to IPv6 backends, hops of private type 1", eth(v4("203.0.113.16", 6, tcp(40000, 80), tos=0x2E)), "six", (CLIENT4, ip("203.0.113.16"), 40000, 80))
forwards("outer_v6_of_v6", "IPv6 to IPv6 backends", eth(v6("2001:db8::16", 6, tcp(40000, 80))), "six", (CLIENT6, ip("2001:db8::16"), 40000, 80))
forwards("outer_v6_vlan", "IPv6 to IPv6 backends, tagged", eth(v6("2001:db8::16", 6, tcp(40000, 80)), vlan), "six", (CLIENT6, ip("2001:db8::16"), 40000, 80))

# Lengths and versions that lie.
passes("version_5", "An IPv4 EtherType before another version", eth(plain4)[:14] + b"\x55" + plain4[1:], "malformed")
passes("header_length_4", "A header length below 20 bytes", eth(plain4)[:14] + b"\x44" + plain4[1:], "malformed")
passes("total_short", "A total length shorter than the header", eth(v4(VIP4, 6, tcp(40000, 80), length=19)), "malformed")
passes("total_long", "A total length beyond the frame", eth(v4(VIP4, 6, tcp(40000, 80), length=41)), "malformed")
passes("options_beyond", "Options that reach beyond the total length", eth(plain4)[:14] + b"\x4f" + plain4[1:], "malformed")
passes("tcp_cut", "Less than a TCP header", eth(v4(VIP4, 6, tcp(40000, 80)[:19])), "malformed")
passes("udp_cut", "Less than a UDP header", eth(v4(VIP4, 17, udp(40000, 53)[:7])), "malformed")
passes("version_4_in_v6", "An IPv6 EtherType before another version", eth(plain6)[:14] + b"\x45" + plain6[1:], "malformed")
passes("payload_long", "A payload length beyond the frame", eth(v6(VIP6, 6, tcp(40000, 80), length=21)), "malformed")
passes("extension_beyond", "An extension header that is longer than the packet", eth(v6(VIP6, 0, bytes([6, 9]) + bytes(6) + tcp(40000, 80))), "malformed")
passes("cut_in_tag", "A frame that ends in its tag", (DIRECTOR_MAC + CLIENT_MAC + vlan)[:15], "malformed")

# Too big for the way: its MTU is 1,600, and 40 bytes are the tunnel's.
def too_big_v4(frame, vip, mtu):
    at = 12
    while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
        at += 4
    quote = frame[at + 2 :][:512]
    message = icmp(3, 4, quote, rest=struct.pack(">I", mtu))
    head = struct.pack(">BBHHHBBH", 0x45, 0xC0, 20 + len(message), 0, 0x4000, 64, 1, 0) + vip + CLIENT4
    head = head[:10] + struct.pack(">H", checksum(head)) + head[12:]
    return frame[6:12] + frame[:6] + frame[12 : at + 2] + head + message


def too_big_v6(frame, vip, mtu):
    quote = frame[14:][:1024]
    message = struct.pack(">BBHI", 2, 0, 0, mtu) + quote
    pseudo = vip + CLIENT6 + struct.pack(">II", len(message), 58)
    message = message[:2] + struct.pack(">H", checksum(pseudo + message)) + message[4:]
    head = struct.pack(">IHBB", 6 << 28, len(message), 58, 64) + vip + CLIENT6
    return frame[6:12] + frame[:6] + frame[12:14] + head + message


fits = eth(v4(VIP4, 6, tcp(40000, 80, b"x" * 1520)))
forwards("just_fits", "As long as fits the way", fits, "plain", FLOW4)
big = eth(v4(VIP4, 6, tcp(40000, 80, b"x" * 1521)))
case("too_big_v4", "One byte longer: the client is told what fits, from the VIP", big, "sent", "too_big", "plain", too_big_v4(big, ip(VIP4), 1560))
tagged = eth(v4(VIP4, 6, tcp(40000, 80, b"x" * 1521)), qinq)
case("too_big_tagged", "The same with tags, which the answer carries too", tagged, "sent", "too_big", "plain", too_big_v4(tagged, ip(VIP4), 1560))
big6 = eth(v6(VIP6, 6, tcp(40000, 80, b"x" * 1501)))
case("too_big_v6", "The same in IPv6", big6, "sent", "too_big", "plain", too_big_v6(big6, ip(VIP6), 1560))
big4 = eth(v4("203.0.113.14", 6, tcp(40000, 80, b"x" * 1521)))
case("too_big_many_hops", "The MTU that is told is less what this table's hops take", big4, "sent", "too_big", "four", too_big_v4(big4, ip("203.0.113.14"), 1600 - 36 - 4 * 7))
case("too_big_error", "An ICMP error that is too big: nobody is told",
     eth(v4(VIP4, 1, icmp(3, 4, quote4 + b"x" * 1600), src=router4)), "dropped", "too_big_unanswered", "plain")
case("too_big_fragment", "A later fragment that is too big: nobody is told",
     eth(v4(VIP4, 6, b"x" * 1600, frag=0x4005)), "dropped", "too_big_unanswered", "plain")
for name, source in (("0", "0.0.0.0"), ("loopback", "127.0.0.1"), ("multicast", "224.0.0.1"), ("broadcast", "255.255.255.255")):
    case("too_big_from_" + name, "From an address that is no single machine's: nobody is told (RFC 1122)",
         eth(v4(VIP4, 6, tcp(40000, 80, b"x" * 1521), src=ip(source))), "dropped", "too_big_unanswered", "plain")
for name, source in (("unspecified", "::"), ("loopback", "::1"), ("multicast", "ff02::1")):
    case("too_big_v6_from_" + name, "The same in IPv6 (RFC 4443)",
         eth(v6(VIP6, 6, tcp(40000, 80, b"x" * 1501), src=ip(source))), "dropped", "too_big_unanswered", "plain")
case("too_big_to_all", "Sent to every machine on the link: nobody is told, and no frame leaves from the broadcast MAC",
     b"\xff" * 6 + big[6:], "dropped", "too_big_unanswered", "plain")
part = eth(v4(VIP4, 6, b"x" * 1600, frag=5))
case("too_big_fragment_without_df", "A later fragment without DF that does not fit", part, "dropped", "too_big_may_fragment", "plain")
forwards("fragment_without_df_tunnelled", "The same, sent in a tunnel packet without DF as the first one is", part, "plain",
         (CLIENT4, ip(VIP4), 0, 0), hint=0, options=dict(may_fragment=True), df=False)
loose = eth(v4(VIP4, 6, tcp(40000, 80, b"x" * 1540), frag=0))
case("too_big_without_df", "IPv4 without DF that does not fit", loose, "dropped", "too_big_may_fragment", "plain")
forwards("without_df_tunnelled", "The same, sent in a tunnel packet without DF as configured", loose, "plain", FLOW4,
         options=dict(may_fragment=True), df=False)
widest = lambda extra: eth(v4(VIP4, 6, tcp(40000, 80, b"x" * (LINK_MTU - 80 + extra)), frag=0))
forwards("without_df_widest", "As long as fits the outgoing interface", widest(0), "plain", FLOW4, options=dict(may_fragment=True), df=False)
case("without_df_too_wide", "One byte more than the outgoing interface takes", widest(1), "dropped", "too_big_may_fragment", "plain", may_fragment=True)
forwards("without_df_fits", "IPv4 without DF that fits: the tunnel packet has DF as always",
         eth(v4(VIP4, 6, tcp(40000, 80), frag=0)), "plain", FLOW4, options=dict(may_fragment=True))

text = ["# Made by packet_cases.py.\n"]
for table in TABLES:
    names = lambda fields: json.dumps(fields)
    text.append('[[tables]]\nname = "%s"\nhash_key = "%s"\nseed = "%s"\nhops = %d\nhash_fields = %s\n'
                % (table["name"], table["key"].hex(), table["seed"].hex(), table["hops"], names(table["fields"])))
    if "alt" in table:
        text.append("alt_hash_fields = %s\n" % names(table["alt"]))
    text.append("binds = [\n")
    for prefix, proto, first, last in table["binds"]:
        prefix = prefix.removesuffix("/32").removesuffix("/128")
        ports = "port = %d" % first if first == last else "port_start = %d, port_end = %d" % (first, last)
        text.append('  { ip = "%s", proto = "%s", %s },\n' % (prefix, proto, ports))
    text.append("]\nbackends = [\n")
    for backend in table["backends"]:
        text.append('  { ip = "%s", state = "active", healthy = true },\n' % backend)
    text.append("]\n\n")

folder = pathlib.Path(__file__).parent
(folder / "packet_cases.toml").write_text("".join(text).rstrip() + "\n")
(folder / "packet_cases.json").write_text(json.dumps(CASES, indent=1) + "\n")
print(len(CASES), "cases")
