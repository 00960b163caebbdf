//! What filters ask of a frame, read once: addresses, EtherType, VLAN, IPv4 or IPv6 with its extension
//! headers, ports, ICMP type, TCP flags. Everything is a number in a row of words, so that rules are ranges
//! of words and one classifier serves all of them.
//!
//! Every octet is untrusted: what is cut short, or says lengths that it does not have, reads as a frame
//! without the fields that are missing, which only rules that don't ask for them match.

mod batch;
pub mod state;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{
    MacAddr,
    packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6},
    vlan::is_tag,
};
pub(crate) use batch::{HeaderBatch, Heads, inside, parts, set};

/// Words of [`Headers`].
pub(crate) const WORDS: usize = 20;
/// IPv4 address, or the first word of an IPv6 address, of the source; then of the destination.
pub(crate) const SRC: usize = 0;
pub(crate) const DST: usize = 1;
/// Ports, or ICMP type and code; [`NO_PORT`] where there are none.
pub(crate) const SPORT: usize = 2;
pub(crate) const DPORT: usize = 3;
/// IP protocol, behind extension headers.
pub(crate) const PROTOCOL: usize = 4;
pub(crate) const ETHERTYPE: usize = 5;
pub(crate) const VLAN: usize = 6;
/// One of [`state`], as a number, or 0.
pub(crate) const STATE: usize = 7;
/// The other three words of an IPv6 source, and of a destination.
pub(crate) const SRC6: usize = 8;
pub(crate) const DST6: usize = 11;
/// The upper 32 bits of the source's MAC address, its lower 16; the same of the destination.
pub(crate) const SRC_MAC: usize = 14;
pub(crate) const DST_MAC: usize = 16;
/// TCP flags; [`NO_PORT`] where there are none.
pub(crate) const FLAGS: usize = 18;
pub(crate) const FRAGMENT: usize = 19;
/// Words that can be compared with ranges: those before flags.
pub(crate) const COLUMNS: usize = FLAGS;

/// In the place of a port that is not there: matched by no rule that asks for one.
pub(crate) const NO_PORT: u32 = 0x1_0000;

/// ICMP, TCP, UDP, SCTP and ICMPv6.
pub const ICMP: u8 = 1;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// ICMP for IPv6.
pub const ICMPV6: u8 = 58;
/// SCTP.
pub const SCTP: u8 = 132;

/// The most extension headers that are looked through (RFC 8200 has each of them once but one twice).
const MAX_EXTENSIONS: usize = 8;
/// What is less in the place of an EtherType is the length of an IEEE 802.3 frame (3.2.6).
const LEAST_ETHERTYPE: u16 = 0x600;

/// What sort of packet is in a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Family {
    /// Neither, ARP among them.
    Other,
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Headers {
    pub(crate) words: [u32; WORDS],
    /// Identification of an IP fragment.
    pub(crate) fragment_id: u32,
    /// An echo's identifier that a later fragment was lent by its first one.
    pub(crate) inherited_id: u16,
    /// Where the packet begins, where its layer 4 begins, and where the packet ends by its own words.
    pub(crate) l3: u16,
    pub(crate) l4: u16,
    pub(crate) end: u32,
    pub(crate) family: Family,
    /// Its headers end before layer 4 does, or are not what they say.
    pub(crate) broken: bool,
}

impl Headers {
    /// Of nothing.
    pub(crate) const EMPTY: Headers = Headers {
        words: [0; WORDS],
        fragment_id: 0,
        inherited_id: 0,
        l3: 0,
        l4: 0,
        end: 0,
        family: Family::Other,
        broken: false,
    };

    /// Reads a frame whose Ethernet header ends at `l3`, in this VLAN, with these addresses.
    pub fn read(head: &[u8], l3: usize, vid: u16, dst: MacAddr, src: MacAddr) -> Headers {
        let mut h = Headers { l3: l3 as u16, end: head.len() as u32, ..Headers::EMPTY };
        let w = &mut h.words;
        (w[SRC_MAC], w[SRC_MAC + 1]) = ((src.bits() >> 16) as u32, src.bits() as u32 & 0xffff);
        (w[DST_MAC], w[DST_MAC + 1]) = ((dst.bits() >> 16) as u32, dst.bits() as u32 & 0xffff);
        w[VLAN] = u32::from(vid & 0xfff);
        (w[SPORT], w[DPORT], w[FLAGS]) = (NO_PORT, NO_PORT, NO_PORT);
        let from_type = head.get(l3 - 2..).unwrap_or_default();
        let is_plain = from_type.first_chunk::<42>().is_some_and(|p| h.read_plain_v4(p));
        if !is_plain {
            h.read_any(head);
        }
        h
    }

    #[inline(never)]
    fn read_any(&mut self, head: &[u8]) {
        let ethertype = |l3: u16| {
            let t = head.get(usize::from(l3) - 2..).and_then(<[u8]>::first_chunk::<2>);
            t.map(|t| u16::from_be_bytes(*t))
        };
        let mut found = ethertype(self.l3);
        if found.is_some_and(is_tag) {
            // A customer's tag, or one that is to hide what is behind: many a station looks behind it too.
            self.l3 += 4;
            found = ethertype(self.l3);
        }
        if found.is_some_and(|length| length < LEAST_ETHERTYPE) {
            match snap(head, self.l3.into()) {
                Llc::Snap => {
                    self.l3 += 8;
                    found = ethertype(self.l3);
                }
                Llc::Ambiguous => self.broken = true,
                Llc::Other => {}
            }
        }
        self.broken |= found.is_none_or(is_tag);
        self.words[ETHERTYPE] = u32::from(found.unwrap_or(0));
        match found {
            Some(ETHERTYPE_IPV4) => self.read_v4(head),
            Some(ETHERTYPE_IPV6) => self.read_v6(head),
            _ => {}
        }
    }

    /// What most frames are: IPv4 without options, whole, with as much behind its header as any of layer 4 takes.
    /// `p` begins with the EtherType. Whether it was that.
    #[inline(always)]
    fn read_plain_v4(&mut self, p: &[u8; 42]) -> bool {
        let word = |at: usize| u32::from_be_bytes([p[at], p[at + 1], p[at + 2], p[at + 3]]);
        let total = word(2) & 0xffff;
        let fragment = word(6) & 0x3fff;
        let protocol = p[11];
        let l4 = Layer4::of(u32::from(protocol), word(22));
        if word(0) >> 8 != 0x08_0045 || fragment != 0 || total < 20 + l4.needed {
            return false;
        }
        self.family = Family::V4;
        (self.l4, self.end) = (self.l3 + 20, u32::from(self.l3) + total);
        let w = &mut self.words;
        w[ETHERTYPE] = u32::from(ETHERTYPE_IPV4);
        (w[SRC], w[DST], w[PROTOCOL]) = (word(14), word(18), u32::from(protocol));
        l4.put(w, p[35]);
        true
    }

    fn read_v4(&mut self, head: &[u8]) {
        let l3 = usize::from(self.l3);
        let Some(p) = head[l3..].first_chunk::<20>() else { return self.broken = true };
        let header = usize::from(p[0] & 15) * 4;
        let total = usize::from(u16::from_be_bytes([p[2], p[3]]));
        self.family = Family::V4;
        self.words[SRC] = u32::from_be_bytes([p[12], p[13], p[14], p[15]]);
        self.words[DST] = u32::from_be_bytes([p[16], p[17], p[18], p[19]]);
        self.words[PROTOCOL] = u32::from(p[9]);
        self.end = (l3 + total) as u32;
        if p[0] >> 4 != 4 || header < 20 || total < header {
            return self.broken = true;
        }
        let fragment = u16::from_be_bytes([p[6], p[7]]) & 0x3fff;
        let offset = fragment & 0x1fff;
        if fragment != 0 {
            self.fragment((offset, total - header), u32::from(u16::from_be_bytes([p[4], p[5]])));
        }
        if offset == 0 {
            self.read_l4(head, l3 + header, p[9]);
        }
    }

    #[inline(never)]
    fn read_v6(&mut self, head: &[u8]) {
        let l3 = usize::from(self.l3);
        let Some(p) = head[l3..].first_chunk::<40>() else { return self.broken = true };
        self.family = Family::V6;
        let word = |at: usize| u32::from_be_bytes([p[at], p[at + 1], p[at + 2], p[at + 3]]);
        (self.words[SRC], self.words[DST]) = (word(8), word(24));
        for i in 0..3 {
            (self.words[SRC6 + i], self.words[DST6 + i]) = (word(12 + 4 * i), word(28 + 4 * i));
        }
        self.end = (l3 + 40) as u32 + u32::from(u16::from_be_bytes([p[4], p[5]]));
        let (mut next, mut at) = (p[6], l3 + 40);
        self.broken = p[0] >> 4 != 6;
        for _ in 0..MAX_EXTENSIONS {
            self.words[PROTOCOL] = u32::from(next);
            let packet = &head[..head.len().min(self.end as usize)];
            let Some(e) = packet.get(at..).and_then(<[u8]>::first_chunk::<8>) else {
                self.broken |= is_extension(next);
                // Nothing is behind "no next header" (RFC 8200, 4.7).
                return if next != 59 {
                    self.read_l4(head, at, next)
                };
            };
            match next {
                // Authentication counts otherwise (RFC 4302, 2.2).
                51 => at += 8 + usize::from(e[1]) * 4,
                44 => {
                    let offset = u16::from_be_bytes([e[2], e[3]]);
                    // An atomic fragment is none (RFC 6946).
                    if offset & 0xfff9 != 0 {
                        let len = (self.end as usize).saturating_sub(at + 8);
                        self.fragment((offset >> 3, len), u32::from_be_bytes([e[4], e[5], e[6], e[7]]));
                    }
                    if offset & 0xfff8 != 0 {
                        return self.words[PROTOCOL] = u32::from(e[0]);
                    }
                    at += 8;
                }
                _ if is_extension(next) => at += 8 + usize::from(e[1]) * 8,
                _ => return self.read_l4(head, at, next),
            }
            next = e[0];
        }
        self.broken = true;
    }

    /// It is a fragment at this offset, in units of 8 octets, and so long.
    #[cold]
    fn fragment(&mut self, (offset, len): (u16, usize), id: u32) {
        let edge = if offset == 0 { len as u16 } else { offset << 3 };
        (self.words[FRAGMENT], self.fragment_id) = (u32::from(edge) << 16 | (1 + u32::from(offset != 0)), id);
    }

    /// Ports, or type and code, and flags.
    #[inline(always)]
    fn read_l4(&mut self, head: &[u8], at: usize, protocol: u8) {
        self.l4 = at as u16;
        // What is behind the packet's own end is padding, whatever it looks like.
        let packet = &head[..head.len().min(self.end as usize)];
        let behind = packet.get(at..).unwrap_or_default();
        let first = behind.first_chunk().map_or(0, |p| u32::from_be_bytes(*p));
        let l4 = Layer4::of(u32::from(protocol), first);
        if at > packet.len() || behind.len() < l4.needed as usize {
            return self.broken = true;
        }
        l4.put(&mut self.words, behind.get(13).copied().unwrap_or(0));
    }

    /// IP protocol.
    pub fn protocol(&self) -> u8 {
        self.words[PROTOCOL] as u8
    }

    /// The EtherType behind the tag.
    pub fn ethertype(&self) -> u16 {
        self.words[ETHERTYPE] as u16
    }

    /// Source and destination, if it is IP.
    pub fn addresses(&self) -> Option<(IpAddr, IpAddr)> {
        let w = &self.words;
        let v6 = |a: usize, b: usize| {
            let [a, b, c, d] = [w[a], w[b], w[b + 1], w[b + 2]].map(u128::from);
            IpAddr::V6(Ipv6Addr::from(a << 96 | b << 64 | c << 32 | d))
        };
        match self.family {
            Family::Other => None,
            Family::V4 => Some((Ipv4Addr::from(w[SRC]).into(), Ipv4Addr::from(w[DST]).into())),
            Family::V6 => Some((v6(SRC, SRC6), v6(DST, DST6))),
        }
    }

    /// Source and destination port, or type and code, if there are any.
    pub fn ports(&self) -> Option<(u16, u16)> {
        (self.words[SPORT] != NO_PORT).then_some((self.words[SPORT] as u16, self.words[DPORT] as u16))
    }

    /// Whether its protocol is what is behind all headers of IP: a later fragment may hide that.
    pub(crate) fn knows_protocol(&self) -> bool {
        !is_extension(self.protocol())
    }

    /// In octets of the datagram: where a first fragment ends, where a later one begins.
    pub(crate) fn fragment_edge(&self) -> u16 {
        (self.words[FRAGMENT] >> 16) as u16
    }

    /// Whether it is a fragment's second or later part.
    pub(crate) fn is_later_fragment(&self) -> bool {
        self.words[FRAGMENT] & 0xffff == 2
    }

    /// Source and destination of layer 2.
    pub fn macs(&self) -> (MacAddr, MacAddr) {
        let mac = |at: usize| MacAddr::from_bits(u64::from(self.words[at]) << 16 | u64::from(self.words[at + 1]));
        (mac(SRC_MAC), mac(DST_MAC))
    }

    /// The headers of what would come back: ends exchanged.
    pub(crate) fn reversed(&self) -> Headers {
        let mut r = *self;
        let mut swap = |a: usize, b: usize| r.words.swap(a, b);
        swap(SRC, DST);
        (0..3).for_each(|i| swap(SRC6 + i, DST6 + i));
        (0..2).for_each(|i| swap(SRC_MAC + i, DST_MAC + i));
        if !matches!(self.protocol(), ICMP | ICMPV6) {
            swap(SPORT, DPORT);
        }
        r
    }
}

/// What the first word behind an IP header says. Which protocol it is, frame by frame, can't be foretold: so numbers say it
/// and no branch, and for many frames, vectors.
struct Layer4 {
    /// Octets that its header takes; 0 if nothing is known of the protocol.
    needed: u32,
    /// As [`SPORT`] and [`DPORT`] have them.
    sport: u32,
    dport: u32,
    is_tcp: bool,
}

impl Layer4 {
    #[inline(always)]
    fn of(protocol: u32, first: u32) -> Layer4 {
        let tcp = u32::from(protocol == u32::from(TCP));
        let udp = u32::from(protocol == u32::from(UDP));
        let sctp = u32::from(protocol == u32::from(SCTP));
        let icmp = u32::from(protocol == u32::from(ICMP)) | u32::from(protocol == u32::from(ICMPV6));
        let needed = 20 * tcp + 8 * udp + 12 * sctp + 4 * icmp;
        let has_ports = (tcp | udp | sctp) != 0;
        let (sport, dport) = if has_ports { (first >> 16, first & 0xffff) } else { (NO_PORT, NO_PORT) };
        let (sport, dport) = if icmp != 0 { (first >> 24, first >> 16 & 0xff) } else { (sport, dport) };
        Layer4 { needed, sport, dport, is_tcp: tcp != 0 }
    }

    /// Takes it over; `flags` are TCP's, if it is that.
    #[inline(always)]
    fn put(&self, words: &mut [u32; WORDS], flags: u8) {
        (words[SPORT], words[DPORT]) = (self.sport, self.dport);
        words[FLAGS] = if self.is_tcp { u32::from(flags) } else { NO_PORT };
    }
}

/// What is behind the length of an IEEE 802.3 frame.
enum Llc {
    /// An EtherType at the end of eight octets, and its packet behind it: RFC 1042, and IEEE 802.1H for bridges.
    Snap,
    /// Something that some stations read as IP or ARP.
    Ambiguous,
    /// Nothing of the kind: spanning tree and the like.
    Other,
}

/// The LLC header at `at`. Its length field is not asked: stations that read such a frame do not ask it either.
fn snap(head: &[u8], at: usize) -> Llc {
    match head.get(at..).unwrap_or_default() {
        [0xaa, 0xaa, 3, 0, 0, 0 | 0xf8, _, _, ..] => Llc::Snap,
        // SNAP that is cut or is no unnumbered information; the service access points of IP and of ARP.
        [0xaa, 0xaa, 3, a, b, c, ..] if (*a, *b, *c) != (0, 0, 0) && (*a, *b, *c) != (0, 0, 0xf8) => Llc::Other,
        [0xaa | 0x06 | 0x98, ..] => Llc::Ambiguous,
        _ => Llc::Other,
    }
}

/// Hop-by-hop options, routing, fragment, authentication, destination options, mobility, HIP, shim6.
fn is_extension(next: u8) -> bool {
    matches!(next, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(frame: &[u8]) -> Headers {
        Headers::read(frame, 14, 7, MacAddr::from_bits(1), MacAddr::from_bits(2))
    }

    fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut f = vec![0; 12];
        f.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, payload.len() as u8, next, 64]);
        f.extend([0xfd; 16]);
        f.extend([0xfe; 16]);
        f.extend(payload);
        f
    }

    #[test]
    fn tcp_is_found_behind_extension_headers() {
        let mut tcp = vec![0x12, 0x34, 0, 80];
        tcp.extend([0; 9]);
        tcp.extend([0x02, 0, 0, 0, 0, 0, 0]);
        // Hop-by-hop options of 16 octets, then a first fragment.
        let mut p = vec![44, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 1, 0, 0, 0, 9];
        p.extend(&tcp);
        let h = read(&v6(0, &p));
        assert_eq!((h.protocol(), h.ports(), h.words[FLAGS]), (TCP, Some((0x1234, 80)), 2));
        assert_eq!((h.words[FRAGMENT] & 0xffff, h.fragment_edge(), h.fragment_id, h.broken), (1, 20, 9, false));
        // A later fragment has the protocol, and no ports.
        let h = read(&v6(44, &[17, 0, 0, 9, 0, 0, 0, 9, 1, 2, 3, 4, 5, 6, 7, 8]));
        assert_eq!((h.protocol(), h.ports(), h.is_later_fragment(), h.broken), (UDP, None, true, false));
        // An atomic one is none.
        let h = read(&v6(44, &[17, 0, 0, 0, 0, 0, 0, 9, 1, 2, 3, 4, 0, 8, 0, 0]));
        assert_eq!((h.ports(), h.words[FRAGMENT]), (Some((0x102, 0x304)), 0));
    }

    #[test]
    fn what_is_cut_is_broken_and_has_no_ports() {
        let h = read(&v6(0, &[60, 9, 0, 0, 0, 0, 0, 0]));
        assert!(h.broken, "the destination options end behind the frame");
        assert!(read(&v6(0, &[6, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4])).broken);
        let endless: Vec<u8> = [60, 0, 0, 0, 0, 0, 0, 0].repeat(9);
        assert!(read(&v6(60, &endless)).broken);
        for n in 0..34 {
            let mut f = vec![0; 12];
            f.extend([8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0, 1, 0, 2]);
            f.truncate(n);
            assert!(read(&f).ports().is_none(), "{n}");
        }
    }
}
