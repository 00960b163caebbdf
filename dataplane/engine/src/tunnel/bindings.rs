//! Which station of a network has which IP address, so that questions need not be flooded to all hosts.
//!
//! What control installs is certain. The rest is seen: in questions and in what is said unasked, which are
//! flooded anyway. One table a network, for all workers. A worker never waits for it: while another one
//! writes, the frame is flooded as if nothing was known.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::Address;
use crate::MacAddr;

/// The most that are seen in one network: guests choose their addresses.
const SEEN: usize = 16_384;
/// For how many seconds what was seen is believed.
const BELIEVED_S: u32 = 300;

#[derive(Clone, Copy, Debug)]
struct Binding {
    mac: MacAddr,
    /// When it was seen; `None` for what control installed.
    seen_s: Option<u32>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Bindings {
    known: RwLock<HashMap<Address, Binding>>,
    answered: AtomicU64,
}

impl Bindings {
    /// These are certain from now on, and no others.
    pub fn install(&self, certain: impl IntoIterator<Item = (IpAddr, MacAddr)>) {
        let mut known = self.known.write().unwrap_or_else(|e| e.into_inner());
        known.retain(|_, b| b.seen_s.is_some());
        known.extend(certain.into_iter().map(|(a, mac)| (a.into(), Binding { mac, seen_s: None })));
    }

    /// Notes that a station said its address.
    pub(crate) fn note(&self, address: IpAddr, mac: MacAddr, now_s: u32) {
        let address = Address::from(address);
        let fresh = Binding { mac, seen_s: Some(now_s) };
        // Nothing is written for what is known already, more often than once a minute.
        let is_news = |b: &Binding| b.seen_s.is_some_and(|s| b.mac != mac || now_s.saturating_sub(s) > 60);
        if address == Address::NONE || !self.known.try_read().is_ok_and(|k| k.get(&address).is_none_or(is_news)) {
            return;
        }
        let Ok(mut known) = self.known.try_write() else { return };
        if known.len() >= SEEN && !known.contains_key(&address) {
            known.retain(|_, b| b.seen_s.is_none_or(|s| now_s.saturating_sub(s) <= BELIEVED_S));
            if known.len() >= SEEN {
                return;
            }
        }
        known.insert(address, fresh);
    }

    /// Who has an address, as far as that is known now.
    pub(crate) fn find(&self, address: IpAddr, now_s: u32) -> Option<MacAddr> {
        let known = self.known.try_read().ok()?;
        let believed = |b: &&Binding| b.seen_s.is_none_or(|s| now_s.saturating_sub(s) <= BELIEVED_S);
        known.get(&Address::from(address)).filter(believed).map(|b| b.mac)
    }

    pub(crate) fn count_answer(&self) {
        self.answered.fetch_add(1, Relaxed);
    }

    /// Questions answered in a station's stead.
    pub fn answered(&self) -> u64 {
        self.answered.load(Relaxed)
    }

    /// How many addresses are known, those that are no longer believed among them.
    pub fn len(&self) -> usize {
        self.known.read().unwrap_or_else(|e| e.into_inner()).len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_certain_stays_and_what_was_seen_is_forgotten() {
        let (one, two) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let mac = |n| MacAddr::from_octets([2, 0, 0, 0, 0, n]);
        let b = Bindings::default();
        b.install([(one, mac(1))]);
        b.note(one, mac(9), 5);
        b.note(two, mac(2), 5);
        b.note(IpAddr::from([0; 16]), mac(7), 5);
        assert_eq!((b.find(one, 5), b.find(two, 5), b.len()), (Some(mac(1)), Some(mac(2)), 2));
        b.note(two, mac(3), 6);
        assert_eq!((b.find(two, 306), b.find(two, 307), b.find(one, 1_000_000)), (Some(mac(3)), None, Some(mac(1))));
        b.install([]);
        assert_eq!(b.find(one, 5), None);
    }
}
