//! A configuration that is checked: objects, and what they mean. Both processes hold one, and change it by the same code:
//! what control accepts, the dataplane understands.
//!
//! A change resolves what it touches again: its objects, and those that are made of them. [`across`] checks that the
//! result fits together.

mod across;
mod sets;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use imbl::OrdMap;
use ipnet::IpNet;

use crate::{
    Bad, Change, DEFAULT_BRIDGE, Kind, Objects,
    check::{self, label},
    groups, limits,
    objects::{Key, keys_of_kind},
    spec::{self, AclSpec, BridgeSpec, DataplaneSpec, NetworkSpec, PortSpec, SessionsSpec, StaticSpec, Vtep},
    v1::{self, Object, object::Spec},
};
use sets::Flattened;

/// See [`Configuration::changed_as_far_as_possible`].
pub struct Possible {
    /// The configuration with the rest of the change in it.
    pub configuration: Configuration,
    /// As [`Configuration::changed`] has it.
    pub touched: BTreeSet<Key>,
    /// Objects that are wrong, and why.
    pub left_out: Vec<(Key, Bad)>,
}

/// Prefixes of sets, by name.
pub type Sets = OrdMap<String, Arc<[IpNet]>>;
/// Specifications of one kind, by name.
pub type Specs<T> = OrdMap<String, Arc<T>>;

/// What the objects mean.
#[derive(Clone, Debug, Default)]
pub struct Resolved {
    /// Settings of the workers.
    pub dataplane: DataplaneSpec,
    /// Connection tracking.
    pub sessions: SessionsSpec,
    /// Prefixes of sets, those of the sets that they name included, each once.
    pub sets: Sets,
    /// ACLs.
    pub acls: Specs<AclSpec>,
    /// Bridges, [`DEFAULT_BRIDGE`] always among them.
    pub bridges: BTreeMap<String, BridgeSpec>,
    /// VTEPs with their routes and neighbours.
    pub vteps: Specs<Vtep>,
    /// Networks.
    pub networks: Specs<NetworkSpec>,
    /// Ports with the settings of their groups.
    pub ports: Specs<PortSpec>,
    /// Static MAC addresses.
    pub macs: Specs<StaticSpec>,
    index: across::Index,
    totals: across::Totals,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Configuration {
    objects: Objects,
    resolved: Resolved,
}

impl Default for Configuration {
    fn default() -> Self {
        let bridges = [(DEFAULT_BRIDGE.to_owned(), BridgeSpec::default())].into();
        Configuration { objects: Objects::default(), resolved: Resolved { bridges, ..Default::default() } }
    }
}

impl Configuration {
    /// The objects.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// What they mean.
    pub fn resolved(&self) -> &Resolved {
        &self.resolved
    }

    /// The configuration with a change in it, and the keys of all objects that mean something else, are gone, or were set
    /// again (but not with `replace`).
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn changed(&self, change: Change) -> Result<(Configuration, BTreeSet<Key>), Vec<Bad>> {
        let named: Vec<Key> = match change.replace {
            true => Vec::new(),
            false => change.set.iter().filter_map(|o| Some((o.kind()?, o.name()))).collect(),
        };
        let objects = self.objects.changed(change)?;
        let octets = objects.octets();
        if octets > limits::OCTETS {
            return Err(vec![Bad::new("configuration", "size", too_large(octets))]);
        }
        let mut touched: BTreeSet<Key> = self.objects.differing(&objects).into_iter().cloned().collect();
        touched.extend(named);
        let touched = self.affected(&objects, touched);
        let mut next = self.resolved.clone();
        let mut bad = Vec::new();
        across::leave(&mut next, &touched);
        let mut flattened = Flattened::new(&objects);
        for key in &touched {
            next.resolve(&objects, key, &mut flattened).unwrap_or_else(|e| bad.push(e));
            // Before more memory is taken than any configuration may have.
            if let Err(e) = next.totals.check(key) {
                bad.push(e);
                return Err(bad);
            }
        }
        across::check(&mut next, &touched, &mut bad);
        if bad.is_empty() { Ok((Configuration { objects, resolved: next }, touched)) } else { Err(bad) }
    }

    /// Objects that mean something else because of `touched`, and those themselves; in the order in which they depend on
    /// each other.
    fn affected(&self, objects: &Objects, mut touched: BTreeSet<Key>) -> BTreeSet<Key> {
        let has = |touched: &BTreeSet<Key>, kind: Kind| keys_of_kind(touched, kind).next().is_some();
        if has(&touched, Kind::Set) {
            // Sets in sets, from the inside out.
            loop {
                let names = |texts: &[String]| {
                    texts
                        .iter()
                        .filter_map(|t| t.strip_prefix('@'))
                        .any(|n| touched.contains(&(Kind::Set, n.to_owned())))
                };
                let more: Vec<Key> = objects
                    .of_kind(Kind::Set)
                    .filter(|(name, _)| !touched.contains(&(Kind::Set, (*name).to_owned())))
                    .filter(|(_, o)| matches!(&o.spec, Some(Spec::Set(s)) if names(&s.addresses)))
                    .map(|(name, _)| (Kind::Set, name.to_owned()))
                    .collect();
                if more.is_empty() {
                    break;
                }
                touched.extend(more);
            }
            let acls = self.resolved.acls.iter();
            let named = acls.filter(|(_, a)| a.sets.iter().any(|s| touched.contains(&(Kind::Set, s.clone()))));
            let named: Vec<Key> = named.map(|(name, _)| (Kind::Acl, name.clone())).collect();
            touched.extend(named);
        }
        if has(&touched, Kind::Group) {
            let in_one = |p: &v1::Port| p.groups.iter().any(|g| touched.contains(&(Kind::Group, g.clone())));
            let ports =
                objects.of_kind(Kind::Port).filter(|(_, o)| matches!(&o.spec, Some(Spec::Port(p)) if in_one(p)));
            let ports: Vec<Key> = ports.map(|(name, _)| (Kind::Port, name.to_owned())).collect();
            touched.extend(ports);
        }
        if [Kind::Vtep, Kind::Route, Kind::Neighbor].into_iter().any(|k| has(&touched, k)) {
            // Of routes and neighbours it is not known here which VTEP they were of. Those that name none are of the only
            // one, which may not be the only one any more.
            for kind in [Kind::Vtep, Kind::Route, Kind::Neighbor] {
                touched
                    .extend(objects.of_kind(kind).filter(|(_, o)| names_no_vtep(o)).map(|(n, _)| (kind, n.to_owned())));
            }
        }
        if has(&touched, Kind::Vtep) {
            let in_tunnels = |o: &Object| matches!(&o.spec, Some(Spec::Network(n)) if n.vni.is_some());
            let networks = objects.of_kind(Kind::Network).filter(|(_, o)| in_tunnels(o));
            let networks: Vec<Key> = networks
                .filter(|(name, o)| self.network_changes(objects, name, o))
                .map(|(name, _)| (Kind::Network, name.to_owned()))
                .collect();
            touched.extend(networks);
        }
        touched
    }

    /// Whether a network has another VTEP, or one with another address, than it was resolved with.
    fn network_changes(&self, objects: &Objects, name: &str, o: &Object) -> bool {
        let Some(Spec::Network(n)) = &o.spec else { return false };
        let before = self.resolved.networks.get(name).and_then(|n| n.overlay.as_ref()).map(|o| o.vtep.as_str());
        let Ok(now) = vtep_of(objects, "", &n.vtep) else { return true };
        before != Some(now) || vtep_address(&self.objects, now) != vtep_address(objects, now)
    }

    /// What of a change from `before` is valid and will not work, or is rather a mistake. `touched` is what the change
    /// touches.
    pub fn warnings(&self, before: &Configuration, touched: &BTreeSet<Key>) -> Vec<String> {
        let said = across::warnings(&before.resolved, touched);
        let mut all = across::warnings(&self.resolved, touched);
        all.retain(|w| !said.contains(w));
        all.extend(across::opened(&before.resolved, &self.resolved, touched));
        all
    }

    /// A change without the objects in it that are wrong; those, and why.
    ///
    /// # Errors
    /// What is wrong even so.
    pub fn changed_as_far_as_possible(&self, change: Change) -> Result<Possible, Vec<Bad>> {
        let Change { replace, rename, delete, mut set } = change;
        let mut left_out = Vec::new();
        loop {
            let change = Change { replace, rename: rename.clone(), delete: delete.clone(), set: set.clone() };
            let bad = match self.changed(change) {
                Ok((configuration, touched)) => return Ok(Possible { configuration, touched, left_out }),
                Err(bad) => bad,
            };
            let before = set.len();
            set.retain(|o| {
                let key = (o.kind().unwrap_or(Kind::Dataplane), o.name());
                let object = o.kind().map_or_else(|| check::UNKNOWN.to_owned(), |kind| label(kind, &key.1));
                let Some(b) = bad.iter().find(|b| b.object == object) else { return true };
                left_out.push((key, b.clone()));
                false
            });
            if set.len() == before {
                return Err(bad);
            }
        }
    }
}

/// What is said of a configuration of so many octets.
pub fn too_large(octets: usize) -> String {
    let mib = |n: usize| n.div_ceil(1 << 20);
    format!("the configuration: {} MiB when encoded; at most {} MiB can be held", mib(octets), mib(limits::OCTETS))
}

/// Whether an object is a VTEP, or a route or neighbour of the only one.
fn names_no_vtep(o: &Object) -> bool {
    match &o.spec {
        Some(Spec::Route(r)) => r.vtep.is_empty(),
        Some(Spec::Neighbor(n)) => n.vtep.is_empty(),
        _ => true,
    }
}

fn vtep_address<'a>(objects: &'a Objects, name: &str) -> Option<&'a str> {
    match &objects.get(Kind::Vtep, name)?.spec {
        Some(Spec::Vtep(v)) => Some(&v.address),
        _ => None,
    }
}

/// The VTEP that is named, or the only one.
fn vtep_of<'a>(objects: &'a Objects, object: &str, named: &'a str) -> Result<&'a str, Bad> {
    if objects.get(Kind::Vtep, named).is_some() {
        return Ok(named);
    }
    let known: Vec<&str> = objects.of_kind(Kind::Vtep).map(|(n, _)| n).collect();
    let why = match (named, &known[..]) {
        ("", [only]) => return Ok(only),
        ("", []) => "there is no vtep; add one with 'dunlin vtep add'".into(),
        ("", all) => format!("is missing, because there are several: one of {}; set it first", all.join(", ")),
        (_, all) => format!("there is no vtep '{named}' (there are: {})", all.join(", ")),
    };
    Err(Bad::new(object, "vtep", why))
}

/// Puts what an object means into a table, or takes it out.
fn put<T>(all: &mut Specs<T>, name: &str, spec: Option<T>) {
    match spec {
        Some(spec) => drop(all.insert(name.to_owned(), Arc::new(spec))),
        None => drop(all.remove(name)),
    }
}

impl Resolved {
    /// Resolves one object, which may be gone.
    fn resolve<'a>(
        &mut self,
        objects: &'a Objects,
        (kind, name): &'a Key,
        sets: &mut Flattened<'a>,
    ) -> Result<(), Bad> {
        let there = objects.get(*kind, name);
        let object = label(*kind, name);
        match (kind, there.and_then(|o| o.spec.as_ref())) {
            (Kind::Dataplane, Some(Spec::Dataplane(d))) => self.dataplane = d.into(),
            (Kind::Dataplane, _) => self.dataplane = DataplaneSpec::default(),
            (Kind::Sessions, Some(Spec::Sessions(s))) => self.sessions = s.into(),
            (Kind::Sessions, _) => self.sessions = SessionsSpec::default(),
            (Kind::Bridge, Some(Spec::Bridge(b))) => drop(self.bridges.insert(name.clone(), b.into())),
            (Kind::Bridge, _) => drop(self.bridges.remove(name)),
            (Kind::Set, Some(_)) => {
                let prefixes = sets.prefixes(name)?;
                self.totals.prefixes += prefixes.len();
                self.sets.insert(name.clone(), prefixes);
            }
            (Kind::Set, None) => drop(self.sets.remove(name)),
            (Kind::Acl, Some(Spec::Acl(a))) => {
                let acl = AclSpec::new(&object, a, |set| self.sets.get(set).map(|p| p.len()))?;
                self.totals.rules += acl.rules.len();
                self.totals.combinations += acl.combinations;
                put(&mut self.acls, name, Some(acl));
            }
            (Kind::Acl, _) => put(&mut self.acls, name, None),
            (Kind::Vtep, Some(Spec::Vtep(v))) => {
                let vtep = vtep(objects, &object, v)?;
                put(&mut self.vteps, name, Some(vtep));
            }
            (Kind::Vtep, _) => put(&mut self.vteps, name, None),
            (Kind::Route, Some(Spec::Route(r))) => drop(vtep_of(objects, &object, &r.vtep)?),
            (Kind::Neighbor, Some(Spec::Neighbor(n))) => drop(vtep_of(objects, &object, &n.vtep)?),
            (Kind::Network, Some(Spec::Network(n))) => {
                let named = n.vni.map(|_| vtep_of(objects, &object, &n.vtep)).transpose()?;
                let vtep = named.and_then(|v| Some((v, &self.vteps.get(v)?.spec)));
                let network = NetworkSpec::new(&object, n, vtep)?;
                put(&mut self.networks, name, Some(network));
            }
            (Kind::Network, _) => put(&mut self.networks, name, None),
            (Kind::Port, Some(Spec::Port(p))) => {
                let port = port(objects, there.expect("matched"), p)?;
                put(&mut self.ports, name, Some(port));
            }
            (Kind::Port, _) => put(&mut self.ports, name, None),
            (Kind::Mac, Some(Spec::Mac(m))) => {
                put(&mut self.macs, name, Some(StaticSpec::new(&object, m)?));
            }
            (Kind::Mac, _) => put(&mut self.macs, name, None),
            _ => {}
        }
        self.bridges.entry(DEFAULT_BRIDGE.to_owned()).or_default();
        Ok(())
    }
}

/// A port with the settings of its groups.
fn port(objects: &Objects, o: &Object, p: &v1::Port) -> Result<PortSpec, Bad> {
    if p.groups.is_empty() {
        return PortSpec::new(p);
    }
    let all = groups::inherited(objects, o);
    let object = || label(Kind::Port, &p.name);
    match Kind::Port.object(all.fields).map(|o| o.spec) {
        Ok(Some(Spec::Port(p))) => {
            let spec = PortSpec::new(&p)?;
            if spec.policy.network.is_some() {
                return Ok(spec);
            }
            let unfit = |field: &str, why: String| Err(Bad::new(object(), field, why));
            match (&all.bridge_left, all.left.first()) {
                (Some(group), _) if p.bridge.is_empty() => unfit(
                    "bridge",
                    format!("is missing: that of group '{group}' belongs to its VLANs, which do not hold here"),
                ),
                (_, Some(group)) if spec.policy.vlan.carries_all() => {
                    let why = "the port would carry all VLANs. Name those that it carries";
                    unfit(
                        "trunks",
                        format!("are missing: the VLAN settings of group '{group}' do not hold here, and {why}"),
                    )
                }
                _ => Ok(spec),
            }
        }
        Ok(_) => Err(Bad::new(object(), "groups", "they do not fit")),
        Err(e) => Err(Bad::new(object(), "groups", e.to_string())),
    }
}

/// A VTEP with its routes and neighbours.
fn vtep(objects: &Objects, object: &str, v: &v1::Vtep) -> Result<Vtep, Bad> {
    let mut vtep = Vtep::new(object, v)?;
    let its = |named: &str| named == v.name || named.is_empty();
    for (name, o) in objects.of_kind(Kind::Route) {
        if let Some(Spec::Route(r)) = &o.spec
            && its(&r.vtep)
        {
            let route = spec::route(&label(Kind::Route, name), &vtep, r)?;
            vtep.routes.push(route);
        }
    }
    for (name, o) in objects.of_kind(Kind::Neighbor) {
        if let Some(Spec::Neighbor(n)) = &o.spec
            && its(&n.vtep)
        {
            let neighbor = spec::neighbor(&label(Kind::Neighbor, name), &vtep, n)?;
            vtep.neighbors.push(neighbor);
        }
    }
    Ok(vtep)
}

#[cfg(test)]
mod tests;
