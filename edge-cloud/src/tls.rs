//! The one TLS port: TLS 1.3, a client certificate of our CA if one is shown. Whether it must be
//! shown depends on the ALPN protocol, which the caller checks with [`peer`].

use std::sync::Arc;
use std::time::Duration;

use edge_proto::enrol::{ALPN_HTTP, ALPN_JOIN, ALPN_MQTT, issued_unix_s};
use rustls::server::{
    ClientHello, ResolvesServerCert, ServerSessionMemoryCache, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use crate::ca::{Ca, CaError, hex};

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The server's certificate cannot be made.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// rustls does not take it.
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
    /// The CA cannot verify clients.
    #[error("client verifier: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// The server's certificate, with and without its CA.
#[derive(Debug)]
struct Chain {
    /// For nodes, which hold the CA.
    short: Arc<CertifiedKey>,
    /// For a joining board, which knows only the hash of the CA.
    long: Arc<CertifiedKey>,
}

impl ResolvesServerCert for Chain {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let joins = hello
            .alpn()
            .is_some_and(|mut names| names.any(|name| name == ALPN_JOIN));
        Some(Arc::clone(if joins { &self.long } else { &self.short }))
    }
}

/// The configuration for a server that is reached under `names`, with room to resume the sessions
/// of so many nodes: twice that many are kept, in memory. One ticket per handshake and a stateful
/// cache make a reconnect half as large.
///
/// # Errors
/// See [`TlsError`].
pub fn server_config(ca: &Ca, names: &[String], nodes: usize) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone())?;
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()?;
    let (certificate, key) = ca.server(names)?;
    let key = provider.key_provider.load_private_key(key)?;
    let long = vec![certificate.clone(), ca.der().clone()];
    let chain = Chain {
        short: Arc::new(CertifiedKey::new(vec![certificate], Arc::clone(&key))),
        long: Arc::new(CertifiedKey::new(long, key)),
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(chain));
    config.alpn_protocols = vec![ALPN_MQTT.to_vec(), ALPN_JOIN.to_vec()];
    config.session_storage = ServerSessionMemoryCache::new(nodes.saturating_mul(2));
    config.send_tls13_tickets = 1;
    Ok(config)
}

/// The configuration for enrolment alone, for a server behind an external broker: nobody shows a
/// certificate, and everybody gets the CA with the server's own.
///
/// # Errors
/// See [`TlsError`].
pub fn enrol_config(ca: &Ca, names: &[String]) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let (certificate, key) = ca.server(names)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate, ca.der().clone()], key)?;
    config.alpn_protocols = vec![ALPN_HTTP.to_vec(), ALPN_JOIN.to_vec()];
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Who is at the other end.
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
    /// Whom a certificate names; nothing of it is verified.
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

/// The peer's identity; `None` without a certificate, or once it has expired: a resumed session
/// does not verify it again, so its end is checked here.
#[must_use]
pub fn peer(connection: &ServerConnection, unix_s: u64) -> Option<Peer> {
    let der = connection.peer_certificates()?.first()?;
    Peer::of(der).filter(|peer| peer.expires_unix_s > unix_s)
}

/// Verifies a node's certificate as TLS does, but for its end: as if it were the last second of its
/// life. Returns whom it names, and its public key, an uncompressed point of P-256.
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
