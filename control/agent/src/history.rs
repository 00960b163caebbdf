//! The history of changes, and the way back.

use dunlin_control_api::v1::Revision;
use dunlin_model::{Kind, Objects, objects::Key, plan, v1::Item};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Octets of one change that are kept for the way back. Of a larger one, what it changed is only said.
const MAX_CHANGES: usize = 16 << 20;
/// Octets of a command, and of a user's name.
const MAX_TEXT: usize = 300;

/// One change.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    pub revision: u64,
    pub unix_ms: u64,
    pub user: String,
    pub command: String,
    pub items: Vec<Item>,
    /// What the objects that changed were before; nothing where that is too large to be kept.
    pub before: Option<Vec<Before>>,
}

/// An object before a change; it was not there without fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Before {
    kind: String,
    name: String,
    fields: Option<Map<String, Value>>,
}

/// A change that is taken back unless it is confirmed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pending {
    /// The revision to go back to.
    pub back_to: u64,
    /// Until then, in milliseconds since 1970.
    pub until_ms: u64,
}

impl Record {
    /// The change from one configuration to another, which has `revision`.
    pub fn new(revision: u64, (from, to): (&Objects, &Objects), user: &str, command: &str) -> Self {
        let before = |(kind, name): &Key| Before {
            kind: kind.word().into(),
            name: name.clone(),
            fields: from.get(*kind, name).map(|o| o.fields()),
        };
        let before: Vec<Before> = from.differing(to).into_iter().map(before).collect();
        let size: usize = before.iter().flat_map(|b| &b.fields).flat_map(|f| f.values()).map(size_of).sum();
        Record {
            revision,
            unix_ms: dunlin_dataplane_api::unix_ms(),
            user: user.chars().take(MAX_TEXT).collect(),
            command: dunlin_model::shown_up_to(command, MAX_TEXT),
            items: plan::items(from, to),
            before: (size <= MAX_CHANGES).then_some(before),
        }
    }
}

/// A change without the way back, which may be large.
#[derive(Debug, Deserialize)]
pub struct Summary {
    revision: u64,
    unix_ms: u64,
    user: String,
    command: String,
    items: Vec<Item>,
}

impl From<Summary> for Revision {
    fn from(s: Summary) -> Self {
        let Summary { revision, unix_ms, user, command, items } = s;
        Revision { revision, unix_ms, user, command, items }
    }
}

fn size_of(v: &Value) -> usize {
    match v {
        Value::String(s) => s.len(),
        Value::Array(all) => all.iter().map(size_of).sum(),
        Value::Object(o) => o.values().map(size_of).sum(),
        _ => 8,
    }
}

/// Takes a change back.
///
/// # Errors
/// It does not have what was there before.
pub fn undo(objects: &mut Objects, r: Record) -> Result<(), String> {
    let Some(before) = r.before else {
        return Err(format!("revision {} changed too much for the way back to be kept", r.revision));
    };
    for b in before {
        let kind = Kind::from_word(&b.kind).ok_or_else(|| format!("kind '{}' is not known here", b.kind))?;
        let object = b.fields.map(|f| kind.object(f)).transpose().map_err(|e| e.to_string())?;
        objects.set((kind, b.name), object);
    }
    Ok(())
}
