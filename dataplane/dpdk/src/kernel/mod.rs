//! Interfaces of the kernel: AF_PACKET sockets with offloads ([`packet`]), taps ([`tap`]), and the sockets of DPDK's own
//! drivers. Between the first two and the kernel, a frame has the header of `offload/vnet.rs` in front, and large segments
//! go whole (`pieces.rs`).

pub mod packet;
mod pieces;
mod shield;
pub(crate) mod sockets;
pub mod tap;

use std::os::fd::AsRawFd;

use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

/// struct ethtool_drvinfo (linux/ethtool.h).
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

mod ioctl {
    #![allow(missing_docs)]
    use nix::libc;
    nix::ioctl_read_bad!(ethtool, 0x8946, libc::ifreq);
}

/// The kernel's driver of an interface; `None` if there is none of that name.
pub fn driver_of(interface: &str) -> Option<String> {
    const GET_DRIVER_INFO: u32 = 3;
    let any = any_socket().ok()?;
    let mut info = DriverInfo { command: GET_DRIVER_INFO, driver: [0; 32], rest: [0; 160] };
    let mut request = request(interface)?;
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    // SAFETY: the request names the interface and the structure that the command fills, which is as large as the kernel's;
    // both outlive the call.
    unsafe { ioctl::ethtool(any.as_raw_fd(), &mut request) }.ok()?;
    let name = info.driver.split(|o| *o == 0).next()?;
    Some(String::from_utf8_lossy(name).into_owned())
}

/// Interfaces are configured through any socket.
fn any_socket() -> nix::Result<std::os::fd::OwnedFd> {
    socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
}

/// What a command for the interface `name` begins with; `None` if no interface can have that name.
fn request(name: &str) -> Option<libc::ifreq> {
    // SAFETY: an ifreq of zeros is valid: it is plain integers.
    let mut req: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() >= req.ifr_name.len() {
        return None;
    }
    for (to, from) in req.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Some(req)
}
