//! What a worker receives from and sends to, whatever the kind of port.

use std::{
    ops::Deref,
    sync::Arc,
    time::{Duration, Instant},
};

use arrayvec::ArrayVec;
use dunlin_dpdk::{
    Mbuf,
    kernel::{packet, tap},
    offload::{Caps, MAX_SEGMENTS, OffloadError, SoftwareOffload, complete_tagged, complete_unfinished, needs_finish},
    port,
    quiescent::{Guard, Workers},
    sleep::Sleeper,
    vhost,
};
use dunlin_engine::{
    BURST, Burst, DropReason, MAX_PORTS, PortIdx, SegmentId,
    context::Context,
    counters::{Count, Counters},
    cycles::{Stage, StageClock},
    output::{Events, Logged, MAX_PIECES, MacLearned, Punt, Transmit},
    tables::conntrack::Datagram,
    vlan::VlanTagInfo,
};
use parking_lot::Mutex;

use crate::{
    packet::Packet,
    pending::{ForRemote, Fragment, Inside, Pending},
    share::TimeShare,
    underlay::punt::Cause,
    worker::WorkerShared,
};

/// A count of one worker's on a cache line of its own: what is beside it in memory may be another worker's.
#[derive(Default)]
#[repr(align(128))]
pub struct LoneCount(Count);

impl Deref for LoneCount {
    type Target = Count;

    fn deref(&self) -> &Count {
        &self.0
    }
}

/// A receive queue and the port it belongs to. One worker owns it.
pub struct RxHandle {
    pub port: PortIdx,
    pub queue: RxKind,
    /// A kernel interface whose stack may leave checksums unfinished, and whose driver does not say so.
    pub complete_checksums: bool,
    /// What arrives by it was sorted by the device: it is for one guest, whose worker has it.
    pub of_one_guest: bool,
    /// Frames received by it; the worker's that has it to count, and anyone's to read.
    pub frames: Arc<LoneCount>,
    /// Of its worker's time.
    pub share: TimeShare,
}

pub enum RxKind {
    Eth(port::RxQueue),
    Packet(Box<packet::PacketRxQueue>),
    Tap(Box<tap::TapRxQueue>),
    Vhost(vhost::VhostRxQueue),
}

impl RxHandle {
    #[inline(always)]
    pub fn receive(&mut self, guard: Guard<'_, Workers>, burst: &mut Burst<Packet>, counters: &Counters) -> usize {
        let n = match &mut self.queue {
            RxKind::Eth(q) => q.receive(burst),
            RxKind::Packet(q) => q.receive(burst),
            RxKind::Tap(q) => q.receive(burst),
            RxKind::Vhost(q) => {
                let n = q.receive(guard, burst);
                burst.iter_mut().for_each(|p| complete_tagged(&mut p.0));
                n
            }
        };
        if self.complete_checksums && n > 0 {
            burst.retain(|p| complete_unfinished(&mut p.0));
            let cut = (n - burst.len()) as u64;
            if cut > 0 {
                counters.port(self.port).rx_frames.add(cut);
                drop_frames(counters, self.port, DropReason::Truncated, cut);
            }
        }
        n
    }

    pub fn number(&self) -> u16 {
        self.queue.number()
    }
}

impl RxKind {
    /// Lets what arrives by it end a sleep; whether it will.
    pub fn wake(&mut self, guard: Guard<'_, Workers>, sleeper: &mut Sleeper) -> bool {
        match self {
            RxKind::Eth(q) => q.wake(sleeper),
            RxKind::Packet(q) => {
                q.wake(sleeper);
                true
            }
            RxKind::Tap(q) => {
                q.wake(sleeper);
                true
            }
            RxKind::Vhost(q) => q.wake(guard, sleeper),
        }
    }

    /// After a sleep: it is polled again.
    pub fn poll_again(&self, guard: Guard<'_, Workers>) {
        if let RxKind::Vhost(q) = self {
            q.poll_again(guard);
        }
    }

    pub fn number(&self) -> u16 {
        match self {
            RxKind::Eth(q) => q.number(),
            RxKind::Packet(q) => q.number(),
            RxKind::Tap(q) => q.number(),
            RxKind::Vhost(q) => q.number(),
        }
    }
}

/// A way to send by a port.
pub enum TxHandle {
    /// A queue of the worker's own.
    Eth(port::TxQueue),
    /// One that the device has too few of: workers take turns.
    SharedEth(Arc<Mutex<port::TxQueue>>),
    /// One for what one guest sends; the count is the worker's that has it, and anyone's to read.
    Guest(port::TxQueue, Arc<LoneCount>),
    Packet(packet::PacketTxQueue),
    Tap(tap::TapTxQueue),
    /// A guest's ring, which DPDK locks by itself.
    Vhost(vhost::VhostTxQueue),
}

impl TxHandle {
    fn caps(&self) -> Caps {
        match self {
            TxHandle::Eth(q) | TxHandle::Guest(q, _) => q.caps(),
            TxHandle::SharedEth(q) => q.lock().caps(),
            TxHandle::Packet(q) => q.caps(),
            TxHandle::Tap(q) => q.caps(),
            TxHandle::Vhost(q) => q.caps(),
        }
    }

    #[inline(always)]
    fn transmit<F: Into<Mbuf> + From<Mbuf>, const N: usize>(
        &mut self,
        guard: Guard<'_, Workers>,
        burst: &mut ArrayVec<F, N>,
    ) -> usize {
        match self {
            TxHandle::Eth(q) => q.transmit(burst),
            TxHandle::SharedEth(q) => q.lock().transmit(burst),
            TxHandle::Guest(q, frames) => {
                let sent = q.transmit(burst);
                frames.add(sent as u64);
                sent
            }
            TxHandle::Packet(q) => q.transmit(burst),
            TxHandle::Tap(q) => q.transmit(burst),
            TxHandle::Vhost(q) => q.transmit(guard, burst),
        }
    }
}

struct TxPort {
    /// Ports whose stations send by queues of their own, and those, in the same order.
    guests: Vec<PortIdx>,
    own: Vec<TxPort>,
    waiting: Burst<Packet>,
    /// Of the frames that wait: octets, and all offload requests and segment counts or'ed.
    octets: u64,
    requests: u64,
    segments: u16,
    handle: TxHandle,
}

impl TxPort {
    fn new(handle: TxHandle) -> Self {
        TxPort {
            guests: Vec::new(),
            own: Vec::new(),
            waiting: Burst::new(),
            octets: 0,
            requests: 0,
            segments: 0,
            handle,
        }
    }

    /// The queue for what `from` sends, and its place among guests' own if it is one of them.
    #[inline(always)]
    fn of(&mut self, from: PortIdx) -> (&mut TxPort, Option<u16>) {
        if self.guests.is_empty() { (self, None) } else { self.of_guest(from) }
    }

    #[inline(never)]
    fn of_guest(&mut self, from: PortIdx) -> (&mut TxPort, Option<u16>) {
        match self.guests.iter().position(|g| *g == from) {
            Some(at) => (&mut self.own[at], Some(at as u16)),
            None => (self, None),
        }
    }
}

/// The transmit side of one worker: frames wait here, by port, for the end of the round.
pub struct Transmitter {
    ports: Box<[Option<Box<TxPort>>; MAX_PORTS]>,
    /// Where frames wait: at ports, or at guests' own queues there.
    dirty: Vec<(PortIdx, Option<u16>)>,
    finisher: SoftwareOffload,
    pending: Pending,
}

impl Transmitter {
    pub fn new(finisher: SoftwareOffload) -> Self {
        Transmitter {
            ports: Box::new([const { None }; MAX_PORTS]),
            dirty: Vec::with_capacity(2 * MAX_PORTS),
            finisher,
            pending: Pending::new(),
        }
    }

    /// Sends by `port` through `handle` from now on.
    pub fn add(&mut self, port: PortIdx, handle: TxHandle) {
        self.ports[port.get()] = Some(Box::new(TxPort::new(handle)));
    }

    /// Sends what arrives from `guest` and leaves by `port` through `handle` from now on.
    pub fn add_guest(&mut self, port: PortIdx, guest: PortIdx, handle: TxHandle) {
        if let Some(p) = &mut self.ports[port.get()] {
            p.guests.push(guest);
            p.own.push(TxPort::new(handle));
        }
    }

    /// Gives the guest's handle back. Between rounds nothing waits for it.
    pub fn remove_guest(&mut self, port: PortIdx, guest: PortIdx) -> Option<TxHandle> {
        let p = self.ports[port.get()].as_mut()?;
        let at = p.guests.iter().position(|g| *g == guest)?;
        p.guests.swap_remove(at);
        Some(p.own.swap_remove(at).handle)
    }

    /// Gives the handle back. Between rounds nothing waits for the port; what came from it and waits for something else is
    /// dropped.
    pub fn remove(&mut self, port: PortIdx, shared: &WorkerShared) -> Option<TxHandle> {
        self.pending.forget(port, &shared.counters);
        shared.loop_counts.held.set(self.pending.len() as u64);
        self.ports[port.get()].take().map(|p| p.handle)
    }

    /// When something is to be done for frames that wait, if some do.
    pub fn deadline(&self) -> Option<Duration> {
        self.pending.deadline()
    }

    /// A frame of the switch's own.
    pub fn make(&self, octets: &[u8]) -> Option<Packet> {
        self.finisher.pool().frame(octets).map(Packet)
    }

    /// The transmitter for one round, which `clock` measures.
    #[inline(always)]
    pub fn round<'a>(
        &'a mut self,
        guard: Guard<'a, Workers>,
        shared: &'a WorkerShared,
        clock: Option<&'a StageClock<'a>>,
    ) -> Round<'a> {
        Round { tx: self, guard, shared, clock }
    }
}

/// See [`Transmitter::round`].
pub struct Round<'a> {
    tx: &'a mut Transmitter,
    guard: Guard<'a, Workers>,
    shared: &'a WorkerShared,
    /// Measures, if the round is one of those.
    clock: Option<&'a StageClock<'a>>,
}

impl Transmit<Packet> for Round<'_> {
    #[inline(always)]
    fn transmit(&mut self, port: PortIdx, from: PortIdx, frame: Packet) {
        let Some(p) = &mut self.tx.ports[port.get()] else {
            // The port's policy is there before its device is: down, so hardly anything comes here.
            return drop_frames(&self.shared.counters, port, DropReason::LinkDown, 1);
        };
        let (p, own) = p.of(from);
        if p.waiting.is_empty() {
            self.tx.dirty.push((port, own));
        }
        p.octets += u64::from(frame.0.len());
        p.requests |= frame.0.offload_flags();
        p.segments |= frame.0.segments();
        p.waiting.push(frame);
        if p.waiting.len() == BURST {
            send(p, port, &self.tx.finisher, self.guard, self.shared, self.clock);
        }
    }

    #[inline(always)]
    fn transmit_burst(&mut self, port: PortIdx, from: PortIdx, burst: &mut Burst<Packet>, octets: u64) {
        let n = burst.len();
        let Some(p) = &mut self.tx.ports[port.get()] else {
            burst.clear();
            return drop_frames(&self.shared.counters, port, DropReason::LinkDown, n as u64);
        };
        let (p, own) = p.of(from);
        if p.waiting.is_empty() && n == BURST {
            measured(self.clock, Stage::Emit);
            send_burst(&mut p.handle, burst, octets, port, self.guard, &self.shared.counters);
            return measured(self.clock, Stage::Transmit);
        }
        if p.waiting.len() + n > BURST {
            send(p, port, &self.tx.finisher, self.guard, self.shared, self.clock);
        }
        if p.waiting.is_empty() {
            self.tx.dirty.push((port, own));
        }
        p.octets += octets;
        p.segments |= 1;
        p.waiting.extend(burst.drain(..));
        if p.waiting.is_full() {
            send(p, port, &self.tx.finisher, self.guard, self.shared, self.clock);
        }
    }

    fn make(&mut self, octets: &[u8]) -> Option<Packet> {
        self.tx.make(octets)
    }

    fn finish(&mut self, frame: Packet) -> Result<ArrayVec<Packet, MAX_PIECES>, DropReason> {
        let mut pieces = ArrayVec::new();
        match self.tx.finisher.finish(frame.0, Caps::default(), &mut pieces) {
            Ok(()) => Ok(pieces.into_iter().map(Packet).collect()),
            Err(e) => Err(reason(&e)),
        }
    }
}

impl Events for Round<'_> {
    fn logged(&mut self, event: Logged) {
        self.shared.logged(event);
    }

    fn learned(&mut self, event: MacLearned) {
        self.shared.learned(event);
    }

    fn leased(&mut self) {
        self.shared.leased();
    }
}

impl Punt<Packet> for Round<'_> {
    fn local(&mut self, vtep: PortIdx, from: PortIdx, frame: Packet) -> bool {
        self.shared.punted.punt(Cause::Vtep(vtep, from), &frame.0)
    }

    fn too_big(&mut self, remote: PortIdx, inside: (VlanTagInfo, SegmentId), frame: &Packet, l3: usize, mtu: u32) {
        // Counted as dropped already; a sender that is not notified of one is of the next.
        let _ = self.shared.punted.punt(Cause::TooBig { remote, inside, l3, mtu }, &frame.0);
    }

    fn answer_inside(&mut self, port: PortIdx, inside: (VlanTagInfo, SegmentId), frame: Packet) {
        // Nothing is lost but an answer.
        let _ = self.shared.punted.punt(Cause::Reject { port, inside }, &frame.0);
    }

    fn hold(&mut self, remote: PortIdx, inside: Inside, frame: Packet) -> Result<(), Packet> {
        self.tx.pending.for_remote(remote, inside, frame)?;
        self.shared.loop_counts.held.set(self.tx.pending.len() as u64);
        Ok(())
    }

    fn hold_fragment(
        &mut self,
        from: (PortIdx, Option<Inside>),
        datagram: Datagram,
        frame: Packet,
    ) -> Result<(), Packet> {
        self.tx.pending.fragment(from, datagram, frame)?;
        self.shared.loop_counts.held.set(self.tx.pending.len() as u64);
        Ok(())
    }
}

impl Round<'_> {
    /// Whether frames wait for something.
    #[inline(always)]
    pub fn has_pending(&self) -> bool {
        !self.tx.pending.is_empty()
    }

    /// Takes frames that may go on: see [`Pending`].
    pub fn take_pending(&mut self, cx: &Context<'_>) -> (Vec<ForRemote>, Vec<Fragment>) {
        let (pending, counters) = (&mut self.tx.pending, &self.shared.counters);
        let is_known = |remote| cx.snapshot.port(remote).is_none_or(|p| p.role.is_reached());
        let for_remotes = pending.take_for_remotes(is_known, counters);
        let has_come = |datagram| cx.sessions.has_first(datagram, cx.now.s);
        let fragments = pending.take_fragments(cx.sessions.first_fragments(), has_come, counters);
        self.shared.loop_counts.held.set(pending.len() as u64);
        (for_remotes, fragments)
    }

    /// See [`Pending::again`].
    pub fn try_again(&mut self, since: Option<Instant>) {
        self.tx.pending.again = since;
    }

    /// See [`Pending::give_back`].
    pub fn give_back(&mut self, for_remotes: Vec<ForRemote>, fragments: Vec<Fragment>) {
        self.tx.pending.give_back(for_remotes, fragments);
    }

    /// Sends all that waits.
    #[inline(always)]
    pub fn flush(&mut self) {
        for (port, own) in self.tx.dirty.drain(..) {
            let Some(p) = &mut self.tx.ports[port.get()] else { continue };
            let queue = match own {
                Some(at) => p.own.get_mut(usize::from(at)),
                None => Some(&mut **p),
            };
            if let Some(p) = queue {
                send(p, port, &self.tx.finisher, self.guard, self.shared, self.clock);
            }
        }
    }
}

fn drop_frames(counters: &Counters, port: PortIdx, reason: DropReason, n: u64) {
    counters.port(port).drops[reason as usize].add(n);
}

/// What was done since the stage before ended was this one.
#[inline(always)]
fn measured(clock: Option<&StageClock<'_>>, stage: Stage) {
    if let Some(clock) = clock {
        clock.end(stage);
    }
}

#[inline(always)]
fn send(
    p: &mut TxPort,
    port: PortIdx,
    finisher: &SoftwareOffload,
    guard: Guard<'_, Workers>,
    shared: &WorkerShared,
    clock: Option<&StageClock<'_>>,
) {
    if p.waiting.is_empty() {
        return;
    }
    measured(clock, Stage::Emit);
    send_waiting(p, port, finisher, guard, &shared.counters);
    measured(clock, Stage::Transmit);
}

#[inline(always)]
fn send_waiting(
    p: &mut TxPort,
    port: PortIdx,
    finisher: &SoftwareOffload,
    guard: Guard<'_, Workers>,
    counters: &Counters,
) {
    let (octets, requests) = (std::mem::take(&mut p.octets), std::mem::take(&mut p.requests));
    let segments = std::mem::take(&mut p.segments);
    if requests != 0 || segments != 1 {
        let caps = p.handle.caps();
        if p.waiting.iter().any(|m| needs_finish(caps, m.0.offload_flags(), m.0.segments())) {
            return send_finished(p, port, caps, finisher, guard, counters);
        }
    }
    send_burst(&mut p.handle, &mut p.waiting, octets, port, guard, counters);
}

/// Sends a burst of so many octets, counts what went and drops what did not.
#[inline(always)]
fn send_burst<F: Into<Mbuf> + From<Mbuf> + AsMbuf, const N: usize>(
    handle: &mut TxHandle,
    burst: &mut ArrayVec<F, N>,
    octets: u64,
    port: PortIdx,
    guard: Guard<'_, Workers>,
    counters: &Counters,
) {
    let sent = handle.transmit(guard, burst) as u64;
    let c = counters.port(port);
    c.tx_frames.add(sent);
    if burst.is_empty() {
        c.tx_bytes.add(octets);
    } else {
        // Counted when taken, and never more: a counter that goes back looks like a restart to its readers.
        let rest = octets_of(burst);
        c.tx_bytes.add(octets - rest);
        send_rest(handle, burst, rest, port, guard, counters);
    }
}

/// What was not sent at once: some devices take 64 at most. When none is taken, the first may be one that the device never
/// takes: it alone is dropped, and the rest tried again; all are, if none is taken then either.
#[inline(never)]
fn send_rest<F: Into<Mbuf> + From<Mbuf> + AsMbuf, const N: usize>(
    handle: &mut TxHandle,
    burst: &mut ArrayVec<F, N>,
    mut octets: u64,
    port: PortIdx,
    guard: Guard<'_, Workers>,
    counters: &Counters,
) {
    let c = counters.port(port);
    let mut is_stuck = false;
    while !burst.is_empty() {
        let sent = handle.transmit(guard, burst);
        c.tx_frames.add(sent as u64);
        if sent > 0 {
            let rest = octets_of(burst);
            c.tx_bytes.add(octets - rest);
            octets = rest;
            is_stuck = false;
            continue;
        }
        let gone = if is_stuck { burst.len() } else { 1 };
        octets -= burst.drain(..gone).map(|m| u64::from(m.as_mbuf().len())).sum::<u64>();
        drop_frames(counters, port, DropReason::TxFull, gone as u64);
        is_stuck = true;
    }
}

fn octets_of<F: AsMbuf>(burst: &[F]) -> u64 {
    burst.iter().map(|m| u64::from(m.as_mbuf().len())).sum()
}

trait AsMbuf {
    fn as_mbuf(&self) -> &Mbuf;
}

impl AsMbuf for Packet {
    #[inline(always)]
    fn as_mbuf(&self) -> &Mbuf {
        &self.0
    }
}

impl AsMbuf for Mbuf {
    #[inline(always)]
    fn as_mbuf(&self) -> &Mbuf {
        self
    }
}

/// The slow way: at least one frame asks for what the port can't do. Order is kept.
#[inline(never)]
fn send_finished(
    p: &mut TxPort,
    port: PortIdx,
    caps: Caps,
    finisher: &SoftwareOffload,
    guard: Guard<'_, Workers>,
    counters: &Counters,
) {
    let TxPort { handle, waiting, .. } = p;
    for packet in waiting.drain(..) {
        let mut out = ArrayVec::<Mbuf, MAX_SEGMENTS>::new();
        match finisher.finish(packet.0, caps, &mut out) {
            Ok(()) => {
                counters.port(port).clones.add(out.len() as u64 - 1);
                let octets = out.iter().map(|m| u64::from(m.len())).sum();
                send_burst(handle, &mut out, octets, port, guard, counters);
            }
            Err(e) => drop_frames(counters, port, reason(&e), 1),
        }
    }
}

fn reason(unfinished: &OffloadError) -> DropReason {
    match unfinished {
        OffloadError::NoBuffer => DropReason::NoBuffer,
        OffloadError::BadRequest => DropReason::BadOffload,
    }
}
