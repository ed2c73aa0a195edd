//! The desired set of one node: its policy, its pods, and the ConfigMaps and Secrets that they
//! need, within the caps of the wire.

use std::collections::BTreeSet;
use std::sync::Arc;

use edge_proto::key::{Key, Kind};
use edge_proto::limits::{NODE_BYTES_MAX, SET_OBJECTS_MAX};
use edge_proto::object::{EnvValue, Pod, VolumeSource};

use super::{Desired, NodeState};
use crate::manifest::{Accepted, DocumentKind, Id};
use crate::objects::ObjectStore;

/// Pods of one node when the node does not report its limit.
const PODS_MAX: usize = 110;

/// Objects for one node, while they are collected.
#[derive(Debug, Default)]
pub(super) struct NodeSet {
    objects: Desired,
    /// ConfigMaps and Secrets that its pods need, whether they exist or not.
    configs: BTreeSet<Id>,
    bytes: usize,
    pods: usize,
}

impl NodeSet {
    /// Pods in the set.
    pub(super) const fn pods(&self) -> usize {
        self.pods
    }

    /// ConfigMaps and Secrets whose change changes the set.
    pub(super) const fn configs(&self) -> &BTreeSet<Id> {
        &self.configs
    }

    /// The objects so far.
    pub(super) const fn objects(&self) -> &Desired {
        &self.objects
    }

    /// Adds the policy for the node of this name, if there is one: one that names the node
    /// precedes one that selects labels, and that precedes one for all; then the first by name. Compares the
    /// node with each policy.
    pub(super) fn add_policy(&mut self, store: &ObjectStore, name: &str, node: &NodeState) {
        let policies = store.of_kind(DocumentKind::NodePolicy);
        let policies = policies.filter_map(|(_, object)| match object {
            Accepted::Policy(policy) => Some(policy),
            _ => None,
        });
        let chosen = policies
            .filter(|policy| node.is_selected(name, policy.node.as_deref(), &policy.selector))
            .min_by_key(|policy| (policy.node.is_none(), policy.selector.is_empty()));
        if let Some(policy) = chosen {
            let payload: Arc<[u8]> = policy.policy.encode().into();
            self.bytes += payload.len();
            // Always the same key: a change of policy changes its payload.
            let key = Key::Name(Kind::NodePolicy, String::new(), "node".to_owned());
            self.objects.insert(key, payload);
        }
    }

    /// Adds a pod with the ConfigMaps and Secrets that it needs, completely or not at all. Returns what
    /// the pod will wait for. `pods_max` is the node's own cap; 0 is not known.
    ///
    /// # Errors
    /// Which cap of the node would be exceeded.
    pub(super) fn add(
        &mut self,
        store: &ObjectStore,
        pods_max: u32,
        pod: &Pod,
    ) -> Result<Option<String>, String> {
        let mut added = Desired::new();
        let mut missing = None;
        for (id, optional) in configs(pod) {
            let kind = match id.kind {
                DocumentKind::Secret => Kind::Secret,
                _ => Kind::ConfigMap,
            };
            match store.get(&id) {
                Some(Accepted::Config(payload)) => {
                    let key = Key::Name(kind, id.namespace.clone(), id.name.clone());
                    if !self.objects.contains_key(&key) {
                        added.insert(key, Arc::clone(payload));
                    }
                }
                _ if optional || pod.terminating => {}
                _ => missing = Some(format!("waits for {id}, which is not in the manifests")),
            }
        }
        if !pod.terminating {
            self.room(pods_max)?;
        }
        added.insert(Key::pod(pod.uid), pod.encode().into());
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
        self.watch(pod);
        Ok(missing)
    }

    /// Whether one more pod is within the node's own cap.
    ///
    /// # Errors
    /// It is not; contains the cap.
    pub(super) fn room(&self, pods_max: u32) -> Result<(), String> {
        let pods_max = match pods_max {
            0 => PODS_MAX,
            max => max as usize,
        };
        match self.pods < pods_max {
            true => Ok(()),
            false => Err(format!("is full: it takes {pods_max} pods")),
        }
    }

    /// A pod that is in the set, or does not fit although it belongs there: see [`Self::configs`].
    pub(super) fn watch(&mut self, pod: &Pod) {
        self.configs.extend(configs(pod).map(|(id, _)| id));
    }
}

/// Every ConfigMap and Secret that a pod needs, and whether it may be missing.
pub(super) fn configs(pod: &Pod) -> impl Iterator<Item = (Id, bool)> {
    let volumes = pod
        .volumes
        .iter()
        .filter_map(|volume| match &volume.source {
            VolumeSource::ConfigMap { name, optional, .. } => {
                Some((DocumentKind::ConfigMap, name, *optional))
            }
            VolumeSource::Secret { name, optional, .. } => {
                Some((DocumentKind::Secret, name, *optional))
            }
            _ => None,
        });
    let env = pod.containers.iter().flat_map(|container| {
        let whole = container.env_from.iter().map(|from| {
            let kind = match from.secret {
                true => DocumentKind::Secret,
                false => DocumentKind::ConfigMap,
            };
            (kind, &from.name, from.optional)
        });
        let single = container.env.iter().filter_map(|var| match &var.value {
            EnvValue::ConfigMap { name, optional, .. } => {
                Some((DocumentKind::ConfigMap, name, *optional))
            }
            EnvValue::Secret { name, optional, .. } => {
                Some((DocumentKind::Secret, name, *optional))
            }
            EnvValue::Literal(_) => None,
        });
        whole.chain(single)
    });
    volumes.chain(env).map(|(kind, name, optional)| {
        let id = Id {
            kind,
            namespace: pod.namespace.clone(),
            name: name.clone(),
        };
        (id, optional)
    })
}
