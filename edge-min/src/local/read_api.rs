//! The read-only local API: HTTP/1.0 on the unix socket `RUN/edge-min.sock`, for the CLI and for
//! `curl --unix-socket`. [`CONNECTIONS_MAX`] requests at once, further ones wait in the backlog.
//!
//! `GET /v1/status` answers JSON; `GET /v1/logs/NAMESPACE/POD/CONTAINER?tail=BYTES&follow=1`
//! answers the container's output (`-` as CONTAINER: the only one).

use std::io;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_channel::Sender;
use edge_core::limits::LOG_LOOK_MS;
use smol::Timer;
use smol::future::or;
use smol::io::{AsyncReadExt as _, AsyncWriteExt as _};
use smol::net::unix::{UnixListener, UnixStream};

use crate::paths;

/// Requests served at once.
pub const CONNECTIONS_MAX: usize = 4;
/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 2048;
/// A client that sends nothing for this long is dropped.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval of reading a followed log.
const LOOK_INTERVAL: Duration = Duration::from_millis(LOG_LOOK_MS);
/// Pause when a connection cannot be taken, for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);

/// Request to the driver.
pub enum Request {
    /// The status as JSON.
    Status(Sender<String>),
    /// The file that holds a container's output.
    LogFile {
        /// Namespace of the pod.
        namespace: String,
        /// Name of the pod.
        pod: String,
        /// Container; empty is the only one.
        container: String,
        /// The path and whether the container has ended for good, or an error.
        reply: Sender<Result<(PathBuf, bool), String>>,
    },
}

/// Listens; a socket left behind by a killed agent is replaced. Only root may connect.
///
/// # Errors
/// Those of the file system.
pub fn listen(run_dir: &Path) -> io::Result<UnixListener> {
    let path = paths::agent_socket(run_dir);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves one connection after the other; run [`CONNECTIONS_MAX`] of these.
pub async fn serve(listener: &UnixListener, requests: &Sender<Request>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            Timer::after(ACCEPT_PAUSE).await;
            continue;
        };
        // A client that has disconnected needs no answer.
        drop(answer(stream, requests).await);
    }
}

async fn answer(mut stream: UnixStream, requests: &Sender<Request>) -> io::Result<()> {
    let head = or(read_head(&mut stream), async {
        Timer::after(REQUEST_TIMEOUT).await;
        Err(io::ErrorKind::TimedOut.into())
    })
    .await?;
    let mut words = head.split_whitespace();
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    if method != "GET" {
        return reply(&mut stream, "405 Method Not Allowed", "only GET\n").await;
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut parts = path.trim_start_matches('/').split('/');
    match (
        parts.next(),
        parts.next(),
        parts.next(),
        parts.next(),
        parts.next(),
        parts.next(),
    ) {
        (Some("v1"), Some("status"), None, ..) => {
            let (sender, receiver) = async_channel::bounded(1);
            let text = match requests.send(Request::Status(sender)).await {
                Ok(()) => receiver.recv().await.unwrap_or_default(),
                Err(_) => String::new(),
            };
            reply(&mut stream, "200 OK", &text).await
        }
        (Some("v1"), Some("logs"), Some(namespace), Some(pod), Some(container), None) => {
            let log = Log {
                requests,
                namespace,
                pod,
                container: if container == "-" { "" } else { container },
            };
            match log.find().await {
                Ok((file, _)) => logs(&mut stream, &log, &file, query).await,
                Err(reason) => reply(&mut stream, "404 Not Found", &(reason + "\n")).await,
            }
        }
        _ => {
            reply(
                &mut stream,
                "404 Not Found",
                "try /v1/status or /v1/logs/NAMESPACE/POD/CONTAINER\n",
            )
            .await
        }
    }
}

async fn read_head(stream: &mut UnixStream) -> io::Result<String> {
    let mut head = Vec::with_capacity(HEAD_BYTES_MAX);
    let mut buffer = [0; 512];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        let count = stream.read(&mut buffer).await?;
        if count == 0 || head.len() + count > HEAD_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        head.extend_from_slice(buffer.get(..count).unwrap_or_default());
    }
    String::from_utf8(head).map_err(|_| io::ErrorKind::InvalidData.into())
}

async fn reply(stream: &mut UnixStream, code: &str, body: &str) -> io::Result<()> {
    let kind = if body.starts_with('{') {
        "application/json"
    } else {
        "text/plain"
    };
    let head = ["HTTP/1.0 ", code, "\r\nContent-Type: ", kind, "\r\n\r\n"].concat();
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await
}

/// The log that a client requested.
struct Log<'a> {
    requests: &'a Sender<Request>,
    namespace: &'a str,
    pod: &'a str,
    container: &'a str,
}

impl Log<'_> {
    async fn find(&self) -> Result<(PathBuf, bool), String> {
        let (sender, receiver) = async_channel::bounded(1);
        let request = Request::LogFile {
            namespace: self.namespace.to_owned(),
            pod: self.pod.to_owned(),
            container: self.container.to_owned(),
            reply: sender,
        };
        let stops = || Err("the agent stops".to_owned());
        if self.requests.send(request).await.is_err() {
            return stops();
        }
        receiver.recv().await.unwrap_or_else(|_| stops())
    }

    /// Whether `file` is final: its container has ended for good, its pod
    /// is gone, or another has the same name now.
    async fn is_over(&self, file: &Path) -> bool {
        !matches!(self.find().await, Ok((now, false)) if now == file)
    }
}

/// Returns after an interval, or at once and with `true` when the client has disconnected: it sends nothing,
/// so the only thing to read is its end. Without this a quiet log would hold its connection forever.
async fn is_left(stream: &UnixStream) -> bool {
    let mut stream = stream.clone();
    let mut byte = [0; 1];
    let gone = async { !matches!(stream.read(&mut byte).await, Ok(1..)) };
    or(gone, async {
        Timer::after(LOOK_INTERVAL).await;
        false
    })
    .await
}

async fn logs(stream: &mut UnixStream, log: &Log<'_>, file: &Path, query: &str) -> io::Result<()> {
    let value = |name: &str| {
        query
            .split('&')
            .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    };
    let tail = value("tail")
        .and_then(|text| text.parse().ok())
        .unwrap_or(u64::MAX);
    let follow = value("follow") == Some("1");
    let Range { mut start, end } = match crate::workload::logs::tail_of(file, tail) {
        Ok(found) => found,
        Err(error) => {
            let reason = error.to_string() + "\n";
            return reply(stream, "503 Service Unavailable", &reason).await;
        }
    };
    stream
        .write_all(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n")
        .await?;
    // A log that is not followed ends where it ended: its container may write faster than a client reads.
    let end = if follow { u64::MAX } else { end };
    let mut over = !follow;
    loop {
        let (at, mut bytes) = crate::workload::logs::read_from(file, start)?;
        bytes.truncate(usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX));
        if bytes.is_empty() {
            if over || !file.exists() || is_left(stream).await {
                return Ok(());
            }
            // Before the last look, so that nothing written meanwhile is lost.
            over = log.is_over(file).await;
            continue;
        }
        start = at + bytes.len() as u64;
        stream.write_all(&bytes).await?;
    }
}
