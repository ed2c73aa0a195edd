//! NodePolicies: limits and settings of a node's link.

use std::collections::BTreeMap;

use edge_proto::lanes::{BLOB_SHARE_PERCENT_MAX, Lane};
use edge_proto::object::{LaneLimit, NodePolicy};

use super::pod::labels;
use super::quantity::{label_name, units};
use super::reader::{Field, Object};

/// Lowest rate: with less a frame would take seconds, and a session would never open.
const BITS_PER_S_MIN: u64 = 8_000;
/// Highest rate.
const BITS_PER_S_MAX: u64 = 10_000_000_000;
/// Longest spread of reconnects, seconds: the maximum of the agent.
const SPREAD_S_MAX: u32 = 600;
/// Names of lanes in the manifest. Control has no limit.
const LANES: &[(&str, Lane)] = &[
    ("state", Lane::State),
    ("tolls", Lane::Toll),
    ("streams", Lane::Stream),
    ("calls", Lane::Call),
    ("blobs", Lane::Blob),
];

/// A policy and the nodes to which it applies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Applies to this node only.
    pub node: Option<String>,
    /// Applies to nodes with these labels.
    pub selector: BTreeMap<String, String>,
    /// Payload for the node.
    pub policy: NodePolicy,
}

/// Reads the spec of a NodePolicy.
pub(super) fn spec(field: &Field<'_>) -> Option<Policy> {
    let mut spec = field.object()?;
    let node = spec
        .take_text("nodeName")
        .and_then(|f| f.checked(label_name));
    let selector = spec
        .take("nodeSelector")
        .map(|f| labels(&f))
        .unwrap_or_default();
    let mut policy = NodePolicy::default();
    if let Some(mut bandwidth) = spec.take("bandwidth").and_then(|f| f.object()) {
        policy.bandwidth_up = rate(&mut bandwidth, "up");
        policy.bandwidth_down = rate(&mut bandwidth, "down");
        bandwidth.finish(&[]);
    }
    policy.blob_share_percent = spec
        .take("blobShare")
        .and_then(|f| f.integer(1, BLOB_SHARE_PERCENT_MAX.into()))
        .and_then(|percent| u8::try_from(percent).ok());
    policy.reconnect_spread_s = spec
        .take("reconnectSpreadSeconds")
        .and_then(|f| f.integer(1, SPREAD_S_MAX));
    for item in spec
        .take("limits")
        .map(|f| f.list(LANES.len()))
        .unwrap_or_default()
    {
        let limit = limit(&item);
        let limits = &mut policy.limits;
        match limit {
            Some(limit) if limits.iter().any(|other| other.lane == limit.lane) => {
                item.refuse("limits a lane a second time");
            }
            Some(limit) => limits.push(limit),
            None => {}
        }
    }
    spec.finish(&[]);
    Some(Policy {
        node,
        selector,
        policy,
    })
}

fn limit(item: &Field<'_>) -> Option<LaneLimit> {
    let mut object = item.object()?;
    let name = object.require("lane").and_then(|f| Some((f.text()?, f)));
    let (up, down) = (rate(&mut object, "up"), rate(&mut object, "down"));
    object.finish(&[]);
    let (name, field) = name?;
    let Some((_, lane)) = LANES.iter().find(|(known, _)| *known == name) else {
        field.refuse("must be state, tolls, streams, calls or blobs");
        return None;
    };
    Some(LaneLimit {
        lane: *lane as u8,
        up: up.unwrap_or(0),
        down: down.unwrap_or(0),
    })
}

/// A rate, bits per second, as a quantity.
fn rate(object: &mut Object<'_>, key: &str) -> Option<u64> {
    let field = object.take(key)?;
    let rate =
        units(&field.scalar()?).filter(|rate| (BITS_PER_S_MIN..=BITS_PER_S_MAX).contains(rate));
    if rate.is_none() {
        field.refuse("must be bits per second from 8k to 10G, for example 3M");
    }
    rate
}

#[cfg(test)]
mod tests {
    use edge_proto::object::LaneLimit;

    use super::super::{Accepted, Manifests};

    fn read(spec: &str) -> Manifests {
        let mut manifests = Manifests::default();
        let head = "apiVersion: edge-min.io/v1\nkind: NodePolicy\nmetadata: {name: slow}\nspec: ";
        manifests.add_file("policy.yaml", &format!("{head}{spec}\n"));
        manifests
    }

    #[test]
    fn a_policy_is_read() {
        let manifests = read(
            "{nodeSelector: {line: dsl}, bandwidth: {up: 200k, down: 1M}, blobShare: 10, \
             reconnectSpreadSeconds: 60, limits: [{lane: blobs, down: 500k}, {lane: tolls, up: 8k}]}",
        );
        assert_eq!(manifests.problems, []);
        let Some((_, Accepted::Policy(policy))) = manifests.objects.into_values().next() else {
            panic!("no policy");
        };
        assert_eq!(policy.node, None);
        assert_eq!(policy.selector["line"], "dsl");
        let policy = policy.policy;
        assert_eq!(policy.bandwidth_up, Some(200_000));
        assert_eq!(policy.bandwidth_down, Some(1_000_000));
        assert_eq!(policy.blob_share_percent, Some(10));
        assert_eq!(policy.reconnect_spread_s, Some(60));
        let limit = |lane, up, down| LaneLimit { lane, up, down };
        assert_eq!(policy.limits, [limit(5, 0, 500_000), limit(2, 8_000, 0)]);
    }

    #[test]
    fn each_refusal_of_a_policy_names_its_field() {
        for (spec, path) in [
            ("{nodeName: A}", "spec.nodeName"),
            ("{bandwith: {up: 1M}}", "spec.bandwith"),
            ("{bandwidth: {up: fast}}", "spec.bandwidth.up"),
            ("{bandwidth: {down: 7999}}", "spec.bandwidth.down"),
            ("{bandwidth: {down: 11G}}", "spec.bandwidth.down"),
            ("{bandwidth: {left: 1M}}", "spec.bandwidth.left"),
            ("{blobShare: 41}", "spec.blobShare"),
            ("{reconnectSpreadSeconds: 0}", "spec.reconnectSpreadSeconds"),
            ("{limits: [{lane: control, up: 1M}]}", "spec.limits[0].lane"),
            ("{limits: [{up: 1M}]}", "spec.limits[0].lane"),
            ("{limits: [{lane: calls, rate: 1M}]}", "spec.limits[0].rate"),
            ("{limits: [{lane: calls}, {lane: calls}]}", "spec.limits[1]"),
        ] {
            let manifests = read(spec);
            let paths: Vec<_> = manifests
                .problems
                .iter()
                .map(|one| one.path.as_str())
                .collect();
            assert_eq!(paths, [path], "{spec}");
            assert!(manifests.objects.is_empty());
        }
    }
}
