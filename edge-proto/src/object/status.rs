//! What a node reports: itself and its pods. Nothing in here changes by itself (no clock, no
//! counter of bytes), or the reported root would never rest.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::fields::{FieldError, Reader, Skip, Writer};
use crate::hash::Hash16;
use crate::key::{Key, Uid};
use crate::limits::{CONTAINERS_MAX, MESSAGE_BYTES_MAX};

/// Phase of a pod, as in Kubernetes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Not all containers have started once.
    #[default]
    Pending,
    /// At least one container runs or will be restarted.
    Running,
    /// Every container ended with 0 and none will be restarted.
    Succeeded,
    /// Every container ended, one with a failure, and none will be restarted.
    Failed,
}

impl Phase {
    /// Kubernetes' word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }
}

/// State of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Not running, will be (re)started.
    Waiting {
        /// Kubernetes' reason: `ContainerCreating`, `CrashLoopBackOff`, `ErrImageNeverPull`...
        reason: String,
        /// For a person; clipped to [`MESSAGE_BYTES_MAX`].
        message: String,
    },
    /// Running.
    Running {
        /// Process id on the node.
        pid: u32,
    },
    /// Ended, will not be restarted.
    Terminated {
        /// Exit code, 128 + signal; `None` when the agent was not there to see it.
        exit_code: Option<i32>,
        /// `Completed`, `Error` or `OOMKilled`.
        reason: String,
    },
}

impl Default for ContainerState {
    fn default() -> Self {
        Self::Waiting {
            reason: String::new(),
            message: String::new(),
        }
    }
}

impl ContainerState {
    /// Kubernetes' word: `waiting`, `running`, `terminated`.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Waiting { .. } => "waiting",
            Self::Running { .. } => "running",
            Self::Terminated { .. } => "terminated",
        }
    }
}

/// A container's status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Name.
    pub name: String,
    /// State.
    pub state: ContainerState,
    /// Restarts since the pod came to this node.
    pub restarts: u32,
    /// Exit code of the last run; `None` when there was none or it is unknown.
    pub last_exit_code: Option<i32>,
}

/// A pod's status. Gone from the reported set = gone from the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodStatus {
    /// Identity.
    pub uid: Uid,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Phase.
    pub phase: Phase,
    /// Why it is as it is, when that needs saying (`Terminating`, `WaitingForConfig`...).
    pub reason: String,
    /// For a person.
    pub message: String,
    /// Containers, in the order of the Pod.
    pub containers: Vec<ContainerStatus>,
    /// Hash of the Pod payload that this status is about.
    pub observed: Hash16,
}

impl PodStatus {
    /// Payload bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut fields = Writer::default();
        fields.put(1, Skip::Refused, &self.uid);
        fields.put(2, Skip::Refused, &self.namespace);
        fields.put(3, Skip::Refused, &self.name);
        fields.put(4, Skip::Refused, &self.phase);
        fields.put(5, Skip::Allowed, &self.reason);
        fields.put(6, Skip::Allowed, &self.message);
        fields.put(7, Skip::Allowed, &self.containers);
        fields.put(8, Skip::Allowed, &self.observed);
        fields.into_bytes()
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// The first wrong field.
    pub fn decode(bytes: &[u8]) -> Result<Self, FieldError> {
        let mut status = Self::default();
        for field in Reader::new(bytes) {
            let field = field?;
            match field.number {
                1 => status.uid = field.read()?,
                2 => status.namespace = field.read()?,
                3 => status.name = field.read()?,
                4 => status.phase = field.read()?,
                5 => status.reason = field.read()?,
                6 => status.message = field.read()?,
                7 => status.containers = field.read()?,
                8 => status.observed = field.read()?,
                _ => field.unknown()?,
            }
        }
        if status.containers.len() > CONTAINERS_MAX {
            return Err(FieldError::Limit(7));
        }
        Ok(status)
    }
}

/// A node condition, as in Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// For example `StoreDamaged`, `TimeUntrusted`, `DiskPressure`.
    pub name: String,
    /// Whether it holds.
    pub holds: bool,
    /// For a person.
    pub message: String,
}

/// An object that the node holds as a stub.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Key.
    pub key: Key,
    /// Hash of the payload that was refused.
    pub hash: Hash16,
    /// Why.
    pub reason: String,
}

/// The node's own status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeStatus {
    /// Version of the agent with its commit.
    pub agent: String,
    /// `aarch64`, `arm` or `x86_64`.
    pub arch: String,
    /// Kernel release.
    pub kernel: String,
    /// Name of the board file.
    pub board: String,
    /// Cores.
    pub cpus: u32,
    /// RAM, bytes.
    pub memory_bytes: u64,
    /// Pods that fit.
    pub pods_max: u32,
    /// Random at each boot of the board: tells a reboot from an agent restart.
    pub boot_id: String,
    /// Conditions that were evaluated.
    pub conditions: Vec<Condition>,
    /// Refused objects, the first [`crate::limits::REFUSED_LISTED_MAX`].
    pub refused: Vec<Refused>,
    /// All refused objects.
    pub refused_count: u32,
    /// Labels from the node's own config.
    pub labels: Vec<(String, String)>,
}

impl NodeStatus {
    /// Payload bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut fields = Writer::default();
        fields.put(1, Skip::Allowed, &self.agent);
        fields.put(2, Skip::Allowed, &self.arch);
        fields.put(3, Skip::Allowed, &self.kernel);
        fields.put(4, Skip::Allowed, &self.board);
        fields.put(5, Skip::Allowed, &self.cpus);
        fields.put(6, Skip::Allowed, &self.memory_bytes);
        fields.put(7, Skip::Allowed, &self.pods_max);
        fields.put(8, Skip::Allowed, &self.boot_id);
        fields.put(9, Skip::Allowed, &self.conditions);
        fields.put(10, Skip::Allowed, &self.refused);
        fields.put(11, Skip::Allowed, &self.refused_count);
        fields.put(12, Skip::Allowed, &self.labels);
        fields.into_bytes()
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// The first wrong field.
    pub fn decode(bytes: &[u8]) -> Result<Self, FieldError> {
        let mut status = Self::default();
        for field in Reader::new(bytes) {
            let field = field?;
            match field.number {
                1 => status.agent = field.read()?,
                2 => status.arch = field.read()?,
                3 => status.kernel = field.read()?,
                4 => status.board = field.read()?,
                5 => status.cpus = field.read()?,
                6 => status.memory_bytes = field.read()?,
                7 => status.pods_max = field.read()?,
                8 => status.boot_id = field.read()?,
                9 => status.conditions = field.read()?,
                10 => status.refused = field.read()?,
                11 => status.refused_count = field.read()?,
                12 => status.labels = field.read()?,
                _ => field.unknown()?,
            }
        }
        Ok(status)
    }
}

/// `text`, cut at a character to [`MESSAGE_BYTES_MAX`] bytes.
#[must_use]
pub fn clip(text: &str) -> &str {
    let mut end = text.len().min(MESSAGE_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}
