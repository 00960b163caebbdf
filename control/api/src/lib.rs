//! The northbound API: what operators, scripts, the CLI and the exporter say to dunlin-control.
//!
//! `proto/control.proto` is the contract. What is configured are objects of the [`model`]. The dataplane's reports pass
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
/// What is configured.
pub use dunlin_model as model;

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

dunlin_dataplane_api::parts_of!(v1::Change, self: set, delete, rename);
dunlin_dataplane_api::parts_of!(v1::Configured, self: objects);
dunlin_dataplane_api::parts_of!(v1::Changed, self: set, delete);
