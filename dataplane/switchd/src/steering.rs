//! Steering by destination in software, the way VMDq does it in a NIC: the worker that receives from
//! a steered port looks where each frame is to go, and passes those for a port of another worker to
//! that worker, over a ring of their own. That worker takes them through the pipeline as if it had
//! received them itself: it alone learns for them, counts them, and sends to its guest.
//!
//! A device that takes rules does better by itself: see `switch/guest_queues.rs`.
//!
//! Frames to one address go to one worker by one ring, so they keep their order. Who owns which
//! port changes only while no steered frame is on its way: see `switch/steering.rs`.

use std::sync::Arc;

use dunlin_dpdk::sleep::Doorbell;
use dunlin_engine::{BURST, Burst, DropReason, Frame, MAX_PORTS, Pipeline, PortIdx, context::Context};
use rtrb::{Consumer, Producer, PushError, RingBuffer};

use crate::packet::Packet;

/// Frames that one ring holds: as many queues of a worker may each have a burst for another in one round.
const RING: usize = 16 * BURST;

/// A frame, and the port it was received by.
pub type Passed = (PortIdx, Packet);

/// A worker's end of the ring to another, and what wakes that.
pub struct Link {
    pub ring: Producer<Passed>,
    pub doorbell: Arc<Doorbell>,
}

/// A ring from one worker to another.
pub fn ring() -> (Producer<Passed>, Consumer<Passed>) {
    RingBuffer::new(RING)
}

/// Who owns which port, for all workers alike.
#[derive(Clone, PartialEq, Eq)]
pub struct Owners {
    /// Ports whose frames are steered.
    pub steered: Vec<PortIdx>,
    /// By port: the number of the worker that sends to it; `None` if it does not matter.
    pub of: Box<[Option<u8>; MAX_PORTS]>,
}

/// One worker's ends of the rings.
#[derive(Default)]
pub struct Links {
    /// By the number of the worker at the other end; none to itself.
    to: Vec<Option<Link>>,
    from: Vec<Consumer<Passed>>,
    owners: Option<Arc<Owners>>,
}

impl Links {
    /// Takes over new ends of rings.
    pub fn connect(&mut self, to: Vec<Option<Link>>, from: Vec<Consumer<Passed>>) {
        (self.to, self.from) = (to, from);
    }

    /// From now on frames are steered by these; by none, not at all.
    pub fn steer_by(&mut self, owners: Option<Arc<Owners>>) {
        self.owners = owners;
    }

    /// Whether frames of this port have to be looked at. Nothing else is spent where nothing is steered.
    #[inline(always)]
    pub fn steers(&self, port: PortIdx) -> bool {
        self.owners.as_ref().is_some_and(|o| o.steered.contains(&port))
    }

    /// Passes on the frames of `burst` that are for other workers' ports; the others stay. How many went.
    #[inline(never)]
    pub fn pass(
        &mut self,
        pipeline: &mut Pipeline,
        cx: Context<'_>,
        ingress: PortIdx,
        burst: &mut Burst<Packet>,
    ) -> u64 {
        let Some(owners) = &self.owners else { return 0 };
        let destinations = pipeline.destinations(cx, ingress, burst);
        let (mut kept, mut passed) = (Burst::new(), 0);
        for (frame, to) in std::mem::take(burst).into_iter().zip(destinations) {
            let owner = to.and_then(|to| owners.of[to.get()]);
            let Some(link) = owner.and_then(|o| self.to.get_mut(usize::from(o))?.as_mut()) else {
                kept.push(frame);
                continue;
            };
            match link.ring.push((ingress, frame)) {
                Ok(()) => passed += 1,
                Err(PushError::Full((_, frame))) => {
                    let c = cx.counters.port(ingress);
                    c.rx_frames.add(1);
                    c.rx_bytes.add(u64::from(frame.len()));
                    c.drops[DropReason::RingFull as usize].add(1);
                }
            }
        }
        *burst = kept;
        if passed > 0 {
            self.to.iter().flatten().for_each(|link| link.doorbell.ring());
        }
        passed
    }

    /// Takes what the others passed, in bursts of one port each. What was there at the call is taken
    /// whole.
    #[inline(always)]
    pub fn take(&mut self, burst: &mut Burst<Packet>, mut each: impl FnMut(PortIdx, &mut Burst<Packet>)) {
        for ring in &mut self.from {
            let mut left = ring.slots();
            while left > 0 {
                let Ok(port) = ring.peek().map(|p| p.0) else { break };
                while left > 0
                    && !burst.is_full()
                    && ring.peek().is_ok_and(|p| p.0 == port)
                    && let Ok((_, frame)) = ring.pop()
                {
                    burst.push(frame);
                    left -= 1;
                }
                each(port, burst);
            }
        }
    }
}
