//! The classifier against [`Match::matches`], one rule after the other.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::packet::headers::{TCP, UDP};

/// Few values, so that rules overlap and frames meet them.
fn v4() -> impl Strategy<Value = u32> {
    prop_oneof![
        any::<u32>(),
        (0u32..4, 0u32..4, 0u32..8).prop_map(|(a, b, c)| 0x0a00_0000 | a << 16 | b << 8 | c),
        Just(u32::MAX)
    ]
}

fn v6() -> impl Strategy<Value = u128> {
    (0u128..3, 0u128..3, 0u128..4, any::<bool>())
        .prop_map(|(a, b, c, far)| 0x2001_0db8 << 96 | a << 64 | b << 32 | c | if far { 1 << 127 } else { 0 })
}

fn prefix() -> impl Strategy<Value = Prefix> {
    let cut = |bits: u128, len: u8, width: u32| {
        if len == 0 { 0 } else { bits >> (width - u32::from(len)) << (width - u32::from(len)) }
    };
    prop_oneof![
        (v4(), 0u8..=32).prop_map(move |(a, len)| {
            Prefix { address: Ipv4Addr::from_bits(cut(u128::from(a), len, 32) as u32).into(), len }
        }),
        (v6(), 0u8..=128)
            .prop_map(move |(a, len)| Prefix { address: Ipv6Addr::from_bits(cut(a, len, 128)).into(), len }),
    ]
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![0u16..4, Just(80), Just(443), any::<u16>(), Just(u16::MAX)]
}

fn ports() -> impl Strategy<Value = RangeInclusive<u16>> {
    (port(), port()).prop_map(|(a, b)| a.min(b)..=a.max(b))
}

fn mac() -> impl Strategy<Value = MacAddr> {
    prop_oneof![
        (0u64..4).prop_map(|n| MacAddr::from_bits(0x5254_0000_0000 | n)),
        any::<u64>().prop_map(MacAddr::from_bits)
    ]
}

fn mac_mask() -> impl Strategy<Value = (MacAddr, MacAddr)> {
    let masks = prop_oneof![(0u32..=48).prop_map(|n| !0u64 << (48 - n)), Just(0x0100_0000_0000), any::<u64>()];
    (mac(), masks.prop_map(MacAddr::from_bits)).prop_map(|(m, mask)| (MacAddr::from_bits(m.bits() & mask.bits()), mask))
}

fn rule() -> impl Strategy<Value = Rule> {
    use proptest::option::weighted;
    let layer2 = (
        weighted(0.1, mac_mask()),
        weighted(0.1, mac_mask()),
        weighted(0.1, prop_oneof![Just(0x800u16), Just(0x86dd), Just(0x806)]),
        weighted(0.1, 0u16..4),
    );
    let layer3 =
        (weighted(0.5, prefix()), weighted(0.5, prefix()), weighted(0.1, any::<bool>()), weighted(0.2, 1u8..16));
    let layer4 = prop_oneof![
        3 => Just((None, None, None, None, None, None)),
        1 => any::<u8>().prop_map(|p| (Some(p), None, None, None, None, None)),
        3 => (prop_oneof![Just(TCP), Just(UDP)], weighted(0.3, ports()), weighted(0.7, ports())).prop_map(|(p, s, d)| (Some(p), s, d, None, None, None)),
        1 => (0u8..64, 0u8..64).prop_map(|(mask, set)| (Some(TCP), None, None, None, None, Some((mask, mask & set)))),
        1 => (prop_oneof![Just(ICMP), Just(ICMPV6)], weighted(0.8, 0u8..10), weighted(0.3, 0u8..3)).prop_map(|(p, t, c)| (Some(p), None, None, t, c, None)),
    ];
    let action = prop_oneof![4 => Just(Action::Allow), 3 => Just(Action::Deny), 1 => Just(Action::Count)];
    (layer2, layer3, layer4, action).prop_map(|(l2, l3, l4, action)| Rule {
        number: 0,
        action,
        log_every: 0,
        ask: Match {
            src_mac: l2.0,
            dst_mac: l2.1,
            ethertype: l2.2,
            vlan: l2.3,
            src: l3.0,
            dst: l3.1,
            fragment: l3.2,
            states: l3.3.unwrap_or(0),
            protocol: l4.0,
            src_ports: l4.1,
            dst_ports: l4.2,
            icmp_type: l4.3,
            icmp_code: l4.4,
            tcp_flags: l4.5,
        },
    })
}

/// Octets of a frame, and the state it is said to have.
pub(crate) fn frame() -> impl Strategy<Value = (Vec<u8>, MacAddr, MacAddr, u16, u8)> {
    let ends = (mac(), mac(), 0u16..4, prop_oneof![Just(0u8), Just(1), Just(2), Just(4), Just(8)]);
    let l4 =
        (prop_oneof![Just(TCP), Just(UDP), Just(ICMP), Just(ICMPV6), any::<u8>()], port(), port(), 0u8..64, 0u16..4);
    let ip = (any::<bool>(), v4(), v4(), v6(), v6());
    (ends, l4, ip, 0usize..120).prop_map(
        |((dst, src, vid, state), (protocol, sport, dport, flags, offset), ip, cut)| {
            let mut l4 = [0u8; 20];
            l4[..2].copy_from_slice(&sport.to_be_bytes());
            l4[2..4].copy_from_slice(&dport.to_be_bytes());
            if matches!(protocol, ICMP | ICMPV6) {
                (l4[0], l4[1]) = (sport as u8, dport as u8);
            }
            l4[13] = flags;
            let mut f = vec![0; 12];
            if ip.0 {
                f.extend([8, 0, 0x45, 0, 0, 40, 0, 7]);
                f.extend((if offset == 3 { 0x2003u16 } else { 0 }).to_be_bytes());
                f.extend([64, protocol, 0, 0]);
                f.extend(ip.1.to_be_bytes());
                f.extend(ip.2.to_be_bytes());
            } else {
                f.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, protocol, 64]);
                f.extend(ip.3.to_be_bytes());
                f.extend(ip.4.to_be_bytes());
            }
            f.extend(l4);
            // Now and then one that is cut.
            f.truncate(if cut < f.len() && cut % 7 == 0 { cut } else { f.len() });
            (f, dst, src, vid, state)
        },
    )
}

fn headers(frames: Vec<(Vec<u8>, MacAddr, MacAddr, u16, u8)>) -> Vec<Headers> {
    let read = |(f, dst, src, vid, state): (Vec<u8>, MacAddr, MacAddr, u16, u8)| {
        let mut h = Headers::read(&f, 14, vid, dst, src);
        h.words[STATE] = if h.family == Family::Other { 0 } else { super::state::number(state) };
        h
    };
    frames.into_iter().map(read).collect()
}

/// The first rule that decides a frame, and those before that count it, as a reader would find them.
fn by_reading(rules: &[Rule], h: &Headers) -> (u32, Vec<u32>) {
    let decides = |r: &&Rule| r.action != Action::Count && r.ask.matches(h);
    let first = rules.iter().find(decides).map_or(NONE, |r| r.number);
    let counts = |r: &&Rule| r.action == Action::Count && r.number < first && r.ask.matches(h);
    (first, rules.iter().filter(counts).map(|r| r.number).collect())
}

fn agrees(mut rules: Vec<Rule>, frames: Vec<Headers>) -> Result<(), TestCaseError> {
    (0..).zip(&mut rules).for_each(|(n, r)| r.number = n);
    let acl = Acl::new("test", &rules, rules.len(), Action::Allow, 1);
    for burst in frames.chunks(crate::burst::CHUNK) {
        let mut best = [0; crate::burst::CHUNK];
        let read: Words<'_> = (&HeaderBatch::of(burst), &|i| burst[i]);
        acl.classify(read, crate::burst::low_bits(burst.len()), &mut best);
        for (i, (h, best)) in burst.iter().zip(best).enumerate() {
            let (first, counted) = by_reading(&rules, h);
            let mut counts = Vec::new();
            acl.counted_before(read, i, best, |d| counts.push(d.number));
            counts.sort_unstable();
            prop_assert_eq!((best, counts), (first, counted), "{:?}", h);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn it_finds_what_reading_finds(
        rules in proptest::collection::vec(rule(), 0..200),
        frames in proptest::collection::vec(frame(), 1..100),
    ) {
        agrees(rules, headers(frames))?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// So few that they are compared with whole bursts.
    #[test]
    fn it_finds_what_reading_finds_among_few(
        rules in proptest::collection::vec(rule(), 0..140),
        frames in proptest::collection::vec(frame(), 1..100),
    ) {
        agrees(rules, headers(frames))?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, ..ProptestConfig::default() })]

    /// So many that the budget is met.
    #[test]
    fn it_finds_what_reading_finds_among_many(
        rules in proptest::collection::vec(rule(), 3_000..6_000),
        frames in proptest::collection::vec(frame(), 100),
    ) {
        agrees(rules, headers(frames))?;
    }
}

/// Rules that each ask about one thing alone, and about what differs: no cut separates one sort from another.
fn sorted(sorts: &[usize], n: u32) -> Vec<Rule> {
    let rule = |i: u32| {
        let prefix = Some(Prefix { address: Ipv4Addr::from_bits(0x0a00_0000 | ((i % 4) << 16) | i).into(), len: 32 });
        let (port, mac) = (
            Some(i as u16..=i as u16),
            Some((MacAddr::from_bits(0x5254_0000_0000 | u64::from(i)), MacAddr::BROADCAST)),
        );
        let ask = match sorts[i as usize % sorts.len()] {
            0 => Match { src: prefix, ..Match::default() },
            1 => Match { dst: prefix, ..Match::default() },
            2 => Match { protocol: Some(TCP), dst_ports: port, ..Match::default() },
            3 => Match { protocol: Some(UDP), src_ports: port, ..Match::default() },
            _ => Match { src_mac: mac, ..Match::default() },
        };
        Rule { ask, action: if i % 7 == 3 { Action::Count } else { Action::Deny }, ..Rule::default() }
    };
    (0..n).map(rule).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Each sort has a tree of its own.
    #[test]
    fn it_finds_what_reading_finds_among_sorts(
        (mut sorts, n) in (Just(vec![0usize, 1, 2, 3, 4]).prop_shuffle(), 1u32..1200),
        (take, some) in (1usize..=5, proptest::collection::vec(rule(), 0..20)),
        frames in proptest::collection::vec(frame(), 1..100),
    ) {
        sorts.truncate(take);
        agrees([sorted(&sorts, n), some].concat(), headers(frames))?;
    }
}

#[test]
fn sorts_of_rules_are_told_apart() {
    for (sorts, n) in
        [(&[0, 1][..], 1000), (&[0, 1], 10_000), (&[0, 4], 1000), (&[1, 2], 1000), (&[0, 1, 2, 3, 4], 5000)]
    {
        let mut rules = sorted(sorts, n);
        (0..).zip(&mut rules).for_each(|(n, r)| r.number = n);
        let acl = Acl::new("sorts", &rules, rules.len(), Action::Allow, 1);
        let group = &acl.deciding[Family::V4 as usize];
        // Some may share one while that is small enough; ports of TCP and of UDP do, whom the protocol separates.
        assert!(n < 5000 || group.trees.len() == sorts.len().min(4), "{sorts:?}: {} trees", group.trees.len());
        // Each rule is in one leaf or two, not all in one that no frame gets through.
        assert!(group.nodes.len() > n as usize / 256, "{sorts:?}: {} nodes for {n} rules", group.nodes.len());
        assert!(acl.memory() < 1000 * n as usize, "{sorts:?}: {} octets", acl.memory());
    }
}

/// A word in which all are narrow tells none apart, however many places there are.
#[test]
fn what_all_rules_ask_for_hides_no_sort() {
    let to = |i: u32| Some(Prefix { address: Ipv4Addr::from_bits(0x0a00_0000 | i).into(), len: 32 });
    let from = |i: u32| Some(Prefix { address: Ipv4Addr::from_bits(0xc000_0000 | i << 4).into(), len: 32 });
    let by_source = (0..2000).map(|i| Match { src: from(i), dst: to(1), ..Match::default() });
    let by_port =
        (0..2000).map(|i| Match { protocol: Some(TCP), src_ports: Some(i..=i), dst: to(1), ..Match::default() });
    let by_destination = (2..2300).map(|i| Match { dst: to(i), ..Match::default() });
    let asks = by_source.chain(by_port).chain(by_destination);
    let rules: Vec<Rule> = (0..).zip(asks).map(|(number, ask)| Rule { number, ask, ..Rule::default() }).collect();
    let acl = Acl::new("hidden", &rules, rules.len(), Action::Deny, 1);
    let group = &acl.deciding[Family::V4 as usize];
    assert!(group.trees.len() >= 2, "{} trees", group.trees.len());
    assert!(group.nodes.len() > rules.len() / 256, "{} nodes", group.nodes.len());
}

/// Every rule wide in all words but one, and each in another: nothing separates them. Memory stays bounded,
/// and so does the time to build.
#[test]
fn rules_that_overlap_everywhere_cost_no_memory() {
    let rules: Vec<Rule> = (0..10_000u32)
        .map(|i| {
            let (a, b) = ((i % 100 * 600) as u16, (i / 100 * 600) as u16);
            let ask = Match {
                protocol: Some(TCP),
                src_ports: Some(a / 2..=u16::MAX - a / 3),
                dst_ports: Some(b / 2..=u16::MAX - b / 3),
                src: Some(Prefix { address: Ipv4Addr::from_bits(i << 31).into(), len: 1 }),
                ..Match::default()
            };
            Rule { number: i, ask, action: Action::Deny, log_every: 0 }
        })
        .collect();
    let begun = std::time::Instant::now();
    let acl = Acl::new("overlap", &rules, rules.len(), Action::Allow, 1);
    let took = begun.elapsed();
    assert!(acl.memory() < 100 << 20, "{} octets", acl.memory());
    assert!(took.as_secs_f64() < 20.0, "{took:?}, unoptimized");
}
