//! `dunlin-dataplane`: forwards frames between NICs, kernel interfaces and guests.
//!
//! It holds no file and no policy: what it forwards by arrives over its API (`api.rs`).
//!
//! **Threads.** One worker a core named with `--cores`, pinned (`worker.rs`); one thread that
//! follows links, ages and moves (below); a small tokio runtime for the API; DPDK's own for
//! interrupts and vhost-user sockets. Workers take no lock that another thread holds for long:
//! see `switch/mod.rs` for how a change reaches them.
//!
//! **Read next** `worker.rs` for the loop, then the engine's `pipeline.rs` for a frame's way.

#![forbid(unsafe_code)]

mod acl;
mod api;
mod device;
mod events;
mod links;
mod numa;
mod packet;
mod pending;
mod permit;
mod pools;
mod queues;

mod share;
mod steering;
mod switch;
mod underlay;
mod worker;

use std::{
    path::PathBuf,
    sync::Arc,
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::Parser;
use dunlin_dataplane_api::socket::group_id;
use dunlin_dpdk::{
    allocations::Counting,
    eal::{Eal, EalConfig, EalError, prefer_hugepages, tsc_hz},
    mempool::Mempool,
    offload::SoftwareOffload,
    quiescent::{Domain, Workers},
    thread::{WorkerThread, allowed_cores},
};
use dunlin_engine::tables::{
    conntrack::{Conntrack, Quiescence},
    mac::MacTable,
};
use parking_lot::Mutex;

use crate::{
    events::Events,
    permit::Permit,
    pools::Pools,
    queues::Transmitter,
    switch::{Applier, Options, Parts, Switch},
    underlay::{Underlay, punt::PuntRings},
    worker::{Clock, Worker, WorkerShared},
};

/// How often links are looked at, and a part of the mac table is aged.
const TICK: Duration = Duration::from_millis(250);

/// The least time between two looks.
const BREATH: Duration = Duration::from_millis(10);
/// The time that closing all devices may take when the process ends.
const END: Duration = Duration::from_secs(10);

/// Dunlin's dataplane: forwards frames between NICs, kernel interfaces and guests.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Args {
    /// Cores to run workers on, one each, as 2,3 or 2-5
    #[arg(long, value_parser = parse_cores, default_value = "1")]
    cores: Cores,
    /// Memory for buffers and rings, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024,
          value_parser = clap::value_parser!(u32).range(i64::from(Pools::MIN_MEMORY_MB)..=1_048_576))]
    memory: u32,
    /// Use ordinary pages instead of hugepages (slower)
    #[arg(long)]
    no_huge: bool,
    /// Addresses the mac table holds
    #[arg(long, value_name = "N", default_value_t = 262_144,
          value_parser = clap::value_parser!(u32).range(i64::from(MacTable::MIN_CAPACITY)..=i64::from(MacTable::MAX_CAPACITY)))]
    mac_table_size: u32,
    /// Connections that are tracked at once
    #[arg(long, value_name = "N", default_value_t = 262_144, value_parser = clap::value_parser!(u32).range(64..=16_777_216))]
    session_table_size: u32,
    /// Socket of the dataplane's API
    #[arg(long, value_name = "PATH", default_value = dunlin_dataplane_api::DEFAULT_SOCKET)]
    socket: PathBuf,
    /// Group that may use the socket (its mode is 0660)
    #[arg(long)]
    group: Option<String>,
    /// Group that may use the vhost-user sockets that Dunlin makes (theirs is 0660 too)
    #[arg(long, value_name = "GROUP")]
    vhost_group: Option<String>,
    /// Folders that vhost-user sockets may be in
    #[arg(long, value_name = "DIR", value_delimiter = ',', value_parser = permit::parse_dir,
          default_value = permit::DEFAULT_VHOST_DIR)]
    vhost_dir: Vec<PathBuf>,
    /// Permit every DPDK device and key to ports of kind nic, also those that run commands and write
    /// files: an operator of the API can then run commands as root. For tests and benchmarks only
    #[arg(long)]
    any_device: bool,
}

#[derive(Clone)]
struct Cores(Vec<usize>);

fn parse_cores(s: &str) -> Result<Cores, String> {
    let number = |n: &str| n.trim().parse::<usize>().map_err(|_| format!("'{n}' is no core number"));
    let mut cores = Vec::new();
    for part in s.split(',') {
        match part.split_once('-') {
            Some((a, b)) => cores.extend(number(a)?..=number(b)?),
            None => cores.push(number(part)?),
        }
    }
    let allowed = allowed_cores();
    if let Some(missing) = cores.iter().find(|c| !allowed.contains(c)) {
        return Err(format!("there is no core {missing} for this process; it may use {allowed:?}"));
    }
    let mut sorted = cores.clone();
    sorted.sort_unstable();
    sorted.dedup();
    if sorted.len() != cores.len() || cores.is_empty() {
        return Err("name each core once, and at least one".into());
    }
    Ok(Cores(cores))
}

fn main() -> std::process::ExitCode {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    match run(args) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("dunlin-dataplane: {e:#}");
            // What only a person can mend (EX_CONFIG of sysexits.h) is not tried again and again.
            let hopeless = matches!(e.downcast_ref(), Some(EalError::Hugepages { .. }));
            std::process::ExitCode::from(if hopeless { 78 } else { 1 })
        }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The rounds of all workers.
struct Rounds(Arc<Domain<Workers>>);

impl Quiescence for Rounds {
    fn retire(&self) -> u64 {
        self.0.retire()
    }

    fn is_past(&self, retired: u64) -> bool {
        self.0.is_past(retired)
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    // A thread that is gone would take its queues' ports with it, unseen: better the whole process
    // ends and is started again.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
    if args.any_device {
        tracing::warn!("--any-device: an operator of the API can run commands as root");
    }
    Permit { any_device: args.any_device, vhost_dirs: args.vhost_dir }.set();
    let vhost_group = args.vhost_group.as_deref().map(group_id).transpose()?;
    let eal = Eal::init(&EalConfig { memory_mb: args.memory, hugepages: !args.no_huge })?;
    let pools = Pools::new(eal, args.memory, !args.no_huge, &numa::nodes_of(&args.cores.0))?;
    let clock = Clock::new(tsc_hz(&eal));
    let macs = Arc::new(MacTable::new(args.mac_table_size, [random()?, random()?]));
    prefer_hugepages(macs.memory());
    let (domain, readers) = Domain::<Workers>::new(args.cores.0.len());
    let rounds = Rounds(domain.clone());
    let sessions = Arc::new(Conntrack::new(args.session_table_size, [random()?, random()?], rounds));
    sessions.begin_grace(clock.now().s);
    let punted = Arc::new(PuntRings::default());
    let (wake, woken) = mpsc::sync_channel(1);
    let changed: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
        // Full: it is going to wake up anyway.
        let _ = wake.try_send(());
    });
    let worker = |(i, core): (usize, &usize)| WorkerShared::new(i, *core, punted.clone(), changed.clone());
    let shared = args.cores.0.iter().enumerate().map(|w| worker(w).map(Arc::new));
    let shared: Vec<_> = shared.collect::<std::io::Result<_>>()?;
    let underlay = Underlay::start(punted.clone(), shared[0].clone())?;
    let events = Arc::new(Events::default());

    let mut threads = Vec::new();
    for (reader, shared) in readers.into_iter().zip(&shared) {
        let pool = pools.standard(numa::of_core(shared.core)).clone();
        let tx = Transmitter::new(SoftwareOffload::new(pool.clone(), pools.linear.clone()));
        let worker = Worker::new(shared.clone(), macs.clone(), sessions.clone(), reader, clock, tx);
        threads.push(start_worker(eal, shared.core, pool, worker)?);
    }
    let switch = Arc::new(Mutex::new(Switch::new(Parts {
        eal,
        options: Options { cores: args.cores.0, memory_mb: args.memory, hugepages: !args.no_huge, vhost_group },
        pools,
        domain,
        workers: shared,
        macs,
        sessions,
        clock,
        events: events.clone(),
        changed: changed.clone(),
        underlay,
        instance: random()?,
    })));
    let applier = Arc::new(Applier::new(switch.clone()));
    let monitored = Arc::downgrade(&applier);
    std::thread::Builder::new().name("monitor".into()).spawn(move || {
        let mut next = Instant::now();
        loop {
            // Guests that come and go all the time must not keep addresses from ageing, nor the lock busy.
            std::thread::sleep(BREATH);
            let _ = woken.recv_timeout(next.saturating_duration_since(Instant::now()));
            let tick = Instant::now() >= next;
            let Some(applier) = monitored.upgrade() else { break };
            // While a transaction opens devices, none is closed.
            let turn = applier.try_turn();
            let mut switch = applier.switch().lock();
            switch.sync_links(turn.is_some());
            switch.sync_leases(tick);
            if tick {
                switch.tick();
                next = Instant::now() + TICK;
            }
        }
    })?;

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.spawn(links::watch(changed));
    let served = runtime.block_on(api::serve(
        &args.socket,
        args.group.as_deref(),
        switch,
        applier.clone(),
        events,
        dunlin_dataplane_api::socket::signalled(),
    ));
    // Not waited for: a device that never opens holds one of its threads.
    runtime.shutdown_background();
    end(&applier, threads);
    served
}

/// Closes devices and ends the workers; the process ends though a device hangs.
fn end(applier: &Arc<Applier>, threads: Vec<std::thread::JoinHandle<()>>) {
    let (done, is_done) = mpsc::channel();
    let closing = applier.clone();
    std::thread::spawn(move || {
        if closing.shut_down() {
            threads.into_iter().for_each(|t| drop(t.join()));
            let _ = done.send(());
        }
    });
    if is_done.recv_timeout(END).is_err() {
        tracing::error!("a device hangs: the process ends without closing it");
        // Not by exit(): DPDK's own clean-up would wait for the device too.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::SIGKILL);
    }
}

/// Starts a worker on its core and waits until it runs.
fn start_worker(eal: Eal, core: usize, pool: Mempool, worker: Worker) -> anyhow::Result<std::thread::JoinHandle<()>> {
    let (ready, is_ready) = mpsc::channel();
    let thread =
        std::thread::Builder::new().name(format!("worker-{core}")).spawn(move || {
            match WorkerThread::start(&eal, core, pool) {
                Ok(thread) => {
                    let _ = ready.send(Ok(()));
                    worker.run();
                    drop(thread);
                }
                Err(e) => drop(ready.send(Err(e))),
            }
        })?;
    match is_ready.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(e)) => Err(e.into()),
        Err(_) => bail!("worker on core {core}: ended before it began"),
    }
}

/// A random number of the kernel's.
fn random() -> anyhow::Result<u64> {
    use std::io::Read;
    let mut octets = [0; 8];
    std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut octets)).context("/dev/urandom")?;
    Ok(u64::from_ne_bytes(octets))
}
