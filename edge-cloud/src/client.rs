//! The CLI's end of the API's unix socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::{Method, Request, Response, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::api::{ApiError, SOCKET};

/// Largest JSON answer that is read: 5,000 nodes take about 5 MB.
const ANSWER_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Longest wait for the first byte of an answer, and between two pieces of it: longer than
/// the server's own with a node.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("edge-cloud does not answer on {}: is `edge-cloud serve` running with this --data? ({error})", .socket.display())]
    Unreachable {
        /// Path of the socket.
        socket: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// It is not for this user.
    #[error("{}: {error}", .socket.display())]
    Denied {
        /// Path of the socket.
        socket: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// The server refuses.
    #[error("{0}")]
    Refused(String),
    /// The answer broke off or is not what was asked for.
    #[error("the answer cannot be read: {0}")]
    Answer(String),
}

/// Sends one request.
///
/// # Errors
/// See [`ClientError`].
pub async fn send(
    data: &Path,
    method: Method,
    target: &str,
    body: Vec<u8>,
) -> Result<Response<Incoming>, ClientError> {
    let answer = |error: hyper::Error| ClientError::Answer(error.to_string());
    let socket = data.join(SOCKET);
    let stream = UnixStream::connect(&socket)
        .await
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::PermissionDenied => ClientError::Denied { socket, error },
            _ => ClientError::Unreachable { socket, error },
        })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(answer)?;
    // Its error is also the sender's or the body's.
    drop(tokio::spawn(connection));
    let request = Request::builder()
        .method(method)
        .uri(target)
        .header("host", "edge-cloud")
        .header("content-type", "application/json")
        .body(Full::<Bytes>::from(body))
        .map_err(|error| ClientError::Answer(error.to_string()))?;
    let response = timely(sender.send_request(request))
        .await?
        .map_err(answer)?;
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status();
    let body = read(response).await?;
    let reason = match serde_json::from_slice::<ApiError>(&body) {
        Ok(error) => error.error,
        Err(_) if status == StatusCode::NOT_FOUND => "the server does not know this".to_owned(),
        Err(_) => format!("{status}: {}", String::from_utf8_lossy(&body)),
    };
    Err(ClientError::Refused(reason))
}

/// Sends one request and reads its JSON.
///
/// # Errors
/// See [`ClientError`].
pub async fn json<T: DeserializeOwned>(
    data: &Path,
    method: Method,
    target: &str,
    body: Vec<u8>,
) -> Result<T, ClientError> {
    let response = send(data, method, target, body).await?;
    serde_json::from_slice(&read(response).await?)
        .map_err(|error| ClientError::Answer(error.to_string()))
}

/// Waits no longer than [`ANSWER_TIMEOUT`].
///
/// # Errors
/// [`ClientError::Answer`].
pub async fn timely<T>(work: impl Future<Output = T>) -> Result<T, ClientError> {
    tokio::time::timeout(ANSWER_TIMEOUT, work)
        .await
        .map_err(|_| {
            let seconds = ANSWER_TIMEOUT.as_secs();
            ClientError::Answer(format!("edge-cloud sent nothing for {seconds} s"))
        })
}

async fn read(response: Response<Incoming>) -> Result<Bytes, ClientError> {
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
    let body = timely(body.collect()).await?;
    body.map(|body| body.to_bytes())
        .map_err(|error| ClientError::Answer(error.to_string()))
}
