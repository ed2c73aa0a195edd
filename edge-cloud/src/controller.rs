//! The loop of edge-cloud: reads objects and node reports, writes desired sets and status. Each round
//! recomputes what has changed since the previous one, until nothing changes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use edge_proto::key::Uid;
use tokio::time::Instant;

use crate::manifest::{Id, Manifests, Origin, Problem, Severity};
use crate::nodes::{DesiredSets, NodeReports, NodeView};
use crate::objects::{Object, ObjectStore};
use crate::placement::{Changes, NodeState, Placer, PodIds};
use crate::saved::{Memory, Restored, Saved, Unsaved};
use crate::source::{Source, SourceChanges, StatusChange, StatusSink};

/// Time after a restore for which a pod waits that more than one node could run: a node notices the end of
/// the old server within two keepalives of a minute, and reconnects at least every two minutes.
pub const SETTLE: Duration = Duration::from_secs(300);

/// Runs for ever; drop it to stop. `data` is the folder of [`Saved`], and `ids` makes the UIDs of the pods.
pub async fn run<N: NodeReports + DesiredSets>(
    mut source: impl Source,
    mut sink: impl StatusSink,
    nodes: Arc<N>,
    data: &Path,
    ids: PodIds,
) {
    let (saved, accepted, memory) = Saved::load(data);
    let mut notices = nodes.subscribe();
    let mut names = memory.nodes.keys().cloned().collect::<BTreeSet<_>>();
    names.extend(nodes.views().into_iter().map(|view| view.name));
    let mut controller = Controller::new(saved, &accepted, memory, ids);
    // After a restore, nodes may run pods that are newer than its objects. So these pods are compared with a
    // complete folder only; a file that is never closed delays this by the time in which it counts as open.
    let is_restored = controller.restored.awaits_source;
    loop {
        let changes = source.read(&controller.store).await;
        let is_partial = changes.is_partial;
        controller.apply(changes);
        if !is_restored || !is_partial {
            break;
        }
        source.changed().await;
    }
    let settle_at = Instant::now() + SETTLE;
    // Pods of an earlier run, which are new to the sink.
    let mut earlier: BTreeSet<Uid> = controller.placer.placement().pods.keys().copied().collect();
    loop {
        names.append(&mut notices.take());
        for name in std::mem::take(&mut names) {
            let view = nodes.view(&name);
            sink.reported(&name, view.as_ref());
            controller.observe(&name, view);
        }
        if Instant::now() >= settle_at {
            controller.settle();
        }
        let mut changes = controller.round();
        changes.pods.append(&mut earlier);
        controller.give(&*nodes, &changes);
        sink.placed(StatusChange {
            problems: &controller.problems,
            objects: controller.store.len(),
            placement: controller.placer.placement(),
            changes: &changes,
        });
        if !controller.placer.is_settled() {
            tokio::task::yield_now().await;
            continue;
        }
        tokio::select! {
            () = notices.changed() => {}
            () = source.changed() => {
                let changes = source.read(&controller.store).await;
                controller.apply(changes);
            }
            () = tokio::time::sleep_until(settle_at), if controller.restored.settling => {}
        }
    }
}

/// State of the loop.
struct Controller {
    saved: Saved,
    store: ObjectStore,
    placer: Placer,
    restored: Restored,
    /// Nodes of an earlier run that were not read yet.
    earlier: BTreeMap<String, NodeState>,
    /// Last revision of the store that the placer has applied.
    revision: u64,
    /// Changes of the source that wait for its first object, see [`Restored::awaits_source`].
    awaited: BTreeMap<Id, Option<Object>>,
    /// Documents that the source refuses.
    problems: Vec<Problem>,
    /// Nodes whose set must be sent again.
    pending_sets: BTreeSet<String>,
    unsaved: Unsaved,
}

impl Controller {
    fn new(saved: Saved, accepted: &Manifests, memory: Memory, ids: PodIds) -> Self {
        let mut store = ObjectStore::default();
        store.apply(accepted);
        let mut earlier = memory.nodes;
        for node in earlier.values_mut() {
            node.awaits_report = true;
        }
        Self {
            saved,
            placer: Placer::new(ids, memory.pods, !memory.restored.settling),
            store,
            restored: memory.restored,
            earlier,
            revision: 0,
            awaited: BTreeMap::new(),
            problems: Vec::new(),
            pending_sets: BTreeSet::new(),
            unsaved: Unsaved::default(),
        }
    }

    /// The source has changed.
    fn apply(&mut self, changes: SourceChanges) {
        // Without an object the source may only be missing.
        if self.restored.awaits_source && (changes.has_objects || self.store.is_empty()) {
            self.restored.awaits_source = false;
            self.unsaved.source_read = true;
        }
        self.awaited.extend(changes.objects);
        let before = self.store.revision();
        if !self.restored.awaits_source {
            for (id, object) in std::mem::take(&mut self.awaited) {
                match object {
                    Some(object) => self.store.put(&id, &object),
                    None => self.store.remove(&id),
                };
            }
        }
        let mut problems = changes.problems;
        problems.extend(self.restored.awaits_source.then(forgotten));
        if self.store.revision() != before || self.problems != problems {
            log::info!(
                "manifests_accepted objects={} problems={}",
                self.store.len(),
                problems.len()
            );
        }
        self.problems = problems;
    }

    /// A node may have changed; `None`: it has left.
    fn observe(&mut self, name: &str, view: Option<NodeView>) {
        let earlier = self.earlier.remove(name);
        let before = self.placer.node(name).or(earlier.as_ref());
        let kept = |node: Option<&NodeState>| {
            node.map(|node| (node.labels.clone(), node.arch.clone(), node.pods_max))
        };
        let old = kept(before);
        let is_unreported = self.restored.unreported.contains(name);
        if view.as_ref().is_some_and(|view| view.awaits_set) {
            self.pending_sets.insert(name.to_owned());
        }
        let state = view.and_then(|view| observed(before, view, is_unreported));
        if let Some((_, true)) = state {
            self.restored.unreported.remove(name);
            self.unsaved.reported.insert(name.to_owned());
        }
        let state = state.map(|(state, _)| state);
        if old != kept(state.as_ref()) {
            self.unsaved.nodes.insert(name.to_owned());
        }
        self.placer.node_changed(&self.store, name, state);
    }

    /// [`SETTLE`] is over. The source does not matter here: the nodes have reported.
    fn settle(&mut self) {
        if self.restored.settling {
            self.restored.settling = false;
            self.unsaved.settled = true;
            self.placer.settle();
        }
    }

    /// One round, saved.
    fn round(&mut self) -> Changes {
        let changed = self.store.changed_since(self.revision);
        // A reader that is too far behind reads everything, and all objects that it had and that are gone.
        let all = || {
            let there = self.store.iter().map(|(id, _)| id.clone());
            there.chain(self.placer.objects()).collect()
        };
        for id in changed.unwrap_or_else(all) {
            self.placer.object_changed(&self.store, &id);
            self.unsaved.objects.insert(id);
        }
        self.revision = self.store.revision();
        self.placer.round(&self.store);
        let changes = self.placer.take_changes();
        self.unsaved.pods.extend(&changes.pods);
        // Saved before it is sent: after a crash the same pods are desired.
        let saved = self
            .saved
            .store(&self.store, &self.placer, &self.restored, &mut self.unsaved);
        if let Err(error) = saved {
            log::error!("placement_not_saved error={error}");
        }
        changes
    }

    /// Sends the changed sets. A node whose running pods are unknown gets
    /// none until it has reported.
    fn give(&mut self, nodes: &impl DesiredSets, changes: &Changes) {
        self.pending_sets.extend(changes.nodes.iter().cloned());
        let unreported = &self.restored.unreported;
        for node in std::mem::take(&mut self.pending_sets) {
            if unreported.contains(&node) {
                // A node that has left is named again when it reports.
                if self.placer.node(&node).is_some() {
                    self.pending_sets.insert(node);
                }
            } else if let Some(desired) = self.placer.desired(&node) {
                nodes.set_desired(&node, desired);
            }
        }
    }
}

fn forgotten() -> Problem {
    Problem {
        severity: Severity::Error,
        origin: Origin::default(),
        object: None,
        path: String::new(),
        reason: "the folder is empty after the restore: the manifests of the backup hold until it \
                 has one"
            .to_owned(),
    }
}

/// State of a node from its view and from before, and whether it reports for the
/// first time since a restore. A node that has not reported since our start keeps its previous labels;
/// one that has never reported gets no pods and no set.
fn observed(
    before: Option<&NodeState>,
    view: NodeView,
    is_unreported: bool,
) -> Option<(NodeState, bool)> {
    if view.revoked || view.awaits_approval {
        return None;
    }
    let (state, is_news) = match (view.status, before) {
        // An incomplete report would move or end the missing pods.
        (Some(_), Some(before)) if is_unreported && !view.has_report => (before.clone(), false),
        (Some(_), None) if !view.has_report => return None,
        (Some(status), _) => {
            let state = NodeState {
                labels: view.labels,
                arch: status.arch,
                pods_max: status.pods_max,
                awaits_report: before.is_some_and(|before| before.awaits_report),
                ..NodeState::default()
            };
            (state, is_unreported)
        }
        (None, before) => (before?.clone(), false),
    };
    let pods = view.pods.into_iter();
    let state = NodeState {
        connected: view.connected,
        awaits_report: !view.has_report && state.awaits_report,
        reported: pods
            .map(|pod| (pod.uid, (pod.namespace, pod.name)))
            .collect(),
        ..state
    };
    Some((state, is_news))
}
