//! Makes Rust of the proto file. What is configured is the model's.

/// Messages that the command line prints as JSON.
const PRINTED: &[&str] = &["Status", "Plan", "Revision", "Confirmed"];

fn main() {
    let mut builder = tonic_prost_build::configure()
        .extern_path(".dunlin.dataplane.v1", "::dunlin_dataplane_api::v1")
        .extern_path(".dunlin.model.v1", "::dunlin_model::v1");
    for name in PRINTED {
        builder = builder.message_attribute(format!(".dunlin.v1.{name}"), "#[derive(serde::Serialize)]");
    }
    let includes = ["proto", "../../dataplane/api/proto", "../../dataplane/model/proto"];
    builder
        .compile_protos(&["proto/control.proto"], &includes)
        .expect("protoc is needed: apt-get install protobuf-compiler");
}
