//! Sockets that come with a device of DPDK's: AF_XDP's and AF_PACKET's, which wake a worker, and what DPDK leaves behind of
//! AF_XDP: its socket, and the descriptors of its BPF program and map.
//!
//! DPDK 22.11.11's driver takes one too many off the use count of a port's memory at close and so
//! never deletes it: the socket stays bound to its interface (which then refuses another), its rings stay
//! mapped, and the buffers in its fill ring never come back. Here the sockets that came with a
//! device are noted, and what is left of them after its close is closed and unmapped.

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};
use parking_lot::Mutex;

/// A socket of this process by which frames come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Socket {
    pub fd: RawFd,
    domain: i32,
    /// "socket:[INODE]": what the file descriptor is of.
    name: String,
}

/// A program or a map of BPF that this process has a descriptor of.
#[derive(Clone, PartialEq, Eq, Debug)]
struct BpfObject {
    fd: RawFd,
    /// "prog_id" or "map_id" and the kernel's number, which no other has.
    id: String,
}

impl BpfObject {
    fn all() -> Vec<BpfObject> {
        let read = |(fd, name): (RawFd, String)| {
            let key = match name.as_str() {
                "anon_inode:bpf-map" => "map_id",
                "anon_inode:bpf-prog" => "prog_id",
                _ => return None,
            };
            let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
            Some(BpfObject { fd, id: info.lines().find(|l| l.starts_with(key))?.to_owned() })
        };
        name_of_all().filter_map(read).collect()
    }
}

/// What came with a device.
#[derive(Default)]
pub(crate) struct Companions {
    pub sockets: Vec<Socket>,
    programs: Vec<BpfObject>,
}

impl Companions {
    /// Does what makes them come, and adds them, for a device of the kernel's by this name of DPDK's. One at a time, so that
    /// they are this device's: opening such a device does not block.
    pub fn note<T>(&mut self, device: &str, make: impl FnOnce() -> T) -> T {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        if !device.starts_with("net_af_") {
            return make();
        }
        let _turn = ONE_AT_A_TIME.lock();
        let before = (all(), BpfObject::all());
        let made = make();
        self.sockets.extend(all().into_iter().filter(|s| !before.0.contains(s)));
        // Those of our own are open for a moment only.
        self.programs.extend(BpfObject::all().into_iter().filter(|p| !before.1.contains(p)));
        made
    }

    /// Closes what DPDK forgot.
    ///
    /// # Safety
    /// The device is closed: they are not used any more.
    pub unsafe fn close_leaked(&self) {
        // SAFETY: as the caller promises.
        self.sockets.iter().for_each(|s| unsafe { s.close_leaked() });
        let left = BpfObject::all();
        for p in self.programs.iter().filter(|p| left.contains(p)) {
            // SAFETY: the descriptor is of this program or map (looked up above), whose owner forgot it.
            unsafe { libc::close(p.fd) };
        }
    }
}

/// All there are now.
fn all() -> Vec<Socket> {
    let own = OWN.lock();
    let sockets = name_of_all().filter_map(|(fd, name)| {
        let domain = if name.starts_with("socket:[") { domain(fd)? } else { return None };
        let is_drivers = [libc::AF_XDP, libc::AF_PACKET].contains(&domain) && !own.contains(&name);
        is_drivers.then_some(Socket { fd, domain, name })
    });
    sockets.collect()
}

/// The sockets of [`super::packet`], which are no driver's, by the names above.
static OWN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// A socket of AF_PACKET that is bound to nothing, and not taken for a driver's.
pub(super) fn own_packet_socket() -> io::Result<OwnedFd> {
    let mut own = OWN.lock();
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
    let there: BTreeSet<String> = name_of_all().map(|(_, name)| name).collect();
    own.retain(|name| there.contains(name));
    own.extend(fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?.to_str().map(str::to_owned));
    Ok(fd)
}

/// Descriptors of this process and what they are of.
fn name_of_all() -> impl Iterator<Item = (RawFd, String)> {
    let fds = fs::read_dir("/proc/self/fd").into_iter().flatten();
    fds.filter_map(|f| {
        let f = f.ok()?;
        Some((f.file_name().to_str()?.parse().ok()?, fs::read_link(f.path()).ok()?.to_str()?.to_owned()))
    })
}

fn domain(fd: RawFd) -> Option<i32> {
    let (mut domain, mut len) = (0i32, size_of::<i32>() as libc::socklen_t);
    // SAFETY: the kernel checks the descriptor, and writes at most `len` octets into `domain`.
    let code = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_DOMAIN, (&raw mut domain).cast(), &mut len) };
    (code == 0).then_some(domain)
}

/// What the kernel counts of an AF_XDP socket (struct xdp_statistics of linux/if_xdp.h).
#[repr(C)]
#[derive(Default)]
struct XdpStatistics {
    rx_dropped: u64,
    rx_invalid_descs: u64,
    tx_invalid_descs: u64,
    rx_ring_full: u64,
    rx_fill_ring_empty_descs: u64,
    tx_ring_empty_descs: u64,
}

/// What the kernel counts of an AF_PACKET socket since it was asked last (struct tpacket_stats of linux/if_packet.h).
#[repr(C)]
#[derive(Default)]
pub(super) struct PacketStatistics {
    packets: u32,
    pub drops: u32,
}

/// Fills `to` with a socket's option, as far as the kernel has it.
pub(super) fn option<T: Default>(fd: RawFd, level: i32, name: i32) -> T {
    let (mut to, mut len) = (T::default(), size_of::<T>() as libc::socklen_t);
    // SAFETY: both callers' types are plain integers; the kernel checks the descriptor, and writes at most `len` octets.
    unsafe { libc::getsockopt(fd, level, name, (&raw mut to).cast(), &mut len) };
    to
}

/// Sets a socket's option.
pub(super) fn set_option<T>(fd: RawFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    let at = std::ptr::from_ref(value).cast();
    // SAFETY: the kernel checks the descriptor, and reads at most as many octets as are there.
    let code = unsafe { libc::setsockopt(fd, level, name, at, size_of::<T>() as libc::socklen_t) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl Socket {
    /// Frames that were lost because its receive ring was full: the first since the socket was made, the second since
    /// the last call. Those that DPDK's drivers count are not among them.
    pub(crate) fn ring_full(&self) -> (u64, u64) {
        match self.domain {
            libc::AF_XDP => (option::<XdpStatistics>(self.fd, libc::SOL_XDP, libc::XDP_STATISTICS).rx_ring_full, 0),
            _ => (0, option::<PacketStatistics>(self.fd, libc::SOL_PACKET, libc::PACKET_STATISTICS).drops.into()),
        }
    }

    /// Closes one of AF_XDP and unmaps its rings, if it is still the one that was noted.
    ///
    /// # Safety
    /// The device it came with is closed: its rings are not used any more.
    unsafe fn close_leaked(&self) {
        if self.domain != libc::AF_XDP || !all().contains(self) {
            return;
        }
        for line in fs::read_to_string("/proc/self/maps").unwrap_or_default().lines() {
            if !line.ends_with(&self.name) {
                continue;
            }
            let range = line.split(' ').next().and_then(|r| r.split_once('-'));
            let hex = |s| usize::from_str_radix(s, 16).ok();
            if let Some((Some(from), Some(to))) = range.map(|(a, b)| (hex(a), hex(b))) {
                // SAFETY: the range is a mapping of this socket, and as the caller promises, unused.
                unsafe { libc::munmap(from as *mut libc::c_void, to - from) };
            }
        }
        // SAFETY: the descriptor is this socket (looked up above), whose owner forgot it.
        unsafe { libc::close(self.fd) };
    }
}
