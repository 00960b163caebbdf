//! The slow oracle: a plain reading of ovs-vswitchd.conf.db(5), table Port, frame by frame.

use std::collections::HashMap;

use dunlin_engine::{
    snapshot::topology::PortPolicy,
    vlan::{PriorityTags, VlanMode},
};

/// A frame: last octets of the addresses (255 is broadcast) and its tags, outer first.
#[derive(Clone, Debug)]
pub struct Wire {
    pub dst: u8,
    pub src: u8,
    pub tags: Vec<(u16, u16)>,
}

/// A frame inside the switch: the VLAN it is in, and the tags that are payload there.
struct Inside {
    vid: u16,
    priority: u16,
    tpid: u16,
    payload: Vec<(u16, u16)>,
}

pub struct Oracle {
    ports: Vec<PortPolicy>,
    /// (bridge, VLAN, address) → port.
    learned: HashMap<(String, u16, u8), usize>,
}

impl Oracle {
    pub fn new(ports: Vec<PortPolicy>) -> Self {
        Oracle { ports, learned: HashMap::new() }
    }

    /// Ports and tags that the frame leaves with, in the order of the ports.
    pub fn forward(&mut self, from: usize, wire: &Wire) -> Vec<(usize, Vec<(u16, u16)>)> {
        let bridge = self.ports[from].bridge.clone();
        let Some(inside) = self.admit(from, wire) else { return Vec::new() };
        self.learned.insert((bridge.clone(), inside.vid, wire.src), from);
        let known = self.learned.get(&(bridge.clone(), inside.vid, wire.dst)).copied();
        let to: Vec<usize> = match known {
            Some(port) if wire.dst != 0xff => vec![port],
            _ => (0..self.ports.len()).collect(),
        };
        to.into_iter()
            .filter(|p| *p != from && self.ports[*p].bridge == bridge)
            .filter(|p| !(self.ports[*p].forwarding.protected && self.ports[from].forwarding.protected))
            .filter_map(|p| Some((p, self.leave(p, &inside)?)))
            .collect()
    }

    fn admit(&self, from: usize, wire: &Wire) -> Option<Inside> {
        let outer = wire.tags.first().copied();
        let vid = outer.map_or(0, |(_, tci)| tci & 0xfff);
        let priority = outer.map_or(0, |(_, tci)| tci & 0xf000);
        let mode = &self.ports[from].vlan;
        if let VlanMode::Dot1qTunnel { vid: service, cvlans, tpid } = mode {
            let inside = Inside { vid: service.get(), priority, tpid: *tpid, payload: wire.tags.clone() };
            return cvlans.contains(vid).then_some(inside);
        }
        let payload: Vec<_> = wire.tags.iter().skip(1).copied().collect();
        // Behind a priority tag, the next switch would take it for the VLAN.
        if vid == 0 && !payload.is_empty() {
            return None;
        }
        // A priority tag makes no VLAN; what it is in is decided as for an untagged frame.
        let tpid = if vid == 0 { 0x8100 } else { outer.map_or(0x8100, |(tpid, _)| tpid) };
        let inside = |vid| Some(Inside { vid, priority, tpid, payload });
        match mode {
            VlanMode::Access { vid: v } => {
                if vid == 0 {
                    inside(v.get())
                } else {
                    None
                }
            }
            VlanMode::Trunk { vlans } => {
                if vlans.contains(vid) {
                    inside(vid)
                } else {
                    None
                }
            }
            VlanMode::NativeTagged { native, vlans } | VlanMode::NativeUntagged { native, vlans } => match vid {
                0 => inside(native.get()),
                v if v == native.get() || vlans.contains(v) => inside(v),
                _ => None,
            },
            VlanMode::Dot1qTunnel { .. } => unreachable!("done above"),
        }
    }

    fn leave(&self, to: usize, f: &Inside) -> Option<Vec<(u16, u16)>> {
        let port = &self.ports[to];
        let tagged = match &port.vlan {
            VlanMode::Access { vid } if vid.get() == f.vid => false,
            VlanMode::Dot1qTunnel { vid, cvlans, .. } if vid.get() == f.vid => {
                if !cvlans.contains(f.payload.first().map_or(0, |(_, tci)| tci & 0xfff)) {
                    return None;
                }
                false
            }
            VlanMode::Access { .. } | VlanMode::Dot1qTunnel { .. } => return None,
            VlanMode::Trunk { vlans } => {
                if vlans.contains(f.vid) {
                    f.vid != 0
                } else {
                    return None;
                }
            }
            VlanMode::NativeTagged { native, vlans } => {
                if f.vid == native.get() || vlans.contains(f.vid) {
                    f.vid != 0
                } else {
                    return None;
                }
            }
            VlanMode::NativeUntagged { native, vlans } => match f.vid {
                v if v == native.get() => false,
                v if vlans.contains(v) => v != 0,
                _ => return None,
            },
        };
        // The same behind a tag that is taken off, where others stay.
        if !tagged
            && !f.payload.is_empty()
            && !matches!(port.vlan, VlanMode::Access { .. } | VlanMode::Dot1qTunnel { .. })
        {
            return None;
        }
        let priority_tag = match port.forwarding.priority_tags {
            PriorityTags::Never => false,
            PriorityTags::IfNonzero => f.priority != 0,
            PriorityTags::Always => true,
        };
        let outer = if tagged {
            Some((f.tpid, f.priority | f.vid))
        } else if priority_tag {
            Some((0x8100, f.priority))
        } else {
            None
        };
        Some(outer.into_iter().chain(f.payload.iter().copied()).collect())
    }
}
