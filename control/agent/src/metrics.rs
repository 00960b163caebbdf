//! The metrics page: `GET /metrics`, made anew for every scrape from the same report that the
//! CLI shows, so that the numbers are the same.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use dunlin_control_api::v1::Status;
use dunlin_dataplane_api::v1 as dp;
use prometheus::{Encoder, GaugeVec, IntCounterVec, Opts, Registry, TextEncoder};

use crate::desired::Desired;

/// Between two tries to listen on an address that can't be had.
const AGAIN: Duration = Duration::from_secs(3);

/// Serves the page on `address`, for ever. An address that is in use, or is not there yet, is tried again: metrics that
/// can't be served are no reason to serve nothing else.
pub async fn serve(address: SocketAddr, desired: Arc<Desired>) {
    let mut said = false;
    loop {
        match tokio::net::TcpListener::bind(address).await {
            Ok(listener) => {
                desired.warn("metrics", None);
                let app = Router::new().route("/metrics", get(page)).with_state(desired.clone());
                if let Err(e) = axum::serve(listener, app).await {
                    tracing::warn!("metrics address {address}: {e}");
                }
            }
            Err(e) => {
                let what = format!("metrics are not served on {address}: {e}; choose another address with --metrics");
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!("{what}");
                }
                desired.warn("metrics", Some(what));
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn page(
    State(desired): State<Arc<Desired>>,
) -> Result<([(&'static str, &'static str); 1], Vec<u8>), (StatusCode, String)> {
    let status = desired.status().await;
    let acls = desired.acls().await;
    let text = render(&status, &acls).map_err(|e| (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    Ok(([("content-type", prometheus::TEXT_FORMAT)], text))
}

/// One page's families.
struct Page(Registry);

impl Page {
    /// A family of counters with its values.
    fn counters<'a>(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        values: impl IntoIterator<Item = (Vec<&'a str>, u64)>,
    ) -> prometheus::Result<()> {
        let family = IntCounterVec::new(Opts::new(name, help), labels)?;
        for (l, v) in values {
            family.get_metric_with_label_values(&l)?.inc_by(v);
        }
        self.0.register(Box::new(family))
    }

    /// A family of gauges with its values.
    fn gauges<'a>(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        values: impl IntoIterator<Item = (Vec<&'a str>, f64)>,
    ) -> prometheus::Result<()> {
        let family = GaugeVec::new(Opts::new(name, help), labels)?;
        for (l, v) in values {
            family.get_metric_with_label_values(&l)?.set(v);
        }
        self.0.register(Box::new(family))
    }
}

/// What rules counted, and connections.
fn filters(page: &Page, state: &dp::State, acls: &[dp::AclState]) -> prometheus::Result<()> {
    // The last count of a list is its default's.
    let label = |i: usize, n: usize| if i + 1 == n { "default".to_owned() } else { (i + 1).to_string() };
    let labels: Vec<(&str, String, &dp::RuleCount)> = acls
        .iter()
        .flat_map(|a| a.counts.iter().enumerate().map(|(i, c)| (a.name.as_str(), label(i, a.counts.len()), c)))
        .collect();
    let each = || labels.iter().map(|(acl, rule, c)| (vec![*acl, rule.as_str()], *c));
    let help = "Frames that matched a rule, over all ports.";
    page.counters("dunlin_acl_frames_total", help, &["acl", "rule"], each().map(|(l, c)| (l, c.frames)))?;
    let help = "Octets of frames that matched a rule.";
    page.counters("dunlin_acl_bytes_total", help, &["acl", "rule"], each().map(|(l, c)| (l, c.bytes)))?;
    let s = state.sessions.unwrap_or_default();
    page.gauges("dunlin_sessions", "Tracked connections.", &[], [(vec![], s.sessions as f64)])?;
    page.gauges("dunlin_sessions_capacity", "Capacity of the connection table.", &[], [(vec![], s.capacity as f64)])?;
    let events = [("begun", s.begun), ("expired", s.expired), ("displaced", s.displaced), ("refused", s.refused)];
    let help = "Connections by event: begun, expired, displaced (unanswered, evicted), refused (over a limit).";
    page.counters("dunlin_sessions_total", help, &["event"], events.map(|(e, n)| (vec![e], n)))?;
    let of_ports = state.ports.iter().map(|p| (vec![p.name.as_str()], f64::from(p.sessions)));
    page.gauges("dunlin_port_sessions", "Tracked connections of a port.", &["port"], of_ports)
}

fn flag(b: bool) -> f64 {
    f64::from(u8::from(b))
}

fn render(status: &Status, acls: &[dp::AclState]) -> prometheus::Result<Vec<u8>> {
    let page = Page(Registry::new());
    page.gauges(
        "dunlin_build_info",
        "The version of dunlin-control; always 1.",
        &["version"],
        [(vec![status.version.as_str()], 1.0)],
    )?;
    page.gauges("dunlin_dataplane_up", "Whether the dataplane answers.", &[], [(vec![], flag(status.dataplane_up))])?;
    page.counters(
        "dunlin_dataplane_restarts_total",
        "Restarts of the dataplane since control started.",
        &[],
        [(vec![], status.dataplane_restarts)],
    )?;
    page.counters(
        "dunlin_transactions_total",
        "Changes of the configuration, by result.",
        &["result"],
        [(vec!["applied"], status.transactions_applied), (vec!["refused"], status.transactions_refused)],
    )?;
    page.gauges("dunlin_config_revision", "Revision of the configuration.", &[], [(vec![], status.revision as f64)])?;
    page.gauges(
        "dunlin_config_pending",
        "Whether the stored configuration is not in force in the dataplane.",
        &[],
        [(vec![], flag(!status.dataplane_up || !status.pending.is_empty()))],
    )?;
    if let Some(state) = &status.dataplane {
        let problems = state.info.iter().flat_map(|i| &i.problems);
        let problems = problems.map(|p| (vec![p.kind.as_str(), p.name.as_str(), p.field.as_str()], 1.0));
        let help = "Objects that are configured and not in force, or not fully; always 1.";
        page.gauges("dunlin_problem", help, &["kind", "name", "field"], problems)?;
        ports(&page, &state.ports)?;
        workers(&page, &state.workers)?;
        punts(&page, &state.punts)?;
        tunnels(&page, &state.vteps)?;
        filters(&page, state, acls)?;
        let of = |n: &'_ dp::NetworkState| n.name.clone();
        let names: Vec<String> = state.networks.iter().map(of).collect();
        let each = || names.iter().map(|n| vec![n.as_str()]).zip(&state.networks);
        let suppressed = each().map(|(l, n)| (l, n.suppressed));
        let help = "ARP requests and neighbor solicitations answered by proxy.";
        page.counters("dunlin_network_suppressed_total", help, &["network"], suppressed)?;
        let bindings = each().map(|(l, n)| (l, f64::from(n.bindings)));
        page.gauges("dunlin_network_bindings", "ARP/ND bindings of the network.", &["network"], bindings)?;
        let b = state.bindings.unwrap_or_default();
        page.gauges("dunlin_bindings", "Learned ARP/ND bindings.", &[], [(vec![], f64::from(b.entries))])?;
        page.gauges("dunlin_bindings_capacity", "The most of them.", &[], [(vec![], f64::from(b.capacity))])?;
        let help = "ARP/ND bindings not learned: the port had as many as it may, or there was no place.";
        page.counters("dunlin_bindings_refused_total", help, &[], [(vec![], b.refused)])?;
        let moved = [(vec![], state.queue_moves)];
        page.counters("dunlin_queue_moves_total", "Receive queues moved between workers.", &[], moved)?;
        macs(&page, &state.macs.unwrap_or_default())?;
        let flapping = [(vec![], state.flaps.len() as f64)];
        page.gauges("dunlin_mac_flapping", "MAC addresses that flap, or did in the last minutes.", &[], flapping)?;
        let removed = state.removed_ports.clone().unwrap_or_default();
        page.counters(
            "dunlin_removed_ports_frames_total",
            "Frames of ports that were removed since the dataplane started, by fate.",
            &["fate"],
            [
                (vec!["received"], removed.rx_frames),
                (vec!["cloned"], removed.clones),
                (vec!["transmitted"], removed.tx_frames),
                (vec!["dropped"], removed.drops.iter().map(|d| d.frames).sum()),
            ],
        )?;
        let pools = &state.pools;
        let size = pools.iter().map(|p| (vec![p.name.as_str()], f64::from(p.size)));
        page.gauges("dunlin_pool_buffers", "Buffers of a pool.", &["pool"], size)?;
        let used = pools.iter().map(|p| (vec![p.name.as_str()], f64::from(p.in_use)));
        page.gauges("dunlin_pool_buffers_in_use", "Buffers in use, devices' rings included.", &["pool"], used)?;
    }
    let mut text = Vec::new();
    TextEncoder::new().encode(&page.0.gather(), &mut text)?;
    Ok(text)
}

type PortCount = (&'static str, &'static str, fn(&dp::PortState) -> u64);

fn counted(p: &dp::PortState) -> &dp::Counters {
    p.counters.as_ref().expect("the dataplane always reports them")
}

const PORT_COUNTS: &[PortCount] = &[
    ("dunlin_port_receive_frames_total", "Frames received.", |p| counted(p).rx_frames),
    ("dunlin_port_receive_bytes_total", "Octets received, without FCS.", |p| counted(p).rx_bytes),
    ("dunlin_port_transmit_frames_total", "Frames transmitted.", |p| counted(p).tx_frames),
    ("dunlin_port_transmit_bytes_total", "Octets transmitted, without FCS.", |p| counted(p).tx_bytes),
    ("dunlin_port_cloned_frames_total", "Frames the switch made of received ones: flood copies, segments.", |p| {
        counted(p).clones
    }),
    ("dunlin_port_device_receive_missed_total", "Frames lost in the device: its ring was full.", |p| {
        p.device.unwrap_or_default().rx_missed
    }),
    ("dunlin_port_device_receive_errors_total", "Frames the device received with an error.", |p| {
        p.device.unwrap_or_default().rx_errors
    }),
    ("dunlin_port_device_receive_no_buffer_total", "Frames lost in the device: no buffer.", |p| {
        p.device.unwrap_or_default().rx_no_buffer
    }),
    ("dunlin_port_device_transmit_errors_total", "Frames the device failed to send.", |p| {
        p.device.unwrap_or_default().tx_errors
    }),
];

fn ports(page: &Page, ports: &[dp::PortState]) -> prometheus::Result<()> {
    let known: Vec<&dp::PortState> = ports.iter().filter(|p| p.counters.is_some()).collect();
    for (name, help, value) in PORT_COUNTS {
        page.counters(name, help, &["port"], known.iter().map(|p| (vec![p.name.as_str()], value(p))))?;
    }
    let drops = known.iter().flat_map(|p| {
        counted(p).drops.iter().map(|d| (vec![p.name.as_str(), d.direction.as_str(), d.reason.as_str()], d.frames))
    });
    page.counters(
        "dunlin_port_dropped_frames_total",
        "Frames dropped, by direction and reason.",
        &["port", "direction", "reason"],
        drops,
    )?;
    let up = ports.iter().map(|p| (vec![p.name.as_str()], flag(p.up)));
    page.gauges("dunlin_port_up", "Whether frames can leave by the port.", &["port"], up)?;
    let steered = ports.iter().filter(|p| !p.steering.is_empty());
    let steered = steered.map(|p| (vec![p.name.as_str(), p.steering.as_str()], 1.0));
    page.gauges("dunlin_port_steering", "How frames are steered to workers.", &["port", "mode"], steered)?;
    let fallback =
        ports.iter().filter(|p| !p.fallback.is_empty()).map(|p| (vec![p.name.as_str(), p.driver.as_str()], 1.0));
    let help = "The port's kernel interface has this driver, which is not the first choice.";
    page.gauges("dunlin_port_fallback", help, &["port", "driver"], fallback)?;
    let macs = ports.iter().map(|p| (vec![p.name.as_str()], f64::from(p.macs)));
    page.gauges("dunlin_port_macs", "MAC addresses learned or entered at the port.", &["port"], macs)?;
    let guests = || ports.iter().filter_map(|p| Some((vec![p.name.as_str()], p.guest?)));
    let connected = guests().map(|(l, g)| (l, flag(g.connected)));
    page.gauges("dunlin_guest_connected", "Whether the vhost-user socket is connected.", &["port"], connected)?;
    let running = guests().map(|(l, g)| (l, flag(g.running)));
    page.gauges("dunlin_guest_running", "Whether the guest's driver has started the device.", &["port"], running)
}

fn tunnels(page: &Page, vteps: &[dp::VtepState]) -> prometheus::Result<()> {
    let none = dp::Counters::default();
    let remotes: Vec<_> = vteps.iter().flat_map(|v| v.remotes.iter().map(move |r| (v, r))).collect();
    let of = |v: &dp::VtepState, r: &dp::RemoteState| [v.name.clone(), r.address.clone(), r.kind.clone()];
    let labels: Vec<_> = remotes.iter().map(|(v, r)| of(v, r)).collect();
    let each = || labels.iter().map(|l| l.iter().map(String::as_str).collect()).zip(remotes.iter().map(|(_, r)| *r));
    let counted = |r: &dp::RemoteState| r.counters.clone().unwrap_or_default();
    type Value = fn(&dp::Counters) -> u64;
    for (name, help, value) in [
        ("dunlin_remote_receive_frames_total", "Frames received from the remote VTEP.", (|c| c.rx_frames) as Value),
        ("dunlin_remote_receive_bytes_total", "Octets received from the remote VTEP, without encapsulation.", |c| {
            c.rx_bytes
        }),
        ("dunlin_remote_transmit_frames_total", "Frames sent to the remote VTEP.", |c| c.tx_frames),
        ("dunlin_remote_transmit_bytes_total", "Octets sent to the remote VTEP, without encapsulation.", |c| {
            c.tx_bytes
        }),
    ] {
        page.counters(name, help, &["vtep", "remote", "kind"], each().map(|(l, r)| (l, value(&counted(r)))))?;
    }
    let reached = each().map(|(l, r)| (l, flag(!r.next_hop_mac.is_empty())));
    page.gauges("dunlin_remote_reached", "Whether the next hop is resolved.", &["vtep", "remote", "kind"], reached)?;
    let macs = each().map(|(l, r)| (l, f64::from(r.macs)));
    page.gauges("dunlin_remote_macs", "MAC addresses at the remote VTEP.", &["vtep", "remote", "kind"], macs)?;
    let names: Vec<_> = vteps
        .iter()
        .flat_map(|v| {
            let remotes = v.remotes.iter().map(move |r| (r.name.clone(), r.counters.as_ref()));
            std::iter::once((v.name.clone(), v.counters.as_ref())).chain(remotes)
        })
        .collect();
    let drops = names.iter().flat_map(|(name, c)| {
        let drops = &c.unwrap_or(&none).drops;
        drops.iter().map(move |d| (vec![name.as_str(), d.reason.as_str()], d.frames))
    });
    page.counters(
        "dunlin_tunnel_dropped_frames_total",
        "Frames dropped at a VTEP or a remote, by reason.",
        &["name", "reason"],
        drops,
    )
}

type WorkerCount = (&'static str, &'static str, fn(&dp::WorkerState) -> u64);

const WORKER_COUNTS: &[WorkerCount] = &[
    ("dunlin_worker_polls_total", "Rounds over all queues of the worker.", |w| w.polls),
    ("dunlin_worker_bursts_total", "Receive bursts that had frames.", |w| w.bursts),
    ("dunlin_worker_frames_total", "Frames received by the worker.", |w| w.frames),
    ("dunlin_worker_busy_cycles_total", "Cycles of rounds that had frames.", |w| w.busy_cycles),
    ("dunlin_worker_cycles_total", "Cycles in all, asleep ones included.", |w| w.total_cycles),
    ("dunlin_worker_slept_cycles_total", "Cycles asleep.", |w| w.slept_cycles),
    ("dunlin_worker_allocations_total", "Allocations of memory while frames were forwarded; 0 is right.", |w| {
        w.allocations
    }),
    ("dunlin_worker_passed_frames_total", "Frames passed to the worker of the destination port.", |w| w.passed_frames),
    ("dunlin_worker_lost_events_total", "MAC events that were lost, because there were too many.", |w| w.lost_events),
];

fn workers(page: &Page, workers: &[dp::WorkerState]) -> prometheus::Result<()> {
    let cores: Vec<String> = workers.iter().map(|w| w.core.to_string()).collect();
    let with_core = || cores.iter().map(String::as_str).zip(workers);
    for (name, help, value) in WORKER_COUNTS {
        page.counters(name, help, &["core"], with_core().map(|(c, w)| (vec![c], value(w))))?;
    }
    let held = with_core().map(|(c, w)| (vec![c], w.held_frames as f64));
    page.gauges("dunlin_worker_held_frames", "Frames held until the next hop is resolved.", &["core"], held)?;
    let queues: Vec<(&dp::WorkerQueue, String)> =
        workers.iter().flat_map(|w| &w.queues).map(|q| (q, q.queue.to_string())).collect();
    let frames = queues.iter().map(|(q, n)| (vec![q.port.as_str(), n.as_str()], q.frames));
    page.counters("dunlin_queue_frames_total", "Frames received by the queue.", &["port", "queue"], frames)?;
    let busy = with_core().map(|(c, w)| (vec![c], w.busy_share));
    page.gauges("dunlin_worker_busy_ratio", "Share of the last second in rounds that had frames.", &["core"], busy)?;
    let cycles = with_core().map(|(c, w)| (vec![c], w.cycles_per_frame));
    page.gauges("dunlin_worker_cycles_per_frame", "Busy cycles per frame, last second.", &["core"], cycles)?;
    let burst = with_core().map(|(c, w)| (vec![c], w.frames_per_burst));
    page.gauges("dunlin_worker_frames_per_burst", "Frames per burst that had any, last second.", &["core"], burst)
}

fn punts(page: &Page, punts: &[dp::PuntState]) -> prometheus::Result<()> {
    let of = |count: fn(&dp::PuntState) -> u64| punts.iter().map(move |p| (vec![p.kind.as_str()], count(p)));
    page.counters("dunlin_punt_frames_total", "Frames read by the switch itself.", &["kind"], of(|p| p.frames))?;
    let help = "Frames for the switch itself that came too fast.";
    page.counters("dunlin_punt_dropped_total", help, &["kind"], of(|p| p.dropped))
}

fn macs(page: &Page, m: &dp::MacState) -> prometheus::Result<()> {
    page.gauges("dunlin_mac_entries", "Entries of the MAC table.", &[], [(vec![], m.entries as f64)])?;
    page.gauges("dunlin_mac_capacity", "Capacity of the MAC table.", &[], [(vec![], m.capacity as f64)])?;
    for (name, help, value) in [
        ("dunlin_mac_learned_total", "MAC addresses learned.", m.learned),
        ("dunlin_mac_moves_total", "Moves of an address to another port.", m.moves),
        ("dunlin_mac_aged_total", "MAC addresses aged out.", m.aged),
        ("dunlin_mac_evictions_total", "MAC addresses evicted for others.", m.evictions),
        ("dunlin_mac_refused_full_total", "MAC addresses not learned: table full.", m.refused_full),
        ("dunlin_mac_refused_limit_total", "MAC addresses not learned: port at its limit.", m.refused_limit),
    ] {
        page.counters(name, help, &[], [(vec![], value)])?;
    }
    Ok(())
}
