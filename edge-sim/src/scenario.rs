//! The settings of a run: the fleet, the link, the cloud, the faults as rates, and events at
//! fixed times. A scenario file is this in TOML; every key is optional.

use serde::Deserialize;

use crate::rng::{PerHour, Share};

/// Nodes that a run may have.
pub const NODES_MAX: u32 = 1_000_000;
/// Replicas that a run may have.
pub const REPLICAS_MAX: usize = 16;

/// A whole scenario.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Scenario {
    /// Nodes, unless the command line says otherwise.
    pub nodes: u32,
    /// Seconds of virtual time with faults.
    pub seconds: u64,
    /// Seconds after them in which everything has to converge.
    pub settle_seconds: u64,
    /// Nodes start at random within so many seconds.
    pub boot_spread_s: u64,
    /// A node that could be connected and is not for so many seconds is starved.
    pub starve_s: u64,
    /// Nodes that belong to one station.
    pub station_nodes: u32,
    /// Provinces; stations are distributed to them evenly.
    pub provinces: u32,
    /// Pods that each node starts with.
    pub pods: u32,
    /// ConfigMaps that each node starts with; each pod mounts one.
    pub config_maps: u32,
    /// Bytes of each class of an outbox. From 1 MiB on it must never become full.
    pub outbox_bytes: u64,
    /// Bytes that a board may write to its flash in a day; without it there is no budget.
    pub flash_bytes_per_day: Option<u64>,
    /// Lifetime of the nodes' certificates, seconds. Without this they do not expire.
    pub certificate_life_s: Option<u64>,
    /// `reconnect_spread_s` of the `NodePolicy`: spread of first attempts after a lost link, seconds.
    pub reconnect_spread_s: u32,
    /// Share of ConfigMap contents that are too large for a change frame.
    pub large: Share,
    /// Link of a node.
    pub link: Link,
    /// The MQTT broker.
    pub broker: Broker,
    /// The cloud end.
    pub cloud: Cloud,
    /// Changes of the desired state.
    pub workload: Workload,
    /// Random faults.
    pub faults: Faults,
    /// Events at fixed times.
    pub step: Vec<Step>,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            nodes: 20,
            seconds: 600,
            settle_seconds: 3_600,
            boot_spread_s: 10,
            starve_s: 1_800,
            station_nodes: 10,
            provinces: 30,
            pods: 2,
            config_maps: 1,
            certificate_life_s: None,
            reconnect_spread_s: 0,
            outbox_bytes: 64 << 20,
            flash_bytes_per_day: None,
            large: Share::default(),
            link: Link::default(),
            broker: Broker::default(),
            cloud: Cloud::default(),
            workload: Workload::default(),
            faults: Faults::default(),
            step: Vec::new(),
        }
    }
}

/// A node's link to the broker.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Link {
    /// One way, milliseconds.
    pub delay_ms: u64,
    /// Random addition to the delay, milliseconds.
    pub jitter_ms: u64,
    /// Kilobits a second, each way.
    pub bandwidth_kbit: u64,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            delay_ms: 40,
            jitter_ms: 20,
            bandwidth_kbit: 3_000,
        }
    }
}

/// Settings of the MQTT broker.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Broker {
    /// Connections that it opens in a second; TLS handshakes take time.
    pub accept_per_s: u64,
    /// Connections that may wait to be opened; further ones are refused.
    pub accept_queue: u64,
    /// MQTT keepalive of the nodes, seconds.
    pub keepalive_s: u64,
    /// Frames that wait for one node; further ones are lost.
    pub queue: u32,
}

impl Default for Broker {
    fn default() -> Self {
        Self {
            accept_per_s: 1_000,
            accept_queue: 5_000,
            keepalive_s: 60,
            queue: 128,
        }
    }
}

/// Settings of the cloud end.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Cloud {
    /// Number of replicas.
    pub replicas: usize,
    /// Frames that one replica handles in a second.
    pub frames_per_s: u64,
    /// Sessions that one replica opens in a second; the others get a time to retry.
    pub admissions_per_s: u32,
    /// Seconds after which the shards of a silent replica go to another.
    pub lease_s: u64,
    /// Seconds after which a silent node is probed.
    pub silence_s: u64,
    /// A write to the cloud's store takes up to so many milliseconds.
    pub store_ms: u64,
}

impl Default for Cloud {
    fn default() -> Self {
        Self {
            replicas: 3,
            frames_per_s: 20_000,
            admissions_per_s: 200,
            lease_s: 15,
            silence_s: 1_800,
            store_ms: 30,
        }
    }
}

/// Changes of the desired state, for each node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Workload {
    /// A pod is added.
    pub create: PerHour,
    /// A pod gets another spec, under its UID or as a new pod.
    pub update: PerHour,
    /// A pod is deleted.
    pub delete: PerHour,
    /// A ConfigMap gets other contents.
    pub config: PerHour,
    /// The rates in a node's policy change.
    pub policy: PerHour,
    /// A client requests a log.
    pub call: PerHour,
    /// A workload writes a record. Without this there is no outbox.
    pub record: Option<PerHour>,
}

/// Faults as rates. All zero: no faults.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Faults {
    /// Frames lost on a link.
    pub loss: Share,
    /// Frames that arrive twice.
    pub duplication: Share,
    /// Frames that others overtake.
    pub reordering: Share,
    /// By up to so many milliseconds.
    pub reorder_ms: u64,
    /// Each station is cut off.
    pub partition_station: PerHour,
    /// Each province is cut off.
    pub partition_province: PerHour,
    /// For up to so many seconds.
    pub partition_s: u64,
    /// The broker restarts; every connection breaks and no will is sent.
    pub broker_restart: PerHour,
    /// It is away for up to so many seconds.
    pub broker_down_s: u64,
    /// Each replica crashes.
    pub replica_loss: PerHour,
    /// It is away for up to so many seconds.
    pub replica_down_s: u64,
    /// Each replica stops, and continues later without being aware of it.
    pub replica_pause: PerHour,
    /// For up to so many seconds.
    pub replica_pause_s: u64,
    /// Each node loses power, and all state that is not durable.
    pub power_cut: PerHour,
    /// For up to so many seconds.
    pub power_off_s: u64,
    /// Each agent is killed and started again; its containers continue.
    pub agent_crash: PerHour,
    /// Each node stops, and continues later.
    pub stall: PerHour,
    /// For up to so many seconds.
    pub stall_s: u64,
    /// Slow nodes.
    pub slow: Share,
    /// Factor by which the actions of a slow node take longer.
    pub slow_factor: u64,
    /// Each node's store is lost, with its power.
    pub store_wipe: PerHour,
    /// Each node's wall clock jumps.
    pub clock_jump: PerHour,
    /// Each replica's wall clock jumps.
    pub replica_clock_jump: PerHour,
    /// By up to so many seconds, either way.
    pub clock_jump_s: u64,
    /// Compromised nodes: they send arbitrary, altered and replayed frames, on any topic.
    pub compromised: Share,
    /// Each compromised node sends one.
    pub attack: PerHour,
    /// Containers that do not start.
    pub start_failure: Share,
    /// Writes of a board's store that fail; they are retried.
    pub write_failure: Share,
    /// Remains of containers that cannot be removed at once.
    pub remove_failure: Share,
    /// On each node a container ends.
    pub container_crash: PerHour,
    /// Containers that SIGTERM does not end.
    pub ignore_term: Share,
    /// Batches that the sink refuses.
    pub sink_failure: Share,
    /// Each node is revoked.
    pub revoke: PerHour,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            loss: Share::default(),
            duplication: Share::default(),
            reordering: Share::default(),
            reorder_ms: 3_000,
            partition_station: PerHour::default(),
            partition_province: PerHour::default(),
            partition_s: 300,
            broker_restart: PerHour::default(),
            broker_down_s: 30,
            replica_loss: PerHour::default(),
            replica_down_s: 120,
            replica_pause: PerHour::default(),
            replica_pause_s: 120,
            power_cut: PerHour::default(),
            power_off_s: 60,
            agent_crash: PerHour::default(),
            stall: PerHour::default(),
            stall_s: 60,
            slow: Share::default(),
            slow_factor: 20,
            store_wipe: PerHour::default(),
            clock_jump: PerHour::default(),
            replica_clock_jump: PerHour::default(),
            clock_jump_s: 86_400,
            compromised: Share::default(),
            attack: PerHour::milli(60_000),
            start_failure: Share::default(),
            write_failure: Share::default(),
            remove_failure: Share::default(),
            container_crash: PerHour::default(),
            ignore_term: Share::default(),
            sink_failure: Share::default(),
            revoke: PerHour::default(),
        }
    }
}

/// One event at a fixed time.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Step {
    /// Seconds from the start.
    pub at_s: u64,
    /// Kind of event.
    pub act: Act,
    /// Restricted to the first so many provinces; 0 is the whole fleet.
    #[serde(default)]
    pub provinces: u32,
    /// Restricted to a random share of those nodes.
    #[serde(default = "all")]
    pub share: Share,
    /// Index of the replica.
    #[serde(default)]
    pub replica: usize,
    /// Duration, seconds.
    #[serde(default)]
    pub for_s: u64,
    /// Time over which the nodes are spread, seconds.
    #[serde(default)]
    pub over_s: u64,
    /// Jump of the clock, seconds.
    #[serde(default)]
    pub by_s: i64,
}

const fn all() -> Share {
    Share::ALL
}

/// Effect of a [`Step`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Act {
    /// Nodes are without power for `for-s`.
    PowerOff,
    /// Nodes lose their store, and their power for a moment.
    StoreWipe,
    /// The provinces are cut off for `for-s`.
    Partition,
    /// The broker is down for `for-s`.
    BrokerRestart,
    /// `replica` is down for `for-s`.
    ReplicaLoss,
    /// `replica` stops for `for-s`.
    ReplicaPause,
    /// The wall clock of `replica` jumps by `by-s`.
    ReplicaClock,
    /// Nodes get a new version of a pod within `over-s`.
    RollOut,
    /// Nodes are revoked.
    Revoke,
    /// A second board with their identity and a copy of their store runs for `for-s`.
    Clone,
    /// The wall clocks of nodes jump by `by-s`.
    Clock,
}

impl Scenario {
    /// Reads a scenario file.
    ///
    /// # Errors
    /// What is wrong in it, human-readable.
    pub fn parse(text: &str) -> Result<Self, String> {
        let scenario: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        scenario.check()?;
        Ok(scenario)
    }

    /// # Errors
    /// An invalid number, human-readable.
    pub fn check(&self) -> Result<(), String> {
        let positive = [
            ("station-nodes", u64::from(self.station_nodes)),
            ("provinces", u64::from(self.provinces)),
            ("link.bandwidth-kbit", self.link.bandwidth_kbit),
            ("broker.accept-per-s", self.broker.accept_per_s),
            ("broker.keepalive-s", self.broker.keepalive_s),
            ("cloud.frames-per-s", self.cloud.frames_per_s),
            ("cloud.lease-s", self.cloud.lease_s),
            ("cloud.silence-s", self.cloud.silence_s),
            ("faults.slow-factor", self.faults.slow_factor),
            ("certificate-life-s", self.certificate_life_s.unwrap_or(1)),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(format!("{name} must not be 0"));
        }
        if !(1..=NODES_MAX).contains(&self.nodes) {
            return Err(format!("nodes must be from 1 to {NODES_MAX}"));
        }
        if !(1..=REPLICAS_MAX).contains(&self.cloud.replicas) {
            return Err(format!("cloud.replicas must be from 1 to {REPLICAS_MAX}"));
        }
        let replica = |step: &&Step| step.replica >= self.cloud.replicas;
        if let Some(step) = self.step.iter().find(replica) {
            return Err(format!("there is no replica {}", step.replica));
        }
        Ok(())
    }
}
