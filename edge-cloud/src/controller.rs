//! The loop of edge-cloud: manifests and nodes in, desired sets and status out. Level-triggered:
//! each round computes everything from what is known now.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::nodes::{NodeView, Nodes};
use crate::placement::{Desired, Node, place};
use crate::saved::Saved;
use crate::source::{Sink, Source, Status};

/// Runs for ever; drop it to stop. `data` is the folder of [`Saved`].
pub async fn run<N: Nodes>(
    mut source: impl Source,
    mut sink: impl Sink,
    links: Arc<N>,
    data: &Path,
) {
    let (mut saved, manifests, mut nodes, mut pods) = Saved::load(data);
    let mut given: BTreeMap<String, Desired> = BTreeMap::new();
    let mut changes = links.changes();
    let mut manifests = source.read(Arc::new(manifests)).await;
    loop {
        changes.borrow_and_update();
        observe(&mut nodes, links.views());
        let placement = place(&manifests, &nodes, &pods);
        pods.clone_from(&placement.pods);
        // Saved first: after a crash the same pods are asked for.
        if let Err(error) = saved.store(&manifests, &nodes, &pods) {
            log::error!("placement_not_saved error={error}");
        }
        given.retain(|node, _| placement.desired.contains_key(node));
        for (node, desired) in &placement.desired {
            if given.get(node) != Some(desired) {
                links.set_desired(node, desired);
                given.insert(node.clone(), desired.clone());
            }
        }
        sink.publish(Arc::new(Status {
            problems: manifests.problems.clone(),
            objects: manifests.objects.len(),
            placement,
        }));
        tokio::select! {
            changed = changes.changed() => if changed.is_err() {
                return;
            },
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
        }
    }
}

/// Takes over what the nodes say. A node that has not reported since our start keeps the labels
/// that it had; one that never has reported cannot be placed on and is given no set.
fn observe(nodes: &mut BTreeMap<String, Node>, views: Vec<NodeView>) {
    let mut now = BTreeMap::new();
    for view in views.into_iter().filter(|view| !view.revoked) {
        let mut node = match (view.status, nodes.remove(&view.name)) {
            (Some(status), _) => Node {
                labels: status.labels.into_iter().collect(),
                arch: status.arch,
                pods_max: status.pods_max,
                ..Node::default()
            },
            (None, Some(before)) => before,
            (None, None) => continue,
        };
        node.reported = view
            .pods
            .into_iter()
            .map(|pod| (pod.uid, (pod.namespace, pod.name)))
            .collect();
        now.insert(view.name, node);
    }
    *nodes = now;
}
