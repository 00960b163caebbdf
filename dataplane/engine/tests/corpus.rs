//! Replays the fuzzer's corpus, and what it found before.

#[path = "../fuzz/one_input.rs"]
mod one_input;

#[test]
fn the_corpus_passes() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/pipeline");
    let mut inputs = 0;
    for file in std::fs::read_dir(folder).expect("the corpus is committed") {
        one_input::run(&std::fs::read(file.unwrap().path()).unwrap());
        inputs += 1;
    }
    assert!(inputs >= 6, "{inputs} inputs in {folder}");
}
