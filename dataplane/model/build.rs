//! Makes Rust of the kinds, and keeps their definition with its comments: help, defaults and limits come from there.

fn main() {
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    let mut config = prost_build::Config::new();
    config.file_descriptor_set_path(out.join("model.bin")).btree_map(["labels"]);
    // Every message that a file has; `Object` and `Key` are of the APIs alone.
    let proto = std::fs::read_to_string("proto/model.proto").expect("it is there");
    let messages = proto.lines().filter_map(|l| l.strip_prefix("message ")?.strip_suffix(" {"));
    for name in messages.filter(|m| !["Object", "Key"].contains(m)) {
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

/// Default numbers as constants: PORT_MTU is that of `mtu` of message Port.
fn defaults(proto: &str) -> String {
    let (mut message, mut default, mut all) = (String::new(), None, String::new());
    for line in proto.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("message ") {
            message = name.trim_end_matches(" {").to_uppercase();
        } else if let Some(value) = line.strip_prefix("// @default ") {
            default = value.parse::<u32>().ok();
        } else if let Some(value) = default.filter(|_| !line.starts_with("//")) {
            let field = line.split_whitespace().nth_back(2).unwrap_or_default().to_uppercase();
            all += &format!("/// Of the field.\npub const {message}_{field}: u32 = {value};\n");
            default = None;
        }
    }
    all
}
