//! ACLs, address sets and connection tracking.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::bad;
use crate::{
    Bad, defaults, limits,
    rule::{self, Rule, Who},
    v1::{Acl, Sessions},
};

/// Addresses and prefixes.
///
/// # Errors
/// The first that is neither.
pub fn addresses(object: &str, field: &str, texts: &[String]) -> Result<Vec<IpNet>, Bad> {
    texts.iter().map(|t| rule::prefix(t).or_else(|e| bad(object, field, e.to_string()))).collect()
}

/// What becomes of a frame that no rule matches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DefaultAction {
    /// It passes.
    Allow,
    /// It is dropped.
    Deny,
    /// It is dropped, and the sender is notified.
    Reject,
}

/// An ACL.
#[derive(Clone, PartialEq, Debug)]
pub struct AclSpec {
    /// The rules in their order.
    pub rules: Vec<Rule>,
    /// See [`DefaultAction`].
    pub default: DefaultAction,
    /// The sets that the rules name.
    pub sets: BTreeSet<String>,
    /// Combinations of addresses and ports that the rules become when they are written out.
    pub combinations: usize,
}

impl AclSpec {
    /// Reads the rules; `prefixes` knows how many each set has.
    pub(crate) fn new(object: &str, a: &Acl, prefixes: impl Fn(&str) -> Option<usize>) -> Result<Self, Bad> {
        if let Some(n) = a.rules.len().checked_sub(limits::RULES).filter(|n| *n > 0) {
            let (first, most) = (a.rules.len() - n + 1, limits::RULES);
            return bad(object, "rules", format!("rule {first} is one too many: a list has at most {most}"));
        }
        let default = match a.default.as_str() {
            "allow" => DefaultAction::Allow,
            "reject" => DefaultAction::Reject,
            _ => DefaultAction::Deny,
        };
        let mut acl =
            AclSpec { rules: Vec::with_capacity(a.rules.len()), default, sets: BTreeSet::new(), combinations: 0 };
        for (i, text) in a.rules.iter().enumerate() {
            let field = format!("rule {}", i + 1);
            let r: Rule =
                text.parse().or_else(|e| bad(object, &field, format!("{e} (in '{}')", crate::shown(text))))?;
            let mut n = r.from_ports.len().max(1) * r.to_ports.len().max(1);
            for who in [&r.from, &r.to].into_iter().flatten() {
                if let Who::Set(name) = who {
                    let Some(size) = prefixes(name) else {
                        return bad(object, &field, format!("there is no set '{name}' (in '{}')", crate::shown(text)));
                    };
                    acl.sets.insert(name.clone());
                    n = n.saturating_mul(size);
                }
            }
            acl.combinations = acl.combinations.saturating_add(n);
            if acl.combinations > limits::COMBINATIONS {
                let most = limits::COMBINATIONS;
                let why = format!("with it the list has more than {most} combinations of addresses and ports");
                return bad(object, &field, why);
            }
            acl.rules.push(r);
        }
        Ok(acl)
    }
}

/// Timeouts of connection tracking, in seconds since a connection's last frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// TCP, until both ends have sent a frame.
    pub tcp_opening_s: u32,
    /// TCP, established.
    pub tcp_open_s: u32,
    /// TCP, closed by one end.
    pub tcp_closing_s: u32,
    /// TCP, closed by both ends or reset.
    pub tcp_closed_s: u32,
    /// UDP without an answer.
    pub udp_s: u32,
    /// UDP with an answer.
    pub udp_answered_s: u32,
    /// ICMP queries.
    pub icmp_s: u32,
    /// Other protocols.
    pub other_s: u32,
}

/// Timeouts and limits of connection tracking.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionsSpec {
    /// See [`Timeouts`].
    pub timeouts: Timeouts,
    /// The most of all ports; as many as there is room for, if absent.
    pub max: Option<u32>,
    /// The most of one port.
    pub port_max: Option<u32>,
    /// The most of one port without an answer.
    pub unanswered_max: Option<u32>,
    /// TCP connections that are already in progress are picked up (loose tracking).
    pub midstream: bool,
}

impl From<&Sessions> for SessionsSpec {
    fn from(s: &Sessions) -> Self {
        let timeouts = Timeouts {
            tcp_opening_s: s.tcp_opening_s.unwrap_or(defaults::SESSIONS_TCP_OPENING_S),
            tcp_open_s: s.tcp_open_s.unwrap_or(defaults::SESSIONS_TCP_OPEN_S),
            tcp_closing_s: s.tcp_closing_s.unwrap_or(defaults::SESSIONS_TCP_CLOSING_S),
            tcp_closed_s: s.tcp_closed_s.unwrap_or(defaults::SESSIONS_TCP_CLOSED_S),
            udp_s: s.udp_s.unwrap_or(defaults::SESSIONS_UDP_S),
            udp_answered_s: s.udp_answered_s.unwrap_or(defaults::SESSIONS_UDP_ANSWERED_S),
            icmp_s: s.icmp_s.unwrap_or(defaults::SESSIONS_ICMP_S),
            other_s: s.other_s.unwrap_or(defaults::SESSIONS_OTHER_S),
        };
        SessionsSpec {
            timeouts,
            max: s.max,
            port_max: s.port_max,
            unanswered_max: s.unanswered_max,
            midstream: s.midstream != "off",
        }
    }
}

impl Default for SessionsSpec {
    fn default() -> Self {
        (&Sessions::default()).into()
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        SessionsSpec::default().timeouts
    }
}
