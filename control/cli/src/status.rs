//! `dunlin status`: the state of the switch on one page.

use std::process::ExitCode;

use dunlin_control_api::{dataplane as dp, v1::Status};

use crate::{UNREACHABLE, connection::Connection, output};

pub async fn run(s: &mut Connection) -> anyhow::Result<ExitCode> {
    let status = s.status().await?;
    if s.json {
        output::json(&status)?;
    } else {
        print(&status);
    }
    let problems = status.dataplane.iter().flat_map(|d| &d.info).any(|i| !i.problems.is_empty());
    Ok(match (status.dataplane_up, problems || !status.pending.is_empty() || !status.warnings.is_empty()) {
        (false, _) => UNREACHABLE.into(),
        (true, true) => ExitCode::FAILURE,
        (true, false) => ExitCode::SUCCESS,
    })
}

fn print(status: &Status) {
    let mut facts = vec![
        ("control", format!("{}, up {}", status.version, output::duration(status.uptime_s))),
        ("configuration", format!("revision {}", status.revision)),
    ];
    let Some(state) = &status.dataplane else {
        facts.push(("dataplane", format!("DOWN: {}", status.dataplane_error)));
        output::facts(&facts);
        return print_notes(status);
    };
    let info = state.info.clone().unwrap_or_default();
    let pages = if info.hugepages { "hugepages" } else { "ordinary pages" };
    facts.push(("dataplane", format!("{}, up {}", info.version, output::duration(info.uptime_s))));
    facts.push(("restarts", format!("{} seen by control", status.dataplane_restarts)));
    facts.push(("memory", format!("{} MiB of {pages}", info.memory_mb)));
    let up = state.ports.iter().filter(|p| p.up).count();
    facts.push(("ports", format!("{} ({up} up)", state.ports.len())));
    let m = state.macs.unwrap_or_default();
    facts.push(("addresses", format!("{} of {}", m.entries, m.capacity)));
    for w in &state.workers {
        facts.push((
            "worker",
            format!("core {}: {} busy, {} queues", w.core, output::percent(w.busy_share), w.queues.len()),
        ));
    }
    let mut sum = [0u64; 4];
    // Frames in tunnels count at the VTEP and at the remote too.
    let vteps =
        state.vteps.iter().flat_map(|v| v.counters.iter().chain(v.remotes.iter().filter_map(|r| r.counters.as_ref())));
    for c in state.ports.iter().filter_map(|p| p.counters.as_ref()).chain(&state.removed_ports).chain(vteps) {
        let dropped: u64 = c.drops.iter().map(|d| d.frames).sum();
        for (s, n) in sum.iter_mut().zip([c.rx_frames, c.clones, c.tx_frames, dropped]) {
            *s += n;
        }
    }
    let [rx, clones, tx, dropped] = sum;
    let held: u64 = state.workers.iter().map(|w| w.held_frames).sum();
    facts.push(("frames", format!("{rx} received, {clones} cloned, {tx} transmitted, {dropped} dropped, {held} held")));
    output::facts(&facts);
    if !status.dataplane_error.is_empty() {
        println!("{}", status.dataplane_error);
    }
    print_notes(status);
    info.problems.iter().for_each(|p| println!("not in force: {}", output::problem(p)));
    for p in &state.ports {
        if let Some(mtu) = p.interface_mtu {
            println!(
                "port '{}': its kernel interface takes {mtu} octets and drops larger frames; raise the interface's MTU to {}, \
                 or lower the port's",
                p.name, p.mtu
            );
        }
    }
    state.ports.iter().filter_map(fallback).for_each(|note| println!("{note}"));
    for n in state.networks.iter().filter(|n| !n.too_large.is_empty()) {
        println!(
            "network '{}': frames of port '{}' can be too large for its tunnels; lower the port's MTU, or raise that of \
             the uplink and all on the way",
            n.name,
            n.too_large.join("', '")
        );
    }
    for f in &state.flaps {
        let last = f.last.clone().unwrap_or_default();
        println!("{} flaps between ports '{}' and '{}' ({} moves)", last.mac, last.from, last.to, f.moves);
    }
}

/// That a port has another driver than it should, and why.
pub fn fallback(p: &dp::PortState) -> Option<String> {
    let why = Some(&p.fallback).filter(|why| !why.is_empty())?;
    Some(format!(
        "port '{}': its kernel interface is driven by {}, which is not the first choice: {why}",
        p.name, p.driver
    ))
}

fn print_notes(status: &Status) {
    if !status.pending.is_empty() {
        println!("the stored configuration is not in force: {}", status.pending);
    }
    status.warnings.iter().for_each(|w| println!("{w}"));
}
