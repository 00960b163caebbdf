//! Whether an object is as its definition says: every error is named, not only the first.

use serde_json::{Map, Value};

use crate::{
    Bad, Kind, MAX_NAME, did_you_mean,
    meta::{self, Field, Type},
    shown,
    v1::Object,
};

/// Octets of a description, and of the value of a label.
const MAX_TEXT: usize = 255;
/// What messages call an object of a kind that is not known.
pub const UNKNOWN: &str = "object";
/// Labels of one object.
const MAX_LABELS: usize = 32;

/// What messages call an object.
pub fn label(kind: Kind, name: &str) -> String {
    if kind.is_single() { kind.word().to_owned() } else { format!("{kind} '{}'", shown(name)) }
}

/// What is wrong with an object by itself.
pub fn object(o: &Object) -> Vec<Bad> {
    let Some(kind) = o.kind() else { return vec![Bad::new(UNKNOWN, "", "is of a kind that is not known here")] };
    let (definition, fields, mut bad) = (meta::of(kind), o.fields(), Vec::new());
    let object = label(kind, &o.name());
    for f in &definition.fields {
        if f.name == "name" {
            check_name(&object, fields.get("name").and_then(Value::as_str).unwrap_or_default(), &mut bad);
        }
        if let Some(value) = fields.get(&f.name) {
            let error = |why: String| Bad::new(&object, &f.name, why);
            bad.extend(foreign(f, &fields).into_iter().chain(missing(f, &fields)).map(error));
            bad.extend(value_errors(f, value).into_iter().map(error));
        }
    }
    bad
}

fn check_name(object: &str, name: &str, bad: &mut Vec<Bad>) {
    let ok = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let begins_well = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    if name.len() > MAX_NAME || !name.bytes().all(ok) || !begins_well {
        let why = format!("1 to {MAX_NAME} letters, digits, '.', '_' or '-', the first a letter, a digit or '_'");
        bad.push(Bad::new(object, "name", why));
    }
}

/// A field that ports of this kind don't have.
fn foreign(f: &Field, fields: &Map<String, Value>) -> Option<String> {
    let kind = fields.get("kind").and_then(Value::as_str).unwrap_or_default();
    (!f.only_for.is_empty() && !f.only_for.iter().any(|k| k == kind))
        .then(|| format!("is for kind {}, this port is '{}'", f.only_for.join(" or "), shown(kind)))
}

/// A field without the one that it goes with.
fn missing(f: &Field, fields: &Map<String, Value>) -> Option<String> {
    let needs = f.needs.as_ref().filter(|n| !fields.contains_key(*n))?;
    Some(format!("needs a {needs}"))
}

fn value_errors(f: &Field, value: &Value) -> Vec<String> {
    let texts: Vec<&str> = match value {
        Value::String(s) => vec![s],
        Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let mut errors: Vec<String> = texts.iter().filter_map(|t| not_one_of(f, t)).collect();
    let numbers = value.as_u64().into_iter().chain(value.as_array().into_iter().flatten().filter_map(Value::as_u64));
    if let Some((least, most)) = f.range {
        errors.extend(
            numbers.filter(|n| !(least..=most).contains(n)).map(|n| format!("{n} is not in {least} to {most}")),
        );
    }
    if f.name == "description" && texts.iter().any(|t| t.len() > MAX_TEXT || t.contains(char::is_control)) {
        errors.push(format!("at most {MAX_TEXT} octets, without control characters"));
    }
    if let (Type::Labels, Value::Object(labels)) = (f.holds, value) {
        let plain =
            |t: &str, most| !t.is_empty() && t.len() <= most && !t.contains(|c: char| c.is_control() || c == '=');
        let fits = |(k, v): (&String, &Value)| plain(k, MAX_NAME) && v.as_str().is_some_and(|v| plain(v, MAX_TEXT));
        if labels.len() > MAX_LABELS || !labels.iter().all(fits) {
            let why = format!(
                "at most {MAX_LABELS}, each a name of {MAX_NAME} octets and a value of {MAX_TEXT}, without '='"
            );
            errors.push(why);
        }
    }
    errors
}

fn not_one_of(f: &Field, text: &str) -> Option<String> {
    if f.one_of.is_empty() || f.one_of.iter().any(|v| v == text) {
        return None;
    }
    let hint = did_you_mean(text, f.one_of.iter().map(String::as_str));
    Some(match &f.one_of[..] {
        [a, b] => format!("'{}' is neither '{a}' nor '{b}'{hint}", shown(text)),
        all => format!("'{}' is none of {}{hint}", shown(text), all.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{Bridge, Port};

    fn port(p: Port) -> Vec<String> {
        object(&Port { name: "web1".into(), ..p }.into()).iter().map(Bad::to_string).collect()
    }

    #[test]
    fn all_errors_of_an_object_are_named() {
        let bad =
            Port { kind: "tap".into(), mtu: Some(0), queues: Some(65), steering: "vmdk".into(), ..Default::default() };
        assert_eq!(
            port(bad),
            [
                "port 'web1': queues: is for kind nic, this port is 'tap'",
                "port 'web1': queues: 65 is not in 1 to 64",
                "port 'web1': mtu: 0 is not in 68 to 9216",
                "port 'web1': steering: 'vmdk' is neither 'rss' nor 'vmdq'; did you mean 'vmdq'?",
            ]
        );
        assert!(port(Port { kind: "tap".into(), mtu: Some(68), ..Default::default() }).is_empty());
        let limit = Port { kind: "tap".into(), mac_limit_action: "drop".into(), ..Default::default() };
        assert_eq!(port(limit), ["port 'web1': mac_limit_action: needs a mac_limit"]);
    }

    #[test]
    fn names_are_no_options_and_no_paths() {
        for bad in ["", "-x", "..", ".a", "a/b", "a b", "\u{1b}[31m", &"x".repeat(64)] {
            assert!(!object(&Bridge { name: bad.into(), ..Default::default() }.into()).is_empty(), "{bad}");
        }
        for good in ["a", "_", "br0", "eth0.10", "A-1", &"x".repeat(63)] {
            assert!(object(&Bridge { name: good.into(), ..Default::default() }.into()).is_empty(), "{good}");
        }
    }
}
