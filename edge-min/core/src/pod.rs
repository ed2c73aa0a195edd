//! One pod on the board: its spec, its containers, and whether its directory stands.

use alloc::string::String;
use alloc::vec::Vec;

use edge_proto::Millis;
use edge_proto::hash::Hash16;
use edge_proto::key::Uid;
use edge_proto::object::{Phase, Pod, PodStatus, RestartPolicy, Volume, clip};

use crate::limits::GRACE_S_DEFAULT;
use crate::supervisor::Supervisor;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Directory {
    Absent,
    Preparing,
    Ready,
    Removing,
}

#[derive(Clone, Debug)]
pub(crate) struct PodState {
    /// `None`: nobody wants it any more (orphan, or its payload left the set).
    pub(crate) spec: Option<Pod>,
    pub(crate) hash: Hash16,
    pub(crate) directory: Directory,
    pub(crate) containers: Vec<Supervisor>,
    /// Why preparing failed, and when to try again.
    pub(crate) prepare_failure: Option<(String, Millis)>,
    pub(crate) missing: Option<String>,
    /// Reported payload, to tell a change.
    pub(crate) reported: Option<Vec<u8>>,
}

impl PodState {
    pub(crate) const fn new() -> Self {
        Self {
            spec: None,
            hash: Hash16([0; 16]),
            directory: Directory::Absent,
            containers: Vec::new(),
            prepare_failure: None,
            missing: None,
            reported: None,
        }
    }

    pub(crate) fn wanted(&self) -> bool {
        self.spec.as_ref().is_some_and(|pod| !pod.terminating)
    }

    /// Whether container `name` is to run: the pod is wanted and names it.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.spec.as_ref().is_some_and(|pod| {
            !pod.terminating
                && pod
                    .containers
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

    /// Takes a new spec: new containers are added, changed ones get their new hash.
    pub(crate) fn set_spec(&mut self, pod: Pod, hash: Hash16) {
        for container in &pod.containers {
            let spec = spec_hash(&pod, &container.name).unwrap_or_default();
            match self.container(&container.name) {
                Some(known) => known.spec = spec,
                None => self
                    .containers
                    .push(Supervisor::new(container.name.clone(), spec)),
            }
        }
        self.spec = Some(pod);
        self.hash = hash;
    }

    /// Forgets containers that left the spec and are gone from the board.
    pub(crate) fn forget_gone(&mut self) {
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
        let (reason, message) = match (&self.spec, &self.missing, &self.prepare_failure) {
            (Some(pod), ..) if pod.terminating => ("Terminating", ""),
            (None, ..) => ("Terminating", "no longer desired"),
            (_, Some(missing), _) => ("WaitingForConfig", missing.as_str()),
            (_, _, Some((failure, _))) => ("FailedPrepare", failure.as_str()),
            _ => ("", ""),
        };
        let order = |name: &str| {
            self.spec
                .iter()
                .flat_map(|pod| &pod.containers)
                .position(|container| container.name == name)
        };
        let mut containers: Vec<_> = self.containers.iter().map(Supervisor::status).collect();
        containers.sort_by_key(|status| order(&status.name));
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
}

/// What decides whether a running container may stay: its own fields, the pod's runtime and
/// network, and the volumes it mounts. Labels and restart policy do not restart anything.
pub(crate) fn spec_hash(pod: &Pod, name: &str) -> Option<Hash16> {
    let container = pod
        .containers
        .iter()
        .find(|container| container.name == name)?;
    let mounted: Vec<&Volume> = pod
        .volumes
        .iter()
        .filter(|volume| {
            container
                .mounts
                .iter()
                .any(|mount| mount.volume == volume.name)
        })
        .collect();
    let mut bytes = container.encode();
    let rest = (pod.runtime, pod.host_network, mounted);
    bytes.extend(edge_proto::encode(&rest));
    Some(Hash16::of(&bytes))
}
