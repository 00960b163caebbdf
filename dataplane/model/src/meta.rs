//! The definition of the kinds for programs: fields with their types, help, defaults and limits, read from the comments of
//! the proto file.

use std::sync::LazyLock;

use prost::Message;
use prost_types::{
    FileDescriptorSet, SourceCodeInfo,
    field_descriptor_proto::{Label, Type as ProtoType},
};

use crate::Kind;

/// What a field holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Type {
    /// A text.
    Text,
    /// A whole number.
    Number,
    /// true or false.
    Flag,
    /// Some texts.
    Texts,
    /// Some numbers.
    Numbers,
    /// Address and MAC pairs: [`crate::v1::Binding`].
    Bindings,
    /// Labels: a text for each name.
    Labels,
}

/// One field of a kind.
#[derive(Clone, Debug)]
pub struct Field {
    /// As in files.
    pub name: String,
    /// What it holds.
    pub holds: Type,
    /// In sentences.
    pub help: String,
    /// The object is known by it.
    pub is_key: bool,
    /// What holds if it is absent.
    pub default: Option<String>,
    /// The least and the largest value.
    pub range: Option<(u64, u64)>,
    /// The values there are; any, if none is named.
    pub one_of: Vec<String>,
    /// The kind of the objects it names.
    pub names: Option<Kind>,
    /// Words of it that begin with '@' name objects of this kind.
    pub mentions: Option<Kind>,
    /// The object goes with the one that the field names.
    pub is_owned: bool,
    /// Absent, it names the only object of its kind.
    pub absent_is_only: bool,
    /// It is only there with that field.
    pub needs: Option<String>,
    /// The kinds of ports that have it; all, if none is named.
    pub only_for: Vec<String>,
    /// Of a port: it stays with the host when the VM moves; all else is policy.
    pub is_attachment: bool,
    /// Fields of one unit are a port's own, or all of them one group's.
    pub unit: Option<String>,
    /// What the groups of a port have is added to its own.
    pub adds: bool,
    /// Its option names a file with a value a line.
    pub is_file: bool,
    /// What the value is, in usage lines.
    pub value: String,
    /// The name of its option.
    pub option: String,
    /// Absent and 0 are two things.
    pub is_optional: bool,
}

/// One kind.
#[derive(Clone, Debug)]
pub struct Definition {
    /// Which.
    pub kind: Kind,
    /// In a sentence.
    pub help: String,
    /// Its fields in their order.
    pub fields: Vec<Field>,
}

impl Definition {
    /// A field by its name in files, or by that of its option.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|f| f.name == name || f.option == name)
    }

    /// Names of fields that can be set.
    pub fn settings(&self) -> impl Iterator<Item = &Field> {
        self.fields.iter().filter(|f| !f.is_key)
    }
}

static DEFINITIONS: LazyLock<Vec<Definition>> = LazyLock::new(read);

/// The definition of a kind.
pub fn of(kind: Kind) -> &'static Definition {
    DEFINITIONS.iter().find(|d| d.kind == kind).expect("there is one of each kind: tested")
}

/// Those of all kinds.
pub fn all() -> &'static [Definition] {
    &DEFINITIONS
}

fn read() -> Vec<Definition> {
    let set = FileDescriptorSet::decode(&include_bytes!(concat!(env!("OUT_DIR"), "/model.bin"))[..]);
    let set = set.expect("protoc made it");
    let file = set.file.iter().find(|f| f.package() == "dunlin.model.v1").expect("the model");
    let info = file.source_code_info.as_ref().expect("with comments");
    let message = |name: &str| file.message_type.iter().position(|m| m.name() == name);
    let fields = |at: usize| {
        let fields = file.message_type[at].field.iter().enumerate();
        fields.map(move |(i, f)| (f, comment(info, &[4, at as i32, 2, i as i32])))
    };
    let define = |kind: &Kind| {
        let at = message(kind.message())?;
        let about = comment(info, &[4, at as i32]);
        let (help, marks) = words(&about);
        let other = marks.iter().find(|(w, _)| *w == "fields-of").and_then(|(_, name)| message(name));
        // A field that another message defines has no default here: absent, it says nothing.
        let elsewhere = |f: &prost_types::FieldDescriptorProto| {
            let (_, about) = fields(other?).find(|(o, _)| o.name() == f.name())?;
            Some(Field { default: None, ..field(f, &about) })
        };
        let one = |(f, about): (&prost_types::FieldDescriptorProto, String)| {
            Some(&about).filter(|a| a.is_empty()).and_then(|_| elsewhere(f)).unwrap_or_else(|| field(f, &about))
        };
        Some(Definition { kind: *kind, help, fields: fields(at).map(one).collect() })
    };
    Kind::ALL.iter().filter_map(define).collect()
}

fn comment(info: &SourceCodeInfo, path: &[i32]) -> String {
    let found = info.location.iter().find(|l| l.path == path);
    found.map(|l| l.leading_comments().to_owned()).unwrap_or_default()
}

/// The sentences of a comment, and its lines for programs as word and rest.
fn words(comment: &str) -> (String, Vec<(&str, &str)>) {
    let lines = comment.lines().map(str::trim).filter(|l| !l.is_empty());
    let (marks, text): (Vec<&str>, Vec<&str>) = lines.partition(|l| l.starts_with('@'));
    let marks = marks.into_iter().map(|l| l[1..].split_once(' ').unwrap_or((&l[1..], "")));
    (text.join(" "), marks.collect())
}

fn field(f: &prost_types::FieldDescriptorProto, comment: &str) -> Field {
    let (help, marks) = words(comment);
    let mark = |word: &str| marks.iter().find(|(w, _)| *w == word).map(|(_, rest)| *rest);
    let list = |word: &str| mark(word).map_or_else(Vec::new, |r| r.split(' ').map(str::to_owned).collect());
    let is_list = f.label() == Label::Repeated;
    let holds = match (f.r#type(), is_list) {
        (ProtoType::Message, true) if f.type_name().ends_with(".Binding") => Type::Bindings,
        (ProtoType::Message, _) => Type::Labels,
        (ProtoType::Bool, _) => Type::Flag,
        (ProtoType::String, true) => Type::Texts,
        (ProtoType::String, false) => Type::Text,
        (_, true) => Type::Numbers,
        (_, false) => Type::Number,
    };
    let number = |t: &str| t.parse().expect("a number in the proto file: tested");
    Field {
        name: f.name().to_owned(),
        holds,
        help,
        is_key: mark("key").is_some(),
        default: mark("default").map(str::to_owned),
        range: mark("range").and_then(|r| r.split_once(' ')).map(|(a, b)| (number(a), number(b))),
        one_of: list("one-of"),
        names: mark("names").and_then(Kind::from_word),
        mentions: mark("mentions").and_then(Kind::from_word),
        is_owned: mark("owned").is_some(),
        absent_is_only: mark("only").is_some(),
        needs: mark("needs").map(str::to_owned),
        is_attachment: mark("attachment").is_some(),
        unit: mark("unit").map(str::to_owned),
        adds: mark("adds").is_some(),
        is_file: mark("file").is_some(),
        only_for: list("for"),
        value: mark("value").map_or_else(|| f.name().to_uppercase(), str::to_owned),
        option: mark("option").map_or_else(|| f.name().replace('_', "-"), str::to_owned),
        is_optional: f.proto3_optional(),
    }
}

/// A JSON schema of the file, for editors.
pub fn json_schema() -> serde_json::Value {
    use serde_json::json;
    let field = |f: &Field| {
        let mut s = match f.holds {
            Type::Text => json!({ "type": "string" }),
            Type::Number => json!({ "type": "integer", "minimum": 0 }),
            Type::Flag => json!({ "type": "boolean" }),
            Type::Texts => json!({ "type": "array", "items": { "type": "string" } }),
            Type::Numbers => json!({ "type": "array", "items": { "type": "integer", "minimum": 0 } }),
            Type::Labels => json!({ "type": "object", "additionalProperties": { "type": "string" } }),
            Type::Bindings => {
                let text = json!({ "type": "string" });
                let of_each = json!({ "address": text, "mac": text, "router": { "type": "boolean" } });
                json!({ "type": "array", "items": { "type": "object", "properties": of_each } })
            }
        };
        let target = if f.holds == Type::Texts { &mut s["items"] } else { &mut s };
        if !f.one_of.is_empty() {
            target["enum"] = json!(f.one_of);
        }
        if let Some((least, most)) = f.range {
            (target["minimum"], target["maximum"]) = (json!(least), json!(most));
        }
        s["description"] = json!(f.help);
        if let Some(d) = &f.default {
            let number = d.parse::<u64>().ok().filter(|_| f.holds == Type::Number);
            s["default"] = match f.holds {
                Type::Flag => json!(d == "true"),
                _ => number.map_or_else(|| json!(d), |n| json!(n)),
            };
        }
        (f.name.clone(), s)
    };
    let kind = |d: &Definition| {
        let fields: serde_json::Map<String, serde_json::Value> = d.fields.iter().map(field).collect();
        let object =
            json!({ "type": "object", "properties": fields, "additionalProperties": false, "description": d.help });
        let all = if d.kind.is_single() { object } else { json!({ "type": "array", "items": object }) };
        (d.kind.word().to_owned(), all)
    };
    let kinds: serde_json::Map<String, serde_json::Value> = all().iter().map(kind).collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Dunlin configuration", "type": "object", "properties": kinds, "additionalProperties": false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_and_field_is_defined() {
        for kind in Kind::ALL {
            let d = of(*kind);
            assert!(!d.help.is_empty() && !d.fields.is_empty(), "{kind:?}");
            assert_eq!(d.fields.iter().any(|f| f.is_key), !kind.is_single(), "{kind:?}");
            for f in &d.fields {
                assert!(
                    f.help.ends_with('.') || f.help.ends_with(".sock") || f.help.contains("Default:"),
                    "{kind:?} {}",
                    f.name
                );
                let default_fits = match (&f.default, f.range) {
                    (Some(d), _) if !f.one_of.is_empty() => f.one_of.contains(d),
                    (Some(d), Some((a, b))) => d.parse().is_ok_and(|n: u64| (a..=b).contains(&n)),
                    _ => true,
                };
                assert!(default_fits, "{kind:?} {}", f.name);
            }
        }
        let mtu = of(Kind::Port).field("mtu").unwrap();
        assert_eq!((mtu.default.as_deref(), mtu.range, mtu.is_optional), (Some("1500"), Some((68, 9216)), true));
        assert_eq!(of(Kind::Port).field("ingress_acls").unwrap().names, Some(Kind::Acl));
        // A group can have every policy setting of ports.
        let policy = |f: &&Field| !f.is_key && !f.is_attachment && f.name != "groups";
        for f in of(Kind::Port).fields.iter().filter(policy) {
            let of_group = of(Kind::Group).field(&f.name).unwrap_or_else(|| panic!("groups have no {}", f.name));
            assert_eq!((of_group.holds, of_group.range, &of_group.help), (f.holds, f.range, &f.help));
        }
    }

    #[test]
    fn the_schema_knows_values_and_limits() {
        let schema = json_schema();
        let port = &schema["properties"]["port"]["items"]["properties"];
        assert_eq!(port["mtu"]["maximum"], 9216);
        assert_eq!(port["kind"]["enum"][0], "nic");
        assert_eq!(port["security"]["items"]["enum"][0], "all");
    }
}
