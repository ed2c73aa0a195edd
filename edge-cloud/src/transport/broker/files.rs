//! Files for the operator of the broker: certificates of our CA, the access control list, and a
//! mosquitto configuration that uses them.

use std::fs;
use std::io;
use std::path::Path;

use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::USER;
use crate::durable::replace_with_mode;
use crate::identity::authorities::Authorities;
use crate::identity::ca::pem;
use crate::identity::write_crl;

/// Files that `edge-cloud broker-config` has written, with a human-readable description.
pub const FILES: [(&str, &str); 8] = [
    ("ca.crt", "the CAs: the broker trusts them for clients"),
    ("broker.crt", "the broker's certificate"),
    ("broker.key", "its key"),
    (
        "edge-cloud.crt",
        "edge-cloud's client certificate, for --broker-cert",
    ),
    ("edge-cloud.key", "its key, for --broker-key"),
    ("broker.crl", "the certificates that are refused"),
    ("acl", "who may read and write what"),
    ("mosquitto.conf", "a listener that uses all of these"),
];

/// Access rights. `%u` is the common name of the client's certificate.
fn acl() -> String {
    format!(
        "# A node reads its own topic and writes its own, its will included.\n\
         pattern read m1/d/%u\n\
         pattern write m1/u/+/%u\n\
         \n\
         # edge-cloud reads what all nodes write, and the other way round.\n\
         user {USER}\n\
         topic read m1/u/+/+\n\
         topic write m1/d/+\n"
    )
}

/// For mosquitto 2.0. `use_username_as_clientid` prevents a node from ending another's session.
fn mosquitto(dir: &Path, port: u16) -> String {
    let dir = dir.display();
    format!(
        "per_listener_settings false\n\
         persistence false\n\
         retain_available false\n\
         message_size_limit 8192\n\
         max_queued_messages 20000\n\
         allow_anonymous false\n\
         acl_file {dir}/acl\n\
         \n\
         listener {port}\n\
         tls_version tlsv1.3\n\
         cafile {dir}/ca.crt\n\
         certfile {dir}/broker.crt\n\
         keyfile {dir}/broker.key\n\
         crlfile {dir}/broker.crl\n\
         require_certificate true\n\
         use_identity_as_username true\n\
         use_username_as_clientid true\n"
    )
}

/// Writes [`FILES`] into `dir`, for a broker that is reached under `names`. Keys are for their
/// owner only.
///
/// # Errors
/// Those of the file system and of the CA.
pub fn write(
    dir: &Path,
    cas: &Authorities,
    names: &[String],
    port: u16,
    retired: Vec<(String, u64)>,
) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let dir = &dir.canonicalize()?;
    let certificates = |ders: &[CertificateDer<'static>]| -> String {
        ders.iter().map(|der| pem("CERTIFICATE", der)).collect()
    };
    let identity = |name: &str, chain: &[CertificateDer<'static>], key: &PrivateKeyDer<'_>| {
        let public = certificates(chain);
        replace(&dir.join(format!("{name}.crt")), &public, 0o644)?;
        let secret = pem("PRIVATE KEY", key.secret_der());
        replace(&dir.join(format!("{name}.key")), &secret, 0o600)
    };
    let (certificate, key) = cas.newest().server(names).map_err(io::Error::other)?;
    let chain: Vec<_> = std::iter::once(certificate)
        .chain(cas.cross().cloned())
        .collect();
    identity("broker", &chain, &key)?;
    let (certificate, key) = cas.signer().client(USER).map_err(io::Error::other)?;
    identity("edge-cloud", &[certificate], &key)?;
    replace(&dir.join("ca.crt"), &certificates(&cas.ders()), 0o644)?;
    write_crl(&dir.join("broker.crl"), cas, retired)?;
    replace(&dir.join("acl"), &acl(), 0o644)?;
    replace(&dir.join("mosquitto.conf"), &mosquitto(dir, port), 0o644)
}

fn replace(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    replace_with_mode(path, text.as_bytes(), mode)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}
