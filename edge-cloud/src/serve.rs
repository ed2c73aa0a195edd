//! Everything of `edge-cloud serve` but the links themselves.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::nodes::Nodes;
use crate::source::Folder;
use crate::{api, controller};

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
