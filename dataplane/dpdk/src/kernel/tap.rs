//! Tap interfaces, by the kernel's own /dev/net/tun (Documentation/networking/tuntap.rst).
//!
//! DPDK has a driver for them too; it holds frames to 1,522 octets, cuts large segments the kernel
//! would take whole, and loses an interface that moves to another namespace. Here a queue is a
//! file descriptor, a frame one readv or writev of it, with the header of `offload/vnet.rs` in
//! front. The interfaces outlive the process: what the operator configured on them (addresses, a
//! namespace's routes) is still there when the dataplane comes back.

use std::{
    fs::OpenOptions,
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
};

use arrayvec::ArrayVec;
use nix::{
    libc,
    net::if_::InterfaceFlags,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{
    any_socket,
    pieces::{Spare, gather},
    request,
};
use crate::{
    DpdkError, Mbuf,
    eal::tsc,
    mempool::Mempool,
    offload::{Caps, vnet},
    sleep::Sleeper,
};

mod ioctl {
    #![allow(missing_docs)]
    use nix::libc;
    nix::ioctl_write_ptr_bad!(tun_set_iff, 0x4004_54ca, libc::ifreq);
    nix::ioctl_write_int_bad!(tun_set_persist, 0x4004_54cb);
    nix::ioctl_write_int_bad!(tun_set_offload, 0x4004_54d0);
    nix::ioctl_write_ptr_bad!(tun_set_vnet_hdr_size, 0x4004_54d8, i32);
    nix::ioctl_read_bad!(get_flags, libc::SIOCGIFFLAGS, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_flags, libc::SIOCSIFFLAGS, libc::ifreq);
}

/// The kernel leaves checksums and the cutting of TCP to us (TUN_F_CSUM, _TSO4, _TSO6).
const OFFLOADS: i32 = 0x01 | 0x02 | 0x04;
/// Octets after which no more are read before others have their turn.
const ENOUGH: u32 = 1 << 20;
/// Ticks of the time-stamp counter between two looks at a queue that was empty: a look is a
/// system call, and must cost a busy worker nothing to speak of.
const PAUSE: std::ops::Range<u64> = 4_000..128_000;

/// An interface and its queues' descriptors.
pub struct TapPort {
    queues: Vec<Arc<OwnedFd>>,
}

impl TapPort {
    /// Opens `queues` (at least 1) queues of the tap interface `name` (1 to 15 octets), which is
    /// made if there is none, and sets it up. One that was made with a single queue has a single one.
    pub fn open(name: &str, queues: usize) -> Result<Self, DpdkError> {
        let (several, first) = match attach(name, true) {
            Ok(q) => (true, q),
            Err(e) => (false, attach(name, false).map_err(|_| e)?),
        };
        let mut all = vec![first];
        while several && all.len() < queues {
            all.push(attach(name, true)?);
        }
        set_up(name)?;
        for q in &all {
            // SAFETY: the descriptor is an attached tap's; the arguments are integers, one of them
            // behind a pointer that lives. An interface that was there may have had another size.
            unsafe {
                ioctl::tun_set_vnet_hdr_size(q.as_raw_fd(), &(vnet::LEN as i32)).map_err(|e| failed(name, e.desc()))?;
                ioctl::tun_set_offload(q.as_raw_fd(), OFFLOADS).map_err(|e| failed(name, e.desc()))?;
                ioctl::tun_set_persist(q.as_raw_fd(), 1).map_err(|e| failed(name, e.desc()))?;
            }
        }
        Ok(TapPort { queues: all.into_iter().map(Arc::new).collect() })
    }

    /// Removes the interface `name`, unless another process has it open.
    pub fn remove(name: &str) -> Result<(), DpdkError> {
        let tun = attach(name, true).or_else(|_| attach(name, false))?;
        // SAFETY: as above.
        unsafe { ioctl::tun_set_persist(tun.as_raw_fd(), 0) }.map_err(|e| failed(name, e.desc()))?;
        Ok(())
    }

    /// What can remove the interface wherever it is, after this object is gone.
    pub fn remover(&self) -> TapRemover {
        TapRemover(self.queues[0].clone())
    }

    /// Whether the interface is set up; `None` if it was deleted. Right even when it was moved to
    /// another namespace.
    pub fn up(&self) -> Option<bool> {
        use std::os::fd::AsFd;
        let mut fds = [PollFd::new(self.queues[0].as_fd(), PollFlags::POLLOUT)];
        let _ = poll(&mut fds, PollTimeout::ZERO);
        // The kernel's tun_chr_poll: writable as soon as the interface is up, an error once it is gone.
        let now = fds[0].revents().unwrap_or(PollFlags::empty());
        if now.contains(PollFlags::POLLERR) { None } else { Some(now.contains(PollFlags::POLLOUT)) }
    }

    /// Each queue's receiving side, which fills buffers of `pool`. To be given out once.
    pub fn rx(&self, pool: &Mempool) -> Vec<TapRxQueue> {
        let handles = self.queues.iter().enumerate();
        handles.map(|(number, fd)| TapRxQueue::new(fd.clone(), number as u16, pool.clone())).collect()
    }

    /// Each queue's sending side.
    pub fn tx(&self) -> Vec<TapTxQueue> {
        self.queues.iter().map(|fd| TapTxQueue { fd: fd.clone() }).collect()
    }
}

/// See [`TapPort::remover`].
pub struct TapRemover(Arc<OwnedFd>);

impl TapRemover {
    /// Removes the interface as soon as it is not open any more.
    pub fn remove(self) {
        // SAFETY: a descriptor of /dev/net/tun, an integer; it fails if the interface is gone.
        let _ = unsafe { ioctl::tun_set_persist(self.0.as_raw_fd(), 0) };
    }
}

fn failed(name: &str, why: &str) -> DpdkError {
    DpdkError::new(format!("tap interface '{name}'"), why)
}

/// One more queue of the interface.
fn attach(name: &str, several: bool) -> Result<OwnedFd, DpdkError> {
    let mut options = OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    let open = options.read(true).write(true).open("/dev/net/tun");
    let tun: OwnedFd = open.map_err(|e| failed(name, &format!("/dev/net/tun: {e}")))?.into();
    let mut req = request(name).ok_or_else(|| failed(name, "its name must have 1 to 15 octets"))?;
    let several = if several { libc::IFF_MULTI_QUEUE } else { 0 };
    req.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several) as i16;
    // SAFETY: tun is open; req is a live ifreq with a NUL-terminated name, which the kernel reads.
    unsafe { ioctl::tun_set_iff(tun.as_raw_fd(), &req) }.map_err(|e| failed(name, e.desc()))?;
    Ok(tun)
}

fn set_up(name: &str) -> Result<(), DpdkError> {
    let mut req = request(name).ok_or_else(|| failed(name, "its name must have 1 to 15 octets"))?;
    let any = any_socket().map_err(|e| failed(name, e.desc()))?;
    // SAFETY: the socket is open; req is a live ifreq with a NUL-terminated name, and after
    // SIOCGIFFLAGS its union holds the flags.
    unsafe {
        ioctl::get_flags(any.as_raw_fd(), &mut req).map_err(|e| failed(name, e.desc()))?;
        req.ifr_ifru.ifru_flags |= InterfaceFlags::IFF_UP.bits() as i16;
        ioctl::set_flags(any.as_raw_fd(), &req).map_err(|e| failed(name, e.desc()))?;
    }
    Ok(())
}

/// Frames from the kernel, by one queue.
pub struct TapRxQueue {
    fd: Arc<OwnedFd>,
    number: u16,
    spare: Spare,
    /// After an empty look: when to look again, and how long that was.
    again: u64,
    pause: u64,
}

impl TapRxQueue {
    fn new(fd: Arc<OwnedFd>, number: u16, pool: Mempool) -> Self {
        TapRxQueue { fd, number, spare: Spare::new(pool), again: 0, pause: 0 }
    }

    /// Its number on the interface.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Lets what arrives by it end a sleep. The next look is not put off.
    pub fn wake(&mut self, sleeper: &mut Sleeper) {
        sleeper.wait_for(self.fd.as_raw_fd());
        self.pause = 0;
    }

    /// Takes up to N frames into the empty `burst`, fewer of large ones; how many.
    #[inline]
    pub fn receive<F: From<Mbuf>, const N: usize>(&mut self, burst: &mut ArrayVec<F, N>) -> usize {
        if self.pause > 0 && tsc() < self.again {
            return 0;
        }
        let mut octets = 0;
        while !burst.is_full() && octets < ENOUGH {
            let Ok(m) = self.read() else { break };
            octets += m.len();
            burst.push(F::from(m));
        }
        // An idle worker sleeps anyway: its looks are all of this queue's.
        self.pause = if burst.is_empty() { (self.pause * 2).clamp(PAUSE.start, PAUSE.end) } else { 0 };
        if self.pause > 0 {
            self.again = tsc() + self.pause;
        }
        burst.len()
    }

    /// The frame waits in the kernel until there are buffers.
    fn read(&mut self) -> io::Result<Mbuf> {
        let fd = self.fd.as_raw_fd();
        // SAFETY: each piece is memory of ours alone, of the length it says, and outlives the call, which says how much it
        // wrote.
        unsafe { self.spare.frame(|pieces| libc::readv(fd, pieces.as_ptr(), pieces.len() as i32)) }
    }
}

/// Frames to the kernel, by one queue. Clones are the same queue; the kernel lets several threads
/// write to it.
#[derive(Clone)]
pub struct TapTxQueue {
    fd: Arc<OwnedFd>,
}

impl TapTxQueue {
    /// What the kernel does by itself.
    #[inline(always)]
    pub fn caps(&self) -> Caps {
        Caps::KERNEL
    }

    /// Sends frames from the front of `burst`; from the first that the kernel refused they stay in
    /// it. How many it took.
    #[inline]
    pub fn transmit<F: Into<Mbuf> + From<Mbuf>, const N: usize>(&mut self, burst: &mut ArrayVec<F, N>) -> usize {
        let mut sent = 0;
        let mut refused = false;
        for f in std::mem::take(burst) {
            let m: Mbuf = f.into();
            refused = refused || !self.write(&m);
            if refused { burst.push(F::from(m)) } else { sent += 1 }
        }
        sent
    }

    fn write(&self, m: &Mbuf) -> bool {
        let header = vnet::write(m);
        let mut pieces: ArrayVec<libc::iovec, 64> = ArrayVec::new();
        if !gather(m, &header, &mut pieces) {
            return false;
        }
        // SAFETY: each piece is memory of the length it says that outlives the call, which reads it.
        unsafe { libc::writev(self.fd.as_raw_fd(), pieces.as_ptr(), pieces.len() as i32) > 0 }
    }
}
