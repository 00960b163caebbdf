//! Makes Rust of the proto file. What an operator writes (Config and below) is also what TOML
//! and the store hold: the same types, with unknown fields refused.

const WRITTEN: &[&str] = &[
    "Config",
    "Dataplane",
    "Bridge",
    "Port",
    "StaticMac",
    "Network",
    "Vtep",
    "Route",
    "Neighbor",
    "Binding",
    "Acl",
    "AddressSet",
    "Group",
    "Sessions",
];

fn main() {
    let mut builder = tonic_prost_build::configure()
        .extern_path(".dunlin.dataplane.v1", "::dunlin_dataplane_api::v1")
        .message_attribute(".", "#[derive(serde::Serialize)]");
    for name in WRITTEN {
        builder = builder
            .message_attribute(
                format!(".dunlin.v1.{name}"),
                "#[derive(serde::Deserialize)] #[serde(deny_unknown_fields, default)]",
            )
            .field_attribute(format!(".dunlin.v1.{name}"), "#[serde(skip_serializing_if = \"crate::is_default\")]");
    }
    builder
        .compile_protos(&["proto/control.proto"], &["proto", "../../dataplane/api/proto"])
        .expect("protoc is needed: apt-get install protobuf-compiler");
}
