//! All connections: listed, forgotten by age or by order, counted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::Ordering::Relaxed;

use super::{
    Conntrack, Session, Settings, Statistics, Zone,
    table::{STATE, Slot, Table},
    tcp::{BEGUN_S, End, FLAGS, FROM_PORT, LOW_BEGAN, REFUSED, SEEN_REPLY, SEEN_S, end},
};
use crate::{
    PortIdx, SegmentId,
    packet::headers::{Family, ICMP, ICMPV6, TCP, UDP},
};

/// Ends and protocol as a key has them, the lower end first.
type Ends = ([(IpAddr, u16); 2], u8);

fn ends4(key: &[u64; 3]) -> Ends {
    let v4 = |bits: u64| IpAddr::V4(Ipv4Addr::from_bits(bits as u32));
    ([(v4(key[1] >> 32), (key[0] >> 16) as u16), (v4(key[1]), key[0] as u16)], key[2] as u8)
}

fn ends6(key: &[u64; 6]) -> Ends {
    let v6 = |a: u64, b: u64| IpAddr::V6(Ipv6Addr::from_bits(u128::from(a) << 64 | u128::from(b)));
    ([(v6(key[1], key[2]), (key[0] >> 16) as u16), (v6(key[3], key[4]), key[0] as u16)], key[5] as u8)
}

/// What a connection is in, in a word, and for how many seconds it is kept there.
fn phase(protocol: u8, flags: u32, s: &Settings) -> (&'static str, u32) {
    let (a, b) = (end(flags, 0), end(flags, 1));
    let answered = flags & SEEN_REPLY != 0;
    match protocol {
        _ if flags & REFUSED != 0 => ("refused", s.timeouts.tcp_closing_s),
        TCP if a == End::Reset
            || (a == End::Closed && b >= End::Closing)
            || (b == End::Closed && a >= End::Closing) =>
        {
            ("closed", s.timeouts.tcp_closed_s)
        }
        TCP if a >= End::Closing || b >= End::Closing => ("closing", s.timeouts.tcp_closing_s),
        TCP if a >= End::Open && b >= End::Open && answered => ("open", s.timeouts.tcp_open_s),
        TCP => ("opening", s.timeouts.tcp_opening_s),
        UDP if answered => ("answered", s.timeouts.udp_answered_s),
        UDP => ("unanswered", s.timeouts.udp_s),
        ICMP | ICMPV6 => (if answered { "answered" } else { "unanswered" }, s.timeouts.icmp_s),
        _ => (if answered { "answered" } else { "unanswered" }, s.timeouts.other_s),
    }
}

fn session(key0: u64, ends: Ends, state: &[u32; STATE], s: &Settings, now_s: u32) -> Session {
    let flags = state[FLAGS];
    let ([low, high], protocol) = ends;
    let (from, to) = if flags & LOW_BEGAN != 0 { (low, high) } else { (high, low) };
    let (word, kept_s) = phase(protocol, flags, s);
    let idle_s = now_s.saturating_sub(state[SEEN_S]);
    Session {
        zone: Zone { port: PortIdx::from_raw((key0 >> 48) as u16), segment: SegmentId((key0 >> 32) as u16) },
        protocol,
        from,
        to,
        from_port: flags & FROM_PORT != 0,
        state: word,
        age_s: now_s.saturating_sub(state[BEGUN_S]),
        idle_s,
        expires_s: kept_s.saturating_sub(idle_s),
    }
}

impl Conntrack {
    /// Every connection of part `part` of `parts` of the tables, with how to forget it.
    fn each(&self, (part, parts): (usize, usize), s: &Settings, now_s: u32, mut f: impl FnMut(Session, Family, Slot)) {
        // Nothing is looked through, and no memory touched, where there is nothing.
        if self.all.load(Relaxed) == 0 {
            return;
        }
        fn slots<const K: usize>(t: &Table<K>, part: usize, parts: usize) -> impl Iterator<Item = Slot> {
            let n = t.buckets();
            (n * part / parts..n * (part + 1) / parts).flat_map(|b| t.slots(b))
        }
        for slot in slots(&self.v4, part, parts) {
            if let Some((key, state)) = self.v4.read(slot) {
                f(session(key[0], ends4(&key), &state, s, now_s), Family::V4, slot);
            }
        }
        for slot in slots(&self.v6, part, parts) {
            if let Some((key, state)) = self.v6.read(slot) {
                f(session(key[0], ends6(&key), &state, s, now_s), Family::V6, slot);
            }
        }
    }

    /// Reports the connections of one part of the tables.
    pub fn sessions(&self, part: (usize, usize), s: &Settings, now_s: u32, mut each: impl FnMut(Session)) {
        self.each(part, s, now_s, |session, _, _| each(session));
    }

    /// Forgets those that are meant; how many.
    pub fn flush(&self, s: &Settings, now_s: u32, meant: impl Fn(&Session) -> bool) -> u64 {
        let mut n = 0;
        self.each((0, 1), s, now_s, |session, family, slot| {
            n += u64::from(meant(&session) && self.forget(family, slot));
        });
        n
    }

    /// Forgets those of one part of the tables to which nothing came for too long.
    pub fn expire(&self, part: (usize, usize), s: &Settings, now_s: u32) {
        self.each(part, s, now_s, |session, family, slot| {
            if session.expires_s == 0 && self.forget(family, slot) {
                self.expired.fetch_add(1, Relaxed);
            }
        });
    }

    /// The numbers.
    pub fn statistics(&self) -> Statistics {
        let each = |parts: [(*const u8, usize); 3]| {
            parts.iter().map(|(_, octets)| *octets as u64).sum::<u64>() / u64::from(self.capacity.max(1))
        };
        Statistics {
            sessions: u64::from(self.all.load(Relaxed)),
            capacity: u64::from(self.capacity),
            begun: self.begun.load(Relaxed),
            expired: self.expired.load(Relaxed),
            displaced: self.displaced.load(Relaxed),
            refused: self.refused.load(Relaxed),
            octets: (each(self.v4.memory()), each(self.v6.memory())),
        }
    }

    /// Connections of a port: all, and those without a reply.
    pub fn of_port(&self, port: PortIdx) -> (u32, u32) {
        let (all, unanswered) = &self.ports[port.get()];
        (all.load(Relaxed), unanswered.load(Relaxed))
    }
}
