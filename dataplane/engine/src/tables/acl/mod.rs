//! Access lists: ordered rules, the first that matches decides.
//!
//! An [`Acl`] is compiled once, on the configuring thread, however many ports it is attached to, and is
//! part of the snapshot: workers change from one version to the next between two bursts. What a rule asks
//! of a frame is a range in each of some words of [`Headers`] (`tree.rs` finds the first rule whose ranges
//! hold all of them), and rarely something else, which is looked at for candidates alone.
//!
//! **Several on a port.** Each gives its own verdict and all must let a frame pass: the first that does not
//! ends its way. So a group's or a network's list can't be undone by a port's.
//!
//! **Counting.** Every worker has its own counters for each rule; the slot behind them takes what is only
//! tried ([`Acl::counts`]).

mod build;
mod linear;
#[cfg(test)]
pub(crate) mod tests;
mod tree;

use std::{
    net::IpAddr,
    ops::RangeInclusive,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

pub use crate::packet::headers::state;
use crate::{
    MacAddr,
    burst::{CHUNK, ChunkMask as Mask},
    counters::Count,
    packet::{
        ETHERTYPE_IPV4, ETHERTYPE_IPV6,
        headers::{
            DPORT, DST, DST_MAC, DST6, ETHERTYPE, FLAGS, FRAGMENT, Family, HeaderBatch, Headers, ICMP, ICMPV6, NO_PORT,
            PROTOCOL, SPORT, SRC, SRC_MAC, SRC6, STATE, VLAN,
        },
    },
};
use build::Item;
use tree::{Asked, Group};
pub(crate) use tree::{Best, NONE};

/// An IP prefix; no bit behind its length is set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Prefix {
    /// Its first address.
    pub address: IpAddr,
    /// Its length, at most 32 or 128.
    pub len: u8,
}

impl From<ipnet::IpNet> for Prefix {
    fn from(net: ipnet::IpNet) -> Self {
        Prefix { address: net.network(), len: net.prefix_len() }
    }
}

impl Prefix {
    /// Whether the address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(p), IpAddr::V4(a)) => {
                (p.to_bits() ^ a.to_bits()).checked_shr(32 - u32::from(self.len)).unwrap_or(0) == 0
            }
            (IpAddr::V6(p), IpAddr::V6(a)) => {
                (p.to_bits() ^ a.to_bits()).checked_shr(128 - u32::from(self.len)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// What a rule asks of a frame; what is `None` (or 0) is not asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// Address of layer 2 and the bits of it that count.
    pub src_mac: Option<(MacAddr, MacAddr)>,
    /// The same of the destination.
    pub dst_mac: Option<(MacAddr, MacAddr)>,
    /// Behind the tag.
    pub ethertype: Option<u16>,
    /// Of the switch, whether it shows in the frame or not.
    pub vlan: Option<u16>,
    /// Source.
    pub src: Option<Prefix>,
    /// Destination.
    pub dst: Option<Prefix>,
    /// IP protocol, behind extension headers.
    pub protocol: Option<u8>,
    /// Source ports of TCP, UDP or SCTP.
    pub src_ports: Option<RangeInclusive<u16>>,
    /// Destination ports.
    pub dst_ports: Option<RangeInclusive<u16>>,
    /// ICMP's type.
    pub icmp_type: Option<u8>,
    /// ICMP's code.
    pub icmp_code: Option<u8>,
    /// TCP flags: those that count, and those of them that are set.
    pub tcp_flags: Option<(u8, u8)>,
    /// A fragment, or none.
    pub fragment: Option<bool>,
    /// Any of [`state`], added; 0 does not ask.
    pub states: u8,
}

impl Match {
    /// Whether a frame is what is asked for: slowly, and plainly. The classifier is tested against it.
    pub fn matches(&self, h: &Headers) -> bool {
        let (src_mac, dst_mac) = h.macs();
        let mac = |want: &Option<(MacAddr, MacAddr)>, is: MacAddr| {
            want.is_none_or(|(value, mask)| is.bits() & mask.bits() == value.bits() & mask.bits())
        };
        let addresses = h.addresses();
        let within = |p: &Option<Prefix>, a: Option<IpAddr>| p.is_none_or(|p| a.is_some_and(|a| p.contains(a)));
        let port = |want: &Option<RangeInclusive<u16>>, is: u32| {
            want.as_ref().is_none_or(|w| u16::try_from(is).is_ok_and(|p| w.contains(&p)))
        };
        let number = |want: Option<u8>, is: u32| want.is_none_or(|w| u32::from(w) == is);
        let is_ip = h.family != Family::Other;
        mac(&self.src_mac, src_mac)
            && mac(&self.dst_mac, dst_mac)
            && self.ethertype.is_none_or(|e| e == h.ethertype())
            && self.vlan.is_none_or(|v| u32::from(v) == h.words[VLAN])
            && within(&self.src, addresses.map(|a| a.0))
            && within(&self.dst, addresses.map(|a| a.1))
            && (is_ip || !self.asks_ip())
            && self.protocol.is_none_or(|p| p == h.protocol())
            && port(&self.src_ports, h.words[SPORT])
            && port(&self.dst_ports, h.words[DPORT])
            && number(self.icmp_type, h.words[SPORT])
            && number(self.icmp_code, h.words[DPORT])
            && self.tcp_flags.is_none_or(|(mask, set)| h.words[FLAGS] & (NO_PORT | u32::from(mask)) == u32::from(set))
            && self.fragment.is_none_or(|f| f == (h.words[FRAGMENT] != 0))
            && (self.states == 0 || u32::from(self.states) << 1 >> h.words[STATE] & 1 != 0)
    }

    fn asks_l4(&self) -> bool {
        let ports = self.src_ports.is_some() || self.dst_ports.is_some();
        ports || self.icmp_type.is_some() || self.icmp_code.is_some() || self.tcp_flags.is_some()
    }

    /// Whether it asks for what is behind the IP header.
    fn asks_layer4(&self) -> bool {
        self.asks_ports() || self.protocol.is_some()
    }

    /// Whether it asks for what only the first fragment of a datagram has.
    fn asks_ports(&self) -> bool {
        self.asks_l4() || self.states != 0
    }

    /// Whether it asks for what only IP has, addresses aside.
    fn asks_ip(&self) -> bool {
        self.asks_layer4() || self.fragment.is_some()
    }

    /// Whether frames of a family can match at all.
    fn can_be(&self, family: Family) -> bool {
        let v4 = |p: &Option<Prefix>| p.is_some_and(|p| p.address.is_ipv4());
        let v6 = |p: &Option<Prefix>| p.is_some_and(|p| p.address.is_ipv6());
        let any_v4 = v4(&self.src) || v4(&self.dst) || self.protocol == Some(ICMP);
        let any_v6 = v6(&self.src) || v6(&self.dst) || self.protocol == Some(ICMPV6);
        match family {
            Family::V4 => !v6(&self.src) && !v6(&self.dst) && self.ethertype.is_none_or(|e| e == ETHERTYPE_IPV4),
            Family::V6 => !v4(&self.src) && !v4(&self.dst) && self.ethertype.is_none_or(|e| e == ETHERTYPE_IPV6),
            // A packet that is cut before its header ends is none of either.
            Family::Other => !any_v4 && !any_v6 && !self.asks_ip(),
        }
    }

    /// The ranges of words that it asks for, each where it is not the whole.
    fn ranges(&self) -> Vec<(usize, u32, u32)> {
        let mut r = Vec::new();
        let mut exactly = |at: usize, v: Option<u32>| r.extend(v.map(|v| (at, v, v)));
        exactly(ETHERTYPE, self.ethertype.map(u32::from));
        exactly(VLAN, self.vlan.map(u32::from));
        exactly(PROTOCOL, self.protocol.map(u32::from));
        exactly(SPORT, self.icmp_type.map(u32::from));
        exactly(DPORT, self.icmp_code.map(u32::from));
        for (at, ports) in [(SPORT, &self.src_ports), (DPORT, &self.dst_ports)] {
            r.extend(ports.as_ref().map(|p| (at, u32::from(*p.start()), u32::from(*p.end()))));
        }
        if self.states != 0
            && let Some((first, last)) = state::range(self.states)
        {
            r.push((STATE, first, last));
        }
        for (first, rest, prefix) in [(SRC, SRC6, self.src), (DST, DST6, self.dst)] {
            match prefix {
                Some(Prefix { address: IpAddr::V4(a), len }) => r.extend(word(first, a.to_bits(), u32::from(len))),
                Some(Prefix { address: IpAddr::V6(a), len }) => {
                    let bits = a.to_bits();
                    for i in 0..4 {
                        let at = if i == 0 { first } else { rest + i - 1 };
                        let bits_here = u32::from(len).saturating_sub(32 * i as u32).min(32);
                        r.extend(word(at, (bits >> (96 - 32 * i)) as u32, bits_here));
                    }
                }
                None => {}
            }
        }
        for (at, mac) in [(SRC_MAC, self.src_mac), (DST_MAC, self.dst_mac)] {
            let Some((value, len)) = mac.and_then(|(v, m)| Some((v.bits(), leading_bits(m)?))) else { continue };
            r.extend(word(at, (value >> 16) as u32, len.min(32)));
            let low = value as u32 & 0xffff;
            let ones = 0xffff >> len.saturating_sub(32);
            if len > 32 {
                r.push((at + 1, low & !ones, low | ones));
            }
        }
        r
    }

    /// What is asked beyond ranges; the default asks for nothing more.
    fn extra(&self) -> Match {
        let scattered = |m: &Option<(MacAddr, MacAddr)>| m.is_some_and(|(_, mask)| leading_bits(mask).is_none());
        Match {
            src_mac: self.src_mac.filter(|_| scattered(&self.src_mac)),
            dst_mac: self.dst_mac.filter(|_| scattered(&self.dst_mac)),
            tcp_flags: self.tcp_flags,
            fragment: self.fragment,
            states: if self.states != 0 && state::range(self.states).is_some() { 0 } else { self.states },
            ..Match::default()
        }
    }
}

/// The range of a word whose upper `len` bits are those of `bits`; none if that is every word.
fn word(at: usize, bits: u32, len: u32) -> Option<(usize, u32, u32)> {
    let ones = u32::MAX.checked_shr(len).unwrap_or(0);
    (len > 0).then_some((at, bits & !ones, bits | ones))
}

/// How many bits a mask has, if those are the first.
fn leading_bits(mask: MacAddr) -> Option<u32> {
    let n = (mask.bits() << 16).leading_ones();
    (mask.bits() << 16 << n == 0 || n == 48).then_some(n)
}

/// What becomes of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Action {
    /// It passes this list.
    #[default]
    Allow,
    /// It is dropped.
    Deny,
    /// It is dropped, and its sender notified: by a TCP reset, or that the destination is unreachable.
    Reject,
    /// It is counted, and the rules behind are asked.
    Count,
}

impl Action {
    /// As rules have it.
    pub const fn name(self) -> &'static str {
        match self {
            Action::Allow => "allow",
            Action::Deny => "deny",
            Action::Reject => "reject",
            Action::Count => "count",
        }
    }
}

/// One rule. Several of the same number are one rule to people: what a set of addresses became. At most one of them
/// matches any frame, or a rule that counts would count it twice.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    /// Its place in the list, from 0.
    pub number: u32,
    /// What it asks.
    pub ask: Match,
    /// What follows.
    pub action: Action,
    /// One in so many frames is logged; 0 for none.
    pub log_every: u32,
}

/// What one worker counted of one rule.
#[derive(Default)]
pub struct RuleCounts {
    /// Frames that it decided, or counted.
    pub frames: Count,
    /// Their octets.
    pub bytes: Count,
}

/// How many lists were compiled.
static VERSIONS: AtomicU64 = AtomicU64::new(0);
/// Between two frames of one list that are logged, in nanoseconds: at most 100 a second.
const LOG_PAUSE_NS: u64 = 10_000_000;

/// What was read of a chunk: by words, and, which is rarely needed, all of one frame.
pub(crate) type Words<'a> = (&'a HeaderBatch, &'a dyn Fn(usize) -> Headers);

/// A list, ready for use.
pub struct Acl {
    /// Its name.
    pub name: Arc<str>,
    /// What becomes of a frame that no rule matches.
    pub default: Action,
    /// Whether any rule asks for a state.
    pub stateful: bool,
    /// Whether any rule asks for MAC addresses.
    pub(crate) asks_macs: bool,
    /// Whether any rule asks for what is behind the IP header.
    pub(crate) asks_layer4: bool,
    /// Whether any rule asks for what only first fragments have.
    pub(crate) asks_ports: bool,
    /// The rule that decides every frame of a connection that goes on, if one does that asks for nothing else.
    pub(crate) established: Option<u32>,
    /// Another one for every list that was ever compiled.
    pub(crate) version: u64,
    pub(crate) rules: Vec<Decision>,
    extras: Vec<Match>,
    deciding: [Group; 3],
    counting: Option<[Group; 3]>,
    /// Of each worker, then of no worker: each rule's, then the default's.
    counts: Box<[Box<[RuleCounts]>]>,
    /// When something was logged last, in nanoseconds: see [`Acl::may_log`].
    logged_ns: AtomicU64,
    number_of_rules: usize,
}

/// What follows when a rule matches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decision {
    pub number: u32,
    pub action: Action,
    pub log_every: u32,
}

impl Acl {
    /// Compiles `rules`, the first first, whose numbers are below `number_of_rules`, for so many workers.
    pub fn new(name: &str, rules: &[Rule], number_of_rules: usize, default: Action, workers: usize) -> Acl {
        let (mut decisions, mut extras) = (Vec::new(), Vec::new());
        let mut items: [[Vec<Item>; 3]; 2] = Default::default();
        for (id, rule) in rules.iter().enumerate() {
            let ranges = rule.ask.ranges();
            let extra = rule.ask.extra();
            decisions.push(Decision { number: rule.number, action: rule.action, log_every: rule.log_every });
            for family in [Family::Other, Family::V4, Family::V6].into_iter().filter(|f| rule.ask.can_be(*f)) {
                let list = &mut items[usize::from(rule.action == Action::Count)][family as usize];
                list.push(Item::new(id as u32, extra != Match::default(), &ranges));
            }
            extras.push(extra);
        }
        let [decide, count] = items;
        debug_assert!(rules.iter().all(|r| (r.number as usize) < number_of_rules));
        let counts = || (0..=number_of_rules).map(|_| RuleCounts::default()).collect();
        Acl {
            name: name.into(),
            default,
            stateful: rules.iter().any(|r| r.ask.states != 0),
            asks_macs: rules.iter().any(|r| r.ask.src_mac.is_some() || r.ask.dst_mac.is_some()),
            asks_layer4: rules.iter().any(|r| r.ask.asks_layer4()),
            asks_ports: rules.iter().any(|r| r.ask.asks_ports()),
            established: established(rules),
            version: VERSIONS.fetch_add(1, Relaxed),
            rules: decisions,
            extras,
            deciding: decide.map(|i| build::group(&i, true)),
            counting: (!count.iter().all(Vec::is_empty)).then(|| count.map(|i| build::group(&i, false))),
            counts: (0..=workers).map(|_| counts()).collect(),
            logged_ns: AtomicU64::new(0),
            number_of_rules,
        }
    }

    /// Finds for each frame whose bit is in `of` the first rule that decides it: its place in `rules`, or [`NONE`].
    #[inline(always)]
    pub(crate) fn classify(&self, (columns, row): Words<'_>, of: Mask, best: &mut Best) {
        tree::first(&self.deciding, &Asked { columns, row, extras: &self.extras }, of, best);
    }

    /// The same for one frame.
    pub(crate) fn classify_one(&self, h: &Headers) -> u32 {
        let mut best: Best = [NONE; CHUNK];
        self.classify((&HeaderBatch::of(std::slice::from_ref(h)), &|_| *h), 1, &mut best);
        best[0]
    }

    /// What follows from what [`Acl::classify`] found.
    #[inline(always)]
    pub(crate) fn decision(&self, best: u32) -> Decision {
        let default = Decision { number: u32::MAX, action: self.default, log_every: 0 };
        self.rules.get(best as usize).copied().unwrap_or(default)
    }

    /// Whether what goes on passes, whatever it is.
    pub(crate) fn permits_established(&self) -> bool {
        self.established.is_some_and(|rule| self.decision(rule).action == Action::Allow)
    }

    /// The rules before `before` that only count, for frame `i`.
    pub(crate) fn counted_before(
        &self,
        (columns, row): Words<'_>,
        i: usize,
        before: u32,
        mut each: impl FnMut(&Decision),
    ) {
        let Some(groups) = &self.counting else { return };
        let asked = Asked { columns, row, extras: &self.extras };
        groups[columns.family(i)].all(&asked, i, |id| {
            if id < before {
                each(&self.rules[id as usize]);
            }
        });
    }

    /// Whether it has rules that only count.
    pub(crate) fn counts_some(&self) -> bool {
        self.counting.is_some()
    }

    /// A worker's counters of a rule's number; of the default, if that is [`Acl::rules`] or more.
    #[inline(always)]
    pub(crate) fn count(&self, worker: usize, number: u32) -> &RuleCounts {
        &self.counts[worker][(number as usize).min(self.number_of_rules)]
    }

    /// Whether the `n`-th frame that a rule decides is logged: one in so many as it says, and not more than
    /// the list may tell of in a second.
    pub(crate) fn may_log(&self, decision: &Decision, n: u64, now_ns: u64) -> bool {
        if decision.log_every == 0 || !n.is_multiple_of(u64::from(decision.log_every)) {
            return false;
        }
        let last = self.logged_ns.load(Relaxed);
        let due = last == 0 || now_ns.wrapping_sub(last) >= LOG_PAUSE_NS;
        due && self.logged_ns.compare_exchange(last, now_ns.max(1), Relaxed, Relaxed).is_ok()
    }

    /// How many rules people gave it.
    pub fn number_of_rules(&self) -> usize {
        self.number_of_rules
    }

    /// Frames and octets of each rule, then of the default, over all workers.
    pub fn counts(&self) -> Vec<(u64, u64)> {
        let workers = self.counts.len() - 1;
        let of = |number: usize| {
            let all = self.counts[..workers].iter().map(|w| &w[number]);
            all.fold((0, 0), |(f, b), c| (f + c.frames.get(), b + c.bytes.get()))
        };
        (0..=self.number_of_rules).map(of).collect()
    }

    /// Octets that finding rules takes, without counters.
    pub fn memory(&self) -> usize {
        self.deciding.iter().chain(self.counting.iter().flatten()).map(Group::memory).sum()
    }
}

/// The place of the first rule that decides about what is established, if it asks for no more.
fn established(rules: &[Rule]) -> Option<u32> {
    let is_asked = |r: &Rule| r.ask.states == 0 || r.ask.states & state::ESTABLISHED != 0;
    let (id, rule) = rules.iter().enumerate().find(|(_, r)| r.action != Action::Count && is_asked(r))?;
    (rule.ask.states != 0 && rule.ask == Match { states: rule.ask.states, ..Match::default() }).then_some(id as u32)
}

impl std::fmt::Debug for Acl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Acl({}, {} rules)", self.name, self.number_of_rules)
    }
}
