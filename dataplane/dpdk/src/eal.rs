//! Start-up: memory and DPDK's environment abstraction layer.

use std::{ffi::CString, fs, sync::atomic::AtomicBool};

use dpdk_sys as sys;
use nix::libc;

use crate::DpdkError;

/// What DPDK is started with.
#[derive(Clone, Debug)]
pub struct EalConfig {
    /// Memory for buffers, rings and tables, in MiB.
    pub memory_mb: u32,
    /// Take it from hugepages; from ordinary pages otherwise.
    pub hugepages: bool,
}

/// Why DPDK can't start here.
#[derive(Debug, thiserror::Error)]
pub enum EalError {
    /// Not enough free hugepages.
    #[error(
        "hugepages: {free} of {size_kb} kB are free, {memory_mb} MiB need {needed}. \
         Get them with 'echo {total} > /proc/sys/vm/nr_hugepages', start with a smaller \
         --memory, or with --no-huge (slower)"
    )]
    Hugepages {
        /// Free pages.
        free: u64,
        /// Pages needed.
        needed: u64,
        /// What nr_hugepages has to be, those in use by others included.
        total: u64,
        /// The page size.
        size_kb: u64,
        /// The memory asked for.
        memory_mb: u32,
    },
    /// It was started before: once per process is all DPDK can.
    #[error("DPDK was started in this process before")]
    Twice,
    /// DPDK's own refusal.
    #[error(transparent)]
    Dpdk(#[from] DpdkError),
}

/// The proof that DPDK runs. It runs until the process ends.
#[derive(Debug, Clone, Copy)]
pub struct Eal(());

static STARTED: AtomicBool = AtomicBool::new(false);

impl Eal {
    /// Starts DPDK: no device is taken by itself, no file is left anywhere, other DPDK processes
    /// may run beside it. The calling thread keeps its affinity.
    pub fn init(config: &EalConfig) -> Result<Eal, EalError> {
        if config.hugepages {
            check_hugepages(config.memory_mb, &fs::read_to_string("/proc/meminfo").unwrap_or_default())?;
        }
        if STARTED.swap(true, std::sync::atomic::Ordering::SeqCst) {
            return Err(EalError::Twice);
        }
        let cpus = crate::thread::allowed_cores();
        let list = cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let mut args = vec![
            "dunlin-dataplane".to_owned(),
            "--no-telemetry".into(),
            // An allowlist without a device: PCI devices are taken when a port names them.
            "--allow=0000:00:00.0".into(),
            format!("--lcores=0@({list})"),
            "-m".into(),
            config.memory_mb.to_string(),
            "--log-level=warning".into(),
            "--log-level=lib.vhost.*:error".into(),
        ];
        if config.hugepages {
            args.push("--in-memory".into());
        } else {
            args.extend(["--no-huge".into(), "--no-shconf".into(), "--iova-mode=va".into()]);
        }
        let args: Vec<CString> = args.iter().map(|a| CString::new(a.as_str()).expect("no NUL")).collect();
        let mut argv: Vec<*mut std::ffi::c_char> = args.iter().map(|a| a.as_ptr().cast_mut()).collect();
        // SAFETY: argc and argv describe live NUL-terminated strings that rte_eal_init reorders
        // and reads but neither writes nor keeps; STARTED makes this the only call.
        let code = unsafe { sys::rte_eal_init(argv.len() as i32, argv.as_mut_ptr()) };
        crate::check("starting DPDK", code)?;
        Ok(Eal(()))
    }
}

/// Ticks of the time-stamp counter per second, as DPDK measured it.
pub fn tsc_hz(_: &Eal) -> u64 {
    // SAFETY: reads a number set by rte_eal_init, which the Eal proves has run.
    unsafe { sys::rte_get_tsc_hz() }
}

/// The time-stamp counter now.
#[inline(always)]
pub fn tsc() -> u64 {
    // SAFETY: RDTSC is there on every x86-64 processor and user space may use it on Linux.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Asks the kernel to back memory of this process by huge pages (madvise(2): MADV_HUGEPAGE and
/// MADV_COLLAPSE, which is there from Linux 6.1 on), where it has them to give. What is in the memory
/// stays as it is, whatever address is given.
pub fn prefer_hugepages((start, len): (*const u8, usize)) {
    const PAGE: usize = 4096;
    let from = start.align_offset(PAGE);
    let Some(len) = len.checked_sub(from) else { return };
    for advice in [libc::MADV_HUGEPAGE, 25] {
        // SAFETY: both advices change how memory is backed, not what is in it; the kernel checks
        // the range. Whether it follows them makes a difference in speed only.
        unsafe { libc::madvise(start.wrapping_add(from).cast_mut().cast(), len / PAGE * PAGE, advice) };
    }
}

fn check_hugepages(memory_mb: u32, meminfo: &str) -> Result<(), EalError> {
    let field = |name: &str| {
        meminfo
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix(':')?.split_whitespace().next()?.parse::<u64>().ok())
            .unwrap_or(0)
    };
    let size_kb = field("Hugepagesize").max(1);
    let (free, total) = (field("HugePages_Free"), field("HugePages_Total"));
    let needed = (u64::from(memory_mb) * 1024).div_ceil(size_kb);
    if free >= needed {
        return Ok(());
    }
    Err(EalError::Hugepages { free, needed, total: total - free.min(total) + needed, size_kb, memory_mb })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_hugepages_say_how_many_and_how() {
        let meminfo = "HugePages_Total:     100\nHugePages_Free:       40\nHugepagesize:       2048 kB\n";
        assert!(check_hugepages(80, meminfo).is_ok());
        let text = check_hugepages(512, meminfo).unwrap_err().to_string();
        assert!(text.contains("40 of 2048 kB are free, 512 MiB need 256"), "{text}");
        assert!(text.contains("echo 316 > /proc/sys/vm/nr_hugepages"), "{text}");
    }
}
