//! What needs no buffers of DPDK; checksums and segmentation are tested on real hosts and guests end to end.

use super::{
    layout::{IpPacket, TCP},
    *,
};

/// A TCP segment over IPv4.
fn tcp4(payload: &[u8]) -> Vec<u8> {
    let total = (40 + payload.len()) as u16;
    let mut p = vec![0x45, 0];
    p.extend(total.to_be_bytes());
    p.extend([0, 1, 0x40, 0, 64, TCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    p.extend([0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    p.extend(payload);
    p
}

/// A frame with these tags.
fn frame(tags: &[[u8; 4]], ethertype: u16, packet: &[u8]) -> Vec<u8> {
    let mut f = vec![0x52, 0x54, 0, 0, 0, 1, 0x52, 0x54, 0, 0, 0, 2];
    tags.iter().for_each(|t| f.extend(t));
    f.extend(ethertype.to_be_bytes());
    f.extend(packet);
    f
}

fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut p = vec![0x45, 0];
    p.extend(((20 + payload.len()) as u16).to_be_bytes());
    p.extend([0, 1, 0, 0, 64, protocol, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2]);
    p.extend(payload);
    p
}

fn packet_of(f: &[u8]) -> Option<IpPacket> {
    let (l3, ethertype) = network_header(f)?;
    ip_packet(f, l3, ethertype)
}

#[test]
fn packets_are_found_behind_tags_and_fragments_are_none() {
    const TAGS: [[u8; 4]; 3] = [[0x88, 0xa8, 0, 10], [0x81, 0, 0, 20], [0x81, 0, 0, 30]];
    for n in 0..=3 {
        let mut f = frame(&TAGS[..n], 0x0800, &tcp4(b"hello"));
        let at = 14 + 4 * n;
        let packet = packet_of(&f).unwrap();
        assert_eq!(packet, IpPacket { v4: true, protocol: TCP, at, l4: at + 20, l4_len: 25 });
        assert_eq!(packet.field(), Some(at + 36));
        f[at + 6] |= 0x20;
        assert_eq!(packet_of(&f), None, "a fragment has no checksum of its own");
    }
}

#[test]
fn packets_are_found_in_tunnels() {
    let (inner, inside) = (tcp4(b"hello"), frame(&[], 0x0800, &tcp4(b"hello")));
    let udp = |port: u16, header: &[u8], payload: &[u8]| {
        let mut u = vec![0x80, 0];
        u.extend(port.to_be_bytes());
        u.extend(((8 + header.len() + payload.len()) as u16).to_be_bytes());
        u.extend([0, 0]);
        u.extend(header);
        u.extend(payload);
        ipv4(17, &u)
    };
    let with = |header: &[u8], payload: &[u8]| [header, payload].concat();
    let tunnels = [
        udp(4789, &[8, 0, 0, 0, 0, 0, 7, 0], &inside),
        udp(8472, &[8, 0, 0, 0, 0, 0, 7, 0], &inside),
        udp(6081, &[1, 0, 0x65, 0x58, 0, 0, 7, 0, 1, 2, 3, 4], &inside),
        ipv4(47, &with(&[0, 0, 8, 0], &inner)),
        ipv4(47, &with(&[0x20, 0, 0x65, 0x58, 0, 0, 0, 9], &inside)),
        ipv4(4, &inner),
    ];
    for t in tunnels {
        let f = frame(&[], 0x0800, &t);
        let found = packet_of(&f).unwrap().inner(&f).unwrap();
        assert_eq!((found.protocol, found.l4_len, found.at), (TCP, 25, f.len() - inner.len()), "{f:02x?}");
        assert_eq!(found.inner(&f), None);
        for n in 0..f.len() {
            let _ = packet_of(&f[..n]).and_then(|p| p.inner(&f[..n]));
        }
    }
    let other = frame(&[], 0x0800, &udp(4790, &[8, 0, 0, 0, 0, 0, 7, 0], &inside));
    assert_eq!(packet_of(&other).unwrap().inner(&other), None);
}

#[test]
fn needs_finish_only_for_what_the_receiver_lacks() {
    let all = Caps { checksum: true, tso4: true, tso6: true, chains: true };
    assert!(!needs_finish(Caps::default(), 0, 1));
    assert!(needs_finish(Caps::default(), 0, 2));
    assert!(needs_finish(Caps::default(), L4_TCP, 1));
    assert!(!needs_finish(all, L4_TCP, 3));
    assert!(needs_finish(all, TSO | L4_TCP, 1), "a request for segmentation is always checked");
}

mod segments {
    use std::sync::LazyLock;

    use etherparse::{IpHeaders, LaxPacketHeaders, NetHeaders, PacketBuilder, TransportHeader};
    use proptest::prelude::*;

    use super::*;
    use crate::eal::{Eal, EalConfig};

    static POOL: LazyLock<Mempool> = LazyLock::new(|| {
        let eal = Eal::init(&EalConfig { memory_mb: 64, hugepages: false }).unwrap();
        Mempool::new(&eal, 1023, crate::mempool::STANDARD_ROOM, None).unwrap()
    });

    /// A frame in as many buffers as it needs.
    fn in_buffers(octets: &[u8]) -> Mbuf {
        let mut parts = octets.chunks(POOL.room().into()).map(|c| POOL.frame(c).unwrap());
        let mut m = parts.next().unwrap();
        m.chain(parts);
        m
    }

    #[derive(Clone, Copy, Debug)]
    enum Tunnel {
        None,
        Vxlan { sum: bool },
        Geneve,
        Gre,
        IpInIp,
    }

    /// A datagram, or a segment whose sequence numbers end soon.
    fn packet(v4: bool, udp: bool, payload: &[u8]) -> Vec<u8> {
        let b = match v4 {
            true => PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64),
            false => PacketBuilder::ipv6([3; 16], [4; 16], 64),
        };
        let mut packet = Vec::new();
        match udp {
            true => b.udp(1000, 2000).write(&mut packet, payload).unwrap(),
            false => b.tcp(1000, 2000, 4_294_960_000, 100).ack(7).psh().fin().write(&mut packet, payload).unwrap(),
        }
        packet
    }

    /// Outer headers of a tunnel, for an inner packet.
    fn within(tunnel: Tunnel, outer_v4: bool, packet: &[u8], v4: bool) -> Vec<u8> {
        let ethertype = if v4 { [8, 0] } else { [0x86, 0xdd] };
        let inside = [&[2u8; 12][..], &ethertype, packet].concat();
        let udp = |port, header: &[u8], sum: bool| {
            let payload = [header, &inside].concat();
            let b = PacketBuilder::ethernet2([2; 6], [4; 6]);
            let b = if outer_v4 { b.ipv4([10, 9, 0, 1], [10, 9, 0, 2], 64) } else { b.ipv6([1; 16], [2; 16], 64) };
            let mut f = Vec::new();
            b.udp(5000, port).write(&mut f, &payload).unwrap();
            let field = if outer_v4 { 40 } else { 60 };
            if !sum {
                f[field..field + 2].fill(0);
            }
            f
        };
        let ip = |protocol: u8, payload: &[u8]| {
            let b = PacketBuilder::ethernet2([2; 6], [4; 6]);
            let mut f = Vec::new();
            match outer_v4 {
                true => b.ipv4([10, 9, 0, 1], [10, 9, 0, 2], 64).write(&mut f, protocol.into(), payload).unwrap(),
                false => b.ipv6([1; 16], [2; 16], 64).write(&mut f, protocol.into(), payload).unwrap(),
            }
            f
        };
        match tunnel {
            Tunnel::None => [&[2u8; 12][..], &ethertype, packet].concat(),
            Tunnel::Vxlan { sum } => udp(4789, &[8, 0, 0, 0, 0, 0, 7, 0], sum),
            Tunnel::Geneve => udp(6081, &[1, 0, 0x65, 0x58, 0, 0, 7, 0, 1, 2, 3, 4], false),
            Tunnel::Gre => ip(47, &[&[0, 0][..], &ethertype, packet].concat()),
            Tunnel::IpInIp => ip(if v4 { 4 } else { 41 }, packet),
        }
    }

    /// Checks lengths and checksums from the outside inwards; the payload of the innermost packet.
    fn checked(f: &[u8], link: bool, tunnel: bool) -> Result<(u16, Option<u32>, Vec<u8>), TestCaseError> {
        let p = match link {
            true => LaxPacketHeaders::from_ethernet(f).unwrap(),
            false => LaxPacketHeaders::from_ip(f).unwrap(),
        };
        prop_assert!(p.stop_err.is_none(), "{:?}", p.stop_err);
        let ip = match p.net.clone().unwrap() {
            NetHeaders::Ipv4(h, e) => IpHeaders::Ipv4(h, e),
            NetHeaders::Ipv6(h, e) => IpHeaders::Ipv6(h, e),
            other => panic!("{other:?}"),
        };
        let payload = p.payload.slice();
        let mut id = 0;
        if let IpHeaders::Ipv4(h, _) = &ip {
            prop_assert_eq!(h.header_checksum, h.calc_header_checksum());
            id = h.identification;
            prop_assert_eq!(usize::from(h.total_len), f.len() - if link { 14 + 4 * p.link_exts.len() } else { 0 });
        }
        let (seq, rest) = match &p.transport {
            Some(TransportHeader::Tcp(t)) => {
                let right = match &ip {
                    IpHeaders::Ipv4(h, _) => t.calc_checksum_ipv4(h, payload).unwrap(),
                    IpHeaders::Ipv6(h, _) => t.calc_checksum_ipv6(h, payload).unwrap(),
                };
                prop_assert_eq!(t.checksum, right);
                (Some(t.sequence_number), payload)
            }
            Some(TransportHeader::Udp(u)) => {
                prop_assert_eq!(usize::from(u.length), payload.len() + 8);
                let right = match &ip {
                    IpHeaders::Ipv4(h, _) => u.calc_checksum_ipv4(h, payload).unwrap(),
                    IpHeaders::Ipv6(h, _) => u.calc_checksum_ipv6(h, payload).unwrap(),
                };
                prop_assert!(u.checksum == right || (tunnel && u.checksum == 0), "{:x} {right:x}", u.checksum);
                if tunnel {
                    let geneve = if u.destination_port == 6081 { 4 } else { 0 };
                    return checked(&payload[8 + geneve..], true, false);
                }
                (None, payload)
            }
            _ if tunnel => {
                let gre = payload[..2] == [0, 0];
                return checked(&payload[if gre { 4 } else { 0 }..], false, false);
            }
            other => panic!("{other:?}"),
        };
        Ok((id, seq, rest.to_vec()))
    }

    fn tunnels() -> impl Strategy<Value = Tunnel> {
        prop::sample::select(vec![
            Tunnel::None,
            Tunnel::None,
            Tunnel::Vxlan { sum: false },
            Tunnel::Vxlan { sum: true },
            Tunnel::Geneve,
            Tunnel::Gre,
            Tunnel::IpInIp,
        ])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// Whatever is cut is whole: each piece has lengths and checksums of its own, and all payload is there once.
        #[test]
        fn pieces_are_whole(
            tunnel in tunnels(), v4: bool, outer_v4: bool, udp: bool, tags in 0usize..3,
            payload in prop::collection::vec(any::<u8>(), 1..9000), mss in 100u16..3000, cwr: bool,
        ) {
            let finisher = SoftwareOffload::new(POOL.clone(), POOL.clone());
            let mut packet = packet(v4, udp, &payload);
            let (l3, header, field) = (if v4 { 20 } else { 40 }, if udp { 8 } else { 20 }, if udp { 6 } else { 16 });
            if cwr && !udp {
                packet[l3 + 13] |= 0x80;
            }
            let l4_len = (packet.len() - l3) as u32;
            let pseudo = checksum::pseudo_sum(&packet, v4, if udp { 17 } else { 6 }, l4_len);
            packet[l3 + field..l3 + field + 2].copy_from_slice(&pseudo.to_ne_bytes());
            let mut f = within(tunnel, outer_v4, &packet, v4);
            for _ in 0..tags {
                f.splice(12..12, [0x81, 0, 0, 5]);
            }
            let start = f.len() - packet.len() + l3;
            let mut m = in_buffers(&f);
            let gso = match (udp, v4) {
                (true, _) => 5,
                (_, true) => 1,
                (_, false) => 4,
            };
            let mut h = [0u8; vnet::LEN];
            (h[0], h[1]) = (1, gso);
            h[4..6].copy_from_slice(&mss.to_ne_bytes());
            h[6..8].copy_from_slice(&(start as u16).to_ne_bytes());
            h[8..10].copy_from_slice(&(field as u16).to_ne_bytes());
            vnet::read(h, &mut m);
            let mut out = ArrayVec::new();
            let pieces = payload.len().div_ceil(mss.into());
            prop_assert_eq!(wire_len(&m) as usize, f.len().min(start + header + usize::from(mss)));
            // A tunnel of which nothing is known can't be cut; nor more pieces than there may be.
            prop_assert_eq!(finisher.finish(m, Caps { chains: true, ..Caps::default() }, &mut out), Ok(()));
            prop_assert_eq!(out.len(), pieces);
            let mut all = Vec::new();
            for (i, piece) in out.iter().enumerate() {
                prop_assert_eq!(piece.offload_flags(), 0);
                let octets: Vec<u8> = piece.pieces().flatten().copied().collect();
                let is_tunnel = !matches!(tunnel, Tunnel::None);
                let (id, seq, part) = checked(&octets, true, is_tunnel)?;
                if let Some(seq) = seq {
                    prop_assert_eq!(seq, 4_294_960_000u32.wrapping_add(all.len() as u32));
                    let flags = octets[octets.len() - part.len() - 20 + 13];
                    let is_last = i + 1 == pieces;
                    prop_assert_eq!(flags & 0x89, u8::from(is_last) * 9 + u8::from(cwr && i == 0) * 0x80);
                }
                if v4 {
                    prop_assert_eq!(id, i as u16);
                }
                prop_assert!(part.len() == usize::from(mss) || i + 1 == pieces);
                all.extend(part);
            }
            prop_assert_eq!(all, payload);
        }

        /// What a sender leaves to be summed, and nothing else, is: in the mark of the kernel, or without one.
        #[test]
        fn checksums_are_completed(
            tunnel in tunnels(), v4: bool, outer_v4: bool, udp: bool, marked: bool,
            payload in prop::collection::vec(any::<u8>(), 0..3000),
        ) {
            let packet = packet(v4, udp, &payload);
            let finished = within(tunnel, outer_v4, &packet, v4);
            let (l3, field) = (if v4 { 20 } else { 40 }, if udp { 6 } else { 16 });
            let start = finished.len() - packet.len() + l3;
            let pseudo = checksum::pseudo_sum(&packet, v4, if udp { 17 } else { 6 }, (packet.len() - l3) as u32);
            let mut f = finished.clone();
            f[start + field..start + field + 2].copy_from_slice(&pseudo.to_ne_bytes());
            let mut m = in_buffers(&f);
            let mut h = [0u8; vnet::LEN];
            if marked {
                h[0] = 1;
                h[6..8].copy_from_slice(&(start as u16).to_ne_bytes());
                h[8..10].copy_from_slice(&(field as u16).to_ne_bytes());
                vnet::read(h, &mut m);
                let mut out = ArrayVec::new();
                let finisher = SoftwareOffload::new(POOL.clone(), POOL.clone());
                prop_assert_eq!(finisher.finish(m, Caps { chains: true, ..Caps::default() }, &mut out), Ok(()));
                m = out.pop().unwrap();
            } else {
                prop_assert!(complete_unfinished(&mut m));
            }
            let got: Vec<u8> = m.pieces().flatten().copied().collect();
            prop_assert_eq!(got, finished);
        }
    }

    /// DPDK's vhost library knows what a guest leaves open in a frame with one 802.1Q tag at most; what is behind other tags
    /// is found by its sum (https://github.com/FDio/vpp/issues/3202).
    #[test]
    fn what_a_guest_leaves_open_behind_two_tags_is_completed() {
        let whole = packet(true, false, b"hello");
        let mut open = whole.clone();
        let pseudo = checksum::pseudo_sum(&open, true, TCP, (open.len() - 20) as u32);
        open[36..38].copy_from_slice(&pseudo.to_ne_bytes());
        const TAGS: [[u8; 4]; 3] = [[0x88, 0xa8, 0, 10], [0x81, 0, 0, 20], [0x81, 0, 0, 30]];
        for (tags, completed) in
            [(&TAGS[..1], true), (&TAGS[..2], true), (&TAGS[1..], true), (&TAGS[1..2], false), (&[], false)]
        {
            let mut m = in_buffers(&frame(tags, 0x0800, &open));
            complete_tagged(&mut m);
            assert_eq!(m.head(), frame(tags, 0x0800, if completed { &whole } else { &open }), "{tags:02x?}");
        }
        // What is larger than its guest's MTU is to be cut.
        let mut large = packet(true, false, &[1; 5_000]);
        let pseudo = checksum::pseudo_sum(&large, true, TCP, (large.len() - 20) as u32);
        large[36..38].copy_from_slice(&pseudo.to_ne_bytes());
        let mut m = in_buffers(&frame(&TAGS[..2], 0x0800, &large));
        complete_tagged(&mut m);
        assert_eq!((m.offload_flags() & TSO, wire_len(&m)), (TSO, 14 + 8 + 1_280));
        assert!(Layout::of(&m).unwrap().valid_for_segments(&m));
    }

    /// SCTP's is a CRC.
    #[test]
    fn an_sctp_packet_gets_its_crc() {
        // A COOKIE ACK, of which the CRC is known.
        let sctp = [0x80, 0x44, 0x80, 0x45, 0x54, 0xb2, 0x24, 0x1a, 0, 0, 0, 0, 0x0b, 0, 0, 4];
        let mut f = frame(&[], 0x0800, &ipv4(132, &sctp));
        let mut m = in_buffers(&f);
        let mut h = [0u8; vnet::LEN];
        h[0] = 1;
        h[6..8].copy_from_slice(&34u16.to_ne_bytes());
        h[8..10].copy_from_slice(&8u16.to_ne_bytes());
        vnet::read(h, &mut m);
        f[42..46].copy_from_slice(&crc32c::crc32c(&sctp).to_le_bytes());
        assert_eq!((m.head(), m.offload_flags()), (&f[..], 0));
    }
}
