//! Nothing on the way of a frame allocates, in any scenario that is measured.

#[path = "../../benches/scenario/mod.rs"]
mod scenario;

use scenario::{Kind, Scenario};

#[test]
fn no_burst_allocates() {
    for (name, kind) in Kind::ALL {
        let mut s = Scenario::new(kind, 1_000);
        let before = s.sink.frames;
        let counted = allocation_counter::measure(|| (0..1_000).for_each(|_| s.run()));
        assert_eq!(counted.count_total, 0, "{name}");
        assert!(s.sink.frames >= before + 1_000 * dunlin_engine::BURST as u64, "{name}: every frame leaves");
    }
}
