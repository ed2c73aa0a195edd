//! Any bytes as the two messages of an enrolment, as a token and as a URL: what decodes must encode again
//! to the same bytes.
#![no_main]

use edge_proto::enrol::{Endpoint, EnrolRequest, JoinAnswer, JoinRequest, Token};
use edge_proto::wire::Wire as _;
use libfuzzer_sys::fuzz_target;

macro_rules! check {
    ($bytes:expr, $($message:ty),*) => {
        $(if let Some(message) = <$message>::from_wire($bytes) {
            // Each message has exactly one encoding.
            assert!(message.to_wire() == $bytes);
        })*
    };
}

fuzz_target!(|bytes: &[u8]| {
    check!(bytes, JoinAnswer, JoinRequest);
    match EnrolRequest::decode(bytes) {
        Some(EnrolRequest::Renew(request)) => assert!(request.encode() == bytes),
        // A join must not be confused with a renewal.
        Some(EnrolRequest::Join(request)) => assert!(!request.token_id.is_empty()),
        None => {}
    }
    if let Ok(text) = core::str::from_utf8(bytes) {
        if let Some(token) = Token::parse(text) {
            assert!(token.to_string() == text);
        }
        if let Some(end) = Endpoint::parse(text) {
            assert!(!end.host.is_empty() && !end.host.contains('/'));
        }
    }
});
