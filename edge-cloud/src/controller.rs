//! The loop of edge-cloud: manifests and nodes in, desired sets and status out. Level-triggered:
//! each round computes everything from what is known now.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::manifest::{Origin, Problem};
use crate::nodes::{DesiredSets, NodeReports, NodeView};
use crate::placement::{Desired, Node, place};
use crate::saved::{Memory, Saved};
use crate::source::{Sink, Source, Status};

/// How long after a restore a pod waits that more than one node could run: a node notices the end of
/// the old server within two keepalives of a minute, and tries again at least every two minutes.
pub const SETTLE: Duration = Duration::from_secs(300);

/// Runs for ever; drop it to stop. `data` is the folder of [`Saved`].
pub async fn run<N: NodeReports + DesiredSets>(
    mut source: impl Source,
    mut sink: impl Sink,
    links: Arc<N>,
    data: &Path,
) {
    let (mut saved, accepted, mut memory) = Saved::load(data);
    let accepted = Arc::new(accepted);
    let mut given: BTreeMap<String, Desired> = BTreeMap::new();
    let mut changes = links.subscribe();
    let mut manifests = source.read(Arc::clone(&accepted)).await;
    let mut seen = !memory.restored.settling || accepted.objects.is_empty();
    let settled = Instant::now() + SETTLE;
    loop {
        // All are read anew.
        drop(changes.take());
        let mut nodes = observe(&mut memory, links.views());
        // After a restore an empty folder was rather forgotten than meant: it would end every pod.
        seen |= !manifests.objects.is_empty();
        let wanted = if seen { &manifests } else { &accepted };
        memory.restored.settling &= !seen || Instant::now() < settled;
        let restored = &memory.restored;
        let placement = place(wanted, &nodes, &memory.pods, !restored.settling);
        memory.pods.clone_from(&placement.pods);
        // What nodes report is theirs to remember, not ours.
        for node in nodes.values_mut() {
            node.reported.clear();
            node.connected = false;
        }
        memory.nodes = nodes;
        // Saved first: after a crash the same pods are asked for.
        if let Err(error) = saved.store(wanted, &memory) {
            log::error!("placement_not_saved error={error}");
        }
        given.retain(|node, _| placement.desired.contains_key(node));
        for (node, desired) in &placement.desired {
            let heard = !memory.restored.unheard.contains(node);
            if heard && given.get(node) != Some(desired) {
                links.set_desired(node, desired);
                given.insert(node.clone(), desired.clone());
            }
        }
        let mut problems = manifests.problems.clone();
        problems.extend((!seen).then(forgotten));
        sink.publish(Arc::new(Status {
            problems,
            objects: wanted.objects.len(),
            placement,
        }));
        tokio::select! {
            () = changes.changed() => {}
            () = source.changed() => {
                let read = source.read(Arc::clone(&manifests)).await;
                if read.objects != manifests.objects || read.problems != manifests.problems {
                    log::info!(
                        "manifests_accepted objects={} problems={}",
                        read.objects.len(),
                        read.problems.len()
                    );
                }
                manifests = read;
            }
            () = tokio::time::sleep_until(settled), if memory.restored.settling && seen => {}
        }
    }
}

fn forgotten() -> Problem {
    Problem {
        origin: Origin::default(),
        object: None,
        path: String::new(),
        reason: "the folder is empty after the restore: the manifests of the backup hold until it \
                 has one"
            .to_owned(),
    }
}

/// Takes over what the nodes say. A node that has not reported since our start keeps the labels
/// that it had; one that never has reported cannot be placed on and is given no set.
fn observe(memory: &mut Memory, views: Vec<NodeView>) -> BTreeMap<String, Node> {
    let mut now = BTreeMap::new();
    for view in views.into_iter().filter(|view| !view.revoked) {
        let unheard = memory.restored.unheard.contains(&view.name);
        let before = memory.nodes.remove(&view.name);
        let mut node = match (view.status, before) {
            // Half a report would move or end the pods of the other half.
            (Some(_), Some(before)) if unheard && !view.heard => before,
            (Some(_), None) if !view.heard => continue,
            (Some(status), _) => {
                memory.restored.unheard.remove(&view.name);
                Node {
                    labels: status.labels.into_iter().collect(),
                    arch: status.arch,
                    pods_max: status.pods_max,
                    ..Node::default()
                }
            }
            (None, Some(before)) => before,
            (None, None) => continue,
        };
        node.connected = view.connected;
        node.reported = view
            .pods
            .into_iter()
            .map(|pod| (pod.uid, (pod.namespace, pod.name)))
            .collect();
        now.insert(view.name, node);
    }
    now
}
