//! Nanoseconds for a burst of 128 frames through the engine, by scenario and address pairs:
//! `cargo bench -p dunlin-engine --bench burst`.

mod scenario;

use divan::{Bencher, counter::ItemsCount};
use dunlin_engine::BURST;
use scenario::{Kind, Scenario};

fn main() {
    divan::main();
}

fn measure(bencher: Bencher<'_, '_>, kind: Kind, pairs: u32) {
    let mut s = Scenario::new(kind, pairs);
    bencher.counter(ItemsCount::new(BURST)).bench_local(|| s.run());
}

#[divan::bench(args = [1, 1_000, 100_000, 500_000])]
fn forward(bencher: Bencher<'_, '_>, pairs: u32) {
    measure(bencher, Kind::Forward, pairs);
}

#[divan::bench(args = [1, 1_000, 100_000])]
fn trunk_to_access(bencher: Bencher<'_, '_>, pairs: u32) {
    measure(bencher, Kind::TrunkToAccess, pairs);
}

#[divan::bench(args = [1_000, 100_000])]
fn spread(bencher: Bencher<'_, '_>, pairs: u32) {
    measure(bencher, Kind::Spread, pairs);
}

#[divan::bench(args = [8])]
fn flood(bencher: Bencher<'_, '_>, pairs: u32) {
    measure(bencher, Kind::Flood, pairs);
}
