//! The agent composed: desired objects in, pods reconciled, statuses out.

use alloc::collections::VecDeque;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use edge_proto::Millis;
use edge_proto::hash::Hash16;
use edge_proto::key::{Key, Kind, Uid};
use edge_proto::limits::{REFUSED_LISTED_MAX, SET_OBJECTS_MAX};
use edge_proto::object::{
    Condition, ConfigMap, NodePolicy, NodeStatus, Pod, PodStatus, Refused, Secret, clip,
};
use edge_proto::sorted::{SortedMap, SortedSet};

use crate::backoff;
use crate::event::Event;
use crate::limits::{ORPHANS_MAX, PODS_MAX};
use crate::pod::{Directory, PodState, check_names, spec_hash};
use crate::port::{AgentConfig, Discovered, Input, Output};
use crate::supervisor::{StartFailure, State, Supervisor};

/// Node conditions; a further one is not kept. The shell has a fixed list, far shorter.
const CONDITIONS_MAX: usize = 32;

/// The agent. Objects kept and refusals remembered are at most [`SET_OBJECTS_MAX`] each, as in the
/// replicated set; a ConfigMap or Secret beyond that is refused, a refusal beyond is not listed.
#[derive(Debug)]
pub struct Agent {
    pub(crate) pods: SortedMap<Uid, PodState>,
    pub(crate) config_maps: SortedMap<(String, String), ConfigMap>,
    pub(crate) secrets: SortedMap<(String, String), Secret>,
    policy: NodePolicy,
    refused: SortedMap<Key, (Hash16, String)>,
    /// Payloads of pods refused for want of room; they get in when others leave.
    crowded_out: SortedMap<Uid, Vec<u8>>,
    conditions: SortedMap<String, Condition>,
    facts: NodeStatus,
    pub(crate) node_reported: Option<Vec<u8>>,
    /// Nothing starts before it is known what runs already.
    pub(crate) discovered: bool,
    /// What the desired set does not name may only have been lost from the store.
    pub(crate) unconfirmed: bool,
    pub(crate) outputs: VecDeque<Output>,
}

impl Agent {
    /// An agent that knows nothing yet.
    #[must_use]
    pub fn new(config: AgentConfig) -> Self {
        Self {
            pods: SortedMap::new(),
            config_maps: SortedMap::new(),
            secrets: SortedMap::new(),
            policy: NodePolicy::default(),
            refused: SortedMap::new(),
            crowded_out: SortedMap::new(),
            conditions: SortedMap::new(),
            facts: config.facts,
            node_reported: None,
            discovered: false,
            unconfirmed: config.unconfirmed,
            outputs: VecDeque::new(),
        }
    }

    /// Takes in one thing that happened.
    pub fn handle(&mut self, now: Millis, input: Input) {
        match input {
            Input::Desired(key, payload) => self.handle_desired(key, payload),
            Input::Ended {
                uid,
                container,
                spec,
                code,
                oom,
            } => self.handle_ended(&uid, &container, spec, code, oom),
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
            Input::Removed(uid, name, result) => {
                let pod = self.pods.get_mut(&uid);
                match (pod.and_then(|pod| pod.container(&name)), result) {
                    (Some(container), Ok(())) => container.removed(),
                    (Some(container), Err(error)) => {
                        // Once is enough for the log; the status says it as long as it lasts.
                        if container.remove_failed(now, &error) {
                            let event = Event::RemoveFailed(uid, name, error);
                            self.outputs.push_back(Output::Event(event));
                        }
                    }
                    (None, _) => {}
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
                if self.conditions.len() < CONDITIONS_MAX
                    || self.conditions.contains_key(&condition.name)
                {
                    self.conditions.insert(condition.name.clone(), condition);
                }
            }
            Input::Confirmed => self.unconfirmed = false,
            Input::Shutdown => self.handle_shutdown(),
            Input::Tick => {}
        }
        self.reconcile(now);
        if self.admit_crowded_out() {
            self.reconcile(now);
        }
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
            let prepare = pod
                .prepare_failure
                .as_ref()
                .filter(|_| pod.to_prepare())
                .map(|(_, at)| *at);
            pod.containers
                .iter()
                .filter_map(move |container| {
                    container.deadline(ready && pod.wants(&container.name))
                })
                .chain(prepare)
        });
        pods.min()
    }

    /// A pod of the desired set, or one that left it and is not gone yet.
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
        if let Key::Uid(Kind::Pod, uid) = &key {
            self.crowded_out.remove(uid);
        }
        let result = match (&key, &payload) {
            (Key::Uid(Kind::Pod, uid), None) => {
                if let Some(pod) = self.pods.get_mut(uid) {
                    pod.desired = false;
                }
                Ok(())
            }
            (Key::Uid(Kind::Pod, uid), Some(bytes)) => self.put_pod(*uid, bytes),
            (Key::Name(Kind::ConfigMap, namespace, name), _) => {
                let decoded = payload.as_deref().map(ConfigMap::decode).transpose();
                let name_of = (namespace.clone(), name.clone());
                decoded
                    .map_err(|error| error.to_string())
                    .and_then(|value| replace(&mut self.config_maps, name_of, value))
                    .map(|()| self.config_changed(namespace, name, false))
            }
            (Key::Name(Kind::Secret, namespace, name), _) => {
                let decoded = payload.as_deref().map(Secret::decode).transpose();
                let name_of = (namespace.clone(), name.clone());
                decoded
                    .map_err(|error| error.to_string())
                    .and_then(|value| replace(&mut self.secrets, name_of, value))
                    .map(|()| self.config_changed(namespace, name, true))
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
            if self.refused.len() < SET_OBJECTS_MAX {
                self.refused.insert(key, (hash, reason));
            }
        }
    }

    fn put_pod(&mut self, uid: Uid, bytes: &[u8]) -> Result<(), String> {
        let pod = Pod::decode(bytes).map_err(|error| error.to_string())?;
        if pod.uid != uid {
            return Err("field 1: the uid is not the key's".to_string());
        }
        check_names(&pod).map_err(String::from)?;
        if !self.pods.contains_key(&uid) && !self.has_room() {
            if self.crowded_out.len() < SET_OBJECTS_MAX {
                self.crowded_out.insert(uid, bytes.into());
            }
            return Err("the node runs as many pods as it may".to_string());
        }
        self.pods
            .entry(uid)
            .or_insert_with(PodState::new)
            .set_spec(pod, Hash16::of(bytes));
        Ok(())
    }

    fn has_room(&self) -> bool {
        self.pods.len() < PODS_MAX.min(self.facts.pods_max as usize)
    }

    /// Takes in pods that were refused for want of room, as far as there is room now.
    fn admit_crowded_out(&mut self) -> bool {
        let mut admitted = false;
        while self.has_room()
            && let Some((uid, bytes)) = self.crowded_out.pop_first()
        {
            self.refused.remove(&Key::pod(uid));
            admitted |= self.put_pod(uid, &bytes).is_ok();
        }
        admitted
    }

    fn handle_shutdown(&mut self) {
        self.crowded_out.clear();
        for pod in self.pods.values_mut() {
            pod.desired = false;
        }
    }

    fn config_changed(&mut self, namespace: &str, name: &str, secret: bool) {
        for (uid, pod) in &mut self.pods {
            if !pod.mounts_config(namespace, name, secret) {
                continue;
            }
            match pod.directory {
                Directory::Ready => self.outputs.push_back(Output::UpdateConfig(*uid)),
                Directory::Preparing => pod.config_stale = true,
                Directory::Absent | Directory::Partial | Directory::Removing => {}
            }
        }
    }

    /// Adopts what runs. Of two finds of one container the running one counts, for starting
    /// another beside it would be worse than leaving remains.
    fn handle_discovered(&mut self, now: Millis, mut found: Vec<Discovered>) {
        if self.discovered {
            return;
        }
        self.discovered = true;
        found.sort_by_key(|item| {
            let same = self.spec_hash(&item.uid, &item.container) == Some(item.spec);
            (item.pid.is_none(), !same)
        });
        let mut seen = SortedSet::new();
        let mut orphans = 0;
        for item in found {
            let wanted = self
                .pods
                .get(&item.uid)
                .is_some_and(|pod| pod.wants(&item.container));
            if !wanted {
                orphans += 1;
                if orphans > ORPHANS_MAX {
                    continue;
                }
            }
            if seen.insert((item.uid, item.container.clone())) {
                self.adopt(now, item, wanted);
            }
        }
        for (uid, pod) in &self.pods {
            // Their files may be older than the stored ConfigMaps.
            if pod.directory == Directory::Ready && pod.wanted() && pod.mounts_any_config() {
                self.outputs.push_back(Output::UpdateConfig(*uid));
            }
        }
    }

    /// What has ended for good must not run again because the agent does.
    fn handle_ended(
        &mut self,
        uid: &Uid,
        container: &str,
        spec: Hash16,
        code: Option<i32>,
        oom: bool,
    ) {
        if self.discovered || self.spec_hash(uid, container) != Some(spec) {
            return;
        }
        if let Some(pod) = self.pods.get_mut(uid) {
            let policy = pod.policy();
            if let Some(container) = pod.container(container) {
                container.recall(code, oom, policy);
            }
        }
    }

    fn adopt(&mut self, now: Millis, item: Discovered, wanted: bool) {
        let pod = self.pods.entry(item.uid).or_insert_with(PodState::new);
        pod.directory = Directory::Ready;
        let policy = pod.spec.as_ref().map(|spec| spec.restart_policy);
        if pod.container(&item.container).is_none() {
            pod.containers
                .push(Supervisor::new(item.container.clone(), item.spec));
        }
        let Some(container) = pod.container(&item.container) else {
            return;
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
                pod.prepare_failures = 0;
                if core::mem::take(&mut pod.config_stale) {
                    self.outputs.push_back(Output::UpdateConfig(uid));
                }
            }
            Err(reason) => {
                // Half a directory may stand: it is prepared again, or removed with the pod.
                pod.directory = Directory::Partial;
                pod.config_stale = false;
                pod.prepare_failures = pod.prepare_failures.saturating_add(1);
                let delay_ms = backoff::delay_ms(pod.prepare_failures.saturating_add(1));
                let at = now.saturating_add(delay_ms);
                pod.prepare_failure = Some((clip(&reason).into(), at));
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
        let Some(pod) = self.pods.get_mut(&uid) else {
            return;
        };
        let (policy, wanted) = (pod.policy(), pod.wants(name));
        let Some(container) = pod.container(name) else {
            return;
        };
        let State::Starting { ended } = container.state else {
            return;
        };
        if container.run != run {
            return;
        }
        match result {
            Ok(pid) => {
                container.started(now, pid);
                self.outputs
                    .push_back(Output::Event(Event::Started(uid, name.into(), pid)));
                if let Some((code, oom)) = ended {
                    self.handle_exited(now, uid, name, code, oom);
                }
            }
            Err(failure) => {
                let reason = failure.reason.clone();
                container.start_failed(now, failure, policy, wanted);
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
        let unknown = pod.spec.is_none();
        let Some(container) = pod.container(name) else {
            return;
        };
        match &mut container.state {
            State::Running { .. } | State::Stopping { .. } => {}
            State::Starting { ended } => {
                *ended = Some((code, oom));
                return;
            }
            _ => return,
        }
        let restart = container.exited(now, code, oom, policy, wanted);
        if unknown {
            container.leave_undecided();
        }
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
}

fn replace<K: Ord, V>(map: &mut SortedMap<K, V>, key: K, value: Option<V>) -> Result<(), String> {
    match value {
        Some(_) if map.len() >= SET_OBJECTS_MAX && !map.contains_key(&key) => {
            return Err("the node holds as many objects as it may".to_string());
        }
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
    Ok(())
}
