//! ACLs and connection tracking, from the model to the engine.

use std::collections::BTreeMap;

use dunlin_engine::tables::{
    acl::{self, Acl, Match, Prefix},
    conntrack,
};
use dunlin_model::{
    configuration::Sets,
    rule::{self, Rule, Who},
    spec::{AclSpec, DefaultAction, SessionsSpec},
};

/// Compiles an ACL, whose rules name some of `sets`, for so many workers.
///
/// # Errors
/// A rule names a set that is not there: the model has checked that.
pub fn compile(name: &str, spec: &AclSpec, sets: &Sets, workers: usize) -> Result<Acl, String> {
    let default = match spec.default {
        DefaultAction::Allow => acl::Action::Allow,
        DefaultAction::Deny => acl::Action::Deny,
        DefaultAction::Reject => acl::Action::Reject,
    };
    let outermost: BTreeMap<&str, Vec<Prefix>> = (spec.sets.iter())
        .filter_map(|s| Some((s.as_str(), outermost(sets.get(s)?.iter().map(|p| (*p).into()).collect()))))
        .collect();
    let mut rules = Vec::with_capacity(spec.rules.len());
    for (number, r) in (0..).zip(&spec.rules) {
        parts(r, number, &outermost, &mut rules).map_err(|why| format!("rule {}: {why}", number + 1))?;
    }
    // What a set without addresses became is no rule, but has its counter.
    Ok(Acl::new(name, &rules, spec.rules.len(), default, workers))
}

/// The rules of the engine that one of an operator's is: for all pairs of addresses and of port ranges. No frame is of two:
/// what overlaps is written once.
fn parts(r: &Rule, number: u32, sets: &BTreeMap<&str, Vec<Prefix>>, rules: &mut Vec<acl::Rule>) -> Result<(), String> {
    let who = |w: &Option<Who>| -> Result<Vec<Option<Prefix>>, String> {
        match w {
            None => Ok(vec![None]),
            Some(Who::Prefix(net)) => Ok(vec![Some((*net).into())]),
            Some(Who::Set(name)) => {
                let set = sets.get(name.as_str()).ok_or_else(|| format!("there is no set '{name}'"))?;
                Ok(set.iter().copied().map(Some).collect())
            }
        }
    };
    let ports = |p: &[(u16, u16)]| -> Vec<_> {
        if p.is_empty() { vec![None] } else { merged(p).into_iter().map(|(a, b)| Some(a..=b)).collect() }
    };
    let ask = Match {
        src_mac: r.src_mac,
        dst_mac: r.dst_mac,
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

/// How connections are tracked, in a table with room for `capacity`.
pub fn sessions(s: &SessionsSpec, capacity: u32) -> conntrack::Settings {
    conntrack::Settings {
        timeouts: s.timeouts,
        max: s.max.unwrap_or(u32::MAX),
        // No port takes all there is.
        port_max: s.port_max.unwrap_or((capacity / 2).max(1)),
        unanswered_max: s.unanswered_max.unwrap_or((capacity / 8).max(1)),
        midstream: s.midstream,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_frame_is_of_two_parts() {
        let prefix = |text: &str| Prefix::from(text.parse::<ipnet::IpNet>().unwrap());
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
        parts(&r, 0, &[("s", kept)].into(), &mut rules).unwrap();
        // From each of both families to each of the same.
        assert_eq!(rules.len(), 2 * 2 + 1);
    }
}
