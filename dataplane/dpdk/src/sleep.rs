//! How an idle worker waits: until a frame comes to one of its queues that can wake it, until another thread has something for
//! it, or until it has something to do by itself.
//!
//! A queue wakes by a descriptor: a guest's kick (virtio 1.2, 2.7.10 and 2.7.23; suppressed while the worker polls), or the
//! kernel's socket or tap. The worker arms, looks at all queues once more, and only then sleeps: what came before is found
//! by that look, and what comes later wakes it.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{Relaxed, SeqCst},
            fence,
        },
    },
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    libc,
    sys::eventfd::{EfdFlags, EventFd},
    unistd::{read, write},
};

/// By which other threads wake a worker.
pub struct Doorbell {
    event: OwnedFd,
    is_armed: AtomicBool,
}

impl Doorbell {
    /// One that no worker waits for yet.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        Ok(Doorbell { event: EventFd::from_flags(flags)?.into(), is_armed: AtomicBool::new(false) })
    }

    /// Wakes the worker if it sleeps, or is about to. What the caller wrote before is seen by it then.
    #[inline]
    pub fn ring(&self) {
        fence(SeqCst);
        if self.is_armed.load(Relaxed) {
            signal(&self.event);
        }
    }
}

/// Whether a descriptor is an event that nothing blocks on.
pub(crate) fn is_harmless_event(fd: &OwnedFd) -> bool {
    let name = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let flags = fcntl(fd, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
    name.is_ok_and(|n| n.as_os_str() == "anon_inode:[eventfd]") && flags.is_ok_and(|f| f.contains(OFlag::O_NONBLOCK))
}

/// Adds 1 to an event's counter. That fails only when it is full, which wakes as well.
fn signal(event: &OwnedFd) {
    let _ = write(event, &1u64.to_ne_bytes());
}

/// Sets an event's counter to 0. That fails if it is 0 already.
fn clear(event: &OwnedFd) {
    let _ = read(event, &mut [0; 8]);
}

/// The longest sleep that nothing ends, while a descriptor is in error.
const LONGEST_BLIND: Duration = Duration::from_micros(100);

/// The worker's side.
pub struct Sleeper {
    doorbell: Arc<Doorbell>,
    /// The sockets', then the doorbell's and the events'.
    fds: Vec<libc::pollfd>,
    /// Kept open while they are waited for.
    events: Vec<Arc<OwnedFd>>,
}

impl Sleeper {
    /// Of the worker that `doorbell` wakes.
    pub fn new(doorbell: Arc<Doorbell>) -> Self {
        Sleeper { doorbell, fds: Vec::new(), events: Vec::new() }
    }

    /// From now on the doorbell wakes.
    pub fn arm(&mut self) {
        self.fds.clear();
        self.events.clear();
        self.doorbell.is_armed.store(true, SeqCst);
        fence(SeqCst);
    }

    /// Sleeps no longer than until the event's counter is above 0.
    pub(crate) fn wait_for_event(&mut self, event: Arc<OwnedFd>) {
        self.events.push(event);
    }

    /// Sleeps no longer than until there is something to read.
    pub(crate) fn wait_for(&mut self, fd: RawFd) {
        self.fds.push(libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    }

    /// Sleeps for `time` at most; the kernel adds a few microseconds. Since [`Sleeper::arm`], all queues were looked at.
    pub fn sleep(&mut self, time: Duration) {
        let wait = |event: &OwnedFd| libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let others = self.fds.len();
        self.fds.push(wait(&self.doorbell.event));
        self.fds.extend(self.events.iter().map(|e| wait(e)));
        let longest = libc::timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) };
        // SAFETY: as many structures as are said, and a time, which outlive the call. A descriptor that was closed meanwhile
        // is reported as such.
        unsafe { libc::ppoll(self.fds.as_mut_ptr(), self.fds.len() as libc::nfds_t, &longest, std::ptr::null()) };
        // One that is gone, or in error, is ready for ever: it must not take the worker's core.
        let is_broken = |fd: &libc::pollfd| fd.revents & !libc::POLLIN != 0 && fd.revents & libc::POLLIN == 0;
        if self.fds[..others].iter().any(is_broken) {
            std::thread::sleep(LONGEST_BLIND.min(time));
        }
        let events = std::iter::once(&self.doorbell.event).chain(self.events.iter().map(|e| &**e));
        for (fd, event) in self.fds[others..].iter().zip(events) {
            if fd.revents != 0 {
                clear(event);
            }
        }
    }

    /// From now on the doorbell need not be rung.
    pub fn disarm(&mut self) {
        self.doorbell.is_armed.store(false, Relaxed);
        self.events.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::atomic::AtomicU64, time::Instant};

    /// Whatever is published before a ring is seen: by the last look, or because the sleep ends.
    #[test]
    fn no_ring_is_lost() {
        const LONG: Duration = Duration::from_secs(60);
        let doorbell = Arc::new(Doorbell::new().unwrap());
        let mut sleeper = Sleeper::new(doorbell.clone());
        let (posted, seen) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|s| {
            s.spawn(|| {
                for n in 1..=20_000 {
                    posted.store(n, Relaxed);
                    doorbell.ring();
                    let since = Instant::now();
                    while seen.load(SeqCst) < n {
                        assert!(since.elapsed() < LONG / 2, "{n} was posted, and the sleeper sleeps");
                        std::hint::spin_loop();
                    }
                }
            });
            while seen.load(SeqCst) < 20_000 {
                sleeper.arm();
                let now = posted.load(Relaxed);
                if now == seen.load(SeqCst) {
                    sleeper.sleep(LONG);
                }
                sleeper.disarm();
                seen.store(posted.load(SeqCst), SeqCst);
            }
        });
    }

    #[test]
    fn events_and_sockets_end_a_sleep_and_time_does() {
        let mut sleeper = Sleeper::new(Arc::new(Doorbell::new().unwrap()));
        let kick = Arc::new(Doorbell::new().unwrap().event);
        signal(&kick);
        let (mut near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        std::io::Write::write_all(&mut near, b"x").unwrap();
        let waits: [&dyn Fn(&mut Sleeper); 2] = [&|s| s.wait_for_event(kick.clone()), &|s| s.wait_for(far.as_raw_fd())];
        for wait in waits {
            sleeper.arm();
            wait(&mut sleeper);
            let since = Instant::now();
            sleeper.sleep(Duration::from_secs(60));
            assert!(since.elapsed() < Duration::from_secs(30));
            sleeper.disarm();
        }
        // The kick was taken note of.
        sleeper.arm();
        sleeper.wait_for_event(kick);
        let since = Instant::now();
        sleeper.sleep(Duration::from_millis(3));
        assert!(since.elapsed() >= Duration::from_millis(3));
    }
}
