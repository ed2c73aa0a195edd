//! `edge-cloud serve`: one process, one port for the nodes, one folder of data.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::ca::Ca;
use crate::links::Links;
use crate::nodes::Nodes;
use crate::registry::NODES_MAX;
use crate::source::Folder;
use crate::{api, backup, controller, hub, tls};

/// Runs the controller over a folder of manifests and the API, for ever.
///
/// # Errors
/// Those of the API's sockets.
pub async fn serve<N: Nodes>(
    nodes: Arc<N>,
    data: &Path,
    manifests: PathBuf,
    http: Option<TcpListener>,
) -> io::Result<()> {
    let (sink, status) = watch::channel(Arc::default());
    let socket = api::listen(data)?;
    let source = Folder::new(manifests);
    tokio::select! {
        () = controller::run(source, sink, Arc::clone(&nodes), data) => Ok(()),
        result = api::serve(socket, http, nodes, status) => result,
    }
}

/// What `edge-cloud serve` is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Folder with the CA, the registry and the API's socket; one server at a time.
    pub data: PathBuf,
    /// Folder of manifests.
    pub manifests: PathBuf,
    /// Where nodes connect.
    pub listen: SocketAddr,
    /// Names and addresses under which nodes reach it: they stand in its certificate.
    pub names: Vec<String>,
    /// Where the read-only API and the metrics are served, if anywhere.
    pub http: Option<SocketAddr>,
}

/// Runs an embedded edge-cloud until SIGINT or SIGTERM.
///
/// # Errors
/// What keeps it from starting, with the file or address.
pub async fn embedded(config: Config) -> io::Result<()> {
    let at = |what: String| {
        move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"))
    };
    let data = &config.data;
    std::fs::create_dir_all(data).map_err(at(data.display().to_string()))?;
    let lock =
        std::fs::File::create(data.join(backup::LOCK)).map_err(at(data.display().to_string()))?;
    lock.try_lock().map_err(|_| {
        io::Error::other(format!(
            "{}: another edge-cloud uses this folder",
            data.display()
        ))
    })?;
    if data.join(backup::RESTORING).exists() {
        let unfinished = backup::BackupError::Unfinished(data.clone());
        return Err(io::Error::other(unfinished));
    }
    if !config.manifests.is_dir() {
        return Err(io::Error::other(format!(
            "{}: not a folder",
            config.manifests.display()
        )));
    }
    let ca = Ca::open(data).map_err(io::Error::other)?;
    let tls = tls::server_config(&ca, &config.names, NODES_MAX).map_err(io::Error::other)?;
    let links = Links::open(data, ca)?;
    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(at(config.listen.to_string()))?;
    let http = match config.http {
        Some(address) => Some(
            TcpListener::bind(address)
                .await
                .map_err(at(address.to_string()))?,
        ),
        None => None,
    };
    log::info!(
        "serving listen={} data={}",
        listener.local_addr()?,
        data.display()
    );
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let nodes = Arc::new(Arc::clone(&links));
    tokio::select! {
        () = hub::serve(listener, TlsAcceptor::from(Arc::new(tls)), Arc::clone(&links)) => Ok(()),
        () = links.tick() => Ok(()),
        result = serve(nodes, data, config.manifests, http) => result,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }
}
