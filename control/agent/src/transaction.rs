//! Transactions: from what is stored to what the dataplane is sent. The objects are the same; of ports, what is no
//! configuration goes along.

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
};

use dunlin_dataplane_api::v1 as dp;
use dunlin_model::{
    Configuration, Kind,
    v1::{Key, Object},
};

use crate::leases::{Identities, Leases, now_s};

/// What the dataplane is to hold.
pub struct Target {
    pub configuration: Configuration,
    pub identities: Identities,
    /// A number that the content alone determines: a dataplane of the same generation holds this.
    pub generation: u64,
}

impl Target {
    pub fn new(configuration: Configuration, identities: Identities) -> Self {
        let hash = |port: (&String, &u64)| {
            let mut hasher = DefaultHasher::new();
            port.hash(&mut hasher);
            hasher.finish()
        };
        let ports = identities.iter().map(hash).fold(0u64, u64::wrapping_add);
        let generation = configuration.objects().sum().wrapping_add(ports).max(1);
        Target { configuration, identities, generation }
    }

    /// Everything, in place of what the dataplane holds.
    pub fn whole(&self, leases: &Leases) -> dp::Transaction {
        let objects = self.configuration.objects();
        dp::Transaction {
            replace: true,
            generation: self.generation,
            set: self.changes_since(None).0,
            ports: self.runtime(objects.of_kind(Kind::Port).map(|(name, _)| name), leases),
            ..Default::default()
        }
    }

    /// What leads here from another target.
    pub fn step_from(&self, from: &Target, leases: &Leases) -> dp::Transaction {
        let (set, delete) = self.changes_since(Some(from));
        let is_other = |(name, identity): &(&String, &u64)| from.identities.get(*name) != Some(identity);
        let ports = self.identities.iter().filter(is_other).map(|(name, _)| name.as_str());
        dp::Transaction {
            generation: self.generation,
            base_generation: Some(from.generation),
            set,
            delete,
            ports: self.runtime(ports, leases),
            ..Default::default()
        }
    }

    /// The objects that are set and removed on the way here from another target; all, without one.
    pub fn changes_since(&self, from: Option<&Target>) -> (Vec<Object>, Vec<Key>) {
        let objects = self.configuration.objects();
        let Some(from) = from else {
            return (objects.iter().map(|(_, o)| Object::clone(o)).collect(), Vec::new());
        };
        let (mut set, mut delete) = (Vec::new(), Vec::new());
        for (kind, name) in from.configuration.objects().differing(objects) {
            match objects.get(*kind, name) {
                Some(o) => set.push(Object::clone(o)),
                None => delete.push(Key { kind: kind.word().into(), name: name.clone() }),
            }
        }
        (set, delete)
    }

    /// The objects that problems name, once more.
    pub fn again(&self, problems: &[dp::Problem], leases: &Leases) -> dp::Transaction {
        let keys: BTreeSet<(Kind, &str)> =
            problems.iter().filter_map(|p| Some((Kind::from_word(&p.kind)?, p.name.as_str()))).collect();
        let objects = self.configuration.objects();
        let ports = keys.iter().filter(|k| k.0 == Kind::Port).map(|k| k.1);
        dp::Transaction {
            generation: self.generation,
            set: keys.iter().filter_map(|(kind, name)| Some(Object::clone(objects.get(*kind, name)?))).collect(),
            ports: self.runtime(ports, leases),
            ..Default::default()
        }
    }

    fn runtime<'a>(&self, ports: impl IntoIterator<Item = &'a str>, leases: &Leases) -> Vec<dp::PortRuntime> {
        let now_s = now_s();
        let one = |name: &str| {
            let identity = *self.identities.get(name)?;
            Some(dp::PortRuntime { name: name.to_owned(), identity, leases: leases.left(name, identity, now_s) })
        };
        ports.into_iter().filter_map(one).collect()
    }
}

/// A problem in a sentence.
pub fn problem_text(p: &dp::Problem) -> String {
    let field = if p.field.is_empty() { String::new() } else { format!("{}: ", p.field) };
    format!("{} '{}': {field}{}", p.kind, p.name, p.reason)
}
