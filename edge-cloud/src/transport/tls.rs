//! The one TLS port: TLS 1.3, a client certificate of our CA if one is presented. Whether it is
//! required depends on the ALPN protocol, which the caller checks with [`peer`].

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use edge_proto::enrol::{ALPN_HTTP, ALPN_JOIN, ALPN_MQTT};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{
    ClientHello, ResolvesServerCert, ServerSessionMemoryCache, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    ServerConnection, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

use crate::events::Events;
use crate::identity::Identity;
use crate::identity::authorities::Authorities;
use crate::identity::ca::CaError;
use crate::identity::peer::Peer;
use crate::identity::registry::NODES_MAX;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The server's certificate cannot be created.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// rustls refuses it.
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
    /// No verifier can be built from the CA.
    #[error("client verifier: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// The server's certificate, with and without its CA.
#[derive(Debug)]
struct Chain {
    /// For nodes, which have the CA, or during a rollover possibly the old one only.
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

/// Says of a node whose certificate is valid whether it may have a link.
pub type Admits = Arc<dyn Fn(&Peer) -> bool + Send + Sync>;

/// Verifies the certificates of nodes, and asks the registry: a revoked node must not hold a place at the
/// port, even for as long as it may take to say CONNECT. A resumed session is asked about later.
struct NodeVerifier {
    verifier: Arc<dyn ClientCertVerifier>,
    admits: Admits,
}

impl fmt::Debug for NodeVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeVerifier")
    }
}

impl ClientCertVerifier for NodeVerifier {
    fn offer_client_auth(&self) -> bool {
        self.verifier.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.verifier.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.verifier.verify_client_cert(certificate, chain, now)?;
        match Peer::of(certificate) {
            Some(peer) if (self.admits)(&peer) => Ok(verified),
            _ => Err(CertificateError::Revoked.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// Certificates in the order of TLS, the server's own first.
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

/// The configuration for a server that is reached under `names`, with a cache to resume the sessions
/// of so many nodes: twice that many are kept, in memory. Whom `admits` does not admit is refused in the
/// handshake. One ticket per handshake and a stateful
/// cache make a reconnect half as large.
///
/// # Errors
/// See [`TlsError`].
pub fn server_config(
    cas: &Authorities,
    names: &[String],
    nodes: usize,
    admits: Admits,
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
    let verifier = Arc::new(NodeVerifier { verifier, admits });
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

/// The configuration for enrolment alone, for a server behind an external broker: no client presents a
/// certificate, and every client gets the CA with the server's own.
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

/// The port's certificate and the accepted CAs. It is created again after each change of the CAs, and with it
/// every resumable session is dropped: resumption would not check the certificate.
pub struct Port {
    names: Vec<String>,
    identity: Arc<Identity>,
    events: Arc<Events>,
    /// With the CAs for which it was created.
    made: Mutex<(Arc<Authorities>, Arc<ServerConfig>)>,
}

impl Port {
    /// The port of a server that is reached under `names`: for the links of the nodes, and behind an
    /// external broker for enrolments alone.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn open(
        identity: Arc<Identity>,
        events: Arc<Events>,
        names: Vec<String>,
    ) -> Result<Arc<Self>, TlsError> {
        let authorities = identity.authorities();
        let config = Self::config(&identity, &authorities, &names)?;
        Ok(Arc::new(Self {
            names,
            identity,
            events,
            made: Mutex::new((authorities, config)),
        }))
    }

    fn config(
        identity: &Arc<Identity>,
        authorities: &Authorities,
        names: &[String],
    ) -> Result<Arc<ServerConfig>, TlsError> {
        let known = Arc::clone(identity);
        let admits = Arc::new(move |peer: &Peer| known.may_admit(peer));
        Ok(Arc::new(match identity.external_broker() {
            None => server_config(authorities, names, NODES_MAX, admits)?,
            Some(_) => enrol_config(authorities, names)?,
        }))
    }

    /// The configuration for a new connection.
    #[must_use]
    pub fn current(&self) -> Arc<ServerConfig> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let authorities = self.identity.authorities();
        if !Arc::ptr_eq(&made.0, &authorities) {
            made.0 = Arc::clone(&authorities);
            match Self::config(&self.identity, &authorities, &self.names) {
                Ok(config) => made.1 = config,
                Err(error) => {
                    let why =
                        format!("restart edge-cloud: its certificate was not made anew: {error}");
                    self.events.add("", "PortNotRenewed", &why);
                }
            }
        }
        Arc::clone(&made.1)
    }
}

/// The peer's identity; `None` without a certificate, or once it has expired: a resumed session
/// does not verify it again, so its expiry is checked here.
#[must_use]
pub fn peer(connection: &ServerConnection, unix_s: u64) -> Option<Peer> {
    let der = connection.peer_certificates()?.first()?;
    Peer::of(der).filter(|peer| peer.expires_unix_s > unix_s)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls_pki_types::ServerName;

    use super::*;

    /// Whether a node that has only this CA, and a board whose token names it, accept the server.
    fn accepts(cas: &Authorities, ca: &CertificateDer<'static>) -> bool {
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

    /// Goal: a client that has only one of the two CAs accepts the server, whichever it is. Method: webpki,
    /// which the agent uses, with the chains that are sent to nodes and to joining boards.
    #[test]
    fn the_server_is_accepted_by_either_ca_until_the_old_one_is_retired() {
        let data = tempfile::tempdir().unwrap();
        let first = Authorities::open(data.path()).unwrap();
        let old = first.signer().der().clone();
        assert!(accepts(&first, &old));
        let offered = first.rotate(5, false).unwrap();
        let new = offered.newest().der().clone();
        assert!(accepts(&offered, &old) && !accepts(&offered, &new));
        let signing = offered.sign().unwrap();
        assert!(accepts(&signing, &old) && accepts(&signing, &new));
        let last = signing.retire(6).unwrap();
        assert!(!accepts(&last, &old) && accepts(&last, &new));
    }
}
