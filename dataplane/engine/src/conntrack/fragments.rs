//! Later fragments have no ports: they are lent those of their first one, for as long as an end waits for
//! the rest of a datagram. One that comes before its first has none, and is dropped where ports matter.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::headers::{DPORT, FLAGS, Headers, NO_PORT, SPORT};

/// Datagrams that are followed at once. A new one takes the place of an old one.
const KEPT: usize = 4096;
/// RFC 791 has 15 s, and ends wait up to 60.
const KEPT_S: u32 = 30;

#[derive(Default)]
struct Kept {
    /// A hash of whose datagram it is, under a secret; 0 if none, or while it is written.
    whose: AtomicU64,
    ports: AtomicU32,
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
    /// Whether the ports of a fragment are known now.
    #[cold]
    pub fn follow(&self, h: &mut Headers, whose: u64, now_s: u32) -> bool {
        let whose = whose | 1;
        let kept = &self.0[(whose >> 32) as usize % KEPT];
        if !h.is_later_fragment() {
            if h.words[SPORT] != NO_PORT {
                kept.whose.store(0, Relaxed);
                kept.ports.store(h.words[SPORT] << 16 | h.words[DPORT], Relaxed);
                kept.seen_s.store(now_s, Relaxed);
                kept.whose.store(whose, std::sync::atomic::Ordering::Release);
            }
            return true;
        }
        let known = kept.whose.load(std::sync::atomic::Ordering::Acquire) == whose;
        if !known || now_s.saturating_sub(kept.seen_s.load(Relaxed)) > KEPT_S {
            return false;
        }
        let ports = kept.ports.load(Relaxed);
        (h.words[SPORT], h.words[DPORT], h.words[FLAGS]) = (ports >> 16, ports & 0xffff, NO_PORT);
        true
    }
}
