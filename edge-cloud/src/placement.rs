//! Places pods on nodes and says what each node shall hold.
//!
//! Names and UIDs derive from (owner, node, ordinal, spec), so a cloud restored from a backup asks
//! for the very pods that run. A pod that runs on a node stays there as long as it may. A pod that
//! leaves the manifests stays desired as `terminating` until its node no longer reports it; a pod
//! of the same name waits for it. Never does IO; bounds are the wire's, per node.

mod node_set;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use edge_proto::hash::sha256;
use edge_proto::key::{Key, Uid};
use edge_proto::limits::NAME_BYTES_MAX;
use edge_proto::object::Pod;
use serde::{Deserialize, Serialize};

use crate::manifest::{Accepted, DocumentKind, Id, Manifests, Template};
use node_set::NodeSet;

/// The objects that one node shall hold.
pub type Desired = BTreeMap<Key, Arc<[u8]>>;

/// (namespace, name) of a pod.
type PodName = (String, String);

/// What placement needs to know of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
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

impl Node {
    /// Kubernetes' well-known labels come from what the node is, and win over its config.
    fn label<'a>(&'a self, name: &'a str, key: &str) -> Option<&'a str> {
        match (key, self.arch.as_str()) {
            ("kubernetes.io/hostname", _) => Some(name),
            ("kubernetes.io/os", _) => Some("linux"),
            ("kubernetes.io/arch", "aarch64") => Some("arm64"),
            ("kubernetes.io/arch", "x86_64") => Some("amd64"),
            ("kubernetes.io/arch", other) => Some(other),
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

/// A pod that is not asked of any node, or waits there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unplaced {
    /// Document that the pod comes from.
    pub owner: Id,
    /// Name of the pod.
    pub name: String,
    /// Why, for a person.
    pub reason: String,
}

impl fmt::Display for Unplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: pod {}: {}", self.owner, self.name, self.reason)
    }
}

/// Result of one placement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// What each node shall hold; every node that was given is here.
    pub desired: BTreeMap<String, Desired>,
    /// All pods in `desired`.
    pub pods: BTreeMap<Uid, PlacedPod>,
    /// Pods that could not be placed or lack something.
    pub unplaced: Vec<Unplaced>,
}

/// A pod that the manifests ask for.
struct Wanted<'a> {
    owner: &'a Id,
    template: &'a Template,
    name: String,
    ordinal: u32,
    /// Of a DaemonSet: it exists for this node only.
    only: Option<&'a str>,
}

impl Wanted<'_> {
    /// UID of this pod on `node`.
    fn uid(&self, node: &str) -> Uid {
        let spec = Pod {
            labels: Vec::new(),
            ..self.template.pod.clone()
        };
        let ordinal = self.ordinal.to_string();
        let mut text = Vec::new();
        for part in [
            b"edge-min pod 1".as_slice(),
            self.owner.kind.as_str().as_bytes(),
            self.owner.namespace.as_bytes(),
            self.owner.name.as_bytes(),
            ordinal.as_bytes(),
            node.as_bytes(),
            &spec.encode(),
        ] {
            text.extend((part.len() as u64).to_be_bytes());
            text.extend(part);
        }
        let mut uid = sha256(&text).short().0;
        // A version 8 UUID (RFC 9562), so that Kubernetes and people recognise it.
        uid[6] = uid[6] & 0x0f | 0x80;
        uid[8] = uid[8] & 0x3f | 0x80;
        Uid(uid)
    }

    fn pod(&self, node: &str) -> Pod {
        Pod {
            uid: self.uid(node),
            name: self.name.clone(),
            ..self.template.pod.clone()
        }
    }

    fn allows(&self, name: &str, node: &Node) -> bool {
        self.only.is_none_or(|only| only == name) && node.matches(name, self.template)
    }

    /// Whether more than one node could get it.
    const fn has_choice(&self) -> bool {
        self.only.is_none() && self.template.node.is_none()
    }

    fn unplaced(&self, reason: impl Into<String>) -> Unplaced {
        Unplaced {
            owner: self.owner.clone(),
            name: self.name.clone(),
            reason: reason.into(),
        }
    }
}

/// Places everything anew. `before` is the result of the last call, or what was saved of it. As
/// long as that is older than what the nodes run, `settled` is false: a pod that could go to more
/// than one node then waits, because one of them may run it.
#[must_use]
pub fn place(
    manifests: &Manifests,
    nodes: &BTreeMap<String, Node>,
    before: &BTreeMap<Uid, PlacedPod>,
    settled: bool,
) -> Placement {
    let (wanted, mut unplaced) = wanted(manifests, nodes, before);
    let mut sets: BTreeMap<&str, NodeSet<'_>> = nodes
        .iter()
        .map(|(name, node)| {
            let mut set = NodeSet::new(manifests, node);
            set.add_policy(name);
            (name.as_str(), set)
        })
        .collect();
    let mut pods = BTreeMap::new();

    // Where each wanted pod runs now: a report counts more than our memory.
    let home = |wanted: &Wanted<'_>| {
        let candidates = || {
            nodes
                .iter()
                .filter(|(name, node)| wanted.allows(name, node))
        };
        candidates()
            .find(|(name, node)| node.reported.contains_key(&wanted.uid(name)))
            .or_else(|| {
                candidates().find(|(name, _)| {
                    before
                        .get(&wanted.uid(name))
                        .is_some_and(|placed| placed.node == **name && !placed.pod.terminating)
                })
            })
            .map(|(name, _)| name.as_str())
    };
    let wanted: Vec<_> = wanted
        .into_iter()
        .map(|wanted| (home(&wanted), wanted))
        .collect();
    let kept: BTreeSet<Uid> = wanted
        .iter()
        .filter_map(|(home, wanted)| home.map(|node| wanted.uid(node)))
        .collect();

    // What leaves: desired before and still reported.
    let mut busy: BTreeMap<PodName, &str> = BTreeMap::new();
    for (uid, placed) in before.iter().filter(|(uid, _)| !kept.contains(uid)) {
        let Some((node, set)) = sets.get_key_value(placed.node.as_str()) else {
            continue;
        };
        if set.node.reported.contains_key(uid) {
            let pod = Pod {
                terminating: true,
                ..placed.pod.clone()
            };
            let node = *node;
            if let Some(set) = sets.get_mut(node) {
                // It was within the caps when it was asked for, and comes first.
                let _fits = set.add(&pod);
            }
            pods.insert(
                *uid,
                PlacedPod {
                    node: node.to_owned(),
                    pod,
                },
            );
        }
    }
    // A name is taken as long as any node reports another pod under it.
    for (name, node) in nodes {
        for (uid, pod) in &node.reported {
            if !kept.contains(uid) {
                busy.insert(pod.clone(), name);
            }
        }
    }

    let (stay, new): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(home, _)| home.is_some());
    for (home, wanted) in stay.into_iter().chain(new) {
        let full_name = (wanted.template.pod.namespace.clone(), wanted.name.clone());
        if home.is_none()
            && let Some(node) = busy.get(&full_name)
        {
            unplaced.push(wanted.unplaced(format!(
                "waits until node {node} has ended the old pod of this name"
            )));
            continue;
        }
        if home.is_none() && !settled && wanted.has_choice() {
            let reason = "waits after the restore: a node that has not reported yet may run it";
            unplaced.push(wanted.unplaced(reason));
            continue;
        }
        match choose(&wanted, home, &mut sets) {
            Ok((node, pod, note)) => {
                unplaced.extend(note.map(|note| wanted.unplaced(note)));
                pods.insert(pod.uid, PlacedPod { node, pod });
            }
            Err(reason) => unplaced.push(wanted.unplaced(reason)),
        }
    }
    Placement {
        desired: sets
            .into_iter()
            .map(|(name, set)| (name.to_owned(), set.into_objects()))
            .collect(),
        pods,
        unplaced,
    }
}

/// Puts a pod on its home or on the connected node with the fewest pods that takes it: one that is
/// away may be so for good. Also says what the pod will wait for there.
fn choose(
    wanted: &Wanted<'_>,
    home: Option<&str>,
    sets: &mut BTreeMap<&str, NodeSet<'_>>,
) -> Result<(String, Pod, Option<String>), String> {
    let mut candidates: Vec<_> = sets
        .iter()
        .filter(|(name, set)| {
            home.map_or_else(|| wanted.allows(name, set.node), |home| home == **name)
        })
        .map(|(name, set)| (set.pods(), *name, set.node.connected))
        .collect();
    let some = !candidates.is_empty();
    candidates.retain(|(_, _, connected)| *connected || home.is_some() || !wanted.has_choice());
    candidates.sort_unstable();
    let mut reason = match &wanted.template.node {
        Some(node) if !sets.contains_key(node.as_str()) => {
            format!("node {node} has not joined or not reported yet")
        }
        Some(node) if !wanted.template.selector.is_empty() => {
            format!("node {node} lacks labels of nodeSelector")
        }
        _ if some => "no node that it may run on is connected".to_owned(),
        _ if wanted.template.selector.is_empty() => "no node has joined yet".to_owned(),
        _ => "no node has the labels of nodeSelector".to_owned(),
    };
    for (_, name, _) in candidates {
        let Some(set) = sets.get_mut(name) else {
            continue;
        };
        let pod = wanted.pod(name);
        match set.add(&pod) {
            Ok(note) => return Ok((name.to_owned(), pod, note)),
            Err(full) => reason = format!("node {name} {full}"),
        }
    }
    Err(reason)
}

/// All pods of the manifests, and those whose name another document has taken. Of two the one that is
/// placed already holds: a new manifest must not end what runs.
fn wanted<'a>(
    manifests: &'a Manifests,
    nodes: &'a BTreeMap<String, Node>,
    before: &BTreeMap<Uid, PlacedPod>,
) -> (Vec<Wanted<'a>>, Vec<Unplaced>) {
    let mut all = Vec::new();
    for (owner, (_, object)) in &manifests.objects {
        let pod = |template, name, ordinal, only| Wanted {
            owner,
            template,
            name,
            ordinal,
            only,
        };
        match object {
            Accepted::Config(_) | Accepted::Policy(_) => {}
            Accepted::Replicated(template, replicas) => {
                all.extend((0..*replicas).map(|ordinal| {
                    pod(template, format!("{}-{ordinal}", owner.name), ordinal, None)
                }));
            }
            Accepted::Workload(template) if owner.kind == DocumentKind::DaemonSet => {
                let here = nodes
                    .iter()
                    .filter(|(name, node)| node.matches(name, template));
                all.extend(here.map(|(name, _)| {
                    pod(
                        template,
                        format!("{}-{name}", owner.name),
                        0,
                        Some(name.as_str()),
                    )
                }));
            }
            Accepted::Workload(template) => all.push(pod(template, owner.name.clone(), 0, None)),
        }
    }
    let mut placed: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for one in before.values().filter(|one| !one.pod.terminating) {
        let name = (one.pod.namespace.as_str(), one.pod.name.as_str());
        placed.entry(name).or_default().push(&one.node);
    }
    all.sort_by_cached_key(|wanted| {
        let name = (wanted.owner.namespace.as_str(), wanted.name.as_str());
        let mut at = placed.get(&name).into_iter().flatten();
        !at.any(|node| before.contains_key(&wanted.uid(node)))
    });
    let mut names: BTreeMap<PodName, &Id> = BTreeMap::new();
    let mut refused = Vec::new();
    all.retain(|wanted| {
        let name = (wanted.owner.namespace.clone(), wanted.name.clone());
        if name.1.len() > NAME_BYTES_MAX {
            refused.push(wanted.unplaced(format!("its name is over {NAME_BYTES_MAX} bytes")));
            return false;
        }
        if let Some(first) = names.get(&name) {
            refused.push(wanted.unplaced(format!("{first} has a pod of this name, too")));
            return false;
        }
        names.insert(name, wanted.owner);
        true
    });
    (all, refused)
}

#[cfg(test)]
mod tests;
