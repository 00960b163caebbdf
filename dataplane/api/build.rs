//! Makes Rust of the proto file; protoc comes from Debian's protobuf-compiler.

fn main() {
    tonic_prost_build::configure()
        .compile_protos(&["proto/dataplane.proto"], &["proto"])
        .expect("protoc is needed: apt-get install protobuf-compiler");
}
