//! A configuration: objects by kind and name, and what changes it.
//!
//! A change is checked by what it touches, not by all there is: the objects that it sets, what they name, and what names
//! those that it deletes.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hasher},
    sync::Arc,
};

use imbl::{OrdMap, ordmap::DiffItem};
use prost::Message;

use serde_json::Value;

use crate::{
    Bad, DEFAULT_BRIDGE, Kind,
    check::{self, label},
    did_you_mean,
    meta::{self, Field},
    shown,
    v1::{Config, Object},
};

/// What an object is known by.
pub type Key = (Kind, String);

/// See the module. Clones share their objects.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects {
    all: OrdMap<Key, Arc<Object>>,
    /// Octets of all, encoded.
    octets: usize,
    /// The sum of their hashes.
    sum: u64,
}

/// Names of the keys of one kind.
pub fn keys_of_kind(keys: &BTreeSet<Key>, kind: Kind) -> impl Iterator<Item = &String> {
    keys.range((kind, String::new())..).take_while(move |k| k.0 == kind).map(|(_, name)| name)
}

/// What is to be changed; in this order.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// Remove what is not set.
    pub replace: bool,
    /// Objects of one kind that get another name: the one of now, the one to be.
    pub rename: Vec<(Kind, String, String)>,
    /// Objects that go.
    pub delete: Vec<Key>,
    /// Objects that are added, or take the place of those of their names.
    pub set: Vec<Object>,
}

/// That an object names another one.
struct Reference<'a> {
    field: &'a Field,
    kind: Kind,
    name: String,
}

impl Objects {
    /// Those of a file or a store, unchecked.
    pub fn of(objects: impl IntoIterator<Item = Object>) -> Self {
        let mut all = Objects::default();
        for o in objects {
            if let Some(kind) = o.kind() {
                all.put((kind, o.name()), Arc::new(o));
            }
        }
        all
    }

    /// Puts an object in, or takes it out, unchecked: as a store or a history has it.
    pub fn set(&mut self, key: Key, object: Option<Object>) {
        match object {
            Some(o) => self.put(key, Arc::new(o)),
            None => drop(self.take(&key)),
        }
    }

    fn put(&mut self, key: Key, object: Arc<Object>) {
        let (octets, hash) = weight(&object);
        self.take(&key);
        (self.octets, self.sum) = (self.octets + octets, self.sum.wrapping_add(hash));
        self.all.insert(key, object);
    }

    fn take(&mut self, key: &Key) -> Option<Arc<Object>> {
        let object = self.all.remove(key)?;
        let (octets, hash) = weight(&object);
        (self.octets, self.sum) = (self.octets - octets, self.sum.wrapping_sub(hash));
        Some(object)
    }

    /// Octets of all objects, encoded.
    pub fn octets(&self) -> usize {
        self.octets
    }

    /// A number that the content alone determines, whatever led to it.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// One of them.
    pub fn get(&self, kind: Kind, name: &str) -> Option<&Arc<Object>> {
        self.all.get(&(kind, name.to_owned()))
    }

    /// All of them, by kind and name.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Arc<Object>)> {
        self.all.iter()
    }

    /// Those of one kind, by name.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&str, &Arc<Object>)> {
        let from = (kind, String::new());
        self.all.range(from..).take_while(move |((k, _), _)| *k == kind).map(|((_, n), o)| (n.as_str(), o))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The file that has them.
    pub fn config(&self) -> Config {
        Config::of(self.all.values().map(|o| &**o))
    }

    /// Keys of objects that are not the same in both. What the two share is not looked at.
    pub fn differing<'a>(&'a self, other: &'a Objects) -> BTreeSet<&'a Key> {
        let key = |d| match d {
            DiffItem::Add(key, _) | DiffItem::Remove(key, _) | DiffItem::Update { new: (key, _), .. } => key,
        };
        self.all.diff(&other.all).map(key).collect()
    }

    /// The objects with a change in them.
    ///
    /// # Errors
    /// All that is wrong with it; nothing has changed.
    pub fn changed(&self, change: Change) -> Result<Objects, Vec<Bad>> {
        let mut next = if change.replace { Objects::default() } else { self.clone() };
        let mut bad = Vec::new();
        for (kind, from, to) in &change.rename {
            next.rename(*kind, from, to).unwrap_or_else(|e| bad.extend(e));
        }
        let mut deleted = BTreeSet::new();
        for (kind, name) in change.delete {
            match next.take(&(kind, name.clone())) {
                Some(_) => drop(deleted.insert((kind, name))),
                None => bad.push(next.not_there(kind, &name)),
            }
        }
        let mut set = BTreeSet::new();
        for o in change.set {
            let errors = check::object(&o);
            if !errors.is_empty() {
                bad.extend(errors);
                continue;
            }
            let key = (o.kind().expect("checked"), o.name());
            if set.insert(key.clone()) {
                deleted.remove(&key);
                next.put(key, Arc::new(o));
            } else {
                let why = format!("is declared twice; each {} needs a name of its own", key.0);
                bad.push(Bad::new(label(key.0, &key.1), "name", why));
            }
        }
        next.remove_owned(&deleted);
        for key in &set {
            bad.extend(next.references_to_nothing(key));
        }
        bad.extend(next.still_used(&deleted, self));
        if bad.is_empty() { Ok(next) } else { Err(bad) }
    }

    /// That there is no object of a name.
    pub fn not_there(&self, kind: Kind, name: &str) -> Bad {
        let hint = did_you_mean(name, self.of_kind(kind).map(|(n, _)| n));
        let list = if kind.is_single() { String::new() } else { format!("; 'dunlin {kind} list' shows them") };
        let hint = if hint.is_empty() { list } else { hint };
        Bad::new(label(kind, name), "", format!("there is none of that name{hint}"))
    }

    fn rename(&mut self, kind: Kind, from: &str, to: &str) -> Result<(), Vec<Bad>> {
        let one = |b: Bad| vec![b];
        if meta::of(kind).field("name").is_none() {
            return Err(one(Bad::new(label(kind, from), "", "has no name that can be changed")));
        }
        if kind == Kind::Bridge && from == DEFAULT_BRIDGE {
            let why = "is the bridge of whatever names none, and can't be renamed";
            return Err(one(Bad::new(label(kind, from), "name", why)));
        }
        let Some(o) = self.get(kind, from).cloned() else { return Err(one(self.not_there(kind, from))) };
        if self.get(kind, to).is_some() {
            let why = format!("there is a {kind} '{}' already", shown(to));
            return Err(one(Bad::new(label(kind, from), "name", why)));
        }
        let mut fields = o.fields();
        fields.insert("name".into(), to.into());
        let renamed = kind.object(fields).map_err(|e| one(Bad::new(label(kind, from), "name", e.to_string())))?;
        let errors = check::object(&renamed);
        if !errors.is_empty() {
            return Err(errors);
        }
        self.take(&(kind, from.to_owned()));
        self.put((kind, to.to_owned()), Arc::new(renamed));
        // What names it names it by its new name.
        let users: Vec<Key> = self.users(&(kind, from.to_owned())).map(|(k, _)| k.clone()).collect();
        for key in users {
            let user = self.take(&key).expect("found above");
            let fields = user.fields().into_iter().map(|(field, value)| {
                let definition = meta::of(key.0).field(&field);
                let names = definition.is_some_and(|f| f.names == Some(kind));
                let mentions = definition.is_some_and(|f| f.mentions == Some(kind));
                (field, renamed_in(value, names, mentions, from, to))
            });
            let user =
                key.0.object(fields.collect()).map_err(|e| one(Bad::new(label(key.0, &key.1), "", e.to_string())))?;
            self.put((key.0, user.name()), Arc::new(user));
        }
        Ok(())
    }

    /// Removes what goes with the objects it names.
    fn remove_owned(&mut self, deleted: &BTreeSet<Key>) {
        for gone in deleted {
            let owned = |(k, r): (&Key, Reference<'_>)| r.field.is_owned.then(|| k.clone());
            let owned: Vec<Key> = self.users(gone).filter_map(owned).collect();
            owned.iter().for_each(|k| drop(self.take(k)));
        }
    }

    /// How many objects name each.
    pub fn uses(&self) -> BTreeMap<Key, usize> {
        let mut uses = BTreeMap::new();
        for ((kind, _), o) in &self.all {
            let named: BTreeSet<Key> = references(*kind, o).into_iter().map(|r| (r.kind, r.name)).collect();
            named.into_iter().for_each(|k| *uses.entry(k).or_default() += 1);
        }
        uses
    }

    /// Objects that name one, as messages call them.
    pub fn names_of_users(&self, kind: Kind, name: &str) -> Vec<String> {
        self.users(&(kind, name.to_owned())).map(|(k, _)| label(k.0, &k.1)).collect()
    }

    /// Objects that name one.
    fn users<'a>(&'a self, of: &'a Key) -> impl Iterator<Item = (&'a Key, Reference<'a>)> {
        let may = |k: Kind| meta::of(k).fields.iter().any(|f| f.names == Some(of.0) || f.mentions == Some(of.0));
        let kinds: BTreeSet<Kind> = Kind::ALL.iter().copied().filter(|k| may(*k)).collect();
        let all = self.all.iter().filter(move |((k, _), _)| kinds.contains(k));
        all.filter_map(|(k, o)| Some((k, references(k.0, o).into_iter().find(|r| (r.kind, &r.name) == (of.0, &of.1))?)))
    }

    fn references_to_nothing(&self, key: &Key) -> Vec<Bad> {
        let Some(o) = self.all.get(key) else { return Vec::new() };
        let missing = |r: &Reference<'_>| self.get(r.kind, &r.name).is_none();
        let implicit = |r: &Reference<'_>| r.kind.implicit(&r.name).is_some();
        let error = |r: Reference<'_>| {
            let names: Vec<&str> = self.of_kind(r.kind).map(|(n, _)| n).collect();
            let hint = did_you_mean(&r.name, names.iter().copied());
            let there = match names.len() {
                0 => format!(" (add one with 'dunlin {} add')", r.kind),
                1..=8 => format!(" (there are: {})", names.join(", ")),
                _ => String::new(),
            };
            let (field, name) = (&r.field.name, shown(&r.name));
            let where_ = rule_number(o, r.field, &r.name).map_or(field.clone(), |n| format!("rule {n}"));
            Bad::new(label(key.0, &key.1), where_, format!("there is no {} '{name}'{there}{hint}", r.kind))
        };
        references(key.0, o).into_iter().filter(|r| missing(r) && !implicit(r)).map(error).collect()
    }

    fn still_used(&self, deleted: &BTreeSet<Key>, before: &Objects) -> Vec<Bad> {
        let used = |gone: &Key| {
            let only = || {
                let was_only = before.of_kind(gone.0).count() == 1 && self.of_kind(gone.0).next().is_none();
                let implicit = |(k, o): &(&Key, &Arc<Object>)| was_only && means_the_only(k.0, o, gone.0);
                self.all.iter().find(implicit).map(|(k, _)| k)
            };
            let user = self.users(gone).map(|(k, _)| k).next().or_else(only)?;
            let why = format!("{} still uses it; change or delete that first", label(user.0, &user.1));
            Some(Bad::new(label(gone.0, &gone.1), "", why))
        };
        deleted.iter().filter_map(used).collect()
    }
}

/// Octets of an object, encoded, and its hash.
fn weight(o: &Object) -> (usize, u64) {
    let encoded = o.encode_to_vec();
    let mut hasher = DefaultHasher::new();
    hasher.write(&encoded);
    // In a transaction, each has a tag and a length too.
    (encoded.len() + 8, hasher.finish())
}

/// Whether an object names the only one of a kind by naming none.
fn means_the_only(kind: Kind, o: &Object, of: Kind) -> bool {
    let fields = o.fields();
    let means = |f: &&Field| {
        f.names == Some(of)
            && f.absent_is_only
            && !fields.contains_key(&f.name)
            && f.needs.as_ref().is_none_or(|n| fields.contains_key(n))
    };
    meta::of(kind).fields.iter().any(|f| means(&f))
}

/// The objects that one names.
fn references(kind: Kind, o: &Object) -> Vec<Reference<'static>> {
    let mut all = Vec::new();
    let fields = o.fields();
    for field in meta::of(kind).fields.iter().filter(|f| f.names.is_some() || f.mentions.is_some()) {
        let texts: Vec<&str> = match fields.get(&field.name) {
            Some(Value::String(s)) => vec![s],
            Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
            _ => continue,
        };
        if let Some(kind) = field.names {
            // A remote VTEP is no object.
            let named = texts.iter().filter(|t| !t.contains('/'));
            all.extend(named.map(|t| Reference { field, kind, name: (*t).to_owned() }));
        }
        if let Some(kind) = field.mentions {
            let words = texts.iter().flat_map(|t| t.split_whitespace()).filter_map(|w| w.strip_prefix('@'));
            all.extend(words.map(|w| Reference { field, kind, name: w.to_owned() }));
        }
    }
    all
}

/// The number of the first rule that mentions a name.
fn rule_number(o: &Object, field: &Field, name: &str) -> Option<usize> {
    let fields = o.fields();
    let rules = fields.get(&field.name).filter(|_| field.name == "rules")?.as_array()?;
    let mentions =
        |r: &Value| r.as_str().is_some_and(|r| r.split_whitespace().any(|w| w.strip_prefix('@') == Some(name)));
    rules.iter().position(mentions).map(|i| i + 1)
}

/// A field's value with one name in another's place.
fn renamed_in(value: Value, names: bool, mentions: bool, from: &str, to: &str) -> Value {
    match value {
        Value::String(s) if names && s == from => to.into(),
        Value::String(s) if mentions && s.contains('@') => {
            let word = |w: &str| if w.strip_prefix('@') == Some(from) { format!("@{to}") } else { w.to_owned() };
            s.split(' ').map(word).collect::<Vec<_>>().join(" ").into()
        }
        Value::Array(all) => all.into_iter().map(|v| renamed_in(v, names, mentions, from, to)).collect(),
        other => other,
    }
}

#[cfg(test)]
mod tests;
