//! Enrolment: one request and one answer over TLS with ALPN [`ALPN_JOIN`], then close. Each is
//! one postcard message of at most [`crate::limits::ENROL_BYTES_MAX`] bytes behind its length as
//! u16 big-endian.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

/// ALPN of enrolment. The client shows no certificate; it checks the server's chain against the
/// CA hash in the token.
pub const ALPN_JOIN: &[u8] = b"edge-join/1";
/// ALPN of the link. The client certificate is required.
pub const ALPN_MQTT: &[u8] = b"mqtt";

/// What a node asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// Id of the token.
    pub token_id: String,
    /// Secret of the token. Never logged.
    pub token_secret: String,
    /// Wanted node name.
    pub node: String,
    /// PKCS#10 request, DER, signed with the node's new key.
    pub csr: Vec<u8>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinAnswer {
    /// Accepted.
    Accepted {
        /// The node's certificate, DER.
        certificate: Vec<u8>,
        /// The CA, DER.
        ca: Vec<u8>,
        /// Cloud time, seconds since 1970.
        unix_s: u64,
    },
    /// Refused, with a reason for a person.
    Refused(String),
}
