//! Any octets as headers: IPv4 with options, IPv6 with extension headers, fragments, tags: `make fuzz`.

#![no_main]

#[path = "../headers_input.rs"]
mod headers_input;

libfuzzer_sys::fuzz_target!(|input: &[u8]| headers_input::run(input));
