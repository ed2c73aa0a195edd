//! Desired and reported objects of the nodes: the durable store behind the
//! replicas, and the changes that operators make in it.

use std::collections::BTreeMap;
use std::sync::Arc;

use edge_proto::hash::sha256;
use edge_proto::key::{Key, Kind, Uid};
use edge_proto::lanes::{BLOB_SHARE_PERCENT_MAX, LANES, Limits};
use edge_proto::limits::SET_OBJECTS_MAX;
use edge_proto::object::{
    ConfigMap, Container, EnvValue, EnvVar, LaneLimit, NodePolicy, NodeStatus, Pod, RuntimeClass,
    Volume, VolumeMount, VolumeSource,
};
use edge_proto::session::Payload;

use crate::board::PODS_MAX;
use crate::certs::Registered;
use crate::event::Changes;
use crate::outbox::Ledger;
use crate::rng::Rng;
use crate::scenario::Scenario;
use crate::world::World;

const NAMESPACE: &str = "toll";
/// Pods that may be desired of one node: the rest is for old ones that are ending.
const PODS_DESIRED_MAX: usize = PODS_MAX as usize / 2;
/// Smallest rate of a policy, bits per second.
const LINK_BITS_MIN: u64 = 30_000;
/// Bytes of a large ConfigMap: three pieces.
const LARGE_BYTES: usize = 9_000;

/// One node in the durable store.
#[derive(Clone, Debug)]
pub(crate) struct StoredNode {
    pub(crate) shard: u8,
    pub(crate) desired: BTreeMap<Key, Arc<[u8]>>,
    pub(crate) reported: BTreeMap<Key, Vec<u8>>,
    /// Epoch of the last write: a lower one is refused.
    pub(crate) epoch: u64,
    pub(crate) revoked: Option<u64>,
    /// When two boards were detected with this identity.
    pub(crate) cloned: Option<u64>,
    /// Both ends reported last that both sets are equal; not counted among the unconverged.
    pub(crate) converged: bool,
    /// Boot ids that were reported, newest first.
    boots: [String; 2],
    made: u32,
    /// The registry's state of its certificates; `None` if certificates do not expire.
    pub(crate) registered: Option<Registered>,
    /// The sink's side of the stream lane.
    pub(crate) ledger: Ledger,
}

impl StoredNode {
    pub(crate) fn new(scenario: &Scenario, node: u32, shard: u8, rng: &mut Rng) -> Self {
        let mut stored_node = Self {
            shard,
            desired: BTreeMap::new(),
            reported: BTreeMap::new(),
            epoch: 0,
            revoked: None,
            cloned: None,
            converged: false,
            boots: [String::new(), String::new()],
            made: 0,
            registered: None,
            ledger: Ledger::default(),
        };
        if scenario.reconnect_spread_s > 0 {
            let policy = NodePolicy {
                reconnect_spread_s: Some(scenario.reconnect_spread_s),
                ..NodePolicy::default()
            };
            stored_node
                .desired
                .insert(policy_key(), Arc::from(policy.encode()));
        }
        for number in 0..scenario.config_maps {
            let large = rng.chance(scenario.large);
            let key = config_key(number);
            stored_node.desired.insert(key, config(rng, large));
        }
        for _ in 0..scenario.pods.min(PODS_DESIRED_MAX as u32) {
            let pod = stored_node.new_pod(node, scenario.config_maps, rng);
            stored_node
                .desired
                .insert(Key::pod(pod.uid), Arc::from(pod.encode()));
        }
        stored_node
    }

    fn new_pod(&mut self, node: u32, config_maps: u32, rng: &mut Rng) -> Pod {
        self.made += 1;
        let number = self.made;
        let name = format!("pod-{number}");
        let uid = Uid(sha256(format!("{node} {name}").as_bytes()).short().0);
        let config = (config_maps > 0).then(|| rng.below(u64::from(config_maps)));
        let volumes = config.map(|number| Volume {
            name: "config".to_owned(),
            source: VolumeSource::ConfigMap {
                name: format!("config-{number}"),
                items: Vec::new(),
                mode: 0,
                optional: false,
            },
        });
        let mount = config.map(|_| VolumeMount {
            volume: "config".to_owned(),
            path: "/etc/app".to_owned(),
            sub_path: String::new(),
            read_only: true,
        });
        let containers = if rng.below(5) == 0 { 2 } else { 1 };
        let container = |index| Container {
            name: format!("app-{index}"),
            command: vec!["/bin/app".to_owned()],
            env: vec![version(0)],
            mounts: mount.iter().cloned().collect(),
            ..Container::default()
        };
        Pod {
            uid,
            namespace: NAMESPACE.to_owned(),
            name,
            runtime: RuntimeClass::Process,
            grace_s: Some(5),
            containers: (0..containers).map(container).collect(),
            volumes: volumes.into_iter().collect(),
            ..Pod::default()
        }
    }

    fn policy(&self) -> NodePolicy {
        let policy = self.desired.get(&policy_key());
        let policy = policy.and_then(|bytes| NodePolicy::decode(bytes).ok());
        policy.unwrap_or_default()
    }

    /// Limits of the node's policy for frames to it.
    pub(crate) fn limits_down(&self) -> Limits {
        self.policy().limits_down()
    }

    /// Pods that are to run.
    pub(crate) fn pods(&self) -> impl Iterator<Item = Pod> {
        let pods = self
            .desired
            .iter()
            .filter(|(key, _)| key.kind() == Kind::Pod);
        pods.filter_map(|(_, payload)| Pod::decode(payload).ok())
            .filter(|pod| !pod.terminating)
    }
}

fn policy_key() -> Key {
    Key::Name(Kind::NodePolicy, String::new(), String::new())
}

fn config_key(number: u32) -> Key {
    Key::Name(
        Kind::ConfigMap,
        NAMESPACE.to_owned(),
        format!("config-{number}"),
    )
}

fn config(rng: &mut Rng, large: bool) -> Arc<[u8]> {
    let bytes = if large { LARGE_BYTES } else { 40 };
    let seed = rng.draw().to_le_bytes();
    let value = seed.iter().copied().cycle().take(bytes).collect();
    let data = vec![("lane".to_owned(), value)];
    Arc::from(ConfigMap { data }.encode())
}

fn version(number: u64) -> EnvVar {
    EnvVar {
        name: "VERSION".to_owned(),
        value: EnvValue::Literal(number.to_string()),
    }
}

impl World {
    fn set_desired(&mut self, node: u32, key: Key, payload: Option<Arc<[u8]>>) {
        self.stats.changes += 1;
        let stored_node = &mut self.stored_nodes[node as usize];
        match payload {
            Some(payload) => stored_node.desired.insert(key.clone(), payload),
            None => stored_node.desired.remove(&key),
        };
        self.desired_changed(node, &key);
        self.refresh(node);
    }

    fn any_pod(&mut self, node: u32) -> Option<Pod> {
        let pods: Vec<Pod> = self.stored_nodes[node as usize].pods().collect();
        let index = self.rng.index(pods.len());
        pods.into_iter().nth(index)
    }

    /// Adds a pod, if the cap allows it.
    pub(crate) fn create_pod(&mut self, node: u32) {
        let stored_node = &mut self.stored_nodes[node as usize];
        let held = stored_node
            .desired
            .keys()
            .filter(|key| key.kind() == Kind::Pod)
            .count();
        if held < PODS_DESIRED_MAX {
            let pod = stored_node.new_pod(node, self.scenario.config_maps, &mut self.rng);
            self.set_desired(node, Key::pod(pod.uid), Some(Arc::from(pod.encode())));
        }
    }

    /// Gives a pod another spec: under its UID, or as a new pod that replaces the old one.
    pub(crate) fn update_pod(&mut self, node: u32) {
        let Some(mut pod) = self.any_pod(node) else {
            return;
        };
        if self.rng.below(2) == 0 {
            let number = self.rng.below(1_000);
            for container in &mut pod.containers {
                container.env = vec![version(number)];
            }
            self.set_desired(node, Key::pod(pod.uid), Some(Arc::from(pod.encode())));
        } else {
            self.end_pod(node, pod);
            self.create_pod(node);
        }
    }

    /// A pod is deleted.
    pub(crate) fn delete_pod(&mut self, node: u32) {
        if let Some(pod) = self.any_pod(node) {
            self.end_pod(node, pod);
        }
    }

    /// It stays desired as terminating until the node no longer reports it, as in `placement`.
    fn end_pod(&mut self, node: u32, pod: Pod) {
        let key = Key::pod(pod.uid);
        let reported = &self.stored_nodes[node as usize].reported;
        if reported.contains_key(&Key::pod_status(pod.uid)) {
            let pod = Pod {
                terminating: true,
                ..pod
            };
            self.set_desired(node, key, Some(Arc::from(pod.encode())));
        } else {
            self.set_desired(node, key, None);
        }
    }

    pub(crate) fn change_config(&mut self, node: u32) {
        if self.scenario.config_maps > 0 {
            let number = self.rng.below(u64::from(self.scenario.config_maps)) as u32;
            let large = self.rng.chance(self.scenario.large);
            let payload = config(&mut self.rng, large);
            self.set_desired(node, config_key(number), Some(payload));
        }
    }

    /// A node gets other rates: for the link, for a lane, or none.
    pub(crate) fn change_policy(&mut self, node: u32) {
        let mut rate = || match self.rng.below(3) {
            0 => None,
            _ => Some(self.rng.between(LINK_BITS_MIN, 3_000_000)),
        };
        let (bandwidth_up, bandwidth_down) = (rate(), rate());
        let (up, down) = (rate().unwrap_or(0), rate().unwrap_or(0));
        let lane = self.rng.below(LANES as u64) as u8;
        let percent = self.rng.between(1, u64::from(BLOB_SHARE_PERCENT_MAX));
        let policy = NodePolicy {
            bandwidth_up,
            bandwidth_down,
            blob_share_percent: u8::try_from(percent).ok(),
            limits: vec![LaneLimit { lane, up, down }],
            ..self.stored_nodes[node as usize].policy()
        };
        self.set_desired(node, policy_key(), Some(Arc::from(policy.encode())));
    }

    /// What a node reports is stored.
    pub(crate) fn take_report(&mut self, node: u32, changes: &Changes) {
        let now = self.now;
        let stored_node = &mut self.stored_nodes[node as usize];
        let revoked = stored_node.revoked.is_some();
        let mut found = 0;
        for (key, payload) in changes {
            match payload {
                Some(Payload::Inline(bytes)) => {
                    if *key == Key::node_status() && stored_node.saw_boot(bytes) {
                        found += u64::from(stored_node.cloned.replace(now).is_none());
                    }
                    stored_node.reported.insert(key.clone(), bytes.clone());
                }
                _ => drop(stored_node.reported.remove(key)),
            }
        }
        let held = stored_node.reported.len();
        self.stats.twins_found += found;
        self.check_cap(
            node as usize,
            "objects of a reported set",
            held,
            SET_OBJECTS_MAX,
        );
        if revoked {
            self.fail(node, "a report of a revoked node was stored".to_owned());
        }
    }

    /// Terminating pods that the node no longer reports leave the desired set.
    pub(crate) fn drop_ended_pods(&mut self, node: u32) {
        let stored_node = &self.stored_nodes[node as usize];
        let ended: Vec<Key> = stored_node
            .desired
            .iter()
            .filter(|(key, _)| match key {
                Key::Uid(Kind::Pod, uid) => {
                    !stored_node.reported.contains_key(&Key::pod_status(*uid))
                }
                _ => false,
            })
            .filter(|(_, payload)| Pod::decode(payload).is_ok_and(|pod| pod.terminating))
            .map(|(key, _)| key.clone())
            .collect();
        for key in ended {
            self.set_desired(node, key, None);
        }
    }

    /// The node's certificate is refused from now on.
    pub(crate) fn revoke(&mut self, node: u32) {
        let stored_node = &mut self.stored_nodes[node as usize];
        if stored_node.revoked.is_none() {
            stored_node.revoked = Some(self.now);
            self.stats.revoked += 1;
            self.end_sessions(node);
            self.end_connection(node);
            self.refresh(node);
        }
    }
}

impl StoredNode {
    /// As `Node::saw_boot` of edge-cloud: a boot id that is reported again after another one means a second
    /// board.
    fn saw_boot(&mut self, status: &[u8]) -> bool {
        let boot = NodeStatus::decode(status).map_or_else(|_| String::new(), |new| new.boot_id);
        let [newest, other] = &mut self.boots;
        if boot.is_empty() || boot == *newest {
            return false;
        }
        let back = boot == *other;
        *other = std::mem::replace(newest, boot);
        back
    }
}
