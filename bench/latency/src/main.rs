//! Two guests on one thread, for the latency scenario of `bench/run.py`: one sends frames at a steady
//! rate, the other sends each back, and the first notes how long each took there and back.
//!
//! It serves a vhost-user socket for each guest (a virtio-user device of DPDK's), looks for the
//! highest rate without a lost frame (RFC 2544, 26.1), and prints round trips at shares of it as
//! one line of JSON. A frame's time is from the call that sends it to the call that receives it.

use arrayvec::ArrayVec;
use clap::Parser;
use dunlin_dpdk::{
    Mbuf,
    eal::{Eal, EalConfig, tsc, tsc_hz},
    mempool::{Mempool, STANDARD_ROOM},
    port::{EthPort, Queues, RxQueue, Setup, TxQueue},
    steering::HashFields,
    thread::WorkerThread,
};

/// Where the time of sending stands in a frame.
const STAMP: std::ops::Range<usize> = 14..22;
const SIZE: usize = 60;
const ADDRESSES: [[u8; 6]; 2] = [[0x52, 0x54, 0, 0, 0, 1], [0x52, 0x54, 0, 0, 0, 2]];
/// Time for the last frames to come back.
const DRAIN_S: f64 = 0.05;
/// A machine that does other things too may drop a frame now and then: as often is a rate tried.
const TRIES: usize = 3;

type Burst = ArrayVec<Mbuf, 32>;

#[derive(Parser)]
#[command(about = "Two guests that measure how long frames take through a switch and back")]
struct Args {
    /// The socket to serve for the guest that sends
    #[arg(long)]
    near: String,
    /// The socket to serve for the guest that sends back
    #[arg(long)]
    far: String,
    /// The core to run on
    #[arg(long)]
    core: usize,
    /// Seconds of a measurement; the search for the highest rate tries for a quarter of it each time
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Shares of the highest rate, in percent
    #[arg(long, value_delimiter = ',', default_value = "10,50,90")]
    loads: Vec<f64>,
}

#[derive(serde::Serialize)]
struct Report {
    lossless_fps: f64,
    loads: Vec<Load>,
}

#[derive(serde::Serialize)]
struct Load {
    percent: f64,
    fps: f64,
    sent: u64,
    lost: u64,
    p50_us: f64,
    p99_us: f64,
    p99_9_us: f64,
}

struct Guest {
    rx: RxQueue,
    tx: TxQueue,
    _port: EthPort,
}

struct Bench {
    pool: Mempool,
    hz: f64,
    near: Guest,
    far: Guest,
}

/// What came of sending at one rate.
struct Trial {
    sent: u64,
    /// Round trips in ticks, in no order.
    trips: Vec<u64>,
}

impl Trial {
    fn lost(&self) -> u64 {
        self.sent - self.trips.len() as u64
    }
}

impl Bench {
    /// Sends `fps` frames a second for `seconds`.
    fn trial(&mut self, fps: f64, seconds: f64) -> Trial {
        let wanted = (fps * seconds) as u64;
        let interval = self.hz / fps;
        let mut t = Trial { sent: 0, trips: Vec::with_capacity(wanted as usize) };
        let (mut out, mut back, mut home) = (Burst::new(), Burst::new(), Burst::new());
        let began = tsc();
        let end = began + ((seconds + DRAIN_S) * self.hz) as u64;
        loop {
            let now = tsc();
            let due = (((now - began) as f64 / interval) as u64 + 1).min(wanted);
            while t.sent < due && !out.is_full() {
                // A frame that can't be made or sent is lost as one that the switch drops.
                t.sent += 1;
                out.extend(self.pool.frame(&frame(1, 0, now)));
            }
            self.near.tx.transmit(&mut out);
            out.clear();
            self.far.rx.receive(&mut back);
            back.iter_mut().for_each(|m| m.head_mut()[..12].rotate_left(6));
            self.far.tx.transmit(&mut back);
            back.clear();
            self.near.rx.receive(&mut home);
            let now = tsc();
            t.trips.extend(home.drain(..).filter_map(|m| Some(now - stamp(m.head())?)));
            if now > end || t.trips.len() as u64 == wanted {
                return t;
            }
        }
    }

    fn is_lossless(&mut self, fps: f64, seconds: f64) -> bool {
        (0..TRIES).any(|_| self.trial(fps, seconds).lost() == 0)
    }

    /// The highest rate without loss, to about 2 %.
    fn lossless(&mut self, seconds: f64) -> anyhow::Result<f64> {
        let (mut good, mut bad) = (0.0, 10_000.0);
        while self.is_lossless(bad, seconds) {
            (good, bad) = (bad, bad * 1.5);
        }
        anyhow::ensure!(good > 0.0, "frames are lost at 10,000 a second already");
        while bad / good > 1.02 {
            let middle = (good + bad) / 2.0;
            if self.is_lossless(middle, seconds) { good = middle } else { bad = middle }
        }
        Ok(good)
    }

    fn load(&mut self, percent: f64, fps: f64, seconds: f64) -> Load {
        let mut t = self.trial(fps, seconds);
        t.trips.sort_unstable();
        let at = |share: f64| match t.trips.len() {
            0 => 0.0,
            n => t.trips[((n as f64 * share) as usize).min(n - 1)] as f64 / self.hz * 1e6,
        };
        Load { percent, fps, sent: t.sent, lost: t.lost(), p50_us: at(0.5), p99_us: at(0.99), p99_9_us: at(0.999) }
    }

    /// Lets the switch learn both guests.
    fn greet(&mut self) {
        for (guest, to, from) in [(&mut self.far, 0, 1), (&mut self.near, 1, 0)] {
            let mut burst: Burst = self.pool.frame(&frame(to, from, 0)).into_iter().collect();
            guest.tx.transmit(&mut burst);
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        let mut rest = Burst::new();
        for guest in [&mut self.near, &mut self.far] {
            while guest.rx.receive(&mut rest) > 0 {
                rest.clear();
            }
        }
    }
}

/// A frame of a local experimental EtherType (IEEE 802) with the time in it.
fn frame(to: usize, from: usize, time: u64) -> [u8; SIZE] {
    let mut f = [0; SIZE];
    f[..6].copy_from_slice(&ADDRESSES[to]);
    f[6..12].copy_from_slice(&ADDRESSES[from]);
    f[12..14].copy_from_slice(&0x88b5u16.to_be_bytes());
    f[STAMP].copy_from_slice(&time.to_be_bytes());
    f
}

/// The time in a frame; `None` if it is no measured one.
fn stamp(octets: &[u8]) -> Option<u64> {
    let time = u64::from_be_bytes(octets.get(STAMP)?.try_into().ok()?);
    (time > 0 && octets.get(12..14)? == 0x88b5u16.to_be_bytes()).then_some(time)
}

/// Serves a socket, and waits until a switch has connected.
fn guest(eal: &Eal, pool: &Mempool, number: usize, socket: &str) -> anyhow::Result<Guest> {
    let mac = ADDRESSES[number].map(|o| format!("{o:02x}")).join(":");
    let args = format!("net_virtio_user{number},path={socket},server=1,queues=1,queue_size=1024,mac={mac}");
    let mut port = EthPort::attach(eal, &args)?;
    let hash = HashFields::DEFAULT;
    let setup = Setup { rx_queues: 1, tx_queues: 1, guest_queues: 0, mtu: 1500, device_mtu: false, hash, pool };
    let Queues { rx, tx, .. } = port.start(&setup)?;
    let one = |n: Option<_>| n.ok_or_else(|| anyhow::anyhow!("no queue"));
    Ok(Guest { rx: one(rx.into_iter().next())?, tx: tx.into_iter().next().expect("as many as asked"), _port: port })
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    // Memory in one piece, which a vhost-user back end wants.
    let eal = Eal::init(&EalConfig { memory_mb: 128, hugepages: false })?;
    let pool = Mempool::new(&eal, 16_383, STANDARD_ROOM, None)?;
    let near = guest(&eal, &pool, 0, &args.near)?;
    let far = guest(&eal, &pool, 1, &args.far)?;
    let _pinned = WorkerThread::start(&eal, args.core, pool.clone())?;
    let mut bench = Bench { pool, hz: tsc_hz(&eal) as f64, near, far };
    std::thread::sleep(std::time::Duration::from_secs(1));
    bench.greet();
    let lossless_fps = bench.lossless(args.seconds / 4.0)?;
    let loads = args.loads.iter().map(|p| bench.load(*p, lossless_fps * p / 100.0, args.seconds)).collect();
    println!("{}", serde_json::to_string(&Report { lossless_fps, loads })?);
    Ok(())
}
