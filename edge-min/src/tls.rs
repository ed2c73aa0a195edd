//! TLS 1.3 by rustls and ring: the link's mutual configuration, and the join's, which knows only
//! the hash of the CA. A wrong clock never keeps a board out: see [`Clockproof`].

use std::io;
use std::sync::Arc;

use ring::digest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::cipher_suite;
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use edge_proto::enrol::{ALPN_HTTP, ALPN_JOIN, ALPN_MQTT};

use crate::identity::Identity;

/// The clock as TLS sees it: seconds since 1970 (never below the trusted floor), and whether it
/// is to be trusted.
pub type TimeSource = Arc<dyn Fn() -> (u64, bool) + Send + Sync>;

/// What to say of [`is_no_tls`].
pub const NO_TLS: &str = "the answer is not TLS: is there a proxy or a login page in between?";

/// Whether a handshake failed on bytes that are no TLS at all. Later ones would be forged.
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

/// Whether a join met a server of another CA than its token's.
#[must_use]
pub fn is_other_ca(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    inner.is_some_and(|error| {
        let unknown = CertificateError::UnknownIssuer;
        matches!(error, Error::InvalidCertificate(reason) if *reason == unknown)
    })
}

struct Clock(TimeSource);

impl core::fmt::Debug for Clock {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Clock")
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let (unix_s, _) = (self.0)();
        Some(UnixTime::since_unix_epoch(core::time::Duration::from_secs(
            unix_s,
        )))
    }
}

/// The usual chain check against the CAs, with one exception: while the board's time is untrusted,
/// a certificate that is "not yet valid" is judged at its own NotBefore.
struct Clockproof {
    inner: Arc<WebPkiServerVerifier>,
    time: TimeSource,
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
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verify = |at| {
            self.inner
                .verify_server_cert(leaf, intermediates, name, ocsp, at)
        };
        match verify(now) {
            Err(Error::InvalidCertificate(CertificateError::NotValidYetContext {
                not_before,
                ..
            })) if !(self.time)().1 => verify(not_before),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Checks the server of a join: a certificate of its chain must have the token's hash, and the chain
/// must then hold against it as the one CA. During a rollover the server shows both of its CAs.
struct PinnedHash {
    ca_sha256: [u8; 32],
    provider: Arc<CryptoProvider>,
    time: TimeSource,
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
        clockproof(core::slice::from_ref(ca), &self.provider, &self.time)?.verify_server_cert(
            leaf,
            intermediates,
            name,
            ocsp,
            now,
        )
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
    time: &TimeSource,
) -> Result<Clockproof, Error> {
    let mut roots = RootCertStore::empty();
    for ca in anchors {
        roots.add(ca.clone().into_owned())?;
    }
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| Error::General(error.to_string()))?;
    Ok(Clockproof {
        inner,
        time: time.clone(),
    })
}

/// Configuration of the link: this node's certificate, the trusted CAs, ALPN `mqtt`. Keep it for the
/// life of the process: it holds the resumption ticket, which halves a reconnect.
///
/// # Errors
/// A key or certificate that rustls refuses.
pub fn link_config(identity: &Identity, time: TimeSource) -> Result<Arc<ClientConfig>, Error> {
    let provider = provider();
    let verifier = clockproof(&anchors(identity.anchors()), &provider, &time)?;
    let key = PrivateKeyDer::try_from(identity.key.clone())
        .map_err(|text| Error::General(text.to_owned()))?;
    let chain = vec![CertificateDer::from(identity.certificate.clone())];
    let mut config = ClientConfig::builder_with_details(provider, Arc::new(Clock(time)))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN_MQTT.to_vec()];
    config.resumption = Resumption::in_memory_sessions(2);
    Ok(Arc::new(config))
}

/// Configuration of a renewal, by HTTPS or not: no client certificate, for it may have expired; the
/// CAs of the cloud, whoever has signed the broker's certificate.
///
/// # Errors
/// A CA that rustls refuses.
pub fn renew_config(
    identity: &Identity,
    https: bool,
    time: TimeSource,
) -> Result<Arc<ClientConfig>, Error> {
    let provider = provider();
    let verifier = clockproof(&anchors(&identity.cas), &provider, &time)?;
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
    time: TimeSource,
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
    time: TimeSource,
) -> Result<Arc<ClientConfig>, Error> {
    let mut config = ClientConfig::builder_with_details(provider, Arc::new(Clock(time)))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    let alpn = if https { ALPN_HTTP } else { ALPN_JOIN };
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}
