//! The local API for workloads: HTTP/1.1 on the unix socket `RUN/api/edge.sock`, in a folder of its
//! own that a pod mounts. [`CONNECTIONS_MAX`] connections at once; when one more waits, the one that
//! has been idle longest is closed. A connection has at most [`PIPELINE_MAX`] requests without an answer,
//! further ones wait in the socket.
//!
//! `POST /v1/records/CLASS` stores the body as a record: 201 when it is durable, 202 when it will be
//! soon. `GET /v1/records` answers the counters. `docs/outbox.md` specifies all of it.

use std::cell::Cell;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_channel::{Receiver, Sender};
use edge_proto::limits::RECORD_BYTES_MAX;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use smol::future::or;
use smol::io::{AsyncReadExt as _, AsyncWriteExt as _};
use smol::net::unix::{UnixListener, UnixStream};
use smol::{Async, Timer};

use super::http::{self, Head, Parsed};
use crate::local::status;
use crate::paths;
use crate::storage::outbox::{self, Answer, Class, Job, Report, Shared};
use crate::storage::tree;

/// Connections served at once.
pub const CONNECTIONS_MAX: usize = 8;
/// Requests of one connection that wait for the same answer from the medium.
const PIPELINE_MAX: usize = 16;
/// Time after a request's first byte in which the client must complete it, and in which it must take the
/// answer; otherwise the connection is closed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection without a request is closed after this.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause when the system has no descriptor left.
const ACCEPT_RETRY: Duration = Duration::from_millis(250);
/// Value of a place without a connection.
const FREE: u64 = 0;
/// Value of a place whose connection has a request.
const BUSY: u64 = u64::MAX;

/// Shared state of all connections.
pub struct Api {
    /// Classes of the outbox, by which paths are checked.
    pub classes: Vec<Class>,
    /// To the thread of the outbox.
    pub jobs: Sender<Job>,
    /// Newest report of the outbox.
    pub shared: Shared,
    /// By place: [`FREE`], [`BUSY`], or a number that grows with the time since which it is idle.
    pub places: [Cell<u64>; CONNECTIONS_MAX],
    /// How often a connection has become idle.
    idle_count: Cell<u64>,
}

impl Api {
    /// Serves `classes` from the outbox behind `jobs`.
    #[must_use]
    pub fn new(classes: Vec<Class>, jobs: Sender<Job>, shared: Shared) -> Self {
        Self {
            classes,
            jobs,
            shared,
            places: Default::default(),
            idle_count: Cell::new(FREE),
        }
    }
}

/// Listens; a socket left behind by a killed agent is replaced. Every process that sees the folder may write:
/// a container sees it when its pod mounts it.
///
/// # Errors
/// Those of the file system.
pub fn listen(run_dir: &Path) -> io::Result<UnixListener> {
    let (path, dir) = (paths::api_socket(run_dir), paths::api(run_dir));
    std::fs::create_dir_all(&dir)?;
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755))?;
    // Containers write in this folder, so anything may be there. The socket is made where they cannot reach
    // it, and replaces what has its name in one step.
    let made = run_dir
        .join(path.file_name().unwrap_or_default())
        .with_extension(paths::TEMPORARY);
    tree::remove(&made)?;
    let listener = UnixListener::bind(&made)?;
    std::fs::set_permissions(&made, std::fs::Permissions::from_mode(0o666))?;
    if std::fs::rename(&made, &path).is_err() {
        // A directory is in the way. It is moved and not removed, because its content may be exchanged for
        // a link while it is read.
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let unused = now.unwrap_or_default().as_nanos().to_string();
        std::fs::rename(&path, path.with_extension(unused))?;
        std::fs::rename(&made, &path)?;
    }
    Ok(listener)
}

/// Serves one connection after the other; run one of these for each place.
pub async fn serve(listener: &UnixListener, api: &Api, place: &Cell<u64>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_RETRY).await;
            continue;
        };
        place.set(BUSY);
        // A client that has disconnected needs no answer.
        connection(stream, listener, api, place).await.ok();
        place.set(FREE);
    }
}

/// Completes when an idle connection is to be closed: after its timeout, or because another waits, all places
/// are taken, and no other has been idle longer.
async fn idle_until_closed(listener: &UnixListener, api: &Api, place: &Cell<u64>) {
    let waiting: Arc<Async<net::UnixListener>> = listener.clone().into();
    api.idle_count.set(api.idle_count.get() + 1);
    place.set(api.idle_count.get());
    let gives_way = async {
        loop {
            waiting.readable().await.ok();
            // Another place may have accepted the connection in the meantime.
            let mut waiting = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            if api.places.iter().all(|other| other.get() >= place.get())
                && poll(&mut waiting, PollTimeout::ZERO) == Ok(1)
            {
                break;
            }
        }
    };
    or(sleep(IDLE_TIMEOUT), gives_way).await;
}

async fn sleep(time: Duration) {
    Timer::after(time).await;
}

/// An answer, or the channel from which it will come.
enum Pending {
    Now(&'static str, String),
    Stored(Receiver<Answer>, usize),
}

async fn connection(
    mut stream: UnixStream,
    listener: &UnixListener,
    api: &Api,
    place: &Cell<u64>,
) -> io::Result<()> {
    let mut input = Vec::new();
    let mut begun = Instant::now();
    loop {
        let mut pending = Vec::new();
        let mut close = false;
        while !close && pending.len() < PIPELINE_MAX {
            match http::parse(&input) {
                Parsed::Partial => break,
                Parsed::Bad(status) => {
                    pending.push(Pending::Now(status, String::new()));
                    close = true;
                }
                Parsed::Whole(head, _) if head.body_bytes > RECORD_BYTES_MAX => {
                    pending.push(Pending::Now("413 Content Too Large", String::new()));
                    close = true;
                }
                Parsed::Whole(head, length) => {
                    let end = length + head.body_bytes;
                    let Some(body) = input.get(length..end) else {
                        if head.expects && input.len() == length && pending.is_empty() {
                            write(&mut stream, b"HTTP/1.1 100 Continue\r\n\r\n").await?;
                        }
                        break;
                    };
                    close = head.close;
                    pending.push(answer(api, &head, body.to_vec()).await);
                    input.drain(..end);
                }
            }
        }
        if pending.is_empty() {
            let is_at_rest = input.is_empty();
            let end = async {
                if is_at_rest {
                    idle_until_closed(listener, api, place).await;
                } else {
                    sleep(REQUEST_TIMEOUT.saturating_sub(begun.elapsed())).await;
                }
            };
            if read(&mut stream, &mut input, end).await? == 0 {
                return Ok(());
            }
            place.set(BUSY);
            if is_at_rest {
                begun = Instant::now();
            }
            continue;
        }
        let mut output = Vec::new();
        for one in pending {
            let (status, body) = match one {
                Pending::Now(status, body) => (status, body),
                Pending::Stored(answer, class) => stored(api, answer.recv().await.ok(), class),
            };
            reply(&mut output, status, &body, close);
        }
        write(&mut stream, &output).await?;
        if close {
            return Ok(());
        }
        begun = Instant::now();
    }
}

async fn read(
    stream: &mut UnixStream,
    into: &mut Vec<u8>,
    end: impl Future<Output = ()>,
) -> io::Result<usize> {
    // At most one request of the largest kind beyond the expected bytes.
    let mut buffer = [0; 1024];
    let count = or(stream.read(&mut buffer), async {
        end.await;
        Ok(0)
    })
    .await?;
    into.extend_from_slice(buffer.get(..count).unwrap_or_default());
    Ok(count)
}

async fn write(stream: &mut UnixStream, bytes: &[u8]) -> io::Result<()> {
    or(stream.write_all(bytes), async {
        sleep(REQUEST_TIMEOUT).await;
        Err(io::ErrorKind::TimedOut.into())
    })
    .await
}

async fn answer(api: &Api, head: &Head<'_>, body: Vec<u8>) -> Pending {
    let path = head.target.split('?').next().unwrap_or_default();
    let Some(name) = path.strip_prefix("/v1/records") else {
        return Pending::Now("404 Not Found", text("try /v1/records"));
    };
    if name.is_empty() {
        return match head.method {
            "GET" => Pending::Now(
                "200 OK",
                counters(&outbox::report(&api.shared), &api.classes),
            ),
            _ => Pending::Now("405 Method Not Allowed", text("GET /v1/records")),
        };
    }
    let place = api
        .classes
        .iter()
        .position(|class| name.strip_prefix('/') == Some(&class.name));
    let Some((place, class)) = place.and_then(|place| Some((place, api.classes.get(place)?)))
    else {
        return Pending::Now("404 Not Found", text("no such class in the node's config"));
    };
    if head.method != "POST" {
        return Pending::Now("405 Method Not Allowed", text("POST /v1/records/CLASS"));
    }
    let (reply, answer) = async_channel::bounded(1);
    let job = Job::Append {
        class: class.config.number,
        must: class.must,
        key: head.key.as_bytes().to_vec(),
        unix_ms: head.unix_ms.unwrap_or_else(outbox::unix_ms),
        bytes: body,
        reply,
    };
    match api.jobs.send(job).await {
        Ok(()) => Pending::Stored(answer, place),
        Err(_) => Pending::Now("503 Service Unavailable", text("the agent stops")),
    }
}

fn stored(api: &Api, answer: Option<Answer>, place: usize) -> (&'static str, String) {
    let class = api.classes.get(place);
    match answer {
        Some(Answer::Stored {
            incarnation,
            sequence,
        }) => {
            let status = if class.is_none_or(|class| class.must) {
                "201 Created"
            } else {
                "202 Accepted"
            };
            let name = class.map_or("", |class| class.name.as_str());
            let body = [
                "{\"incarnation\":\"",
                &status::hex(incarnation),
                "\",\"class\":\"",
                name,
                "\",\"sequence\":",
                &sequence.to_string(),
                "}\n",
            ];
            (status, body.concat())
        }
        Some(Answer::Full) => (
            "429 Too Many Requests",
            text("the quota is full of records of more important classes"),
        ),
        Some(Answer::Medium(reason)) => ("507 Insufficient Storage", text(reason)),
        None => ("503 Service Unavailable", text("the outbox stopped")),
    }
}

fn text(message: &str) -> String {
    [message, "\n"].concat()
}

/// The counters as JSON. For each class `appended` is the sum of the others except `bytes`.
fn counters(report: &Report, classes: &[Class]) -> String {
    let rows = status::Outbox::new(report, classes);
    serde_json::to_string(&rows).unwrap_or_default() + "\n"
}

fn reply(out: &mut Vec<u8>, status: &str, body: &str, close: bool) {
    let kind = if body.starts_with('{') {
        "application/json"
    } else {
        "text/plain"
    };
    let close = if close { "\r\nConnection: close" } else { "" };
    let length = body.len().to_string();
    for part in [
        "HTTP/1.1 ",
        status,
        "\r\nContent-Type: ",
        kind,
        "\r\nContent-Length: ",
        &length,
        close,
        "\r\n\r\n",
        body,
    ] {
        out.extend_from_slice(part.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Goal: what a container has put at the socket's name is replaced, and nothing outside is changed. Method:
    /// a link to a file, a directory with a link to a folder, and an earlier socket.
    #[test]
    fn whatever_has_the_name_of_the_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (run, board) = (dir.path().join("run"), dir.path().join("board"));
        fs::create_dir(&board).unwrap();
        let file = board.join("file");
        fs::write(&file, "of the board").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let path = paths::api_socket(&run);
        fs::create_dir_all(paths::api(&run)).unwrap();
        let link: fn(&Path, &Path) = |path, board| symlink(board.join("file"), path).unwrap();
        let folder: fn(&Path, &Path) = |path, board| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
            symlink(board, path.join("below")).unwrap();
        };
        let nothing: fn(&Path, &Path) = |_, _| {};
        for put in [link, nothing, folder, folder] {
            put(&path, &board);
            let _listener = listen(&run).unwrap();
            net::UnixStream::connect(&path).unwrap();
            assert_eq!(
                fs::metadata(&path).unwrap().permissions().mode() & 0o777,
                0o666
            );
            assert_eq!(
                fs::metadata(&file).unwrap().permissions().mode() & 0o777,
                0o600
            );
            assert_eq!(fs::read(&file).unwrap(), b"of the board");
        }
    }
}
