//! Later fragments have no ports: they are lent those of their first one, for as long as an end waits for
//! the rest of a datagram. One that comes before its first has none, and waits where ports matter
//! (`stage/filter/fragments.rs`).
//!
//! A later fragment that begins before its first one ends would write over what was judged (RFC 1858, 3; RFC 5722).

use std::sync::atomic::{
    Ordering::{Acquire, Relaxed, Release},
    fence,
};

use crate::{
    PortIdx,
    atomic::{AtomicU32, AtomicU64, AtomicUsize},
    packet::headers::{DPORT, FLAGS, Headers, NO_PORT, SPORT},
};

/// Datagrams that are followed at once. A new one takes the place of an old one.
const KEPT: usize = 16_384;
/// Of one port, or of few that share them: a station that sends first fragments drives out no others'.
const OF_PORT: usize = 256;
/// Places in which a datagram may be: the oldest there makes room.
const WAYS: usize = 4;
/// RFC 791 has 15 s, and ends wait up to 60.
const KEPT_S: u32 = 30;

#[derive(Default)]
struct Kept {
    /// Odd while a worker writes the rest, and another one after each time.
    version: AtomicU32,
    /// A hash of whose datagram it is, under a secret; 0 if none.
    whose: AtomicU64,
    ports: AtomicU32,
    /// An echo's identifier, and where the first fragment ends.
    echo_and_end: AtomicU32,
    seen_s: AtomicU32,
    /// 0 if its protocol has none.
    has_ports: AtomicU32,
}

/// What is known of a fragment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Inherited {
    /// Its ports.
    Yes,
    /// Nothing yet: its first one did not come.
    Early,
    /// It writes over its first one.
    Overlaps,
}

/// See the module.
pub(super) struct Fragments {
    kept: Box<[Kept]>,
    /// How many first ones were noted.
    noted: AtomicUsize,
}

impl Default for Fragments {
    fn default() -> Self {
        Fragments { kept: (0..KEPT).map(|_| Kept::default()).collect(), noted: AtomicUsize::new(0) }
    }
}

impl Fragments {
    fn set(&self, port: PortIdx, whose: u64) -> &[Kept] {
        let region = port.get() % (KEPT / OF_PORT) * OF_PORT;
        &self.kept[region + (whose >> 32) as usize % (OF_PORT / WAYS) * WAYS..][..WAYS]
    }

    /// Whether the first fragment of a datagram of this port was seen.
    pub fn has_first(&self, (port, whose): (PortIdx, u64), now_s: u32) -> bool {
        let is_it = |k: &Kept| k.whose.load(Relaxed) == whose | 1 && k.is_young(now_s);
        self.set(port, whose | 1).iter().any(is_it)
    }

    /// Another number whenever a first fragment was noted.
    pub fn noted(&self) -> usize {
        self.noted.load(Relaxed)
    }

    /// What is known of a fragment now; it is lent its ports. `echo_id` is the first one's, if it is an echo; it is noted if it is to be kept.
    #[cold]
    pub fn inherit(
        &self,
        h: &mut Headers,
        (port, whose): (PortIdx, u64),
        echo_id: u16,
        now_s: u32,
        keeps: bool,
    ) -> Inherited {
        let whose = whose | 1;
        let set = self.set(port, whose);
        let kept = set.iter().find(|k| k.whose.load(Relaxed) == whose);
        if !h.is_later_fragment() {
            let oldest = || set.iter().min_by_key(|k| (k.whose.load(Relaxed) != 0, k.seen_s.load(Relaxed)));
            if !h.broken
                && keeps
                && let Some(kept) = kept.or_else(oldest)
                && let Some(version) = kept.begin_write()
            {
                kept.whose.store(whose, Relaxed);
                kept.ports.store(h.words[SPORT] << 16 | h.words[DPORT] & 0xffff, Relaxed);
                kept.echo_and_end.store(u32::from(echo_id) << 16 | u32::from(h.fragment_edge()), Relaxed);
                kept.has_ports.store(u32::from(h.words[SPORT] != NO_PORT), Relaxed);
                kept.seen_s.store(now_s, Relaxed);
                kept.version.store(version.wrapping_add(2), Release);
                self.noted.fetch_add(1, Relaxed);
            }
            return Inherited::Yes;
        }
        let Some(kept) = kept.filter(|k| k.is_young(now_s)) else { return Inherited::Early };
        let version = kept.version.load(Acquire);
        let is_its = kept.whose.load(Relaxed) == whose;
        let (ports, echo_and_end) = (kept.ports.load(Relaxed), kept.echo_and_end.load(Relaxed));
        let has_ports = kept.has_ports.load(Relaxed) != 0;
        // Another worker may be writing, or have written, another's.
        fence(Acquire);
        if !is_its || version % 2 == 1 || kept.version.load(Relaxed) != version {
            return Inherited::Early;
        }
        if h.fragment_edge() < echo_and_end as u16 {
            return Inherited::Overlaps;
        }
        h.inherited_id = (echo_and_end >> 16) as u16;
        if !has_ports {
            return Inherited::Yes;
        }
        (h.words[SPORT], h.words[DPORT], h.words[FLAGS]) = (ports >> 16, ports & 0xffff, NO_PORT);
        Inherited::Yes
    }
}

impl Kept {
    /// Its version, if it may be written by the caller alone, until a later version is stored.
    fn begin_write(&self) -> Option<u32> {
        let version = self.version.load(Relaxed);
        let may = version.is_multiple_of(2)
            && self.version.compare_exchange(version, version.wrapping_add(1), Acquire, Relaxed).is_ok();
        // A reader that sees the new rest must not miss that it was being written.
        fence(Release);
        may.then_some(version)
    }

    fn is_young(&self, now_s: u32) -> bool {
        now_s.saturating_sub(self.seen_s.load(Relaxed)) <= KEPT_S
    }
}
