//! Access lists, port security and connections, from messages to what they mean.

use std::{collections::BTreeMap, net::IpAddr};

use dunlin_dataplane_api::{
    rule::{self, MaskedMac, Rule, Who},
    v1,
};
use dunlin_engine::{
    MacAddr,
    acl::{self, Acl, Match, Prefix},
    conntrack,
    security::Checks,
    topology::{AclNames, SecuritySpec},
};

use super::{BadField, bad, check_name};

/// What one list may become, with sets and several ports written out: control's limit.
const MAX_PARTS: usize = 65_536;

/// Address sets by name.
pub type Sets = BTreeMap<String, Vec<Prefix>>;

/// The prefixes of a set, none inside another.
pub fn set(s: &v1::AddressSet) -> Result<Vec<Prefix>, BadField> {
    let object = || format!("set '{}'", s.name);
    let all = s.prefixes.iter().map(|p| prefix(&object, "addresses", p)).collect::<Result<Vec<_>, _>>()?;
    Ok(outermost(all))
}

/// A list whose rules name some of `sets`, compiled for so many workers.
pub fn acl(a: &v1::Acl, sets: &Sets, workers: usize) -> Result<Acl, BadField> {
    check_name("acl", &a.name)?;
    let object = || format!("acl '{}'", a.name);
    let default = match a.default.as_str() {
        "allow" => acl::Action::Allow,
        "deny" => acl::Action::Deny,
        "reject" => acl::Action::Reject,
        other => return Err(bad(object(), "default", format!("'{other}' is none of allow, deny, reject"))),
    };
    let mut rules = Vec::with_capacity(a.rules.len());
    for (number, text) in (0..).zip(&a.rules) {
        let refused = |why: String| bad(object(), "rules", format!("rule {}: {why}", number + 1));
        let r: Rule = text.parse().map_err(|e: rule::BadRule| refused(e.to_string()))?;
        parts(&r, number, sets, &mut rules).map_err(refused)?;
        if rules.len() > MAX_PARTS {
            return Err(refused(format!("more than {MAX_PARTS} combinations of addresses and ports")));
        }
    }
    // What a set without addresses became is no rule, but has its counter.
    Ok(Acl::new(&a.name, &rules, a.rules.len(), default, workers))
}

/// The rules of the engine that one of an operator's is: for all pairs of addresses and of port ranges. No frame is of two:
/// what overlaps is written once.
fn parts(r: &Rule, number: u32, sets: &Sets, rules: &mut Vec<acl::Rule>) -> Result<(), String> {
    let who = |w: &Option<Who>| -> Result<Vec<Option<Prefix>>, String> {
        match w {
            None => Ok(vec![None]),
            Some(Who::Prefix(address, len)) => Ok(vec![Some(Prefix { address: *address, len: *len })]),
            Some(Who::Set(name)) => {
                let set = sets.get(name).ok_or_else(|| format!("there is no set '{name}'"))?;
                Ok(set.iter().copied().map(Some).collect())
            }
        }
    };
    let ports = |p: &[(u16, u16)]| -> Vec<_> {
        if p.is_empty() { vec![None] } else { merged(p).into_iter().map(|(a, b)| Some(a..=b)).collect() }
    };
    let mac = |m: MaskedMac| (MacAddr::from_octets(m.0), MacAddr::from_octets(m.1));
    let ask = Match {
        src_mac: r.src_mac.map(mac),
        dst_mac: r.dst_mac.map(mac),
        ethertype: r.ethertype,
        vlan: r.vlan,
        protocol: r.protocol,
        icmp_type: r.icmp_type,
        icmp_code: r.icmp_code,
        tcp_flags: r.flags,
        fragment: r.fragment,
        states: r.states,
        ..Match::default()
    };
    let action = match r.action {
        rule::Action::Allow => acl::Action::Allow,
        rule::Action::Deny => acl::Action::Deny,
        rule::Action::Reject => acl::Action::Reject,
        rule::Action::Count => acl::Action::Count,
    };
    let (sources, destinations) = (who(&r.from)?, who(&r.to)?);
    for src in &sources {
        for dst in &destinations {
            if src.zip(*dst).is_some_and(|(a, b)| a.address.is_ipv4() != b.address.is_ipv4()) {
                continue;
            }
            for src_ports in ports(&r.from_ports) {
                for dst_ports in ports(&r.to_ports) {
                    let (src, dst, src_ports) = (*src, *dst, src_ports.clone());
                    let ask = Match { src, dst, src_ports, dst_ports, ..ask.clone() };
                    rules.push(acl::Rule { number, ask, action, log_every: r.log_every });
                    if rules.len() > MAX_PARTS {
                        return Ok(());
                    }
                }
            }
        }
    }
    Ok(())
}

/// Those that are in no other one.
fn outermost(mut all: Vec<Prefix>) -> Vec<Prefix> {
    // One that holds others is right before them.
    all.sort_by_key(|p| (p.address, p.len));
    let mut kept: Vec<Prefix> = Vec::with_capacity(all.len());
    for p in all {
        if !kept.last().is_some_and(|outer| outer.contains(p.address)) {
            kept.push(p);
        }
    }
    kept
}

/// The same ports in as few ranges as there can be.
fn merged(ranges: &[(u16, u16)]) -> Vec<(u16, u16)> {
    let mut all = ranges.to_vec();
    all.sort_unstable();
    let mut kept: Vec<(u16, u16)> = Vec::with_capacity(all.len());
    for (first, last) in all {
        match kept.last_mut() {
            Some(before) if u32::from(first) <= u32::from(before.1) + 1 => before.1 = before.1.max(last),
            _ => kept.push((first, last)),
        }
    }
    kept
}

fn prefix(object: &dyn Fn() -> String, field: &'static str, text: &str) -> Result<Prefix, BadField> {
    match rule::prefix(text) {
        Ok((address, len)) => Ok(Prefix { address, len }),
        Err(e) => Err(bad(object(), field, e.to_string())),
    }
}

/// The lists that a port or a network names.
pub fn acl_names(ingress: &[String], egress: &[String]) -> AclNames {
    AclNames { ingress: ingress.to_vec(), egress: egress.to_vec() }
}

/// As whom a port's station may speak.
pub fn security(object: &dyn Fn() -> String, s: &v1::Security) -> Result<SecuritySpec, BadField> {
    let mut checks = Checks::default();
    for c in &s.checks {
        *match c.as_str() {
            "mac" => &mut checks.mac,
            "ip" => &mut checks.ip,
            "arp" => &mut checks.arp,
            "nd" => &mut checks.nd,
            "dhcp-guard" => &mut checks.dhcp_guard,
            "ra-guard" => &mut checks.ra_guard,
            other => return Err(bad(object(), "security", format!("'{other}' is no check"))),
        } = true;
    }
    let mac = |m: &String| m.parse::<MacAddr>().map_err(|e| bad(object(), "macs", e.to_string()));
    Ok(SecuritySpec {
        checks,
        macs: s.macs.iter().map(mac).collect::<Result<_, _>>()?,
        ips: s.ips.iter().map(|p| prefix(object, "ips", p)).collect::<Result<_, _>>()?,
        snoop: s.snoop,
    })
}

/// What DHCP gave a port's station before, and for how many seconds yet.
pub fn leases(s: &v1::Security) -> impl Iterator<Item = (IpAddr, u32)> {
    s.leases.iter().filter_map(|l| Some((l.address.parse().ok()?, l.left_s)))
}

/// How connections are kept, in a table with room for `capacity`.
pub fn sessions(s: &v1::Sessions, capacity: u32) -> Result<conntrack::Settings, BadField> {
    let times = [
        ("tcp_opening_s", s.tcp_opening_s),
        ("tcp_open_s", s.tcp_open_s),
        ("tcp_closing_s", s.tcp_closing_s),
        ("tcp_closed_s", s.tcp_closed_s),
        ("udp_s", s.udp_s),
        ("udp_answered_s", s.udp_answered_s),
        ("icmp_s", s.icmp_s),
        ("other_s", s.other_s),
    ];
    if let Some((field, n)) = times.into_iter().find(|(_, n)| !(1..=1_000_000).contains(n)) {
        return Err(bad("sessions".into(), field, format!("{n} is not in 1 to 1000000")));
    }
    let most = |n: u32, default: u32| if n == 0 { default } else { n };
    Ok(conntrack::Settings {
        tcp_opening_s: s.tcp_opening_s,
        tcp_open_s: s.tcp_open_s,
        tcp_closing_s: s.tcp_closing_s,
        tcp_closed_s: s.tcp_closed_s,
        udp_s: s.udp_s,
        udp_answered_s: s.udp_answered_s,
        icmp_s: s.icmp_s,
        other_s: s.other_s,
        max: most(s.max, u32::MAX),
        // No port takes all there is.
        port_max: most(s.port_max, (capacity / 2).max(1)),
        unanswered_max: most(s.unanswered_max, (capacity / 8).max(1)),
        meets: !s.strict,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_frame_is_of_two_parts() {
        let prefix = |text: &str| rule::prefix(text).map(|(address, len)| Prefix { address, len }).unwrap();
        let set = ["10.1.0.0/16", "10.0.0.0/8", "11.0.0.0/8", "2001:db8::/32", "2001:db8:1::/48", "10.255.0.1/32"];
        let kept = outermost(set.map(prefix).to_vec());
        assert_eq!(kept, ["10.0.0.0/8", "11.0.0.0/8", "2001:db8::/32"].map(prefix));
        assert_eq!(outermost(["::/0", "0.0.0.0/0", "10.0.0.0/8"].map(prefix).to_vec()).len(), 2);
        assert_eq!(
            merged(&[(5, 20), (1, 10), (21, 30), (40, 40), (65535, 65535)]),
            [(1, 30), (40, 40), (65535, 65535)]
        );

        let r: Rule = "count tcp from @s port 1-10,5-20 to @s".parse().unwrap();
        let mut rules = Vec::new();
        parts(&r, 0, &[("s".to_owned(), kept)].into(), &mut rules).unwrap();
        // From each of both families to each of the same.
        assert_eq!(rules.len(), 2 * 2 + 1);
    }
}
