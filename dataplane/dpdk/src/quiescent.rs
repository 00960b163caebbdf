//! Quiescent states: how a thread that takes something away knows that no worker uses it any
//! more (the idea of DPDK's rte_rcu_qsbr and of the kernel's RCU).
//!
//! A worker tells between two rounds of its loop that it holds nothing from before
//! ([`Reader::pass`]). Whoever takes something away first makes it unreachable, then calls
//! [`Domain::synchronize`], which returns when every worker has reported that since. A [`Guard`]
//! borrows the reader, so the compiler sees that nothing taken under it outlives the round.

use std::{
    any::TypeId,
    marker::PhantomData,
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Release, SeqCst},
            fence,
        },
    },
    time::Duration,
};

use parking_lot::Mutex;

/// A reader that sleeps, or has ended, keeps no thread waiting.
const OFFLINE: u64 = u64::MAX;

#[repr(align(128))]
struct Slot(AtomicU64);

/// The dataplane's workers, which use the devices of guests.
pub enum Workers {}

/// The readers that one [`Domain::synchronize`] waits for. `D` names it: there is one domain of each name, so that a guard of
/// another one does not pass for one of this.
pub struct Domain<D> {
    epoch: AtomicU64,
    slots: Box<[Slot]>,
    name: PhantomData<fn() -> D>,
}

/// One worker's part in a domain.
pub struct Reader<D> {
    domain: Arc<Domain<D>>,
    index: usize,
}

/// When a quiescent state began.
#[derive(Clone, Copy)]
pub struct Epoch(u64);

/// Within it, what the domain protects stays.
pub struct Guard<'a, D>(PhantomData<&'a Reader<D>>);

impl<D> Clone for Guard<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D> Copy for Guard<'_, D> {}

/// The names of the domains that there are.
static NAMES: Mutex<Vec<TypeId>> = Mutex::new(Vec::new());

impl<D: 'static> Domain<D> {
    /// A domain and its `n` readers, all offline.
    ///
    /// # Panics
    /// If there is one of this name.
    pub fn new(n: usize) -> (Arc<Self>, Vec<Reader<D>>) {
        let mut names = NAMES.lock();
        assert!(!names.contains(&TypeId::of::<D>()), "one domain of each name");
        names.push(TypeId::of::<D>());
        drop(names);
        let slots = (0..n).map(|_| Slot(AtomicU64::new(OFFLINE))).collect();
        let domain = Arc::new(Domain { epoch: AtomicU64::new(1), slots, name: PhantomData });
        let readers = (0..n).map(|index| Reader { domain: domain.clone(), index }).collect();
        (domain, readers)
    }
}

impl<D> Domain<D> {
    /// Waits until every reader that is online has passed a quiescent state that began after
    /// this call. Not to be called by a reader.
    pub fn synchronize(&self) {
        let target = self.retire();
        let mut spins = 0u32;
        while !self.is_past(target) {
            spins += 1;
            if spins < 100 { std::thread::yield_now() } else { std::thread::sleep(Duration::from_micros(20)) }
        }
    }

    /// Begins an epoch: what the caller made unreachable before is so for every reader that sees it.
    pub fn retire(&self) -> u64 {
        let epoch = self.epoch.fetch_add(1, SeqCst) + 1;
        fence(SeqCst);
        epoch
    }

    /// Whether every reader that is online has passed a quiescent state that began in this epoch or a later one.
    pub fn is_past(&self, epoch: u64) -> bool {
        self.slots.iter().all(|slot| slot.0.load(Acquire) >= epoch)
    }
}

impl<D> Reader<D> {
    /// Begins a quiescent state: from here to [`Reader::pass`] the reader lets go of what it
    /// holds from before.
    #[inline(always)]
    pub fn begin(&self) -> Epoch {
        Epoch(self.domain.epoch.load(Acquire))
    }

    /// Reports that it holds nothing from before `epoch` was taken.
    #[inline(always)]
    pub fn pass(&mut self, epoch: Epoch) {
        self.domain.slots[self.index].0.store(epoch.0, Release);
    }

    /// Until [`Reader::online`], no thread waits for this reader.
    pub fn offline(&mut self) {
        self.domain.slots[self.index].0.store(OFFLINE, Release);
    }

    /// Back again. What was made unreachable before is not reachable after it.
    pub fn online(&mut self) {
        self.domain.slots[self.index].0.store(self.domain.epoch.load(SeqCst), SeqCst);
        // The announcement comes before any later look at what the domain protects.
        fence(SeqCst);
    }

    /// A section in which what the domain protects may be used. The reader must be online.
    #[inline(always)]
    pub fn guard(&self) -> Guard<'_, D> {
        debug_assert_ne!(self.domain.slots[self.index].0.load(Acquire), OFFLINE);
        Guard(PhantomData)
    }
}

impl<D> Drop for Reader<D> {
    fn drop(&mut self) {
        self.offline();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicUsize};

    #[test]
    fn synchronize_waits_for_whoever_is_online() {
        enum Test {}
        let (domain, mut readers) = Domain::<Test>::new(2);
        let mut r = readers.pop().unwrap();
        let current = AtomicUsize::new(0);
        let freed: Vec<AtomicBool> = (0..200).map(|_| AtomicBool::new(false)).collect();
        let stop = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                r.online();
                let mut n = 0u64;
                while !stop.load(SeqCst) {
                    let e = r.begin();
                    r.pass(e);
                    let seen = {
                        let _g = r.guard();
                        current.load(SeqCst)
                    };
                    std::hint::spin_loop();
                    assert!(!freed[seen].load(SeqCst), "{seen} was freed under a reader");
                    n += 1;
                    if n.is_multiple_of(1_000) {
                        r.offline();
                        std::thread::yield_now();
                        r.online();
                    }
                }
            });
            for i in 1..200 {
                let old = current.swap(i, SeqCst);
                domain.synchronize();
                freed[old].store(true, SeqCst);
            }
            stop.store(true, SeqCst);
        });
    }
}
