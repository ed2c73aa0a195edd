//! Names of all files and folders that the agent creates or reads below its
//! `state-dir` (`STATE`), `run-dir` (`RUN`) and `preload-dir` (`PRELOAD`), and the defaults of these. It
//! imports nothing of ours and touches no file. The files of a container in its volumes, and the format
//! of OCI layouts, are not here.
//!
//! The first paragraph above each item is a row of the table in docs/operations.md: the path, what a power
//! cut or a reboot may do to it, and its content; a test compares them. *Must survive*: losing it loses
//! data that the cloud cannot restore at once. *May be lost*: it is created again. *Tmpfs*: it belongs
//! to running processes, and nothing of it may be left after a reboot.

use std::path::{Path, PathBuf};

use edge_proto::key::Uid;

/// The config, unless `--config` names another.
pub const CONFIG_DEFAULT: &str = "/etc/edge-min/edge-min.toml";
/// `state-dir`, unless the config names another.
pub const STATE_DEFAULT: &str = "/var/lib/edge-min";
/// `run-dir`, unless the config names another. Its children are no longer than here, because the path of
/// a socket has at most 107 bytes.
pub const RUN_DEFAULT: &str = "/run/edge-min";
/// Where cgroup v2 is mounted. The hierarchies of v1 are read from `/proc/mounts`.
pub const CGROUP: &str = "/sys/fs/cgroup";

/// Extension of a file that is written beside its name and then renamed over it.
pub const TEMPORARY: &str = "tmp";

/// All that `edge-min reset` removes from `STATE`; the preload folder stays.
pub const RESET: [&str; 18] = [
    "identity",
    "identity.new",
    "identity.old",
    "cache",
    "cache.bad",
    "desired.a",
    "desired.b",
    "objects",
    "layers",
    "rw",
    "board.key",
    "board.key.bad",
    "time.floor",
    "outbox",
    // What an interrupted write may leave.
    "desired.tmp",
    "board.tmp",
    "time.tmp",
    "lock",
];

/// `STATE/lock` or `RUN/lock`, may be lost: empty; the lock on it keeps a second agent out
#[must_use]
pub fn lock(folder: &Path) -> PathBuf {
    folder.join("lock")
}

/// `STATE/preload`, must survive: `PRELOAD`, the images as OCI layouts, unless the config names another folder
#[must_use]
pub fn preload(state: &Path) -> PathBuf {
    state.join("preload")
}

/// `STATE/identity`, must survive: who the node is, in the files below
#[must_use]
pub fn identity(state: &Path) -> PathBuf {
    state.join("identity")
}

/// `STATE/identity.new`, must survive: an identity that is being written, or the key of a join without an answer
#[must_use]
pub fn identity_new(state: &Path) -> PathBuf {
    state.join("identity.new")
}

/// `STATE/identity.old`, must survive: the identity before the last renewal, until the new one has connected
#[must_use]
pub fn identity_old(state: &Path) -> PathBuf {
    state.join("identity.old")
}

/// `STATE/identity/node.key`, must survive: private key
pub const NODE_KEY: &str = "node.key";
/// `STATE/identity/node.crt`, must survive: certificate
pub const NODE_CERTIFICATE: &str = "node.crt";
/// `STATE/identity/ca.crt`, must survive: CA of the cloud
pub const CA: &str = "ca.crt";
/// `STATE/identity/ca2.crt`, must survive: the second CA, while the cloud changes it
pub const CA_SECOND: &str = "ca2.crt";
/// `STATE/identity/cloud.url`, must survive: the cloud that was joined
pub const CLOUD_URL: &str = "cloud.url";
/// `STATE/identity/broker`, must survive: external broker and its CAs
pub const BROKER: &str = "broker";
/// `STATE/identity/node.name`, must survive: name of the node; written last, without it the folder does not count
pub const NODE_NAME: &str = "node.name";

/// `STATE/board.key`, must survive: the key that Secrets are sealed with
#[must_use]
pub fn board_key(state: &Path) -> PathBuf {
    state.join("board.key")
}

/// `STATE/board.key.bad`, may be lost: a damaged `board.key`, for analysis
#[must_use]
pub fn board_key_bad(state: &Path) -> PathBuf {
    state.join("board.key.bad")
}

/// `STATE/time.floor`, must survive: the latest trusted time
#[must_use]
pub fn time_floor(state: &Path) -> PathBuf {
    state.join("time.floor")
}

/// `STATE/desired.a` and `STATE/desired.b`, must survive: the desired set, two generations by turns
pub const DESIRED: [&str; 2] = ["desired.a", "desired.b"];

/// `STATE/objects`, must survive: objects over 4 KiB, each named by its SHA-256; of a Secret also by its key
#[must_use]
pub fn objects(state: &Path) -> PathBuf {
    state.join("objects")
}

/// Extension of [`object_part`].
pub const PART: &str = ".part";

/// `STATE/objects/SHA256.part`, may be lost: an object that is being received
#[must_use]
pub fn object_part(state: &Path, sha256: &str) -> PathBuf {
    objects(state).join([sha256, PART].concat())
}

/// `STATE/cache`, may be lost: copy of the desired set, in case both generations are damaged
#[must_use]
pub fn cache(state: &Path) -> PathBuf {
    state.join("cache")
}

/// `STATE/cache.bad`, may be lost: a damaged `cache`, for analysis
#[must_use]
pub fn cache_bad(cache: &Path) -> PathBuf {
    cache.with_extension("bad")
}

/// `STATE/cache/db`, may be lost: database of sled; `snap.*` and `conf` beside it are sled's, too
#[must_use]
pub fn cache_database(cache: &Path) -> PathBuf {
    cache.join("db")
}

/// `STATE/cache/blobs`, may be lost: made by sled, always empty
#[must_use]
pub fn cache_blobs(cache: &Path) -> PathBuf {
    cache.join("blobs")
}

/// `STATE/cache/generation`, may be lost: the generation that `db` holds
#[must_use]
pub fn cache_generation(cache: &Path) -> PathBuf {
    cache.join("generation")
}

/// `STATE/outbox`, must survive: records that have not reached the cloud
#[must_use]
pub fn outbox(state: &Path) -> PathBuf {
    state.join("outbox")
}

/// `STATE/outbox/state`, must survive: its incarnation, and what was delivered and lost
#[must_use]
pub fn outbox_state(outbox: &Path) -> PathBuf {
    outbox.join("state")
}

/// Extension of [`outbox_segment`].
pub const SEGMENT: &str = ".seg";

/// `STATE/outbox/CLASS-FIRST.seg`, must survive: records of a class from this number on
#[must_use]
pub fn outbox_segment(outbox: &Path, class: u8, first: u64) -> PathBuf {
    outbox.join(format!("{class}-{first:016x}{SEGMENT}"))
}

/// `STATE/layers`, may be lost: unpacked layers of images, each named by its SHA-256
#[must_use]
pub fn layers(state: &Path) -> PathBuf {
    state.join("layers")
}

/// `STATE/layers/SHA256.tmp`, may be lost: a layer that is being unpacked or removed
#[must_use]
pub fn layer_temporary(layers: &Path, sha256: &str) -> PathBuf {
    layers.join([sha256, ".", TEMPORARY].concat())
}

/// `STATE/rw`, may be lost: writable layers of containers
#[must_use]
pub fn writable_layers(state: &Path) -> PathBuf {
    state.join("rw")
}

/// `STATE/rw/UID-CONTAINER`, may be lost: `upper` and `work` of one container's overlay
#[must_use]
pub fn writable_layer(state: &Path, id: &str) -> PathBuf {
    writable_layers(state).join(id)
}

/// `STATE/rw/UID-CONTAINER/upper`, may be lost: what the container has written into its image
pub const UPPER: &str = "upper";
/// `STATE/rw/UID-CONTAINER/work`, may be lost: overlayfs' own
pub const WORK: &str = "work";

/// `RUN/edge-min.sock`, tmpfs: socket of the command line
#[must_use]
pub fn agent_socket(run: &Path) -> PathBuf {
    run.join("edge-min.sock")
}

/// `RUN/api`, tmpfs: the folder that pods mount to reach the record API
#[must_use]
pub fn api(run: &Path) -> PathBuf {
    run.join("api")
}

/// `RUN/api/edge.sock`, tmpfs: socket of the record API
#[must_use]
pub fn api_socket(run: &Path) -> PathBuf {
    api(run).join("edge.sock")
}

/// `RUN/pods`, tmpfs: a folder for each pod
#[must_use]
pub fn pods(run: &Path) -> PathBuf {
    run.join("pods")
}

/// `RUN/pods/UID`, tmpfs: what belongs to one pod
#[must_use]
pub fn pod(run: &Path, uid: Uid) -> PathBuf {
    pods(run).join(uid.to_string())
}

/// `RUN/pods/UID/logs`, tmpfs: a tmpfs of its own, for the output of its containers
#[must_use]
pub fn logs(run: &Path, uid: Uid) -> PathBuf {
    pod(run, uid).join("logs")
}

/// `RUN/pods/UID/logs/CONTAINER.log`, tmpfs: the latest output of a container
#[must_use]
pub fn log(run: &Path, uid: Uid, container: &str) -> PathBuf {
    logs(run, uid).join([container, ".log"].concat())
}

/// `RUN/pods/UID/volumes`, tmpfs: a folder, and a mount on it, for each volume
#[must_use]
pub fn volumes(run: &Path, uid: Uid) -> PathBuf {
    pod(run, uid).join("volumes")
}

/// `RUN/pods/UID/volumes/VOLUME`, tmpfs: one volume
#[must_use]
pub fn volume(run: &Path, uid: Uid, name: &str) -> PathBuf {
    volumes(run, uid).join(name)
}

/// `RUN/pods/UID/volumes/VOLUME/..data`, tmpfs: link to the files of a ConfigMap or Secret that are in force
pub const VOLUME_DATA: &str = "..data";
/// `RUN/pods/UID/volumes/VOLUME/..new`, tmpfs: the same link while it is replaced
pub const VOLUME_DATA_NEW: &str = "..new";
/// `RUN/pods/UID/volumes/VOLUME/..v1` and `RUN/pods/UID/volumes/VOLUME/..v2`, tmpfs: the files, by turns
pub const VOLUME_VERSIONS: [&str; 2] = ["..v1", "..v2"];

/// `RUN/pods/UID/state`, tmpfs: what is to be known of its containers after a restart of the agent
#[must_use]
pub fn containers(run: &Path, uid: Uid) -> PathBuf {
    pod(run, uid).join("state")
}

/// `RUN/pods/UID/state/CONTAINER`, tmpfs: its first process and when that began
#[must_use]
pub fn container(run: &Path, uid: Uid, container: &str) -> PathBuf {
    containers(run, uid).join(container)
}

/// Extension of [`container_end`]; a container's name has no dot.
pub const END: &str = ".end";

/// `RUN/pods/UID/state/CONTAINER.end`, tmpfs: how its last run ended
#[must_use]
pub fn container_end(run: &Path, uid: Uid, container: &str) -> PathBuf {
    containers(run, uid).join([container, END].concat())
}

/// `RUN/scratch`, tmpfs: a tmpfs of its own, for the emptyDir volumes of all pods
#[must_use]
pub fn scratch(run: &Path) -> PathBuf {
    run.join("scratch")
}

/// `RUN/scratch/UID`, tmpfs: the emptyDir volumes of one pod, by their names
#[must_use]
pub fn scratch_of(run: &Path, uid: Uid) -> PathBuf {
    scratch(run).join(uid.to_string())
}

/// `RUN/bundles`, tmpfs: a folder for each container of runc
#[must_use]
pub fn bundles(run: &Path) -> PathBuf {
    run.join("bundles")
}

/// `RUN/bundles/UID-CONTAINER`, tmpfs: the bundle of one container
#[must_use]
pub fn bundle(run: &Path, id: &str) -> PathBuf {
    bundles(run).join(id)
}

/// `RUN/bundles/UID-CONTAINER/rootfs`, tmpfs: its root file system is mounted here
pub const ROOTFS: &str = "rootfs";
/// `RUN/bundles/UID-CONTAINER/config.json`, tmpfs: its OCI runtime config, with the environment
pub const BUNDLE_CONFIG: &str = "config.json";
/// `RUN/bundles/UID-CONTAINER/pid`, tmpfs: its process, written by runc
pub const PID: &str = "pid";
/// `RUN/bundles/UID-CONTAINER/runc.log`, tmpfs: messages of runc
pub const RUNC_LOG: &str = "runc.log";

/// `RUN/runc`, tmpfs: state of runc, its `--root`
#[must_use]
pub fn runc(run: &Path) -> PathBuf {
    run.join("runc")
}

/// `RUN/runc/UID-CONTAINER`, tmpfs: state of one container; runc's own
#[must_use]
pub fn runc_container(run: &Path, id: &str) -> PathBuf {
    runc(run).join(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = include_str!("../../docs/operations.md");
    const SOURCE: &str = include_str!("paths.rs");
    const CLASSES: [&str; 3] = ["must survive", "may be lost", "tmpfs"];

    /// Path, class and description of each documented item of this module, with the item's name.
    fn items() -> Vec<(String, [String; 3])> {
        let (code, _) = SOURCE.split_once("#[cfg(test)]").unwrap();
        let (mut rows, mut row) = (Vec::new(), None);
        for line in code.lines() {
            if let Some(text) = line.strip_prefix("/// `")
                && let Some((head, what)) = text.split_once(": ")
            {
                let (path, class) = head.rsplit_once(", ").unwrap();
                let path = ["`", path].concat();
                row = Some([path, class.to_owned(), what.to_owned()]);
            }
            let begin = ["pub fn ", "pub const "];
            if let Some(rest) = begin.iter().find_map(|begin| line.strip_prefix(begin)) {
                let name = rest.split(['(', ':']).next().unwrap();
                rows.extend(row.take().map(|row| (name.to_owned(), row)));
            }
        }
        rows
    }

    /// Goal: the table for operators is complete. Method: the rows of the document are
    /// the items of this module, in the same order and words.
    #[test]
    fn the_document_lists_every_path() {
        let items = items();
        let (_, table) = DOCUMENT.split_once("### Files and folders\n").unwrap();
        let rows: Vec<[String; 3]> = table
            .lines()
            .skip_while(|line| !line.starts_with("|---"))
            .skip(1)
            .take_while(|line| line.starts_with('|'))
            .map(|line| {
                let cells = line.trim_matches('|').split(" | ");
                let cells: Vec<String> = cells.map(|cell| cell.trim().to_owned()).collect();
                cells.try_into().unwrap()
            })
            .collect();
        for ((name, item), row) in items.iter().zip(&rows) {
            assert_eq!(item, row, "{name}");
            assert!(CLASSES.contains(&&*item[1]), "{name}: {}", item[1]);
        }
        assert_eq!(items.len(), rows.len(), "rows of docs/operations.md");
    }

    /// Goal: the documented paths are those of the code. Method: each item with the placeholders of the
    /// table as its arguments.
    #[test]
    fn every_path_is_the_documented_one() {
        let (state, run) = (Path::new("STATE"), Path::new("RUN"));
        let uid = Uid([0; 16]);
        let volume_file = |name: &str| volume(run, uid, "VOLUME").join(name);
        let identity_file = |name: &str| identity(state).join(name);
        let rw_file = |name: &str| writable_layer(state, "UID-CONTAINER").join(name);
        let bundle_file = |name: &str| bundle(run, "UID-CONTAINER").join(name);
        let made = [
            ("lock", vec![lock(state), lock(run)]),
            ("preload", vec![preload(state)]),
            ("identity", vec![identity(state)]),
            ("identity_new", vec![identity_new(state)]),
            ("identity_old", vec![identity_old(state)]),
            ("NODE_KEY", vec![identity_file(NODE_KEY)]),
            ("NODE_CERTIFICATE", vec![identity_file(NODE_CERTIFICATE)]),
            ("CA", vec![identity_file(CA)]),
            ("CA_SECOND", vec![identity_file(CA_SECOND)]),
            ("CLOUD_URL", vec![identity_file(CLOUD_URL)]),
            ("BROKER", vec![identity_file(BROKER)]),
            ("NODE_NAME", vec![identity_file(NODE_NAME)]),
            ("board_key", vec![board_key(state)]),
            ("board_key_bad", vec![board_key_bad(state)]),
            ("time_floor", vec![time_floor(state)]),
            ("DESIRED", DESIRED.map(|name| state.join(name)).into()),
            ("objects", vec![objects(state)]),
            ("object_part", vec![object_part(state, "SHA256")]),
            ("cache", vec![cache(state)]),
            ("cache_bad", vec![cache_bad(&cache(state))]),
            ("cache_database", vec![cache_database(&cache(state))]),
            ("cache_blobs", vec![cache_blobs(&cache(state))]),
            ("cache_generation", vec![cache_generation(&cache(state))]),
            ("outbox", vec![outbox(state)]),
            ("outbox_state", vec![outbox_state(&outbox(state))]),
            (
                "outbox_segment",
                vec![outbox_segment(&outbox(state), 7, 0x1f)],
            ),
            ("layers", vec![layers(state)]),
            (
                "layer_temporary",
                vec![layer_temporary(&layers(state), "SHA256")],
            ),
            ("writable_layers", vec![writable_layers(state)]),
            (
                "writable_layer",
                vec![writable_layer(state, "UID-CONTAINER")],
            ),
            ("UPPER", vec![rw_file(UPPER)]),
            ("WORK", vec![rw_file(WORK)]),
            ("agent_socket", vec![agent_socket(run)]),
            ("api", vec![api(run)]),
            ("api_socket", vec![api_socket(run)]),
            ("pods", vec![pods(run)]),
            ("pod", vec![pod(run, uid)]),
            ("logs", vec![logs(run, uid)]),
            ("log", vec![log(run, uid, "CONTAINER")]),
            ("volumes", vec![volumes(run, uid)]),
            ("volume", vec![volume(run, uid, "VOLUME")]),
            ("VOLUME_DATA", vec![volume_file(VOLUME_DATA)]),
            ("VOLUME_DATA_NEW", vec![volume_file(VOLUME_DATA_NEW)]),
            ("VOLUME_VERSIONS", VOLUME_VERSIONS.map(volume_file).into()),
            ("containers", vec![containers(run, uid)]),
            ("container", vec![container(run, uid, "CONTAINER")]),
            ("container_end", vec![container_end(run, uid, "CONTAINER")]),
            ("scratch", vec![scratch(run)]),
            ("scratch_of", vec![scratch_of(run, uid)]),
            ("bundles", vec![bundles(run)]),
            ("bundle", vec![bundle(run, "UID-CONTAINER")]),
            ("ROOTFS", vec![bundle_file(ROOTFS)]),
            ("BUNDLE_CONFIG", vec![bundle_file(BUNDLE_CONFIG)]),
            ("PID", vec![bundle_file(PID)]),
            ("RUNC_LOG", vec![bundle_file(RUNC_LOG)]),
            ("runc", vec![runc(run)]),
            ("runc_container", vec![runc_container(run, "UID-CONTAINER")]),
        ];
        let items = items();
        for ((name, paths), (item, [documented, ..])) in made.iter().zip(&items) {
            assert_eq!(name, item);
            for path in paths {
                let path = path.to_str().unwrap();
                let path = path.replace(&uid.to_string(), "UID");
                let path = path.replace("7-000000000000001f", "CLASS-FIRST");
                assert!(
                    documented.contains(&["`", &path, "`"].concat()),
                    "{name}: {path}"
                );
            }
            assert_eq!(documented.matches("` ").count() + 1, paths.len(), "{name}");
        }
        assert_eq!(made.len(), items.len());
    }

    /// Goal: a reset leaves nothing of the old node. Method: every documented name in `STATE`.
    #[test]
    fn a_reset_removes_all_but_the_preload_folder() {
        let mut names: Vec<String> = items()
            .iter()
            .flat_map(|(_, [path, ..])| path.split('`').map(str::to_owned).collect::<Vec<_>>())
            .filter_map(|path| Some(path.strip_prefix("STATE/")?.split('/').next()?.to_owned()))
            .filter(|name| name != "preload")
            .collect();
        let written = ["desired.a", "board.key", "time.floor"];
        let temporary = |name: &str| Path::new(name).with_extension(TEMPORARY);
        names.extend(written.map(|name| temporary(name).to_str().unwrap().to_owned()));
        names.sort();
        names.dedup();
        let mut removed = RESET.map(str::to_owned);
        removed.sort();
        assert_eq!(names, removed);
    }
}
