//! What the engine asks of a frame buffer, and the one that tests use.

/// A frame in a buffer that its holder owns (perhaps together with others: see [`Frame::share`]).
///
/// Dropping it gives the buffer back. The header octets are contiguous: `head()` holds the first
/// 64 octets, or all of a shorter frame.
#[allow(clippy::len_without_is_empty, reason = "no frame is empty")]
pub trait Frame: Sized {
    /// Octets on the wire without FCS; for a frame that still has to be segmented, all of it.
    fn len(&self) -> u32;

    /// The contiguous front of the frame.
    fn head(&self) -> &[u8];

    /// Octets of the largest frame this becomes on the wire: `len()`, or the size of one segment
    /// when the sender left segmentation to the switch.
    fn wire_len(&self) -> u32;

    /// In one buffer, and no checksum or segmentation is left to the switch: `wire_len` is `len`.
    fn is_plain(&self) -> bool;

    /// Asks for the header's cache line.
    fn prefetch(&self);

    /// One more owner of the same buffer. Nobody writes into a buffer with several owners.
    fn share(&self) -> Self;

    /// A buffer of one's own with the same octets; `None` when there is none left.
    fn copy(&self) -> Option<Self>;

    /// Whether others own the buffer too.
    fn is_shared(&self) -> bool;

    /// Puts `tpid`, `tci` behind the addresses. `false`, and unchanged, if there is no room.
    ///
    /// # Panics
    /// May panic if the buffer is shared or shorter than the addresses.
    #[must_use]
    fn push_tag(&mut self, tpid: u16, tci: u16) -> bool;

    /// Takes out the tag behind the addresses.
    ///
    /// # Panics
    /// May panic if the buffer is shared or shorter than addresses and tag.
    fn pop_tag(&mut self);

    /// Adds octets of zero up to a length of `len`, as far as there is room.
    ///
    /// # Panics
    /// May panic if the buffer is shared.
    fn pad(&mut self, len: u32);

    /// A frame with `n` octets more at its front, which are the caller's to write by
    /// [`Frame::head_mut`]. What was there stays where it is, also if others own it too. `None` when
    /// there is no buffer left.
    fn grow_front(self, n: usize) -> Option<Self>;

    /// The sum of all octets from `from` on, which are in the front, as 16-bit words ([`crate::packet::sum_of`]).
    fn sum(&self, from: usize) -> u16;

    /// The contiguous front, for writing.
    ///
    /// # Panics
    /// May panic if the buffer is shared.
    fn head_mut(&mut self) -> &mut [u8];

    /// Leaves `len` octets from `from` on, as far as they are there.
    ///
    /// # Panics
    /// May panic if the buffer is shared or not plain.
    fn cut(&mut self, from: usize, len: u32);
}

/// A frame in ordinary memory, for tests, fuzzing and tracing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeapFrame {
    data: std::sync::Arc<Vec<u8>>,
    /// As [`Frame::wire_len`], when it differs from the length.
    pub segment_len: Option<u32>,
}

impl HeapFrame {
    /// A frame with these octets.
    pub fn new(octets: impl Into<Vec<u8>>) -> Self {
        HeapFrame { data: std::sync::Arc::new(octets.into()), segment_len: None }
    }

    /// All of its octets.
    pub fn octets(&self) -> &[u8] {
        &self.data
    }

    fn own(&mut self) -> &mut Vec<u8> {
        std::sync::Arc::get_mut(&mut self.data).expect("a shared buffer is not written")
    }
}

impl Frame for HeapFrame {
    fn len(&self) -> u32 {
        self.data.len() as u32
    }
    fn head(&self) -> &[u8] {
        &self.data
    }
    fn wire_len(&self) -> u32 {
        self.segment_len.unwrap_or(self.len())
    }
    fn is_plain(&self) -> bool {
        self.segment_len.is_none()
    }
    fn prefetch(&self) {}
    fn share(&self) -> Self {
        self.clone()
    }
    fn copy(&self) -> Option<Self> {
        Some(HeapFrame { data: std::sync::Arc::new(self.data.to_vec()), segment_len: self.segment_len })
    }
    fn is_shared(&self) -> bool {
        std::sync::Arc::strong_count(&self.data) > 1
    }
    fn push_tag(&mut self, tpid: u16, tci: u16) -> bool {
        let [t, c] = [tpid.to_be_bytes(), tci.to_be_bytes()];
        self.own().splice(12..12, [t[0], t[1], c[0], c[1]]);
        true
    }
    fn pop_tag(&mut self) {
        self.own().drain(12..16);
    }
    fn pad(&mut self, len: u32) {
        let own = self.own();
        own.resize(own.len().max(len as usize), 0);
    }
    fn grow_front(self, n: usize) -> Option<Self> {
        let octets = [&vec![0; n], self.octets()].concat();
        Some(HeapFrame { data: octets.into(), segment_len: self.segment_len })
    }
    fn sum(&self, from: usize) -> u16 {
        crate::packet::sum_of(&self.data[from..])
    }
    fn head_mut(&mut self) -> &mut [u8] {
        self.own()
    }
    fn cut(&mut self, from: usize, len: u32) {
        let own = self.own();
        own.drain(..from.min(own.len()));
        own.truncate(len as usize);
    }
}
