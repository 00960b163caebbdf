//! Tap interfaces that outlive the process: what the operator configured on them (addresses, a
//! namespace's routes) is still there when the dataplane comes back.

use std::{
    fs::OpenOptions,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::libc;

use crate::DpdkError;

mod ioctl {
    #![allow(missing_docs)]
    use nix::libc;
    nix::ioctl_write_ptr_bad!(tun_set_iff, 0x4004_54ca, libc::ifreq);
    nix::ioctl_write_int_bad!(tun_set_persist, 0x4004_54cb);
}

/// Makes the tap interface `name` (1 to 15 octets), or finds it, and keeps it.
pub fn create(name: &str) -> Result<(), DpdkError> {
    persist(name, true)
}

/// Removes it, unless another process has it open.
pub fn remove(name: &str) -> Result<(), DpdkError> {
    persist(name, false)
}

fn persist(name: &str, keep: bool) -> Result<(), DpdkError> {
    let fail = |why: &str| DpdkError::new(format!("tap interface '{name}'"), why);
    let tun: OwnedFd = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map_err(|e| fail(&format!("/dev/net/tun: {e}")))?
        .into();
    if name.is_empty() || name.len() >= libc::IFNAMSIZ {
        return Err(fail("its name must have 1 to 15 octets"));
    }
    // SAFETY: an ifreq of zeros is valid: it is plain integers.
    let mut req: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in req.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // The flags DPDK's tap driver attaches with: a persistent interface keeps them.
    req.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE) as i16;
    // SAFETY: tun is open; req is a live ifreq with a NUL-terminated name, which the kernel reads.
    unsafe {
        ioctl::tun_set_iff(tun.as_raw_fd(), &req).map_err(|e| fail(e.desc()))?;
        ioctl::tun_set_persist(tun.as_raw_fd(), i32::from(keep)).map_err(|e| fail(e.desc()))?;
    }
    Ok(())
}
