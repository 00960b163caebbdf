//! What happened, for watchers. Bounded: a slow reader learns how much it missed.

use dunlin_dataplane_api::v1::{self, event::What};
use tokio::sync::broadcast;

/// Events kept for the slowest reader.
const KEPT: usize = 4096;

/// The events of this process.
pub struct Events(broadcast::Sender<v1::Event>);

impl Default for Events {
    fn default() -> Self {
        Events(broadcast::channel(KEPT).0)
    }
}

impl Events {
    /// Notifies all watchers.
    pub fn send(&self, what: What) {
        // Nobody watching is fine.
        let _ = self.0.send(v1::Event::now(what));
    }

    /// Events from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<v1::Event> {
        self.0.subscribe()
    }
}

/// A port came, changed, went, or its link did.
pub fn port_event(port: &str, kind: v1::port_event::Kind) -> What {
    What::Port(v1::PortEvent { port: port.into(), kind: kind.into() })
}

/// A guest connected, started, stopped or left.
pub fn guest_event(port: &str, connected: bool, running: bool) -> What {
    What::Guest(v1::GuestEvent { port: port.into(), connected, running })
}
