//! Any bytes as a frame: a frame of this version has one encoding; a frozen one of another version is read
//! as what it would be in this one.
#![no_main]

use edge_proto::frame::Frame;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(frame) = Frame::decode(bytes) {
        let ours = frame.encode();
        assert!(ours[0] != bytes[0] || ours == bytes);
        assert!(Frame::decode(&ours) == Ok(frame));
    }
});
