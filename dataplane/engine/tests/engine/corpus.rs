//! Replays the fuzzers' corpora, and what they found before.

#[path = "../../fuzz/headers_input.rs"]
mod headers_input;
#[path = "../../fuzz/one_input.rs"]
mod one_input;

use proptest::prelude::*;

fn replay(target: &str, least: usize, run: impl Fn(&[u8])) {
    let folder = format!("{}/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
    let mut inputs = 0;
    for file in std::fs::read_dir(&folder).expect("the corpus is committed") {
        run(&std::fs::read(file.unwrap().path()).unwrap());
        inputs += 1;
    }
    assert!(inputs >= least, "{inputs} inputs in {folder}");
}

#[test]
fn the_corpus_passes() {
    replay("pipeline", 6, one_input::run);
}

#[test]
fn the_corpus_of_headers_passes() {
    replay("headers", 4, headers_input::run);
}

/// Beginnings that lead somewhere: tags, IPv4 with options and fragments, IPv6 with extension headers.
fn beginning() -> impl Strategy<Value = Vec<u8>> {
    let v4 = (
        0x44u8..=0x4f,
        any::<u16>(),
        prop_oneof![Just(0u16), any::<u16>()],
        prop_oneof![Just(6u8), Just(17), Just(1), any::<u8>()],
    )
        .prop_map(|(ihl, total, fragment, protocol)| {
            let ([t0, t1], [f0, f1]) = ((total & 0x7f).to_be_bytes(), fragment.to_be_bytes());
            vec![8, 0, ihl, 0, t0, t1, 0, 1, f0, f1, 64, protocol, 0, 0]
        });
    let next = prop_oneof![Just(0u8), Just(43), Just(44), Just(51), Just(60), Just(58), Just(6), any::<u8>()];
    let v6 = (0u8..200, next).prop_map(|(len, next)| {
        let mut f = vec![0x86, 0xdd, 0x60, 0, 0, 0, 0, len, next, 64];
        f.extend([7; 32]);
        f
    });
    let tags = proptest::collection::vec(Just([0x81u8, 0, 0, 0]), 0..3);
    (tags, prop_oneof![v4, v6]).prop_map(|(tags, rest)| [tags.concat(), rest].concat())
}

proptest! {
    #[test]
    fn any_headers_are_read_alike_in_all_lengths(
        begin in beginning(),
        rest in proptest::collection::vec(prop_oneof![0u8..3, Just(44u8), Just(60), any::<u8>()], 0..120),
    ) {
        headers_input::run(&[begin, rest].concat());
    }
}
