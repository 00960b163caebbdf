//! The northbound API: what operators, scripts, the CLI and the exporter say to dunlin-control.
//!
//! `proto/control.proto` is the contract. What an operator writes is one set of types
//! ([`v1::Config`] and below) for gRPC, TOML, JSON and the store. The dataplane's reports pass
//! through in its own words, so this crate takes them, and the transport, from
//! `dunlin-dataplane-api`.
//!
//! Starts no threads. **Read next** the proto file.

pub mod remote;

use std::path::Path;

pub use dunlin_dataplane_api::ConnectError;
use dunlin_dataplane_api::{MAX_MESSAGE, VersionHeader, connect_channel};

/// Configurations in parts.
pub use dunlin_dataplane_api::parts;
/// The dataplane's messages that the northbound API passes through.
pub use dunlin_dataplane_api::v1 as dataplane;

/// The generated messages, client and server.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("dunlin.v1");
}

/// Where control listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/dunlin/control.sock";

/// A client of the northbound API.
pub type Client = v1::control_client::ControlClient<
    tonic::service::interceptor::InterceptedService<tonic::transport::Channel, VersionHeader>,
>;

/// Connects to the control process that listens on `socket`.
pub async fn connect(socket: &Path) -> Result<Client, ConnectError> {
    let channel = connect_channel(socket).await?;
    Ok(v1::control_client::ControlClient::with_interceptor(channel, VersionHeader)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE))
}

dunlin_dataplane_api::parts_of!(v1::ApplyRequest, set: bridge, port, mac, vtep, network, route, neighbor, acl, set, group);
dunlin_dataplane_api::parts_of!(v1::Configured, config: bridge, port, mac, vtep, network, route, neighbor, acl, set, group);

/// What is left out when a configuration is written.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::v1::Config;

    #[test]
    fn toml_round_trip_and_unknown_fields() {
        let text = "[[bridge]]\nname = \"br0\"\n\n[[port]]\nname = \"web1\"\nkind = \"vhost-user\"\nvlan = 10\n";
        let config: Config = toml::from_str(text).unwrap();
        assert_eq!(config.port[0].vlan, Some(10));
        assert_eq!(toml::to_string(&config).unwrap(), text);
        let error = toml::from_str::<Config>("[[port]]\nname = \"a\"\nvlna = 3\n").unwrap_err().to_string();
        assert!(error.contains("unknown field `vlna`") && error.contains("line 3"), "{error}");
    }
}
