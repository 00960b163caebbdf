//! The language of ACL rules.
//!
//! ```text
//! RULE     = ACTION [PROTOCOL] CLAUSE…
//! ACTION   = allow | deny | reject | count
//! PROTOCOL = tcp | udp | sctp | icmp | icmpv6 | igmp | gre | esp | ah | protocol NUMBER
//! CLAUSE   = from WHO [port PORTS]          source, and its ports (tcp, udp, sctp)
//!          | to WHO [port PORTS]            destination, and its ports
//!          | type NUMBER [code NUMBER]      of icmp or icmpv6
//!          | flags FLAG,…                   of tcp: fin syn rst psh ack urg, '!' before one that is not set
//!          | state STATE,…                  new established related invalid
//!          | fragment yes|no
//!          | src-mac MAC[/MASK] | dst-mac MAC[/MASK]
//!          | ethertype ipv4|ipv6|arp|0xNNNN
//!          | vlan VID
//!          | log [N]                        log every N-th frame, 1 if absent
//! WHO      = any | ADDRESS[/LENGTH] | @SET
//! PORTS    = NUMBER | FIRST-LAST, several with ','
//! ```

use std::net::IpAddr;

use ipnet::IpNet;

use crate::MacAddr;

/// What becomes of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// It passes this list.
    Allow,
    /// It is dropped.
    Deny,
    /// It is dropped, and the sender is notified.
    Reject,
    /// It is counted, and the next rule asked.
    Count,
}

/// Addresses of one side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Who {
    /// A prefix.
    Prefix(IpNet),
    /// A set's name.
    Set(String),
}

/// States of connections, as bits: as the engine's `acl::state`.
pub const STATES: [(&str, u8); 4] = [("new", 1), ("established", 2), ("related", 4), ("invalid", 8)];

const PROTOCOLS: [(&str, u8); 9] = [
    ("tcp", 6),
    ("udp", 17),
    ("sctp", 132),
    ("icmp", 1),
    ("icmpv6", 58),
    ("igmp", 2),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
];
const FLAGS: [(&str, u8); 6] = [("fin", 1), ("syn", 2), ("rst", 4), ("psh", 8), ("ack", 16), ("urg", 32)];
const ETHERTYPES: [(&str, u16); 3] = [("ipv4", 0x0800), ("ipv6", 0x86dd), ("arp", 0x0806)];
/// The most port ranges of one side.
const MAX_RANGES: usize = 64;
/// Rules longer than this are no rules.
const MAX_TEXT: usize = 1024;

/// A MAC address and the bits of it that count.
pub type MaskedMac = (MacAddr, MacAddr);

/// A rule, read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// What follows.
    pub action: Action,
    /// IP protocol.
    pub protocol: Option<u8>,
    /// Source.
    pub from: Option<Who>,
    /// Destination.
    pub to: Option<Who>,
    /// Source ports; any, if there is none.
    pub from_ports: Vec<(u16, u16)>,
    /// Destination ports.
    pub to_ports: Vec<(u16, u16)>,
    /// ICMP's type.
    pub icmp_type: Option<u8>,
    /// ICMP's code.
    pub icmp_code: Option<u8>,
    /// TCP flags that count, and those of them that are set.
    pub flags: Option<(u8, u8)>,
    /// See [`STATES`]; 0 for any.
    pub states: u8,
    /// A fragment, or none.
    pub fragment: Option<bool>,
    /// Source MAC address.
    pub src_mac: Option<MaskedMac>,
    /// Destination MAC address.
    pub dst_mac: Option<MaskedMac>,
    /// Behind the tag.
    pub ethertype: Option<u16>,
    /// 1 to 4094.
    pub vlan: Option<u16>,
    /// One of so many frames is logged; 0 for none.
    pub log_every: u32,
}

/// Why a text is no rule.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadRule(String);

fn bad<T>(why: impl Into<String>) -> Result<T, BadRule> {
    Err(BadRule(why.into()))
}

/// A prefix without host bits, or an address.
///
/// # Errors
/// It is neither, its length is too large, or bits are set behind it.
pub fn prefix(text: &str) -> Result<IpNet, BadRule> {
    let (address, len) = text.split_once('/').map_or((text, None), |(a, l)| (a, Some(l)));
    let Ok(ip) = address.parse::<IpAddr>() else {
        return bad(format!("'{text}' is no address, prefix (10.0.0.0/8), @SET or 'any'"));
    };
    let most = if ip.is_ipv4() { 32 } else { 128 };
    let net = match len.map(str::parse::<u8>) {
        None => IpNet::from(ip),
        Some(len) => match len.map(|len| IpNet::new(ip, len)) {
            Ok(Ok(net)) => net,
            _ => return bad(format!("'{text}': the length is not in 0 to {most}")),
        },
    };
    if net.trunc() != net {
        return bad(format!("'{text}' has bits set behind its length; the prefix is {}", net.trunc()));
    }
    Ok(net)
}

fn mac(text: &str) -> Result<MacAddr, BadRule> {
    text.parse().or_else(|_| bad(format!("'{text}' is not six octets as 52:54:00:12:34:56")))
}

fn masked_mac(text: &str) -> Result<MaskedMac, BadRule> {
    let Some((value, mask)) = text.split_once('/') else { return Ok((mac(text)?, MacAddr::BROADCAST)) };
    let (value, mask) = (mac(value)?, mac(mask)?);
    if value.bits() & !mask.bits() != 0 {
        return bad(format!("'{text}' has bits set that its mask leaves out"));
    }
    Ok((value, mask))
}

fn ports(text: &str) -> Result<Vec<(u16, u16)>, BadRule> {
    let number = |s: &str| s.parse::<u16>().or_else(|_| bad(format!("'{s}' is no port (0 to 65535)")));
    let range = |part: &str| match part.split_once('-') {
        None => number(part).map(|n| (n, n)),
        Some((a, b)) => {
            let (a, b) = (number(a)?, number(b)?);
            if a > b { bad(format!("ports '{part}' end before they begin")) } else { Ok((a, b)) }
        }
    };
    let ranges: Vec<_> = text.split(',').map(range).collect::<Result<_, _>>()?;
    if ranges.len() > MAX_RANGES { bad(format!("more than {MAX_RANGES} port ranges")) } else { Ok(ranges) }
}

fn one_of<T: Copy>(what: &str, word: &str, known: &[(&str, T)]) -> Result<T, BadRule> {
    let names: Vec<&str> = known.iter().map(|k| k.0).collect();
    let found = known.iter().find(|k| k.0 == word).map(|k| k.1);
    found.ok_or_else(|| BadRule(format!("{what}: '{word}' is none of {}", names.join(", "))))
}

/// Sets a field once.
fn put<T>(field: &mut Option<T>, name: &str, value: T) -> Result<(), BadRule> {
    if field.replace(value).is_some() { bad(format!("{name}: stands there twice")) } else { Ok(()) }
}

/// The words of a rule that are still to be read.
struct Words<'a>(std::iter::Peekable<std::str::SplitAsciiWhitespace<'a>>);

impl<'a> Words<'a> {
    fn value(&mut self, of: &str) -> Result<&'a str, BadRule> {
        self.0.next().ok_or_else(|| BadRule(format!("{of}: something is missing behind it")))
    }

    fn number<T: std::str::FromStr>(&mut self, of: &str, most: u64) -> Result<T, BadRule> {
        let word = self.value(of)?;
        let n = word.parse::<u64>().ok().filter(|n| *n <= most).and_then(|_| word.parse().ok());
        n.ok_or_else(|| BadRule(format!("{of}: '{word}' is not in 0 to {most}")))
    }

    /// The next word, if it is this one.
    fn take(&mut self, word: &str) -> bool {
        self.0.next_if(|w| *w == word).is_some()
    }

    fn side(&mut self, of: &str, who: &mut Option<Who>, its_ports: &mut Vec<(u16, u16)>) -> Result<(), BadRule> {
        if self.0.peek() != Some(&"port") {
            match self.value(of)? {
                "any" => {}
                set if set.starts_with('@') && set.len() > 1 => put(who, of, Who::Set(set[1..].to_owned()))?,
                text => put(who, of, Who::Prefix(prefix(text)?))?,
            }
        }
        if self.take("port") {
            if !its_ports.is_empty() {
                return bad(format!("{of} port: stands there twice"));
            }
            *its_ports = ports(self.value("port")?)?;
        }
        Ok(())
    }
}

impl std::str::FromStr for Rule {
    type Err = BadRule;

    fn from_str(text: &str) -> Result<Self, BadRule> {
        if text.len() > MAX_TEXT {
            return bad(format!("longer than {MAX_TEXT} octets"));
        }
        let mut words = Words(text.split_ascii_whitespace().peekable());
        let actions =
            [("allow", Action::Allow), ("deny", Action::Deny), ("reject", Action::Reject), ("count", Action::Count)];
        let action = one_of("action", words.value("action")?, &actions)?;
        let mut r = Rule {
            action,
            protocol: None,
            from: None,
            to: None,
            from_ports: Vec::new(),
            to_ports: Vec::new(),
            icmp_type: None,
            icmp_code: None,
            flags: None,
            states: 0,
            fragment: None,
            src_mac: None,
            dst_mac: None,
            ethertype: None,
            vlan: None,
            log_every: 0,
        };
        while let Some(word) = words.0.next() {
            r.clause(word, &mut words)?;
        }
        r.check()?;
        Ok(r)
    }
}

impl Rule {
    fn clause(&mut self, word: &str, words: &mut Words<'_>) -> Result<(), BadRule> {
        match word {
            "from" => words.side(word, &mut self.from, &mut self.from_ports),
            "to" => words.side(word, &mut self.to, &mut self.to_ports),
            "protocol" => put(&mut self.protocol, word, words.number(word, 255)?),
            "type" => put(&mut self.icmp_type, word, words.number(word, 255)?),
            "code" => put(&mut self.icmp_code, word, words.number(word, 255)?),
            "fragment" => {
                put(&mut self.fragment, word, one_of(word, words.value(word)?, &[("yes", true), ("no", false)])?)
            }
            "src-mac" => put(&mut self.src_mac, word, masked_mac(words.value(word)?)?),
            "dst-mac" => put(&mut self.dst_mac, word, masked_mac(words.value(word)?)?),
            "vlan" => match words.number(word, 4094)? {
                0 => bad("vlan: 0 is not in 1 to 4094"),
                vid => put(&mut self.vlan, word, vid),
            },
            "ethertype" => {
                let text = words.value(word)?;
                let number = text.strip_prefix("0x").and_then(|h| u16::from_str_radix(h, 16).ok());
                let ethertype = number.map_or_else(|| one_of(word, text, &ETHERTYPES), Ok)?;
                put(&mut self.ethertype, word, ethertype)
            }
            "flags" => {
                let (mut mask, mut set) = (0, 0);
                for flag in words.value(word)?.split(',') {
                    let bit = one_of(word, flag.trim_start_matches('!'), &FLAGS)?;
                    mask |= bit;
                    set |= if flag.starts_with('!') { 0 } else { bit };
                }
                put(&mut self.flags, word, (mask, set))
            }
            "state" => {
                let states = words.value(word)?.split(',').map(|s| one_of(word, s, &STATES));
                states.into_iter().try_for_each(|s| s.map(|bit| self.states |= bit))
            }
            "log" => {
                let every = words.0.next_if(|w| w.bytes().all(|b| b.is_ascii_digit()));
                self.log_every = match every.map(str::parse::<u32>) {
                    None => 1,
                    Some(Ok(n)) if (1..=1_000_000).contains(&n) => n,
                    _ => return bad("log: not in 1 to 1000000"),
                };
                Ok(())
            }
            _ if PROTOCOLS.iter().any(|p| p.0 == word) => {
                put(&mut self.protocol, "protocol", one_of("protocol", word, &PROTOCOLS)?)
            }
            _ => bad(format!("'{word}' is no word of a rule")),
        }
    }

    /// What does not go together.
    fn check(&self) -> Result<(), BadRule> {
        let has = |p: &[u8]| self.protocol.is_some_and(|x| p.contains(&x));
        if (!self.from_ports.is_empty() || !self.to_ports.is_empty()) && !has(&[6, 17, 132]) {
            return bad("port: only tcp, udp and sctp have ports; name one of them");
        }
        if (self.icmp_type.is_some() || self.icmp_code.is_some()) && !has(&[1, 58]) {
            return bad("type: only icmp and icmpv6 have types; name one of them");
        }
        if self.icmp_code.is_some() && self.icmp_type.is_none() {
            return bad("code: belongs to a type; name that too");
        }
        if self.flags.is_some() && !has(&[6]) {
            return bad("flags: only tcp has them");
        }
        let v4 = |w: &Option<Who>| matches!(w, Some(Who::Prefix(IpNet::V4(_))));
        let v6 = |w: &Option<Who>| matches!(w, Some(Who::Prefix(IpNet::V6(_))));
        let (any_v4, any_v6) =
            (v4(&self.from) || v4(&self.to) || has(&[1]), v6(&self.from) || v6(&self.to) || has(&[58]));
        if any_v4 && any_v6 {
            return bad("IPv4 and IPv6 in one rule: no packet is both");
        }
        let ip =
            any_v4 || any_v6 || self.protocol.is_some() || self.states != 0 || self.from.is_some() || self.to.is_some();
        match self.ethertype {
            Some(0x0800) if any_v6 => bad("ethertype: ipv4, and IPv6 elsewhere in the rule"),
            Some(0x86dd) if any_v4 => bad("ethertype: ipv6, and IPv4 elsewhere in the rule"),
            Some(e) if e != 0x0800 && e != 0x86dd && ip => bad("ethertype: is not IP, and the rest of the rule is"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        text.parse::<Rule>().expect_err(text).to_string()
    }

    #[test]
    fn rules_say_what_they_say() {
        let r: Rule =
            "allow tcp from 10.0.0.0/8 port 1024-65535 to @web port 80,443 state new log 100".parse().unwrap();
        assert_eq!((r.action, r.protocol, r.states, r.log_every), (Action::Allow, Some(6), 1, 100));
        assert_eq!(r.from, Some(Who::Prefix("10.0.0.0/8".parse().unwrap())));
        assert_eq!(
            (r.to, r.from_ports, r.to_ports),
            (Some(Who::Set("web".into())), vec![(1024, 65535)], vec![(80, 80), (443, 443)])
        );
        let r: Rule =
            "deny tcp flags syn,!ack src-mac 52:54:00:00:00:00/ff:ff:ff:00:00:00 vlan 7 fragment no".parse().unwrap();
        assert_eq!((r.flags, r.vlan, r.fragment), (Some((18, 2)), Some(7), Some(false)));
        let r: Rule = "reject icmpv6 type 1 code 3 to 2001:db8::/32".parse().unwrap();
        assert_eq!((r.icmp_type, r.icmp_code), (Some(1), Some(3)));
        assert_eq!("count to port 53 udp".parse::<Rule>().unwrap().to_ports, [(53, 53)]);
        assert_eq!("deny ethertype 0x88cc".parse::<Rule>().unwrap().ethertype, Some(0x88cc));
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(refused("allow from 10.0.0.1/8").contains("the prefix is 10.0.0.0/8"));
        assert!(refused("allow from 2001:db8::1/32").contains("2001:db8::/32"));
        assert!(refused("allow tcp to any port 90-80").contains("end before they begin"));
        assert!(refused("allow icmp to any port 80").contains("only tcp, udp and sctp"));
        assert!(refused("allow to any port 80").contains("only tcp, udp and sctp"));
        assert!(refused("allow tcp type 8").contains("only icmp"));
        assert!(refused("allow from 10.0.0.1 to 2001:db8::1").contains("no packet is both"));
        assert!(refused("allow tcp tcp").contains("twice"));
        assert!(refused("permit tcp").contains("none of allow, deny, reject, count"));
        assert!(refused("allow tcp to any port 70000").contains("70000"));
        assert!(refused("allow state old").contains("established"));
        assert!(refused("allow sometimes").contains("'sometimes' is no word"));
        assert!(refused("allow from 10.0.0.0/33").contains("0 to 32"));
        assert!(refused("deny src-mac 52:54:00:00:00:01/ff:ff:ff:00:00:00").contains("leaves out"));
        assert!(refused("allow ethertype arp from 10.0.0.1").contains("not IP"));
        assert!(refused("").contains("missing"));
    }
}
