//! One container as the runtime starts it: everything is resolved, nothing is looked up again.

use std::path::PathBuf;

use edge_proto::hash::Hash16;
use edge_proto::key::Uid;
use serde::{Deserialize, Serialize};

use crate::image::images::Pin;
use crate::workload::cgroup::Limits;

/// Everything needed to start a container.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Pod.
    pub uid: Uid,
    /// Container.
    pub container: String,
    /// Names the cgroup, so that a later agent knows what was started.
    pub hash: Hash16,
    /// Image layers' merged root for runc; `None` is a plain process.
    pub rootfs: Option<Rootfs>,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Working directory.
    pub cwd: PathBuf,
    /// User.
    pub uid_number: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// What it may have of root's rights.
    pub rights: Rights,
    /// Bind mounts.
    pub binds: Vec<Bind>,
    /// Limits.
    pub limits: Limits,
    /// Host name inside.
    pub hostname: String,
    /// Root filesystem is read-only.
    pub read_only_root: bool,
}

/// Layers of a root filesystem, lowest first.
#[derive(Clone, Debug)]
pub struct Rootfs {
    /// Unpacked layers.
    pub layers: Vec<PathBuf>,
    /// Keeps them until they are mounted.
    pub pin: Pin,
}

/// A bind mount.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bind {
    /// Path on the board.
    pub source: PathBuf,
    /// Absolute path in the container.
    pub target: PathBuf,
    /// Mounted read-only.
    pub read_only: bool,
}

/// Rights of root that a container keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rights {
    /// Capabilities, as the kernel's bits: all that it can ever have.
    pub granted: u64,
    /// Those of them that a user other than root gets too.
    pub for_users: u64,
    /// It may gain more, by setuid programs.
    pub privileged: bool,
}
