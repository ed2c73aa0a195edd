//! Records to an HTTP server: a POST of lines for each plan, with the header `Idempotency-Key`. Any
//! 2xx confirms that the server has stored them durably.
//!
//! At least once, with a key: the same key means the same records, and a POST whose answer was lost
//! is repeated with it. After a crash of edge-cloud the records may be divided differently into POSTs;
//! a server that stores the highest `seq` of each node, incarnation and class accepts each record once.
//!
//! Bound: [`ANSWER`] for an answer, [`BODY_BYTES_MAX`] of it are read, and as many connections as
//! there are writers.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{HOST, HeaderValue};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::ledger::Plan;
use super::line;
use super::target::{Config, Server};

/// Timeout of connecting and the answer together.
const ANSWER: Duration = Duration::from_secs(30);
/// Bytes of an answer's body that are read; its content is not used.
const BODY_BYTES_MAX: usize = 64 * 1024;

type Sender = SendRequest<Full<Bytes>>;

/// Client of one HTTP server.
pub(super) struct Http {
    server: Server,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    auth: Option<HeaderValue>,
    /// Idle connections; at most as many as there are writers.
    idle: Mutex<Vec<Sender>>,
}

impl Http {
    pub(super) fn open(server: Server, config: &Config) -> io::Result<Self> {
        let tls = match server.tls {
            false => None,
            true => {
                let name = ServerName::try_from(server.host.clone()).map_err(io::Error::other)?;
                Some((TlsConnector::from(config.tls()?), name))
            }
        };
        let bearer = |token: String| HeaderValue::try_from(format!("Bearer {token}"));
        let auth = config.auth()?.map(bearer).transpose();
        let mut auth = auth.map_err(io::Error::other)?;
        if let Some(auth) = &mut auth {
            auth.set_sensitive(true);
        }
        Ok(Self {
            server,
            tls,
            auth,
            idle: Mutex::default(),
        })
    }

    pub(super) async fn deliver(&self, node: &str, plan: &Plan) -> Result<(), String> {
        tokio::time::timeout(ANSWER, self.post(node, plan))
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER.as_secs())))
    }

    async fn post(&self, node: &str, plan: &Plan) -> Result<(), String> {
        let body = Bytes::from(line::all(node, plan));
        let idle = self.idle().pop().filter(Sender::is_ready);
        let reused = idle.is_some();
        let mut sender = match idle {
            Some(sender) => sender,
            None => self.connect().await.map_err(|error| error.to_string())?,
        };
        let mut response = sender
            .send_request(self.request(node, plan, body.clone())?)
            .await;
        if response.is_err() && reused {
            // The server may have closed it meanwhile; the key makes a repeat harmless.
            sender = self.connect().await.map_err(|error| error.to_string())?;
            response = sender.send_request(self.request(node, plan, body)?).await;
        }
        let response = response.map_err(|error| error.to_string())?;
        let status = response.status();
        // Read to its end, or the connection cannot be used again.
        let read = Limited::new(response.into_body(), BODY_BYTES_MAX);
        let whole = read.collect().await.is_ok();
        if !status.is_success() {
            return Err(format!("the server answers {status}"));
        }
        if whole {
            self.idle().push(sender);
        }
        Ok(())
    }

    fn request(
        &self,
        node: &str,
        plan: &Plan,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, String> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("/{}", self.server.path))
            .header(HOST, self.server.place())
            .header("content-type", "application/x-ndjson")
            .header("idempotency-key", plan.key(node));
        if let Some(auth) = &self.auth {
            request = request.header("authorization", auth);
        }
        request
            .body(Full::new(body))
            .map_err(|error| error.to_string())
    }

    async fn connect(&self) -> io::Result<Sender> {
        let stream = TcpStream::connect((self.server.host.as_str(), self.server.port)).await?;
        stream.set_nodelay(true)?;
        match &self.tls {
            None => speak(TokioIo::new(stream)).await,
            Some((tls, name)) => {
                let stream = tls.connect(name.clone(), stream).await?;
                speak(TokioIo::new(stream)).await
            }
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Sender>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn speak<S>(stream: S) -> io::Result<Sender>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (sender, connection) = handshake(stream).await.map_err(io::Error::other)?;
    // Its error is also the sender's.
    drop(tokio::spawn(connection));
    Ok(sender)
}
