//! Where buffers come from, out of one memory size.
//!
//! Two thirds of the memory are buffers of the standard pools; the rest is for rings, for the
//! buffers of jumbo ports, and for AF_XDP, which wants memory of its own for each interface. Where
//! the workers' cores are of several NUMA nodes, each node has a share, for the devices near to it.

use dunlin_dpdk::{
    DpdkError,
    eal::Eal,
    mempool::{FRAME_ROOM, JUMBO_ROOM, Mempool, STANDARD_ROOM, WeakMempool},
};

/// Buffers of one AF_XDP interface: its fill, receive and transmit rings hold 2,048 each.
const XDP_BUFFERS: u32 = 8191;
const LINEAR_BUFFERS: u32 = 511;

/// All pools of the dataplane.
pub struct Pools {
    eal: Eal,
    /// At least one.
    nodes: Vec<NodePools>,
    /// For bringing chains into one piece.
    pub linear: Mempool,
    jumbo_buffers: u32,
    /// Of the AF_XDP interfaces that are open, or were.
    xdp: Vec<(String, WeakMempool)>,
}

struct NodePools {
    /// `None` where nodes don't matter.
    node: Option<u32>,
    standard: Mempool,
    jumbo: Option<Mempool>,
}

impl Pools {
    /// The least memory that makes sense, in MiB.
    pub const MIN_MEMORY_MB: u32 = 64;

    /// For workers on these NUMA nodes; none where that does not matter.
    pub fn new(eal: Eal, memory_mb: u32, hugepages: bool, nodes: &[u32]) -> Result<Self, DpdkError> {
        let budget = u64::from(memory_mb) * 1024 * 1024 * 2 / 3;
        let linear_takes = u64::from(LINEAR_BUFFERS) * Mempool::footprint(FRAME_ROOM, hugepages);
        let shares = nodes.len().max(1) as u64;
        let size = budget.saturating_sub(linear_takes) / shares / Mempool::footprint(STANDARD_ROOM, hugepages);
        // One less than a power of two wastes no slot of the ring behind a pool.
        let size = size.clamp(1023, (1 << 24) - 1) as u32;
        let of_node =
            |node| Ok(NodePools { node, standard: Mempool::new(&eal, size, STANDARD_ROOM, node)?, jumbo: None });
        let nodes: Vec<Option<u32>> =
            if nodes.is_empty() { vec![None] } else { nodes.iter().copied().map(Some).collect() };
        Ok(Pools {
            eal,
            nodes: nodes.into_iter().map(of_node).collect::<Result<_, DpdkError>>()?,
            linear: Mempool::new(&eal, LINEAR_BUFFERS, FRAME_ROOM, None)?,
            xdp: Vec::new(),
            jumbo_buffers: (budget / 5 / shares / Mempool::footprint(JUMBO_ROOM, hugepages)).clamp(511, 65_535) as u32,
        })
    }

    /// Whether frames of this MTU need larger buffers than the standard ones.
    pub fn is_jumbo(mtu: u32) -> bool {
        // AF_PACKET's headers are in the slot, which is no larger than the buffer.
        mtu + 14 + 8 + 100 > u32::from(STANDARD_ROOM)
    }

    fn place(&self, node: Option<u32>) -> usize {
        self.nodes.iter().position(|n| n.node == node).unwrap_or(0)
    }

    /// Ordinary buffers, of a node if it has some.
    pub fn standard(&self, node: Option<u32>) -> &Mempool {
        &self.nodes[self.place(node)].standard
    }

    /// The pool for a device on a node that receives frames of `mtu`.
    pub fn for_mtu(&mut self, mtu: u32, node: Option<u32>) -> Result<Mempool, DpdkError> {
        if !Self::is_jumbo(mtu) {
            return Ok(self.standard(node).clone());
        }
        let place = self.place(node);
        let pools = &mut self.nodes[place];
        if pools.jumbo.is_none() {
            pools.jumbo = Some(Mempool::new(&self.eal, self.jumbo_buffers, JUMBO_ROOM, pools.node)?);
        }
        Ok(pools.jumbo.clone().expect("made above"))
    }

    /// A pool of its own for an AF_XDP interface.
    pub fn for_xdp(&mut self, interface: &str, node: Option<u32>) -> Result<Mempool, DpdkError> {
        let node = self.nodes[self.place(node)].node;
        let pool = Mempool::for_device(&self.eal, XDP_BUFFERS, STANDARD_ROOM, node)?;
        self.xdp.retain(|(name, pool)| name != interface && pool.upgrade().is_some());
        self.xdp.push((interface.to_owned(), pool.downgrade()));
        Ok(pool)
    }

    /// Name, pool. The name of one of a node ends in its number, that of an AF_XDP interface's in the interface.
    pub fn all(&self) -> Vec<(String, Mempool)> {
        let of_node = |n: &NodePools, name: &str| n.node.map_or(name.to_owned(), |node| format!("{name}-{node}"));
        let nodes = self.nodes.iter().flat_map(|n| {
            let jumbo = n.jumbo.clone().map(|p| (of_node(n, "jumbo"), p));
            [Some((of_node(n, "standard"), n.standard.clone())), jumbo].into_iter().flatten()
        });
        let xdp = self.xdp.iter().filter_map(|(name, pool)| Some((format!("xdp-{name}"), pool.upgrade()?)));
        nodes.chain([("linear".to_owned(), self.linear.clone())]).chain(xdp).collect()
    }
}
