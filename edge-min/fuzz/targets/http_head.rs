//! Bytes as a request of the local API: read or refused, the same for any split of them.
#![no_main]

use edge_min::local::http::{HEAD_BYTES_MAX, Parsed, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    match parse(data) {
        Parsed::Whole(head, length) => {
            assert!(length <= data.len() && length <= HEAD_BYTES_MAX + 4);
            assert!(head.key.len() <= 64);
            // Bytes after the head do not change it, and fewer are not a head.
            assert_eq!(parse(&data[..length]), parse(data));
            assert!(!matches!(parse(&data[..length - 1]), Parsed::Whole(..)));
        }
        Parsed::Partial => assert!(data.len() <= HEAD_BYTES_MAX),
        Parsed::Bad(status) => assert!(status.starts_with(['4', '5'])),
    }
});
