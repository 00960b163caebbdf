//! Announcements of a station's own addresses, as a guest or its hypervisor sends them after a migration. An ACL that
//! permits only certain traffic would keep switches from learning the new location, and cut the guest off.
//!
//! RARP with the sender's own MAC address (as QEMU sends it) passes; gratuitous ARP (RFC 5227, 3) where port security
//! has checked that the IP address is the port's.

use crate::{
    Frame,
    burst::{ChunkMask as Mask, filter_mask, iter_bits},
    context::Context,
    packet::{
        ETHERTYPE_ARP, ETHERTYPE_RARP,
        headers::{ETHERTYPE, Heads},
    },
    snapshot::port_filter::Filter,
};

/// Those of the frames whose bits are in `of` that are announcements, for which lists are not asked.
#[inline(never)]
pub(super) fn of<F: Frame>(cx: &Context<'_>, filter: &Filter, of: Mask, heads: &Heads<'_, F>) -> Mask {
    let knows_addresses = filter.security.as_ref().is_some_and(|s| s.checks_arp());
    let announced = filter_mask(of, |i| {
        let ethertype = heads.columns.word(ETHERTYPE)[i] as u16;
        if ethertype != ETHERTYPE_RARP && !(ethertype == ETHERTYPE_ARP && knows_addresses) {
            return false;
        }
        let l3 = usize::from(heads.row(i).l3);
        let packet = heads.frames()[i].head().get(l3..).and_then(<[u8]>::first_chunk::<28>);
        packet.is_some_and(|p| is_of_itself(p, ethertype, heads.meta()[i].src.mac().octets()))
    });
    iter_bits(announced).for_each(|_| cx.note("ingress acl", || "it announces its own address: not asked".to_owned()));
    announced
}

/// Hardware addresses are the sender's own; of ARP, sender and target have one IP address.
fn is_of_itself(p: &[u8; 28], ethertype: u16, mac: [u8; 6]) -> bool {
    const ETHERNET_AND_IP: [u8; 6] = [0, 1, 8, 0, 6, 4];
    let (operation, sender, target) = (u16::from_be_bytes([p[6], p[7]]), &p[8..14], &p[18..24]);
    let is_its = p[..6] == ETHERNET_AND_IP && sender == mac;
    match ethertype {
        // A request for the address of the sender itself.
        ETHERTYPE_RARP => is_its && operation == 3 && target == mac,
        _ => is_its && p[14..18] == p[24..28] && p[14..18] != [0; 4],
    }
}
