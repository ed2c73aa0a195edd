//! The Pod: a Kubernetes Pod, reduced to the fields that an agent supports.

use alloc::string::String;
use alloc::vec::Vec;

use crate::fields::{Fault, FieldError, field_choice, field_list};
use crate::key::Uid;
use crate::limits::{ARGV_MAX, CONTAINERS_MAX, ENV_MAX, FILES_MAX, LABELS_MAX, VOLUMES_MAX};
use crate::wire::numbers;

numbers! {
    /// How containers of a pod run. From `runtimeClassName`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub enum RuntimeClass {
        /// An OCI container by runc.
        #[default]
        0 = Runc,
        /// A plain process; `command` names the program, `image` is ignored.
        1 = Process,
    }
}

numbers! {
    /// `restartPolicy` of a Pod.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub enum RestartPolicy {
        /// Restart whenever a container ends.
        #[default]
        0 = Always,
        /// Restart after a failure: a code that is not 0, a signal, or unknown.
        1 = OnFailure,
        /// Never restart.
        2 = Never,
    }
}

/// A Pod as the cloud sends it to the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Identity. A Pod with a new UID is a new pod, even if its name is the same.
    pub uid: Uid,
    /// Namespace of the Kubernetes object; with `name` for display and for references to ConfigMaps and
    /// Secrets.
    pub namespace: String,
    /// Name of the Kubernetes object, an RFC 1123 subdomain.
    pub name: String,
    /// Labels, at most [`LABELS_MAX`].
    pub labels: Vec<(String, String)>,
    /// Runtime of every container.
    pub runtime: RuntimeClass,
    /// Restart policy of every container.
    pub restart_policy: RestartPolicy,
    /// Seconds from SIGTERM to SIGKILL; `None` is Kubernetes' 30.
    pub grace_s: Option<u32>,
    /// The pod shares the node's network.
    pub host_network: bool,
    /// Deleted in the cloud: the node stops it; it stays in the desired set until it is reported as gone.
    pub terminating: bool,
    /// Containers, 1 to [`CONTAINERS_MAX`], all started at once.
    pub containers: Vec<Container>,
    /// Volumes, at most [`VOLUMES_MAX`].
    pub volumes: Vec<Volume>,
}

/// One container of a Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// Name, unique in the pod, an RFC 1123 label.
    pub name: String,
    /// Image reference; empty for processes.
    pub image: String,
    /// Replaces the image's entrypoint.
    pub command: Vec<String>,
    /// Replaces the image's arguments.
    pub args: Vec<String>,
    /// Replaces the image's working directory.
    pub working_dir: Option<String>,
    /// Environment, in order; a later entry wins.
    pub env: Vec<EnvVar>,
    /// Whole ConfigMaps or Secrets as environment; `env` overrides them.
    pub env_from: Vec<EnvFrom>,
    /// Mounts, at most [`VOLUMES_MAX`].
    pub mounts: Vec<VolumeMount>,
    /// Resource limits.
    pub resources: Resources,
    /// Numeric user id.
    pub user: Option<u32>,
    /// Numeric group id.
    pub group: Option<u32>,
    /// The root filesystem is read-only.
    pub read_only_root: bool,
    /// Capabilities beyond the default set, as bits; all ones is `ALL`.
    pub add_capabilities: u64,
    /// Capabilities of the default set that are taken away, as bits; all ones is `ALL`.
    pub drop_capabilities: u64,
    /// All privileges of the agent; for processes only.
    pub privileged: bool,
}

/// One environment variable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnvVar {
    /// Name of the variable.
    pub name: String,
    /// Value or where it comes from.
    pub value: EnvValue,
}

/// Value of an environment variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnvValue {
    /// The text itself.
    Literal(String),
    /// A key of a ConfigMap in the pod's namespace.
    ConfigMap {
        /// Name of the ConfigMap.
        name: String,
        /// Key in its data.
        key: String,
        /// A missing key leaves the variable unset; otherwise the container waits for it.
        optional: bool,
    },
    /// A key of a Secret in the pod's namespace.
    Secret {
        /// Name of the Secret.
        name: String,
        /// Key in its data.
        key: String,
        /// As for a ConfigMap.
        optional: bool,
    },
}

/// A whole ConfigMap or Secret as environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnvFrom {
    /// The source is a Secret, not a ConfigMap.
    pub secret: bool,
    /// Name in the pod's namespace.
    pub name: String,
    /// Prepended to each key.
    pub prefix: String,
    /// The object may be missing.
    pub optional: bool,
}

/// Limits of one container; `None` is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// CPU limit in thousandths of a core.
    pub cpu_millis: Option<u32>,
    /// Limit of `memory.max` of the cgroup.
    pub memory_bytes: Option<u64>,
    /// Limit of processes and threads together.
    pub pids: Option<u32>,
}

/// A volume mounted into a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeMount {
    /// Name of the volume.
    pub volume: String,
    /// Absolute path in the container.
    pub path: String,
    /// Relative path inside the volume, empty for its root.
    pub sub_path: String,
    /// Mounted read-only.
    pub read_only: bool,
}

/// A volume of a Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// Name, unique in the pod.
    pub name: String,
    /// Where its content comes from.
    pub source: VolumeSource,
}

/// Source of a volume. Append only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeSource {
    /// A directory that exists as long as the pod.
    EmptyDir {
        /// Stored on tmpfs.
        memory: bool,
        /// Cap in bytes of a tmpfs; 0 is the agent's default.
        size_bytes: u64,
    },
    /// A path of the board, within the board's allow-list.
    HostPath {
        /// Absolute path.
        path: String,
        /// Create the directory when it is missing (`DirectoryOrCreate`).
        create: bool,
    },
    /// Files from a ConfigMap.
    ConfigMap {
        /// Name in the pod's namespace.
        name: String,
        /// (key, relative path); empty is every key under its own name.
        items: Vec<(String, String)>,
        /// File mode; 0 is 0644.
        mode: u16,
        /// The object may be missing.
        optional: bool,
    },
    /// Files from a Secret, on tmpfs.
    Secret {
        /// Name in the pod's namespace.
        name: String,
        /// As for a ConfigMap.
        items: Vec<(String, String)>,
        /// As for a ConfigMap.
        mode: u16,
        /// The object may be missing.
        optional: bool,
    },
}

impl Default for EnvValue {
    fn default() -> Self {
        Self::Literal(String::new())
    }
}

impl Default for VolumeSource {
    fn default() -> Self {
        Self::EmptyDir {
            memory: false,
            size_bytes: 0,
        }
    }
}

/// One file of a ConfigMap or Secret volume: its key, and its path in the volume.
type File = (String, String);

field_list! {
    Pod check check_pod {
        1 must uid,
        2 must namespace,
        3 must name,
        4 may labels,
        5 must runtime,
        6 must restart_policy,
        7 must grace_s,
        8 must host_network,
        9 must terminating,
        10 must containers: lists CONTAINERS_MAX,
        11 must volumes: lists VOLUMES_MAX,
    }
    Container check check_container {
        1 must name,
        2 must image,
        3 must command,
        4 must args,
        5 must working_dir,
        6 must env: lists ENV_MAX,
        7 must env_from: lists ENV_MAX,
        8 must mounts: lists VOLUMES_MAX,
        9 must resources: list,
        10 must user,
        11 must group,
        12 must read_only_root,
        13 must add_capabilities,
        14 must drop_capabilities,
        15 must privileged,
    }
    EnvVar {
        1 must name,
        2 must value: list,
    }
    EnvFrom {
        1 must secret,
        2 must name,
        3 must prefix,
        4 must optional,
    }
    Resources {
        1 must cpu_millis,
        2 must memory_bytes,
        3 must pids,
    }
    VolumeMount {
        1 must volume,
        2 must path,
        3 must sub_path,
        4 must read_only,
    }
    Volume {
        1 must name,
        2 must source: list,
    }
}

field_list! {
    @impl File {
        1 must 0,
        2 must 1,
    }
}

field_choice! {
    EnvValue {
        0 Literal {
            2 must 0,
        }
        1 ConfigMap {
            2 must name,
            3 must key,
            4 must optional,
        }
        2 Secret {
            2 must name,
            3 must key,
            4 must optional,
        }
    }
    VolumeSource {
        0 EmptyDir {
            2 must memory,
            3 must size_bytes,
        }
        1 HostPath {
            2 must path,
            3 must create,
        }
        2 ConfigMap {
            2 must name,
            3 must items: lists FILES_MAX,
            4 must mode,
            5 must optional,
        }
        3 Secret {
            2 must name,
            3 must items: lists FILES_MAX,
            4 must mode,
            5 must optional,
        }
    }
}

fn check_pod(pod: &Pod) -> Result<(), FieldError> {
    let (fault, number) = match () {
        () if pod.uid == Uid::default() => (Fault::Missing, 1),
        () if pod.namespace.is_empty() => (Fault::Missing, 2),
        () if pod.name.is_empty() => (Fault::Missing, 3),
        () if pod.labels.len() > LABELS_MAX => (Fault::Limit, 4),
        () if pod.containers.is_empty() => (Fault::Missing, 10),
        () => return Ok(()),
    };
    Err(FieldError::new(fault, number))
}

fn check_container(container: &Container) -> Result<(), FieldError> {
    let (fault, number) = match () {
        () if container.name.is_empty() => (Fault::Missing, 1),
        () if container.command.len() + container.args.len() > ARGV_MAX => (Fault::Limit, 3),
        () if container.env.len() + container.env_from.len() > ENV_MAX => (Fault::Limit, 6),
        () => return Ok(()),
    };
    Err(FieldError::new(fault, number))
}

impl Pod {
    /// Names of the ConfigMaps (`false`) and Secrets (`true`) that must exist before the pod starts.
    pub fn needs(&self) -> impl Iterator<Item = (bool, &str)> {
        let volumes = self
            .volumes
            .iter()
            .filter_map(|volume| match &volume.source {
                VolumeSource::ConfigMap {
                    name,
                    optional: false,
                    ..
                } => Some((false, name.as_str())),
                VolumeSource::Secret {
                    name,
                    optional: false,
                    ..
                } => Some((true, name.as_str())),
                _ => None,
            });
        let env = self.containers.iter().flat_map(|container| {
            let whole = container
                .env_from
                .iter()
                .filter(|from| !from.optional)
                .map(|from| (from.secret, from.name.as_str()));
            let single = container.env.iter().filter_map(|var| match &var.value {
                EnvValue::ConfigMap {
                    name,
                    optional: false,
                    ..
                } => Some((false, name.as_str())),
                EnvValue::Secret {
                    name,
                    optional: false,
                    ..
                } => Some((true, name.as_str())),
                _ => None,
            });
            whole.chain(single)
        });
        volumes.chain(env)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn pod() -> Pod {
        Pod {
            uid: Uid([7; 16]),
            namespace: "default".into(),
            name: "toll".into(),
            containers: vec![Container {
                name: "main".into(),
                command: vec!["/bin/toll".into()],
                env: vec![EnvVar {
                    name: "LANE".into(),
                    value: EnvValue::ConfigMap {
                        name: "lane".into(),
                        key: "id".into(),
                        optional: false,
                    },
                }],
                ..Container::default()
            }],
            ..Pod::default()
        }
    }

    #[test]
    fn a_pod_reads_back_and_names_what_it_needs() {
        let pod = pod();
        assert_eq!(Pod::decode(&pod.encode()).as_ref(), Ok(&pod));
        assert_eq!(pod.needs().collect::<Vec<_>>(), [(false, "lane")]);
    }
}
