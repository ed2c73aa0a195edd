//! Updates a placement with work for what a change touches and for nothing else.
//!
//! Changes are passed to [`Placer::object_changed`] and [`Placer::node_changed`], which only mark what
//! they touch: names of pods, and nodes whose set is to be computed again. [`Placer::round`] then
//!
//! 1. resolves each touched name: which of its claims holds it, on which node that pod runs, and
//!    which older pods of the name must end;
//! 2. computes the sets of the touched nodes;
//! 3. chooses nodes for the pods that have none, and for those waiting ones that [`Waiting`] finds by
//!    what was touched.
//!
//! The changes of a round may touch names again, so it is called until [`Placer::is_settled`].
//!
//! Bound: memory in proportion to claims, nodes and what they report.

mod round;
mod waiting;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use edge_proto::key::Uid;
use edge_proto::object::Pod;

use self::waiting::Waiting;
use super::claims::{Claim, expand};
#[cfg(test)]
use super::scheduler::NodeEntry;
use super::scheduler::NodeTable;
use super::{ClaimName, Desired, NodeState, PlacedPod, Placement, PodIds, PodName, Unplaced};
use crate::manifest::{Accepted, DocumentKind, Id};
use crate::objects::ObjectStore;

/// Cost of rounds, for tests that a change costs no more than what it touches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Sets of nodes that were computed.
    pub sets: u64,
    /// Names of pods that were resolved.
    pub names: u64,
    /// Nodes that were checked for a pod without one.
    pub visited: u64,
    /// Waiting pods that were retried.
    pub retried: u64,
}

/// Changes since the last call of [`Placer::take_changes`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Pods that were added to or removed from [`Placement::pods`].
    pub pods: BTreeSet<Uid>,
    /// The same for [`Placement::unplaced`].
    pub unplaced: BTreeSet<ClaimName>,
    /// Nodes with another desired set, or without one from now on.
    pub nodes: BTreeSet<String>,
}

/// State of one name of a pod.
#[derive(Debug, Default)]
struct NameState {
    /// Owners that require a pod of this name; one of them gets it.
    claims: BTreeSet<Claim>,
    /// Nodes that report a pod of this name. Only until everything is settled after a restore: later our
    /// state is complete, and a report of any other pod is ignored.
    reported: BTreeSet<(String, Uid)>,
    /// Nodes that still report a pod of this name that was removed from their set because it did not fit.
    ending: BTreeSet<(String, Uid)>,
    /// Pods of this name in desired sets; all but one are terminating.
    pods: BTreeSet<Uid>,
    /// The claim that holds the name.
    holder: Option<Claim>,
    /// Node where its pod runs, or is desired.
    assigned: Option<(String, Uid)>,
}

impl NameState {
    fn is_unused(&self) -> bool {
        self.claims.is_empty()
            && self.reported.is_empty()
            && self.ending.is_empty()
            && self.pods.is_empty()
    }
}

/// See the description of the module.
#[derive(Debug)]
#[cfg_attr(test, derive(Default))]
pub struct Placer {
    ids: PodIds,
    nodes: NodeTable,
    names: BTreeMap<PodName, NameState>,
    owners: BTreeMap<Arc<Id>, BTreeSet<Claim>>,
    /// Nodes with a pod that needs a ConfigMap or Secret.
    users: BTreeMap<Id, BTreeSet<String>>,
    /// Nodes of a policy, as when its nodes were last touched.
    policies: BTreeMap<Id, (Option<String>, BTreeMap<String, String>)>,
    /// Pods without a node.
    waiting: Waiting,
    /// Pods that wait until every node has reported after a restore.
    held: BTreeSet<PodName>,
    placement: Placement,
    touched_names: BTreeSet<PodName>,
    touched_nodes: BTreeSet<String>,
    settled: bool,
    changes: Changes,
    work: Work,
}

impl Placer {
    /// Starts with the pods that an earlier run has placed. As long as these are older than the running
    /// pods, `settled` is false: a pod that could be placed on several nodes then waits, because
    /// one of them may run it.
    #[must_use]
    pub fn new(ids: PodIds, before: BTreeMap<Uid, PlacedPod>, settled: bool) -> Self {
        let mut placer = Self {
            ids,
            nodes: NodeTable::default(),
            names: BTreeMap::new(),
            owners: BTreeMap::new(),
            users: BTreeMap::new(),
            policies: BTreeMap::new(),
            waiting: Waiting::default(),
            held: BTreeSet::new(),
            placement: Placement::default(),
            touched_names: BTreeSet::new(),
            touched_nodes: BTreeSet::new(),
            settled,
            changes: Changes::default(),
            work: Work::default(),
        };
        for (uid, placed) in before {
            let name = placed.name();
            placer
                .names
                .entry(name.clone())
                .or_default()
                .pods
                .insert(uid);
            placer.placement.pods.insert(uid, Arc::new(placed));
            placer.touched_names.insert(name);
        }
        placer
    }

    /// Where the pods are.
    #[must_use]
    pub const fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Desired set of a node; `None` for an unknown node.
    #[must_use]
    pub fn desired(&self, node: &str) -> Option<&Desired> {
        self.nodes.get(node).map(|entry| entry.set.objects())
    }

    /// Last given state of a node.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&NodeState> {
        self.nodes.get(name).map(|entry| &entry.state)
    }

    /// Every node, with its last given state.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &NodeState)> {
        self.nodes.iter().map(|(name, entry)| (name, &entry.state))
    }

    /// Every object with state here.
    pub fn objects(&self) -> impl Iterator<Item = Id> {
        let owners = self.owners.keys().map(|owner| Id::clone(owner));
        let policies = self.policies.keys().cloned();
        owners.chain(policies).chain(self.users.keys().cloned())
    }

    /// Cost of all rounds.
    #[must_use]
    pub const fn work(&self) -> Work {
        self.work
    }

    /// Changes since the last call.
    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// Whether another round would change nothing.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.touched_names.is_empty()
            && self.touched_nodes.is_empty()
            && !self.waiting.has_touched()
    }

    /// Every expected node has reported, see [`Self::new`].
    pub fn settle(&mut self) {
        self.settled = true;
        self.touched_names.append(&mut self.held);
        for (name, state) in &mut self.names {
            if !std::mem::take(&mut state.reported).is_empty() {
                self.touched_names.insert(name.clone());
            }
        }
    }

    /// Pods that were removed from the set of their node because they did not fit, and are still reported.
    #[cfg(test)]
    pub(super) fn ending(&self) -> BTreeMap<(String, Uid), PodName> {
        let of_node = |(node, entry): (&str, &NodeEntry)| {
            let ending = entry.ending.iter();
            let ending = ending.map(|(uid, name)| ((node.to_owned(), *uid), name.clone()));
            ending.collect::<Vec<_>>()
        };
        self.nodes.iter().flat_map(of_node).collect()
    }

    /// An object was added, changed or removed.
    pub fn object_changed(&mut self, store: &ObjectStore, id: &Id) {
        match id.kind {
            DocumentKind::ConfigMap | DocumentKind::Secret => {
                let users = self.users.get(id).into_iter().flatten().cloned();
                self.touched_nodes.extend(users);
                self.waiting.config_changed(id);
            }
            DocumentKind::NodePolicy => self.policy_changed(store, id),
            _ => self.owner_changed(store, id),
        }
    }

    fn policy_changed(&mut self, store: &ObjectStore, id: &Id) {
        let new = store.get(id).and_then(|object| match object {
            Accepted::Policy(policy) => Some((policy.node.clone(), policy.selector.clone())),
            _ => None,
        });
        let old = match &new {
            Some(new) => self.policies.insert(id.clone(), new.clone()),
            None => self.policies.remove(id),
        };
        for (node, selector) in old.into_iter().chain(new) {
            let nodes = self.nodes.selected(node.as_deref(), &selector);
            self.touched_nodes.extend(nodes);
        }
    }

    fn owner_changed(&mut self, store: &ObjectStore, id: &Id) {
        let known = self.owners.remove_entry(id);
        let (owner, before) = known.unwrap_or_else(|| (Arc::new(id.clone()), BTreeSet::new()));
        let nodes = self.nodes.iter().map(|(name, entry)| (name, &entry.state));
        let claims = store.get(id).map(|object| expand(&owner, object, nodes));
        let claims: BTreeSet<Claim> = claims.into_iter().flatten().collect();
        for claim in before.difference(&claims) {
            self.withdraw(claim);
        }
        for claim in &claims {
            self.claim(claim.clone());
        }
        if !claims.is_empty() || store.get(id).is_some() {
            self.owners.insert(owner, claims);
        }
    }

    fn claim(&mut self, claim: Claim) {
        let name = claim.name();
        let state = self.names.entry(name.clone()).or_default();
        state.claims.insert(claim);
        self.touched_names.insert(name);
    }

    fn withdraw(&mut self, claim: &Claim) {
        let name = claim.name();
        if let Some(state) = self.names.get_mut(&name) {
            state.claims.remove(claim);
        }
        self.explain(claim, &name.1, None);
        self.touched_names.insert(name);
    }

    /// Sets the state of a node; `None`: it has left.
    pub fn node_changed(&mut self, store: &ObjectStore, name: &str, state: Option<NodeState>) {
        let before = self.nodes.get(name).map(|entry| &entry.state);
        if before == state.as_ref() {
            return;
        }
        let what =
            |node: Option<&NodeState>| node.map(|node| (node.labels.clone(), node.arch.clone()));
        let is_other = what(before) != what(state.as_ref());
        let caps = |node: Option<&NodeState>| node.map(|node| (node.pods_max, node.connected));
        let has_other_caps = caps(before) != caps(state.as_ref());
        let other_room =
            before.map(|node| node.pods_max) != state.as_ref().map(|node| node.pods_max);
        if is_other || has_other_caps {
            // Pods that wait for its former labels may now wait for another reason.
            for node in before.into_iter().chain(state.as_ref()) {
                self.waiting.node_changed(name, node);
            }
        }
        self.reports_changed(name, state.as_ref());
        if is_other {
            self.touch_pods_of(name);
            self.daemons_changed(store, name, state.as_ref());
        }
        match state {
            Some(state) => {
                self.nodes.put(name, state);
                if is_other || other_room {
                    self.touched_nodes.insert(name.to_owned());
                }
            }
            None => self.node_left(name),
        }
    }

    /// A node has another set: a waiting pod may fit there now.
    fn set_changed(&mut self, node: &str) {
        if let Some(entry) = self.nodes.get(node) {
            self.waiting.node_changed(node, &entry.state);
        }
    }

    fn node_left(&mut self, name: &str) {
        if let Some(entry) = self.nodes.remove(name) {
            self.unuse(name, entry.set.configs());
        }
        self.touched_nodes.remove(name);
        self.changes.nodes.insert(name.to_owned());
    }

    /// Touches the names of all pods that are on a node.
    fn touch_pods_of(&mut self, node: &str) {
        let Some(entry) = self.nodes.get(node) else {
            return;
        };
        self.touched_names.extend(entry.assigned.iter().cloned());
        for uid in &entry.terminating {
            let placed = self.placement.pods.get(uid);
            self.touched_names
                .extend(placed.map(|placed| placed.name()));
        }
    }

    /// Applies changes of a node's reports.
    fn reports_changed(&mut self, node: &str, state: Option<&NodeState>) {
        let none = BTreeMap::new();
        let entry = self.nodes.get(node);
        let before = entry.map_or(&none, |entry| &entry.state.reported);
        let now = state.map_or(&none, |state| &state.reported);
        let gone = before
            .iter()
            .filter(|(uid, name)| now.get(*uid) != Some(*name));
        let come = now
            .iter()
            .filter(|(uid, name)| before.get(*uid) != Some(*name));
        let mut ended = Vec::new();
        let has_begun = entry.is_some_and(|entry| entry.state.awaits_report)
            && state.is_none_or(|state| !state.awaits_report);
        if let Some(entry) = entry.filter(|_| has_begun) {
            let others = entry.ending.keys().filter(|uid| !now.contains_key(*uid));
            ended.extend(others.copied());
        }
        for (is_there, (uid, name)) in gone
            .map(|one| (false, one))
            .chain(come.map(|one| (true, one)))
        {
            if let Some(placed) = self.placement.pods.get(uid) {
                // A node may report a pod under another name than we gave it.
                let is_asked = placed.node == node;
                self.touched_names.extend(is_asked.then(|| placed.name()));
            }
            let is_ending = entry.is_some_and(|entry| entry.ending.contains_key(uid));
            ended.extend((is_ending && !now.contains_key(uid)).then_some(*uid));
            if self.settled {
                continue;
            }
            let at = (node.to_owned(), *uid);
            if is_there {
                let names = self.names.entry(name.clone()).or_default();
                names.reported.insert(at);
            } else if let Some(names) = self.names.get_mut(name) {
                names.reported.remove(&at);
            }
            self.touched_names.insert(name.clone());
        }
        for uid in ended {
            let name = self.not_ending(node, uid);
            self.touched_names.extend(name);
        }
        if has_begun {
            self.touch_pods_of(node);
        }
    }

    /// A node no longer reports a pod that did not fit, or the pod is in its set again.
    fn not_ending(&mut self, node: &str, uid: Uid) -> Option<PodName> {
        let name = self.nodes.get_mut(node)?.ending.remove(&uid)?;
        if let Some(state) = self.names.get_mut(&name) {
            state.ending.remove(&(node.to_owned(), uid));
        }
        Some(name)
    }

    /// Adds and removes the pods of DaemonSets on a node that has joined or left, or has other labels.
    /// This compares the node with each DaemonSet, only at these changes of a node.
    fn daemons_changed(&mut self, store: &ObjectStore, node: &str, state: Option<&NodeState>) {
        for (id, _) in store.of_kind(DocumentKind::DaemonSet) {
            let Some((owner, mut claims)) = self.owners.remove_entry(id) else {
                continue;
            };
            let claim = Claim::daemon(&owner, node);
            let template = store.template(id);
            let wanted = state
                .zip(template)
                .is_some_and(|(state, template)| state.matches(node, template));
            if wanted && claims.insert(claim.clone()) {
                self.claim(claim);
            } else if !wanted && claims.remove(&claim) {
                self.withdraw(&claim);
            }
            self.owners.insert(owner, claims);
        }
    }

    /// Adds a pod to the desired set of a node.
    fn hold(&mut self, name: &PodName, node: &str, pod: Pod) {
        let uid = pod.uid;
        let placed = self.placement.pods.get(&uid);
        if !placed.is_some_and(|placed| placed.pod == pod && placed.node == node) {
            let node = node.to_owned();
            self.put_pod(PlacedPod { node, pod });
        }
        if let Some(state) = self.names.get_mut(name) {
            state.pods.insert(uid);
        }
        self.not_ending(node, uid);
    }

    fn put_pod(&mut self, placed: PlacedPod) {
        self.changes.pods.insert(placed.pod.uid);
        self.placement.pods.insert(placed.pod.uid, Arc::new(placed));
    }

    /// A pod has no room on its node any more.
    fn drop_pod(&mut self, name: &PodName, node: &str, uid: Uid) {
        if self.placement.pods.remove(&uid).is_none() {
            return;
        }
        self.changes.pods.insert(uid);
        self.touched_names.insert(name.clone());
        let entry = self.nodes.get_mut(node);
        let entry = entry.filter(|entry| entry.state.may_run(uid));
        let may_run = entry.is_some();
        if let Some(entry) = entry {
            entry.ending.insert(uid, name.clone());
        }
        if let Some(state) = self.names.get_mut(name) {
            state.pods.remove(&uid);
            if may_run {
                state.ending.insert((node.to_owned(), uid));
            }
        }
    }

    /// Stores why a pod is not placed or what it waits for; `None`: there is no reason.
    fn explain(&mut self, claim: &Claim, name: &str, reason: Option<String>) {
        let key = (Arc::clone(&claim.owner), name.to_owned());
        let before = self.placement.unplaced.get(&key).map(|one| &one.reason);
        if before == reason.as_ref() {
            return;
        }
        self.changes.unplaced.insert(key.clone());
        match reason {
            None => drop(self.placement.unplaced.remove(&key)),
            Some(reason) => {
                let unplaced = Unplaced {
                    owner: Id::clone(&key.0),
                    name: key.1.clone(),
                    reason,
                };
                self.placement.unplaced.insert(key, unplaced);
            }
        }
    }

    fn use_configs(&mut self, node: &str, configs: &BTreeSet<Id>) {
        for id in configs {
            let users = self.users.entry(id.clone()).or_default();
            if !users.contains(node) {
                users.insert(node.to_owned());
            }
        }
    }

    /// A node no longer needs those of `before` that are not in its set.
    fn unuse_left(&mut self, node: &str, before: &BTreeSet<Id>) {
        let now = self.nodes.get(node).map(|entry| entry.set.configs());
        let left: BTreeSet<Id> = before
            .iter()
            .filter(|id| now.is_none_or(|now| !now.contains(*id)))
            .cloned()
            .collect();
        self.unuse(node, &left);
    }

    fn unuse(&mut self, node: &str, configs: &BTreeSet<Id>) {
        for id in configs {
            if let Some(users) = self.users.get_mut(id) {
                users.remove(node);
                if users.is_empty() {
                    self.users.remove(id);
                }
            }
        }
    }
}
