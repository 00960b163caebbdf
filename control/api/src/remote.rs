//! The northbound API of another host: TLS, where both sides show a certificate.

use std::{fs, path::PathBuf, time::Duration};

use dunlin_dataplane_api::{ConnectError, MAX_MESSAGE, VersionHeader};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::{Client, v1};

const CONNECT_TIME: Duration = Duration::from_secs(10);
const KEEPALIVE: Duration = Duration::from_secs(20);

/// The client's files, all PEM.
#[derive(Clone, Debug)]
pub struct Files {
    /// Its certificate and those up to its CA.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The CA that signed the server's certificate.
    pub ca: PathBuf,
}

/// Connects to the control process at `url`, `https://HOST:PORT`.
///
/// # Errors
///
/// If a file can't be used, no process listens, or a certificate is refused. The server may refuse the client's with
/// the first call only.
pub async fn connect(url: &str, files: &Files) -> Result<Client, ConnectError> {
    let fail = |why: String| ConnectError { socket: url.into(), why };
    let read = |file: &PathBuf| fs::read(file).map_err(|e| fail(format!("{}: {e}", file.display())));
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read(&files.ca)?))
        .identity(Identity::from_pem(read(&files.cert)?, read(&files.key)?));
    let channel = Endpoint::from_shared(url.to_owned())
        .and_then(|e| e.tls_config(tls))
        .map_err(|e| fail(reasons(&e)))?
        .connect_timeout(CONNECT_TIME)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_while_idle(true)
        .connect()
        .await
        .map_err(|e| fail(reasons(&e)))?;
    Ok(v1::control_client::ControlClient::with_interceptor(channel, VersionHeader)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE))
}

/// An error with those that led to it, each once.
pub fn reasons(e: &dyn std::error::Error) -> String {
    let mut all: Vec<String> = std::iter::successors(Some(e), |e| e.source()).map(ToString::to_string).collect();
    all.dedup();
    all.join(": ")
}
