//! What DHCP's messages say: of DHCPv4 (RFC 2131, RFC 2132) both ends', of DHCPv6 (RFC 8415) the server's.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::{MacAddr, packet::headers::Headers};

/// The payload of a UDP datagram, whole: what is behind its own length is not read by its receiver.
pub(super) fn udp_payload<'a>(h: &Headers, head: &'a [u8]) -> Option<&'a [u8]> {
    let l4 = usize::from(h.l4);
    let length = head.get(l4 + 4..)?.first_chunk::<2>().map(|n| usize::from(u16::from_be_bytes(*n)))?;
    head.get(l4 + 8..(l4 + length).min(h.end as usize))
}

/// Kinds of messages: RFC 2132, 9.6.
pub(super) const REQUEST: u8 = 3;
const DECLINE: u8 = 4;
pub(super) const ACK: u8 = 5;
pub(super) const NAK: u8 = 6;
const RELEASE: u8 = 7;

/// What a DHCP client sends (RFC 2131, 2).
pub(super) struct ClientMessage {
    pub client: MacAddr,
    /// The one of its client identifier, if that holds one.
    pub identifier: Option<MacAddr>,
    pub kind: u8,
    /// The one that it has and uses.
    pub address: Ipv4Addr,
    /// The one that it asks for, or declines.
    pub requested: Option<Ipv4Addr>,
    pub relay: Ipv4Addr,
}

impl ClientMessage {
    /// `None` if servers could read it differently: options that are cut, have a length that is not theirs, or stand there
    /// twice, no kind, no end.
    pub fn read(m: &[u8]) -> Option<ClientMessage> {
        let (fixed, options) = m.split_first_chunk::<240>()?;
        let address = |at: usize| Ipv4Addr::new(fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]);
        if fixed[..3] != [1, 1, 6] || fixed[236..] != DHCP_COOKIE {
            return None;
        }
        let (mut kind, mut requested, mut identifier, mut odd) = (None, None, None, false);
        let mut seen = [0u8; 256];
        let ended = options_v4(options, |option, value| {
            seen[usize::from(option)] = seen[usize::from(option)].saturating_add(1);
            match (option, value) {
                (53, [k]) => kind = Some(*k),
                (50, [a, b, c, d]) => requested = Some(Ipv4Addr::new(*a, *b, *c, *d)),
                // Of hardware type 1, Ethernet (RFC 2132, 9.14).
                (61, [1, mac @ ..]) if mac.len() == 6 => {
                    identifier = mac.first_chunk::<6>().map(|m| MacAddr::from_octets(*m));
                }
                // Options in the place of names (52).
                (50 | 52 | 53, _) => odd = true,
                _ => {}
            }
        })?;
        odd |= [50, 53, 54, 61].iter().any(|option| seen[*option] > 1);
        let client = MacAddr::from_octets([fixed[28], fixed[29], fixed[30], fixed[31], fixed[32], fixed[33]]);
        let m = ClientMessage { client, identifier, kind: kind?, address: address(12), requested, relay: address(24) };
        (ended && !odd).then_some(m)
    }

    /// The address whose lease it ends.
    pub fn released_address(&self) -> Option<Ipv4Addr> {
        match self.kind {
            RELEASE => Some(self.address),
            DECLINE => Some(self.requested.unwrap_or(Ipv4Addr::UNSPECIFIED)),
            _ => None,
        }
    }
}

/// What options begin with: RFC 2132, 2.
const DHCP_COOKIE: [u8; 4] = [0x63, 0x82, 0x53, 0x63];

/// Reports each option; whether there is an end of them. `None` if one is cut.
fn options_v4(mut options: &[u8], mut each: impl FnMut(u8, &[u8])) -> Option<bool> {
    loop {
        match options {
            [0, rest @ ..] => options = rest,
            [255, ..] => return Some(true),
            [] | [_] => return Some(false),
            [kind, len, rest @ ..] if rest.len() >= usize::from(*len) => {
                let (value, behind) = rest.split_at(usize::from(*len));
                each(*kind, value);
                options = behind;
            }
            _ => return None,
        }
    }
}

/// What a DHCP server sends (RFC 2131, 2).
pub(super) struct ServerMessage {
    pub client: MacAddr,
    pub kind: u8,
    /// The one that it gives, for so many seconds.
    pub address: Ipv4Addr,
    pub lease_s: u32,
}

impl ServerMessage {
    pub fn read(m: &[u8]) -> Option<ServerMessage> {
        let (fixed, options) = m.split_first_chunk::<240>()?;
        if fixed[..3] != [2, 1, 6] || fixed[236..] != DHCP_COOKIE {
            return None;
        }
        let (mut kind, mut lease_s) = (0, 0);
        options_v4(options, |option, value| match (option, value) {
            (53, [k]) => kind = *k,
            (51, [a, b, c, d]) => lease_s = u32::from_be_bytes([*a, *b, *c, *d]),
            _ => {}
        })?;
        let client = MacAddr::from_octets([fixed[28], fixed[29], fixed[30], fixed[31], fixed[32], fixed[33]]);
        let address = Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19]);
        Some(ServerMessage { client, kind, address, lease_s })
    }
}

/// Addresses and seconds of a reply (RFC 8415, 21.4 and 21.6).
pub(super) fn dhcpv6_reply(m: &[u8], mut each: impl FnMut(Ipv6Addr, u32)) {
    let [7, _, _, _, options @ ..] = m else { return };
    options_v6(options, |kind, value| {
        if let (3, Some(inner)) = (kind, value.get(12..)) {
            options_v6(inner, |kind, value| {
                if let (5, Some(v)) = (kind, value.first_chunk::<24>()) {
                    let address: [u8; 16] = std::array::from_fn(|i| v[i]);
                    each(Ipv6Addr::from(address), u32::from_be_bytes([v[20], v[21], v[22], v[23]]));
                }
            });
        }
    });
}

fn options_v6(mut options: &[u8], mut each: impl FnMut(u16, &[u8])) {
    while let [k0, k1, l0, l1, rest @ ..] = options {
        let len = usize::from(u16::from_be_bytes([*l0, *l1]));
        let Some(value) = rest.get(..len) else { return };
        each(u16::from_be_bytes([*k0, *k1]), value);
        options = &rest[len..];
    }
}
