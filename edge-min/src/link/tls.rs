//! TLS 1.3 by rustls and ring: the link's mutual configuration, and the join's, which has only
//! the hash of the CA. A wrong clock never locks a board out: see [`Clockproof`].

use std::io;
use std::sync::Arc;

use ring::digest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::cipher_suite;
use rustls::server::ParsedCertificate;
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use edge_proto::enrol::{ALPN_HTTP, ALPN_JOIN, ALPN_MQTT};

use crate::board::clock::Clock;
use crate::link::certificate;
use crate::link::identity::Identity;

/// Message for [`is_no_tls`].
pub const NO_TLS: &str = "the answer is not TLS: is there a proxy or a login page in between?";

/// Whether a handshake failed because the received bytes are not TLS. Later ones would be forged.
#[must_use]
pub fn is_no_tls(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    inner.is_some_and(|error| matches!(error, Error::InvalidMessage(_)))
}

/// ring, with the short hash first: rustls' own order begins with SHA-384, which makes three messages
/// of each handshake 16 bytes longer. A 32-bit ARM core has no instructions for AES.
fn provider() -> Arc<CryptoProvider> {
    let mut cipher_suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
    ];
    if cfg!(target_arch = "arm") {
        cipher_suites.swap(0, 1);
    }
    Arc::new(CryptoProvider {
        cipher_suites,
        ..rustls::crypto::ring::default_provider()
    })
}

/// Whether a join reached a server with another CA than its token's.
#[must_use]
pub fn is_other_ca(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    inner.is_some_and(|error| {
        let unknown = CertificateError::UnknownIssuer;
        matches!(error, Error::InvalidCertificate(reason) if *reason == unknown)
    })
}

/// Whether the other end has ended TLS with an alert: on a link it refuses this end's certificate.
#[must_use]
pub fn is_alert(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    inner.is_some_and(|error| matches!(error, Error::AlertReceived(_)))
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(core::time::Duration::from_secs(
            self.floor(),
        )))
    }
}

/// The usual chain check against the CAs, with one exception: while the board's time is untrusted,
/// a certificate that is "not yet valid" is checked at its own NotBefore. The expiry of the certificate whose
/// key a server of the link has proven bounds the time that is accepted over that link.
///
/// It calls the parts of rustls' own `WebPkiServerVerifier`, which would add the reader of
/// revocation lists: 12 KB that the agent never runs.
struct Clockproof {
    roots: RootCertStore,
    provider: Arc<CryptoProvider>,
    time: Clock,
    link: bool,
}

impl core::fmt::Debug for Clockproof {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Clockproof")
    }
}

impl ServerCertVerifier for Clockproof {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let leaf = ParsedCertificate::try_from(leaf)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        let chain_holds = |at| {
            verify_server_cert_signed_by_trust_anchor(
                &leaf,
                &self.roots,
                intermediates,
                at,
                algorithms,
            )
        };
        match chain_holds(now) {
            Err(Error::InvalidCertificate(CertificateError::NotValidYetContext {
                not_before,
                ..
            })) if !self.time.reliable().confirmed => chain_holds(not_before),
            other => other,
        }?;
        verify_server_name(&leaf, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        let valid =
            rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)?;
        // Only after the signature was checked: anybody can present a certificate.
        if self.link
            && let Some((_, not_after)) = certificate::life(certificate)
        {
            self.time.server(not_after);
        }
        Ok(valid)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Checks the server of a join: a certificate of its chain must have the token's hash, and the chain
/// must then be valid with it as the only CA. During a rollover the server sends both of its CAs.
struct PinnedHash {
    ca_sha256: [u8; 32],
    provider: Arc<CryptoProvider>,
    time: Clock,
}

impl core::fmt::Debug for PinnedHash {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("PinnedHash")
    }
}

impl ServerCertVerifier for PinnedHash {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let unknown = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let named = |ca: &&CertificateDer<'_>| {
            digest::digest(&digest::SHA256, ca).as_ref() == self.ca_sha256
        };
        let ca = intermediates.iter().find(named).ok_or(unknown)?;
        clockproof(core::slice::from_ref(ca), &self.provider, &self.time, false)?
            .verify_server_cert(leaf, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn anchors(cas: &[Vec<u8>]) -> Vec<CertificateDer<'_>> {
    let cas = cas.iter();
    cas.map(|ca| CertificateDer::from(ca.as_slice())).collect()
}

fn clockproof(
    anchors: &[CertificateDer<'_>],
    provider: &Arc<CryptoProvider>,
    time: &Clock,
    link: bool,
) -> Result<Clockproof, Error> {
    let mut roots = RootCertStore::empty();
    for ca in anchors {
        roots.add(ca.clone().into_owned())?;
    }
    Ok(Clockproof {
        roots,
        provider: provider.clone(),
        time: time.clone(),
        link,
    })
}

/// Configuration of the link: this node's certificate, the trusted CAs, ALPN `mqtt`. Keep it for the
/// lifetime of the process: it holds the resumption ticket, which halves a reconnect.
///
/// # Errors
/// A key or certificate that rustls refuses.
pub fn link_config(identity: &Identity, time: Clock) -> Result<Arc<ClientConfig>, Error> {
    let provider = provider();
    let verifier = clockproof(&anchors(identity.anchors()), &provider, &time, true)?;
    let key = PrivateKeyDer::try_from(identity.key.clone())
        .map_err(|text| Error::General(text.to_owned()))?;
    let chain = vec![CertificateDer::from(identity.certificate.clone())];
    let mut config = ClientConfig::builder_with_details(provider, Arc::new(time))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN_MQTT.to_vec()];
    config.resumption = Resumption::in_memory_sessions(2);
    Ok(Arc::new(config))
}

/// Configuration of a renewal, by HTTPS or not: no client certificate, because it may have expired; the
/// CAs of the cloud, whoever has signed the broker's certificate.
///
/// # Errors
/// A CA that rustls refuses.
pub fn renew_config(
    identity: &Identity,
    https: bool,
    time: Clock,
) -> Result<Arc<ClientConfig>, Error> {
    let provider = provider();
    let verifier = clockproof(&anchors(&identity.cas), &provider, &time, false)?;
    enrol_config(Arc::new(verifier), provider, https, time)
}

/// Configuration of a join, by HTTPS or not: no client certificate, the CA known by its SHA-256
/// only.
///
/// # Errors
/// None in practice; rustls' own checks of the protocol versions.
pub fn join_config(
    ca_sha256: [u8; 32],
    https: bool,
    time: Clock,
) -> Result<Arc<ClientConfig>, Error> {
    let provider = provider();
    let verifier = PinnedHash {
        ca_sha256,
        provider: provider.clone(),
        time: time.clone(),
    };
    enrol_config(Arc::new(verifier), provider, https, time)
}

fn enrol_config(
    verifier: Arc<dyn ServerCertVerifier>,
    provider: Arc<CryptoProvider>,
    https: bool,
    time: Clock,
) -> Result<Arc<ClientConfig>, Error> {
    let mut config = ClientConfig::builder_with_details(provider, Arc::new(time))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    let alpn = if https { ALPN_HTTP } else { ALPN_JOIN };
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls::server::{ClientHello, ResolvesServerCert};
    use rustls::sign::CertifiedKey;
    use rustls::{ClientConnection, ServerConfig, ServerConnection};

    const DAY_S: u64 = 86_400;
    /// 2027-01-01, later than the build.
    const START: u64 = 1_798_761_600;

    #[derive(Debug)]
    struct Shows(Arc<CertifiedKey>);

    impl ResolvesServerCert for Shows {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            Some(Arc::clone(&self.0))
        }
    }

    struct Pki {
        ca: Vec<u8>,
        issuer: Issuer<'static, KeyPair>,
    }

    impl Pki {
        fn new() -> Self {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let ca = params.self_signed(&key).unwrap().der().to_vec();
            let issuer = Issuer::new(params, key);
            Self { ca, issuer }
        }

        fn certificate(&self, days: i64) -> (Vec<u8>, KeyPair) {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
            params.not_after = rcgen::date_time_ymd(2027, 1, 1)
                + core::time::Duration::from_secs(u64::try_from(days).unwrap() * DAY_S);
            let certificate = params.signed_by(&key, &self.issuer).unwrap();
            (certificate.der().to_vec(), key)
        }

        fn identity(&self) -> Identity {
            let (certificate, key) = self.certificate(365);
            Identity {
                node: "gate".to_owned(),
                key: key.serialize_der(),
                certificate,
                cas: vec![self.ca.clone()],
                cloud: String::new(),
                broker: None,
            }
        }

        /// A handshake of the link with a server that has this certificate and key.
        fn meet(&self, clock: &Clock, (shown, key): &(Vec<u8>, KeyPair)) -> Result<(), Error> {
            let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
            let shown = vec![CertificateDer::from(shown.clone())];
            let shows = Shows(Arc::new(CertifiedKey::new(shown, key)));
            let mut server = ServerConfig::builder_with_provider(provider())
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_no_client_auth()
                .with_cert_resolver(Arc::new(shows));
            server.alpn_protocols = vec![ALPN_MQTT.to_vec()];
            let mut server = ServerConnection::new(Arc::new(server))?;
            let config = link_config(&self.identity(), clock.clone())?;
            let mut client = ClientConnection::new(config, "localhost".try_into().unwrap())?;
            while client.is_handshaking() || server.is_handshaking() {
                let mut bytes = Vec::new();
                client.write_tls(&mut bytes).unwrap();
                server.read_tls(&mut bytes.as_slice()).unwrap();
                server.process_new_packets()?;
                let mut bytes = Vec::new();
                server.write_tls(&mut bytes).unwrap();
                client.read_tls(&mut bytes.as_slice()).unwrap();
                client.process_new_packets()?;
            }
            Ok(())
        }
    }

    fn is_expired(met: &Result<(), Error>) -> bool {
        let expired = |reason: &CertificateError| {
            matches!(
                reason,
                CertificateError::Expired | CertificateError::ExpiredContext { .. }
            )
        };
        matches!(met, Err(Error::InvalidCertificate(reason)) if expired(reason))
    }

    /// Goal: a cloud whose clock is a year ahead does not lock a node out of a broker whose certificate is
    /// valid for 90 days; and when the broker has its next one and the first has expired, the first stays
    /// refused, also if its key was stolen. Method: real handshakes with certificates of a real CA.
    #[test]
    fn a_clock_a_year_ahead_shuts_no_broker_out_and_a_stolen_old_certificate_stays_refused() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::new();
        let (first, next) = (pki.certificate(90), pki.certificate(150));
        let clock = Clock::open(dir.path());
        pki.meet(&clock, &first).unwrap();
        clock.confirm(START + 365 * DAY_S);
        pki.meet(&clock, &first).unwrap();
        let clock = Clock::open(dir.path());
        assert_eq!(clock.floor(), START + 90 * DAY_S);
        pki.meet(&clock, &first).unwrap();
        // The cloud's clock is correct again, and 91 days have passed.
        clock.confirm(START);
        pki.meet(&clock, &next).unwrap();
        clock.confirm(START + 91 * DAY_S);
        assert!(is_expired(&pki.meet(&clock, &first)));
        pki.meet(&clock, &next).unwrap();
        let again = Clock::open(dir.path());
        assert!(is_expired(&pki.meet(&again, &first)));
    }

    /// Goal: presenting a certificate without its key does not advance the floor. Method: a certificate that
    /// expires later, with another key.
    #[test]
    fn a_certificate_without_its_key_does_not_move_what_is_believed() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::new();
        let clock = Clock::open(dir.path());
        pki.meet(&clock, &pki.certificate(90)).unwrap();
        let (later, _) = pki.certificate(700);
        let (_, key) = pki.certificate(90);
        assert!(pki.meet(&clock, &(later, key)).is_err());
        clock.confirm(START + 365 * DAY_S);
        assert_eq!(clock.floor(), START + 90 * DAY_S);
    }
}
