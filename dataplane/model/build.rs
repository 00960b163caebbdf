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
}
