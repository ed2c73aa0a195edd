//! The certificate authority of an embedded edge-cloud: P-256, created at the first start in
//! `DATA/ca`. It signs the server's certificate and one small client certificate per node.
//!
//! `NotBefore` is backdated: boards boot with their clock at 1970 or at a build date.

use std::io;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use edge_proto::enrol::{BACKDATE_S, LIFETIME_S_DEFAULT};
use rcgen::PublicKeyData as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams,
    CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, RevokedCertParams,
    SanType, SerialNumber, date_time_ymd,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls_pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer,
};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::durable::replace;
use crate::hex::hex;

/// Key of the first CA in the data folder, until there is a second one.
pub(crate) const CA_KEY: &str = "ca/ca.key";
/// Its certificate.
pub(crate) const CA_DER: &str = "ca/ca.der";
/// Common name of the first CA.
const FIRST: &str = "edge-cloud CA";

/// Longest validity of a node's certificate, and the default: a year.
pub const NODE_VALIDITY_S: u64 = LIFETIME_S_DEFAULT;

/// Expiry of the certificates that edge-cloud creates for itself, its CA's included, seconds since 1970:
/// the year 2100.
pub const OWN_NOT_AFTER: u64 = 4_102_444_800;

/// Why a CA, or a certificate of it, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// Error of the file system.
    #[error("{what}: {source}")]
    File {
        /// What was attempted.
        what: String,
        /// Error of the system.
        source: io::Error,
    },
    /// A certificate, key or request does not parse, or its signature is wrong.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A request for a key of another kind.
    #[error("the key must be ECDSA on P-256, and the request signed with SHA-256")]
    Key,
    /// Trailing bytes after the request.
    #[error("bytes are left over behind the certificate request")]
    Trailing,
    /// The CA's certificate is invalid, or of another key.
    #[error("key and certificate of the CA do not belong together")]
    Pair,
    /// A file of the data folder has invalid content.
    #[error(
        "{path} is damaged ({why}): put a whole one back, or restore a backup (`edge-cloud restore --force`)"
    )]
    Damaged {
        /// The file, or both.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The CA is lost, and nodes rely on it.
    #[error(
        "{0} is missing, and no new CA is made, because no node would accept it: put the file back, \
         or restore a backup (`edge-cloud restore --force`). To begin anew, move the whole data folder away, \
         and let every node join again"
    )]
    Missing(String),
    /// The rollover of the CA is not at the required step.
    #[error("the rollover of the CA is at another step")]
    Rollover,
    /// The CA is older than lists of refused certificates.
    #[error(
        "this CA was made by an edge-cloud that knew no lists of refused certificates, and may not \
         sign one: it cannot serve behind a broker with --broker-crl"
    )]
    NoList,
    /// The system's random source failed.
    #[error("no random numbers")]
    Random,
    /// A stored serial number is invalid.
    #[error("the stored serial number is damaged")]
    Serial,
}

/// A CA, with its key in memory.
pub struct Ca {
    key: Vec<u8>,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Ca {
    /// Never the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Ca").field(&self.sha256()).finish()
    }
}

/// A new node certificate.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate, DER.
    pub der: Vec<u8>,
    /// Its serial number, hex.
    pub serial: String,
}

/// A certificate request whose signature is valid.
pub struct Request(CertificateSigningRequestParams);

impl Request {
    /// Reads a PKCS#10 request and checks its signature; its subject and extensions are ignored.
    ///
    /// # Errors
    /// [`CaError::Key`] for a key that is not ECDSA on P-256, [`CaError::Trailing`], and
    /// [`CaError::Certificate`] for invalid requests.
    pub fn read(csr: &[u8]) -> Result<Self, CaError> {
        let der = CertificateSigningRequestDer::from(csr);
        let request = match CertificateSigningRequestParams::from_der(&der) {
            Err(rcgen::Error::UnsupportedSignatureAlgorithm) => return Err(CaError::Key),
            request => request?,
        };
        let key = &request.public_key;
        // The signature's algorithm does not determine the curve of the key; an uncompressed point does.
        let is_p256 = matches!(key.der_bytes(), [4, point @ ..] if point.len() == 64);
        if key.algorithm() != &PKCS_ECDSA_P256_SHA256 || !is_p256 {
            return Err(CaError::Key);
        }
        if der_length(csr) != Some(csr.len()) {
            return Err(CaError::Trailing);
        }
        Ok(Self(request))
    }

    /// Whether it is for this public key, an uncompressed point.
    #[must_use]
    pub fn has_key(&self, point: &[u8]) -> bool {
        self.0.public_key.der_bytes() == point
    }

    /// Hex SHA-256 of the public key.
    #[must_use]
    pub fn key_sha256(&self) -> String {
        hex(&Sha256::digest(self.0.public_key.der_bytes()))
    }
}

/// Bytes of the DER value that `bytes` begins with, header included; `None` over 64 KiB.
fn der_length(bytes: &[u8]) -> Option<usize> {
    match *bytes {
        [_, short @ 0..=0x7f, ..] => Some(2 + usize::from(short)),
        [_, 0x81, length, ..] => Some(3 + usize::from(length)),
        [_, 0x82, high, low, ..] => Some(4 + usize::from(u16::from_be_bytes([high, low]))),
        _ => None,
    }
}

impl Ca {
    /// Reads the CA in `data`, or creates it. The key is durable before the certificate, so
    /// that a power cut between the two only causes a new certificate.
    ///
    /// # Errors
    /// See [`CaError`].
    pub fn open(data: &Path) -> Result<Self, CaError> {
        std::fs::create_dir_all(data.join("ca"))
            .map_err(file("cannot make the folder of the CA"))?;
        let key = read_or(&data.join(CA_KEY), || {
            Ok(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?.serialize_der())
        })?;
        let pair = KeyPair::try_from(key.as_slice())?;
        let der = read_or(&data.join(CA_DER), || {
            Ok(ca_params(FIRST)?.self_signed(&pair)?.der().to_vec())
        })?;
        Self::check(&key, &der)
    }

    /// Creates a further CA with a name of its own: OpenSSL finds a CA and its list of refused
    /// certificates by the name.
    ///
    /// # Errors
    /// See [`CaError`].
    pub fn another() -> Result<Self, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let number = hex(&random::<4>().ok_or(CaError::Random)?);
        let der = ca_params(&format!("{FIRST} {number}"))?.self_signed(&key)?;
        Self::check(&key.serialize_der(), der.der())
    }

    /// The CA of this key (PKCS#8) and certificate (DER).
    ///
    /// # Errors
    /// See [`CaError`]; in particular, the two must belong together.
    pub fn check(key: &[u8], der: &[u8]) -> Result<Self, CaError> {
        let pair = KeyPair::try_from(key)?;
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| CaError::Pair)?;
        if certificate.public_key().subject_public_key.data.as_ref() != pair.der_bytes() {
            return Err(CaError::Pair);
        }
        let der = CertificateDer::from(der.to_vec());
        let issuer = Issuer::from_ca_cert_der(&der, pair)?;
        let key = key.to_vec();
        Ok(Self { key, der, issuer })
    }

    /// Its key, PKCS#8.
    pub(crate) fn key(&self) -> &[u8] {
        &self.key
    }

    /// Hex SHA-256 of its certificate.
    #[must_use]
    pub fn sha256(&self) -> String {
        hex(&sha256(&self.der))
    }

    /// When its certificate ends, seconds since 1970.
    #[must_use]
    pub fn not_after(&self) -> u64 {
        not_after(&self.der)
    }

    /// A certificate of the key of `other` with its name, signed by this CA: a client that has only
    /// this one then accepts what `other` has signed.
    ///
    /// # Errors
    /// See [`CaError`].
    pub fn cross(&self, other: &Self) -> Result<CertificateDer<'static>, CaError> {
        let (_, certificate) = X509Certificate::from_der(&other.der).map_err(|_| CaError::Pair)?;
        let mut names = certificate.subject().iter_common_name();
        let common = names.next().and_then(|name| name.as_str().ok());
        let mut params = ca_params(common.ok_or(CaError::Pair)?)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let key = KeyPair::try_from(other.key.as_slice())?;
        Ok(params.signed_by(&key, &self.issuer)?.der().clone())
    }

    /// The authority's certificate.
    #[must_use]
    pub const fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Issues a server certificate with a new key, for these host names and addresses. It is created
    /// at each start and never stored, so it always has the present names.
    ///
    /// # Errors
    /// See [`CaError`].
    pub fn server(
        &self,
        names: &[String],
    ) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), CaError> {
        let params = CertificateParams::new(names.to_vec())?;
        self.own(params, "edge-cloud", ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// Issues a client certificate with a new key, for a user of an external broker that is not a
    /// node: `common` must not be a possible name of a node.
    ///
    /// # Errors
    /// See [`CaError`].
    pub fn client(
        &self,
        common: &str,
    ) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), CaError> {
        let params = CertificateParams::default();
        self.own(params, common, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn own(
        &self,
        mut params: CertificateParams,
        common: &str,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        params.distinguished_name = name(common);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(OWN_NOT_AFTER);
        params.extended_key_usages = vec![usage];
        params.serial_number = Some(SerialNumber::from_slice(&serial()?));
        let certificate = params.signed_by(&key, &self.issuer)?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        Ok((certificate.der().clone(), key.into()))
    }

    /// Issues a node's certificate for the key of a request. `unix_s` is now, which both ends read from its
    /// NotBefore again, `life_s` how long the certificate is valid. The same `serial` gives the same
    /// certificate again, but for the random part of its signature; without one it is new.
    ///
    /// # Errors
    /// See [`CaError`].
    pub fn node(
        &self,
        node: &str,
        request: &Request,
        serial: Option<&str>,
        unix_s: u64,
        life_s: u64,
    ) -> Result<Issued, CaError> {
        let serial = match serial {
            Some(text) => unhex(text).ok_or(CaError::Serial)?,
            None => self::serial()?,
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = name(node);
        params.subject_alt_names = vec![SanType::DnsName(node.try_into()?)];
        let issued = date_time_ymd(1970, 1, 1) + Duration::from_secs(unix_s);
        params.not_before = issued - Duration::from_secs(BACKDATE_S);
        params.not_after = issued + Duration::from_secs(life_s);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let certificate = params.signed_by(&request.0.public_key, &self.issuer)?;
        Ok(Issued {
            der: certificate.der().to_vec(),
            serial: hex(&serial),
        })
    }

    /// The list of certificates that are refused before they expire, PEM: serial numbers in hex with the
    /// time of their retirement. It never expires, because a broker with an expired list would refuse all
    /// clients.
    ///
    /// # Errors
    /// See [`CaError`].
    pub fn crl(
        &self,
        retired: impl IntoIterator<Item = (String, u64)>,
        unix_s: u64,
    ) -> Result<String, CaError> {
        let at = |unix_s| date_time_ymd(1970, 1, 1) + Duration::from_secs(unix_s);
        let revoked = retired.into_iter().filter_map(|(serial, unix_s)| {
            Some(RevokedCertParams {
                serial_number: SerialNumber::from_slice(&unhex(&serial)?),
                revocation_time: at(unix_s),
                reason_code: None,
                invalidity_date: None,
            })
        });
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(2100, 1, 1),
            crl_number: SerialNumber::from(unix_s),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params
            .signed_by(&self.issuer)
            .map_err(|error| match error {
                rcgen::Error::IssuerNotCrlSigner => CaError::NoList,
                error => error.into(),
            })?;
        Ok(pem("X509 CRL", list.der()))
    }
}

fn ca_params(common: &str) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(common);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(OWN_NOT_AFTER);
    // Path length 1: the next CA is below it during a rollover.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    params.serial_number = Some(SerialNumber::from_slice(&serial()?));
    Ok(params)
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

/// 16 random bytes that are a positive DER integer without padding.
fn serial() -> Result<[u8; 16], CaError> {
    let mut serial = random::<16>().ok_or(CaError::Random)?;
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(serial)
}

/// Random bytes; `None` when the system's source failed.
pub(crate) fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).ok()?;
    Some(bytes)
}

/// When a certificate expires, seconds since 1970; 0 when it is invalid.
pub(crate) fn not_after(der: &[u8]) -> u64 {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        return 0;
    };
    u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0)
}

/// SHA-256 of a certificate, by which tokens and requests name a CA.
pub(crate) fn sha256(der: &[u8]) -> [u8; 32] {
    Sha256::digest(der).into()
}

/// A serial number from its hex.
fn unhex(text: &str) -> Option<[u8; 16]> {
    let mut bytes = [0; 16];
    if text.len() != 32 || !text.is_ascii() {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(index * 2..index * 2 + 2)?, 16).ok()?;
    }
    Some(bytes)
}

/// PEM of one DER value.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem + &format!("-----END {label}-----\n")
}

pub(crate) fn file(what: &str) -> impl FnOnce(io::Error) -> CaError + use<> {
    let what = what.to_owned();
    |source| CaError::File { what, source }
}

fn read_or(
    path: &Path,
    make: impl FnOnce() -> Result<Vec<u8>, CaError>,
) -> Result<Vec<u8>, CaError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let bytes = make()?;
            replace(path, &bytes).map_err(file("cannot write the CA"))?;
            Ok(bytes)
        }
        Err(error) => Err(file("cannot read the CA")(error)),
    }
}

/// The error for a file of the data folder with invalid content.
pub(crate) fn damaged(path: &Path, error: &serde_json::Error) -> io::Error {
    let text = CaError::Damaged {
        path: path.display().to_string(),
        why: error.to_string(),
    };
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// Goal: only ECDSA keys on P-256 are accepted, and no trailing bytes after a request.
    /// Method: requests of rcgen with other keys, which are valid otherwise.
    #[test]
    fn requests_for_other_keys_are_refused_in_words() {
        let request = |algorithm| {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let csr = CertificateParams::default().serialize_request(&key);
            csr.unwrap().der().to_vec()
        };
        let refusal = |csr: &[u8]| Request::read(csr).err().map(|error| error.to_string());
        let good = request(&PKCS_ECDSA_P256_SHA256);
        assert_eq!(refusal(&good), None);
        let words = Some("the key must be ECDSA on P-256, and the request signed with SHA-256");
        for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
            assert_eq!(refusal(&request(algorithm)).as_deref(), words);
        }
        let words = Some("bytes are left over behind the certificate request");
        let longer = [&good[..], &[0]].concat();
        assert_eq!(refusal(&longer).as_deref(), words);
        for end in 0..good.len() {
            assert!(Request::read(&good[..end]).is_err(), "{end} bytes");
        }
    }

    #[test]
    fn a_node_certificate_carries_our_name_and_survives_a_restart_of_the_ca() {
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::open(folder.path()).unwrap();
        let again = Ca::open(folder.path()).unwrap();
        assert_eq!(ca.der(), again.der());
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut wanted = CertificateParams::default();
        wanted.distinguished_name = name("another-node");
        let csr = wanted.serialize_request(&key).unwrap();
        let request = Request::read(csr.der()).unwrap();
        let issued = again
            .node("gate-7", &request, None, 1_700_000_000, 60)
            .unwrap();
        let (_, certificate) = X509Certificate::from_der(&issued.der).unwrap();
        assert_eq!(certificate.subject().to_string(), "CN=gate-7");
        assert_eq!(hex(certificate.raw_serial()), issued.serial);
        assert_eq!(certificate.validity().not_after.timestamp(), 1_700_000_060);
        let (_, authority) = X509Certificate::from_der(ca.der()).unwrap();
        certificate
            .verify_signature(Some(authority.public_key()))
            .unwrap();
        let repeated = again
            .node("gate-7", &request, Some(&issued.serial), 1_700_000_000, 60)
            .unwrap();
        let (_, repeated) = X509Certificate::from_der(&repeated.der).unwrap();
        assert_eq!(repeated.tbs_certificate, certificate.tbs_certificate);
    }

    #[test]
    fn an_older_ca_says_that_it_may_not_sign_a_list() {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = ca_params(FIRST).unwrap();
        params
            .key_usages
            .retain(|usage| *usage != KeyUsagePurpose::CrlSign);
        let der = params.self_signed(&pair).unwrap().der().to_vec();
        let ca = Ca::check(&pair.serialize_der(), &der).unwrap();
        assert!(matches!(ca.crl([], 1_000), Err(CaError::NoList)));
    }

    #[test]
    fn a_request_with_a_wrong_signature_is_refused() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let csr = CertificateParams::default()
            .serialize_request(&key)
            .unwrap();
        let mut bytes = csr.der().to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        assert!(Request::read(&bytes).is_err());
    }

    #[test]
    fn the_key_is_for_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        Ca::open(folder.path()).unwrap();
        let key = std::fs::metadata(folder.path().join(CA_KEY)).unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
    }
}
