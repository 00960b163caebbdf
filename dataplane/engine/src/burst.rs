//! A burst of frames, and what the stages find out about it: what each stage takes and leaves for the next.

use arrayvec::ArrayVec;

use crate::{
    DropReason, Frame, MacAddr, PortIdx, SegmentId,
    types::{Hash, Key},
    vlan::{TPID_8021Q, Tag, VlanTagInfo},
};

/// The most frames taken through the stages together.
pub const BURST: usize = 128;

/// A bit for each frame of a burst, the first one lowest.
pub(crate) type Mask = u128;

/// The most frames whose headers are read together, and that are filtered together: a burst is filtered in chunks.
pub(crate) const CHUNK: usize = 64;

/// A bit for each frame of a chunk, the first one lowest.
pub(crate) type ChunkMask = u64;

const _: () = assert!(CHUNK == ChunkMask::BITS as usize);

/// A bit for each of `n` frames.
#[inline(always)]
pub(crate) fn low_bits(n: usize) -> ChunkMask {
    ChunkMask::MAX.checked_shr((CHUNK - n.min(CHUNK)) as u32).unwrap_or(0)
}

/// Those of the bits in `of` whose number is meant.
#[inline(always)]
pub(crate) fn filter_mask(of: ChunkMask, is_meant: impl Fn(usize) -> bool) -> ChunkMask {
    iter_bits(of).fold(0, |all, i| all | ChunkMask::from(is_meant(i)) << i)
}

/// The numbers of the bits that are set, the lowest first.
#[inline(always)]
pub(crate) fn iter_bits(mut set: ChunkMask) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let i = set.trailing_zeros();
        set &= set.wrapping_sub(1);
        (i < ChunkMask::BITS).then_some(i as usize)
    })
}

/// The frames of one burst.
pub type Burst<F> = ArrayVec<F, BURST>;

/// What happens to a frame, in one word: a port's number, [`Fate::FLOOD`], or above that a reason to
/// drop it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fate(u32);

/// A [`Fate`], taken apart.
pub(crate) enum Verdict {
    /// Leaves by one port.
    Unicast(PortIdx),
    /// To all other ports of its segment.
    Flood,
    /// Dropped.
    Drop(DropReason),
}

impl Fate {
    pub(crate) const FLOOD: Fate = Fate(1 << 16);

    #[inline(always)]
    pub(crate) const fn unicast(to: PortIdx) -> Self {
        Fate(to.get() as u32)
    }

    #[inline(always)]
    pub(crate) const fn drop(reason: DropReason) -> Self {
        Fate(Self::FLOOD.0 + 1 + reason as u32)
    }

    #[inline(always)]
    pub(crate) const fn bits(self) -> u32 {
        self.0
    }

    /// The place of a port, or of floods, in a table of [`MAX_PORTS`] and one more.
    ///
    /// [`MAX_PORTS`]: crate::MAX_PORTS
    #[inline(always)]
    pub(crate) fn place(self) -> usize {
        if self == Self::FLOOD { crate::MAX_PORTS } else { self.0 as usize & (crate::MAX_PORTS - 1) }
    }

    #[inline(always)]
    pub(crate) fn verdict(self) -> Verdict {
        match self.0.checked_sub(Self::FLOOD.0) {
            None => Verdict::Unicast(PortIdx::from_raw(self.0 as u16)),
            Some(0) => Verdict::Flood,
            Some(n) => Verdict::Drop(DropReason::ALL[n as usize - 1]),
        }
    }
}

/// Frames of a burst that go no further: bit i is frame i, whose reason is its fate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Refused(Mask);

const _: () = assert!(BURST == Mask::BITS as usize);

impl Refused {
    pub(crate) const NONE: Refused = Refused(0);

    #[inline(always)]
    pub(crate) fn add(&mut self, i: usize) {
        self.0 |= 1 << i;
    }

    pub(crate) fn has(self, i: usize) -> bool {
        self.0 >> i & 1 == 1
    }

    /// Those of the burst's `chunk`-th [`CHUNK`].
    pub(crate) fn chunk(self, chunk: usize) -> ChunkMask {
        (self.0 >> (chunk * CHUNK)) as ChunkMask
    }

    /// Adds some of the burst's `chunk`-th [`CHUNK`].
    pub(crate) fn add_chunk(&mut self, chunk: usize, of: ChunkMask) {
        self.0 |= Mask::from(of) << (chunk * CHUNK);
    }
}

/// The numbers of the bits that are set, the lowest first.
#[inline(always)]
pub(crate) fn numbers(set: Mask) -> impl Iterator<Item = usize> {
    // In halves: a register has 64 bits.
    let halves = [set as ChunkMask, (set >> CHUNK) as ChunkMask].into_iter().enumerate();
    halves.flat_map(|(half, set)| iter_bits(set).map(move |i| half * CHUNK + i))
}

/// What is known of a burst as a whole. Of one that frames were taken out of, all but `octets` may be as before.
#[derive(Clone, Copy)]
pub(crate) struct BurstInfo {
    /// Of all frames.
    pub octets: u64,
    /// Of the largest frame.
    pub largest: u32,
    /// Every frame is what [`Frame::is_plain`] says.
    pub plain: bool,
    /// Every frame is in the same VLAN, tagged alike.
    pub same_class: bool,
}

impl BurstInfo {
    /// Of no frames.
    pub(crate) const NONE: BurstInfo = BurstInfo { octets: 0, largest: 0, plain: true, same_class: true };

    /// Of one frame.
    #[inline(always)]
    pub(crate) fn of<F: Frame>(frame: &F) -> Self {
        let mut info = BurstInfo::NONE;
        info.add(frame);
        info
    }

    /// Takes in one more, of the same class.
    #[inline(always)]
    pub(crate) fn add<F: Frame>(&mut self, frame: &F) {
        self.octets += u64::from(frame.len());
        self.largest = self.largest.max(frame.len());
        self.plain &= frame.is_plain();
    }
}

/// What the stages found out about one frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meta {
    /// Destination and segment.
    pub dst: Key,
    /// Source and segment.
    pub src: Key,
    pub dst_hash: Hash,
    pub src_hash: Hash,
    /// Its VLAN, and how it shows it.
    pub class: VlanTagInfo,
    pub fate: Fate,
}

impl Meta {
    pub(crate) const EMPTY: Meta = Meta {
        dst: Key::new(MacAddr::BROADCAST, SegmentId::NONE),
        src: Key::new(MacAddr::BROADCAST, SegmentId::NONE),
        dst_hash: Hash::ZERO,
        src_hash: Hash::ZERO,
        class: VlanTagInfo::new(Tag::NONE, TPID_8021Q, 0),
        fate: Fate::FLOOD,
    };
}
