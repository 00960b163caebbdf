//! VXLAN (RFC 7348, 5): eight octets, of which a flag says that there is a VNI, and three are that.

/// Octets of the header.
pub(crate) const LEN: usize = 8;
/// "There is a VNI."
const I: u8 = 0x08;

/// Writes a header into the first [`LEN`] octets.
pub(crate) fn write(to: &mut [u8], vni: u32) {
    to[..LEN].copy_from_slice(&[I, 0, 0, 0, 0, 0, 0, 0]);
    set_vni(to, vni);
}

/// Puts the VNI into a header that is there.
#[inline(always)]
pub(crate) fn set_vni(header: &mut [u8], vni: u32) {
    header[4..8].copy_from_slice(&(vni << 8).to_be_bytes());
}

/// The VNI of the header that a payload begins with; `None` if it is too short or has none. What is
/// reserved is ignored, as the RFC says.
#[inline(always)]
pub(crate) fn read(payload: &[u8]) -> Option<u32> {
    let h = payload.first_chunk::<LEN>()?;
    (h[0] & I != 0).then(|| u32::from_be_bytes([0, h[4], h[5], h[6]]))
}
