//! The HTTP/JSON API: all of it on the unix socket `DATA/api.sock`, which only its owner may
//! open, and the `GET`s (without logs) on `--http ADDR`.

mod view;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path as Segments, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{delete, get, post};
use bytes::Bytes;
use edge_proto::call::{CODE_BUSY, LogsRequest, METHOD_LOGS};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, watch};

use crate::metrics;
use crate::nodes::{
    CaAdmin, CaView, CallError, Calls, EventLog, LabelChange, NodeAdmin, NodeReports,
    RecordReports, TokenRow, TokenSpec,
};
use crate::source::Status;

pub use view::{ContainerRow, NodeRow, PodRow, ProblemRow};

/// Name of the socket in the data folder.
pub const SOCKET: &str = "api.sock";
/// Longest validity of a join token: a year.
pub const TOKEN_TTL_S_MAX: u64 = 366 * 24 * 3600;
/// Most uses of one join token.
pub const TOKEN_USES_MAX: u32 = 1_000_000;

/// Longest wait for the beginning of a node's answer, and for the whole of a reason: longer than the
/// session waits for a silent node, whose error is more specific than ours.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// State that the handlers share.
struct App<N> {
    nodes: Arc<N>,
    status: watch::Receiver<Status>,
}

impl<N> Clone for App<N> {
    fn clone(&self) -> Self {
        Self {
            nodes: Arc::clone(&self.nodes),
            status: self.status.clone(),
        }
    }
}

/// An error that a client gets as `{"error": ..}`.
#[derive(Debug, Serialize, Deserialize)]
pub struct ApiError {
    /// Human-readable.
    pub error: String,
}

fn fail(code: StatusCode, error: impl Into<String>) -> Response {
    let error = error.into();
    (code, Json(ApiError { error })).into_response()
}

/// Answer when a node was revoked or deleted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct NodeAnswer {
    /// Its name.
    pub node: String,
    /// Secrets that it holds for the pods that it was asked to run, as `NAMESPACE/NAME`.
    #[serde(default)]
    pub secrets: BTreeSet<String>,
}

/// Body of `POST /v1/ca/retire`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetireRequest {
    /// Number of nodes that depend on the old CA and are to be revoked. With any other number nothing is
    /// done. Absent: only if no node depends on it.
    #[serde(default)]
    pub force: Option<usize>,
}

/// Answer of `POST /v1/tokens`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TokenAnswer {
    /// The token. It is a secret and is shown once.
    pub token: String,
}

/// Query parameters of `GET /v1/logs/...`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogsQuery {
    /// Bytes from the end; 0 or absent is everything that the node keeps.
    #[serde(default)]
    pub tail: u32,
    /// Continue until the client disconnects.
    #[serde(default)]
    pub follow: bool,
}

/// Routes that change nothing and reveal only status.
fn read_only<N>() -> Router<App<N>>
where
    N: NodeReports + EventLog + RecordReports + CaAdmin,
{
    Router::new()
        .route("/v1/nodes", get(nodes::<N>))
        .route("/v1/pods", get(pods::<N>))
        .route("/v1/events", get(events::<N>))
        .route("/v1/problems", get(problems::<N>))
        .route("/v1/records", get(records::<N>))
        .route("/v1/ca", get(ca::<N>))
        .route("/metrics", get(metrics::<N>))
}

/// All routes.
fn full<N>() -> Router<App<N>>
where
    N: NodeReports + EventLog + RecordReports + CaAdmin + Calls + NodeAdmin,
{
    read_only::<N>()
        .route(
            "/v1/logs/{node}/{namespace}/{pod}/{container}",
            get(logs::<N>),
        )
        .route("/v1/logs/{node}/{namespace}/{pod}", get(only_logs::<N>))
        .route("/v1/tokens", post(create_token::<N>).get(list_tokens::<N>))
        .route("/v1/tokens/{id}", delete(revoke_token::<N>))
        .route("/v1/nodes/{node}/approve", post(approve_node::<N>))
        .route("/v1/nodes/{node}/labels", post(label_node::<N>))
        .route("/v1/nodes/{node}", delete(delete_node::<N>))
        .route("/v1/nodes/{node}/revoke", post(revoke_node::<N>))
        .route("/v1/ca/rotate", post(rotate_ca::<N>))
        .route("/v1/ca/retire", post(retire_ca::<N>))
}

/// Listens on the unix socket of `data`; one left behind by a killed server is replaced.
///
/// # Errors
/// Those of the file system.
pub fn listen(data: &Path) -> std::io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = data.join(SOCKET);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves everything on the unix socket, and the read-only part on `http`, for ever.
///
/// # Errors
/// Those of the sockets.
pub async fn serve<N>(
    socket: UnixListener,
    http: Option<TcpListener>,
    nodes: Arc<N>,
    status: watch::Receiver<Status>,
) -> std::io::Result<()>
where
    N: NodeReports + EventLog + RecordReports + CaAdmin + Calls + NodeAdmin,
{
    let app = App { nodes, status };
    let local = axum::serve(socket, full::<N>().with_state(app.clone()));
    match http {
        None => local.await,
        Some(http) => {
            let remote = axum::serve(http, read_only::<N>().with_state(app));
            tokio::try_join!(local.into_future(), remote.into_future()).map(|_| ())
        }
    }
}

async fn nodes<N: NodeReports>(State(app): State<App<N>>) -> Json<Vec<NodeRow>> {
    let status = app.status.borrow();
    Json(view::nodes(&app.nodes.views(), &status.placement))
}

async fn pods<N: NodeReports>(State(app): State<App<N>>) -> Json<Vec<PodRow>> {
    let status = app.status.borrow();
    Json(view::pods(&app.nodes.views(), &status.placement))
}

async fn events<N: EventLog>(State(app): State<App<N>>) -> Json<Vec<crate::nodes::Event>> {
    Json(app.nodes.events())
}

async fn problems<N: Send + Sync + 'static>(State(app): State<App<N>>) -> Json<Vec<ProblemRow>> {
    let status = app.status.borrow();
    Json(view::problems(&status))
}

async fn records<N: RecordReports>(State(app): State<App<N>>) -> Json<crate::records::View> {
    Json(app.nodes.records())
}

async fn metrics<N: NodeReports + RecordReports + CaAdmin>(State(app): State<App<N>>) -> Response {
    let status = app.status.borrow();
    match metrics::text(
        &app.nodes.views(),
        &status,
        &app.nodes.records(),
        &app.nodes.cas(),
    ) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => fail(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

async fn create_token<N: NodeAdmin>(
    State(app): State<App<N>>,
    Json(request): Json<TokenSpec>,
) -> Response {
    if !(1..=TOKEN_USES_MAX).contains(&request.uses) {
        let reason = format!("uses must be from 1 to {TOKEN_USES_MAX}");
        return fail(StatusCode::BAD_REQUEST, reason);
    }
    if !(1..=TOKEN_TTL_S_MAX).contains(&request.ttl_s) {
        let reason = format!("ttl_s must be from 1 to {TOKEN_TTL_S_MAX}");
        return fail(StatusCode::BAD_REQUEST, reason);
    }
    if let Err(error) = request.grants.check() {
        return fail(StatusCode::BAD_REQUEST, error);
    }
    match app.nodes.create_token(request).await {
        Ok(token) => Json(TokenAnswer { token }).into_response(),
        Err(error) => fail(StatusCode::INTERNAL_SERVER_ERROR, error),
    }
}

async fn list_tokens<N: NodeAdmin>(State(app): State<App<N>>) -> Json<Vec<TokenRow>> {
    Json(app.nodes.tokens())
}

async fn revoke_token<N: NodeAdmin>(
    State(app): State<App<N>>,
    Segments(id): Segments<String>,
) -> Response {
    match app.nodes.revoke_token(&id).await {
        Ok(true) => Json(serde_json::json!({ "id": id })).into_response(),
        Ok(false) => fail(StatusCode::NOT_FOUND, format!("there is no token {id}")),
        Err(error) => fail(StatusCode::INTERNAL_SERVER_ERROR, error),
    }
}

async fn approve_node<N: NodeAdmin>(
    State(app): State<App<N>>,
    Segments(node): Segments<String>,
) -> Response {
    done(&node, BTreeSet::new(), app.nodes.approve(&node).await)
}

async fn label_node<N: NodeAdmin>(
    State(app): State<App<N>>,
    Segments(node): Segments<String>,
    Json(change): Json<LabelChange>,
) -> Response {
    done(&node, BTreeSet::new(), app.nodes.label(&node, change).await)
}

/// Secrets that a node was given for the pods that it is asked to run.
fn secrets_of(status: &Status, node: &str) -> BTreeSet<String> {
    let pods = status.placement.pods.values();
    let here = pods.filter(|placed| placed.node == node);
    here.flat_map(|placed| placed.secrets()).collect()
}

async fn delete_node<N: NodeAdmin>(
    State(app): State<App<N>>,
    Segments(node): Segments<String>,
) -> Response {
    let secrets = secrets_of(&app.status.borrow(), &node);
    done(&node, secrets, app.nodes.delete(&node).await)
}

async fn revoke_node<N: NodeAdmin>(
    State(app): State<App<N>>,
    Segments(node): Segments<String>,
) -> Response {
    let secrets = secrets_of(&app.status.borrow(), &node);
    done(&node, secrets, app.nodes.revoke(&node).await)
}

async fn ca<N: CaAdmin>(State(app): State<App<N>>) -> Json<CaView> {
    Json(app.nodes.cas())
}

async fn rotate_ca<N: CaAdmin>(State(app): State<App<N>>) -> Response {
    match app.nodes.rotate_ca().await {
        Ok(view) => Json(view).into_response(),
        Err(error) => fail(StatusCode::CONFLICT, error),
    }
}

async fn retire_ca<N: CaAdmin>(
    State(app): State<App<N>>,
    Json(request): Json<RetireRequest>,
) -> Response {
    match app.nodes.retire_ca(request.force).await {
        Ok(retired) => Json(retired).into_response(),
        Err(error) => fail(StatusCode::CONFLICT, error),
    }
}

fn done(node: &str, secrets: BTreeSet<String>, result: Result<bool, String>) -> Response {
    match result {
        Ok(true) => {
            let node = node.to_owned();
            Json(NodeAnswer { node, secrets }).into_response()
        }
        Ok(false) => fail(StatusCode::NOT_FOUND, format!("there is no node {node}")),
        Err(error) => fail(StatusCode::INTERNAL_SERVER_ERROR, error),
    }
}

async fn only_logs<N: NodeReports + Calls>(
    state: State<App<N>>,
    Segments((node, namespace, pod)): Segments<(String, String, String)>,
    query: Query<LogsQuery>,
) -> Response {
    logs(
        state,
        Segments((node, namespace, pod, String::new())),
        query,
    )
    .await
}

async fn logs<N: NodeReports + Calls>(
    State(app): State<App<N>>,
    Segments((node, namespace, pod, container)): Segments<(String, String, String, String)>,
    Query(query): Query<LogsQuery>,
) -> Response {
    match app.nodes.view(&node) {
        None => return fail(StatusCode::NOT_FOUND, format!("there is no node {node}")),
        Some(view) if !view.connected => {
            let reason = format!("node {node} is not connected: its logs are out of reach");
            return fail(StatusCode::SERVICE_UNAVAILABLE, reason);
        }
        Some(_) => {}
    }
    let request = LogsRequest {
        namespace,
        pod,
        container,
        tail_bytes: query.tail,
        follow: query.follow,
    };
    let mut answer = app.nodes.call(&node, METHOD_LOGS, request.encode());
    // Data, or the message that the log exists; only then is the status known.
    match tokio::time::timeout(ANSWER_TIMEOUT, answer.recv()).await {
        Ok(Some(Ok(first))) => Body::from_stream(follow(first, answer)).into_response(),
        // An empty log.
        Ok(None) => Body::empty().into_response(),
        Ok(Some(Err(CallError::Node { code, reason }))) => {
            let status = match code {
                CODE_BUSY => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::NOT_FOUND,
            };
            fail(status, reason)
        }
        Ok(Some(Err(CallError::Link(reason)))) => fail(StatusCode::BAD_GATEWAY, reason),
        Err(_) => fail(StatusCode::BAD_GATEWAY, "the node gave no answer"),
    }
}

/// The remaining answer as it arrives. Dropping it cancels the call.
fn follow(
    first: Bytes,
    answer: mpsc::Receiver<Result<Bytes, CallError>>,
) -> impl stream::Stream<Item = Result<Bytes, std::io::Error>> {
    stream::unfold((Some(first), answer), |(first, mut answer)| async {
        let next = match first {
            Some(first) => Ok(first),
            None => answer.recv().await?.map_err(std::io::Error::other),
        };
        Some((next, (None, answer)))
    })
}
