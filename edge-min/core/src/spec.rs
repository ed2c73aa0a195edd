//! The resolved spec of a container, from the desired objects: environment, mounts with
//! their content, capabilities, limits. An image's own configuration
//! is known only when the image is available: [`ContainerSpec::process`] merges the two.

use alloc::borrow::ToOwned as _;
use alloc::string::{String, ToString as _};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use edge_proto::hash::Hash16;
use edge_proto::key::Uid;
use edge_proto::object::{
    CAPABILITIES_ALL, Container, Data, EnvValue, Pod, Resources, RuntimeClass, VolumeSource,
    granted,
};

use edge_proto::sorted::{SortedMap, SortedSet};

use crate::config_objects::ConfigObjects;
use crate::host_paths::HostPaths;
use crate::limits::{LOG_BYTES_MAX, LOG_BYTES_MIN, LOGS_BYTES_MIN, MEMORY_VOLUME_BYTES_DEFAULT};
use crate::pod::{mounted, spec_hash};
use crate::supervisor::StartFailure;

/// Search path of a process whose image and Pod set none.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Mode of a file of a ConfigMap or Secret whose volume sets none.
const FILE_MODE_DEFAULT: u32 = 0o644;
/// Mode of an emptyDir and of directories that are made in it: for containers of any user, as in
/// Kubernetes.
pub const EMPTY_DIR_MODE: u32 = 0o777;
/// Mode of a directory of the board that is made for a volume.
pub const HOST_DIR_MODE: u32 = 0o755;

/// Everything that one start needs; the shell looks up nothing more.
#[derive(Clone, PartialEq, Eq)]
pub struct ContainerSpec {
    /// UID of the pod.
    pub uid: Uid,
    /// Name in the pod.
    pub container: String,
    /// Number of the run, which answers repeat.
    pub run: u32,
    /// Hash of the spec: part of the cgroup's name, so that a later agent recognizes it.
    pub hash: Hash16,
    /// Host name inside: the pod's name.
    pub hostname: String,
    /// `None` is a plain process.
    pub image: Option<Image>,
    /// Replaces the image's entrypoint and arguments.
    pub command: Vec<String>,
    /// Arguments; without a command those of the image's entrypoint.
    pub args: Vec<String>,
    /// Environment of the Pod; a later entry of the same name wins.
    pub env: Vec<(String, String)>,
    /// `None` is the image's, or `/`.
    pub working_dir: Option<String>,
    /// User; `None` is the image's, or root.
    pub user: Option<u32>,
    /// Group; `None` is the user's number.
    pub group: Option<u32>,
    /// Capabilities of the process.
    pub rights: Rights,
    /// Mounts, in the order in which they are made.
    pub mounts: Vec<Mount>,
    /// Limits of its cgroup.
    pub limits: Resources,
    /// The root file system is read-only.
    pub read_only_root: bool,
}

/// An image to start from. It is never pulled: it is in the preload folder or missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Reference, as in the Pod.
    pub reference: String,
    /// References of all desired pods: their layers stay when space must be freed.
    pub in_use: Vec<String>,
}

/// Configuration of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `ENTRYPOINT`: program and first arguments.
    pub entrypoint: Vec<String>,
    /// Default arguments.
    pub cmd: Vec<String>,
    /// `ENV`, in order.
    pub env: Vec<(String, String)>,
    /// Working directory; empty is `/`.
    pub working_dir: String,
    /// `USER[:GROUP]` in the image's own form; empty is root.
    pub user: String,
}

/// The process of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Program and arguments; not empty.
    pub argv: Vec<String>,
    /// The whole environment: each name once, in order.
    pub env: Vec<(String, String)>,
    /// Absolute working directory.
    pub cwd: String,
    /// User; `None` is root.
    pub user: Option<u32>,
}

/// Capabilities that a container keeps of root's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// Bits of the kernel: the bounding set.
    pub granted: u64,
    /// Those of them that a user other than root gets too.
    pub for_users: u64,
    /// It may gain further capabilities, by setuid programs.
    pub privileged: bool,
}

/// A resolved volume of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Name within the pod, an RFC 1123 label.
    pub name: String,
    /// Where its files come from.
    pub content: Content,
}

/// Resolved source of a volume.
#[derive(Clone, PartialEq, Eq)]
pub enum Content {
    /// Scratch space of the pod, with [`EMPTY_DIR_MODE`].
    Empty {
        /// On tmpfs.
        memory: bool,
        /// Size limit; 0 is the default.
        size_bytes: u64,
    },
    /// A path of the board, which its config allows.
    Host {
        /// Absolute path.
        path: String,
        /// Create it when missing, with [`HOST_DIR_MODE`].
        create: bool,
        /// Where it may lead once links are followed.
        within: Arc<HostPaths>,
    },
    /// Files of a ConfigMap or Secret.
    Files {
        /// (relative path within the volume, bytes).
        files: Data,
        /// Mode of each file.
        mode: u32,
        /// On tmpfs.
        secret: bool,
    },
}

/// Where a container mounts a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Shared by the mounts of one volume.
    pub volume: Arc<Volume>,
    /// Absolute path in the container.
    pub target: String,
    /// Part of the volume; empty is all of it.
    pub sub_path: String,
    /// Mode of the directories of `sub_path` that are not there; `None` makes none.
    pub new_dir_mode: Option<u32>,
    /// Always set for files of ConfigMaps and Secrets.
    pub read_only: bool,
}

/// Omits environment and files: they may be secret.
impl fmt::Debug for ContainerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} run {}", self.uid, self.container, self.run)
    }
}

/// Omits the files: they may be secret.
impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty { .. } => "empty",
            Self::Host { .. } => "host path",
            Self::Files { .. } => "files",
        })
    }
}

impl ContainerSpec {
    /// Resolves the spec of `container` of `pod`.
    ///
    /// # Errors
    /// The missing object, or the contradiction.
    pub(crate) fn resolve(
        pod: &Pod,
        container: &Container,
        run: u32,
        objects: &ConfigObjects,
        (in_use, host_paths): (&[String], &Arc<HostPaths>),
    ) -> Result<Self, StartFailure> {
        let env = env(objects, pod, container).map_err(StartFailure::config)?;
        let mounts = mounts(objects, pod, container, host_paths).map_err(StartFailure::config)?;
        let image = (pod.runtime == RuntimeClass::Runc).then(|| Image {
            reference: container.image.clone(),
            in_use: in_use.to_owned(),
        });
        let rights = rights(container);
        if rights.privileged && image.is_some() {
            return Err(StartFailure::config(
                "privileged is for processes only".to_owned(),
            ));
        }
        Ok(Self {
            uid: pod.uid,
            container: container.name.clone(),
            run,
            hash: spec_hash(pod, &container.name).unwrap_or_default(),
            hostname: pod.name.clone(),
            image,
            command: container.command.clone(),
            args: container.args.clone(),
            env,
            working_dir: container.working_dir.clone(),
            user: container.user,
            group: container.group,
            rights,
            mounts,
            limits: container.resources,
            read_only_root: container.read_only_root,
        })
    }

    /// The process to start. As in Kubernetes, the Pod's command also replaces the image's arguments,
    /// and its environment overrides the image's. `image` is `None` for a plain process.
    ///
    /// # Errors
    /// Neither names a program, or only the image names a user, and not by number.
    pub fn process(&self, image: Option<ImageConfig>) -> Result<Process, StartFailure> {
        let image = image.unwrap_or_default();
        let argv = match (self.command.is_empty(), self.args.is_empty()) {
            (true, true) => [image.entrypoint, image.cmd].concat(),
            (true, false) => [image.entrypoint.as_slice(), &self.args].concat(),
            (false, _) => [self.command.as_slice(), &self.args].concat(),
        };
        if argv.is_empty() {
            return Err(StartFailure::config(
                "neither the Pod nor its image names a command".to_owned(),
            ));
        }
        let default = vec![("PATH".to_owned(), PATH_DEFAULT.to_owned())];
        // Later entries of a name replace earlier ones.
        let env: SortedMap<_, _> = [default, image.env, self.env.clone()]
            .into_iter()
            .flatten()
            .collect();
        let cwd = self.working_dir.clone().unwrap_or(image.working_dir);
        Ok(Process {
            argv,
            env: env.into_iter().collect(),
            cwd: if cwd.is_empty() { "/".to_owned() } else { cwd },
            user: match self.user {
                None => image_user(&image.user).map_err(StartFailure::config)?,
                user => user,
            },
        })
    }
}

/// The number of an image's user; `None` is root. A name would have to be looked up in the image's own
/// `/etc/passwd`, which an image may link anywhere, and Kubernetes does not trust it either
/// (`runAsNonRoot`): it is refused, and so the shell never parses files of images. The image's group
/// is not used: it is the Pod's, or the user's number.
fn image_user(user: &str) -> Result<Option<u32>, String> {
    let user = user.split(':').next().unwrap_or_default();
    match user {
        "" | "root" => Ok(None),
        name => name.parse().map(Some).map_err(|_| {
            let fix = " is not a number: set securityContext.runAsUser";
            ["the image's user ", name, fix].concat()
        }),
    }
}

/// Bytes of one log ring of a pod: at most 1/16 of its smallest memory limit, because tmpfs pages are
/// charged to the writer.
pub(crate) fn log_bytes(pod: Option<&Pod>) -> u64 {
    let containers = pod.into_iter().flat_map(|pod| &pod.containers);
    containers
        .filter_map(|container| container.resources.memory_bytes)
        .map(|bytes| bytes / 16)
        .min()
        .unwrap_or(LOG_BYTES_MAX)
        .clamp(LOG_BYTES_MIN, LOG_BYTES_MAX)
}

/// Bytes of the tmpfs with all logs of a pod: twice the rings, because a log is truncated afterwards and
/// never blocks the writer.
pub(crate) fn logs_bytes(pod: Option<&Pod>) -> u64 {
    let containers = pod.map_or(0, |pod| pod.containers.len() as u64);
    (log_bytes(pod) * containers * 2).max(LOGS_BYTES_MIN)
}

/// References of the images of these pods, each once.
pub(crate) fn images<'a>(pods: impl Iterator<Item = &'a Pod>) -> Vec<String> {
    let containers = pods
        .filter(|pod| pod.runtime == RuntimeClass::Runc)
        .flat_map(|pod| &pod.containers);
    let images: SortedSet<&String> = containers.map(|container| &container.image).collect();
    images.into_iter().cloned().collect()
}

/// The volumes of a pod with files. A volume that cannot be resolved keeps its present files.
pub(crate) fn file_volumes(objects: &ConfigObjects, pod: &Pod) -> Vec<Volume> {
    let volumes = pod.volumes.iter().filter_map(|volume| {
        Some(Volume {
            name: volume.name.clone(),
            content: files(objects, pod, &volume.source).ok()?,
        })
    });
    volumes.collect()
}

fn env(
    objects: &ConfigObjects,
    pod: &Pod,
    container: &Container,
) -> Result<Vec<(String, String)>, String> {
    let mut env = Vec::new();
    for from in &container.env_from {
        match objects.data(&pod.namespace, &from.name, from.secret) {
            Some(data) => {
                for (key, value) in data {
                    env.push(([&from.prefix, key.as_str()].concat(), text(key, value)?));
                }
            }
            None if from.optional => {}
            None => return Err([&from.name, " not found"].concat()),
        }
    }
    for var in &container.env {
        let (name, key, optional, secret) = match &var.value {
            EnvValue::Literal(value) => {
                env.push((var.name.clone(), value.clone()));
                continue;
            }
            EnvValue::ConfigMap {
                name,
                key,
                optional,
            } => (name, key, *optional, false),
            EnvValue::Secret {
                name,
                key,
                optional,
            } => (name, key, *optional, true),
        };
        let data = objects.data(&pod.namespace, name, secret);
        let value = data.and_then(|data| data.iter().find(|(have, _)| have == key));
        match value {
            Some((key, value)) => env.push((var.name.clone(), text(key, value)?)),
            None if optional => {}
            None => return Err(["key ", key, " of ", name, " not found"].concat()),
        }
    }
    Ok(env)
}

fn text(key: &str, value: &[u8]) -> Result<String, String> {
    String::from_utf8(value.to_vec())
        .map_err(|_| [key, " is not text and cannot be an environment variable"].concat())
}

fn mounts(
    objects: &ConfigObjects,
    pod: &Pod,
    container: &Container,
    host_paths: &Arc<HostPaths>,
) -> Result<Vec<Mount>, String> {
    let mut volumes = Vec::new();
    for volume in mounted(pod, container) {
        let content = content(objects, pod, &volume.source, host_paths)?;
        volumes.push(Arc::new(Volume {
            name: volume.name.clone(),
            content,
        }));
    }
    let place = |mount: &edge_proto::object::VolumeMount| {
        let volume = volumes.iter().find(|volume| volume.name == mount.volume);
        let volume = volume.ok_or_else(|| ["no volume ", &mount.volume].concat())?;
        Ok(Mount {
            volume: Arc::clone(volume),
            target: mount.path.clone(),
            sub_path: mount.sub_path.clone(),
            new_dir_mode: match volume.content {
                Content::Empty { .. } => Some(EMPTY_DIR_MODE),
                Content::Host { .. } => Some(HOST_DIR_MODE),
                Content::Files { .. } => None,
            },
            read_only: mount.read_only || matches!(volume.content, Content::Files { .. }),
        })
    };
    container.mounts.iter().map(place).collect()
}

fn content(
    objects: &ConfigObjects,
    pod: &Pod,
    source: &VolumeSource,
    host_paths: &Arc<HostPaths>,
) -> Result<Content, String> {
    match source {
        VolumeSource::EmptyDir { memory, size_bytes } => Ok(Content::Empty {
            memory: *memory,
            size_bytes: match (*memory, *size_bytes) {
                (true, 0) => MEMORY_VOLUME_BYTES_DEFAULT,
                (_, size_bytes) => size_bytes,
            },
        }),
        VolumeSource::HostPath { path, .. } if !host_paths.allow(path) => {
            let reason = " is not in the board's host-paths list";
            Err(["hostPath ", path, reason].concat())
        }
        VolumeSource::HostPath { path, create } => Ok(Content::Host {
            path: path.clone(),
            create: *create,
            within: Arc::clone(host_paths),
        }),
        files_of => files(objects, pod, files_of),
    }
}

fn files(objects: &ConfigObjects, pod: &Pod, source: &VolumeSource) -> Result<Content, String> {
    let (name, items, mode, optional, secret) = match source {
        VolumeSource::ConfigMap {
            name,
            items,
            mode,
            optional,
        } => (name, items, *mode, *optional, false),
        VolumeSource::Secret {
            name,
            items,
            mode,
            optional,
        } => (name, items, *mode, *optional, true),
        VolumeSource::EmptyDir { .. } | VolumeSource::HostPath { .. } => {
            return Err("the volume has no files of its own".to_owned());
        }
    };
    let files = match objects.data(&pod.namespace, name, secret) {
        Some(data) => select(data, items)?,
        None if optional => Vec::new(),
        None => return Err([name, " not found"].concat()),
    };
    let mode = match mode {
        0 => FILE_MODE_DEFAULT,
        mode => u32::from(mode),
    };
    Ok(Content::Files {
        files,
        mode,
        secret,
    })
}

/// All keys, or those that `items` selects, under its paths.
fn select(data: &Data, items: &[(String, String)]) -> Result<Data, String> {
    let files = if items.is_empty() {
        data.clone()
    } else {
        let pick = |(key, path): &(String, String)| {
            let found = data.iter().find(|(name, _)| name == key);
            let (_, bytes) = found.ok_or_else(|| ["key ", key, " not found"].concat())?;
            Ok((path.clone(), bytes.clone()))
        };
        items.iter().map(pick).collect::<Result<_, String>>()?
    };
    match files.iter().find(|(path, _)| !is_inside(path)) {
        Some((path, _)) => Err(["path ", path, " leaves the volume"].concat()),
        None => Ok(files),
    }
}

/// Whether a relative path stays below its start and does not collide with the `..data` of a
/// volume of files.
#[must_use]
pub fn is_inside(path: &str) -> bool {
    let leaves = path.is_empty() || path.starts_with("..") || path.starts_with('/');
    !leaves && !path.starts_with("./") && path != "." && path.split('/').all(|part| part != "..")
}

fn rights(container: &Container) -> Rights {
    let (add, drop) = (container.add_capabilities, container.drop_capabilities);
    if container.privileged {
        return Rights {
            granted: CAPABILITIES_ALL,
            for_users: 0,
            privileged: true,
        };
    }
    let granted = granted(add, drop);
    // A capability that is added by name is for the container's user, whoever that is. `ALL`
    // is what a container of root may have.
    let for_users = if add == CAPABILITIES_ALL { 0 } else { add };
    Rights {
        granted,
        for_users: granted & for_users,
        privileged: false,
    }
}

impl StartFailure {
    /// The Pod cannot be started as it is: nothing was created.
    #[must_use]
    pub fn config(message: String) -> Self {
        Self {
            reason: "CreateContainerConfigError".to_string(),
            message,
            counts_as_run: false,
        }
    }
}

#[cfg(test)]
mod tests;
