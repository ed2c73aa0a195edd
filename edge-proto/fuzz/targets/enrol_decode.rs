//! Any bytes as the two messages of an enrolment, and as a URL: what decodes must encode and decode
//! to the same.
#![no_main]

use edge_proto::enrol::{Endpoint, EnrolRequest, JoinAnswer, JoinRequest};
use libfuzzer_sys::fuzz_target;

macro_rules! check {
    ($bytes:expr, $($message:ty),*) => {
        $(if let Ok(message) = postcard::from_bytes::<$message>($bytes) {
            let again = postcard::from_bytes(&edge_proto::encode(&message));
            assert!(again == Ok(message));
        })*
    };
}

fuzz_target!(|bytes: &[u8]| {
    check!(bytes, JoinAnswer, JoinRequest);
    match EnrolRequest::decode(bytes) {
        Some(EnrolRequest::Renew(request)) => {
            let again = EnrolRequest::decode(&request.encode());
            assert!(again == Some(EnrolRequest::Renew(request)));
        }
        // No join begins as a renewal does.
        Some(EnrolRequest::Join(request)) => assert!(!request.token_id.is_empty()),
        None => {}
    }
    if let Ok(text) = core::str::from_utf8(bytes) {
        if let Some(end) = Endpoint::parse(text) {
            assert!(!end.host.is_empty() && !end.host.contains('/'));
        }
    }
});
