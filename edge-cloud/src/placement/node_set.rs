//! The desired set of one node while it is filled, within the caps of the wire.

use std::sync::Arc;

use edge_proto::key::{Key, Kind};
use edge_proto::limits::{NODE_BYTES_MAX, SET_OBJECTS_MAX};
use edge_proto::object::{EnvValue, Pod, VolumeSource};

use super::{Desired, Node};
use crate::manifest::{Accepted, DocumentKind, Id, Manifests};

/// Pods of one node when the node does not say how many fit.
const PODS_MAX: usize = 110;

/// Objects for one node.
pub(super) struct NodeSet<'a> {
    manifests: &'a Manifests,
    /// The node.
    pub(super) node: &'a Node,
    objects: Desired,
    bytes: usize,
    pods: usize,
}

impl<'a> NodeSet<'a> {
    /// An empty set.
    pub(super) const fn new(manifests: &'a Manifests, node: &'a Node) -> Self {
        Self {
            manifests,
            node,
            objects: Desired::new(),
            bytes: 0,
            pods: 0,
        }
    }

    /// Pods in the set.
    pub(super) const fn pods(&self) -> usize {
        self.pods
    }

    /// Adds the policy for the node of this name, if there is one: one that names the node goes
    /// before one that names labels, and that before one for all; then the first by name.
    pub(super) fn add_policy(&mut self, name: &str) {
        let policies = self.manifests.objects.values();
        let policies = policies.filter_map(|(_, object)| match object {
            Accepted::Policy(policy) => Some(policy),
            _ => None,
        });
        let chosen = policies
            .filter(|policy| {
                let node = policy.node.as_deref();
                self.node.is_selected(name, node, &policy.selector)
            })
            .min_by_key(|policy| (policy.node.is_none(), policy.selector.is_empty()));
        if let Some(policy) = chosen {
            let payload: Arc<[u8]> = policy.policy.encode().into();
            self.bytes += payload.len();
            // Always the same key: a change of policy is one of its payload.
            let key = Key::Name(Kind::NodePolicy, String::new(), "node".to_owned());
            self.objects.insert(key, payload);
        }
    }

    /// Adds a pod with the ConfigMaps and Secrets that it names, whole or not at all. Returns what
    /// the pod will wait for.
    ///
    /// # Errors
    /// Which cap of the node would be passed.
    pub(super) fn add(&mut self, pod: &Pod) -> Result<Option<String>, String> {
        let pods_max = match self.node.pods_max {
            0 => PODS_MAX,
            max => max as usize,
        };
        if self.pods >= pods_max && !pod.terminating {
            return Err(format!("is full: it takes {pods_max} pods"));
        }
        let mut added = Desired::new();
        added.insert(Key::pod(pod.uid), pod.encode().into());
        let mut missing = None;
        for (secret, name, optional) in configs(pod) {
            let (kind, document) = if secret {
                (Kind::Secret, DocumentKind::Secret)
            } else {
                (Kind::ConfigMap, DocumentKind::ConfigMap)
            };
            let id = Id {
                kind: document,
                namespace: pod.namespace.clone(),
                name: name.to_owned(),
            };
            match self.manifests.objects.get(&id) {
                Some((_, Accepted::Config(payload))) => {
                    let key = Key::Name(kind, id.namespace, id.name);
                    if !self.objects.contains_key(&key) {
                        added.insert(key, Arc::clone(payload));
                    }
                }
                _ if optional || pod.terminating => {}
                _ => missing = Some(format!("waits for {id}, which is not in the manifests")),
            }
        }
        let bytes: usize = added.values().map(|payload| payload.len()).sum();
        if self.objects.len() + added.len() > SET_OBJECTS_MAX {
            return Err(format!("is full: it holds {SET_OBJECTS_MAX} objects"));
        }
        if self.bytes + bytes > NODE_BYTES_MAX {
            return Err(format!("is full: it holds {NODE_BYTES_MAX} bytes"));
        }
        self.objects.append(&mut added);
        self.bytes += bytes;
        self.pods += 1;
        Ok(missing)
    }

    /// The finished set.
    pub(super) fn into_objects(self) -> Desired {
        self.objects
    }
}

/// (is a Secret, name, may be missing) of everything that a pod names.
fn configs(pod: &Pod) -> impl Iterator<Item = (bool, &str, bool)> {
    let volumes = pod
        .volumes
        .iter()
        .filter_map(|volume| match &volume.source {
            VolumeSource::ConfigMap { name, optional, .. } => {
                Some((false, name.as_str(), *optional))
            }
            VolumeSource::Secret { name, optional, .. } => Some((true, name.as_str(), *optional)),
            _ => None,
        });
    let env = pod.containers.iter().flat_map(|container| {
        let whole = container
            .env_from
            .iter()
            .map(|from| (from.secret, from.name.as_str(), from.optional));
        let single = container.env.iter().filter_map(|var| match &var.value {
            EnvValue::ConfigMap { name, optional, .. } => Some((false, name.as_str(), *optional)),
            EnvValue::Secret { name, optional, .. } => Some((true, name.as_str(), *optional)),
            EnvValue::Literal(_) => None,
        });
        whole.chain(single)
    });
    volumes.chain(env)
}
