//! The Pod: what Kubernetes calls a Pod, without what a gate has no use for.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::fields::{FieldError, Reader, Skip, Writer};
use crate::key::Uid;
use crate::limits::{ARGV_MAX, CONTAINERS_MAX, ENV_MAX, LABELS_MAX, VOLUMES_MAX};

/// How containers of a pod run. From `runtimeClassName`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RuntimeClass {
    /// An OCI container by runc.
    #[default]
    Runc,
    /// A plain process; `command` names the program, `image` is ignored.
    Process,
}

/// `restartPolicy` of a Pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartPolicy {
    /// Restart whenever a container ends.
    #[default]
    Always,
    /// Restart after a failure: a code that is not 0, a signal, or unknown.
    OnFailure,
    /// Never restart.
    Never,
}

/// A Pod as the node gets it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Identity. A new UID is a new pod, whatever its name.
    pub uid: Uid,
    /// Namespace.
    pub namespace: String,
    /// Name.
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
    /// Deleted in the cloud: to be stopped, and kept until reported gone.
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
    /// Whole ConfigMaps or Secrets as environment; `env` wins over them.
    pub env_from: Vec<EnvFrom>,
    /// Mounts, at most [`VOLUMES_MAX`].
    pub mounts: Vec<VolumeMount>,
    /// Limits.
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
    /// Every privilege of the agent; for processes only.
    pub privileged: bool,
}

/// One environment variable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvVar {
    /// Name.
    pub name: String,
    /// Value or where it comes from.
    pub value: EnvValue,
}

/// Value of an environment variable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnvValue {
    /// The text itself.
    Literal(String),
    /// A key of a ConfigMap in the pod's namespace.
    ConfigMap {
        /// ConfigMap.
        name: String,
        /// Key in it.
        key: String,
        /// A missing key leaves the variable unset instead of holding the container back.
        optional: bool,
    },
    /// A key of a Secret in the pod's namespace.
    Secret {
        /// Secret.
        name: String,
        /// Key in it.
        key: String,
        /// As for a ConfigMap.
        optional: bool,
    },
}

/// A whole ConfigMap or Secret as environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvFrom {
    /// It is a Secret, not a ConfigMap.
    pub secret: bool,
    /// Name in the pod's namespace.
    pub name: String,
    /// Prepended to each key.
    pub prefix: String,
    /// May be missing.
    pub optional: bool,
}

/// Limits of one container; `None` is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Thousandths of a core.
    pub cpu_millis: Option<u32>,
    /// Bytes.
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u32>,
}

/// A volume mounted into a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Name, unique in the pod.
    pub name: String,
    /// What it holds.
    pub source: VolumeSource,
}

/// Source of a volume. Append only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeSource {
    /// A directory that lives as long as the pod.
    EmptyDir {
        /// On tmpfs.
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
        /// May be missing.
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
        /// May be missing.
        optional: bool,
    },
}

impl Pod {
    /// Payload bytes: canonical, so that an unchanged pod keeps its hash.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut fields = Writer::default();
        fields.put(1, Skip::Refused, &self.uid);
        fields.put(2, Skip::Refused, &self.namespace);
        fields.put(3, Skip::Refused, &self.name);
        fields.put(4, Skip::Allowed, &self.labels);
        fields.put(5, Skip::Refused, &self.runtime);
        fields.put(6, Skip::Refused, &self.restart_policy);
        fields.put(7, Skip::Refused, &self.grace_s);
        fields.put(8, Skip::Refused, &self.host_network);
        fields.put(9, Skip::Refused, &self.terminating);
        fields.put_all(10, Skip::Refused, &self.containers, Container::encode);
        fields.put(11, Skip::Refused, &self.volumes);
        fields.into_bytes()
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// The first field that is wrong, over a cap, unknown and must be understood, or missing.
    pub fn decode(bytes: &[u8]) -> Result<Self, FieldError> {
        let mut pod = Self::default();
        for field in Reader::new(bytes) {
            let field = field?;
            match field.number {
                1 => pod.uid = field.read()?,
                2 => pod.namespace = field.read()?,
                3 => pod.name = field.read()?,
                4 => pod.labels = field.read()?,
                5 => pod.runtime = field.read()?,
                6 => pod.restart_policy = field.read()?,
                7 => pod.grace_s = field.read()?,
                8 => pod.host_network = field.read()?,
                9 => pod.terminating = field.read()?,
                10 => pod.containers = field.read_all(CONTAINERS_MAX, Container::decode)?,
                11 => pod.volumes = field.read()?,
                _ => field.unknown()?,
            }
        }
        match () {
            () if pod.uid == Uid::default() => Err(FieldError::Missing(1)),
            () if pod.namespace.is_empty() => Err(FieldError::Missing(2)),
            () if pod.name.is_empty() => Err(FieldError::Missing(3)),
            () if pod.labels.len() > LABELS_MAX => Err(FieldError::Limit(4)),
            () if pod.containers.is_empty() => Err(FieldError::Missing(10)),
            () if pod.volumes.len() > VOLUMES_MAX => Err(FieldError::Limit(11)),
            () => Ok(pod),
        }
    }

    /// ConfigMaps (`false`) and Secrets (`true`) that must be there before the pod starts.
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

impl Container {
    /// Field list of the container; also what its spec hash covers.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut fields = Writer::default();
        fields.put(1, Skip::Refused, &self.name);
        fields.put(2, Skip::Refused, &self.image);
        fields.put(3, Skip::Refused, &self.command);
        fields.put(4, Skip::Refused, &self.args);
        fields.put(5, Skip::Refused, &self.working_dir);
        fields.put(6, Skip::Refused, &self.env);
        fields.put(7, Skip::Refused, &self.env_from);
        fields.put(8, Skip::Refused, &self.mounts);
        fields.put(9, Skip::Refused, &self.resources);
        fields.put(10, Skip::Refused, &self.user);
        fields.put(11, Skip::Refused, &self.group);
        fields.put(12, Skip::Refused, &self.read_only_root);
        fields.put(13, Skip::Refused, &self.add_capabilities);
        fields.put(14, Skip::Refused, &self.drop_capabilities);
        fields.put(15, Skip::Refused, &self.privileged);
        fields.into_bytes()
    }

    fn decode(bytes: &[u8]) -> Result<Self, FieldError> {
        let mut container = Self::default();
        for field in Reader::new(bytes) {
            let field = field?;
            match field.number {
                1 => container.name = field.read()?,
                2 => container.image = field.read()?,
                3 => container.command = field.read()?,
                4 => container.args = field.read()?,
                5 => container.working_dir = field.read()?,
                6 => container.env = field.read()?,
                7 => container.env_from = field.read()?,
                8 => container.mounts = field.read()?,
                9 => container.resources = field.read()?,
                10 => container.user = field.read()?,
                11 => container.group = field.read()?,
                12 => container.read_only_root = field.read()?,
                13 => container.add_capabilities = field.read()?,
                14 => container.drop_capabilities = field.read()?,
                15 => container.privileged = field.read()?,
                _ => field.unknown()?,
            }
        }
        match () {
            () if container.name.is_empty() => Err(FieldError::Missing(1)),
            () if container.command.len() + container.args.len() > ARGV_MAX => {
                Err(FieldError::Limit(3))
            }
            () if container.env.len() + container.env_from.len() > ENV_MAX => {
                Err(FieldError::Limit(6))
            }
            () if container.mounts.len() > VOLUMES_MAX => Err(FieldError::Limit(8)),
            () => Ok(container),
        }
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

    #[test]
    fn a_newer_field_is_skipped_or_refused_by_number() {
        let mut skipped = Writer::default();
        skipped.put(90, Skip::Allowed, &7_u32);
        let mut refused = Writer::default();
        refused.put(91, Skip::Refused, &7_u32);
        let with = |extra: Writer| [pod().encode(), extra.into_bytes()].concat();
        assert_eq!(Pod::decode(&with(skipped)), Ok(pod()));
        assert_eq!(Pod::decode(&with(refused)), Err(FieldError::Unknown(91)));
    }

    #[test]
    fn every_truncation_is_an_error_or_misses_a_field_but_never_panics() {
        let bytes = pod().encode();
        for end in 0..bytes.len() {
            assert!(
                Pod::decode(bytes.get(..end).unwrap_or_default()).is_err(),
                "{end}"
            );
        }
    }
}
