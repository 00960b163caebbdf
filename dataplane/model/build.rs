//! Makes Rust of the kinds, and keeps their definition with its comments: help, defaults and limits come from there.

fn main() {
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    let mut config = prost_build::Config::new();
    config.file_descriptor_set_path(out.join("model.bin")).btree_map(["labels"]);
    config
        .message_attribute(".dunlin.model.v1.Item", "#[derive(serde::Serialize, serde::Deserialize)] #[serde(default)]")
        // As histories of before have it.
        .field_attribute(".dunlin.model.v1.Item.object", "#[serde(alias = \"kind\")]");
    // Every message that a file has; `Object` and `Key` are of the APIs alone.
    let proto = std::fs::read_to_string("proto/model.proto").expect("it is there");
    let messages = proto.lines().filter_map(|l| l.strip_prefix("message ")?.strip_suffix(" {"));
    for name in messages.filter(|m| !["Object", "Key", "Item"].contains(m)) {
        let path = format!(".dunlin.model.v1.{name}");
        config
            .message_attribute(
                &path,
                "#[derive(serde::Serialize, serde::Deserialize)] #[serde(deny_unknown_fields, default)]",
            )
            .field_attribute(&path, "#[serde(skip_serializing_if = \"crate::is_default\")]");
    }
    config
        .compile_protos(&["proto/model.proto"], &["proto"])
        .expect("protoc is needed: apt-get install protobuf-compiler");
    std::fs::write(out.join("defaults.rs"), defaults(&proto)).expect("cargo made the folder");
}

/// Default numbers and ranges as constants: PORT_MTU and PORT_MTU_RANGE are those of `mtu` of message Port.
fn defaults(proto: &str) -> String {
    let (mut message, mut marks, mut all) = (String::new(), Vec::new(), String::new());
    for line in proto.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("message ") {
            message = name.trim_end_matches(" {").to_uppercase();
        } else if line.starts_with("//") {
            marks.push(line.trim_start_matches("// "));
        } else {
            let field = line.split_whitespace().nth_back(2).unwrap_or_default().to_uppercase();
            let mark = |word: &str| marks.iter().find_map(|m| m.strip_prefix(word));
            if let Some(value) = mark("@default ").and_then(|v| v.parse::<u32>().ok()) {
                all += &format!("/// Of the field.\npub const {message}_{field}: u32 = {value};\n");
            }
            if let Some((least, most)) = mark("@range ").and_then(|r| r.split_once(' ')) {
                let range = format!("std::ops::RangeInclusive<u64> = {least}..={most}");
                all += &format!("/// Of the field.\npub const {message}_{field}_RANGE: {range};\n");
            }
            marks.clear();
        }
    }
    all
}
