//! Address sets with the sets that they name written out.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use ipnet::IpNet;

use crate::{Bad, Kind, Objects, check::label, limits, spec::addresses, v1::object::Spec};

/// A set, and how deep the sets that it names go, itself included.
type Known = (Arc<[IpNet]>, usize);

/// Sets of one change: each is written out once.
pub(super) struct Flattened<'a> {
    objects: &'a Objects,
    known: HashMap<&'a str, Known>,
    /// Prefixes of all of them: they are memory.
    prefixes: usize,
}

impl<'a> Flattened<'a> {
    pub fn new(objects: &'a Objects) -> Self {
        Flattened { objects, known: HashMap::new(), prefixes: 0 }
    }

    /// The prefixes of a set, those of the sets that it names among them.
    ///
    /// # Errors
    /// Something in it is no prefix, or it is too large or too deep, or names itself.
    pub fn prefixes(&mut self, name: &'a str) -> Result<Arc<[IpNet]>, Bad> {
        self.set(name, &mut vec![name]).map(|(prefixes, _)| prefixes)
    }

    fn set(&mut self, name: &'a str, way: &mut Vec<&'a str>) -> Result<Known, Bad> {
        if let Some(known) = self.known.get(name) {
            return Ok(known.clone());
        }
        let bad = |why: String| Bad::new(label(Kind::Set, name), "addresses", why);
        let Some(Some(Spec::Set(set))) = self.objects.get(Kind::Set, name).map(|o| &o.spec) else {
            return Err(bad("there is none of that name".into()));
        };
        let (mut prefixes, mut depth) = (BTreeSet::new(), 1);
        for text in &set.addresses {
            match text.strip_prefix('@') {
                None => prefixes.extend(addresses(&label(Kind::Set, name), "addresses", std::slice::from_ref(text))?),
                Some(inner) if way.contains(&inner) => {
                    return Err(bad(format!("set '{inner}' names itself: {} -> {inner}", way.join(" -> "))));
                }
                Some(inner) => {
                    way.push(inner);
                    // Not deeper either by sets that are known already: whether a set fits does not depend on names.
                    let fits = way.len() <= limits::DEPTH;
                    let known = if fits { Some(self.set(inner, way)?) } else { None };
                    let Some((more, below)) = known.filter(|(_, d)| way.len() - 1 + d <= limits::DEPTH) else {
                        return Err(bad(format!(
                            "sets in sets, more than {} deep: {}",
                            limits::DEPTH,
                            way.join(" -> ")
                        )));
                    };
                    way.pop();
                    depth = depth.max(below + 1);
                    prefixes.extend(more.iter().copied());
                }
            }
            if prefixes.len() > limits::PREFIXES {
                return Err(bad(format!("more than {}", limits::PREFIXES)));
            }
        }
        let known = (self.shared(&set.addresses, prefixes), depth);
        if self.prefixes > limits::ALL_PREFIXES {
            let most = limits::ALL_PREFIXES;
            return Err(bad(format!("with it all sets have more than {most} prefixes, written out")));
        }
        self.known.insert(name, known.clone());
        Ok(known)
    }

    /// A set that is another one has no copy of its own.
    fn shared(&mut self, addresses: &[String], prefixes: BTreeSet<IpNet>) -> Arc<[IpNet]> {
        let named = addresses.iter().filter_map(|t| self.known.get(t.strip_prefix('@')?));
        if let Some((same, _)) = { named }.find(|(p, _)| p.len() == prefixes.len()) {
            return same.clone();
        }
        self.prefixes += prefixes.len();
        prefixes.into_iter().collect()
    }
}
