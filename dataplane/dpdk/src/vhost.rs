//! Guests: vhost-user sockets, through librte_vhost itself.
//!
//! DPDK's vhost thread negotiates with QEMU and calls back when a guest's device starts, stops
//! or switches a ring. A started device has a number, `vid`; workers read it from [`Shared`] for
//! every burst, under a [`Guard`]. When the device goes, the callback first takes the number
//! away, then waits until no worker is under a guard, and only then lets DPDK free the device.

use std::{
    collections::{HashMap, hash_map::Entry},
    ffi::{CStr, CString, c_char, c_int},
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicI32, AtomicU32, AtomicU64,
            Ordering::{Acquire, Relaxed, Release, SeqCst},
        },
    },
};

use arrayvec::ArrayVec;
use dpdk_sys as sys;
use parking_lot::Mutex;

use crate::{
    DpdkError, Mbuf, check,
    eal::Eal,
    mempool::Mempool,
    offload::Caps,
    port::{adopt, hand_over},
    quiescent::{Domain, Guard, Workers},
    sleep::Sleeper,
};

/// The most queue pairs of one guest that are used.
pub const MAX_QUEUE_PAIRS: u16 = 16;
/// The longest socket path, as the kernel has it, without the NUL.
const MAX_PATH: usize = 107;

const NO_DEVICE: i32 = -1;
/// Frames that rte_vhost_enqueue_burst and rte_vhost_dequeue_burst move at most.
const AT_ONCE: usize = 32;

/// Who listens on the socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// QEMU does; Dunlin connects, and connects again whenever it is gone.
    Client,
    /// Dunlin does.
    Server,
}

struct Shared {
    path: CString,
    vid: AtomicI32,
    /// The connection whose guest this is.
    connection: AtomicI32,
    /// Being unregistered: workers have let go already, and nothing starts any more.
    closing: AtomicBool,
    features: AtomicU64,
    /// One bit for each ring that the guest has enabled.
    rings: AtomicU32,
    /// By queue pair: the guest's kick, which it sends only while notifications are on.
    kicks: Mutex<[Option<Arc<OwnedFd>>; MAX_QUEUE_PAIRS as usize]>,
    domain: Arc<Domain<Workers>>,
    changed: Box<dyn Fn() + Send + Sync>,
}

static PORTS: Mutex<Option<HashMap<CString, Arc<Shared>>>> = Mutex::new(None);

const CALLBACKS: &sys::rte_vhost_device_ops = &sys::rte_vhost_device_ops {
    new_device: Some(new_device),
    destroy_device: Some(destroy_device),
    vring_state_changed: Some(vring_state_changed),
    features_changed: Some(features_changed),
    new_connection: Some(new_connection),
    destroy_connection: Some(destroy_connection),
    guest_notified: None,
    reserved: [std::ptr::null_mut()],
};

/// One vhost-user socket, registered with DPDK until dropped.
pub struct VhostPort(Arc<Shared>);

/// What is known of the guest behind a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestState {
    /// The other side of the socket is there.
    pub connected: bool,
    /// The guest's driver has started the device: frames flow.
    pub running: bool,
    /// Queue pairs it has enabled.
    pub queue_pairs: u16,
    /// Merges receive buffers (VIRTIO_NET_F_MRG_RXBUF).
    pub mergeable: bool,
    /// What it takes without help.
    pub caps: Caps,
}

impl VhostPort {
    /// Registers `path`. `changed` is called on DPDK's thread whenever [`VhostPort::state`] may
    /// have changed; it must not block. Workers that use the port's queues are readers of
    /// `domain`.
    pub fn register(
        _: &Eal,
        path: &str,
        role: Role,
        domain: Arc<Domain<Workers>>,
        changed: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self, DpdkError> {
        let what = || format!("vhost-user socket '{path}'");
        if path.len() > MAX_PATH {
            return Err(DpdkError::new(what(), format!("{} octets long; {MAX_PATH} are the most", path.len())));
        }
        let c_path = CString::new(path).map_err(|_| DpdkError::new(what(), "it has a NUL in it"))?;
        let shared = Arc::new(Shared {
            path: c_path.clone(),
            vid: AtomicI32::new(NO_DEVICE),
            connection: AtomicI32::new(NO_DEVICE),
            closing: AtomicBool::new(false),
            features: AtomicU64::new(0),
            rings: AtomicU32::new(0),
            kicks: Mutex::default(),
            domain,
            changed: Box::new(changed),
        });
        match PORTS.lock().get_or_insert_default().entry(c_path.clone()) {
            Entry::Occupied(_) => return Err(DpdkError::new(what(), "another port has it already")),
            Entry::Vacant(v) => v.insert(shared.clone()),
        };
        let port = VhostPort(shared);
        let flags = if role == Role::Client { sys::RTE_VHOST_USER_CLIENT as u64 } else { 0 };
        // UFO is long dead; ECN needs CWR handling that segmentation in software leaves to the
        // guests: neither is offered. Nor are packed rings: where the switch was in them stands nowhere in the guest's
        // memory, so that a switch that is restarted can't go on there (QEMU, docs/interop/vhost-user, inflight I/O
        // tracking), and the guest is cut off until it resets its driver.
        let without = 1u64 << sys::VIRTIO_NET_F_HOST_UFO
            | 1 << sys::VIRTIO_NET_F_GUEST_UFO
            | 1 << sys::VIRTIO_NET_F_HOST_ECN
            | 1 << sys::VIRTIO_NET_F_GUEST_ECN
            | 1 << sys::VIRTIO_F_RING_PACKED;
        // SAFETY: DPDK runs; the path is NUL-terminated and the callbacks are static.
        unsafe {
            check(what(), sys::rte_vhost_driver_register(c_path.as_ptr(), flags))?;
            check(what(), sys::rte_vhost_driver_disable_features(c_path.as_ptr(), without))?;
            check(what(), sys::rte_vhost_driver_callback_register(c_path.as_ptr(), CALLBACKS))?;
            check(what(), sys::rte_vhost_driver_start(c_path.as_ptr()))?;
        }
        Ok(port)
    }

    /// The guest's state now.
    pub fn state(&self) -> GuestState {
        let features = self.0.features.load(Acquire);
        let has = |f: u32| features & 1 << f != 0;
        GuestState {
            connected: self.0.connection.load(Acquire) != NO_DEVICE,
            running: self.0.vid.load(Acquire) != NO_DEVICE,
            queue_pairs: self.0.queue_pairs(),
            mergeable: has(sys::VIRTIO_NET_F_MRG_RXBUF),
            caps: self.0.caps(),
        }
    }

    /// The handles of one queue pair. Each may be given out once.
    pub fn queue(&self, pair: u16, pool: &Mempool) -> VhostRxQueue {
        VhostRxQueue { shared: self.0.clone(), pair, pool: pool.clone() }
    }

    /// A handle to send to the guest; `spread` picks among its queue pairs.
    pub fn sender(&self, spread: u16) -> VhostTxQueue {
        VhostTxQueue { shared: self.0.clone(), spread }
    }
}

impl Drop for VhostPort {
    fn drop(&mut self) {
        // Workers let go first: DPDK holds a lock during the call that its own thread may want
        // while it holds a ring that a worker waits for.
        self.0.closing.store(true, SeqCst);
        self.0.vid.store(NO_DEVICE, SeqCst);
        self.0.domain.synchronize();
        // SAFETY: registered by this object; the call returns when the connection is closed, and
        // destroy_device has run by then. PORTS is not locked: the callbacks lock it.
        unsafe { sys::rte_vhost_driver_unregister(self.0.path.as_ptr()) };
        if let Some(ports) = PORTS.lock().as_mut() {
            ports.remove(&self.0.path);
        }
    }
}

impl Shared {
    fn queue_pairs(&self) -> u16 {
        // Ring 2i takes frames to the guest, ring 2i + 1 those from it. Enabled from 0 on.
        (self.rings.load(Acquire) & 0x5555_5555).trailing_ones_even()
    }

    fn caps(&self) -> Caps {
        let features = self.features.load(Acquire);
        let has = |f: u32| features & 1 << f != 0;
        let checksum = has(sys::VIRTIO_NET_F_GUEST_CSUM);
        Caps {
            checksum,
            tso4: checksum && has(sys::VIRTIO_NET_F_GUEST_TSO4),
            tso6: checksum && has(sys::VIRTIO_NET_F_GUEST_TSO6),
            chains: true,
        }
    }

    /// Takes note of the event of a ring that the guest sends by. It is another one after each start of the ring.
    fn note_kick(&self, vid: c_int, ring: u16) {
        let pair = usize::from(ring / 2);
        if ring.is_multiple_of(2) || pair >= usize::from(MAX_QUEUE_PAIRS) {
            return;
        }
        let mut vring = sys::rte_vhost_vring::default();
        // SAFETY: called from a callback for vid, so the device is there; vring is ours to write.
        let code = unsafe { sys::rte_vhost_get_vhost_vring(vid, ring, &mut vring) };
        let fd = (code == 0 && vring.kickfd >= 0).then_some(vring.kickfd);
        // A descriptor of our own: DPDK closes its one when it likes.
        // SAFETY: DPDK keeps it open while the callback runs.
        let own = fd.and_then(|fd| unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned().ok());
        // It is the guest's process that chose it: a worker must not wait in it.
        let own = own.filter(crate::sleep::is_harmless_event);
        self.kicks.lock()[pair] = own.map(Arc::new);
    }

    fn set_ring(&self, ring: u16, enabled: bool) {
        if ring < MAX_QUEUE_PAIRS * 2 {
            let bit = 1u32 << ring;
            match enabled {
                true => self.rings.fetch_or(bit, SeqCst),
                false => self.rings.fetch_and(!bit, SeqCst),
            };
        }
    }
}

trait EvenBits {
    fn trailing_ones_even(self) -> u16;
}

impl EvenBits for u32 {
    /// How many of bits 0, 2, 4, … are set before the first that is not.
    fn trailing_ones_even(self) -> u16 {
        ((self | 0xaaaa_aaaa).trailing_ones() / 2) as u16
    }
}

/// Frames from a guest, by one of its queue pairs.
pub struct VhostRxQueue {
    shared: Arc<Shared>,
    pair: u16,
    pool: Mempool,
}

impl VhostRxQueue {
    /// Its number among the guest's queue pairs.
    pub fn number(&self) -> u16 {
        self.pair
    }

    /// Lets frames that the guest sends by it end a sleep; whether they will. Until [`VhostRxQueue::poll_again`].
    pub fn wake(&self, guard: Guard<'_, Workers>, sleeper: &mut Sleeper) -> bool {
        // Of no guest nothing comes.
        if !self.is_on() {
            return true;
        }
        let kick = self.shared.kicks.lock()[usize::from(self.pair)].clone();
        let Some(kick) = kick else { return false };
        self.notify(guard, true);
        sleeper.wait_for_event(kick);
        true
    }

    /// Turns the guest's notifications off: the queue is polled.
    pub fn poll_again(&self, guard: Guard<'_, Workers>) {
        self.notify(guard, false);
    }

    fn is_on(&self) -> bool {
        let ring = self.pair * 2 + 1;
        self.shared.vid.load(Acquire) != NO_DEVICE && self.shared.rings.load(Relaxed) & 1 << ring != 0
    }

    fn notify(&self, _: Guard<'_, Workers>, enable: bool) {
        let vid = self.shared.vid.load(Acquire);
        if vid != NO_DEVICE {
            // SAFETY: vid is a started device, which destroy_device keeps until the guard is gone.
            unsafe { sys::rte_vhost_enable_guest_notification(vid, self.pair * 2 + 1, enable.into()) };
        }
    }

    /// Takes up to N frames into the empty `burst`; how many.
    #[inline(always)]
    pub fn receive<F: From<Mbuf>, const N: usize>(
        &mut self,
        _: Guard<'_, Workers>,
        burst: &mut ArrayVec<F, N>,
    ) -> usize {
        let vid = self.shared.vid.load(Acquire);
        let ring = self.pair * 2 + 1;
        if vid == NO_DEVICE || self.shared.rings.load(Relaxed) & 1 << ring == 0 {
            return 0;
        }
        let mut raw = [MaybeUninit::uninit(); N];
        let mut n = 0;
        for part in raw.chunks_mut(AT_ONCE) {
            let (first, most) = (part.as_mut_ptr().cast(), part.len() as u16);
            // SAFETY: vid is a started device, which destroy_device keeps until the guard is gone;
            // the pool lives; the part has room for so many. DPDK itself locks the ring and checks what the
            // guest wrote into it.
            let got = unsafe { sys::rte_vhost_dequeue_burst(vid, ring, self.pool.as_ptr(), first, most) };
            n += usize::from(got);
            if got < most {
                break;
            }
        }
        // SAFETY: the first n pointers are new buffers, handed over: every part before the last one is full.
        unsafe { adopt(&raw[..n], burst) };
        n
    }
}

/// Frames to a guest.
pub struct VhostTxQueue {
    shared: Arc<Shared>,
    spread: u16,
}

impl VhostTxQueue {
    /// What the guest takes without help; it changes when another driver starts there.
    #[inline(always)]
    pub fn caps(&self) -> Caps {
        self.shared.caps()
    }

    /// Sends frames from the front of `burst`; those that found no room stay in it. How many
    /// the guest got.
    #[inline(always)]
    pub fn transmit<F: Into<Mbuf> + From<Mbuf>, const N: usize>(
        &mut self,
        _: Guard<'_, Workers>,
        burst: &mut ArrayVec<F, N>,
    ) -> usize {
        let vid = self.shared.vid.load(Acquire);
        let pairs = self.shared.queue_pairs();
        if vid == NO_DEVICE || pairs == 0 {
            return 0;
        }
        let mut raw = [MaybeUninit::uninit(); N];
        let n = hand_over(burst, &mut raw);
        let ring = self.spread % pairs * 2;
        let mut sent = 0;
        // DPDK takes no more than so many at a time.
        for part in raw[..n].chunks_mut(AT_ONCE) {
            // SAFETY: vid as in receive(); the chains are ours and only read: the frames are
            // copied into the guest's memory, whatever it does there meanwhile.
            let took = unsafe { sys::rte_vhost_enqueue_burst(vid, ring, part.as_mut_ptr().cast(), part.len() as u16) };
            sent += took as usize;
            if (took as usize) < part.len() {
                break;
            }
        }
        // SAFETY: all n chains are still ours. The sent ones are given back to their pool, the
        // others adopted again, each once.
        unsafe {
            sys::rte_pktmbuf_free_bulk(raw.as_mut_ptr().cast(), sent as u32);
            adopt(&raw[sent..n], burst);
        }
        sent
    }
}

fn shared_of(vid: c_int) -> Option<Arc<Shared>> {
    let mut path = [0 as c_char; 512];
    // SAFETY: called from a callback for vid, so the device is there; the buffer's size is given
    // and the result NUL-terminated within it.
    let path = unsafe {
        if sys::rte_vhost_get_ifname(vid, path.as_mut_ptr(), path.len()) != 0 {
            return None;
        }
        CStr::from_ptr(path.as_ptr())
    };
    PORTS.lock().as_ref()?.get(path).cloned()
}

extern "C" fn new_connection(vid: c_int) -> c_int {
    let Some(s) = shared_of(vid) else { return -1 };
    // One guest a socket: the second is disconnected.
    if s.closing.load(SeqCst) || s.connection.compare_exchange(NO_DEVICE, vid, SeqCst, SeqCst).is_err() {
        return -1;
    }
    s.rings.store(0, SeqCst);
    (s.changed)();
    0
}

/// What `vid` shares, if it is the connection that counts.
fn guest_of(vid: c_int) -> Option<Arc<Shared>> {
    shared_of(vid).filter(|s| s.connection.load(SeqCst) == vid)
}

extern "C" fn destroy_connection(vid: c_int) {
    if let Some(s) = guest_of(vid) {
        s.connection.store(NO_DEVICE, SeqCst);
        (s.changed)();
    }
}

extern "C" fn new_device(vid: c_int) -> c_int {
    let Some(s) = guest_of(vid).filter(|s| !s.closing.load(SeqCst)) else { return -1 };
    let mut features = 0u64;
    // SAFETY: the device is there while its callback runs.
    let rings = unsafe {
        sys::rte_vhost_get_negotiated_features(vid, &mut features);
        sys::rte_vhost_get_vring_num(vid)
    };
    if rings > MAX_QUEUE_PAIRS * 2 {
        tracing::warn!("guest on {:?}: {} queue pairs; give it at most {MAX_QUEUE_PAIRS}", s.path, rings / 2);
        return -1;
    }
    for ring in 0..rings {
        // SAFETY: as above. Workers poll: no notifications, but while they sleep.
        unsafe { sys::rte_vhost_enable_guest_notification(vid, ring, 0) };
        s.note_kick(vid, ring);
    }
    s.features.store(features, Release);
    s.vid.store(vid, SeqCst);
    (s.changed)();
    0
}

extern "C" fn destroy_device(vid: c_int) {
    if let Some(s) = guest_of(vid) {
        s.vid.store(NO_DEVICE, SeqCst);
        // When closing, the workers have let go before.
        if !s.closing.load(SeqCst) {
            s.domain.synchronize();
        }
        (s.changed)();
    }
}

extern "C" fn vring_state_changed(vid: c_int, ring: u16, enable: c_int) -> c_int {
    if let Some(s) = guest_of(vid) {
        s.set_ring(ring, enable != 0);
        s.note_kick(vid, ring);
        (s.changed)();
    }
    0
}

extern "C" fn features_changed(vid: c_int, features: u64) -> c_int {
    if let Some(s) = guest_of(vid) {
        s.features.store(features, Release);
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_pairs_count_from_the_first() {
        for (rings, pairs) in [(0b0u32, 0), (0b1, 1), (0b101, 2), (0b111, 2), (0b10100, 0), (u32::MAX, 16)] {
            assert_eq!((rings & 0x5555_5555).trailing_ones_even(), pairs, "{rings:b}");
        }
    }
}
