//! A worker: one pinned thread that takes frames from its receive queues to the ports they leave
//! by, run to completion.
//!
//! ```text
//! loop { new configuration? → for each queue: receive, pipeline → transmit by port → idle? sleep }
//! ```
//!
//! The worker owns its queues; the configuring thread sends it queues and asks for them back
//! through [`WorkerShared::inbox`], whose version the worker compares once a round. When it has
//! found nothing to do for [`EMPTY_ROUNDS`] rounds, it sleeps: until the earliest thing that it has to do
//! by itself, and no longer than until a guest kicks, the kernel has a frame, or another thread rings
//! ([`dunlin_dpdk::sleep`]). Devices that can't wake it (NICs, which are polled) are looked at after
//! 1 µs first, then twice as long each time up to the configured bound.

use std::{
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
        mpsc,
    },
    time::Duration,
};

use crossbeam_queue::ArrayQueue;
use dunlin_dpdk::{
    allocations, eal,
    quiescent::{Reader, Workers},
    sleep::{Doorbell, Sleeper},
};
use dunlin_engine::{
    Burst, Pipeline, PortIdx, SegmentId, Snapshot,
    context::{Context, Now},
    counters::{Count, Counters},
    cycles::{Stage, StageClock, StageCounts},
    output::{Logged, MacLearned},
    tables::{conntrack::Conntrack, mac::MacTable},
    vlan::VlanTagInfo,
};
use parking_lot::Mutex;
use rtrb::Consumer;

use crate::{
    packet::Packet,
    queues::{Round, RxHandle, Transmitter, TxHandle},
    share::Contention,
    steering::{Link, Links, Owners, Passed},
    underlay::punt::PuntRings,
};

/// Rounds without a frame before the first sleep.
const EMPTY_ROUNDS: u32 = 512;
/// Of so many rounds, the stages of one are measured: that takes less than a hundredth of the worker's time.
const MEASURED: u32 = 16;
/// The longest sleep of a worker that everything wakes.
const LONGEST_SLEEP: Duration = Duration::from_millis(10);

/// How workers idle.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Idle {
    /// The longest sleep; `None` never sleeps.
    pub max_sleep: Option<Duration>,
}

impl Default for Idle {
    fn default() -> Self {
        Idle { max_sleep: dunlin_model::spec::DataplaneSpec::default().max_sleep }
    }
}

/// Commands to a worker.
pub enum Command {
    AddTx(PortIdx, TxHandle),
    /// It comes back, and with it go those that were guests' own.
    RemoveTx(PortIdx, mpsc::Sender<Option<TxHandle>>),
    /// What the guest (the second) sends by the port (the first) goes by a queue of its own.
    AddGuestTx(PortIdx, PortIdx, TxHandle),
    RemoveGuestTx(PortIdx, PortIdx, mpsc::Sender<Option<TxHandle>>),
    AddRx(RxHandle),
    /// Some of the port's queues come back.
    RemoveRx(PortIdx, Which, mpsc::Sender<Vec<RxHandle>>),
    /// One queue of the port is handed to another worker.
    MoveRx {
        port: PortIdx,
        number: u16,
        to: Arc<WorkerShared>,
        reply: mpsc::Sender<()>,
    },
    /// Ends of rings: to each worker by its number, and from the others.
    Connect(Vec<Option<Link>>, Vec<Consumer<Passed>>),
    SteerBy(Option<Arc<Owners>>),
    /// Answered after so many rounds, or one in which there was nothing to do.
    Drain(u32, mpsc::Sender<()>),
    SetIdle(Idle),
    /// A frame of a VTEP's own, as if received at it; or one that the switch made, at a remote or a port, in a segment.
    InjectFrame(PortIdx, Option<(VlanTagInfo, SegmentId)>, Box<[u8]>),
    Stop,
}

/// Which of a port's receive queues, by their numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Which(u128);

impl Which {
    pub const ALL: Which = Which(u128::MAX);

    /// Those of these numbers, which are below 128.
    pub fn of(numbers: impl IntoIterator<Item = u16>) -> Self {
        Which(numbers.into_iter().fold(0, |all, n| all | 1 << n))
    }

    fn has(self, number: u16) -> bool {
        self == Self::ALL || self.0 >> number & 1 != 0
    }
}

/// See [`Command::InjectFrame`].
type Injected = (PortIdx, Option<(VlanTagInfo, SegmentId)>, Packet);

struct Inbox {
    snapshot: Arc<Snapshot>,
    commands: Vec<Command>,
}

/// Counts of a worker's loop.
#[derive(Default)]
#[repr(align(128))]
pub struct LoopCounts {
    pub polls: Count,
    pub bursts: Count,
    pub frames: Count,
    pub busy_cycles: Count,
    pub total_cycles: Count,
    pub slept_cycles: Count,
    /// Frames passed to other workers.
    pub passed: Count,
    /// Frames that are held now.
    pub held: Count,
    /// Allocations while frames were forwarded: none.
    pub allocations: Count,
}

/// What a worker and the configuring thread both see.
pub struct WorkerShared {
    pub core: usize,
    /// Its place among the workers.
    pub number: usize,
    pub counters: Counters,
    pub loop_counts: LoopCounts,
    pub stages: StageCounts,
    version: AtomicU64,
    inbox: Mutex<Inbox>,
    /// Wakes the worker.
    pub doorbell: Arc<Doorbell>,
    /// Apart, so that a flood of new addresses hides no move.
    moves: ArrayQueue<MacLearned>,
    learned: ArrayQueue<MacLearned>,
    logged: ArrayQueue<Logged>,
    pub lost_events: AtomicU64,
    /// A DHCP server gave a station an address since the monitor looked.
    leased: AtomicBool,
    /// Wakes the monitor.
    wake: Arc<dyn Fn() + Send + Sync>,
    /// Where frames that the switch itself has to read go.
    pub punted: Arc<PuntRings>,
}

impl WorkerShared {
    pub fn new(
        number: usize,
        core: usize,
        punted: Arc<PuntRings>,
        wake: Arc<dyn Fn() + Send + Sync>,
    ) -> std::io::Result<Self> {
        Ok(WorkerShared {
            doorbell: Arc::new(Doorbell::new()?),
            core,
            number,
            counters: Counters::default(),
            loop_counts: LoopCounts::default(),
            stages: StageCounts::default(),
            version: AtomicU64::new(0),
            inbox: Mutex::new(Inbox { snapshot: Arc::new(Snapshot::empty()), commands: Vec::new() }),
            moves: ArrayQueue::new(1024),
            learned: ArrayQueue::new(4096),
            logged: ArrayQueue::new(256),
            lost_events: AtomicU64::new(0),
            leased: AtomicBool::new(false),
            wake,
            punted,
        })
    }

    /// Leaves something for the worker to take before its next round.
    pub fn post(&self, snapshot: Option<Arc<Snapshot>>, commands: impl IntoIterator<Item = Command>) {
        let mut inbox = self.inbox.lock();
        if let Some(s) = snapshot {
            inbox.snapshot = s;
        }
        inbox.commands.extend(commands);
        self.version.fetch_add(1, Release);
        self.doorbell.ring();
    }

    /// The worker's side: bounded, and what does not fit is counted.
    pub fn learned(&self, event: MacLearned) {
        let queue = if event.from.is_some() { &self.moves } else { &self.learned };
        if queue.push(event).is_err() {
            self.lost_events.fetch_add(1, Relaxed);
        }
    }

    /// The worker's side: the same for frames that rules tell of.
    pub fn logged(&self, event: Logged) {
        if self.logged.push(event).is_err() {
            self.lost_events.fetch_add(1, Relaxed);
        }
    }

    /// The worker's side: a DHCP server gave a station an address. Rare, and at most one system call for each look of the
    /// monitor's.
    pub fn leased(&self) {
        if !self.leased.swap(true, AcqRel) {
            (self.wake)();
        }
    }

    /// Whether that happened since the last call.
    pub fn take_leased(&self) -> bool {
        self.leased.swap(false, AcqRel)
    }

    /// The next frame that a rule tells of.
    pub fn next_logged(&self) -> Option<Logged> {
        self.logged.pop()
    }

    /// The next address that the worker learned or saw move.
    pub fn next_learned(&self) -> Option<MacLearned> {
        self.moves.pop().or_else(|| self.learned.pop())
    }
}

/// The worker's own side.
pub struct Worker {
    shared: Arc<WorkerShared>,
    macs: Arc<MacTable>,
    sessions: Arc<Conntrack>,
    reader: Reader<Workers>,
    sleeper: Sleeper,
    clock: Clock,
    rx: Vec<RxHandle>,
    tx: Transmitter,
    snapshot: Arc<Snapshot>,
    version: u64,
    rounds: u32,
    contention: Contention,
    idle: Idle,
    links: Links,
    drains: Vec<(u32, mpsc::Sender<()>)>,
    injected: Vec<Injected>,
    stop: bool,
}

/// From ticks to the time the engine works with.
#[derive(Clone, Copy)]
pub struct Clock {
    /// Nanoseconds per tick, times 2^32.
    scale: u64,
    hz: u64,
}

impl Clock {
    pub fn new(hz: u64) -> Self {
        Clock { scale: ((1_000_000_000u128 << 32) / u128::from(hz)) as u64, hz }
    }

    #[inline(always)]
    pub fn at(self, ticks: u64) -> Now {
        let ns = ((u128::from(ticks) * u128::from(self.scale)) >> 32) as u64;
        Now { s: (ticks / self.hz) as u32, ns }
    }

    pub fn now(self) -> Now {
        self.at(eal::tsc())
    }
}

impl Worker {
    pub fn new(
        shared: Arc<WorkerShared>,
        macs: Arc<MacTable>,
        sessions: Arc<Conntrack>,
        reader: Reader<Workers>,
        clock: Clock,
        tx: Transmitter,
    ) -> Self {
        Worker {
            sleeper: Sleeper::new(shared.doorbell.clone()),
            shared,
            macs,
            sessions,
            reader,
            clock,
            rx: Vec::new(),
            tx,
            snapshot: Arc::new(Snapshot::empty()),
            version: 0,
            rounds: 0,
            contention: Contention::NONE,
            idle: Idle::default(),
            links: Links::default(),
            drains: Vec::new(),
            injected: Vec::new(),
            stop: false,
        }
    }

    /// Runs until it is stopped.
    pub fn run(mut self) {
        let mut pipeline = Pipeline::default();
        let mut burst: Burst<Packet> = Burst::new();
        let mut backoff = IdleBackoff::default();
        let mut last = eal::tsc();
        self.reader.online();
        while !self.stop {
            self.refresh();
            let frames = self.round(&mut pipeline, &mut burst, self.clock.at(last));
            let now = eal::tsc();
            self.account(frames, now - last);
            last = now;
            if !self.drains.is_empty() {
                self.answer_drains(frames);
            }
            if frames > 0 {
                backoff = IdleBackoff::default();
            } else if let Some(time) = backoff.next(self.idle) {
                let (frames, slept) = self.sleep(&mut pipeline, &mut burst, time);
                let now = eal::tsc();
                self.account(frames, now - last - slept);
                self.shared.loop_counts.slept_cycles.add(slept);
                self.shared.loop_counts.total_cycles.add(slept);
                last = now;
                if frames > 0 {
                    backoff = IdleBackoff::default();
                }
            }
        }
    }

    /// Looks once more at everything that can end a sleep, and sleeps if there is nothing: for `time` at most if there are
    /// queues that can't end it. How many frames there were, and how many cycles the sleep took.
    #[inline(never)]
    fn sleep(&mut self, pipeline: &mut Pipeline, burst: &mut Burst<Packet>, time: Duration) -> (u64, u64) {
        self.sleeper.arm();
        self.refresh();
        let guard = self.reader.guard();
        let mut all_wake = true;
        for rx in &mut self.rx {
            all_wake &= rx.queue.wake(guard, &mut self.sleeper);
        }
        let (frames, before) = (self.round(pipeline, burst, self.clock.now()), eal::tsc());
        let mut slept = 0;
        if frames == 0 && !self.stop && self.drains.is_empty() {
            let time = if all_wake { LONGEST_SLEEP } else { time };
            let time = self.tx.deadline().map_or(time, |deadline| deadline.min(time));
            self.reader.offline();
            self.sleeper.sleep(time);
            self.reader.online();
            slept = eal::tsc() - before;
        }
        self.sleeper.disarm();
        let guard = self.reader.guard();
        self.rx.iter().for_each(|rx| rx.queue.poll_again(guard));
        (frames, slept)
    }

    /// Polls each queue once. How many frames there were.
    #[inline(always)]
    fn round(&mut self, pipeline: &mut Pipeline, burst: &mut Burst<Packet>, now: Now) -> u64 {
        let guard = self.reader.guard();
        let allocations = allocations::of_this_thread();
        self.rounds = self.rounds.wrapping_add(1);
        let clock = self.rounds.is_multiple_of(MEASURED).then(|| StageClock::start(eal::tsc, &self.shared.stages));
        let mut out = self.tx.round(guard, &self.shared, clock.as_ref());
        let (tables, own) = ((&*self.macs, &*self.sessions), (self.shared.number, &self.shared.counters));
        let cx = Context { cycles: clock.as_ref(), ..Context::new(&self.snapshot, tables, own, now) };
        let (mut frames, mut bursts) = (0, 0);
        let mut contention = Contention::NONE;
        for rx in &mut self.rx {
            if rx.share.waits(&self.contention, &mut contention) {
                continue;
            }
            let began = clock.as_ref().map(|_| eal::tsc());
            let n = rx.receive(guard, burst, &self.shared.counters);
            rx.share.took(n, &mut contention);
            if n > 0 {
                if let Some(clock) = &clock {
                    clock.end(Stage::Receive);
                }
                frames += n as u64;
                rx.frames.add(n as u64);
                bursts += 1;
                if !rx.of_one_guest && self.links.steers(rx.port) {
                    self.shared.loop_counts.passed.add(self.links.pass(pipeline, cx, rx.port, burst));
                    if burst.is_empty() {
                        continue;
                    }
                }
                pipeline.run(cx, rx.port, burst, &mut out);
                if let Some(began) = began {
                    rx.share.measured(n, eal::tsc() - began);
                }
            }
        }
        self.contention = contention;
        self.links.take(burst, |port, burst| {
            frames += burst.len() as u64;
            bursts += 1;
            pipeline.run(cx, port, burst, &mut out);
        });
        if out.has_pending() {
            frames += run_pending(pipeline, cx, burst, &mut out);
        }
        for (port, inside, frame) in self.injected.drain(..) {
            frames += 1;
            burst.push(frame);
            match inside {
                Some(inside) => pipeline.run_inside(cx, port, inside, burst, &mut out),
                None => pipeline.run(cx, port, burst, &mut out),
            }
        }
        if frames > 0 {
            out.flush();
            self.shared.loop_counts.bursts.add(bursts);
            if clock.is_some() {
                self.shared.stages.frames.add(frames);
            }
        }
        let allocations = allocations::of_this_thread() - allocations;
        if allocations > 0 {
            self.shared.loop_counts.allocations.add(allocations);
        }
        frames
    }

    /// After a round of so many frames.
    #[inline(never)]
    fn answer_drains(&mut self, frames: u64) {
        self.drains.retain_mut(|(rounds, reply)| {
            *rounds -= 1;
            let done = *rounds == 0 || frames == 0;
            if done {
                let _ = reply.send(());
            }
            !done
        });
    }

    #[inline(always)]
    fn account(&self, frames: u64, cycles: u64) {
        let c = &self.shared.loop_counts;
        c.polls.add(1);
        c.total_cycles.add(cycles);
        if frames > 0 {
            c.frames.add(frames);
            c.busy_cycles.add(cycles);
        }
    }

    /// Between rounds: takes what was left in the inbox, and tells that nothing of before is held.
    #[inline(always)]
    fn refresh(&mut self) {
        let epoch = self.reader.begin();
        if self.shared.version.load(Acquire) != self.version {
            self.take_inbox();
        }
        self.reader.pass(epoch);
    }

    #[inline(never)]
    fn take_inbox(&mut self) {
        let shared = self.shared.clone();
        let mut inbox = shared.inbox.lock();
        self.version = shared.version.load(Acquire);
        self.snapshot = inbox.snapshot.clone();
        let commands = std::mem::take(&mut inbox.commands);
        // Not held any longer: a command may go on to another worker, whose own may come here.
        drop(inbox);
        commands.into_iter().for_each(|c| self.handle_command(c));
    }

    fn handle_command(&mut self, command: Command) {
        match command {
            Command::AddTx(port, handle) => self.tx.add(port, handle),
            // Whoever asked has gone: the handle is dropped here, which is late but no harm.
            Command::RemoveTx(port, reply) => drop(reply.send(self.tx.remove(port, &self.shared))),
            Command::AddGuestTx(port, guest, handle) => self.tx.add_guest(port, guest, handle),
            Command::RemoveGuestTx(port, guest, reply) => drop(reply.send(self.tx.remove_guest(port, guest))),
            Command::AddRx(rx) => self.rx.push(rx),
            Command::RemoveRx(port, which, reply) => {
                let of = |r: &RxHandle| r.port == port && which.has(r.number());
                let (back, keep) = std::mem::take(&mut self.rx).into_iter().partition(of);
                self.rx = keep;
                drop(reply.send(back));
            }
            Command::MoveRx { port, number, to, reply } => {
                let at = self.rx.iter().position(|r| r.port == port && r.number() == number);
                to.post(None, at.map(|at| Command::AddRx(self.rx.remove(at))));
                let _ = reply.send(());
            }
            Command::Connect(to, from) => self.links.connect(to, from),
            Command::SteerBy(owners) => self.links.steer_by(owners),
            Command::Drain(rounds, reply) => self.drains.push((rounds.max(1), reply)),
            Command::SetIdle(idle) => self.idle = idle,
            Command::InjectFrame(port, inside, octets) => {
                self.injected.extend(self.tx.make(&octets).map(|f| (port, inside, f)));
            }
            Command::Stop => self.stop = true,
        }
    }
}

/// Takes on their way frames that had to wait, and may go on. How many there were.
#[inline(never)]
fn run_pending(pipeline: &mut Pipeline, cx: Context<'_>, burst: &mut Burst<Packet>, out: &mut Round<'_>) -> u64 {
    let (mut for_remotes, mut fragments) = out.take_pending(&cx);
    let n = for_remotes.len() + fragments.len();
    for h in for_remotes.drain(..) {
        pipeline.send_into(cx, h.port, h.why, h.frame, out);
    }
    for h in fragments.drain(..) {
        out.try_again(Some(h.since));
        burst.push(h.frame);
        pipeline.run_held(cx, (h.port, h.why.0), burst, out);
    }
    out.try_again(None);
    out.give_back(for_remotes, fragments);
    n as u64
}

/// How long the next sleep is.
#[derive(Default)]
struct IdleBackoff {
    empty: u32,
    us: u64,
}

impl IdleBackoff {
    #[inline(always)]
    fn next(&mut self, idle: Idle) -> Option<Duration> {
        let max = idle.max_sleep?;
        self.empty += 1;
        if self.empty < EMPTY_ROUNDS {
            return None;
        }
        // One look at all queues between two sleeps.
        self.empty = EMPTY_ROUNDS;
        self.us = (self.us * 2).max(1);
        let time = Duration::from_micros(self.us).min(max);
        self.us = time.as_micros() as u64;
        Some(time)
    }
}
