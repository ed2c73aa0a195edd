//! Enrolment: one TLS connection, one request, one answer, bare or as HTTP. `docs/wire.md` specifies the
//! bytes.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_channel::Sender;
use edge_core::limits::ENROL_TIMEOUT_MS;
use edge_proto::enrol::{Broker, CAS_MAX, Endpoint, HTTP_PATH, JoinAnswer, JoinRequest, Token};
use edge_proto::limits::ENROL_BYTES_MAX;
use edge_proto::wire::Wire as _;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;

use crate::board::clock::Clock;
use crate::board::config::Config;
use crate::board::name::SYSFS;
use crate::link::connection::LinkEvent;
use crate::link::csr;
use crate::link::identity::{self, Identity};
use crate::link::tls::{self, NO_TLS};

/// Timeout of each of connect, read and write: TCP + TLS at 30 % loss can take 70 s.
const JOIN_TIMEOUT: Duration = Duration::from_millis(ENROL_TIMEOUT_MS);
/// Timeout of everything after the connect: edge-cloud allows 90 s for TLS, and as much for the rest.
const EXCHANGE: Duration = Duration::from_secs(180);
/// Stack of the thread that joins: a TLS handshake needs most of it in a debug build.
pub(crate) const STACK_BYTES: usize = 512 * 1024;
/// Bytes of the head of an HTTP answer.
const HEAD_BYTES_MAX: usize = 2 * 1024;

/// Why a join failed, human-readable.
#[derive(Debug)]
pub enum JoinError {
    /// The text is not a [`Token`].
    Token,
    /// The URL is neither `mqtts://HOST[:PORT]` nor `https://HOST[:PORT]`.
    Url,
    /// Error of the network or of TLS, while doing this.
    Io(&'static str, io::Error),
    /// The TLS configuration is invalid.
    Tls(rustls::Error),
    /// The system's random source failed.
    Random,
    /// The cloud's reason.
    Refused(String),
    /// An HTTP answer that is not edge-cloud's: the status line.
    Http(String),
    /// The answer cannot be decoded.
    Answer,
    /// The certificate in the answer has already expired.
    CloudClock,
}

impl core::fmt::Display for JoinError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Token => f.write_str("token: not of the form em1.ID.SECRET.CA, 118 characters; make one with `edge-cloud token create`"),
            Self::Url => f.write_str("url: not of the form mqtts://HOST[:PORT] or https://HOST[:PORT]"),
            Self::Io(what, error) if tls::is_no_tls(error) => write!(f, "{what}: {NO_TLS}"),
            Self::Io(what, error) if tls::is_other_ca(error) => {
                write!(f, "{what}: the server has another CA than the token: is it the cloud that made the token?")
            }
            // rustls' own text contains a link to its manual.
            Self::Io(what, error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                write!(f, "{what}: it closed the connection without an answer")
            }
            // The error of a read after its timeout.
            Self::Io(what, error) if error.kind() == io::ErrorKind::WouldBlock => {
                write!(f, "{what}: no answer in time")
            }
            Self::Io(what, error) => write!(f, "{what}: {error}"),
            Self::Tls(error) => write!(f, "tls: {error}"),
            Self::Random => f.write_str("the system's random source failed"),
            Self::Refused(reason) => write!(f, "refused by the cloud: {reason}"),
            Self::Http(status) => write!(f, "the server answers {status}: is this port edge-cloud's?"),
            Self::CloudClock => {
                f.write_str("the new certificate has expired already: is the cloud's clock right?")
            }
            Self::Answer => f.write_str("the cloud's answer is not one of edge-join/1: is this port edge-cloud's?"),
        }
    }
}

impl core::error::Error for JoinError {}

/// Joins as `node` and stores the identity below `state`. Returns it and the cloud's time.
///
/// # Errors
/// See [`JoinError`]; then only the key is stored, for the next attempt.
pub fn join(
    url: &str,
    token_text: &str,
    node: &str,
    state: &Path,
    time: Clock,
) -> Result<(Identity, u64), JoinError> {
    let token = Token::parse(token_text.trim()).ok_or(JoinError::Token)?;
    let end = Endpoint::parse(url).ok_or(JoinError::Url)?;
    let (key, csr) = key_and_csr(node, state, &[])?;
    let message = JoinRequest {
        token_id: token.id.to_owned(),
        token_secret: token.secret.to_owned(),
        node: node.to_owned(),
        csr,
    }
    .to_wire();
    let config = tls::join_config(token.ca_sha256, end.https, time).map_err(JoinError::Tls)?;
    let issued = exchange_tls(&end, config, &message)?;
    let identity = Identity {
        node: node.to_owned(),
        key,
        certificate: issued.certificate,
        cas: issued.cas,
        cloud: url.to_owned(),
        broker: issued.broker,
    };
    identity
        .save(state)
        .map_err(|error| JoinError::Io("store the identity", error))?;
    Ok((identity, issued.unix_s))
}

/// Certificates and time that the cloud has issued.
pub(crate) struct Issued {
    pub(crate) certificate: Vec<u8>,
    pub(crate) cas: Vec<Vec<u8>>,
    pub(crate) unix_s: u64,
    pub(crate) broker: Option<Broker>,
}

/// Sends one request and receives its answer.
pub(crate) fn exchange_tls(
    end: &Endpoint,
    config: Arc<ClientConfig>,
    message: &[u8],
) -> Result<Issued, JoinError> {
    let name = ServerName::try_from(end.host.clone()).map_err(|_| JoinError::Url)?;
    let connection = ClientConnection::new(config, name).map_err(JoinError::Tls)?;
    let mut stream = StreamOwned::new(connection, connect(&end.host, end.port)?);
    let answer = if end.https {
        exchange_http(&mut stream, &end.host, message)?
    } else {
        exchange(&mut stream, message)?
    };
    let answer = JoinAnswer::from_wire(&answer).ok_or(JoinError::Answer)?;
    let issued = match answer {
        JoinAnswer::Refused { reason } => return Err(JoinError::Refused(reason)),
        JoinAnswer::Accepted {
            certificate,
            ca,
            unix_s,
        } => Issued {
            certificate,
            cas: vec![ca],
            unix_s,
            broker: None,
        },
        JoinAnswer::ExternalBroker {
            certificate,
            ca,
            unix_s,
            broker,
        } => Issued {
            certificate,
            cas: vec![ca],
            unix_s,
            broker: Some(broker),
        },
        JoinAnswer::Issued {
            certificate,
            cas,
            unix_s,
            broker,
        } => Issued {
            certificate,
            cas,
            unix_s,
            broker,
        },
    };
    match issued.cas.len() {
        1..=CAS_MAX => Ok(issued),
        _ => Err(JoinError::Answer),
    }
}

/// The setting that the config lacks for a join without a command; then only `edge-min join` helps.
#[must_use]
pub const fn lacks(config: &Config) -> Option<&'static str> {
    match (&config.token_file, &config.cloud, &config.node) {
        (None, ..) => Some("not joined: run edge-min join"),
        (_, None, _) => Some("not joined: token-file needs cloud in the config"),
        (.., None) => Some("not joined: token-file needs node in the config"),
        _ => None,
    }
}

/// Makes one attempt on a thread of its own, which then ends, with the token of the config and a name
/// from its template. It sends [`LinkEvent::Joined`] or [`LinkEvent::NotJoined`].
///
/// # Errors
/// The system's, when no thread can be started.
pub fn spawn(config: &Config, time: Clock, events: Sender<LinkEvent>) -> io::Result<()> {
    let (url, file) = (config.cloud.clone(), config.token_file.clone());
    let (template, state) = (config.node.clone(), config.state_dir.clone());
    let attempt = move || {
        let (Some(url), Some(file), Some(template)) = (url, file, template) else {
            return Err(JoinError::Url.to_string());
        };
        let token = std::fs::read_to_string(&file)
            .map_err(|error| [&file.to_string_lossy(), ": ", &error.to_string()].concat())?;
        // Resolved at each attempt: an interface may appear long after the agent has started.
        let node = template.resolve(Path::new(SYSFS))?;
        join(&url, &token, &node, &state, time).map_err(|error| error.to_string())
    };
    std::thread::Builder::new()
        .name("join".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            let result = match attempt() {
                Ok(joined) => LinkEvent::Joined(Box::new(joined)),
                Err(error) => LinkEvent::NotJoined(error),
            };
            // The driver runs as long as the process.
            events.send_blocking(result).ok();
        })
        .map(drop)
}

/// A key and its request. The key is stored on the medium before the request is sent: when the answer is
/// lost, the next attempt has the same key, and the cloud repeats its answer instead of refusing.
///
/// `old` is the current key; the new one must differ.
pub(crate) fn key_and_csr(
    node: &str,
    state: &Path,
    old: &[u8],
) -> Result<(Vec<u8>, Vec<u8>), JoinError> {
    let failed = |error| JoinError::Io("store the key", error);
    if let Some(key) = identity::pending_key(state).map_err(failed)?
        && key != old
        && let Some(csr) = csr::request(node, &key)
    {
        return Ok((key, csr));
    }
    let key = csr::generate().ok_or(JoinError::Random)?;
    identity::keep_key(state, &key).map_err(failed)?;
    let csr = csr::request(node, &key).ok_or(JoinError::Random)?;
    Ok((key, csr))
}

/// A connection with a total timeout: without it, a server that sends single bytes is awaited for ever.
struct Bounded {
    stream: TcpStream,
    end: Instant,
}

impl Bounded {
    fn new(stream: TcpStream, limit: Duration) -> Self {
        let end = Instant::now() + limit;
        Self { stream, end }
    }

    /// Timeout of the next read or write.
    fn left(&self) -> io::Result<Option<Duration>> {
        match self.end.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::WouldBlock.into()),
            left => Ok(Some(left.min(JOIN_TIMEOUT))),
        }
    }
}

impl io::Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buffer)
    }
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

fn connect(host: &str, port: u16) -> Result<Bounded, JoinError> {
    let failed = |error: io::Error| {
        let text = [host, ":", &port.to_string(), ": ", &error.to_string()].concat();
        JoinError::Io("connect to the cloud", io::Error::new(error.kind(), text))
    };
    let mut last = io::Error::other("the name has no address");
    for address in (host, port).to_socket_addrs().map_err(failed)? {
        match TcpStream::connect_timeout(&address, JOIN_TIMEOUT) {
            Ok(stream) => return Ok(Bounded::new(stream, EXCHANGE)),
            Err(error) => last = error,
        }
    }
    Err(failed(last))
}

fn exchange(
    stream: &mut StreamOwned<ClientConnection, Bounded>,
    message: &[u8],
) -> Result<Vec<u8>, JoinError> {
    let failed = |error| JoinError::Io("exchange with the cloud", error);
    let length = u16::try_from(message.len()).map_err(|_| JoinError::Answer)?;
    stream.write_all(&length.to_be_bytes()).map_err(failed)?;
    stream.write_all(message).map_err(failed)?;
    stream.flush().map_err(failed)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length).map_err(failed)?;
    let length = usize::from(u16::from_be_bytes(length));
    if length > ENROL_BYTES_MAX {
        return Err(JoinError::Answer);
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer).map_err(failed)?;
    Ok(answer)
}

/// The same two messages as the bodies of one HTTP request and its answer.
fn exchange_http(
    stream: &mut StreamOwned<ClientConnection, Bounded>,
    host: &str,
    message: &[u8],
) -> Result<Vec<u8>, JoinError> {
    let failed = |error| JoinError::Io("exchange with the cloud", error);
    let length = message.len().to_string();
    let head = [
        "POST ",
        HTTP_PATH,
        " HTTP/1.1\r\nhost: ",
        host,
        "\r\nconnection: close\r\ncontent-type: application/octet-stream\r\ncontent-length: ",
        &length,
        "\r\n\r\n",
    ];
    let request = [head.concat().as_bytes(), message].concat();
    stream.write_all(&request).map_err(failed)?;
    stream.flush().map_err(failed)?;
    let mut answer = Vec::new();
    let mut piece = [0; 1024];
    while answer.len() <= HEAD_BYTES_MAX + ENROL_BYTES_MAX {
        if let Some(body) = body(&answer)? {
            return Ok(body.to_vec());
        }
        let count = stream.read(&mut piece).map_err(failed)?;
        let piece = piece.get(..count).filter(|piece| !piece.is_empty());
        answer.extend_from_slice(piece.ok_or(JoinError::Answer)?);
    }
    Err(JoinError::Answer)
}

/// The body of an HTTP answer, once it is complete. An answer other than 200 with a length is
/// not edge-cloud's.
fn body(answer: &[u8]) -> Result<Option<&[u8]>, JoinError> {
    const END: &[u8] = b"\r\n\r\n";
    let Some(end) = answer.windows(END.len()).position(|bytes| bytes == END) else {
        return Ok(None);
    };
    let (head, rest) = answer.split_at(end);
    let head = core::str::from_utf8(head).map_err(|_| JoinError::Answer)?;
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if !status.starts_with("HTTP/1.1 200") {
        return Err(JoinError::Http(status.to_owned()));
    }
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<usize>().ok())
        .filter(|length| *length <= ENROL_BYTES_MAX)
        .ok_or(JoinError::Answer)?;
    Ok(rest.get(END.len()..END.len() + length))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a server that sends single bytes, and never the last one, is given up.
    #[test]
    fn a_server_that_trickles_is_given_up() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        std::thread::Builder::new()
            .spawn(move || while far.write_all(b"x").is_ok() {})
            .unwrap();
        let mut bounded = Bounded::new(stream, Duration::from_millis(200));
        let error = io::copy(&mut bounded, &mut io::sink()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn an_http_answer_counts_when_it_is_whole() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\ndate: x\r\n\r\nabc";
        for end in 0..whole.len() {
            assert!(matches!(body(&whole[..end]), Ok(None)), "{end}");
        }
        assert_eq!(body(whole).unwrap(), Some(b"abc".as_slice()));
        for wrong in [
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
            "\r\n\r\n",
        ] {
            assert!(body(wrong.as_bytes()).is_err(), "{wrong}");
        }
        assert!(body(b"\xff\r\n\r\n").is_err());
    }
}
