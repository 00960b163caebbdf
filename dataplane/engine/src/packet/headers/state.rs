//! What connection tracking says of a frame; a rule asks for one or several of them.

/// It begins a connection.
pub const NEW: u8 = 1;
/// It belongs to a permitted connection.
pub const ESTABLISHED: u8 = 2;
/// An ICMP error about a permitted connection.
pub const RELATED: u8 = 4;
/// It can belong to none: out of window, an answer to nothing, cut short.
pub const INVALID: u8 = 8;

/// As frames have it: a number, so that states that stand together are a range. 0 is none.
pub(crate) const fn number(state: u8) -> u32 {
    match state {
        0 => 0,
        s => s.trailing_zeros() + 1,
    }
}

/// The first and the last of some states, if there is no other one between them.
pub(crate) const fn range(states: u8) -> Option<(u32, u32)> {
    let (first, last) = (states.trailing_zeros(), 7 - states.leading_zeros());
    if states.count_ones() == last - first + 1 { Some((first + 1, last + 1)) } else { None }
}
