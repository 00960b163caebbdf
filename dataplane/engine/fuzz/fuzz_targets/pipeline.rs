//! Any octets as frames, through every VLAN mode: `make fuzz`.

#![no_main]

#[path = "../one_input.rs"]
mod one_input;

libfuzzer_sys::fuzz_target!(|input: &[u8]| one_input::run(input));
