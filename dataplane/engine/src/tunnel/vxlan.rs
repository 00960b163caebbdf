//! VXLAN (RFC 7348, 5): a flag that says that there is a VNI, and the VNI.

/// "There is a VNI."
const I: u8 = 0x08;

/// The first half of the header; the second is the VNI and a reserved octet.
pub(super) const FIRST: [u8; 4] = [I, 0, 0, 0];

/// The VNI, and the octets of the header that a payload begins with; `None` if it is cut or has none. What
/// is reserved is ignored, as the RFC says.
#[inline(always)]
pub(super) fn read(payload: &[u8]) -> Option<(u32, usize)> {
    let h = payload.first_chunk::<8>()?;
    (h[0] & I != 0).then(|| (u32::from_be_bytes([0, h[4], h[5], h[6]]), 8))
}
