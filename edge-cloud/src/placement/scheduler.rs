//! The nodes, and the choice of a node for a pod without one: the connected node with the fewest
//! pods that may run it and has space, then by name. A node that is offline may be so permanently.
//!
//! Nodes are indexed by label and by load, so that a choice checks few of them.

use std::collections::{BTreeMap, BTreeSet};

use edge_proto::key::Uid;
use edge_proto::object::Pod;

use super::claims::Claim;
use super::node_set::NodeSet;
use super::{ARCH, HOSTNAME, NodeState, OS, PodIds, PodName};
use crate::manifest::Template;
use crate::objects::ObjectStore;

/// Nodes with a label are sorted for a choice if they are at most one in so many; otherwise all are
/// checked in the order of their load, and the first fits soon.
const FEW: usize = 8;

/// A node and its desired pods.
#[derive(Debug, Default)]
pub(super) struct NodeEntry {
    pub(super) state: NodeState,
    pub(super) set: NodeSet,
    /// Pods that must end.
    pub(super) terminating: BTreeSet<Uid>,
    /// Pods that were removed from the set because they did not fit, and that the node still reports.
    pub(super) ending: BTreeMap<Uid, PodName>,
    /// Names whose pod is here, or would be if it fitted.
    pub(super) assigned: BTreeSet<PodName>,
    /// Some of those do not fit.
    pub(super) is_over: bool,
    /// Its set was computed.
    pub(super) is_made: bool,
}

/// All nodes.
#[derive(Debug, Default)]
pub(super) struct NodeTable {
    nodes: BTreeMap<String, NodeEntry>,
    labels: BTreeMap<(String, String), BTreeSet<String>>,
    load: BTreeSet<(usize, String)>,
}

/// Result of a choice.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) node: String,
    pub(super) pod: Pod,
    /// What it waits for on that node.
    pub(super) note: Option<String>,
}

impl NodeTable {
    pub(super) fn get(&self, name: &str) -> Option<&NodeEntry> {
        self.nodes.get(name)
    }

    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut NodeEntry> {
        self.nodes.get_mut(name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &NodeEntry)> {
        self.nodes
            .iter()
            .map(|(name, entry)| (name.as_str(), entry))
    }

    /// Adds a node, or changes its state.
    pub(super) fn put(&mut self, name: &str, state: NodeState) {
        if let Some(entry) = self.nodes.get_mut(name) {
            let old = std::mem::replace(&mut entry.state, state);
            let same = old.labels == entry.state.labels && old.arch == entry.state.arch;
            if !same {
                let new = labels(name, &entry.state);
                self.unlabel(name, &old);
                self.label(name, new);
            }
            return;
        }
        self.label(name, labels(name, &state));
        self.load.insert((0, name.to_owned()));
        let entry = NodeEntry {
            state,
            ..NodeEntry::default()
        };
        self.nodes.insert(name.to_owned(), entry);
    }

    pub(super) fn remove(&mut self, name: &str) -> Option<NodeEntry> {
        let entry = self.nodes.remove(name)?;
        self.load.remove(&(entry.set.pods(), name.to_owned()));
        self.unlabel(name, &entry.state);
        Some(entry)
    }

    /// Sets the set of a node. Returns the previous one.
    pub(super) fn set(&mut self, name: &str, set: NodeSet) -> Option<NodeSet> {
        let entry = self.nodes.get_mut(name)?;
        let pods = set.pods();
        let before = std::mem::replace(&mut entry.set, set);
        self.moved(name, before.pods(), pods);
        Some(before)
    }

    fn moved(&mut self, name: &str, before: usize, now: usize) {
        if before != now {
            self.load.remove(&(before, name.to_owned()));
            self.load.insert((now, name.to_owned()));
        }
    }

    fn label(&mut self, name: &str, labels: Vec<(String, String)>) {
        for label in labels {
            self.labels
                .entry(label)
                .or_default()
                .insert(name.to_owned());
        }
    }

    fn unlabel(&mut self, name: &str, state: &NodeState) {
        for label in labels(name, state) {
            if let Some(nodes) = self.labels.get_mut(&label) {
                nodes.remove(name);
                if nodes.is_empty() {
                    self.labels.remove(&label);
                }
            }
        }
    }

    /// The label of a selector that the fewest nodes have; `None` for an empty selector.
    pub(super) fn rarest<'a>(
        &self,
        selector: &'a BTreeMap<String, String>,
    ) -> Option<(&'a String, &'a String)> {
        let count = |label: &(&String, &String)| self.with(*label).map_or(0, BTreeSet::len);
        selector.iter().min_by_key(count)
    }

    fn with(&self, (key, value): (&String, &String)) -> Option<&BTreeSet<String>> {
        self.labels.get(&(key.clone(), value.clone()))
    }

    /// Nodes that a selector may match: all of them, or those with one of its labels.
    fn labelled(&self, selector: &BTreeMap<String, String>) -> Option<Option<&BTreeSet<String>>> {
        self.rarest(selector).map(|label| self.with(label))
    }

    /// Names of the nodes that match a selector.
    pub(super) fn selected(
        &self,
        node: Option<&str>,
        selector: &BTreeMap<String, String>,
    ) -> Vec<String> {
        let names: Box<dyn Iterator<Item = &String>> = match (node, self.labelled(selector)) {
            (Some(node), _) => Box::new(
                self.nodes
                    .get_key_value(node)
                    .map(|(name, _)| name)
                    .into_iter(),
            ),
            (None, Some(few)) => Box::new(few.into_iter().flatten()),
            (None, None) => Box::new(self.nodes.keys()),
        };
        let matches = |name: &&String| {
            let entry = self.nodes.get(*name);
            entry.is_some_and(|entry| entry.state.is_selected(name, node, selector))
        };
        names.filter(matches).cloned().collect()
    }

    /// The nodes that may match a selector, by load, when they are few.
    fn few(&self, template: &Template) -> Option<Vec<String>> {
        let few = self.labelled(&template.selector)?;
        let names = few.into_iter().flatten();
        if few.is_some_and(|few| few.len() * FEW > self.nodes.len()) {
            return None;
        }
        let load = |name: &String| {
            (
                self.nodes.get(name).map_or(0, |one| one.set.pods()),
                name.clone(),
            )
        };
        let mut few: Vec<_> = names.map(load).collect();
        few.sort_unstable();
        Some(few.into_iter().map(|(_, name)| name).collect())
    }

    /// Chooses the node of a pod without one, and adds the pod to that node's set, with a UID of `ids`.
    /// `visited` counts the checked nodes.
    ///
    /// # Errors
    /// Why there is none, human-readable.
    pub(super) fn choose(
        &mut self,
        store: &ObjectStore,
        template: &Template,
        claim: &Claim,
        ids: &PodIds,
        visited: &mut u64,
    ) -> Result<Choice, String> {
        let fixed = claim.fixed(template);
        let few = match fixed {
            Some(node) => Some(vec![node.to_owned()]),
            None => self.few(template),
        };
        let Self { nodes, load, .. } = self;
        let order: Box<dyn Iterator<Item = &String>> = match &few {
            Some(few) => Box::new(few.iter()),
            None => Box::new(load.iter().map(|(_, name)| name)),
        };
        let (mut is_allowed, mut full, mut chosen) = (false, None, None);
        for name in order {
            let Some(entry) = nodes.get_mut(name) else {
                continue;
            };
            *visited += 1;
            if !claim.allows(template, name, &entry.state) {
                continue;
            }
            is_allowed = true;
            if fixed.is_none() && !entry.state.connected {
                continue;
            }
            match entry.try_add(store, template, claim, (name, ids)) {
                Ok(choice) => {
                    chosen = Some((choice, entry.set.pods()));
                    break;
                }
                Err(why) => full = Some(format!("node {name} {why}")),
            }
        }
        if let Some((choice, pods)) = chosen {
            self.moved(&choice.node, pods - 1, pods);
            return Ok(choice);
        }
        Err(full.unwrap_or_else(|| self.without_node(template, is_allowed)))
    }

    /// Why no node was tried.
    fn without_node(&self, template: &Template, is_allowed: bool) -> String {
        match &template.node {
            Some(node) if !self.nodes.contains_key(node) => {
                format!("node {node} has not joined or not reported yet")
            }
            Some(node) if !template.selector.is_empty() => {
                format!("node {node} lacks labels of nodeSelector")
            }
            _ if is_allowed => "no node that it may run on is connected".to_owned(),
            _ if template.selector.is_empty() => "no node has joined yet".to_owned(),
            _ => "no node has the labels of nodeSelector".to_owned(),
        }
    }
}

impl NodeEntry {
    fn try_add(
        &mut self,
        store: &ObjectStore,
        template: &Template,
        claim: &Claim,
        (name, ids): (&str, &PodIds),
    ) -> Result<Choice, String> {
        let pods_max = self.state.pods_max;
        self.set.room(pods_max)?;
        let pod = ids.pod(claim, template, name);
        let note = self.set.add(store, pods_max, &pod)?;
        Ok(Choice {
            node: name.to_owned(),
            pod,
            note,
        })
    }
}

/// All labels of a node, the implicit ones as [`NodeState::label`] has them.
pub(super) fn labels(name: &str, state: &NodeState) -> Vec<(String, String)> {
    let own = state.labels.keys().map(String::as_str);
    let implicit = [HOSTNAME, OS, ARCH];
    let keys: BTreeSet<&str> = own.chain(implicit).collect();
    let label = |key: &str| Some((key.to_owned(), state.label(name, key)?.to_owned()));
    keys.into_iter().filter_map(label).collect()
}
