//! A DPDK buffer as the engine's frame.

use dunlin_dpdk::{Mbuf, offload};
use dunlin_engine::{
    Frame,
    packet::{sum_of, sum_of_pieces},
};

/// An [`Mbuf`], so that the engine's trait can be had for it.
#[repr(transparent)]
pub struct Packet(pub Mbuf);

impl From<Mbuf> for Packet {
    #[inline(always)]
    fn from(m: Mbuf) -> Self {
        Packet(m)
    }
}

impl From<Packet> for Mbuf {
    #[inline(always)]
    fn from(p: Packet) -> Self {
        p.0
    }
}

impl Frame for Packet {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.0.len()
    }
    #[inline(always)]
    fn head(&self) -> &[u8] {
        self.0.head()
    }
    #[inline(always)]
    fn wire_len(&self) -> u32 {
        offload::wire_len(&self.0)
    }
    #[inline(always)]
    fn is_plain(&self) -> bool {
        self.0.is_plain()
    }
    #[inline(always)]
    fn prefetch(&self) {
        self.0.prefetch();
    }
    fn share(&self) -> Self {
        Packet(self.0.share())
    }
    fn copy(&self) -> Option<Self> {
        self.0.copy().map(Packet)
    }
    #[inline(always)]
    fn is_shared(&self) -> bool {
        self.0.is_shared()
    }
    fn push_tag(&mut self, tpid: u16, tci: u16) -> bool {
        self.0.push_tag(tpid, tci)
    }
    fn pop_tag(&mut self) {
        self.0.pop_tag();
    }
    fn pad(&mut self, len: u32) {
        self.0.pad(len);
    }
    #[inline(always)]
    fn grow_front(self, n: usize) -> Option<Self> {
        self.0.grow_front(n as u16).map(Packet)
    }
    #[inline(always)]
    fn sum(&self, from: usize) -> u16 {
        match self.0.segments() {
            1 => sum_of(&self.0.head()[from..]),
            _ => sum_of_pieces(std::iter::once(&self.0.head()[from..]).chain(self.0.pieces().skip(1))),
        }
    }
    #[inline(always)]
    fn head_mut(&mut self) -> &mut [u8] {
        self.0.head_mut()
    }
    #[inline(always)]
    fn cut(&mut self, from: usize, len: u32) {
        self.0.cut(from, len);
    }
}
