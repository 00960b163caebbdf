//! `dunlin`: the command line of the switch. One file per noun; it speaks only the northbound
//! API. `output.rs` is how everything is shown, `session.rs` the connection.
//!
//! Single-threaded. **Read next** `port.rs`.

#![forbid(unsafe_code)]

mod acl;
mod bridge;
mod config;
mod generate;
mod group;
mod mac;
mod neighbor;
mod network;
mod output;
mod port;
mod route;
mod session;
mod set;
mod status;
mod trace;
mod tracked;
mod vtep;
mod watch;
mod worker;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::session::Session;

/// Dunlin, a virtual switch: ports, bridges, addresses and workers of this host.
#[derive(Parser)]
#[command(name = "dunlin", version, max_term_width = 100, propagate_version = true)]
pub struct Args {
    /// Socket of dunlin-control, or https://HOST:PORT of another host's (with --cert, --key, --ca)
    #[arg(long, global = true, value_name = "SOCKET", env = "DUNLIN_CONTROL",
          default_value = dunlin_control_api::DEFAULT_SOCKET)]
    control: PathBuf,
    /// For https: the certificate of this client, PEM
    #[arg(long, global = true, value_name = "FILE", env = "DUNLIN_CERT")]
    cert: Option<PathBuf>,
    /// For https: its private key, PEM
    #[arg(long, global = true, value_name = "FILE", env = "DUNLIN_KEY")]
    key: Option<PathBuf>,
    /// For https: the CA that signed the certificate of dunlin-control, PEM
    #[arg(long, global = true, value_name = "FILE", env = "DUNLIN_CA")]
    ca: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one of it")]
enum Command {
    /// Show switch status
    ///
    /// Exit status: 0 if all that is configured is in force, 1 if something is not, 3 if the dataplane is down.
    Status,
    /// Make the configuration what a file says
    Apply(config::Apply),
    /// Say what 'apply' would change
    Diff(config::Diff),
    /// Print the configuration as a file for 'apply'
    Export,
    /// Ports: NICs, kernel interfaces, guests
    #[command(subcommand)]
    Port(port::Command),
    /// Bridges
    #[command(subcommand)]
    Bridge(bridge::Command),
    /// Networks: segments with a name, that can go on at other hosts
    #[command(subcommand)]
    Network(network::Command),
    /// VTEPs: this host's ends of tunnels
    #[command(subcommand)]
    Vtep(vtep::Command),
    /// Routes of VTEPs
    #[command(subcommand)]
    Route(route::Command),
    /// Neighbours of VTEPs
    #[command(subcommand)]
    Neighbor(neighbor::Command),
    /// Access lists
    #[command(subcommand)]
    Acl(acl::Command),
    /// Addresses with a name, for rules
    #[command(subcommand)]
    Set(set::Command),
    /// Groups of ports
    #[command(subcommand)]
    Group(group::Command),
    /// Connections that were let pass
    #[command(subcommand)]
    Session(tracked::Command),
    /// Say what would happen to a frame, and why
    Trace(trace::Trace),
    /// Addresses and where they are
    #[command(subcommand)]
    Mac(mac::Command),
    /// Workers
    #[command(subcommand)]
    Worker(worker::Command),
    /// Print port, guest and mac events as they happen
    Watch,
    /// Print shell completions
    Completions(generate::Completions),
    /// Write man pages into a folder
    Man(generate::Man),
}

/// The exit status of a command that needs the dataplane, while that is down; as LSB has it for "not running".
const UNREACHABLE: u8 = 3;

fn main() -> ExitCode {
    let args = Args::parse();
    // `dunlin port list | head` is no error worth a report.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let closed = info.payload().downcast_ref::<String>().is_some_and(|s| s.contains("Broken pipe"));
        if closed {
            std::process::exit(0);
        }
        report(info);
    }));
    match run(args) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("dunlin: {e:#}");
            if e.downcast_ref::<session::Unreachable>().is_some() { UNREACHABLE.into() } else { ExitCode::FAILURE }
        }
    }
}

fn run(args: Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Completions(c) => return c.run().map(|()| ExitCode::SUCCESS),
        Command::Man(m) => return m.run().map(|()| ExitCode::SUCCESS),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let s = &mut Session::open(&args.control, [&args.cert, &args.key, &args.ca], args.json).await?;
        match args.command {
            Command::Status => return status::run(s).await,
            Command::Apply(c) => c.run(s).await,
            Command::Diff(c) => c.run(s).await,
            Command::Export => config::export(s).await,
            Command::Port(c) => c.run(s).await,
            Command::Bridge(c) => c.run(s).await,
            Command::Network(c) => c.run(s).await,
            Command::Vtep(c) => c.run(s).await,
            Command::Route(c) => c.run(s).await,
            Command::Neighbor(c) => c.run(s).await,
            Command::Acl(c) => c.run(s).await,
            Command::Set(c) => c.run(s).await,
            Command::Group(c) => c.run(s).await,
            Command::Session(c) => c.run(s).await,
            Command::Trace(c) => c.run(s).await,
            Command::Mac(c) => c.run(s).await,
            Command::Worker(c) => c.run(s).await,
            Command::Watch => watch::run(s).await,
            Command::Completions(_) | Command::Man(_) => unreachable!("done above"),
        }
        .map(|()| ExitCode::SUCCESS)
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Args::command().debug_assert();
    }
}
