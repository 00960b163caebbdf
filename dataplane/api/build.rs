//! Makes Rust of the proto file; protoc comes from Debian's protobuf-compiler.

fn main() {
    tonic_prost_build::configure()
        .extern_path(".dunlin.model.v1", "::dunlin_model::v1")
        // For JSON in the CLI.
        .type_attribute(".", "#[derive(serde::Serialize)] #[serde(rename_all = \"snake_case\")]")
        .field_attribute("PortEvent.kind", "#[serde(serialize_with = \"crate::kind_name\")]")
        .field_attribute("Transaction.set", "#[serde(skip)]")
        .field_attribute("Transaction.delete", "#[serde(skip)]")
        .compile_protos(&["proto/dataplane.proto"], &["proto", "../model/proto"])
        .expect("protoc is needed: apt-get install protobuf-compiler");
}
