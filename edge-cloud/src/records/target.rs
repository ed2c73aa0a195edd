//! Destination of records: the `--records` argument, and the settings of its connection.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Bytes of a file with credentials.
const AUTH_BYTES_MAX: u64 = 16 * 1024;

/// Settings of the sink.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// `files:DIR`, `stdout`, or a URL of `http`, `https`, `mqtt`, `mqtts`, `nats` or `natss`;
    /// `None` is the folder `records` in the data folder.
    pub url: Option<String>,
    /// PEM with the CAs that the server's certificate is checked against; `None`: the system's.
    pub ca: Option<PathBuf>,
    /// PEM with our client certificate, and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// File with our credentials: a bearer token (HTTP), `USER:PASSWORD` (MQTT,
    /// NATS) or a NATS credentials file.
    pub auth: Option<PathBuf>,
}

/// Protocol of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `http`, or `https` with TLS.
    Http,
    /// `mqtt`, or `mqtts` with TLS.
    Mqtt,
    /// `nats`, or `natss` with TLS.
    Nats,
}

/// A parsed URL: `SCHEME://HOST[:PORT][/PATH]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// From the scheme.
    pub protocol: Protocol,
    /// Over TLS.
    pub tls: bool,
    /// Name or address, without the brackets of IPv6.
    pub host: String,
    /// The protocol's own when the URL has none.
    pub port: u16,
    /// What follows the first slash.
    pub path: String,
}

/// Parsed destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To files below this folder.
    Files(PathBuf),
    /// To standard output.
    Stdout,
    /// A server with its protocol.
    Server(Server),
}

impl Target {
    /// Parses a value of `--records`.
    ///
    /// # Errors
    /// Why it is invalid.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "stdout" {
            return Ok(Self::Stdout);
        }
        if let Some(dir) = text.strip_prefix("files:").filter(|dir| !dir.is_empty()) {
            return Ok(Self::Files(dir.into()));
        }
        let forms = "must be files:DIR, stdout, http(s)://HOST[:PORT]/PATH, \
                     mqtt(s)://HOST[:PORT]/TOPIC or nats(s)://HOST[:PORT]/SUBJECT";
        let (scheme, rest) = text.split_once("://").ok_or(forms)?;
        let (protocol, tls, port) = match scheme {
            "http" => (Protocol::Http, false, 80),
            "https" => (Protocol::Http, true, 443),
            "mqtt" => (Protocol::Mqtt, false, 1883),
            "mqtts" => (Protocol::Mqtt, true, 8883),
            "nats" => (Protocol::Nats, false, 4222),
            "natss" => (Protocol::Nats, true, 4222),
            _ => return Err(forms.to_owned()),
        };
        let (place, path) = rest.split_once('/').unwrap_or((rest, ""));
        if place.contains('@') {
            return Err("credentials belong into the file of --records-auth".to_owned());
        }
        let (host, port) = match place.rsplit_once(':') {
            Some((host, number)) if !number.contains(']') => {
                (host, number.parse().map_err(|_| forms.to_owned())?)
            }
            _ => (place, port),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let fits = |c: char| c.is_ascii_graphic();
        if host.is_empty() || !host.chars().all(fits) || !path.chars().all(fits) {
            return Err(forms.to_owned());
        }
        // A node's topic or subject is below it, and it must not contain a wildcard.
        let named = |mark: char| {
            let part = |part: &str| !part.is_empty() && !part.contains(['+', '#', '*', '>']);
            path.split(mark).all(part)
        };
        match protocol {
            Protocol::Mqtt if !named('/') => {
                Err("the topic of mqtt:// is missing or not one".into())
            }
            Protocol::Nats if !named('.') || path.contains('/') => {
                Err("the subject of nats:// is missing or not one".into())
            }
            _ => Ok(Self::Server(Server {
                protocol,
                tls,
                host: host.to_owned(),
                port,
                path: path.to_owned(),
            })),
        }
    }
}

impl Server {
    /// `HOST:PORT`, with brackets where they must be.
    #[must_use]
    pub fn place(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

impl Config {
    /// Reads our credentials.
    ///
    /// # Errors
    /// Those of the file, with its name.
    pub fn auth(&self) -> io::Result<Option<String>> {
        let Some(path) = &self.auth else {
            return Ok(None);
        };
        let at = |error| named(path, error);
        if std::fs::metadata(path).map_err(at)?.len() > AUTH_BYTES_MAX {
            return Err(named(path, "larger than 16 KiB"));
        }
        let text = std::fs::read_to_string(path).map_err(at)?;
        Ok(Some(text.trim().to_owned()))
    }

    /// TLS configuration of the connection.
    ///
    /// # Errors
    /// An error in a file, with its name.
    pub fn tls(&self) -> io::Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        match &self.ca {
            Some(path) => {
                for anchor in certificates(path)? {
                    roots.add(anchor).map_err(|error| named(path, error))?;
                }
            }
            // A certificate that cannot be parsed is not trusted.
            None => {
                let system = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(system.certs);
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots);
        let config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let at = |error| named(key, error);
                let key = PrivateKeyDer::from_pem_file(key).map_err(at)?;
                builder
                    .with_client_auth_cert(certificates(chain)?, key)
                    .map_err(io::Error::other)?
            }
        };
        Ok(Arc::new(config))
    }
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| named(path, error))?;
    if found.is_empty() {
        return Err(named(path, "no certificate in it"));
    }
    Ok(found)
}

fn named(path: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(text: &str) -> Server {
        match Target::parse(text) {
            Ok(Target::Server(server)) => server,
            other => unreachable!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_target_is_a_folder_or_a_server() {
        assert_eq!(Target::parse("stdout"), Ok(Target::Stdout));
        assert_eq!(Target::parse("files:a/b"), Ok(Target::Files("a/b".into())));
        let found = server("https://[::1]/in?x=1");
        assert_eq!(
            (found.tls, found.port, found.path.as_str()),
            (true, 443, "in?x=1")
        );
        assert_eq!(found.place(), "[::1]:443");
        assert_eq!(server("mqtt://broker/edge/records").path, "edge/records");
        assert_eq!(server("nats://10.0.0.1:4333/edge").place(), "10.0.0.1:4333");
    }

    #[test]
    fn what_is_none_is_refused() {
        for wrong in [
            "",
            "files:",
            "ftp://host/x",
            "http://",
            "http://host:port/",
            "http://host/a b",
            "http://user:word@host/",
            "mqtt://host",
            "mqtt://host/a/#",
            "mqtt://host//a",
            "nats://host/",
            "nats://host/a.*",
            "nats://host/a/b",
        ] {
            assert!(Target::parse(wrong).is_err(), "{wrong}");
        }
    }
}
