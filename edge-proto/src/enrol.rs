//! Enrolment: one request and one answer over TLS with ALPN [`ALPN_JOIN`], then close. Each is
//! one message of at most [`crate::limits::ENROL_BYTES_MAX`] bytes behind its length as u16
//! big-endian. Behind an external broker the same two messages also travel as the bodies of
//! an HTTPS request to [`HTTP_PATH`] and of its answer.
//!
//! A node that has a certificate requests its next one in the same way, see [`RenewRequest`].
//!
//! The whole exchange is frozen: an agent of any version can join any edge-cloud. An extension gets a
//! further kind of request or of answer.

use alloc::string::String;
use alloc::vec::Vec;

use crate::wire::{Wire, variants, wire_struct};

/// ALPN of enrolment. The client presents no certificate; it checks the server's chain against the
/// CA hash in the token.
pub const ALPN_JOIN: &[u8] = b"edge-join/1";
/// ALPN of the link. The client certificate is required.
pub const ALPN_MQTT: &[u8] = b"mqtt";
/// ALPN of enrolment by HTTPS.
pub const ALPN_HTTP: &[u8] = b"http/1.1";
/// Path to which a join request is posted.
pub const HTTP_PATH: &str = "/v1/join";

/// Target of a URL: scheme, host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The scheme is `https://` instead of `mqtts://`.
    pub https: bool,
    /// Name or address, without the brackets of IPv6.
    pub host: String,
    /// Port; 8883 or 443 when the URL has none.
    pub port: u16,
}

impl Endpoint {
    /// Reads `mqtts://HOST[:PORT]` or `https://HOST[:PORT]`; `None` for anything else.
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

/// Join token, as parts of its text `em1.ID.SECRET.CA`, 118 characters. Each token has exactly one text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token<'a> {
    /// Identifies the token in the cloud: 16 lower-case hex digits.
    pub id: &'a str,
    /// Proves possession of the token: 32 lower-case hex digits. Never logged.
    pub secret: &'a str,
    /// SHA-256 of the cloud's CA, DER: 64 lower-case hex digits.
    pub ca_sha256: [u8; 32],
}

impl<'a> Token<'a> {
    /// Reads the text, without white space around it. `None` when it is not a token.
    #[must_use]
    pub fn parse(text: &'a str) -> Option<Self> {
        let rest = text.strip_prefix("em1.")?;
        let (id, rest) = rest.split_once('.')?;
        let (secret, ca) = rest.split_once('.')?;
        let is_hex = |text: &str, digits| {
            let digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            text.len() == digits && text.bytes().all(digit)
        };
        if !is_hex(id, 16) || !is_hex(secret, 32) || !is_hex(ca, 64) {
            return None;
        }
        let mut ca_sha256 = [0; 32];
        for (byte, digits) in ca_sha256.iter_mut().zip(ca.as_bytes().chunks(2)) {
            let digits = core::str::from_utf8(digits).ok()?;
            *byte = u8::from_str_radix(digits, 16).ok()?;
        }
        Some(Self {
            id,
            secret,
            ca_sha256,
        })
    }
}

/// Writes the 118 characters, the secret included.
impl core::fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let ca = crate::hash::Hash32(self.ca_sha256);
        write!(f, "em1.{}.{}.{ca}", self.id, self.secret)
    }
}

/// External broker that carries the links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    /// `mqtts://HOST[:PORT]`.
    pub url: String,
    /// CAs that sign the broker's server certificate, DER; empty: the CA in the answer.
    pub anchors: Vec<Vec<u8>>,
}

/// First request of a node: a token, and a key for which it wants a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinRequest {
    /// Public part of the token, see [`Token::id`].
    pub token_id: String,
    /// Secret of the token. Never logged.
    pub token_secret: String,
    /// Node name for the certificate.
    pub node: String,
    /// PKCS#10 request, DER, signed with the node's new key.
    pub csr: Vec<u8>,
}

/// Domain separation: prefix of what [`RenewRequest::signed`] returns. The old key signs nothing else with
/// it.
pub const RENEW_DOMAIN: &[u8] = b"edge-min renew 1\0";
/// How far NotBefore of a node's certificate lies before its issue, seconds: ten years. A broker whose
/// clock was reset still accepts it, and both ends can compute the exact time of issue.
pub const BACKDATE_S: u64 = 10 * 365 * 24 * 3600;
/// Lifetime that is assumed when NotBefore does not determine it, seconds: a year.
pub const LIFETIME_S_DEFAULT: u64 = 365 * 24 * 3600;

/// Time of issue, computed from a certificate's validity. All values are seconds since 1970.
#[must_use]
pub fn issued_unix_s(not_before: i64, not_after: u64) -> u64 {
    let backdate = i64::try_from(BACKDATE_S).unwrap_or(i64::MAX);
    match u64::try_from(not_before.saturating_add(backdate)) {
        Ok(issued) if issued < not_after => issued,
        _ => not_after.saturating_sub(LIFETIME_S_DEFAULT),
    }
}

/// Requests the next certificate; authenticated by the old one, which may have expired, instead of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenewRequest {
    /// SHA-256 of the CA (DER) that the node trusts: a request is valid for one cloud only.
    pub ca_sha256: [u8; 32],
    /// The node's current certificate, DER.
    pub certificate: Vec<u8>,
    /// PKCS#10 request, DER, signed with the node's new key.
    pub csr: Vec<u8>,
    /// ECDSA signature (P-256, SHA-256, ASN.1) of [`Self::signed`] by the key of `certificate`.
    pub signature: Vec<u8>,
}

impl RenewRequest {
    /// Bytes that the old key signs: [`RENEW_DOMAIN`], the hash of the CA, the SHA-256 of the old
    /// certificate and the SHA-256 of the request.
    #[must_use]
    pub fn signed(ca_sha256: &[u8; 32], certificate: &[u8], csr: &[u8]) -> Vec<u8> {
        let mut bytes = RENEW_DOMAIN.to_vec();
        bytes.extend(ca_sha256);
        bytes.extend(crate::hash::sha256(certificate).0);
        bytes.extend(crate::hash::sha256(csr).0);
        bytes
    }

    /// Encodes the message: 0, the number of this kind of request, then the request. The first byte of a
    /// join is the length of its token id and never 0, which distinguishes the two.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::from([0, RENEW]);
        self.put(&mut bytes);
        bytes
    }
}

/// Number of [`RenewRequest`] among the requests without a token.
const RENEW: u8 = 0;

/// Request of either kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnrolRequest {
    /// Authenticated by a token.
    Join(JoinRequest),
    /// Authenticated by the current certificate.
    Renew(RenewRequest),
}

impl EnrolRequest {
    /// Decodes a message; `None` when it is malformed, or of a kind that this build does not know.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0, RENEW, rest @ ..] => RenewRequest::from_wire(rest).map(Self::Renew),
            // A token id is never empty.
            [0, ..] => None,
            bytes => JoinRequest::from_wire(bytes).map(Self::Join),
        }
    }
}

wire_struct! {
    Broker { url, anchors }
    JoinRequest { token_id, token_secret, node, csr }
    RenewRequest { ca_sha256, certificate, csr, signature }
}

variants! {
    /// Answer to an [`EnrolRequest`].
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum JoinAnswer
    /// Numbers of the answers.
    numbered by JoinAnswerKind {
        /// The certificate is issued; there is one CA, and the link goes to edge-cloud itself.
        0 = Accepted {
            /// The node's certificate, DER.
            certificate: Vec<u8>,
            /// The CA, DER.
            ca: Vec<u8>,
            /// Cloud time, seconds since 1970.
            unix_s: u64,
        },
        /// No certificate is issued.
        1 = Refused {
            /// Human-readable explanation.
            reason: String,
        },
        /// The certificate is issued; the link goes to an external broker.
        2 = ExternalBroker {
            /// The node's certificate, DER.
            certificate: Vec<u8>,
            /// The CA, DER.
            ca: Vec<u8>,
            /// Cloud time, seconds since 1970.
            unix_s: u64,
            /// Where the node connects for its link.
            broker: Broker,
        },
        /// The certificate is issued, with all current CAs of the cloud. Every renewal gets this answer; a
        /// join gets it while there are two CAs.
        3 = Issued {
            /// The node's certificate, DER.
            certificate: Vec<u8>,
            /// CAs, DER, the one that signs now first; at most [`CAS_MAX`].
            cas: Vec<Vec<u8>>,
            /// Cloud time, seconds since 1970.
            unix_s: u64,
            /// External broker of the link; `None`: the link goes to edge-cloud itself.
            broker: Option<Broker>,
        },
    }
}

/// CAs of one cloud: the signing one and, during a rollover, its predecessor.
pub const CAS_MAX: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_one_text() {
        let (id, secret, ca) = ("0123456789abcdef", "f".repeat(32), "0a".repeat(32));
        let text = alloc::format!("em1.{id}.{secret}.{ca}");
        let token = Token::parse(&text).unwrap();
        assert_eq!((token.id, token.secret), (id, &*secret));
        assert_eq!(token.ca_sha256, [10; 32]);
        assert_eq!(alloc::format!("{token}"), text);
        assert_eq!(text.len(), 118);
        for wrong in [
            "",
            "em1.a.b",
            &text.to_uppercase(),
            &text.replace("em1", "em2"),
            &text.replace(".f", ".F"),
            &text.replace("0a0a", "0g0a"),
            &text.replacen("0a", "é", 1),
            &text[..117],
            &alloc::format!("{text}0"),
            &alloc::format!("{text}.0"),
            &alloc::format!(" {text}"),
            &alloc::format!("{text}\n"),
        ] {
            assert!(Token::parse(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_validity_tells_the_issue() {
        let backdate = i64::try_from(BACKDATE_S).unwrap();
        assert_eq!(issued_unix_s(1_000 - backdate, 1_060), 1_000);
        assert_eq!(issued_unix_s(0 - backdate, 60), 0);
        // A certificate of another issuer: a year before its end is assumed.
        assert_eq!(
            issued_unix_s(1_577_836_800, 1_795_478_400),
            1_795_478_400 - LIFETIME_S_DEFAULT
        );
        for wild in [i64::MIN, i64::MAX] {
            assert_eq!(issued_unix_s(wild, 5), 0);
        }
    }

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
