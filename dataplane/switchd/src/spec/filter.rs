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

type Sets = BTreeMap<String, Vec<Prefix>>;

/// A list, compiled for so many workers.
pub fn acl(a: &v1::Acl, workers: usize) -> Result<Acl, BadField> {
    check_name("acl", &a.name)?;
    let object = || format!("acl '{}'", a.name);
    let default = match a.default.as_str() {
        "allow" => acl::Action::Allow,
        "deny" => acl::Action::Deny,
        "reject" => acl::Action::Reject,
        other => return Err(bad(object(), "default", format!("'{other}' is none of allow, deny, reject"))),
    };
    let prefixes = |s: &v1::AddressSet| -> Result<(String, Vec<Prefix>), BadField> {
        let all = s.prefixes.iter().map(|p| prefix(&object, "sets", p)).collect::<Result<_, _>>()?;
        Ok((s.name.clone(), all))
    };
    let sets: Sets = a.sets.iter().map(prefixes).collect::<Result<_, _>>()?;
    let mut rules = Vec::with_capacity(a.rules.len());
    for (number, text) in (0..).zip(&a.rules) {
        let refused = |why: String| bad(object(), "rules", format!("rule {}: {why}", number + 1));
        let r: Rule = text.parse().map_err(|e: rule::BadRule| refused(e.to_string()))?;
        parts(&r, number, &sets, &mut rules).map_err(refused)?;
        if rules.len() > MAX_PARTS {
            return Err(refused(format!("more than {MAX_PARTS} combinations of addresses and ports")));
        }
    }
    // What a set without addresses became is no rule, but has its counter.
    Ok(Acl::new(&a.name, &rules, a.rules.len(), default, workers))
}

/// The rules of the engine that one of an operator's is: for all pairs of addresses and of port ranges.
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
        if p.is_empty() { vec![None] } else { p.iter().map(|(a, b)| Some(*a..=*b)).collect() }
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
