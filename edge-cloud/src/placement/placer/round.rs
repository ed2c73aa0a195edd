//! One round: recomputes what was touched, see [`super`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use edge_proto::key::Uid;
use edge_proto::limits::NAME_BYTES_MAX;
use edge_proto::object::Pod;

use super::waiting::Reach;
use super::{NameState, Placer};
use crate::manifest::Template;
use crate::objects::ObjectStore;
use crate::placement::claims::Claim;
use crate::placement::node_set::NodeSet;
use crate::placement::scheduler::NodeEntry;
use crate::placement::{PlacedPod, PodName};

/// A pod that has no node yet.
struct New {
    /// Its position: pods whose name was placed before precede the others.
    order: (bool, Claim),
    name: PodName,
}

/// State of one round.
#[derive(Default)]
struct Round {
    /// Whether the name's holder follows those that were placed before, for resolved names.
    late: BTreeMap<PodName, bool>,
    /// Pods for the sets that are computed.
    pods: BTreeMap<Uid, Pod>,
    new: Vec<New>,
    /// The last pod without a node, and why.
    failed: Option<(Claim, String)>,
}

impl Placer {
    /// Recomputes what was touched.
    pub fn round(&mut self, store: &ObjectStore) {
        let mut round = Round::default();
        for name in std::mem::take(&mut self.touched_names) {
            self.resolve(store, &name, &mut round);
        }
        for node in std::mem::take(&mut self.touched_nodes) {
            self.make_set(store, &node, &mut round);
            self.set_changed(&node);
        }
        self.retry(store, &mut round);
        let mut new = std::mem::take(&mut round.new);
        new.sort_by(|one, other| one.order.cmp(&other.order));
        for new in new {
            self.place(store, new, &mut round);
        }
    }

    /// Determines the holder of a name, the node of its pod, and the pods that must end.
    fn resolve(&mut self, store: &ObjectStore, name: &PodName, round: &mut Round) {
        self.work.names += 1;
        self.waiting.remove(name);
        self.held.remove(name);
        let Some(mut state) = self.names.remove(name) else {
            return;
        };
        if let Some(entry) = state
            .assigned
            .as_ref()
            .and_then(|(node, _)| self.nodes.get_mut(node))
        {
            entry.assigned.remove(name);
        }
        let holder = self.holder(store, &state, name);
        let template = holder
            .as_ref()
            .and_then(|(_, claim)| store.template(&claim.owner));
        let chosen = holder.zip(template);
        let assigned = chosen
            .as_ref()
            .and_then(|((_, claim), template)| self.current_node(&state, claim, template, name));
        let before = std::mem::replace(&mut state.assigned, assigned);
        if before != state.assigned {
            let old = before.iter().map(|(node, _)| node.clone());
            self.touched_nodes
                .extend(old.filter(|node| self.nodes.get(node).is_some()));
        }
        self.end_others(&mut state, name);
        state.holder = None;
        if let Some(((late, claim), template)) = chosen {
            round.late.insert(name.clone(), late);
            state.holder = Some(claim.clone());
            if let Some((node, uid)) = state.assigned.clone() {
                let pod = self.ids.pod(&claim, template, &node);
                self.keep(name, (&node, uid), pod, before == state.assigned, round);
            } else {
                self.request_node(&state, name, (late, claim), template, round);
            }
        }
        if !state.is_unused() {
            self.names.insert(name.clone(), state);
        }
    }

    /// The claim that gets a name, and whether it was not placed before. Of two claims the already placed
    /// one holds it: a new manifest must not end a running pod.
    fn holder(
        &mut self,
        store: &ObjectStore,
        state: &NameState,
        name: &PodName,
    ) -> Option<(bool, Claim)> {
        if name.1.len() > NAME_BYTES_MAX {
            let why = format!("its name is over {NAME_BYTES_MAX} bytes");
            for claim in &state.claims {
                self.explain(claim, &name.1, Some(why.clone()));
            }
            return None;
        }
        let placed = || {
            let pods = state
                .pods
                .iter()
                .filter_map(|uid| self.placement.pods.get(uid));
            pods.filter(|placed| !placed.pod.terminating)
        };
        let is_late = |claim: &Claim| {
            let template = store.template(&claim.owner);
            let is_placed = |placed: &Arc<PlacedPod>| {
                template.is_some_and(|template| {
                    let uid = self.ids.uid(claim, template, &placed.node);
                    self.placement.pods.contains_key(&uid)
                })
            };
            !placed().any(is_placed)
        };
        let order = state
            .claims
            .iter()
            .map(|claim| (is_late(claim), claim.clone()));
        let first = order.min()?;
        for claim in state.claims.iter().filter(|claim| **claim != first.1) {
            let why = format!("{} has a pod of this name, too", first.1.owner);
            self.explain(claim, &name.1, Some(why));
        }
        Some(first)
    }

    /// The node where the pod of a name runs now: the one in our state, or one where it is still ending. After
    /// a restore a report with a proving UID overrides our state, unless the node in our state reports the
    /// pod as well.
    fn current_node(
        &self,
        state: &NameState,
        claim: &Claim,
        template: &Template,
        name: &PodName,
    ) -> Option<(String, Uid)> {
        let may_stay = |node: &str, uid: Uid| {
            let entry = self.nodes.get(node);
            entry.is_some_and(|entry| claim.allows(template, node, &entry.state))
                && self.ids.uid(claim, template, node) == uid
        };
        let is_reported = |(node, uid): &(String, Uid)| {
            let entry = self.nodes.get(node);
            entry.is_some_and(|entry| entry.state.reported.contains_key(uid))
        };
        let placed = |terminating: bool| {
            let placed = state.pods.iter().filter_map(move |uid| {
                let placed = self.placement.pods.get(uid)?;
                let fits = placed.pod.terminating == terminating && placed.name() == *name;
                (fits && may_stay(&placed.node, *uid)).then(|| (placed.node.clone(), *uid))
            });
            placed.collect::<BTreeSet<_>>()
        };
        let first = |some: &BTreeSet<(String, Uid)>| {
            let mut some = some.iter();
            some.find(|(node, uid)| may_stay(node, *uid)).cloned()
        };
        let asked = placed(false);
        if !self.settled
            && let Some(proven) = asked.iter().find(|one| is_reported(one)).cloned()
        {
            return Some(proven);
        }
        let ending = || {
            let may_run = |(node, uid): &(String, Uid)| {
                let entry = self.nodes.get(node);
                entry.is_some_and(|entry| entry.state.may_run(*uid))
            };
            let terminating = placed(true).into_iter().filter(may_run);
            terminating.chain(first(&state.ending)).min()
        };
        first(&state.reported)
            .or_else(|| asked.first().cloned())
            .or_else(ending)
    }

    /// Pods of this name on other nodes must end, or have ended.
    fn end_others(&mut self, state: &mut NameState, name: &PodName) {
        let kept = state.assigned.as_ref().map(|(_, uid)| *uid);
        for uid in state.pods.clone() {
            let Some(placed) = self.placement.pods.get(&uid).filter(|_| kept != Some(uid)) else {
                continue;
            };
            let (node, is_terminating) = (placed.node.clone(), placed.pod.terminating);
            let entry = self.nodes.get_mut(&node);
            let is_there = entry.is_some();
            let mut is_touched = true;
            match entry.filter(|entry| entry.state.may_run(uid)) {
                Some(entry) => {
                    is_touched = entry.terminating.insert(uid) || !is_terminating;
                    if !is_terminating {
                        let mut placed = PlacedPod::clone(placed);
                        placed.pod.terminating = true;
                        self.put_pod(placed);
                        self.touched_names.insert(name.clone());
                    }
                }
                None => {
                    if let Some(entry) = self.nodes.get_mut(&node) {
                        entry.terminating.remove(&uid);
                    }
                    state.pods.remove(&uid);
                    self.placement.pods.remove(&uid);
                    self.changes.pods.insert(uid);
                    self.touched_names.insert(name.clone());
                }
            }
            if is_touched && is_there {
                self.touched_nodes.insert(node);
            }
        }
    }

    /// The pod of a name stays on its node.
    fn keep(
        &mut self,
        name: &PodName,
        (node, uid): (&str, Uid),
        pod: Pod,
        was_there: bool,
        round: &mut Round,
    ) {
        let placed = self.placement.pods.get(&uid);
        let same = placed.is_some_and(|placed| placed.pod == pod && placed.node == node);
        if let Some(entry) = self.nodes.get_mut(node) {
            entry.assigned.insert(name.clone());
            let ended = entry.terminating.remove(&uid);
            if !was_there || !same || ended || entry.is_over {
                self.touched_nodes.insert(node.to_owned());
                round.pods.insert(uid, pod);
            }
        }
    }

    /// The node that must end an old pod of the name first. After a restore it may be any node that reports
    /// the name, unless the new pod can run on one other node only.
    fn busy(&self, state: &NameState, claim: &Claim, template: &Template) -> Option<String> {
        let placed = state.pods.iter();
        let placed = placed.filter_map(|uid| Some(self.placement.pods.get(uid)?.node.as_str()));
        let fixed = claim.fixed(template);
        let counts = |node: &&str| fixed.is_none_or(|fixed| fixed == *node);
        let reported = state.reported.iter().map(|one| one.0.as_str());
        let ending = state.ending.iter().map(|one| one.0.as_str());
        let busy = placed.chain(reported.filter(counts)).chain(ending);
        busy.max().map(str::to_owned)
    }

    /// The pod of a name has no node: it gets one, or waits.
    fn request_node(
        &mut self,
        state: &NameState,
        name: &PodName,
        order: (bool, Claim),
        template: &Template,
        round: &mut Round,
    ) {
        if let Some(node) = self.busy(state, &order.1, template) {
            let why = format!("waits until node {node} has ended the old pod of this name");
            self.explain(&order.1, &name.1, Some(why));
        } else if !self.settled && order.1.fixed(template).is_none() {
            let why = "waits after the restore: a node that has not reported yet may run it";
            self.explain(&order.1, &name.1, Some(why.to_owned()));
            self.held.insert(name.clone());
        } else {
            let name = name.clone();
            round.new.push(New { order, name });
        }
    }

    /// Computes the set of a node.
    fn make_set(&mut self, store: &ObjectStore, node: &str, round: &mut Round) {
        let Some(entry) = self.nodes.get(node) else {
            return;
        };
        self.work.sets += 1;
        let pods_max = entry.state.pods_max;
        let mut set = NodeSet::default();
        set.add_policy(store, node, &entry.state);
        for uid in &entry.terminating {
            if let Some(placed) = self.placement.pods.get(uid) {
                // It was within the caps when it was placed, and precedes others.
                let _fits = set.add(store, pods_max, &placed.pod);
            }
        }
        let mut is_over = false;
        for (_, claim, name, uid) in self.kept(entry, round) {
            let known = self.placement.pods.get(&uid);
            let known = || known.map(|placed| placed.pod.clone());
            let made = || Some(self.ids.pod(&claim, store.template(&claim.owner)?, node));
            let pod = round.pods.remove(&uid);
            let Some(pod) = pod.or_else(known).or_else(made) else {
                continue;
            };
            match set.add(store, pods_max, &pod) {
                Ok(note) => {
                    self.explain(&claim, &name.1, note);
                    self.hold(&name, node, pod);
                }
                Err(why) => {
                    set.watch(&pod);
                    is_over = true;
                    self.explain(&claim, &name.1, Some(format!("node {node} {why}")));
                    self.drop_pod(&name, node, uid);
                }
            }
        }
        self.set_desired(node, set, is_over);
    }

    /// Sets the set of a node.
    fn set_desired(&mut self, node: &str, set: NodeSet, is_over: bool) {
        self.use_configs(node, set.configs());
        let same = self.desired(node) == Some(set.objects());
        if let Some(before) = self.nodes.set(node, set) {
            self.unuse_left(node, before.configs());
        }
        if let Some(entry) = self.nodes.get_mut(node) {
            entry.is_over = is_over;
            if !std::mem::replace(&mut entry.is_made, true) || !same {
                self.changes.nodes.insert(node.to_owned());
            }
        }
    }

    /// The pods that stay on a node, in the order in which they are added.
    fn kept(&self, entry: &NodeEntry, round: &Round) -> Vec<(bool, Claim, PodName, Uid)> {
        let mut kept: Vec<_> = entry
            .assigned
            .iter()
            .filter_map(|name| {
                let state = self.names.get(name)?;
                let (claim, (_, uid)) = state.holder.clone().zip(state.assigned.clone())?;
                let is_placed = self.placement.pods.contains_key(&uid);
                let late = round.late.get(name).copied().unwrap_or(!is_placed);
                Some((late, claim, name.clone(), uid))
            })
            .collect();
        kept.sort_unstable();
        kept
    }

    /// Retries those waiting pods for which something has changed.
    fn retry(&mut self, store: &ObjectStore, round: &mut Round) {
        for name in self.waiting.take_touched() {
            let claim = self.names.get(&name).and_then(|state| state.holder.clone());
            let Some(claim) = claim.filter(|claim| store.template(&claim.owner).is_some()) else {
                continue;
            };
            self.work.retried += 1;
            let order = (true, claim);
            round.new.push(New { order, name });
        }
    }

    /// Chooses a node for a pod without one.
    fn place(&mut self, store: &ObjectStore, new: New, round: &mut Round) {
        let New {
            order: (_, claim),
            name,
        } = new;
        let Some(template) = store.template(&claim.owner) else {
            return;
        };
        self.waiting.remove(&name);
        // Replicas follow each other and differ only in their ordinal, which does not make a pod smaller:
        // where one finds no node the next one finds none, for the same reason.
        let failed = round.failed.take().filter(|(before, _)| {
            before.owner == claim.owner && before.only.is_none() && before.ordinal < claim.ordinal
        });
        let choice = match failed {
            Some((_, why)) => Err(why),
            None => self
                .nodes
                .choose(store, template, &claim, &self.ids, &mut self.work.visited),
        };
        match choice {
            Ok(choice) => {
                let (node, uid) = (choice.node, choice.pod.uid);
                self.explain(&claim, &name.1, choice.note);
                self.hold(&name, &node, choice.pod);
                if let Some(state) = self.names.get_mut(&name) {
                    state.assigned = Some((node.clone(), uid));
                }
                if let Some(entry) = self.nodes.get_mut(&node) {
                    entry.assigned.insert(name);
                    let configs = entry.set.configs().clone();
                    self.use_configs(&node, &configs);
                }
                // A waiting pod with the same ConfigMap needs less space there now.
                self.set_changed(&node);
                self.changes.nodes.insert(node);
            }
            Err(why) => {
                self.explain(&claim, &name.1, Some(why.clone()));
                let reach = match claim.fixed(template) {
                    Some(node) => Reach::Node(node.to_owned()),
                    None => match self.nodes.rarest(&template.selector) {
                        Some((label, value)) => Reach::Label(label.clone(), value.clone()),
                        None => Reach::Any,
                    },
                };
                self.waiting.insert(name, reach, &template.pod);
                round.failed = Some((claim, why));
            }
        }
    }
}
