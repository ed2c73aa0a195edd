//! The agent composed: desired objects in, pods reconciled, statuses out.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use edge_proto::Millis;
use edge_proto::hash::Hash16;
use edge_proto::key::{Key, Kind, Uid};
use edge_proto::limits::REFUSED_LISTED_MAX;
use edge_proto::object::{
    Condition, ConfigMap, NodePolicy, NodeStatus, Pod, PodStatus, Refused, Secret, VolumeSource,
    clip,
};

use crate::backoff;
use crate::event::Event;
use crate::limits::{ORPHANS_MAX, PODS_MAX};
use crate::pod::{Directory, PodState, spec_hash};
use crate::supervisor::{StartFailure, State, Step, Supervisor};

/// Facts that the core cannot know.
#[derive(Clone, Debug, Default)]
pub struct AgentConfig {
    /// The node's facts; conditions and refusals are filled in by the core.
    pub facts: NodeStatus,
}

/// A container that was on the board when the agent started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovered {
    /// Pod.
    pub uid: Uid,
    /// Container.
    pub container: String,
    /// Spec that it was started with.
    pub spec: Hash16,
    /// Its process; `None` when only its remains are there.
    pub pid: Option<u32>,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// An object of the desired set was put, or removed (`None`).
    Desired(Key, Option<Vec<u8>>),
    /// All that was on the board at start; comes once, after the stored desired set.
    Discovered(Vec<Discovered>),
    /// Answer to `PreparePod`; the error is for a person.
    PodPrepared(Uid, Result<(), String>),
    /// Answer to `Start`.
    Started {
        /// Pod.
        uid: Uid,
        /// Container.
        container: String,
        /// Number of the run, from `Start`.
        run: u32,
        /// The process, or why there is none.
        result: Result<u32, StartFailure>,
    },
    /// A container ended.
    Exited {
        /// Pod.
        uid: Uid,
        /// Container.
        container: String,
        /// Code, 128 + signal; `None` is unknown.
        code: Option<i32>,
        /// The kernel's OOM killer did it.
        oom: bool,
    },
    /// Answer to `Remove`.
    Removed(Uid, String),
    /// Answer to `RemovePod`.
    PodRemoved(Uid),
    /// A node condition was evaluated.
    Condition(Condition),
    /// The deadline passed.
    Tick,
}

/// Signal to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM.
    Terminate,
    /// SIGKILL to the whole container.
    Kill,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Make the pod's directory, volumes and log space; idempotent.
    PreparePod(Uid),
    /// Rewrite the files of ConfigMaps and Secrets in the pod's volumes.
    UpdateConfig(Uid),
    /// Start a container.
    Start {
        /// Pod.
        uid: Uid,
        /// Container.
        container: String,
        /// Number of the run.
        run: u32,
    },
    /// Signal a container.
    Signal {
        /// Pod.
        uid: Uid,
        /// Container.
        container: String,
        /// Which.
        signal: Signal,
    },
    /// Clear what a container left behind.
    Remove {
        /// Pod.
        uid: Uid,
        /// Container.
        container: String,
    },
    /// Clear what a pod left behind.
    RemovePod(Uid),
    /// Put an object into the reported set, or remove it.
    Report(Key, Option<Vec<u8>>),
    /// A line for the log.
    Event(Event),
}

/// The agent.
#[derive(Debug)]
pub struct Agent {
    pods: BTreeMap<Uid, PodState>,
    config_maps: BTreeMap<(String, String), ConfigMap>,
    secrets: BTreeMap<(String, String), Secret>,
    policy: NodePolicy,
    refused: BTreeMap<Key, (Hash16, String)>,
    conditions: BTreeMap<String, Condition>,
    facts: NodeStatus,
    node_reported: Option<Vec<u8>>,
    /// Nothing starts before it is known what runs already.
    discovered: bool,
    outputs: VecDeque<Output>,
}

impl Agent {
    /// An agent that knows nothing yet.
    #[must_use]
    pub fn new(config: AgentConfig) -> Self {
        Self {
            pods: BTreeMap::new(),
            config_maps: BTreeMap::new(),
            secrets: BTreeMap::new(),
            policy: NodePolicy::default(),
            refused: BTreeMap::new(),
            conditions: BTreeMap::new(),
            facts: config.facts,
            node_reported: None,
            discovered: false,
            outputs: VecDeque::new(),
        }
    }

    /// Takes in one thing that happened.
    pub fn handle(&mut self, now: Millis, input: Input) {
        match input {
            Input::Desired(key, payload) => self.handle_desired(key, payload),
            Input::Discovered(found) => self.handle_discovered(now, found),
            Input::PodPrepared(uid, result) => self.handle_prepared(now, uid, result),
            Input::Started {
                uid,
                container,
                run,
                result,
            } => {
                self.handle_started(now, uid, &container, run, result);
            }
            Input::Exited {
                uid,
                container,
                code,
                oom,
            } => {
                self.handle_exited(now, uid, &container, code, oom);
            }
            Input::Removed(uid, name) => {
                if let Some(container) =
                    self.pods.get_mut(&uid).and_then(|pod| pod.container(&name))
                {
                    container.removed();
                }
            }
            Input::PodRemoved(uid) => {
                if let Some(pod) = self.pods.get_mut(&uid)
                    && pod.directory == Directory::Removing
                {
                    pod.directory = Directory::Absent;
                }
            }
            Input::Condition(condition) => {
                self.conditions.insert(condition.name.clone(), condition);
            }
            Input::Tick => {}
        }
        self.reconcile(now);
        self.report();
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call `handle` with [`Input::Tick`].
    #[must_use]
    pub fn deadline(&self) -> Option<Millis> {
        if !self.discovered {
            return None;
        }
        let pods = self.pods.values().flat_map(|pod| {
            let ready = pod.directory == Directory::Ready && pod.missing.is_none();
            let prepare = pod.prepare_failure.as_ref().map(|(_, at)| *at);
            pod.containers
                .iter()
                .filter_map(move |container| {
                    container.deadline(ready && pod.wants(&container.name))
                })
                .chain(prepare)
        });
        pods.min()
    }

    /// A desired pod.
    #[must_use]
    pub fn pod(&self, uid: &Uid) -> Option<&Pod> {
        self.pods.get(uid)?.spec.as_ref()
    }

    /// Spec hash of a desired container: what it is to be started with.
    #[must_use]
    pub fn spec_hash(&self, uid: &Uid, container: &str) -> Option<Hash16> {
        spec_hash(self.pod(uid)?, container)
    }

    /// A ConfigMap of the desired set.
    #[must_use]
    pub fn config_map(&self, namespace: &str, name: &str) -> Option<&ConfigMap> {
        self.config_maps.get(&(namespace.into(), name.into()))
    }

    /// A Secret of the desired set.
    #[must_use]
    pub fn secret(&self, namespace: &str, name: &str) -> Option<&Secret> {
        self.secrets.get(&(namespace.into(), name.into()))
    }

    /// The cloud's policy for this node.
    #[must_use]
    pub const fn policy(&self) -> &NodePolicy {
        &self.policy
    }

    /// Statuses of all pods on the board.
    pub fn statuses(&self) -> impl Iterator<Item = PodStatus> {
        self.pods.iter().map(|(uid, pod)| pod.status(*uid))
    }

    /// The node's status.
    #[must_use]
    pub fn node_status(&self) -> NodeStatus {
        let refused = self
            .refused
            .iter()
            .take(REFUSED_LISTED_MAX)
            .map(|(key, (hash, reason))| Refused {
                key: key.clone(),
                hash: *hash,
                reason: clip(reason).into(),
            });
        NodeStatus {
            conditions: self.conditions.values().cloned().collect(),
            refused: refused.collect(),
            refused_count: u32::try_from(self.refused.len()).unwrap_or(u32::MAX),
            ..self.facts.clone()
        }
    }

    fn handle_desired(&mut self, key: Key, payload: Option<Vec<u8>>) {
        self.refused.remove(&key);
        let result = match (&key, &payload) {
            (Key::Uid(Kind::Pod, uid), None) => {
                if let Some(pod) = self.pods.get_mut(uid) {
                    pod.spec = None;
                }
                Ok(())
            }
            (Key::Uid(Kind::Pod, uid), Some(bytes)) => self.put_pod(*uid, bytes),
            (Key::Name(Kind::ConfigMap, namespace, name), _) => {
                let decoded = payload.as_deref().map(ConfigMap::decode).transpose();
                decoded.map_err(|error| error.to_string()).map(|value| {
                    replace(
                        &mut self.config_maps,
                        (namespace.clone(), name.clone()),
                        value,
                    );
                    self.config_changed(namespace, name, false);
                })
            }
            (Key::Name(Kind::Secret, namespace, name), _) => {
                let decoded = payload.as_deref().map(Secret::decode).transpose();
                decoded.map_err(|error| error.to_string()).map(|value| {
                    replace(&mut self.secrets, (namespace.clone(), name.clone()), value);
                    self.config_changed(namespace, name, true);
                })
            }
            (Key::Name(Kind::NodePolicy, ..), _) => {
                let decoded = payload.as_deref().map(NodePolicy::decode).transpose();
                decoded
                    .map_err(|error| error.to_string())
                    .map(|policy| self.policy = policy.unwrap_or_default())
            }
            (_, None) => Ok(()),
            (_, Some(_)) => Err("this agent does not know the kind; upgrade it".to_string()),
        };
        if let Err(reason) = result {
            let hash = payload.as_deref().map(Hash16::of).unwrap_or_default();
            self.outputs
                .push_back(Output::Event(Event::Refused(key.clone(), reason.clone())));
            self.refused.insert(key, (hash, reason));
        }
    }

    fn put_pod(&mut self, uid: Uid, bytes: &[u8]) -> Result<(), String> {
        let pod = Pod::decode(bytes).map_err(|error| error.to_string())?;
        if pod.uid != uid {
            return Err("field 1: the uid is not the key's".to_string());
        }
        let cap = PODS_MAX.min(self.facts.pods_max as usize);
        if !self.pods.contains_key(&uid) && self.pods.len() >= cap {
            return Err("the node runs as many pods as it may".to_string());
        }
        self.pods
            .entry(uid)
            .or_insert_with(PodState::new)
            .set_spec(pod, Hash16::of(bytes));
        Ok(())
    }

    fn config_changed(&mut self, namespace: &str, name: &str, secret: bool) {
        for (uid, pod) in &self.pods {
            let uses = pod.directory == Directory::Ready
                && pod.spec.as_ref().is_some_and(|pod| {
                    pod.namespace == namespace
                        && pod.volumes.iter().any(|volume| match &volume.source {
                            VolumeSource::ConfigMap { name: used, .. } => !secret && used == name,
                            VolumeSource::Secret { name: used, .. } => secret && used == name,
                            _ => false,
                        })
                });
            if uses {
                self.outputs.push_back(Output::UpdateConfig(*uid));
            }
        }
    }

    fn handle_discovered(&mut self, now: Millis, found: Vec<Discovered>) {
        self.discovered = true;
        let mut seen = BTreeSet::new();
        for item in found.into_iter().take(ORPHANS_MAX + PODS_MAX) {
            if !seen.insert((item.uid, item.container.clone())) {
                continue;
            }
            let pod = self.pods.entry(item.uid).or_insert_with(PodState::new);
            pod.directory = Directory::Ready;
            let (wanted, policy) = (pod.wants(&item.container), pod.policy());
            if pod.container(&item.container).is_none() {
                pod.containers
                    .push(Supervisor::new(item.container.clone(), item.spec));
            }
            let Some(container) = pod.container(&item.container) else {
                continue;
            };
            let event = match item.pid {
                Some(pid) => {
                    container.adopt(now, pid, item.spec);
                    if wanted {
                        Event::Adopted(item.uid, item.container)
                    } else {
                        Event::Orphan(item.uid, item.container)
                    }
                }
                None => {
                    container.clear_remains(now, policy);
                    self.outputs.push_back(Output::Remove {
                        uid: item.uid,
                        container: item.container.clone(),
                    });
                    Event::Exited(item.uid, item.container, None)
                }
            };
            self.outputs.push_back(Output::Event(event));
        }
    }

    fn handle_prepared(&mut self, now: Millis, uid: Uid, result: Result<(), String>) {
        let Some(pod) = self.pods.get_mut(&uid) else {
            return;
        };
        if pod.directory != Directory::Preparing {
            return;
        }
        match result {
            Ok(()) => {
                pod.directory = Directory::Ready;
                pod.prepare_failure = None;
            }
            Err(reason) => {
                // Half a directory may stand: it is prepared again, or removed with the pod.
                pod.directory = Directory::Absent;
                let at = now.saturating_add(backoff::delay_ms(2));
                pod.prepare_failure = Some((reason, at));
            }
        }
    }

    fn handle_started(
        &mut self,
        now: Millis,
        uid: Uid,
        name: &str,
        run: u32,
        result: Result<u32, StartFailure>,
    ) {
        let Some(container) = self.pods.get_mut(&uid).and_then(|pod| pod.container(name)) else {
            return;
        };
        if container.run != run || container.state != State::Starting {
            return;
        }
        match result {
            Ok(pid) => {
                container.started(now, pid);
                self.outputs
                    .push_back(Output::Event(Event::Started(uid, name.into(), pid)));
            }
            Err(failure) => {
                let reason = failure.reason.clone();
                container.start_failed(now, failure);
                self.outputs.push_back(Output::Remove {
                    uid,
                    container: name.into(),
                });
                let event = Event::StartFailed(uid, name.into(), reason);
                self.outputs.push_back(Output::Event(event));
            }
        }
    }

    fn handle_exited(&mut self, now: Millis, uid: Uid, name: &str, code: Option<i32>, oom: bool) {
        let Some(pod) = self.pods.get_mut(&uid) else {
            return;
        };
        let (policy, wanted) = (pod.policy(), pod.wants(name));
        let Some(container) = pod.container(name) else {
            return;
        };
        if !matches!(
            container.state,
            State::Running { .. } | State::Stopping { .. }
        ) {
            return;
        }
        let restart = container.exited(now, code, oom, policy, wanted);
        self.outputs
            .push_back(Output::Event(Event::Exited(uid, name.into(), code)));
        if let Some(delay_ms) = restart {
            let event = Event::Restart(uid, name.into(), delay_ms);
            self.outputs.push_back(Output::Event(event));
        }
        self.outputs.push_back(Output::Remove {
            uid,
            container: name.into(),
        });
    }

    fn reconcile(&mut self, now: Millis) {
        if !self.discovered {
            return;
        }
        let mut gone = Vec::new();
        for (uid, pod) in &mut self.pods {
            pod.missing = missing(pod, &self.config_maps, &self.secrets);
            reconcile_pod(now, *uid, pod, &mut self.outputs);
            let empty = !pod.wanted() && pod.containers.iter().all(Supervisor::is_gone);
            match pod.directory {
                Directory::Ready if empty => {
                    pod.directory = Directory::Removing;
                    self.outputs.push_back(Output::RemovePod(*uid));
                }
                Directory::Absent if empty => gone.push(*uid),
                _ => {}
            }
        }
        for uid in gone {
            // A terminating pod stays as a spec until the cloud drops it; its status goes now,
            // which tells the cloud that it may.
            let terminating = self.pods.get(&uid).is_some_and(|pod| pod.spec.is_some());
            if let Some(pod) = self.pods.get_mut(&uid)
                && pod.reported.take().is_some()
            {
                self.outputs
                    .push_back(Output::Report(Key::pod_status(uid), None));
                self.outputs.push_back(Output::Event(Event::PodGone(uid)));
            }
            if !terminating {
                self.pods.remove(&uid);
            }
        }
    }

    fn report(&mut self) {
        for (uid, pod) in &mut self.pods {
            let finished = !pod.wanted()
                && pod.directory == Directory::Absent
                && pod.containers.iter().all(Supervisor::is_gone);
            if finished {
                continue;
            }
            let payload = pod.status(*uid).encode();
            if pod.reported.as_ref() != Some(&payload) {
                pod.reported = Some(payload.clone());
                self.outputs
                    .push_back(Output::Report(Key::pod_status(*uid), Some(payload)));
            }
        }
        let payload = self.node_status().encode();
        if self.node_reported.as_ref() != Some(&payload) {
            self.node_reported = Some(payload.clone());
            self.outputs
                .push_back(Output::Report(Key::node_status(), Some(payload)));
        }
    }
}

fn replace<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}

/// Names the first ConfigMap or Secret that the pod waits for.
fn missing(
    pod: &PodState,
    config_maps: &BTreeMap<(String, String), ConfigMap>,
    secrets: &BTreeMap<(String, String), Secret>,
) -> Option<String> {
    let pod = pod.spec.as_ref()?;
    pod.needs().find_map(|(secret, name)| {
        let key = (pod.namespace.clone(), String::from(name));
        let there = if secret {
            secrets.contains_key(&key)
        } else {
            config_maps.contains_key(&key)
        };
        let word = if secret { "Secret " } else { "ConfigMap " };
        (!there).then(|| [word, name, " is not there"].concat())
    })
}

fn reconcile_pod(now: Millis, uid: Uid, pod: &mut PodState, outputs: &mut VecDeque<Output>) {
    let ready = pod.directory == Directory::Ready && pod.missing.is_none();
    let retry = pod
        .prepare_failure
        .as_ref()
        .is_none_or(|(_, at)| *at <= now);
    if pod.wanted() && pod.missing.is_none() && pod.directory == Directory::Absent && retry {
        pod.directory = Directory::Preparing;
        pod.prepare_failure = None;
        outputs.push_back(Output::PreparePod(uid));
    }
    let grace_ms = pod.grace_ms();
    let wants: Vec<bool> = pod.containers.iter().map(|c| pod.wants(&c.name)).collect();
    for (container, wanted) in pod.containers.iter_mut().zip(wants) {
        // What is missing holds back a start; it never stops what runs.
        let may_start =
            ready || !matches!(container.state, State::Idle { .. } | State::Ended { .. });
        if !may_start {
            continue;
        }
        let name = container.name.clone();
        match container.step(now, wanted, grace_ms) {
            Some(Step::Start) => {
                outputs.push_back(Output::Start {
                    uid,
                    container: name,
                    run: container.run,
                });
            }
            Some(Step::Terminate) => {
                outputs.push_back(Output::Signal {
                    uid,
                    container: name,
                    signal: Signal::Terminate,
                });
            }
            Some(Step::Kill) => {
                outputs.push_back(Output::Signal {
                    uid,
                    container: name,
                    signal: Signal::Kill,
                });
            }
            None => {}
        }
    }
    pod.forget_gone();
}
