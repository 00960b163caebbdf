//! Makes Rust of the proto file; protoc comes from Debian's protobuf-compiler.

fn main() {
    tonic_prost_build::configure()
        // For JSON in the CLI.
        .type_attribute(".", "#[derive(serde::Serialize)] #[serde(rename_all = \"snake_case\")]")
        .field_attribute("PortEvent.kind", "#[serde(serialize_with = \"crate::kind_name\")]")
        .compile_protos(&["proto/dataplane.proto"], &["proto"])
        .expect("protoc is needed: apt-get install protobuf-compiler");
}
