//! ICMP: questions and their answers are connections, errors are about others.

use super::{Conntrack, Found, Probe, Tracked, Zone};
use crate::packet::headers::{Family, Headers, ICMP, ICMPV6, SPORT};

impl Conntrack {
    /// ICMP's errors, and what has no connections.
    #[inline(never)]
    pub(super) fn without_probe(&self, h: &Headers, head: &[u8], (zone, filter): (Zone, u32)) -> Tracked {
        if h.family == Family::Other {
            return Tracked::No;
        }
        if h.broken {
            return Tracked::Invalid;
        }
        if !is_error(h) {
            return Tracked::No;
        }
        match self.cause(h, head, zone) {
            // If the rules changed since, its own next frame has them asked again first.
            Some(f) if !f.refused && f.filter == filter => Tracked::Related,
            _ => Tracked::Invalid,
        }
    }

    /// The connection that an ICMP error is about: the packet in it was sent the other way.
    fn cause(&self, h: &Headers, head: &[u8], zone: Zone) -> Option<Found> {
        let at = usize::from(h.l4) + 8;
        let inner = head.get(at..)?;
        // As if a frame had been of it: an EtherType in front, and what is cut off behind its ports.
        let mut f = [0u8; 14 + 128];
        let n = inner.len().min(128);
        f[12..14].copy_from_slice(if h.family == Family::V6 { &[0x86, 0xdd] } else { &[8, 0] });
        f[14..14 + n].copy_from_slice(&inner[..n]);
        let zero = crate::MacAddr::default();
        let i = Headers::read(&f, 14, 0, zero, zero);
        if i.family != h.family {
            return None;
        }
        // Its sender is whom the error is for (RFC 792, RFC 4443).
        let ((_, to), (sender, _)) = (h.addresses()?, i.addresses()?);
        if to != sender {
            return None;
        }
        let mut p = Probe::NONE;
        self.probe(&i, || &f, zone, &mut p);
        self.find(&p).map(|(f, _)| f)
    }
}

/// The identifier of an echo.
pub(super) fn echo_id(h: &Headers, head: &[u8]) -> Option<u16> {
    if !is_echo(h) {
        return None;
    }
    if h.is_later_fragment() {
        return Some(h.inherited_id);
    }
    head.get(usize::from(h.l4) + 4..)?.first_chunk::<2>().map(|id| u16::from_be_bytes(*id))
}

/// ICMP that answers a question.
pub(super) fn is_answer(h: &Headers) -> bool {
    match h.protocol() {
        ICMP => h.words[SPORT] == 0,
        ICMPV6 => h.words[SPORT] == 129,
        _ => false,
    }
}

/// ICMP's errors: unreachable, too big, time exceeded, parameter problem.
fn is_error(h: &Headers) -> bool {
    match h.protocol() {
        ICMP => matches!(h.words[SPORT], 3 | 11 | 12),
        ICMPV6 => matches!(h.words[SPORT], 1..=4),
        _ => false,
    }
}

/// ICMP's questions that have an answer, and the answers.
fn is_echo(h: &Headers) -> bool {
    match h.protocol() {
        ICMP => matches!(h.words[SPORT], 0 | 8),
        ICMPV6 => matches!(h.words[SPORT], 128 | 129),
        _ => false,
    }
}
