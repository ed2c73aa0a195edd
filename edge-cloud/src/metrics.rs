//! Prometheus metrics, computed for each request from existing state; nothing is counted for them alone.

use std::collections::BTreeMap;
use std::fmt;

use edge_proto::object::PodStatus;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::clock::unix_s;
use crate::manifest::{Problem, Severity};
use crate::nodes::{CaView, NodeView};
use crate::records::View;
use crate::records::ledger::Loss;
use crate::source::Status;

/// Content type of the OpenMetrics text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NodeLabel {
    node: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    phase: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StreamLabel {
    node: String,
    class: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LossLabel {
    node: String,
    class: String,
    reason: &'static str,
}

/// `numbered` is delivered and lost together, for each node and class.
fn records(registry: &mut Registry, view: &View) {
    let numbered = Family::<StreamLabel, Counter>::default();
    let delivered = Family::<StreamLabel, Counter>::default();
    let duplicates = Family::<StreamLabel, Counter>::default();
    let outboxes = Family::<StreamLabel, Counter>::default();
    let lost = Family::<LossLabel, Counter>::default();
    for stream in &view.streams {
        let (node, class) = (stream.node.clone(), stream.class.clone());
        let label = StreamLabel { node, class };
        for (family, count) in [
            (&numbered, stream.numbered),
            (&delivered, stream.delivered),
            (&duplicates, stream.duplicates),
            (&outboxes, stream.outboxes),
        ] {
            family.get_or_create(&label).inc_by(count);
        }
        for loss in Loss::ALL {
            let (node, class) = (label.node.clone(), label.class.clone());
            let reason = loss.name();
            let label = LossLabel {
                node,
                class,
                reason,
            };
            lost.get_or_create(&label).inc_by(stream.lost.of(loss));
        }
    }
    registry.register(
        "records_numbered",
        "Numbers that are accounted for",
        numbered,
    );
    registry.register("records_delivered", "Records that the sink has", delivered);
    registry.register("records_lost", "Records that never came", lost);
    registry.register(
        "records_duplicates",
        "Records that came again and were dropped",
        duplicates,
    );
    registry.register("records_outboxes", "Outboxes so far", outboxes);
    let failures = Counter::<u64>::default();
    failures.inc_by(view.sink.failures);
    registry.register("records_sink_failures", "Attempts that failed", failures);
    let waiting = Gauge::<i64>::default();
    waiting.set(i64::try_from(view.sink.waiting_bytes).unwrap_or(i64::MAX));
    registry.register(
        "records_waiting_bytes",
        "Bytes that wait for the sink",
        waiting,
    );
    let failing = Gauge::<i64>::default();
    failing.set(i64::try_from(view.sink.failing).unwrap_or(i64::MAX));
    registry.register(
        "records_failing_nodes",
        "Nodes for which the sink fails",
        failing,
    );
}

/// Certificates that expire within this time are counted, seconds: 30 days. A node renews its own
/// when a third of the validity is left, so in a healthy fleet only short ones are counted.
const SOON_S: u64 = 30 * 24 * 3600;

/// Expiry of certificates: the nodes', except revoked ones, edge-cloud's own and its CAs';
/// and how many nodes a change of the CAs still waits for.
fn certificates(registry: &mut Registry, views: &[NodeView], cas: &CaView, unix_s: u64) {
    let mut gauge = |name, help, value: u64| {
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    };
    let valid = views.iter().filter(|view| !view.revoked);
    let ends = valid.map(|view| view.certificate_not_after);
    let ends: Vec<u64> = ends.filter(|end| *end != 0).collect();
    if let Some(earliest) = ends.iter().min() {
        gauge(
            "node_certificate_earliest_end_timestamp_seconds",
            "When the first of the nodes' certificates ends",
            *earliest,
        );
    }
    let soon = ends.iter().filter(|end| **end < unix_s + SOON_S).count();
    gauge(
        "node_certificates_ending_soon",
        "Nodes whose certificate ends within 30 days, or has ended",
        soon as u64,
    );
    gauge(
        "server_certificate_end_timestamp_seconds",
        "When the certificate ends that edge-cloud shows to nodes",
        cas.server_not_after,
    );
    if let Some(end) = cas.cas.iter().map(|ca| ca.not_after).min() {
        gauge(
            "ca_end_timestamp_seconds",
            "When the first of the accepted CAs ends",
            end,
        );
    }
    gauge("cas", "CAs that are accepted", cas.cas.len() as u64);
    gauge(
        "ca_waiting_nodes",
        "Nodes that have not renewed their certificate since the CAs changed",
        cas.waiting_count as u64,
    );
}

/// What is asked for, and what of it is refused or not placed.
fn desired(registry: &mut Registry, status: &Status) {
    let count = |count: usize| {
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        gauge
    };
    registry.register(
        "pods_placed",
        "Pods asked of nodes",
        count(status.placement.pods.len()),
    );
    registry.register(
        "pods_unplaced",
        "Pods that are not placed or lack something",
        count(status.placement.unplaced.len()),
    );
    registry.register(
        "manifest_objects",
        "Accepted objects",
        count(status.objects),
    );
    let refused = |problem: &&Problem| problem.severity == Severity::Error;
    let refused = status.problems.iter().filter(refused).count();
    registry.register(
        "manifest_problems",
        "Refused fields and files",
        count(refused),
    );
    registry.register(
        "manifest_warnings",
        "Documents of kinds that are not supported",
        count(status.problems.len() - refused),
    );
}

/// The metrics as text.
///
/// # Errors
/// None that a `String` returns; required by the encoder's signature.
pub fn text(
    views: &[NodeView],
    status: &Status,
    view: &View,
    cas: &CaView,
) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("edge_cloud");
    let connected = Family::<NodeLabel, Gauge>::default();
    let in_sync = Family::<NodeLabel, Gauge>::default();
    let cloned = Family::<NodeLabel, Gauge>::default();
    let refused = Family::<NodeLabel, Gauge>::default();
    let restarts = Family::<NodeLabel, Gauge>::default();
    let mut phases: BTreeMap<&str, i64> = BTreeMap::new();
    for view in views {
        let label = NodeLabel {
            node: view.name.clone(),
        };
        connected
            .get_or_create(&label)
            .set(i64::from(view.connected));
        in_sync.get_or_create(&label).set(i64::from(view.in_sync));
        cloned.get_or_create(&label).set(i64::from(view.cloned));
        let count = view.status.as_ref().map_or(0, |s| s.refused_count);
        refused.get_or_create(&label).set(i64::from(count));
        // Reports of pods that are not in its desired set do not count.
        let asked = |pod: &&PodStatus| status.placement.asks(&view.name, pod.uid);
        let all = view.pods.iter().filter(asked);
        let all = all.flat_map(|pod| &pod.containers);
        let all = all.map(|container| i64::from(container.restarts));
        restarts.get_or_create(&label).set(all.sum());
        for pod in view.pods.iter().filter(asked) {
            *phases.entry(pod.phase.as_str()).or_default() += 1;
        }
    }
    let pods = Family::<PhaseLabel, Gauge>::default();
    for (phase, count) in phases {
        let phase = phase.to_owned();
        pods.get_or_create(&PhaseLabel { phase }).set(count);
    }
    registry.register("node_connected", "A session is live", connected);
    registry.register("node_in_sync", "Both sets are equal on both ends", in_sync);
    registry.register("node_cloned", "Two boards use the identity", cloned);
    registry.register("node_refused_objects", "Objects the node refused", refused);
    registry.register(
        "node_container_restarts",
        "Restarts of the containers that the node reports",
        restarts,
    );
    registry.register("pods", "Reported pods by phase", pods);
    desired(&mut registry, status);
    certificates(&mut registry, views, cas, unix_s());
    records(&mut registry, view);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}
