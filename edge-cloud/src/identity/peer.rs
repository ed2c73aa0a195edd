//! The content of a node's certificate: name, issue and expiry.

use std::sync::Arc;
use std::time::Duration;

use edge_proto::enrol::issued_unix_s;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use crate::hex::hex;

/// Identity of the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Common name of the certificate.
    pub node: String,
    /// Its serial number, hex.
    pub serial: String,
    /// When it was issued, seconds since 1970.
    pub issued_unix_s: u64,
    /// When it expires, seconds since 1970.
    pub expires_unix_s: u64,
}

impl Peer {
    /// Reads a certificate; nothing of it is verified.
    #[must_use]
    pub fn of(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let validity = certificate.validity();
        let expires_unix_s = u64::try_from(validity.not_after.timestamp()).ok()?;
        let mut names = certificate.subject().iter_common_name();
        let node = names.next()?.as_str().ok()?.to_owned();
        let not_before = validity.not_before.timestamp();
        names.next().is_none().then_some(Self {
            node,
            serial: hex(certificate.raw_serial()),
            issued_unix_s: issued_unix_s(not_before, expires_unix_s),
            expires_unix_s,
        })
    }
}

/// Verifies a node's certificate as TLS does, except for its expiry: as if it were the last second of its
/// validity. Returns its identity, and its public key, an uncompressed point of P-256.
#[must_use]
pub fn verify_expired(anchors: &[CertificateDer<'static>], der: &[u8]) -> Option<(Peer, Vec<u8>)> {
    let mut roots = RootCertStore::empty();
    for anchor in anchors {
        roots.add(anchor.clone()).ok()?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .ok()?;
    let peer = Peer::of(der)?;
    let last = Duration::from_secs(peer.expires_unix_s);
    let certificate = CertificateDer::from(der);
    verifier
        .verify_client_cert(&certificate, &[], UnixTime::since_unix_epoch(last))
        .ok()?;
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let key = &certificate.public_key().subject_public_key.data;
    Some((peer, key.to_vec()))
}
