//! Any bytes as a frame: a frame of this version has one encoding; a frozen frame of another version is
//! decoded as the same frame of this version.
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
