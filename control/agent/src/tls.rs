//! The listener for remote clients: the northbound API over TLS, where both sides show a certificate.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Context;
use dunlin_control_api::remote;
use dunlin_dataplane_api::socket::{guard::Guard, limits, listen};
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

use crate::api::Service;

/// Options of the listener.
#[derive(clap::Args)]
pub struct Options {
    /// Address for remote clients of the API, which show a certificate [default: none]
    #[arg(long, value_name = "ADDRESS", requires_all = ["tls_cert", "tls_key", "tls_client_ca"])]
    tls: Option<SocketAddr>,
    /// This host's certificate and those up to its CA, PEM
    #[arg(long, value_name = "FILE", requires = "tls")]
    tls_cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", requires = "tls")]
    tls_key: Option<PathBuf>,
    /// The CA that signs certificates of clients, PEM
    #[arg(long, value_name = "FILE", requires = "tls")]
    tls_client_ca: Option<PathBuf>,
    /// Clients that may change things, by a DNS name in their certificate; others may only read
    #[arg(long, value_name = "NAME,...", requires = "tls", value_delimiter = ',')]
    tls_operators: Vec<String>,
}

/// Serves remote clients, if an address is given; for ever otherwise.
///
/// # Errors
///
/// If a file can't be used, or the address is not to be had.
pub async fn serve(options: Options, guard: Guard, service: Service) -> anyhow::Result<()> {
    let Options { tls: Some(address), tls_cert, tls_key, tls_client_ca, tls_operators } = options else {
        return std::future::pending().await;
    };
    let (cert, key, ca) =
        (read(tls_cert, "--tls-cert")?, read(tls_key, "--tls-key")?, read(tls_client_ca, "--tls-client-ca")?);
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(cert, key))
        .client_ca_root(Certificate::from_pem(ca))
        .timeout(limits::HANDSHAKE_TIME);
    let server = limits::server(limits::NORTHBOUND)
        .tls_config(tls)
        .map_err(|e| anyhow::anyhow!("TLS: {}", remote::reasons(&e)))?;
    let listener = tokio::net::TcpListener::bind(address).await.with_context(|| format!("--tls {address}"))?;
    tracing::info!("listening on {address} with TLS");
    let guard = guard.with_operators(tls_operators);
    server.layer(guard).add_service(service).serve_with_incoming(listen::remote(listener)).await?;
    Ok(())
}

fn read(file: Option<PathBuf>, option: &str) -> anyhow::Result<Vec<u8>> {
    let file = file.unwrap_or_default();
    std::fs::read(&file).with_context(|| format!("{option} {}", file.display()))
}
