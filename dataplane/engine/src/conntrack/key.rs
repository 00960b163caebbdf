//! What a connection is found by: whose it is, its protocol, and its ends in an order that does not depend on who sends.

/// Both ends of an IPv4 frame, in the order that its connection has them: by address, then by port.
#[derive(Clone, Copy)]
pub(super) struct Ends4 {
    /// Addresses.
    pub low: u32,
    pub high: u32,
    /// The lower end's in the upper half.
    pub ports: u32,
    /// The lower end sent it.
    pub from_low: bool,
}

impl Ends4 {
    /// Ports are below 65,536. Without a branch: for whole bursts, the compiler makes vectors of it.
    #[inline(always)]
    pub fn new((src, sport): (u32, u32), (dst, dport): (u32, u32)) -> Ends4 {
        let from_low = (src < dst) | ((src == dst) & (sport <= dport));
        let ports = if from_low { sport << 16 | dport } else { dport << 16 | sport };
        Ends4 { low: src.min(dst), high: src.max(dst), ports, from_low }
    }

    /// The key of a connection between them, of whom the upper half of `whose` says.
    #[inline(always)]
    pub fn key(&self, whose: u64, protocol: u32) -> [u64; 3] {
        [whose | u64::from(self.ports), u64::from(self.low) << 32 | u64::from(self.high), u64::from(protocol)]
    }
}

/// The key of IPv6 between two ends, the lower one first, of whom the upper half of `whose` says.
#[inline(always)]
pub(super) fn between6(whose: u64, (low, high): ([u64; 3], [u64; 3]), protocol: u64) -> [u64; 6] {
    [whose | low[2] << 16 | high[2], low[0], low[1], high[0], high[1], protocol]
}

/// The words of a key that IPv4 has.
#[inline(always)]
pub(super) fn key4(key: &[u64; 6]) -> &[u64; 3] {
    key.first_chunk().expect("six are more than three")
}
