//! Pods without a node, indexed by what must change before they may find one: a node that they
//! may run on, or a ConfigMap or Secret that they need. So a change of one node costs nothing for pods
//! that it cannot run.
//!
//! Bound: each waiting pod once, and once for each ConfigMap and Secret that it needs.

use std::collections::{BTreeMap, BTreeSet};

use edge_proto::object::Pod;

use crate::manifest::Id;
use crate::placement::node_set::configs;
use crate::placement::scheduler::labels;
use crate::placement::{NodeState, PodName};

/// Nodes that may run a pod, possibly more.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reach {
    /// The node of this name.
    Node(String),
    /// Nodes with this label.
    Label(String, String),
    /// All nodes.
    Any,
}

/// See the description of the module.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pods: BTreeMap<PodName, (Reach, BTreeSet<Id>)>,
    by_reach: BTreeMap<Reach, BTreeSet<PodName>>,
    by_config: BTreeMap<Id, BTreeSet<PodName>>,
    /// Pods for which something has changed.
    touched: BTreeSet<PodName>,
}

impl Waiting {
    /// `pod` found no node.
    pub(super) fn insert(&mut self, name: PodName, reach: Reach, pod: &Pod) {
        self.remove(&name);
        let configs: BTreeSet<Id> = configs(pod).map(|(id, _)| id).collect();
        for id in &configs {
            let pods = self.by_config.entry(id.clone()).or_default();
            pods.insert(name.clone());
        }
        let pods = self.by_reach.entry(reach.clone()).or_default();
        pods.insert(name.clone());
        self.pods.insert(name, (reach, configs));
    }

    /// The pod does not wait any more, or is treated as a new one.
    pub(super) fn remove(&mut self, name: &PodName) {
        let Some((reach, configs)) = self.pods.remove(name) else {
            return;
        };
        self.touched.remove(name);
        remove(&mut self.by_reach, &reach, name);
        for id in &configs {
            remove(&mut self.by_config, id, name);
        }
    }

    /// The present or former state of a node.
    pub(super) fn node_changed(&mut self, name: &str, state: &NodeState) {
        if self.pods.is_empty() {
            return;
        }
        self.touch(&Reach::Any);
        self.touch(&Reach::Node(name.to_owned()));
        for (label, value) in labels(name, state) {
            self.touch(&Reach::Label(label, value));
        }
    }

    /// A ConfigMap or Secret has changed.
    pub(super) fn config_changed(&mut self, id: &Id) {
        self.touched
            .extend(self.by_config.get(id).into_iter().flatten().cloned());
    }

    fn touch(&mut self, reach: &Reach) {
        self.touched
            .extend(self.by_reach.get(reach).into_iter().flatten().cloned());
    }

    /// Whether [`Self::take_touched`] has any.
    pub(super) fn has_touched(&self) -> bool {
        !self.touched.is_empty()
    }

    /// The pods for which something has changed since the last call. They stay waiting.
    pub(super) fn take_touched(&mut self) -> BTreeSet<PodName> {
        std::mem::take(&mut self.touched)
    }
}

fn remove<K: Ord>(index: &mut BTreeMap<K, BTreeSet<PodName>>, key: &K, name: &PodName) {
    if let Some(pods) = index.get_mut(key) {
        pods.remove(name);
        if pods.is_empty() {
            index.remove(key);
        }
    }
}
