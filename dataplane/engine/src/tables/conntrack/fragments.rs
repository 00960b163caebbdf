//! Later fragments have no ports: they are lent those of their first one, for as long as an end waits for
//! the rest of a datagram. One that comes before its first has none, and is dropped where ports matter.

use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
    fence,
};

use crate::{
    PortIdx,
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
    /// A hash of whose datagram it is, under a secret; 0 if none, or while it is written.
    whose: AtomicU64,
    ports: AtomicU32,
    echo_id: AtomicU32,
    seen_s: AtomicU32,
}

/// See the module.
pub(super) struct Fragments(Box<[Kept]>);

impl Default for Fragments {
    fn default() -> Self {
        Fragments((0..KEPT).map(|_| Kept::default()).collect())
    }
}

impl Fragments {
    /// Whether the ports of a fragment are known now. `echo_id` is the first one's, if it is an echo; it is noted if it is to be kept.
    #[cold]
    pub fn follow(
        &self,
        h: &mut Headers,
        (port, whose): (PortIdx, u64),
        echo_id: u16,
        now_s: u32,
        keeps: bool,
    ) -> bool {
        let whose = whose | 1;
        let region = port.get() % (KEPT / OF_PORT) * OF_PORT;
        let set = &self.0[region + (whose >> 32) as usize % (OF_PORT / WAYS) * WAYS..][..WAYS];
        let kept = set.iter().find(|k| k.whose.load(Acquire) == whose);
        if !h.is_later_fragment() {
            let oldest = || set.iter().min_by_key(|k| (k.whose.load(Relaxed) != 0, k.seen_s.load(Relaxed)));
            if h.words[SPORT] != NO_PORT
                && keeps
                && let Some(kept) = kept.or_else(oldest)
            {
                kept.whose.store(0, Relaxed);
                kept.ports.store(h.words[SPORT] << 16 | h.words[DPORT], Relaxed);
                kept.echo_id.store(u32::from(echo_id), Relaxed);
                kept.seen_s.store(now_s, Relaxed);
                kept.whose.store(whose, Release);
            }
            return true;
        }
        let is_young = |k: &&Kept| now_s.saturating_sub(k.seen_s.load(Relaxed)) <= KEPT_S;
        let Some(kept) = kept.filter(is_young) else { return false };
        let (ports, echo_id) = (kept.ports.load(Relaxed), kept.echo_id.load(Relaxed));
        // Another worker may have begun to write another's.
        fence(Acquire);
        if kept.whose.load(Relaxed) != whose {
            return false;
        }
        h.lent_id = echo_id as u16;
        (h.words[SPORT], h.words[DPORT], h.words[FLAGS]) = (ports >> 16, ports & 0xffff, NO_PORT);
        true
    }
}
