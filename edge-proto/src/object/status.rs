//! Reported objects: the status of the node and of its pods. No value in here changes continuously (no
//! clock, no counter of bytes), or the reported root would never become stable.

use alloc::borrow::Cow;
use alloc::string::String;
use alloc::vec::Vec;

use crate::fields::{Fault, FieldError, field_choice, field_list};
use crate::hash::Hash16;
use crate::key::{Key, Uid};
use crate::limits::{
    CONDITIONS_MAX, CONTAINERS_MAX, LABELS_MAX, MESSAGE_BYTES_MAX, REFUSED_LISTED_MAX,
};
use crate::wire::numbers;

/// In the place of what [`clip`] leaves out.
const CLIPPED: &str = " ... ";
/// Bytes of a message that it keeps from the beginning.
const CLIP_HEAD_BYTES: usize = 80;

numbers! {
    /// Phase of a pod, as in Kubernetes.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub enum Phase {
        /// Not all containers have started once.
        #[default]
        0 = Pending,
        /// At least one container runs or will be restarted.
        1 = Running,
        /// Every container ended with 0 and none will be restarted.
        2 = Succeeded,
        /// Every container ended, one with a failure, and none will be restarted.
        3 = Failed,
    }
}

impl Phase {
    /// The name of the phase in Kubernetes.
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

/// Variant and details of a container's status, as in Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// Not running; it will be started or restarted.
    Waiting {
        /// Kubernetes' reason: `ContainerCreating`, `CrashLoopBackOff`, `ErrImageNeverPull`...
        reason: String,
        /// Human-readable; truncated to [`MESSAGE_BYTES_MAX`].
        message: String,
    },
    /// The container's first process has been started and has not ended.
    Running {
        /// Process id on the node.
        pid: u32,
    },
    /// Ended; it will not be restarted.
    Terminated {
        /// Exit code, or 128 + signal; `None` when the process ended while no agent waited for it.
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
    /// The name of the state in Kubernetes: `waiting`, `running`, `terminated`.
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerStatus {
    /// Name in the pod.
    pub name: String,
    /// Present state of its process.
    pub state: ContainerState,
    /// Restarts since the pod was assigned to this node.
    pub restarts: u32,
    /// Exit code of the previous run; `None` when there was none or it is unknown.
    pub last_exit_code: Option<i32>,
    /// The last run was ended by the kernel for want of memory.
    pub last_oom: bool,
}

/// A pod's status. It leaves the reported set when nothing of the pod is left on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodStatus {
    /// UID of the pod.
    pub uid: Uid,
    /// As in the Pod.
    pub namespace: String,
    /// As in the Pod.
    pub name: String,
    /// Summary of all containers.
    pub phase: Phase,
    /// Reason of the phase where it needs one (`Terminating`, `WaitingForConfig`...).
    pub reason: String,
    /// Human-readable explanation.
    pub message: String,
    /// Containers, in the order of the Pod.
    pub containers: Vec<ContainerStatus>,
    /// Hash of the Pod payload that this status describes.
    pub observed: Hash16,
}

/// A node condition, as in Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// For example `StoreDamaged`, `TimeUntrusted`, `DiskPressure`.
    pub name: String,
    /// `status` of the condition: true or false.
    pub holds: bool,
    /// Human-readable explanation.
    pub message: String,
}

/// An object that the node does not support and keeps as a stub.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// Which object of the desired set it is.
    pub key: Key,
    /// Hash of the payload that was refused.
    pub hash: Hash16,
    /// Human-readable text of its [`crate::set::Reason`].
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
    /// Number of CPU cores.
    pub cpus: u32,
    /// Size of the RAM.
    pub memory_bytes: u64,
    /// Highest number of pods that the node accepts.
    pub pods_max: u32,
    /// Random at each boot of the board: distinguishes a reboot from an agent restart.
    pub boot_id: String,
    /// All conditions that the agent evaluates, at most [`CONDITIONS_MAX`].
    pub conditions: Vec<Condition>,
    /// Refused objects, the first [`REFUSED_LISTED_MAX`].
    pub refused: Vec<Refused>,
    /// Number of all refused objects, the unlisted ones included.
    pub refused_count: u32,
    /// Labels from the node's own config, at most [`LABELS_MAX`].
    pub labels: Vec<(String, String)>,
}

field_list! {
    PodStatus {
        1 must uid,
        2 must namespace,
        3 must name,
        4 must phase,
        5 may reason,
        6 may message,
        7 may containers: lists CONTAINERS_MAX,
        8 may observed,
    }
    ContainerStatus {
        1 must name,
        2 may state: list,
        3 may restarts,
        4 may last_exit_code,
        5 may last_oom,
    }
    NodeStatus check check_node {
        1 may agent,
        2 may arch,
        3 may kernel,
        4 may board,
        5 may cpus,
        6 may memory_bytes,
        7 may pods_max,
        8 may boot_id,
        9 may conditions: lists CONDITIONS_MAX,
        10 may refused: lists REFUSED_LISTED_MAX,
        11 may refused_count,
        12 may labels,
    }
    Condition {
        1 must name,
        2 must holds,
        3 may message,
    }
    Refused {
        1 must key,
        2 may hash,
        3 may reason,
    }
}

field_choice! {
    ContainerState {
        0 Waiting {
            2 may reason,
            3 may message,
        }
        1 Running {
            2 may pid,
        }
        2 Terminated {
            2 may exit_code,
            3 may reason,
        }
    }
}

fn check_node(node: &NodeStatus) -> Result<(), FieldError> {
    match node.labels.len() {
        0..=LABELS_MAX => Ok(()),
        _ => Err(FieldError::new(Fault::Limit, 12)),
    }
}

/// `text` in at most [`MESSAGE_BYTES_MAX`] bytes. Of a longer one the middle is left out: what was tried
/// is at its beginning, and why that failed at its end.
#[must_use]
pub fn clip(text: &str) -> Cow<'_, str> {
    if text.len() <= MESSAGE_BYTES_MAX {
        return Cow::Borrowed(text);
    }
    let tail = MESSAGE_BYTES_MAX - CLIP_HEAD_BYTES - CLIPPED.len();
    let head = text.floor_char_boundary(CLIP_HEAD_BYTES);
    let tail = text.ceil_char_boundary(text.len() - tail);
    let (head, tail) = (text.get(..head), text.get(tail..));
    Cow::Owned([head.unwrap_or_default(), CLIPPED, tail.unwrap_or_default()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what was tried and why it failed are read, however long the paths between. Method: messages
    /// of every length around the limit, with characters of several bytes at each cut.
    #[test]
    fn a_long_message_keeps_its_beginning_and_its_end() {
        for length in 0..600 {
            for filler in ["x", "\u{e9}", "\u{2603}"] {
                let text = ["mount: ", &filler.repeat(length), ": not a directory"].concat();
                let clipped = clip(&text);
                assert!(clipped.len() <= MESSAGE_BYTES_MAX);
                assert!(clipped.starts_with("mount: ") && clipped.ends_with(": not a directory"));
                let whole = text.len() <= MESSAGE_BYTES_MAX;
                assert_eq!(clipped == text, whole);
                assert!(
                    whole || clipped.contains(CLIPPED) && clipped.len() > MESSAGE_BYTES_MAX - 6
                );
                assert_eq!(clip(&clipped), clipped, "once is enough");
            }
        }
    }
}
