//! `dunlin-control`: holds what the operator wants and keeps the dataplane true to it.
//!
//! * `transaction.rs` turns what is stored into what the dataplane is sent.
//! * `store.rs` keeps it, durably; `history.rs` what was changed, and the way back.
//! * `link.rs` is the way to the dataplane: deadlines, and what became of a change.
//! * `desired.rs` puts these together: one change at a time, installed and stored or neither.
//! * `reconcile.rs` follows the dataplane, and brings it up to date.
//! * `api.rs` and `metrics.rs` are how others see it, `tls.rs` how remote clients do, `roles.rs` who may call what.
//!
//! **Threads.** One tokio runtime; the store is written on a thread that may block. **Read next**
//! `desired.rs`.

#![forbid(unsafe_code)]

mod api;
mod desired;
mod history;
mod leases;
mod link;
mod metrics;
mod reconcile;
mod roles;
mod store;
mod tls;
mod transaction;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, str::FromStr, sync::Arc};

use clap::Parser;
use dunlin_dataplane_api::socket::{guard::Guard, limits, peer::Access};

use crate::{
    desired::{Desired, Refused},
    link::Link,
    store::{Store, StoreError},
};

/// Dunlin's control process: holds the configuration and keeps the dataplane true to it.
#[derive(Parser)]
#[command(name = "dunlin-control", version, max_term_width = 100)]
struct Args {
    /// Socket of the northbound API
    #[arg(long, value_name = "PATH", default_value = dunlin_control_api::DEFAULT_SOCKET)]
    socket: PathBuf,
    /// Group of operators, who may use the whole API
    #[arg(long)]
    group: Option<String>,
    /// Group that may only read (the socket's mode is then 0666: who may use it is seen by credentials)
    #[arg(long, value_name = "GROUP")]
    read_group: Option<String>,
    #[command(flatten)]
    tls: tls::Options,
    /// Socket of the dataplane
    #[arg(long, value_name = "PATH", default_value = dunlin_dataplane_api::DEFAULT_SOCKET)]
    dataplane: PathBuf,
    /// File that holds the configuration
    #[arg(long, value_name = "PATH", default_value = "/var/lib/dunlin/state.redb")]
    store: PathBuf,
    /// Address of the metrics page, or 'off'
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9477")]
    metrics: Metrics,
}

/// Where metrics are served, if they are.
#[derive(Clone, Copy)]
struct Metrics(Option<SocketAddr>);

impl FromStr for Metrics {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "off" => Ok(Metrics(None)),
            s => s.parse().map(|a| Metrics(Some(a))).map_err(|_| "no address as 127.0.0.1:9477, and not 'off'".into()),
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("dunlin-control: {e:#}");
            // What only a person can mend (EX_CONFIG of sysexits.h) is not tried again and again.
            let permanent = e.downcast_ref::<StoreError>().is_some_and(|e| e.permanent)
                || matches!(e.downcast_ref::<Refused>(), Some(Refused::Bad(_)));
            ExitCode::from(if permanent { 78 } else { 1 })
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    let store = Store::open(&args.store)?;
    let desired = Arc::new(Desired::load(store, Link::new(args.dataplane))?);
    let access = Access::new(args.group.as_deref(), args.read_group.as_deref())?;
    let guard = Guard::new(roles::needs, limits::NORTHBOUND);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        tokio::spawn(reconcile::run(desired.clone()));
        let unconfirmed = desired.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(unconfirmed.take_back_unconfirmed().await).await;
            }
        });
        if let Metrics(Some(address)) = args.metrics {
            tokio::spawn(metrics::serve(address, desired.clone()));
        }
        tokio::select! {
            served = api::serve(&args.socket, access, guard.clone(), desired.clone()) => served,
            served = tls::serve(args.tls, guard, api::service(desired.clone())) => served,
            () = dunlin_dataplane_api::socket::signalled() => Ok(()),
        }
    })?;
    let _ = std::fs::remove_file(&args.socket);
    Ok(())
}
