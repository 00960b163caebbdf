//! Kernel interfaces by AF_PACKET (packet(7); Documentation/networking/packet_mmap.rst), with what DPDK's driver does not
//! do: segments and checksums that a sender on the same machine leaves to the device go on whole and unfinished, by the
//! header of `offload/vnet.rs`.
//!
//! **Receiving.** A ring of small slots that the kernel fills without a system call of ours. A frame that is larger than a
//! slot is queued at the socket beside it (PACKET_COPY_THRESH), and read from there into as many buffers as it needs.
//!
//! **Sending.** A burst is one sendmmsg. The kernel's transmit ring is of no use: it gives a slot back as soon as
//! the frame has no sender any more, which on a veth is before its octets were read.
//!
//! **Queues.** Each is a socket of its own; the kernel spreads connections over them (PACKET_FANOUT_HASH).

use std::{
    io,
    mem::zeroed,
    os::fd::{AsRawFd, OwnedFd},
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{
            AtomicU32, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
};

use arrayvec::ArrayVec;
use nix::libc;

use super::{
    pieces::{Spare, gather},
    shield,
    sockets::{self, option, set_option},
};
use crate::{
    DpdkError, Mbuf,
    mempool::Mempool,
    offload::{Caps, vnet},
    sleep::Sleeper,
};

/// Octets of a slot, for a frame of MTU 1,500 behind two tags and what the kernel puts in front. No power of two: frames
/// that are as far apart as that would share few lines of the caches.
const SLOT: usize = 1728;
/// The kernel wants whole pages.
const BLOCK: usize = 64 * 1024;
const SLOTS_OF_BLOCK: usize = BLOCK / SLOT;
const BLOCKS: usize = 32;
const SLOTS: usize = SLOTS_OF_BLOCK * BLOCKS;
/// Octets, as the kernel counts them, of large frames that wait, each way.
const QUEUED: i32 = 16 << 20;
/// Octets after which no more are read before others have their turn.
const ENOUGH: u32 = 1 << 20;
/// Frames of one system call.
const AT_ONCE: usize = 64;
/// Their pieces.
const PIECES: usize = 512;

/// TPACKET_V2.
const VERSION: i32 = 1;

/// An interface and its queues.
pub struct PacketPort {
    queues: Vec<Arc<Socket>>,
    /// Keeps the interface's frames from the host, where it does.
    shield: Option<OwnedFd>,
    /// Frames that the kernel has reported as lost. It reports each once.
    missed: AtomicU64,
}

struct Socket {
    fd: OwnedFd,
    ring: NonNull<u8>,
    /// Large frames of which the kernel could not keep the rest.
    cut: AtomicU64,
}

// SAFETY: the ring is memory that lives as long as the socket; a slot of it is read by the one receive queue only.
unsafe impl Send for Socket {}
// SAFETY: as above.
unsafe impl Sync for Socket {}

impl Drop for Socket {
    fn drop(&mut self) {
        // SAFETY: mapped at its opening with this length, and no reference into it is left: queues hold the socket.
        unsafe { libc::munmap(self.ring.as_ptr().cast(), BLOCK * BLOCKS) };
    }
}

impl PacketPort {
    /// Opens the interface `name` of number `ifindex` with so many queues, at least 1. With `alone`, nothing that it
    /// receives reaches the host's own stack.
    ///
    /// # Errors
    /// The kernel's, among them that it can't keep frames from the host.
    pub fn open(name: &str, ifindex: u32, queues: usize, alone: bool) -> Result<Self, DpdkError> {
        let failed = |e: io::Error| DpdkError::new(format!("interface '{name}': AF_PACKET"), e.to_string());
        let shield = if alone { Some(shield::raise(ifindex).map_err(failed)?) } else { None };
        let all: io::Result<Vec<Socket>> = (0..queues).map(|_| Socket::open(ifindex)).collect();
        let mut all = all.map_err(failed)?;
        if all.len() > 1 && share_out(&all).is_err() {
            // Linux before 6.2 can't keep what the host sends by the interface out of a group.
            all.truncate(1);
        }
        all.iter().try_for_each(Socket::begin).map_err(failed)?;
        Ok(PacketPort { queues: all.into_iter().map(Arc::new).collect(), shield, missed: AtomicU64::new(0) })
    }

    /// Whether nothing that the interface receives reaches the host's own stack.
    pub fn is_alone(&self) -> bool {
        self.shield.is_some()
    }

    /// Each queue's receiving side, which fills buffers of `pool`. To be given out once.
    pub fn rx(&self, pool: &Mempool) -> Vec<PacketRxQueue> {
        let queue = |(i, socket): (usize, &Arc<Socket>)| PacketRxQueue {
            socket: socket.clone(),
            number: i as u16,
            at: 0,
            spare: Spare::new(pool.clone()),
        };
        self.queues.iter().enumerate().map(queue).collect()
    }

    /// Each queue's sending side.
    pub fn tx(&self) -> Vec<PacketTxQueue> {
        self.queues.iter().map(|s| PacketTxQueue { socket: s.clone() }).collect()
    }

    /// Frames that arrived and were lost because the switch did not read fast enough.
    pub fn missed(&self) -> u64 {
        let lost = |s: &Arc<Socket>| {
            option::<sockets::PacketStatistics>(s.fd.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_STATISTICS).drops
        };
        let lost: u64 = self.queues.iter().map(|s| u64::from(lost(s))).sum();
        let cut: u64 = self.queues.iter().map(|s| s.cut.load(Relaxed)).sum();
        self.missed.fetch_add(lost, Relaxed) + lost + cut
    }
}

/// Lets the kernel spread frames over the sockets.
fn share_out(all: &[Socket]) -> io::Result<()> {
    // The first one is given a number that no other group has. The sockets' own PACKET_IGNORE_OUTGOING is not asked in a group.
    let hash = (libc::PACKET_FANOUT_HASH | libc::PACKET_FANOUT_FLAG_IGNORE_OUTGOING) << 16;
    let join = |s: &Socket, how: u32| set_option(s.fd.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_FANOUT, &how);
    join(&all[0], hash | libc::PACKET_FANOUT_FLAG_UNIQUEID << 16)?;
    let group = option::<u32>(all[0].fd.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_FANOUT) & 0xffff;
    all[1..].iter().try_for_each(|s| join(s, hash | group))
}

impl Socket {
    /// A socket that is bound, and does not take any frame yet.
    fn open(ifindex: u32) -> io::Result<Self> {
        let fd = sockets::own_packet_socket()?;
        let set = |name, value: i32| set_option(fd.as_raw_fd(), libc::SOL_PACKET, name, &value);
        set(libc::PACKET_VERSION, VERSION)?;
        set(libc::PACKET_VNET_HDR, 1)?;
        set(libc::PACKET_IGNORE_OUTGOING, 1)?;
        set(libc::PACKET_COPY_THRESH, 1)?;
        for name in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
            set_option(fd.as_raw_fd(), libc::SOL_SOCKET, name, &QUEUED)?;
        }
        let ring = libc::tpacket_req {
            tp_block_size: BLOCK as u32,
            tp_block_nr: BLOCKS as u32,
            tp_frame_size: SLOT as u32,
            tp_frame_nr: SLOTS as u32,
        };
        set_option(fd.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_RX_RING, &ring)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the kernel chooses the address of a new mapping of the socket's ring, which is as long as is said.
        let ring = unsafe {
            let at = libc::mmap(std::ptr::null_mut(), BLOCK * BLOCKS, protection, libc::MAP_SHARED, fd.as_raw_fd(), 0);
            if at == libc::MAP_FAILED { None } else { NonNull::new(at.cast()) }
        };
        let ring = ring.ok_or_else(io::Error::last_os_error)?;
        let socket = Socket { fd, ring, cut: AtomicU64::new(0) };
        // Until all sockets are there, the first would take what is others'.
        let nothing = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 };
        let filter = libc::sock_fprog { len: 1, filter: std::ptr::from_ref(&nothing).cast_mut() };
        set_option(socket.fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &filter)?;
        let promiscuous = libc::packet_mreq {
            mr_ifindex: ifindex as i32,
            mr_type: libc::PACKET_MR_PROMISC as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        set_option(socket.fd.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &promiscuous)?;
        // SAFETY: an address of zeros is valid: it is plain integers.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = ifindex as i32;
        // SAFETY: the kernel reads the address, of the length that is said.
        let code =
            unsafe { libc::bind(socket.fd.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as u32) };
        if code == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
    }

    /// Takes frames from now on.
    fn begin(&self) -> io::Result<()> {
        set_option(self.fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0i32)
    }

    /// The header of a slot.
    fn slot(&self, i: usize) -> NonNull<libc::tpacket2_hdr> {
        assert!(i < SLOTS);
        // SAFETY: slot i is within the ring, which is BLOCKS blocks of so many slots each, and aligned to 16.
        unsafe { self.ring.add(i / SLOTS_OF_BLOCK * BLOCK + i % SLOTS_OF_BLOCK * SLOT).cast() }
    }
}

/// Frames from the kernel, by one queue.
pub struct PacketRxQueue {
    socket: Arc<Socket>,
    number: u16,
    /// The slot that is filled next.
    at: usize,
    spare: Spare,
}

impl PacketRxQueue {
    /// Its number at the interface.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Lets what arrives by it end a sleep.
    pub fn wake(&self, sleeper: &mut Sleeper) {
        sleeper.wait_for(self.socket.fd.as_raw_fd());
    }

    /// Takes up to N frames into the empty `burst`, fewer of large ones; how many.
    #[inline]
    pub fn receive<F: From<Mbuf>, const N: usize>(&mut self, burst: &mut ArrayVec<F, N>) -> usize {
        let mut octets = 0;
        while !burst.is_full() && octets < ENOUGH {
            let slot = self.socket.slot(self.at);
            // SAFETY: the status is written by the kernel and by this queue, atomically as it asks for.
            let status = unsafe { AtomicU32::from_ptr(&raw mut (*slot.as_ptr()).tp_status) };
            let now = status.load(Acquire);
            if now & libc::TP_STATUS_USER == 0 {
                break;
            }
            // SAFETY: the slot is this queue's until its status says otherwise.
            let header = unsafe { slot.read() };
            let Some(frame) = self.frame(slot.cast(), &header, now) else { break };
            status.store(libc::TP_STATUS_KERNEL, Release);
            self.at = (self.at + 1) % SLOTS;
            let Some(mut frame) = frame else { continue };
            if now & libc::TP_STATUS_VLAN_VALID != 0 {
                let has_tpid = now & libc::TP_STATUS_VLAN_TPID_VALID != 0;
                frame.push_tag(if has_tpid { header.tp_vlan_tpid } else { 0x8100 }, header.tp_vlan_tci);
            }
            octets += frame.len();
            burst.push(F::from(frame));
        }
        burst.len()
    }

    /// What is in a slot, or beside it; `None` if there are no buffers, `Some(None)` if the rest of it is lost.
    #[inline(always)]
    fn frame(&mut self, slot: NonNull<u8>, header: &libc::tpacket2_hdr, status: u32) -> Option<Option<Mbuf>> {
        if status & libc::TP_STATUS_COPY != 0 {
            return self.large(header.tp_len);
        }
        let (at, len) = (usize::from(header.tp_mac), header.tp_snaplen as usize);
        if header.tp_len != header.tp_snaplen || at < vnet::LEN || at + len > SLOT {
            self.socket.cut.fetch_add(1, Relaxed);
            return Some(None);
        }
        // SAFETY: the slot is this queue's, and both lie in it, as was just checked.
        let (vnet, octets) = unsafe {
            let at = slot.add(at);
            (at.sub(vnet::LEN).cast::<[u8; vnet::LEN]>().read(), std::slice::from_raw_parts(at.as_ptr(), len))
        };
        let mut m = self.spare.pool().frame(octets)?;
        vnet::read(vnet, &mut m);
        Some(Some(m))
    }

    /// The next frame of so many octets that waits at the socket. Others before it are none of the ring's: what was queued
    /// when the interface went down.
    #[inline(never)]
    fn large(&mut self, len: u32) -> Option<Option<Mbuf>> {
        let fd = self.socket.fd.as_raw_fd();
        let receive = |pieces: &mut [libc::iovec]| {
            // SAFETY: a message of zeros is valid: it is plain integers and null pointers.
            let mut message: libc::msghdr = unsafe { zeroed() };
            (message.msg_iov, message.msg_iovlen) = (pieces.as_mut_ptr(), pieces.len());
            // SAFETY: each piece is memory of ours alone, of the length it says, and outlives the call.
            unsafe { libc::recvmsg(fd, &mut message, libc::MSG_DONTWAIT) }
        };
        loop {
            // SAFETY: the call says how much it wrote.
            match unsafe { self.spare.frame(receive) } {
                Ok(m) if m.len() == len => return Some(Some(m)),
                Ok(_) => _ = self.socket.cut.fetch_add(1, Relaxed),
                Err(e) if e.kind() == io::ErrorKind::OutOfMemory => return None,
                // That the interface was down is said once, before the next frame.
                Err(e) if e.raw_os_error() == Some(libc::ENETDOWN) => {}
                Err(_) => {
                    self.socket.cut.fetch_add(1, Relaxed);
                    return Some(None);
                }
            }
        }
    }
}

/// Frames to the kernel, by one queue. Clones are the same queue; the kernel lets several threads write to it.
#[derive(Clone)]
pub struct PacketTxQueue {
    socket: Arc<Socket>,
}

impl PacketTxQueue {
    /// What the kernel does by itself.
    #[inline(always)]
    pub fn caps(&self) -> Caps {
        Caps::KERNEL
    }

    /// Sends frames from the front of `burst`; from the first that the kernel refused they stay in
    /// it. How many it took.
    #[inline]
    pub fn transmit<F: Into<Mbuf> + From<Mbuf>, const N: usize>(&mut self, burst: &mut ArrayVec<F, N>) -> usize {
        let mut frames: ArrayVec<Mbuf, N> = burst.drain(..).map(F::into).collect();
        let mut sent = 0;
        while sent < frames.len() {
            let (tried, took) = self.send(&frames[sent..]);
            sent += took;
            if took < tried || tried == 0 {
                break;
            }
        }
        burst.extend(frames.drain(..).skip(sent).map(F::from));
        sent
    }

    /// Of the first of these frames, how many the kernel was given, and how many it took.
    fn send(&self, frames: &[Mbuf]) -> (usize, usize) {
        let mut headers: ArrayVec<[u8; vnet::LEN], AT_ONCE> = frames.iter().take(AT_ONCE).map(vnet::write).collect();
        let mut pieces: ArrayVec<libc::iovec, PIECES> = ArrayVec::new();
        let mut ends: ArrayVec<usize, AT_ONCE> = ArrayVec::new();
        for (m, header) in frames.iter().zip(&mut headers) {
            if !gather(m, header, &mut pieces) {
                break;
            }
            ends.push(pieces.len());
        }
        let mut from = 0;
        let mut messages: ArrayVec<libc::mmsghdr, AT_ONCE> = ArrayVec::new();
        for end in &ends {
            // SAFETY: a message of zeros is valid: it is plain integers and null pointers.
            let mut message: libc::mmsghdr = unsafe { zeroed() };
            message.msg_hdr.msg_iov = pieces[from..].as_mut_ptr();
            message.msg_hdr.msg_iovlen = end - from;
            from = *end;
            messages.push(message);
        }
        let fd = self.socket.fd.as_raw_fd();
        // SAFETY: messages and pieces are as long as is said; the kernel reads what the pieces name, which outlives the call.
        let n = unsafe { libc::sendmmsg(fd, messages.as_mut_ptr(), messages.len() as u32, libc::MSG_DONTWAIT) };
        (messages.len(), usize::try_from(n).unwrap_or(0))
    }
}
