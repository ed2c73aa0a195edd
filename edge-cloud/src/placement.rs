//! Places pods on nodes and computes the desired set of each node.
//!
//! Names and UIDs derive from (owner, node, ordinal, spec), so a cloud restored from a backup
//! creates exactly the running pods. A pod that runs on a node stays there as long as it may. A pod that
//! leaves the manifests stays desired as `terminating` until its node no longer reports it; a pod
//! of the same name waits for it.
//!
//! A report of a node counts only for pods in that node's desired set: the placement is our own state. Only
//! after a restore, until that is settled, may a node report a pod that our state lacks; its UID must then
//! prove that the pod was in that node's desired set, see [`ids`].
//!
//! Three steps, each pure and in a file of its own: [`claims`] expands owners into pods, with UIDs by
//! [`ids`], [`scheduler`] chooses nodes, [`node_set`] creates the desired set of a node. [`placer`] keeps
//! their results and recomputes what a change touches; tests compare it with `reference`, which
//! always computes everything. Never does IO; bounds are the wire's, per node.

mod claims;
mod ids;
mod node_set;
mod placer;
#[cfg(test)]
mod reference;
mod scheduler;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use edge_proto::key::{Key, Uid};
use edge_proto::object::Pod;
use serde::{Deserialize, Serialize};

use crate::manifest::{DocumentKind, Id, Template};

pub use ids::{KEY_BYTES, PodIds};
pub use placer::{Changes, Placer, Work};

/// Desired set of one node: payloads by key.
pub type Desired = BTreeMap<Key, Arc<[u8]>>;

/// (namespace, name) of a pod.
pub type PodName = (String, String);

/// State of a node that placement needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeState {
    /// Labels that the registry has or allows for the node; the implicit ones are added here.
    pub labels: BTreeMap<String, String>,
    /// `aarch64`, `arm` or `x86_64`.
    pub arch: String,
    /// Highest number of pods; 0 is not known.
    pub pods_max: u32,
    /// A session is live. A node without one gets no pod that another node could run.
    #[serde(skip)]
    pub connected: bool,
    /// Pods that the node reports: UID to (namespace, name).
    #[serde(skip)]
    pub reported: BTreeMap<Uid, PodName>,
    /// It has not reported since edge-cloud's start, so it may run every pod that it was asked for before.
    #[serde(skip)]
    pub awaits_report: bool,
}

/// Label with the node's name.
const HOSTNAME: &str = "kubernetes.io/hostname";
/// Label with the operating system.
const OS: &str = "kubernetes.io/os";
/// Label with the architecture in Kubernetes' words.
const ARCH: &str = "kubernetes.io/arch";

impl NodeState {
    /// Whether a pod that the node was asked for may not have ended yet.
    fn may_run(&self, uid: Uid) -> bool {
        self.awaits_report || self.reported.contains_key(&uid)
    }

    /// Kubernetes' well-known labels are derived from the node, and override all others.
    fn label<'a>(&'a self, name: &'a str, key: &str) -> Option<&'a str> {
        match (key, self.arch.as_str()) {
            (HOSTNAME, _) => Some(name),
            (OS, _) => Some("linux"),
            (ARCH, "aarch64") => Some("arm64"),
            (ARCH, "x86_64") => Some("amd64"),
            (ARCH, other) => Some(other),
            _ => self.labels.get(key).map(String::as_str),
        }
    }

    fn matches(&self, name: &str, template: &Template) -> bool {
        self.is_selected(name, template.node.as_deref(), &template.selector)
    }

    fn is_selected(
        &self,
        name: &str,
        node: Option<&str>,
        selector: &BTreeMap<String, String>,
    ) -> bool {
        let has = |(key, value): (&String, &String)| self.label(name, key) == Some(value);
        node.is_none_or(|node| node == name) && selector.iter().all(has)
    }
}

/// A pod in the desired set of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedPod {
    /// Name of the node.
    pub node: String,
    /// The pod as it is sent to the node.
    pub pod: Pod,
}

impl PlacedPod {
    /// The Secrets that its node was given for it, as `NAMESPACE/NAME`.
    pub fn secrets(&self) -> impl Iterator<Item = String> {
        let secrets = node_set::configs(&self.pod).map(|(id, _)| id);
        let secrets = secrets.filter(|id| id.kind == DocumentKind::Secret);
        secrets.map(|id| format!("{}/{}", id.namespace, id.name))
    }

    fn name(&self) -> PodName {
        (self.pod.namespace.clone(), self.pod.name.clone())
    }
}

/// A pod without a node, or one that waits on its node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Unplaced {
    /// Document that the pod comes from.
    pub owner: Id,
    /// Name of the pod.
    pub name: String,
    /// Human-readable reason, as of the last attempt.
    pub reason: String,
}

impl fmt::Display for Unplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: pod {}: {}", self.owner, self.name, self.reason)
    }
}

/// Owner and name of a pod, which identify it among all claims.
pub type ClaimName = (Arc<Id>, String);

/// All placed and unplaced pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// All pods in desired sets, terminating ones included.
    pub pods: BTreeMap<Uid, Arc<PlacedPod>>,
    /// Pods that could not be placed or lack an object.
    pub unplaced: BTreeMap<ClaimName, Unplaced>,
}

impl Placement {
    /// Whether the pod is in the desired set of this node, so that the node's report of it counts.
    #[must_use]
    pub fn asks(&self, node: &str, uid: Uid) -> bool {
        self.pods
            .get(&uid)
            .is_some_and(|placed| placed.node == node)
    }
}
