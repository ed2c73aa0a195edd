//! The agent, composed: each part owns one noun, this file passes inputs to them and owns the timers.

use alloc::collections::VecDeque;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use edge_proto::Millis;
use edge_proto::call::CODE_FAILED;
use edge_proto::hash::Hash16;
use edge_proto::key::{Key, Kind, Uid};
use edge_proto::object::{NodePolicy, NodeStatus, PodStatus};

use crate::calls::{self, Answer, Call, Log, Refusal};
use crate::config_objects::ConfigObjects;
use crate::flash::{Budget, Counters, Risk};
use crate::limits::{DISCOVER_RETRY_MS, LOG_TRIM_MS, WEAR_MS};
use crate::node::Node;
use crate::pods::Pods;
use crate::port::{AgentConfig, CertificateInput, Input, Output};
use crate::timer::{Timer, Timers};
use crate::uplink::Uplink;

/// Condition: what was stored of the desired set was damaged or lost.
const STORE_DAMAGED: &str = "StoreDamaged";
/// Condition: what runs cannot be known, so nothing is started or ended.
const CONTAINERS_UNKNOWN: &str = "ContainersUnknown";
/// Message of the condition `FlashAtRisk`, human-readable.
const FLASH_AT_RISK: &str =
    "more is written than the board file's flash-mib-per-day: see edge-min status";

/// All decisions of one node. Each part states its own bound.
#[derive(Debug)]
pub struct Agent {
    pods: Pods,
    objects: ConfigObjects,
    node: Node,
    policy: NodePolicy,
    uplink: Uplink,
    flash: Budget,
    trims_logs: bool,
    timers: Timers,
    outputs: VecDeque<Output>,
}

impl Agent {
    /// Starts without any object, container or identity.
    #[must_use]
    pub fn new(config: AgentConfig) -> Self {
        let unconfirmed = config.damage.is_some() || config.empty;
        let mut node = Node::new(config.facts);
        node.set_fault(STORE_DAMAGED, config.damage);
        Self {
            pods: Pods::new(unconfirmed, config.host_paths),
            objects: ConfigObjects::default(),
            node,
            policy: NodePolicy::default(),
            uplink: Uplink::default(),
            flash: Budget::new(config.flash_bytes_per_day),
            trims_logs: config.trims_logs,
            timers: Timers::default(),
            outputs: VecDeque::new(),
        }
    }

    /// Handles one event.
    pub fn handle(&mut self, now: Millis, input: Input) {
        let outputs = &mut self.outputs;
        match input {
            Input::Desired(key, payload) => self.handle_desired(key, payload),
            Input::Ended {
                uid,
                container,
                spec,
                code,
                oom,
            } => self.pods.handle_ended(&uid, &container, spec, code, oom),
            Input::NotDiscovered(reason) => self.handle_not_discovered(now, reason),
            Input::Discovered { containers, pods } => {
                self.node.set_fault(CONTAINERS_UNKNOWN, None);
                self.pods
                    .handle_discovered(now, containers, pods, &self.objects, outputs);
            }
            Input::PodPrepared(uid, result) => {
                self.pods
                    .handle_prepared(now, uid, result, &self.objects, outputs);
            }
            Input::Started {
                uid,
                container,
                run,
                spec,
                result,
            } => {
                self.pods
                    .handle_started(now, uid, &container, (run, spec), result, outputs);
            }
            Input::Exited {
                uid,
                container,
                code,
                oom,
            } => {
                self.pods
                    .handle_exited(now, uid, &container, (code, oom), outputs);
            }
            Input::Removed(uid, name, result) => {
                self.pods.handle_removed(now, uid, name, result, outputs);
            }
            Input::PodRemoved(uid, result) => {
                self.pods.handle_pod_removed(now, uid, result, outputs);
            }
            Input::Uplink(input) => {
                let spread_ms = self.policy.reconnect_spread_ms();
                self.uplink
                    .handle(now, input, spread_ms, &mut self.timers, outputs);
                self.review_certificate(now);
            }
            Input::Certificate(input) => {
                self.uplink
                    .handle_certificate(now, input, &mut self.timers, outputs);
                self.review_certificate(now);
            }
            Input::CloudTime(unix_s) => self.uplink.handle_cloud_time(unix_s, outputs),
            Input::Time(time) => {
                self.uplink.handle_time(now, time);
                self.review_certificate(now);
            }
            // Comes with every event, and mostly changes nothing.
            Input::Flash(counters) if !self.handle_flash(now, &counters) => return,
            Input::Flash(_) => {}
            Input::FlashWorn(worn) => {
                let worn = Some(worn).filter(|worn| !worn.is_empty());
                self.node.set_fault("FlashWorn", worn);
            }
            Input::Fault(fault, message) => {
                self.node.set_fault(fault.condition(), message);
            }
            Input::Confirmed => self.handle_confirmed(),
            Input::Shutdown => self.pods.shut_down(),
            Input::Tick => self.run_flash(now),
        }
        self.settle(now);
    }

    /// What follows from what has changed.
    fn settle(&mut self, now: Millis) {
        if self.timers.expired(Timer::Discover, now) {
            self.outputs.push_back(Output::Discover);
        }
        self.pods.reconcile(now, &self.objects, &mut self.outputs);
        if self.admit_over_cap() {
            self.pods.reconcile(now, &self.objects, &mut self.outputs);
        }
        self.uplink.run(now, &mut self.timers, &mut self.outputs);
        self.pods.report(&mut self.outputs);
        self.node.report(&mut self.outputs);
        self.trim_logs(now);
        self.timers.set(Timer::Pods, self.pods.deadline());
    }

    /// The next output; `None` until the next `handle`.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call `handle` with [`Input::Tick`].
    #[must_use]
    pub fn deadline(&self) -> Option<Millis> {
        self.timers.earliest()
    }

    /// Hash of a desired container's spec, which a start of it would use.
    #[must_use]
    pub fn spec_hash(&self, uid: &Uid, container: &str) -> Option<Hash16> {
        self.pods.spec_hash(uid, container)
    }

    /// The cloud's policy for this node.
    #[must_use]
    pub const fn policy(&self) -> &NodePolicy {
        &self.policy
    }

    /// A call of the cloud: what it is answered with.
    ///
    /// # Errors
    /// Why it is not, for the caller.
    pub fn call(&mut self, now: Millis, method: u16, args: &[u8]) -> Result<Answer, Refusal> {
        match Call::read(method, args)? {
            Call::Logs(request) => {
                let log = self.log(&request.namespace, &request.pod, &request.container);
                let log = log.map_err(|reason| (CODE_FAILED, reason))?;
                Ok(Answer::Log(request, log))
            }
            Call::Certificate { renew } => {
                if renew {
                    self.handle(now, Input::Certificate(CertificateInput::Wanted));
                }
                let end = self.uplink.proven_not_after();
                Ok(Answer::Bytes(end.to_le_bytes().into()))
            }
        }
    }

    /// The log of a container; an empty name is the pod's only one.
    ///
    /// # Errors
    /// There is none, for a person.
    pub fn log(&self, namespace: &str, pod: &str, container: &str) -> Result<Log, String> {
        calls::find_log(self.statuses(), (namespace, pod, container))
    }

    /// Statuses of all pods on the board.
    pub fn statuses(&self) -> impl Iterator<Item = PodStatus> {
        self.pods.statuses()
    }

    /// Status of the node as it is reported.
    #[must_use]
    pub fn node_status(&self) -> NodeStatus {
        self.node.status()
    }

    /// Whether a session is live.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        self.uplink.is_live()
    }

    /// Why there is no session, human-readable; empty while there is one.
    #[must_use]
    pub fn link_error(&self) -> &str {
        self.uplink.error()
    }

    /// When the node's certificate expires and when it is due for renewal, seconds since 1970, 0 before the
    /// join; and why the last renewal failed.
    #[must_use]
    pub fn certificate(&self) -> (u64, u64, &str) {
        self.uplink.certificate()
    }

    /// What is written to the flash, and the state of today's budget.
    #[must_use]
    pub const fn flash(&self) -> &Budget {
        &self.flash
    }

    fn handle_not_discovered(&mut self, now: Millis, reason: String) {
        self.node.set_fault(CONTAINERS_UNKNOWN, Some(reason));
        let again = now.saturating_add(DISCOVER_RETRY_MS);
        self.timers.set(Timer::Discover, Some(again));
    }

    /// The cloud has sent again what was lost.
    fn handle_confirmed(&mut self) {
        self.pods.confirm();
        self.node.set_fault(STORE_DAMAGED, None);
        self.outputs.push_back(Output::RepairStore);
    }

    /// Returns whether anything has changed.
    fn handle_flash(&mut self, now: Millis, counters: &Counters) -> bool {
        let changed = self.flash.handle(now, counters);
        self.timers.set(Timer::FlashHour, self.flash.deadline());
        if let Some(risk) = changed {
            let at_risk = (risk != Risk::None).then(|| FLASH_AT_RISK.to_string());
            self.node.set_fault("FlashBudgetAtRisk", at_risk);
            let over = Output::FlashOverBudget(risk == Risk::Over);
            self.outputs.push_back(over);
        }
        if self.timers.get(Timer::Wear).is_none_or(|at| at <= now) {
            let next = now.saturating_add(WEAR_MS);
            self.timers.set(Timer::Wear, Some(next));
            self.outputs.push_back(Output::ReadWear);
        }
        changed.is_some()
    }

    /// Handles the timers of the flash, which also run when nothing is written.
    fn run_flash(&mut self, now: Millis) {
        let due = |timer| self.timers.get(timer).is_some_and(|at| at <= now);
        if due(Timer::FlashHour) || due(Timer::Wear) {
            let counters = *self.flash.counters();
            self.handle_flash(now, &counters);
        }
    }

    fn review_certificate(&mut self, now: Millis) {
        if let Some(condition) = self.uplink.condition(now) {
            self.node.set_condition(condition);
        }
    }

    fn handle_desired(&mut self, key: Key, payload: Option<Vec<u8>>) {
        self.node.accepted(&key);
        let result = match &key {
            Key::Uid(Kind::Pod, uid) => {
                let pods_max = self.node.pods_max();
                self.pods.put(*uid, payload.as_deref(), pods_max)
            }
            Key::Name(kind @ (Kind::ConfigMap | Kind::Secret), namespace, name) => {
                let secret = *kind == Kind::Secret;
                self.objects
                    .put(namespace, name, secret, payload.as_deref())
                    .map(|()| {
                        let of = (namespace.as_str(), name.as_str(), secret);
                        self.pods
                            .config_changed(of, &self.objects, &mut self.outputs);
                    })
            }
            Key::Name(Kind::NodePolicy, ..) => {
                let decoded = payload.as_deref().map(NodePolicy::decode).transpose();
                decoded
                    .map_err(|error| error.to_string())
                    .map(|policy| self.policy = policy.unwrap_or_default())
            }
            _ if payload.is_none() => Ok(()),
            _ => Err("this agent does not know the kind; upgrade it".to_string()),
        };
        if let Err(reason) = result {
            self.refuse(key, payload.as_deref(), reason);
        }
    }

    fn refuse(&mut self, key: Key, payload: Option<&[u8]>, reason: String) {
        let hash = payload.map(Hash16::of).unwrap_or_default();
        self.node.refuse(key, hash, reason, &mut self.outputs);
    }

    /// Accepts pods that were refused because of the cap, as far as the cap allows now.
    fn admit_over_cap(&mut self) -> bool {
        let mut admitted = false;
        let pods_max = self.node.pods_max();
        while let Some((uid, bytes)) = self.pods.next_over_cap(pods_max) {
            self.node.accepted(&Key::pod(uid));
            admitted |= self.pods.put(uid, Some(&bytes), pods_max).is_ok();
        }
        admitted
    }

    /// While containers run, their logs are cut every [`LOG_TRIM_MS`].
    fn trim_logs(&mut self, now: Millis) {
        let due = self.timers.expired(Timer::TrimLogs, now);
        if due {
            self.pods.trim_logs(&mut self.outputs);
        }
        if !self.trims_logs || !self.pods.any_running() {
            self.timers.set(Timer::TrimLogs, None);
        } else if self.timers.get(Timer::TrimLogs).is_none() {
            let at = now.saturating_add(LOG_TRIM_MS);
            self.timers.set(Timer::TrimLogs, Some(at));
        }
    }
}
