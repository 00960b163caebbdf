//! One fuzz input of the header reader: a frame behind its addresses. What a shorter part of it says must be
//! what the whole says, or less.

use dunlin_engine::{MacAddr, packet::headers::Headers};

/// Reads one input in all its lengths.
pub fn run(input: &[u8]) {
    let frame = [&[0; 12][..], &input[..input.len().min(512)]].concat();
    let read = |octets: &[u8]| Headers::read(octets, 14, 0, MacAddr::default(), MacAddr::default());
    let whole = read(&frame);
    for n in 0..frame.len() {
        let part = read(&frame[..n]);
        if let Some(ports) = part.ports() {
            assert_eq!(Some(ports), whole.ports(), "cut to {n} octets");
            assert_eq!((part.protocol(), part.addresses()), (whole.protocol(), whole.addresses()), "cut to {n} octets");
        }
        if part.addresses().is_some() {
            assert_eq!(part.addresses(), whole.addresses(), "cut to {n} octets");
        }
    }
}
