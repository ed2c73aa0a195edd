//! Any bytes as a frame: what decodes must encode and decode to the same.
#![no_main]

use edge_proto::frame::Frame;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(frame) = Frame::decode(bytes) {
        assert!(Frame::decode(&frame.encode()) == Ok(frame));
    }
});
