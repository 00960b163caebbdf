//! Access lists, sets, groups, port security and connections: from what the operator wrote to what the
//! dataplane is told. Rules stay text: the dataplane reads them by the same code as they are checked with
//! here.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_dataplane_api::{
    rule::{self, Rule, Who},
    v1 as dp,
};
use dunlin_model::v1::{Acl, AddressSet, Config, Port, Sessions};

use super::{Bad, bad, station_mac};

/// Rules of one list, and of all.
const MAX_RULES: usize = 10_000;
const MAX_ALL_RULES: usize = 100_000;
/// What the rules of one list, and of all, become when sets and several ports are written out: they are memory.
const MAX_PARTS: usize = 65_536;
const MAX_ALL_PARTS: usize = 262_144;
/// Lists on one port, each way.
const MAX_LISTS: usize = 16;
const MAX_ADDRESSES: usize = 65_536;
/// How deep sets name sets.
const MAX_DEPTH: usize = 16;

const CHECKS: [&str; 6] = ["mac", "ip", "arp", "nd", "dhcp-guard", "ra-guard"];
const SNOOPING: &str = "dhcp-snooping";

/// Lists and groups that may be named.
pub(super) struct Filters {
    pub acls: BTreeMap<String, dp::Acl>,
    /// Those that rules name, sets in them written out.
    pub sets: BTreeMap<String, dp::AddressSet>,
    pub sets_of: BTreeMap<String, BTreeSet<String>>,
    groups: BTreeMap<String, (Vec<String>, Vec<String>)>,
}

pub(super) fn compile(config: &Config) -> Result<Filters, Bad> {
    let mut sets: BTreeMap<&str, &AddressSet> = BTreeMap::new();
    for s in &config.set {
        if sets.insert(&s.name, s).is_some() {
            return bad(format!("set '{}'", s.name), "name", "is declared twice");
        }
    }
    let mut known = BTreeMap::new();
    for s in &config.set {
        flatten(s, &sets, &mut vec![&s.name], &mut known)?;
    }
    let flat: BTreeMap<&str, Vec<String>> = known.into_iter().map(|(n, p)| (n, p.into_iter().collect())).collect();
    let mut f =
        Filters { acls: BTreeMap::new(), sets: BTreeMap::new(), sets_of: BTreeMap::new(), groups: BTreeMap::new() };
    let (mut all, mut all_parts) = (0, 0);
    for a in &config.acl {
        all += a.rules.len();
        if all > MAX_ALL_RULES {
            let why = format!(
                "rule {} is one too many: a host has at most {MAX_ALL_RULES} in all",
                a.rules.len() + MAX_ALL_RULES + 1 - all
            );
            return bad(format!("acl '{}'", a.name), "rules", why);
        }
        let (compiled, named) = acl(a, &flat, &mut all_parts)?;
        for name in &named {
            f.sets
                .entry(name.clone())
                .or_insert_with(|| dp::AddressSet { name: name.clone(), prefixes: flat[name.as_str()].clone() });
        }
        f.sets_of.insert(a.name.clone(), named);
        if f.acls.insert(a.name.clone(), compiled).is_some() {
            return bad(format!("acl '{}'", a.name), "name", "is declared twice");
        }
    }
    for g in &config.group {
        let object = format!("group '{}'", g.name);
        f.check_lists(&object, &g.ingress_acls, &g.egress_acls)?;
        if f.groups.insert(g.name.clone(), (g.ingress_acls.clone(), g.egress_acls.clone())).is_some() {
            return bad(object, "name", "is declared twice");
        }
    }
    Ok(f)
}

/// Finds the prefixes of a set, those of the sets that it names among them; each set once.
fn flatten<'a>(
    s: &'a AddressSet,
    sets: &BTreeMap<&str, &'a AddressSet>,
    way: &mut Vec<&'a str>,
    known: &mut BTreeMap<&'a str, BTreeSet<String>>,
) -> Result<(), Bad> {
    if known.contains_key(s.name.as_str()) {
        return Ok(());
    }
    let object = format!("set '{}'", s.name);
    let mut prefixes = BTreeSet::new();
    for text in &s.addresses {
        if let Some(named) = text.strip_prefix('@') {
            let Some(inner) = sets.get(named) else {
                return bad(object, "addresses", format!("there is no set '{named}'"));
            };
            if way.contains(&named) {
                return bad(
                    object,
                    "addresses",
                    format!("set '{named}' names itself: {} -> {named}", way.join(" -> ")),
                );
            }
            if way.len() == MAX_DEPTH {
                let why = format!("sets in sets, more than {MAX_DEPTH} deep: {}", way.join(" -> "));
                return bad(object, "addresses", why);
            }
            way.push(&inner.name);
            flatten(inner, sets, way, known)?;
            way.pop();
            prefixes.extend(known[named].iter().cloned());
        } else {
            match rule::prefix(text) {
                Ok((address, len)) => drop(prefixes.insert(format!("{address}/{len}"))),
                Err(e) => return bad(object, "addresses", e.to_string()),
            }
        }
        if prefixes.len() > MAX_ADDRESSES {
            return bad(object, "addresses", format!("more than {MAX_ADDRESSES}"));
        }
    }
    known.insert(&s.name, prefixes);
    Ok(())
}

/// A list, and the sets that its rules name.
fn acl(a: &Acl, sets: &BTreeMap<&str, Vec<String>>, all_parts: &mut usize) -> Result<(dp::Acl, BTreeSet<String>), Bad> {
    let object = format!("acl '{}'", a.name);
    let default = if a.default.is_empty() { "deny" } else { &a.default };
    if a.rules.len() > MAX_RULES {
        return bad(object, "rules", format!("rule {} is one too many: a list has at most {MAX_RULES}", MAX_RULES + 1));
    }
    let mut used = BTreeSet::new();
    let mut parts = 0;
    for (i, text) in a.rules.iter().enumerate() {
        let field = format!("rule {}", i + 1);
        let r: Rule = match text.parse() {
            Ok(r) => r,
            Err(e) => return bad(object, &field, format!("{e} (in '{text}')")),
        };
        let mut n = r.from_ports.len().max(1) * r.to_ports.len().max(1);
        for who in [&r.from, &r.to].into_iter().flatten() {
            if let Who::Set(name) = who {
                let Some(prefixes) = sets.get(name.as_str()) else {
                    return bad(object, &field, format!("there is no set '{name}' (in '{text}')"));
                };
                used.insert(name.clone());
                n = n.saturating_mul(prefixes.len());
            }
        }
        (parts, *all_parts) = (parts + n, *all_parts + n);
        for (whose, n, most) in [("the list has", parts, MAX_PARTS), ("all lists have", *all_parts, MAX_ALL_PARTS)] {
            if n > most {
                let why = format!("with it {whose} more than {most} combinations of addresses and ports");
                return bad(object, &field, why);
            }
        }
    }
    Ok((dp::Acl { name: a.name.clone(), default: default.into(), rules: a.rules.clone() }, used))
}

impl Filters {
    /// Whether lists that are named are there.
    pub fn check_lists(&self, object: &str, ingress: &[String], egress: &[String]) -> Result<(), Bad> {
        for (field, names) in [("ingress_acls", ingress), ("egress_acls", egress)] {
            if let Some(unknown) = names.iter().find(|n| !self.acls.contains_key(*n)) {
                return bad(object, field, format!("there is no acl '{unknown}'"));
            }
            if names.len() > MAX_LISTS {
                return bad(object, field, format!("{} of them; there may be {MAX_LISTS}", names.len()));
            }
            if let Some((_, twice)) = names.iter().enumerate().find(|(i, n)| names[..*i].contains(n)) {
                return bad(object, field, format!("acl '{twice}' stands there twice"));
            }
        }
        Ok(())
    }

    /// A port's lists, each way: its own, then its groups'; each once.
    pub fn lists_of(&self, p: &Port) -> Result<(Vec<String>, Vec<String>), Bad> {
        let object = format!("port '{}'", p.name);
        let (mut ingress, mut egress) = (p.ingress_acls.clone(), p.egress_acls.clone());
        self.check_lists(&object, &ingress, &egress)?;
        for name in &p.groups {
            let Some((i, e)) = self.groups.get(name) else {
                return bad(object, "groups", format!("there is no group '{name}'"));
            };
            ingress.extend(i.iter().filter(|n| !p.ingress_acls.contains(n)).cloned());
            egress.extend(e.iter().filter(|n| !p.egress_acls.contains(n)).cloned());
        }
        for list in [&mut ingress, &mut egress] {
            let mut seen = BTreeSet::new();
            list.retain(|n| seen.insert(n.clone()));
        }
        if ingress.len() > MAX_LISTS || egress.len() > MAX_LISTS {
            return bad(object, "groups", format!("with theirs, the port has more than {MAX_LISTS} lists one way"));
        }
        Ok((ingress, egress))
    }
}

/// As whom a port's station may speak.
pub(super) fn security(p: &Port) -> Result<Option<dp::Security>, Bad> {
    let object = format!("port '{}'", p.name);
    let all = p.security.iter().any(|w| w == "all");
    let checks: BTreeSet<&str> = CHECKS.into_iter().filter(|c| all || p.security.iter().any(|w| w == c)).collect();
    let snoop = p.security.iter().any(|w| w == SNOOPING);
    let macs = p.macs.iter().map(|m| station_mac(&object, m)).collect::<Result<Vec<_>, _>>()?;
    let mut ips = Vec::new();
    for text in &p.ips {
        match rule::prefix(text) {
            Ok((address, len)) => ips.push(format!("{address}/{len}")),
            Err(e) => return bad(object, "ips", e.to_string()),
        }
    }
    if checks.is_empty() && !snoop {
        if !macs.is_empty() || !ips.is_empty() {
            let field = if macs.is_empty() { "ips" } else { "macs" };
            return bad(
                object,
                field,
                "is used by no check: name checks in security, as 'all', or clear macs and ips too",
            );
        }
        return Ok(None);
    }
    if snoop && macs.is_empty() {
        let why = format!("'{SNOOPING}' can't tell whose address is given: name the station's addresses in macs");
        return bad(object, "security", why);
    }
    if checks.contains("mac") && macs.is_empty() {
        return bad(object, "security", "'mac' lets nothing pass: name the station's addresses in macs");
    }
    for check in ["ip", "arp", "nd"] {
        if checks.contains(check) && ips.is_empty() && !snoop {
            let why = format!("'{check}' lets nothing pass: name the station's addresses in ips, or add '{SNOOPING}'");
            return bad(object, "security", why);
        }
    }
    let checks = checks.into_iter().map(Into::into).collect();
    Ok(Some(dp::Security { checks, macs, ips, snoop, leases: Vec::new() }))
}

pub(super) fn sessions(s: &Sessions) -> dp::Sessions {
    dp::Sessions {
        tcp_opening_s: s.tcp_opening_s.unwrap_or(30),
        tcp_open_s: s.tcp_open_s.unwrap_or(86_400),
        tcp_closing_s: s.tcp_closing_s.unwrap_or(120),
        tcp_closed_s: s.tcp_closed_s.unwrap_or(10),
        udp_s: s.udp_s.unwrap_or(30),
        udp_answered_s: s.udp_answered_s.unwrap_or(120),
        icmp_s: s.icmp_s.unwrap_or(30),
        other_s: s.other_s.unwrap_or(120),
        max: s.max.unwrap_or(0),
        port_max: s.port_max.unwrap_or(0),
        unanswered_max: s.unanswered_max.unwrap_or(0),
        strict: s.midstream == "off",
    }
}
