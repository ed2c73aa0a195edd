//! One pod on the board: its spec, its containers, and the state of its directory.

use alloc::string::String;
use alloc::vec::Vec;

use edge_proto::Millis;
use edge_proto::hash::Hash16;
use edge_proto::key::{Kind, Uid};
use edge_proto::limits::{CONTAINERS_MAX, NAME_BYTES_MAX};
use edge_proto::object::{
    Container, ContainerState, Phase, Pod, PodStatus, RestartPolicy, Volume, VolumeSource, clip,
};

use crate::limits::GRACE_S_DEFAULT;
use crate::supervisor::Supervisor;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Directory {
    Absent,
    /// Preparing or removing it failed: parts of it may exist.
    Partial,
    Preparing,
    Ready,
    Removing,
}

#[derive(Clone, Debug)]
pub(crate) struct PodState {
    /// `None`: an orphan, known only from its running containers.
    pub(crate) spec: Option<Pod>,
    /// Its payload is in the desired set. A pod that left the set keeps its spec until it is gone: its
    /// grace, name and volumes are still needed.
    pub(crate) desired: bool,
    /// A ConfigMap or Secret changed while the directory was being prepared.
    pub(crate) config_stale: bool,
    /// Consecutive failed preparations.
    pub(crate) prepare_failures: u32,
    pub(crate) hash: Hash16,
    pub(crate) directory: Directory,
    pub(crate) containers: Vec<Supervisor>,
    /// Why preparing failed, and when to retry.
    pub(crate) prepare_failure: Option<(String, Millis)>,
    /// Why removing failed, and when to retry.
    pub(crate) remove_failure: Option<(String, Millis)>,
    pub(crate) missing: Option<String>,
    /// Reported payload, to detect a change.
    pub(crate) reported: Option<Vec<u8>>,
}

impl PodState {
    pub(crate) const fn new() -> Self {
        Self {
            spec: None,
            desired: false,
            config_stale: false,
            prepare_failures: 0,
            hash: Hash16([0; 16]),
            directory: Directory::Absent,
            containers: Vec::new(),
            prepare_failure: None,
            remove_failure: None,
            missing: None,
            reported: None,
        }
    }

    pub(crate) fn wanted(&self) -> bool {
        self.desired && self.spec.as_ref().is_some_and(|pod| !pod.terminating)
    }

    /// Whether container `name` is to run: the pod is wanted and has such a container.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.wanted()
            && self.spec.as_ref().is_some_and(|pod| {
                pod.containers
                    .iter()
                    .any(|container| container.name == name)
            })
    }

    pub(crate) fn grace_ms(&self) -> Millis {
        let seconds = self
            .spec
            .as_ref()
            .and_then(|pod| pod.grace_s)
            .unwrap_or(GRACE_S_DEFAULT);
        Millis::from(seconds) * 1000
    }

    pub(crate) fn policy(&self) -> RestartPolicy {
        self.spec
            .as_ref()
            .map_or(RestartPolicy::Never, |pod| pod.restart_policy)
    }

    pub(crate) fn container(&mut self, name: &str) -> Option<&mut Supervisor> {
        self.containers
            .iter_mut()
            .find(|container| container.name == name)
    }

    /// Sets a new spec: new containers are added, changed ones get their new hash.
    pub(crate) fn set_spec(&mut self, pod: Pod, hash: Hash16) {
        for container in &pod.containers {
            let spec = spec_hash(&pod, &container.name).unwrap_or_default();
            match self.container(&container.name) {
                Some(known) => {
                    known.set_spec(spec);
                    known.decide(pod.restart_policy);
                }
                None => self
                    .containers
                    .push(Supervisor::new(container.name.clone(), spec)),
            }
        }
        self.spec = Some(pod);
        self.desired = true;
        self.hash = hash;
    }

    /// Whether to prepare the directory now: its last failure is old enough.
    pub(crate) fn to_prepare(&self) -> bool {
        self.wanted()
            && self.missing.is_none()
            && matches!(self.directory, Directory::Absent | Directory::Partial)
    }

    /// Whether to remove the directory now: its last failure is old enough.
    pub(crate) fn to_remove(&self) -> bool {
        matches!(self.directory, Directory::Ready | Directory::Partial) && self.is_empty()
    }

    /// Whether nothing of it is wanted and no container is left.
    pub(crate) fn is_empty(&self) -> bool {
        !self.wanted() && self.containers.iter().all(Supervisor::is_gone)
    }

    /// Whether a volume contains files of this ConfigMap or Secret.
    pub(crate) fn mounts_config(&self, namespace: &str, config: &str, secret: bool) -> bool {
        self.spec.as_ref().is_some_and(|pod| {
            pod.namespace == namespace
                && pod.volumes.iter().any(|volume| match &volume.source {
                    VolumeSource::ConfigMap { name, .. } => !secret && name == config,
                    VolumeSource::Secret { name, .. } => secret && name == config,
                    _ => false,
                })
        })
    }

    /// Whether a volume contains files of any ConfigMap or Secret.
    pub(crate) fn mounts_any_config(&self) -> bool {
        self.spec.iter().flat_map(|pod| &pod.volumes).any(|volume| {
            matches!(
                volume.source,
                VolumeSource::ConfigMap { .. } | VolumeSource::Secret { .. }
            )
        })
    }

    /// Drops containers that left the spec and are gone from the board.
    pub(crate) fn drop_gone(&mut self) {
        let Some(pod) = &self.spec else { return };
        self.containers.retain(|known| {
            !known.is_gone()
                || pod
                    .containers
                    .iter()
                    .any(|wanted| wanted.name == known.name)
        });
    }

    fn phase(&self) -> Phase {
        if !self.containers.is_empty() && self.containers.iter().all(|c| c.ended().is_some()) {
            let failed = self.containers.iter().any(|c| c.ended() != Some(Some(0)));
            return if failed {
                Phase::Failed
            } else {
                Phase::Succeeded
            };
        }
        if self.containers.iter().all(Supervisor::has_started) && !self.containers.is_empty() {
            Phase::Running
        } else {
            Phase::Pending
        }
    }

    pub(crate) fn status(&self, uid: Uid) -> PodStatus {
        let stuck = self.containers.iter().find_map(Supervisor::stuck);
        let remains = self.remove_failure.as_ref();
        let stuck = stuck
            .as_deref()
            .or_else(|| remains.map(|(why, _)| why.as_str()));
        let never_ran = self.containers.iter().find_map(Supervisor::never_ran);
        let (reason, message) = match (&self.spec, &self.missing, &self.prepare_failure) {
            (Some(pod), ..) if pod.terminating => ("Terminating", stuck.unwrap_or_default()),
            _ if !self.desired => ("Terminating", stuck.unwrap_or("no longer desired")),
            (_, Some(missing), _) => ("WaitingForConfig", missing.as_str()),
            (_, _, Some((failure, _))) => ("FailedPrepare", failure.as_str()),
            _ => ("", never_ran.unwrap_or_default()),
        };
        let order = |name: &str| {
            self.spec
                .iter()
                .flat_map(|pod| &pod.containers)
                .position(|container| container.name == name)
        };
        let mut containers: Vec<_> = self.containers.iter().map(Supervisor::status).collect();
        // Containers that left the spec come last, and are omitted beyond the cap of a status.
        containers.sort_by_key(|status| order(&status.name).unwrap_or(usize::MAX));
        containers.truncate(CONTAINERS_MAX);
        PodStatus {
            uid,
            namespace: self
                .spec
                .as_ref()
                .map(|pod| pod.namespace.clone())
                .unwrap_or_default(),
            name: self
                .spec
                .as_ref()
                .map(|pod| pod.name.clone())
                .unwrap_or_default(),
            phase: self.phase(),
            reason: reason.into(),
            message: clip(message).into(),
            containers,
            observed: self.hash,
        }
    }

    /// Payload of the status. Messages are omitted if it would exceed its cap with them.
    pub(crate) fn status_payload(&self, uid: Uid) -> Vec<u8> {
        let mut status = self.status(uid);
        let payload = status.encode();
        if payload.len() <= Kind::PodStatus.bytes_max() {
            return payload;
        }
        for container in &mut status.containers {
            if let ContainerState::Waiting { message, .. } = &mut container.state {
                message.clear();
            }
        }
        status.encode()
    }
}

/// Hash of all that requires a restart when it changes: the container's own fields, the pod's runtime and
/// network, and the volumes that it mounts. Labels and restart policy require none.
pub(crate) fn spec_hash(pod: &Pod, name: &str) -> Option<Hash16> {
    let container = pod
        .containers
        .iter()
        .find(|container| container.name == name)?;
    let decisive = Pod {
        runtime: pod.runtime,
        host_network: pod.host_network,
        containers: Vec::from([container.clone()]),
        volumes: mounted(pod, container).cloned().collect(),
        ..Pod::default()
    };
    Some(Hash16::of(&decisive.encode()))
}

/// The volumes of a pod that a container mounts.
pub(crate) fn mounted<'a>(
    pod: &'a Pod,
    container: &'a Container,
) -> impl Iterator<Item = &'a Volume> {
    let mounts =
        |volume: &&Volume| (container.mounts.iter()).any(|mount| mount.volume == volume.name);
    pod.volumes.iter().filter(mounts)
}

/// Refuses invalid names: they become directories and cgroups.
pub(crate) fn check_names(pod: &Pod) -> Result<(), &'static str> {
    if pod.namespace.len() > NAME_BYTES_MAX || pod.name.len() > NAME_BYTES_MAX {
        return Err("the name or namespace is too long");
    }
    let containers = || {
        pod.containers
            .iter()
            .map(|container| container.name.as_str())
    };
    let volumes = || pod.volumes.iter().map(|volume| volume.name.as_str());
    if !containers().chain(volumes()).all(is_label) {
        return Err("the name of a container or volume is not an RFC 1123 label");
    }
    if has_twins(containers()) || has_twins(volumes()) {
        return Err("two containers or two volumes have the same name");
    }
    Ok(())
}

fn is_label(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

fn has_twins<'a>(names: impl Iterator<Item = &'a str>) -> bool {
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    !names.is_sorted_by(|one, next| one < next)
}
