//! Opening devices with patience: a device that takes long, or for ever, is opened on a thread of its own, so that the
//! transaction is applied without it. What is opened too late is taken by the next try.

use std::{
    collections::HashMap,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use dunlin_dpdk::DpdkError;
use dunlin_model::spec::DeviceSpec;
use parking_lot::Mutex;

use crate::device::{self, Opened, Opener};

/// What two devices can't have at the same time.
fn resource(spec: &DeviceSpec) -> &str {
    spec.resource().1
}

/// For so long an operator's change waits for a device, and a restore, for which no operator waits.
pub(super) const CHANGE: Duration = Duration::from_secs(20);
pub(super) const RESTORE: Duration = Duration::from_secs(5);
/// The same while another device hangs: DPDK opens most of them one at a time.
const BEHIND_ANOTHER: Duration = Duration::from_millis(500);

type Outcome = Result<Opened, DpdkError>;

/// A device that is being opened.
struct Opening {
    spec: DeviceSpec,
    mtu: u32,
    since: Instant,
    /// `None` until it is done.
    outcome: Arc<Mutex<Option<Outcome>>>,
}

/// Devices that took too long, by what no other device can have at the same time.
#[derive(Default)]
pub(super) struct Openings(Mutex<HashMap<String, Opening>>);

impl Openings {
    /// Opens a device, and waits so long for it.
    ///
    /// # Errors
    /// Why it can't be opened, or that it is not open yet.
    pub fn open(&self, opener: &Opener, spec: &DeviceSpec, mtu: u32, patience: Duration) -> Outcome {
        let late = |since: Instant| DpdkError {
            what: format!("device '{}'", resource(spec)),
            why: format!("is not open after {} s; it is waited for", since.elapsed().as_secs()),
        };
        if let Some(o) = self.take(spec) {
            let outcome = o.outcome.lock().take();
            match outcome {
                // What was opened for other settings is of no use.
                Some(Ok(opened)) if (&o.spec, o.mtu) != (spec, mtu) => opened.close(),
                Some(outcome) => return outcome,
                None => {
                    let since = o.since;
                    self.0.lock().insert(resource(spec).to_owned(), o);
                    return Err(late(since));
                }
            }
        }
        let outcome: Arc<Mutex<Option<Outcome>>> = Arc::default();
        let (done, is_done) = mpsc::channel();
        let (o, s, to) = (opener.clone(), spec.clone(), outcome.clone());
        let begun = Instant::now();
        let thread = std::thread::Builder::new().name("opening".into()).spawn(move || {
            let opened = device::open(&o, &s, mtu);
            *to.lock() = Some(opened);
            let _ = done.send(());
        });
        if let Err(e) = thread {
            return Err(DpdkError { what: "a thread to open the device".into(), why: e.to_string() });
        }
        let hangs = self.0.lock().values().any(|o| o.outcome.lock().is_none());
        let patience = if hangs { BEHIND_ANOTHER } else { patience };
        let _ = is_done.recv_timeout(patience);
        let taken = outcome.lock().take();
        taken.unwrap_or_else(|| {
            let opening = Opening { spec: spec.clone(), mtu, since: begun, outcome };
            self.0.lock().insert(resource(spec).to_owned(), opening);
            Err(late(begun))
        })
    }

    fn take(&self, spec: &DeviceSpec) -> Option<Opening> {
        self.0.lock().remove(resource(spec))
    }

    /// Closes what was opened too late and is not `wanted` any more.
    pub fn reap(&self, wanted: impl Fn(&DeviceSpec) -> bool) {
        self.0.lock().retain(|_, o| {
            let mut outcome = o.outcome.lock();
            if outcome.is_none() || wanted(&o.spec) {
                return true;
            }
            if let Some(Ok(opened)) = outcome.take() {
                opened.close();
            }
            false
        });
    }
}

impl Opened {
    /// Closes it unused.
    pub fn close(self) {
        let Opened { device, rx, tx, .. } = self;
        drop((rx, tx));
        device.close();
    }
}
