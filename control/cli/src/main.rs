//! `dunlin`: the command line of the switch. It speaks only the northbound API.
//!
//! * `object.rs` makes the verbs that every kind has out of the model's definition; `list.rs` and `show.rs` print objects.
//! * A noun with verbs of its own has a file: `acl.rs`, `mac.rs`, `port.rs` and so on.
//! * `config.rs` has `apply`, `diff` and `export`, `history.rs` the way back, `explain.rs` the reference.
//! * `output.rs` is how everything is shown, `connection.rs` the connection.
//!
//! Single-threaded. **Read next** `object.rs`.

#![forbid(unsafe_code)]

mod acl;
mod config;
mod connection;
mod explain;
mod generate;
mod history;
mod list;
mod mac;
mod neighbor;
mod object;
mod output;
mod port;
mod session;
mod set;
mod show;
mod status;
mod trace;
mod usage;
mod vtep;
mod wait;
mod watch;
mod worker;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{ArgMatches, Args as _, FromArgMatches, Subcommand};
use dunlin_control_api::model::Kind;

use crate::connection::Connection;

/// Options of all commands.
#[derive(clap::Args)]
struct Global {
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
    /// Give up after so many seconds; 0 for never
    #[arg(long, global = true, value_name = "S", default_value_t = 180)]
    timeout: u64,
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
    /// List the changes of the configuration
    History(history::History),
    /// Go back to the configuration of a revision
    Rollback(history::Rollback),
    /// Keep a change that was applied with --confirm
    Confirm,
    /// Describe kinds and their settings
    Explain(explain::Explain),
    /// Wait until something holds
    WaitUntil(wait::WaitUntil),
    /// Show what would happen to a frame, and why
    Trace(trace::Trace),
    /// Print events of ports, guests, addresses and rules that log
    Watch(watch::Watch),
    /// Print shell completions
    Completions(generate::Completions),
    /// Write man pages into a folder
    Man(generate::Man),
}

/// The exit status of a command that needs the dataplane, while that is down; as LSB has it for "not running".
const UNREACHABLE: u8 = 3;

/// The whole command line: commands, and a noun for each kind.
pub fn command() -> clap::Command {
    let about = "Dunlin, a virtual switch: ports, networks, access lists and workers of this host";
    let command = clap::Command::new("dunlin")
        .about(about)
        .version(env!("CARGO_PKG_VERSION"))
        .propagate_version(true)
        .max_term_width(100)
        .subcommand_required(true)
        .arg_required_else_help(true);
    let command = Command::augment_subcommands(Global::augment_args(command));
    let noun = |kind: &Kind| {
        let own = clap::Command::new(object::noun(*kind)).about(about_noun(*kind)).subcommand_required(true);
        let own = match kind {
            Kind::Acl => acl::Command::augment_subcommands(own),
            Kind::Dataplane => worker::Command::augment_subcommands(own),
            Kind::Mac => mac::Command::augment_subcommands(own),
            Kind::Neighbor => neighbor::Command::augment_subcommands(own),
            Kind::Sessions => session::Command::augment_subcommands(own),
            Kind::Set => set::Command::augment_subcommands(own),
            Kind::Vtep => vtep::Command::augment_subcommands(own),
            Kind::Bridge | Kind::Group | Kind::Network | Kind::Port | Kind::Route => own,
        };
        object::with_verbs(*kind, own).arg_required_else_help(true)
    };
    command.subcommands(Kind::ALL.iter().map(noun))
}

fn about_noun(kind: Kind) -> &'static str {
    match kind {
        Kind::Dataplane => "Workers of the dataplane",
        Kind::Sessions => "Tracked connections",
        Kind::Set => "Address sets, for ACL rules",
        Kind::Acl => "Access lists",
        Kind::Group => "Port groups",
        Kind::Bridge => "Bridges",
        Kind::Vtep => "VTEPs: the ends of tunnels on this host",
        Kind::Route => "Static routes of VTEPs",
        Kind::Neighbor => "ARP and ND entries of VTEPs",
        Kind::Network => "Networks: segments with a name, on this host and in tunnels",
        Kind::Port => "Ports: NICs, kernel interfaces, guests",
        Kind::Mac => "MAC addresses: static and learned",
    }
}

fn main() -> ExitCode {
    let matches = match command().try_get_matches() {
        Ok(matches) => matches,
        Err(e) => return usage::report(&e),
    };
    // `dunlin port list | head` is no error worth a report.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let closed = info.payload().downcast_ref::<String>().is_some_and(|s| s.contains("Broken pipe"));
        if closed {
            std::process::exit(0);
        }
        report(info);
    }));
    match run(&matches) {
        Ok(code) => code,
        Err(e) => {
            let text = format!("{e:#}");
            text.lines().for_each(|l| eprintln!("dunlin: {l}"));
            if e.downcast_ref::<connection::Unreachable>().is_some() { UNREACHABLE.into() } else { ExitCode::FAILURE }
        }
    }
}

fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let global = Global::from_arg_matches(matches)?;
    let (word, m) = matches.subcommand().expect("one is required");
    let kind = Kind::ALL.iter().copied().find(|k| object::noun(*k) == word);
    let command = if kind.is_none() { Some(Command::from_arg_matches(matches)?) } else { None };
    match &command {
        Some(Command::Completions(c)) => return c.run().map(|()| ExitCode::SUCCESS),
        Some(Command::Man(c)) => return c.run().map(|()| ExitCode::SUCCESS),
        Some(Command::Explain(c)) => return c.run().map(|()| ExitCode::SUCCESS),
        _ => {}
    }
    let time = match (global.timeout, &command) {
        (0, _) | (_, Some(Command::Watch(_))) => Duration::MAX,
        (s, _) => Duration::from_secs(s),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let work = async {
            let tls = [&global.cert, &global.key, &global.ca];
            let s = &mut Connection::open(&global.control, tls, global.json).await?;
            match (kind, command) {
                (Some(kind), _) => run_noun(kind, m, s).await.map(|()| ExitCode::SUCCESS),
                (None, Some(command)) => run_command(command, s).await,
                (None, None) => unreachable!("one of them is there"),
            }
        };
        let late = || connection::Unreachable::new(format!("no answer within {} s (--timeout)", global.timeout));
        tokio::time::timeout(time, work).await.unwrap_or_else(|_| Err(late().into()))
    })
}

async fn run_command(command: Command, s: &mut Connection) -> anyhow::Result<ExitCode> {
    match command {
        Command::Status => return status::run(s).await,
        Command::Apply(c) => return c.run(s).await,
        Command::Diff(c) => return c.run(s).await,
        Command::Export => config::export(s).await,
        Command::History(c) => c.run(s).await,
        Command::Rollback(c) => c.run(s).await,
        Command::Confirm => history::confirm(s).await,
        Command::WaitUntil(c) => c.run(s).await,
        Command::Trace(c) => c.run(s).await,
        Command::Watch(w) => w.run(s).await,
        Command::Completions(_) | Command::Man(_) | Command::Explain(_) => unreachable!("done above"),
    }
    .map(|()| ExitCode::SUCCESS)
}

async fn run_noun(kind: Kind, m: &ArgMatches, s: &mut Connection) -> anyhow::Result<()> {
    let (verb, own) = m.subcommand().expect("one is required");
    match kind {
        Kind::Acl if acl::Command::has_subcommand(verb) => acl::Command::from_arg_matches(m)?.run(s).await,
        Kind::Dataplane if worker::Command::has_subcommand(verb) => worker::Command::from_arg_matches(m)?.run(s).await,
        Kind::Mac if mac::Command::has_subcommand(verb) => mac::Command::from_arg_matches(m)?.run(s).await,
        Kind::Neighbor if neighbor::Command::has_subcommand(verb) => {
            neighbor::Command::from_arg_matches(m)?.run(s).await
        }
        Kind::Sessions if session::Command::has_subcommand(verb) => session::Command::from_arg_matches(m)?.run(s).await,
        Kind::Set if set::Command::has_subcommand(verb) => set::Command::from_arg_matches(m)?.run(s).await,
        Kind::Vtep if vtep::Command::has_subcommand(verb) => vtep::Command::from_arg_matches(m)?.run(s).await,
        kind => object::run(kind, verb, own, s).await,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        super::command().debug_assert();
    }
}
