//! The dataplane's own API: gRPC on a Unix socket. `proto/dataplane.proto` is the contract; this
//! crate adds the generated types, configurations in parts ([`parts`]),
//! [`connect`] for clients and [`socket::bind`] and [`check_version`] for servers. Control's northbound API uses the same transport, so it lives here once.
//!
//! Starts no threads. **Read next** the proto file.

pub mod parts;
pub mod socket;

use std::time::{SystemTime, UNIX_EPOCH};

/// The generated messages, client and server.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("dunlin.dataplane.v1");
}

pub use socket::{ConnectError, MAX_MESSAGE, VersionHeader, check_version, connect_channel};

/// For JSON: what happened to a port, by its name.
fn kind_name<S: serde::Serializer>(kind: &i32, s: S) -> Result<S::Ok, S::Error> {
    let name = v1::port_event::Kind::try_from(*kind).map_or("unknown", |k| k.as_str_name());
    s.serialize_str(&name.to_ascii_lowercase())
}

impl v1::Event {
    /// What happens now.
    pub fn now(what: v1::event::What) -> Self {
        v1::Event { unix_ms: unix_ms(), what: Some(what) }
    }
}

/// Milliseconds since 1970.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// A client of the dataplane's API.
pub type Client = v1::dataplane_client::DataplaneClient<
    tonic::service::interceptor::InterceptedService<tonic::transport::Channel, VersionHeader>,
>;

/// Where the dataplane listens by default.
pub const DEFAULT_SOCKET: &str = "/run/dunlin/dataplane.sock";

/// Connects to the dataplane that listens on `socket`.
pub async fn connect(socket: &std::path::Path) -> Result<Client, ConnectError> {
    let channel = connect_channel(socket).await?;
    Ok(v1::dataplane_client::DataplaneClient::with_interceptor(channel, VersionHeader)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE))
}
