//! The reference: computes everything, as simply as possible. Tests compare the
//! [`Placer`](super::Placer) with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use edge_proto::key::Uid;
use edge_proto::limits::NAME_BYTES_MAX;
use edge_proto::object::Pod;

use super::claims::{Claim, expand};
use super::node_set::NodeSet;
use super::{ClaimName, Desired, NodeState, PlacedPod, Placement, PodIds, PodName, Unplaced};
use crate::manifest::Template;
use crate::objects::ObjectStore;

/// Desired set of each node.
type Sets = BTreeMap<String, Desired>;

/// Pods that were removed from the set of their node because they did not fit, while it reports them.
pub(super) type Ending = BTreeMap<(String, Uid), PodName>;

/// Places everything. `before` is the result of the last call, or its saved part; see
/// [`Placer::new`](super::Placer::new) for `settled`.
///
/// Long because it is one rule after the other, in the order in which they count.
pub(super) fn place(
    store: &ObjectStore,
    nodes: &BTreeMap<String, NodeState>,
    before: &BTreeMap<Uid, Arc<PlacedPod>>,
    ending: &Ending,
    settled: bool,
) -> (Placement, Sets) {
    let ids = PodIds::default();
    let mut unplaced = BTreeMap::new();
    let wanted = wanted(store, nodes, before, &mut unplaced);
    let template = |claim: &Claim| store.template(&claim.owner).unwrap();
    let mut sets: BTreeMap<&str, NodeSet> = BTreeMap::new();
    for (name, node) in nodes {
        let mut set = NodeSet::default();
        set.add_policy(store, name, node);
        sets.insert(name, set);
    }
    let mut pods = BTreeMap::new();

    // The node where each wanted pod runs now: the one in our state, or one where it is still ending. After a
    // restore a report with a proving UID overrides our state, unless that node reports the pod as well.
    let current = |claim: &Claim| {
        let template = template(claim);
        let find = |fits: &dyn Fn(&String, &NodeState, Uid) -> bool| {
            let mut allowed = nodes
                .iter()
                .filter(|(name, node)| claim.allows(template, name, node));
            let found =
                allowed.find(|(name, node)| fits(name, node, ids.uid(claim, template, name)));
            found.map(|(name, _)| name.as_str())
        };
        let placed = |node: &String, uid: Uid, terminating: bool| {
            let placed = before.get(&uid).filter(|placed| placed.node == *node);
            placed.is_some_and(|placed| placed.pod.terminating == terminating)
        };
        let is_ending = |name: &String, node: &NodeState, uid: Uid| {
            let is_ending = ending.contains_key(&(name.clone(), uid));
            node.may_run(uid) && (is_ending || placed(name, uid, true))
        };
        let proven = || {
            find(&|name, node, uid| node.reported.contains_key(&uid) && placed(name, uid, false))
                .or_else(|| find(&|_, node, uid| node.reported.get(&uid) == Some(&claim.name())))
        };
        (if settled { None } else { proven() })
            .or_else(|| find(&|name, _, uid| placed(name, uid, false)))
            .or_else(|| find(&is_ending))
    };
    let wanted: Vec<_> = wanted
        .into_iter()
        .map(|claim| (current(&claim), claim))
        .collect();
    let kept: BTreeSet<(PodName, Uid)> = wanted
        .iter()
        .filter_map(|(current, claim)| {
            Some((claim.name(), ids.uid(claim, template(claim), (*current)?)))
        })
        .collect();

    // Pods to end: desired before, and may still run. Meanwhile their names are in use.
    let mut busy: BTreeMap<PodName, BTreeSet<&str>> = BTreeMap::new();
    for ((node, uid), name) in ending {
        if !kept.contains(&(name.clone(), *uid)) {
            busy.entry(name.clone()).or_default().insert(node);
        }
    }
    for (uid, placed) in before {
        let is_kept = kept.contains(&(placed.name(), *uid));
        let Some(node) = nodes.get(&placed.node).filter(|_| !is_kept) else {
            continue;
        };
        if node.may_run(*uid) {
            let pod = Pod {
                terminating: true,
                ..placed.pod.clone()
            };
            // It was within the caps when it was placed, and precedes others.
            let set = sets.get_mut(placed.node.as_str()).unwrap();
            let _fits = set.add(store, node.pods_max, &pod);
            busy.entry(placed.name()).or_default().insert(&placed.node);
            let node = placed.node.clone();
            pods.insert(*uid, Arc::new(PlacedPod { node, pod }));
        }
    }
    // After a restore, a name is also in use while a node reports it that may run the wanted pod.
    let reported = |claim: &Claim| {
        let fixed = claim.fixed(template(claim));
        let nodes = nodes.iter().filter(|(name, node)| {
            let reports = node.reported.values().any(|pod| *pod == claim.name());
            reports && !settled && fixed.is_none_or(|fixed| fixed == **name)
        });
        nodes.map(|(name, _)| name.as_str()).next_back()
    };

    let (stay, new): (Vec<_>, Vec<_>) = wanted
        .into_iter()
        .partition(|(current, _)| current.is_some());
    for (current, claim) in stay.into_iter().chain(new) {
        let template = template(&claim);
        let left = busy.get(&claim.name()).and_then(BTreeSet::last).copied();
        let busy = left.max(reported(&claim));
        let result = match busy.filter(|_| current.is_none()) {
            Some(node) => Err(format!(
                "waits until node {node} has ended the old pod of this name"
            )),
            None if current.is_none() && !settled && claim.fixed(template).is_none() => Err(
                "waits after the restore: a node that has not reported yet may run it".to_owned(),
            ),
            None => choose(store, (&claim, &ids), template, current, nodes, &mut sets),
        };
        let note = match result {
            Ok((placed, note)) => {
                pods.insert(placed.pod.uid, Arc::new(placed));
                note
            }
            Err(reason) => Some(reason),
        };
        if let Some(reason) = note {
            explain(&mut unplaced, &claim, reason);
        }
    }
    let sets = sets
        .into_iter()
        .map(|(name, set)| (name.to_owned(), set.objects().clone()));
    (Placement { pods, unplaced }, sets.collect())
}

fn explain(unplaced: &mut BTreeMap<ClaimName, Unplaced>, claim: &Claim, reason: String) {
    let name = claim.name().1;
    let one = Unplaced {
        owner: claim.owner.as_ref().clone(),
        name: name.clone(),
        reason,
    };
    unplaced.insert((Arc::clone(&claim.owner), name), one);
}

/// Places a pod on its current node or on the connected node with the fewest pods that accepts it.
fn choose(
    store: &ObjectStore,
    (claim, ids): (&Claim, &PodIds),
    template: &Template,
    current: Option<&str>,
    nodes: &BTreeMap<String, NodeState>,
    sets: &mut BTreeMap<&str, NodeSet>,
) -> Result<(PlacedPod, Option<String>), String> {
    let mut candidates: Vec<_> = nodes
        .iter()
        .filter(|(name, node)| {
            current.map_or_else(
                || claim.allows(template, name, node),
                |current| current == **name,
            )
        })
        .map(|(name, node)| (sets[name.as_str()].pods(), name, node))
        .collect();
    let some = !candidates.is_empty();
    let has_choice = claim.fixed(template).is_none();
    candidates.retain(|(_, _, node)| node.connected || current.is_some() || !has_choice);
    candidates.sort_unstable_by_key(|(pods, name, _)| (*pods, *name));
    let mut reason = match &template.node {
        Some(node) if !nodes.contains_key(node) => {
            format!("node {node} has not joined or not reported yet")
        }
        Some(node) if !template.selector.is_empty() => {
            format!("node {node} lacks labels of nodeSelector")
        }
        _ if some => "no node that it may run on is connected".to_owned(),
        _ if template.selector.is_empty() => "no node has joined yet".to_owned(),
        _ => "no node has the labels of nodeSelector".to_owned(),
    };
    for (_, name, node) in candidates {
        let pod = ids.pod(claim, template, name);
        let set = sets.get_mut(name.as_str()).unwrap();
        match set.add(store, node.pods_max, &pod) {
            Ok(note) => {
                let node = name.clone();
                return Ok((PlacedPod { node, pod }, note));
            }
            Err(full) => reason = format!("node {name} {full}"),
        }
    }
    Err(reason)
}

/// All required pods; explains those whose name another document has. Of two claims the
/// already placed one holds it: a new manifest must not end a running pod.
fn wanted(
    store: &ObjectStore,
    nodes: &BTreeMap<String, NodeState>,
    before: &BTreeMap<Uid, Arc<PlacedPod>>,
    unplaced: &mut BTreeMap<ClaimName, Unplaced>,
) -> Vec<Claim> {
    let ids = PodIds::default();
    let mut all = Vec::new();
    for (id, object) in store.iter() {
        let nodes = nodes.iter().map(|(name, node)| (name.as_str(), node));
        all.extend(expand(&Arc::new(id.clone()), &object.content, nodes));
    }
    all.sort_by_cached_key(|claim| {
        let template = store.template(&claim.owner).unwrap();
        let mut placed = before
            .values()
            .filter(|one| !one.pod.terminating && one.name() == claim.name());
        !placed.any(|one| before.contains_key(&ids.uid(claim, template, &one.node)))
    });
    let mut names: BTreeMap<PodName, Arc<crate::manifest::Id>> = BTreeMap::new();
    all.retain(|claim| {
        let name = claim.name();
        if name.1.len() > NAME_BYTES_MAX {
            explain(
                unplaced,
                claim,
                format!("its name is over {NAME_BYTES_MAX} bytes"),
            );
            return false;
        }
        if let Some(first) = names.get(&name) {
            explain(
                unplaced,
                claim,
                format!("{first} has a pod of this name, too"),
            );
            return false;
        }
        names.insert(name, Arc::clone(&claim.owner));
        true
    });
    all
}
