//! The addresses that a port's station was given, as far as they were seen.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::atomic::{
        AtomicBool, AtomicU32, AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
};

use arrayvec::ArrayVec;

use crate::MacAddr;

/// Addresses of one port that are remembered at once: a station that is given more loses the oldest.
const REMEMBERED: usize = 16;

#[derive(Default)]
struct SnoopedBinding {
    high: AtomicU64,
    low: AtomicU64,
    /// The MAC address that it was given to; 0 if that is not known.
    client: AtomicU64,
    /// Which one it was of all leases that were given; 0 if it was given to an earlier dataplane.
    given: AtomicU64,
    /// 0 while there is none, it has ended, or it is written.
    until_s: AtomicU32,
    /// One thread writes the rest.
    is_written: AtomicBool,
}

impl SnoopedBinding {
    #[inline(always)]
    fn is(&self, bits: u128) -> bool {
        self.low.load(Relaxed) == bits as u64 && self.high.load(Relaxed) == (bits >> 64) as u64
    }
}

/// Link-local addresses that a station may have: others are forgotten.
const LINK_LOCAL: usize = 4;
/// For how long; RFC 6620 has no end of them.
const LINK_LOCAL_S: u32 = 365 * 86_400;
/// Within which another station's answer comes at the latest.
const ANSWERED_S: u32 = 3;
/// The upper half of one (RFC 4291, 2.5.6).
const FE80: u64 = 0xfe80 << 48;

/// A link-local address that the station asked for, and may use in the next second, if no other station says that it has it
/// (RFC 4862, 5.4: an answer comes within one).
#[derive(Default)]
struct Probed {
    /// The lower half of it; 0 if none.
    low: AtomicU64,
    at_s: AtomicU32,
}

/// What DHCP gave a port's station. Written by whichever worker sees it, read by that of the port.
#[derive(Default)]
pub struct Snooped {
    leases: [SnoopedBinding; REMEMBERED],
    probed: [Probed; LINK_LOCAL],
    changed: AtomicBool,
}

/// What is known of a lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lease {
    /// The station's.
    pub address: IpAddr,
    /// In the engine's seconds; 0 if it was ended before.
    pub until_s: u32,
    given: u64,
}

impl Lease {
    /// Whether the same address was given by it, after the other.
    pub fn replaces(&self, other: &Lease) -> bool {
        self.until_s > 0 && self.address == other.address && self.given > other.given
    }
}

impl Snooped {
    fn bits(address: IpAddr) -> u128 {
        match address {
            IpAddr::V4(a) => a.to_ipv6_mapped().to_bits(),
            IpAddr::V6(a) => a.to_bits(),
        }
    }

    /// The address is the station's until then, in the engine's seconds; an earlier dataplane saw it given.
    pub fn restore(&self, address: IpAddr, until_s: u32) {
        self.note_as(address, until_s, None, 0);
    }

    pub(super) fn note(&self, address: IpAddr, until_s: u32, client: Option<MacAddr>) {
        static GIVEN: AtomicU64 = AtomicU64::new(0);
        self.note_as(address, until_s, client, GIVEN.fetch_add(1, Relaxed) + 1);
        self.changed.store(true, Release);
    }

    fn note_as(&self, address: IpAddr, until_s: u32, client: Option<MacAddr>, given: u64) {
        let bits = Self::bits(address);
        let is_mine = |r: &&SnoopedBinding| !r.is_written.swap(true, Acquire);
        let oldest = || {
            let mut all: ArrayVec<&SnoopedBinding, REMEMBERED> = self.leases.iter().collect();
            all.sort_unstable_by_key(|r| r.until_s.load(Relaxed));
            all.into_iter().find(is_mine)
        };
        // Of so many writers at once, the last notes nothing.
        let Some(r) = self.leases.iter().filter(|r| r.is(bits)).find(is_mine).or_else(oldest) else { return };
        r.until_s.store(0, Release);
        r.high.store((bits >> 64) as u64, Relaxed);
        r.low.store(bits as u64, Relaxed);
        r.client.store(client.map_or(0, MacAddr::bits), Relaxed);
        r.given.store(given, Relaxed);
        r.until_s.store(until_s.max(1), Release);
        r.is_written.store(false, Release);
    }

    /// The address is not the station's any more; whether it was.
    pub(in crate::snapshot) fn forget(&self, address: IpAddr) -> bool {
        let bits = Self::bits(address);
        self.note_ended(self.leases.iter().filter(|r| r.is(bits)))
    }

    /// The IPv4 addresses of a client are not its any more, or, if it is the `only` one, all are not; whether there were some.
    pub(super) fn forget_client(&self, client: MacAddr, only: bool) -> bool {
        const V4_MAPPED: u64 = 0xffff;
        let is_its = |r: &&SnoopedBinding| {
            let is_v4 = r.high.load(Relaxed) == 0 && r.low.load(Relaxed) >> 32 == V4_MAPPED;
            is_v4 && (only || r.client.load(Relaxed) == client.bits())
        };
        self.note_ended(self.leases.iter().filter(is_its))
    }

    /// Ends these, and says whether there was one.
    fn note_ended<'a>(&self, leases: impl Iterator<Item = &'a SnoopedBinding>) -> bool {
        let ended = leases.filter(|r| r.until_s.swap(0, Release) != 0).count() > 0;
        self.changed.fetch_or(ended, Release);
        ended
    }

    /// Whether one was given or ended since this was asked last.
    pub fn take_changed(&self) -> bool {
        self.changed.swap(false, Acquire)
    }

    /// Whether it is one, of the only subnet that there is of them.
    pub(super) fn is_link_local(address: Ipv6Addr) -> bool {
        (address.to_bits() >> 64) as u64 == FE80
    }

    /// The station asks whether a link-local address is free, and has it afterwards if it is.
    pub(super) fn probe(&self, address: Ipv6Addr, now_s: u32) {
        if !Self::is_link_local(address) || self.has(address.into(), now_s) {
            return;
        }
        let low = address.to_bits() as u64;
        let same = self.probed.iter().find(|p| p.low.load(Relaxed) == low);
        let oldest = || self.probed.iter().min_by_key(|p| p.at_s.load(Relaxed)).expect("there are some");
        let p = same.unwrap_or_else(oldest);
        p.low.store(0, Release);
        p.at_s.store(now_s, Relaxed);
        p.low.store(low, Release);
    }

    /// Another station has a link-local address, or asks for it too: it is not this one's, if it just became that.
    pub(super) fn contest(&self, address: Ipv6Addr, now_s: u32) {
        if !Self::is_link_local(address) {
            return;
        }
        let low = address.to_bits() as u64;
        for p in &self.probed {
            let _ = p.low.compare_exchange(low, 0, Relaxed, Relaxed);
        }
        let just = |r: &&SnoopedBinding| {
            r.is(address.to_bits()) && r.until_s.load(Relaxed) >= now_s.saturating_add(LINK_LOCAL_S - ANSWERED_S)
        };
        self.note_ended(self.leases.iter().filter(just));
    }

    /// Whether it was asked for, and no other station had it.
    fn was_free(&self, bits: u128, now_s: u32) -> bool {
        let is_it = |p: &Probed| p.low.load(Acquire) == bits as u64 && p.at_s.load(Relaxed) < now_s;
        (bits >> 64) as u64 == FE80 && self.probed.iter().any(is_it)
    }

    /// Takes in what was free.
    pub(in crate::snapshot) fn take_free(&self, now_s: u32) {
        for p in &self.probed {
            let low = p.low.load(Acquire);
            if low != 0 && p.at_s.load(Relaxed) < now_s {
                let until = |r: &&SnoopedBinding| r.until_s.load(Relaxed);
                let has = |r: &&SnoopedBinding| r.high.load(Relaxed) == FE80 && r.until_s.load(Relaxed) > now_s;
                if self.leases.iter().filter(has).count() >= LINK_LOCAL
                    && let Some(oldest) = self.leases.iter().filter(has).min_by_key(until)
                {
                    oldest.until_s.store(0, Release);
                }
                let address = Ipv6Addr::from_bits(u128::from(FE80) << 64 | u128::from(low));
                self.note(address.into(), now_s.saturating_add(LINK_LOCAL_S), None);
                let _ = p.low.compare_exchange(low, 0, Relaxed, Relaxed);
            }
        }
    }

    pub(super) fn has(&self, address: IpAddr, now_s: u32) -> bool {
        let bits = Self::bits(address);
        self.leases.iter().any(|r| r.until_s.load(Acquire) > now_s && r.is(bits)) || self.was_free(bits, now_s)
    }

    /// All that are remembered, those that were ended before their time too.
    pub fn all(&self, now_s: u32) -> Vec<Lease> {
        let lease = |r: &SnoopedBinding| {
            let until_s = r.until_s.load(Acquire);
            let bits = u128::from(r.high.load(Relaxed)) << 64 | u128::from(r.low.load(Relaxed));
            let address = Ipv6Addr::from_bits(bits).to_canonical();
            (bits != 0 && (until_s == 0 || until_s > now_s)).then(|| Lease {
                address,
                until_s,
                given: r.given.load(Relaxed),
            })
        };
        self.leases.iter().filter_map(lease).collect()
    }

    /// The addresses that are the station's.
    pub fn live(&self, now_s: u32) -> Vec<Lease> {
        self.all(now_s).into_iter().filter(|l| l.until_s > 0).collect()
    }
}

impl std::fmt::Debug for Snooped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Snooped({:?})", self.all(0))
    }
}
