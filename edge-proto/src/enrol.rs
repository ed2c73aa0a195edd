//! Enrolment: one request and one answer over TLS with ALPN [`ALPN_JOIN`], then close. Each is
//! one postcard message of at most [`crate::limits::ENROL_BYTES_MAX`] bytes behind its length as
//! u16 big-endian. Behind an external broker the same two messages also travel as the bodies of
//! an HTTPS request to [`HTTP_PATH`] and of its answer.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

/// ALPN of enrolment. The client shows no certificate; it checks the server's chain against the
/// CA hash in the token.
pub const ALPN_JOIN: &[u8] = b"edge-join/1";
/// ALPN of the link. The client certificate is required.
pub const ALPN_MQTT: &[u8] = b"mqtt";
/// ALPN of enrolment by HTTPS.
pub const ALPN_HTTP: &[u8] = b"http/1.1";
/// Where a join is posted to.
pub const HTTP_PATH: &str = "/v1/join";

/// Where a URL leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `https://` instead of `mqtts://`.
    pub https: bool,
    /// Name or address, without the brackets of IPv6.
    pub host: String,
    /// Port; 8883 or 443 when the URL has none.
    pub port: u16,
}

impl Endpoint {
    /// Reads `mqtts://HOST[:PORT]` or `https://HOST[:PORT]`.
    #[must_use]
    pub fn parse(url: &str) -> Option<Self> {
        let (https, rest) = match url.strip_prefix("mqtts://") {
            Some(rest) => (false, rest),
            None => (true, url.strip_prefix("https://")?),
        };
        let rest = rest.trim_end_matches('/');
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && !port.contains(']') => {
                (host, port.parse().ok()?)
            }
            _ => (rest, if https { 443 } else { 8883 }),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        (!host.is_empty() && !host.contains('/')).then(|| Self {
            https,
            host: String::from(host),
            port,
        })
    }
}

/// The external broker that carries the links.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Broker {
    /// `mqtts://HOST[:PORT]`.
    pub url: String,
    /// The CAs against which its certificate is checked, DER; empty: the one of the answer.
    pub anchors: Vec<Vec<u8>>,
}

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
    /// Accepted; the link goes to an external broker.
    Behind {
        /// The node's certificate, DER.
        certificate: Vec<u8>,
        /// The CA, DER.
        ca: Vec<u8>,
        /// Cloud time, seconds since 1970.
        unix_s: u64,
        /// The broker.
        broker: Broker,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_host_and_port_or_are_refused() {
        for (url, https, host, port) in [
            ("mqtts://a.b:1", false, "a.b", 1),
            ("mqtts://a.b", false, "a.b", 8883),
            ("mqtts://[::1]:9", false, "::1", 9),
            ("mqtts://[::1]", false, "::1", 8883),
            ("https://a.b:1/", true, "a.b", 1),
            ("https://a.b", true, "a.b", 443),
        ] {
            let host = String::from(host);
            let wanted = Endpoint { https, host, port };
            assert_eq!(Endpoint::parse(url), Some(wanted), "{url}");
        }
        for wrong in [
            "mqtt://a",
            "http://a",
            "mqtts://",
            "mqtts://a:x",
            "mqtts://a:70000",
            "https://a/b",
            "",
        ] {
            assert_eq!(Endpoint::parse(wrong), None, "{wrong}");
        }
    }
}
