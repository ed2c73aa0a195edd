//! Places pods on nodes and says what each node shall hold.
//!
//! Names and UIDs derive from (owner, node, ordinal, spec), so a cloud restored from a backup asks
//! for the very pods that run. A pod that runs on a node stays there as long as it may. A pod that
//! leaves the manifests stays desired as `terminating` until its node no longer reports it; a pod
//! of the same name waits for it.
//!
//! Three steps, each pure and in a file of its own: [`claims`] expands owners into pods,
//! [`scheduler`] chooses nodes, [`node_set`] makes the desired set of a node. [`placer`] keeps
//! their results and redoes what a change touches; tests compare it with `reference`, which
//! computes everything anew. Never does IO; bounds are the wire's, per node.

mod claims;
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

use crate::manifest::{Id, Template};

pub use placer::{Changes, Placer, Work};

/// The objects that one node shall hold.
pub type Desired = BTreeMap<Key, Arc<[u8]>>;

/// (namespace, name) of a pod.
pub type PodName = (String, String);

/// What placement needs to know of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeState {
    /// Labels from the node's own config; the implicit ones are added here.
    pub labels: BTreeMap<String, String>,
    /// `aarch64`, `arm` or `x86_64`.
    pub arch: String,
    /// Pods that fit; 0 is not known.
    pub pods_max: u32,
    /// A session is live. Nothing that another node could run is given to a node without.
    #[serde(skip)]
    pub connected: bool,
    /// Pods that the node reports: UID to (namespace, name).
    #[serde(skip)]
    pub reported: BTreeMap<Uid, PodName>,
}

/// Label with the node's name.
const HOSTNAME: &str = "kubernetes.io/hostname";
/// Label with the operating system.
const OS: &str = "kubernetes.io/os";
/// Label with the architecture in Kubernetes' words.
const ARCH: &str = "kubernetes.io/arch";

impl NodeState {
    /// Kubernetes' well-known labels come from what the node is, and win over its config.
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

/// A pod that is asked of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedPod {
    /// Node.
    pub node: String,
    /// The pod as the node gets it.
    pub pod: Pod,
}

impl PlacedPod {
    fn name(&self) -> PodName {
        (self.pod.namespace.clone(), self.pod.name.clone())
    }
}

/// A pod that is not asked of any node, or waits there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Unplaced {
    /// Document that the pod comes from.
    pub owner: Id,
    /// Name of the pod.
    pub name: String,
    /// Why, for a person, as of the last attempt.
    pub reason: String,
}

impl fmt::Display for Unplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: pod {}: {}", self.owner, self.name, self.reason)
    }
}

/// Owner and name of a pod, which tell it from all others that are asked for.
pub type ClaimName = (Arc<Id>, String);

/// Where the pods are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// All pods that nodes shall hold, terminating ones included.
    pub pods: BTreeMap<Uid, Arc<PlacedPod>>,
    /// Pods that could not be placed or lack something.
    pub unplaced: BTreeMap<ClaimName, Unplaced>,
}
