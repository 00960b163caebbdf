//! Runs so many bursts of one scenario, for callgrind to count: `bench/instructions.py` takes the
//! difference of two runs, so that start-up does not count.
//!
//! usage: instructions SCENARIO PAIRS BURSTS

mod scenario;

use scenario::{Kind, Scenario};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let usage = "usage: instructions SCENARIO PAIRS BURSTS";
    let [name, pairs, bursts] = args.as_slice() else { return eprintln!("{usage}") };
    let kind = Kind::ALL.iter().find(|(n, _)| n == name).expect(usage).1;
    let mut s = Scenario::new(kind, pairs.parse().expect(usage));
    let bursts: u64 = bursts.parse().expect(usage);
    let begun = std::time::Instant::now();
    for _ in 0..bursts {
        s.run();
    }
    println!(
        "{} frames left, {:.2} ns a frame received",
        s.sink.frames,
        begun.elapsed().as_nanos() as f64 / (bursts * dunlin_engine::BURST as u64) as f64
    );
}
