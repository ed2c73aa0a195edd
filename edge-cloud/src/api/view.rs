//! Rows of the API and the CLI: desired state beside the state that the nodes have reported.

use std::collections::BTreeMap;

use edge_proto::key::Uid;
use edge_proto::object::{ContainerState, PodStatus};
use serde::{Deserialize, Serialize};

use crate::manifest::Severity;
use crate::nodes::NodeView;
use crate::placement::Placement;
use crate::source::Status;

/// Row of `edge-cloud nodes`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeRow {
    /// From its certificate.
    pub name: String,
    /// A session is live.
    pub connected: bool,
    /// Both sets are equal on both ends.
    pub in_sync: bool,
    /// Its certificate is revoked.
    pub revoked: bool,
    /// Two boards use its identity.
    pub cloned: bool,
    /// When its certificate expires, seconds since 1970; 0 is not known.
    #[serde(default, rename = "certificate_not_after_unix_s")]
    pub certificate_not_after: u64,
    /// Root of the desired set, hex.
    pub desired_root: String,
    /// Root of the reported set, hex.
    pub reported_root: String,
    /// When the link last went up or down, seconds since 1970; 0 is not known.
    pub changed_unix_s: u64,
    /// Version of the agent; empty until it has reported.
    pub agent: String,
    /// Machine architecture.
    pub arch: String,
    /// Kernel release.
    pub kernel: String,
    /// Name of its board file.
    pub board: String,
    /// Nobody has approved it yet: it gets no pods.
    #[serde(default)]
    pub awaits_approval: bool,
    /// Labels that select it.
    pub labels: BTreeMap<String, String>,
    /// Labels of its own config that select nothing, because its token has not listed their keys.
    #[serde(default)]
    pub labels_ignored: BTreeMap<String, String>,
    /// Pods that it reports.
    pub pods: usize,
    /// Those of them that are not in its desired set: it has not ended them yet, or reports falsely.
    #[serde(default)]
    pub pods_not_asked: usize,
    /// Conditions that hold, with their message.
    pub conditions: BTreeMap<String, String>,
    /// Objects that it does not support, with the reason.
    pub refused: BTreeMap<String, String>,
}

/// A pod that is desired or reported.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodRow {
    /// As in the manifest.
    pub namespace: String,
    /// As in the manifest.
    pub name: String,
    /// UID, hex; empty when it is not placed.
    pub uid: String,
    /// Node; empty when it is not placed.
    pub node: String,
    /// As the node reported it; `Unplaced` or `Unreported` when no node did.
    pub phase: String,
    /// Reason of the phase, one word.
    pub reason: String,
    /// Human-readable.
    pub message: String,
    /// It is to be stopped.
    pub terminating: bool,
    /// The node is connected, so the row is up to date.
    pub current: bool,
    /// Restarts of all containers.
    pub restarts: u32,
    /// In the order of the Pod.
    pub containers: Vec<ContainerRow>,
}

/// A container of a pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerRow {
    /// Name in the pod.
    pub name: String,
    /// `waiting`, `running`, `terminated`.
    pub state: String,
    /// Reason of the state.
    pub reason: String,
    /// Human-readable.
    pub message: String,
    /// Process id on the node.
    pub pid: Option<u32>,
    /// Since the pod was assigned to the node.
    pub restarts: u32,
    /// Exit code of the last run that has ended.
    pub exit_code: Option<i32>,
    /// The kernel ended that run for want of memory.
    pub last_oom: bool,
}

/// Reason why some desired state is not in effect.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProblemRow {
    /// What it does.
    pub severity: Severity,
    /// File; empty for a pod that is not placed.
    pub file: String,
    /// Document in the file, from 1; 0 is the file itself.
    pub document: usize,
    /// Object, when it could be read.
    pub object: Option<String>,
    /// Field.
    pub path: String,
    /// Human-readable.
    pub reason: String,
}

/// Rows of all nodes, by name.
pub(super) fn nodes(views: &[NodeView], placement: &Placement) -> Vec<NodeRow> {
    let mut rows: Vec<_> = views.iter().map(|view| node(view, placement)).collect();
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    rows
}

fn node(view: &NodeView, placement: &Placement) -> NodeRow {
    let status = view.status.clone().unwrap_or_default();
    let holding = status.conditions.into_iter().filter(|c| c.holds);
    let refused = status.refused.into_iter();
    let ignored = status.labels.into_iter();
    let ignored = ignored.filter(|(key, value)| view.labels.get(key) != Some(value));
    let not_asked = |pod: &&PodStatus| !placement.asks(&view.name, pod.uid);
    NodeRow {
        name: view.name.clone(),
        connected: view.connected,
        in_sync: view.in_sync,
        revoked: view.revoked,
        cloned: view.cloned,
        certificate_not_after: view.certificate_not_after,
        desired_root: view.desired_root.clone(),
        reported_root: view.reported_root.clone(),
        changed_unix_s: view.changed_unix_s,
        agent: status.agent,
        arch: status.arch,
        kernel: status.kernel,
        board: status.board,
        awaits_approval: view.awaits_approval,
        labels_ignored: ignored.collect(),
        labels: view.labels.clone(),
        pods: view.pods.len(),
        pods_not_asked: view.pods.iter().filter(not_asked).count(),
        conditions: holding.map(|c| (c.name, c.message)).collect(),
        refused: refused.map(|r| (r.key.to_string(), r.reason)).collect(),
    }
}

/// Rows of all pods, by namespace and name. A report of a pod that is not in the node's desired set has no row,
/// and a row has the desired name of its pod: no node can affect the rows of another node's pods.
pub(super) fn pods(views: &[NodeView], placement: &Placement) -> Vec<PodRow> {
    let mut rows = Vec::new();
    let mut reported: BTreeMap<(Uid, &str), (&NodeView, &PodStatus)> = BTreeMap::new();
    for view in views {
        let asked = |pod: &&PodStatus| placement.asks(&view.name, pod.uid);
        for pod in view.pods.iter().filter(asked) {
            reported.insert((pod.uid, view.name.as_str()), (view, pod));
        }
    }
    for (uid, placed) in &placement.pods {
        let status = reported.remove(&(*uid, placed.node.as_str()));
        let mut row = match status {
            Some((view, status)) => row(view, status),
            None => PodRow {
                phase: "Unreported".to_owned(),
                ..empty("", "")
            },
        };
        row.namespace.clone_from(&placed.pod.namespace);
        row.name.clone_from(&placed.pod.name);
        row.uid = uid.to_string();
        row.node.clone_from(&placed.node);
        row.terminating = placed.pod.terminating;
        rows.push(row);
    }
    let placed = |row: &PodRow, namespace: &str, name: &str| {
        row.namespace == namespace && row.name == name && !row.terminating
    };
    for pod in placement.unplaced.values() {
        let namespace = &pod.owner.namespace;
        match rows
            .iter_mut()
            .find(|row| placed(row, namespace, &pod.name))
        {
            Some(row) if row.message.is_empty() => row.message.clone_from(&pod.reason),
            Some(_) => {}
            None => rows.push(PodRow {
                phase: "Unplaced".to_owned(),
                message: pod.reason.clone(),
                ..empty(namespace, &pod.name)
            }),
        }
    }
    rows.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
    rows
}

fn empty(namespace: &str, name: &str) -> PodRow {
    PodRow {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: String::new(),
        node: String::new(),
        phase: String::new(),
        reason: String::new(),
        message: String::new(),
        terminating: false,
        current: false,
        restarts: 0,
        containers: Vec::new(),
    }
}

fn row(view: &NodeView, status: &PodStatus) -> PodRow {
    let containers = status.containers.iter().map(|container| {
        let mut message = String::new();
        let (reason, pid, exit_code) = match &container.state {
            ContainerState::Waiting {
                reason,
                message: words,
            } => {
                message.clone_from(words);
                (reason.clone(), None, container.last_exit_code)
            }
            ContainerState::Running { pid } => {
                (String::new(), Some(*pid), container.last_exit_code)
            }
            ContainerState::Terminated { exit_code, reason } => (reason.clone(), None, *exit_code),
        };
        ContainerRow {
            name: container.name.clone(),
            state: container.state.as_str().to_owned(),
            reason,
            message,
            pid,
            restarts: container.restarts,
            exit_code,
            last_oom: container.last_oom,
        }
    });
    PodRow {
        phase: status.phase.as_str().to_owned(),
        reason: status.reason.clone(),
        message: status.message.clone(),
        current: view.connected,
        restarts: status.containers.iter().map(|c| c.restarts).sum(),
        containers: containers.collect(),
        ..empty("", "")
    }
}

/// Refused documents, then pods that are not placed.
pub(super) fn problems(status: &Status) -> Vec<ProblemRow> {
    let refused = status.problems.iter().map(|problem| ProblemRow {
        severity: problem.severity,
        file: problem.origin.file.clone(),
        document: problem.origin.document,
        object: problem.object.clone(),
        path: problem.path.clone(),
        reason: problem.reason.clone(),
    });
    let unplaced = status.placement.unplaced.values().map(|pod| ProblemRow {
        severity: Severity::Error,
        file: String::new(),
        document: 0,
        object: Some(pod.owner.to_string()),
        path: String::new(),
        reason: format!("pod {}: {}", pod.name, pod.reason),
    });
    refused.chain(unplaced).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use edge_proto::object::{Phase, Pod};

    use super::*;
    use crate::placement::PlacedPod;

    fn report(uid: u8, name: &str) -> PodStatus {
        PodStatus {
            uid: Uid([uid; 16]),
            namespace: "default".to_owned(),
            name: name.to_owned(),
            phase: Phase::Running,
            ..PodStatus::default()
        }
    }

    /// Goal: a node shows nothing under the name of a pod of another node. Method: a pod that its node has not
    /// reported; another node reports its UID, its name, and a pod of its own under that name.
    #[test]
    fn a_node_is_shown_for_the_pods_that_it_was_asked_for_under_their_names() {
        let mut placement = Placement::default();
        for (uid, node, name) in [(1, "gate", "bank"), (2, "evil", "toy")] {
            let uid = Uid([uid; 16]);
            let pod = Pod {
                uid,
                namespace: "default".to_owned(),
                name: name.to_owned(),
                ..Pod::default()
            };
            let node = node.to_owned();
            placement
                .pods
                .insert(uid, Arc::new(PlacedPod { node, pod }));
        }
        let view = NodeView {
            name: "evil".to_owned(),
            connected: true,
            pods: vec![report(1, "bank"), report(2, "bank"), report(3, "bank")],
            ..NodeView::default()
        };
        let rows = pods(std::slice::from_ref(&view), &placement);
        let rows: Vec<_> = rows
            .iter()
            .map(|row| (row.name.as_str(), row.node.as_str(), row.phase.as_str()))
            .collect();
        assert_eq!(
            rows,
            [("bank", "gate", "Unreported"), ("toy", "evil", "Running")]
        );
        assert_eq!(nodes(&[view], &placement)[0].pods_not_asked, 2);
    }
}
