//! A switch without DPDK: bursts in, what leaves out.

use arrayvec::ArrayVec;
use dunlin_engine::{
    Burst, DropReason, MAX_PORTS, Pipeline, PortIdx, SegmentId,
    context::{Context, Now},
    counters::{Counters, PortTotals},
    frame::HeapFrame,
    output::{Events, MAX_PIECES, MacLearned, Punt, Transmit},
    snapshot::topology::{BridgeSpec, PortPolicy, Topology},
    tables::{
        conntrack::{Conntrack, Datagram, OneThread},
        mac::MacTable,
    },
    vlan::{VlanMode, VlanTagInfo},
};

/// A fragment that waits, where it came from, and what it is in the overlay.
pub type Early = ((PortIdx, Option<(VlanTagInfo, SegmentId)>), Datagram, HeapFrame);

/// What leaves, in order.
#[derive(Default)]
pub struct Sink {
    pub sent: Vec<(usize, Vec<u8>)>,
    pub learned: Vec<MacLearned>,
    /// For a VTEP itself.
    pub local: Vec<(usize, Vec<u8>)>,
    /// For a tunnel whose next hop is not known.
    pub held: Vec<(PortIdx, (VlanTagInfo, SegmentId), HeapFrame)>,
    /// Fragments before the first one of their datagram, and where they came from.
    pub early: Vec<Early>,
    /// There is no room to hold any.
    holds_none: bool,
}

impl Transmit<HeapFrame> for Sink {
    fn transmit(&mut self, port: PortIdx, _: PortIdx, frame: HeapFrame) {
        self.sent.push((port.get(), frame.octets().to_vec()));
    }
    fn make(&mut self, octets: &[u8]) -> Option<HeapFrame> {
        Some(HeapFrame::new(octets))
    }
    fn finish(&mut self, frame: HeapFrame) -> Result<ArrayVec<HeapFrame, MAX_PIECES>, DropReason> {
        let size = frame.segment_len.map_or(usize::MAX, |n| n as usize);
        Ok(frame.octets().chunks(size).map(HeapFrame::new).collect())
    }
}

impl Events for Sink {
    fn learned(&mut self, event: MacLearned) {
        self.learned.push(event);
    }
}

impl Punt<HeapFrame> for Sink {
    fn local(&mut self, vtep: PortIdx, _: PortIdx, frame: HeapFrame) -> bool {
        self.local.push((vtep.get(), frame.octets().to_vec()));
        true
    }
    fn hold(&mut self, remote: PortIdx, inside: (VlanTagInfo, SegmentId), frame: HeapFrame) -> Result<(), HeapFrame> {
        if self.holds_none {
            return Err(frame);
        }
        self.held.push((remote, inside, frame));
        Ok(())
    }
    fn hold_fragment(
        &mut self,
        from: (PortIdx, Option<(VlanTagInfo, SegmentId)>),
        datagram: Datagram,
        frame: HeapFrame,
    ) -> Result<(), HeapFrame> {
        if self.holds_none {
            return Err(frame);
        }
        self.early.push((from, datagram, frame));
        Ok(())
    }
}

pub struct Switch {
    pub topology: Topology,
    pub macs: MacTable,
    pub counters: Counters,
    pub sessions: Conntrack,
    pub pipeline: Pipeline,
    pub ports: Vec<PortIdx>,
    pub now_s: u32,
    /// Whether frames may be held.
    pub holds: bool,
    /// Frames handed out to be held.
    held: u64,
}

pub fn spec(vlan: VlanMode) -> PortPolicy {
    PortPolicy::new("br0", vlan)
}

impl Switch {
    /// The addresses that DHCP gave a port's station, and until when.
    pub fn leases(&self, port: &str) -> Vec<(std::net::IpAddr, u32)> {
        self.topology.snooped(port, self.now_s).iter().map(|l| (l.address, l.until_s)).collect()
    }

    pub fn new(specs: Vec<PortPolicy>) -> Self {
        let mut topology = Topology::default();
        topology.set_bridge("br0", BridgeSpec { ageing_s: 300 });
        topology.set_bridge("br1", BridgeSpec { ageing_s: 300 });
        let names: Vec<String> = (0..specs.len()).map(|i| format!("p{i}")).collect();
        let ports = names.iter().zip(specs).map(|(n, s)| topology.set_port(n, s).unwrap()).collect();
        for n in &names {
            topology.set_up(n, true);
        }
        let (macs, counters) =
            (MacTable::new(4096, [0x1234_5678_9abc_def0, 0x9e37_79b9_7f4a_7c15]), Counters::default());
        let sessions = Conntrack::new(4096, [0x2545_f491_4f6c_dd1d, 0xd6e8_feb8_6659_fd93], OneThread);
        Switch {
            topology,
            macs,
            counters,
            sessions,
            pipeline: Pipeline::default(),
            ports,
            now_s: 1,
            holds: true,
            held: 0,
        }
    }

    /// Takes a burst of frames from one port through the pipeline.
    pub fn run(&mut self, ingress: usize, frames: impl IntoIterator<Item = HeapFrame>) -> Sink {
        let snapshot = self.topology.snapshot().unwrap();
        let mut burst: Burst<HeapFrame> = frames.into_iter().collect();
        let mut sink = Sink { holds_none: !self.holds, ..Sink::default() };
        let now = Now { s: self.now_s, ns: u64::from(self.now_s) * 1_000_000_000 };
        let cx = Context::new(&snapshot, (&self.macs, &self.sessions), (0, &self.counters), now);
        self.pipeline.run(cx, self.ports[ingress], &mut burst, &mut sink);
        assert!(burst.is_empty());
        self.count(&sink);
        self.check_conservation();
        sink
    }

    /// Sends a frame that was held.
    pub fn send_into(&mut self, remote: PortIdx, inside: (VlanTagInfo, SegmentId), frame: HeapFrame) -> Sink {
        let snapshot = self.topology.snapshot().unwrap();
        let mut sink = Sink::default();
        let now = Now { s: self.now_s, ns: 0 };
        let cx = Context::new(&snapshot, (&self.macs, &self.sessions), (0, &self.counters), now);
        self.pipeline.send_into(cx, remote, inside, frame, &mut sink);
        self.held -= 1;
        self.count(&sink);
        sink
    }

    /// Takes fragments on their way whose first one has come; the others are given back.
    pub fn run_held(&mut self, early: Vec<Early>) -> Sink {
        let snapshot = self.topology.snapshot().unwrap();
        let mut sink = Sink { holds_none: !self.holds, ..Sink::default() };
        let now = Now { s: self.now_s, ns: 0 };
        for (from, datagram, frame) in early {
            if !self.sessions.has_first(datagram, self.now_s) {
                self.held -= 1;
                sink.early.push((from, datagram, frame));
                continue;
            }
            let cx = Context::new(&snapshot, (&self.macs, &self.sessions), (0, &self.counters), now);
            let mut burst: Burst<HeapFrame> = Some(frame).into_iter().collect();
            self.pipeline.run_held(cx, from, &mut burst, &mut sink);
            self.held -= 1;
        }
        self.count(&sink);
        self.check_conservation();
        sink
    }

    /// What a driver would count of what leaves.
    fn count(&mut self, sink: &Sink) {
        for (port, frame) in &sink.sent {
            let c = self.counters.port(PortIdx::new(*port).unwrap());
            c.tx_frames.add(1);
            c.tx_bytes.add(frame.len() as u64);
        }
        self.held += (sink.held.len() + sink.early.len()) as u64;
    }

    pub fn totals(&self) -> PortTotals {
        let mut t = PortTotals::default();
        (0..MAX_PORTS).filter_map(PortIdx::new).for_each(|p| t.add(self.counters.port(p)));
        t
    }

    pub fn check_conservation(&self) {
        let t = self.totals();
        assert_eq!(t.rx_frames + t.clones, t.tx_frames + t.drops.iter().sum::<u64>() + self.held);
    }

    pub fn drops(&self, reason: DropReason) -> u64 {
        self.totals().drops[reason as usize]
    }
}
