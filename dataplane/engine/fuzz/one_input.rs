//! One fuzz input: records of ingress port (1 octet), length (1 octet) and a frame, taken through
//! a switch with a port of each VLAN mode, in bursts of what follows each other on one port. No frame
//! may panic, and each must have one fate.

use dunlin_engine::{
    Burst, Output, Pipeline, PortIdx,
    counters::{Counters, PortTotals},
    frame::{HeapFrame, MacLearned},
    mac_table::MacTable,
    pipeline::{Context, Now},
    snapshot::MacLimit,
    topology::{BridgeSpec, PortSpec, Topology},
    vlan::{PriorityTags, VlanMode, VlanSet},
};

struct Sent(u64);

impl Output<HeapFrame> for Sent {
    fn transmit(&mut self, _: PortIdx, _: HeapFrame) {
        self.0 += 1;
    }
    fn learned(&mut self, _: MacLearned) {}
}

fn modes() -> [VlanMode; 6] {
    let some: VlanSet = [0, 1, 2, 100].into_iter().collect();
    [
        VlanMode::Access { vid: 1 },
        VlanMode::Trunk { vlans: VlanSet::ALL },
        VlanMode::Trunk { vlans: some.clone() },
        VlanMode::NativeTagged { native: 1, vlans: some.clone() },
        VlanMode::NativeUntagged { native: 2, vlans: some.clone() },
        VlanMode::Dot1qTunnel { vid: 1, cvlans: some, tpid: 0x88a8 },
    ]
}

/// Runs one input to its end.
pub fn run(mut input: &[u8]) {
    let mut topology = Topology::default();
    topology.set_bridge("br0", BridgeSpec { ageing_s: 1 });
    let mut ports = Vec::new();
    for (i, vlan) in modes().into_iter().enumerate() {
        let spec = PortSpec {
            bridge: "br0".into(),
            vlan,
            priority_tags: if i % 2 == 0 { PriorityTags::IfNonzero } else { PriorityTags::Never },
            protected: i == 3,
            mtu: 128,
            mac_limit: (i == 2).then_some(MacLimit { limit: 2, drop: true }),
            storm_fps: [(i == 4).then_some(3), None, Some(5)],
        };
        let name = format!("p{i}");
        ports.push(topology.set_port(&name, spec).expect("it is valid"));
        topology.set_up(&name, i != 5);
    }
    let snapshot = topology.snapshot().expect("few VLANs");
    let macs = MacTable::new(16, [0x1234_5678_9abc_def0, 0x9e37_79b9_7f4a_7c15]);
    let counters = Counters::default();
    let (mut pipeline, mut sent, mut frames, mut s) = (Pipeline::default(), Sent(0), 0, 0);
    let mut burst: Burst<HeapFrame> = Burst::new();
    while let [port, length, rest @ ..] = input {
        let (frame, left) = rest.split_at(rest.len().min(*length as usize));
        input = left;
        frames += 1;
        let ingress = ports[*port as usize % ports.len()];
        burst.push(HeapFrame::new(frame));
        let goes_on = input.first().is_some_and(|next| ports[*next as usize % ports.len()] == ingress);
        if goes_on && input.len() > 1 && !burst.is_full() {
            continue;
        }
        s += 1;
        let now = Now { s, ns: u64::from(s) * 1_000_000 };
        let cx = Context { snapshot: &snapshot, macs: &macs, counters: &counters, now };
        pipeline.run(cx, ingress, &mut burst, &mut sent);
        macs.sweep(4, s, |_| 3, |_| ());
    }
    let mut t = PortTotals::default();
    ports.iter().for_each(|p| t.add(counters.port(*p)));
    assert_eq!(t.rx_frames, frames);
    assert_eq!(t.rx_frames + t.clones, sent.0 + t.drops.iter().sum::<u64>());
}
