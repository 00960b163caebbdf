//! Keeps what an interface receives away from the host's own stack, after sockets of AF_PACKET have seen it: the interface
//! is a port of the switch, and its station must reach nothing of the host past the switch's filters (as with Open vSwitch,
//! whose ports take frames before the stack).
//!
//! A BPF program of two instructions at the interface's ingress drops everything (tcx, Linux 6.6). It goes with its
//! descriptor, also when the process is killed.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use nix::libc;

const BPF_PROG_LOAD: i32 = 5;
const BPF_LINK_CREATE: i32 = 28;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_TCX_INGRESS: u32 = 46;

/// The part of union bpf_attr (linux/bpf.h) for BPF_PROG_LOAD that is not all zeros.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
}

/// The same for BPF_LINK_CREATE.
#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    padding: u32,
    expected_revision: u64,
}

/// # Safety
/// `attr` is what the command takes, and what it points to lives.
unsafe fn bpf<T>(command: i32, attr: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads as many octets as are said; a result from 0 on is a new descriptor, this function's.
    unsafe {
        let fd = libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>());
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd as i32)) }
    }
}

/// Drops what the interface with this number receives, after AF_PACKET, until the result is closed.
///
/// # Errors
/// The kernel is older than 6.6, or the process may not.
pub(super) fn raise(ifindex: u32) -> io::Result<OwnedFd> {
    // r0 = TC_ACT_SHOT (2); exit.
    const PROGRAM: [u64; 2] = [0x0000_0002_0000_00b7, 0x95];
    let load = ProgLoad {
        prog_type: BPF_PROG_TYPE_SCHED_CLS,
        insn_cnt: PROGRAM.len() as u32,
        insns: PROGRAM.as_ptr() as u64,
        license: c"Dual BSD/GPL".as_ptr() as u64,
    };
    // SAFETY: as the command takes it; program and license are static.
    let program = unsafe { bpf(BPF_PROG_LOAD, &load)? };
    let link = LinkCreate {
        prog_fd: program.as_raw_fd() as u32,
        target_ifindex: ifindex,
        attach_type: BPF_TCX_INGRESS,
        ..LinkCreate::default()
    };
    // SAFETY: as the command takes it; it points to nothing.
    unsafe { bpf(BPF_LINK_CREATE, &link) }
}
