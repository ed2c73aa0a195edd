//! One container as the runtime starts it: everything is resolved, nothing is looked up again.

use std::path::PathBuf;

use edge_core::spec::{ContainerSpec, Process};
use serde::{Deserialize, Serialize};

use crate::image::images::Pin;

/// Input of a start.
pub struct Spec<'a> {
    /// Spec from the core.
    pub resolved: &'a ContainerSpec,
    /// Process, merged with the image's configuration.
    pub process: Process,
    /// Image layers' merged root for runc; `None` is a plain process.
    pub rootfs: Option<Rootfs>,
    /// Bind mounts.
    pub binds: Vec<Bind>,
}

/// Layers of a root filesystem, lowest first.
pub struct Rootfs {
    /// Unpacked layers.
    pub layers: Vec<PathBuf>,
    /// Prevents their removal until they are mounted.
    pub pin: Pin,
}

/// One bind mount into a container.
#[derive(Clone, Serialize, Deserialize)]
pub struct Bind {
    /// Path on the board.
    pub source: PathBuf,
    /// Absolute path in the container.
    pub target: PathBuf,
    /// Mounted read-only.
    pub read_only: bool,
}
