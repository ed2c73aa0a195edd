//! `edge-cloud serve`: one process, one port for the nodes, one folder of data; with `--broker`, a
//! client of that broker instead, and the port is for enrolment only.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::process::{Resource, getrlimit, setrlimit};
use socket2::SockRef;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::clock::{is_plausible, unix_s};
use crate::durable::TEMPORARY;
use crate::fleet::Fleet;
use crate::identity::authorities::Authorities;
use crate::identity::enrol::CertificateTimes;
use crate::identity::registry::NODES;
use crate::nodes::{CaAdmin, Calls, DesiredSets, EventLog, NodeAdmin, NodeReports, RecordReports};
use crate::pod_key::POD_KEY;
use crate::records::{Records, target};
use crate::saved::PLACEMENT;
use crate::source::{Folder, Status};
use crate::transport::broker::{self, Broker};
use crate::transport::hub::Hub;
use crate::transport::tls::Port;
use crate::{api, backup, controller, pod_key};

/// Bytes in one TCP segment, both ways: with TCP/IP this is 1280, which every path carries. Longer
/// ones can be dropped silently in a tunnel, and then no handshake would complete.
const SEGMENT_BYTES_MAX: u32 = 1_220;

/// Runs the controller over a folder of manifests and the API, for ever.
///
/// # Errors
/// Those of the API's sockets.
pub async fn serve<N>(
    nodes: Arc<N>,
    data: &Path,
    manifests: PathBuf,
    http: Option<TcpListener>,
) -> io::Result<()>
where
    N: NodeReports + DesiredSets + EventLog + RecordReports + CaAdmin + Calls + NodeAdmin,
{
    let (sink, status) = watch::channel(Status::default());
    let ids = pod_key::open(data)?;
    let socket = api::listen(data)?;
    let source = Folder::new(manifests);
    tokio::select! {
        () = controller::run(source, sink, Arc::clone(&nodes), data, ids) => Ok(()),
        result = api::serve(socket, http, nodes, status) => result,
    }
}

/// The settings of `edge-cloud serve`.
#[derive(Clone, Debug)]
pub struct Config {
    /// Folder with the CA, the registry and the API's socket; one server at a time.
    pub data: PathBuf,
    /// Folder of manifests.
    pub manifests: PathBuf,
    /// Where nodes connect, or only enrol when there is a broker.
    pub listen: SocketAddr,
    /// Names and addresses under which nodes reach it: they are in its certificate.
    pub names: Vec<String>,
    /// Where the read-only API and the metrics are served, if anywhere.
    pub http: Option<SocketAddr>,
    /// Connections and sessions admitted a second.
    pub admissions_per_s: u32,
    /// The external broker that carries the links, if any.
    pub broker: Option<broker::Config>,
    /// Where the nodes' records go.
    pub records: target::Config,
    /// Validity of nodes' certificates.
    pub times: CertificateTimes,
}

/// Runs edge-cloud until SIGINT or SIGTERM.
///
/// # Errors
/// Why it cannot start, with the file or address.
pub async fn run(config: Config) -> io::Result<()> {
    let at = |what: String| {
        move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"))
    };
    let data = &config.data;
    if !config.manifests.is_dir() {
        return Err(io::Error::other(format!(
            "{}: there is no such folder of manifests",
            config.manifests.display()
        )));
    }
    let _lock = lock(data)?;
    let authorities = prepare(data)?;
    let (broker, external) = match &config.broker {
        None => (None, None),
        Some(config) => {
            let (broker, external) = Broker::open(config, &authorities)?;
            (Some(broker), Some(external))
        }
    };
    let records = Records::open(data, &config.records)?;
    let fleet = Fleet::open(data, authorities, external, records, config.times)?;
    let hub = hub(&fleet, config.names, config.admissions_per_s)?;
    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(at(config.listen.to_string()))?;
    // Before the first connection, which inherits it, and announces it to the other end.
    SockRef::from(&listener)
        .set_tcp_mss(SEGMENT_BYTES_MAX)
        .map_err(at("segment size".to_owned()))?;
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
    let Fleet {
        identity,
        sessions,
        records,
        events,
    } = Fleet::clone(&fleet);
    let client = broker.map(|broker| broker::Client {
        broker,
        identity: Arc::clone(&identity),
        sessions: Arc::clone(&sessions),
        events,
    });
    let brokered = async {
        match client {
            None => std::future::pending().await,
            Some(client) => client.run().await,
        }
    };
    tokio::select! {
        () = brokered => Ok(()),
        () = hub.serve(listener) => Ok(()),
        () = sessions.keep_current() => Ok(()),
        () = identity.keep_listed() => Ok(()),
        () = sessions.tick() => Ok(()),
        () = records.run(&sessions) => Ok(()),
        result = serve(fleet, data, config.manifests, http) => result,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }
}

/// Checks the preconditions of a start, and removes remains of an earlier run.
fn prepare(data: &Path) -> io::Result<Authorities> {
    raise_descriptors();
    clear_remains(data);
    if !is_plausible(unix_s()) {
        log::error!("clock_wrong unix_s={} no node can join", unix_s());
    }
    if data.join(backup::RESTORING).exists() {
        let unfinished = backup::BackupError::Unfinished(data.to_owned());
        return Err(io::Error::other(unfinished));
    }
    let authorities = Authorities::open(data).map_err(io::Error::other)?;
    if let Err(error) = Authorities::clear_remains(data) {
        log::warn!("remains of the first CA: {error}");
    }
    registry_is_there(data)?;
    Ok(authorities)
}

/// The hub for these nodes, on a port that is reached under `names`.
///
/// # Errors
/// The port's certificate cannot be created.
pub fn hub(fleet: &Fleet, names: Vec<String>, admissions_per_s: u32) -> io::Result<Arc<Hub>> {
    let Fleet {
        identity,
        sessions,
        events,
        ..
    } = fleet.clone();
    sessions.set_openings(admissions_per_s);
    let port = Port::open(Arc::clone(&identity), Arc::clone(&events), names);
    let port = port.map_err(io::Error::other)?;
    Ok(Hub::new(port, identity, sessions, events, admissions_per_s))
}

/// A connection needs a descriptor, and many systems limit a process to 1024 by default.
fn raise_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    let before = limit.current;
    limit.current = limit.maximum;
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => log::debug!("descriptors from={before:?} to={:?}", limit.current),
        Err(error) => log::warn!("descriptors_not_raised error={error}"),
    }
}

/// Removes incomplete files of a killed edge-cloud.
fn clear_remains(data: &Path) {
    for folder in [data.to_owned(), data.join("ca")] {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if name.to_string_lossy().starts_with(TEMPORARY)
                && let Err(error) = std::fs::remove_file(entry.path())
            {
                log::warn!("remains path={} error={error}", entry.path().display());
            }
        }
    }
}

/// The registry and the key of the UIDs are written before anything is placed: if one is missing, it was
/// lost. An empty registry would refuse every node, and a new key would restart every pod.
fn registry_is_there(data: &Path) -> io::Result<()> {
    if !data.join(PLACEMENT).try_exists()? {
        return Ok(());
    }
    for (file, without) in [
        (NODES, "no node is known"),
        (POD_KEY, "every pod would restart"),
    ] {
        if !data.join(file).try_exists()? {
            return Err(io::Error::other(format!(
                "{} is missing, and without it {without}: put it back, or restore a backup \
                 (`edge-cloud restore --force`). To begin with no pods, move {PLACEMENT} away, too",
                data.join(file).display()
            )));
        }
    }
    Ok(())
}

/// Locks the data folder, and creates it if it is missing. The lock is on a file in it.
///
/// # Errors
/// Another edge-cloud has locked it; those of the file system.
pub fn lock(data: &Path) -> io::Result<File> {
    let at =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", data.display()));
    if data.exists() && !data.is_dir() {
        return Err(at(io::Error::other("is not a folder")));
    }
    std::fs::create_dir_all(data).map_err(at)?;
    let lock = File::create(data.join(backup::LOCK)).map_err(at)?;
    lock.try_lock()
        .map_err(|_| at(io::Error::other("another edge-cloud uses this folder")))?;
    Ok(lock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_registry_is_told_and_an_empty_folder_needs_none() {
        let data = tempfile::tempdir().unwrap();
        assert!(registry_is_there(data.path()).is_ok());
        std::fs::write(data.path().join(PLACEMENT), "{}").unwrap();
        for file in [NODES, POD_KEY] {
            let error = registry_is_there(data.path()).unwrap_err().to_string();
            assert!(error.contains(&data.path().join(file).display().to_string()));
            std::fs::write(data.path().join(file), "{}").unwrap();
        }
        assert!(registry_is_there(data.path()).is_ok());
    }

    #[test]
    fn half_written_files_go_and_nothing_else() {
        let data = tempfile::tempdir().unwrap();
        std::fs::create_dir(data.path().join("ca")).unwrap();
        let half = [".writing-a1", "ca/.writing-b2"].map(|name| data.path().join(name));
        let whole = ["nodes.json", "ca/ca.key"].map(|name| data.path().join(name));
        for file in half.iter().chain(&whole) {
            std::fs::write(file, "x").unwrap();
        }
        clear_remains(data.path());
        assert!(half.iter().all(|file| !file.exists()));
        assert!(whole.iter().all(|file| file.exists()));
    }
}
