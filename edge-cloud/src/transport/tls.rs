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
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio::sync::watch;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use crate::identity::authorities::Authorities;
use crate::identity::ca::{CaError, hex};

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
    /// For nodes, which hold the CA, or during a rollover perhaps the old one only.
    short: Arc<CertifiedKey>,
    /// For a joining board, which knows only the hash of a CA.
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

/// Certificates as TLS shows them, the server's own first.
type Certificates = Vec<CertificateDer<'static>>;

/// The chains for nodes and for joining boards, and their key.
fn chains(
    cas: &Authorities,
    names: &[String],
) -> Result<(Certificates, Certificates, PrivateKeyDer<'static>), CaError> {
    let (certificate, key) = cas.signer().server(names)?;
    let mut short = vec![certificate];
    short.extend(cas.signer_cross().cloned());
    let mut long = short.clone();
    match cas.signer_cross() {
        Some(_) => long.extend(cas.ders()),
        None => long.push(cas.signer().der().clone()),
    }
    Ok((short, long, key))
}

/// The configuration for a server that is reached under `names`, with room to resume the sessions
/// of so many nodes: twice that many are kept, in memory. One ticket per handshake and a stateful
/// cache make a reconnect half as large.
///
/// # Errors
/// See [`TlsError`].
pub fn server_config(
    cas: &Authorities,
    names: &[String],
    nodes: usize,
) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for ca in cas.ders() {
        roots.add(ca)?;
    }
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()?;
    let (short, long, key) = chains(cas, names)?;
    let key = provider.key_provider.load_private_key(key)?;
    let chain = Chain {
        short: Arc::new(CertifiedKey::new(short, Arc::clone(&key))),
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
pub fn enrol_config(cas: &Authorities, names: &[String]) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let (_, long, key) = chains(cas, names)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(long, key)?;
    config.alpn_protocols = vec![ALPN_HTTP.to_vec(), ALPN_JOIN.to_vec()];
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// What the port shows and whom it lets in. It is made anew with each change of the CAs, and with it
/// goes every session that could be resumed: that would be without a look at the certificate.
pub struct Port {
    names: Vec<String>,
    /// Links come here, too, of so many nodes; else only enrolments.
    nodes: Option<usize>,
    config: watch::Sender<Arc<ServerConfig>>,
}

impl Port {
    /// The port of a server that is reached under `names`, for the links of so many nodes, or for
    /// enrolments alone.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn open(
        cas: &Authorities,
        names: Vec<String>,
        nodes: Option<usize>,
    ) -> Result<Self, TlsError> {
        let config = Arc::new(Self::config(cas, &names, nodes)?);
        Ok(Self {
            names,
            nodes,
            config: watch::Sender::new(config),
        })
    }

    fn config(
        cas: &Authorities,
        names: &[String],
        nodes: Option<usize>,
    ) -> Result<ServerConfig, TlsError> {
        match nodes {
            Some(nodes) => server_config(cas, names, nodes),
            None => enrol_config(cas, names),
        }
    }

    /// Makes it anew for these CAs, for the connections that come from now on.
    ///
    /// # Errors
    /// See [`TlsError`]; it is as it was then.
    pub fn renew(&self, cas: &Authorities) -> Result<(), TlsError> {
        let config = Self::config(cas, &self.names, self.nodes)?;
        self.config.send_replace(Arc::new(config));
        Ok(())
    }

    /// The configuration, now and from now on.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.config.subscribe()
    }
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

#[cfg(test)]
pub(crate) mod tests {
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls_pki_types::ServerName;

    use super::*;

    /// Whether a node that knows this CA only, and a board whose token names it, accept the server.
    pub(crate) fn accepts(cas: &Authorities, ca: &CertificateDer<'static>) -> bool {
        let (short, long, _) = chains(cas, &["cloud".to_owned()]).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = verifier.build().unwrap();
        let verify = |chain: &[CertificateDer<'static>]| {
            let (leaf, between) = chain.split_first().unwrap();
            let name = ServerName::try_from("cloud").unwrap();
            let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
            verifier
                .verify_server_cert(leaf, between, &name, &[], now)
                .is_ok()
        };
        let joins = long.contains(ca) && verify(&long);
        assert_eq!(verify(&short), joins);
        joins
    }
}
