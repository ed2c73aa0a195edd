//! The pods on the board: those of the desired set, those that left it and are not gone yet, and
//! orphans. Events are handled here; their consequences are in `reconcile.rs`.

use alloc::collections::VecDeque;
use alloc::string::{String, ToString as _};
use alloc::sync::Arc;
use alloc::vec::Vec;

use edge_proto::Millis;
use edge_proto::hash::Hash16;
use edge_proto::key::Uid;
use edge_proto::limits::SET_OBJECTS_MAX;
use edge_proto::object::{Pod, PodStatus, clip};
use edge_proto::sorted::{SortedMap, SortedSet};

use crate::backoff;
use crate::config_objects::ConfigObjects;
use crate::event::Event;
use crate::host_paths::HostPaths;
use crate::limits::{KILL_RETRY_MS, ORPHANS_MAX, PODS_MAX};
use crate::pod::{Directory, PodState, check_names, spec_hash};
use crate::port::{Discovered, Output};
use crate::spec;
use crate::supervisor::{StartFailure, State, Supervisor};

/// At most [`PODS_MAX`] desired pods, fewer if the board file says so, and [`ORPHANS_MAX`] orphans;
/// refused payloads are at most [`SET_OBJECTS_MAX`], as in the replicated set.
#[derive(Debug)]
pub(crate) struct Pods {
    pub(crate) by_uid: SortedMap<Uid, PodState>,
    /// Payloads of pods refused because of the cap; they are accepted when others leave.
    over_cap: SortedMap<Uid, Vec<u8>>,
    /// Nothing starts before the running containers are known.
    pub(crate) discovered: bool,
    /// A pod that is not in the desired set may only have been lost from the store.
    pub(crate) unconfirmed: bool,
    pub(crate) host_paths: Arc<HostPaths>,
}

impl Pods {
    pub(crate) fn new(unconfirmed: bool, host_paths: HostPaths) -> Self {
        Self {
            by_uid: SortedMap::new(),
            over_cap: SortedMap::new(),
            discovered: false,
            unconfirmed,
            host_paths: Arc::new(host_paths),
        }
    }

    pub(crate) fn spec_hash(&self, uid: &Uid, container: &str) -> Option<Hash16> {
        spec_hash(self.by_uid.get(uid)?.spec.as_ref()?, container)
    }

    pub(crate) fn statuses(&self) -> impl Iterator<Item = PodStatus> {
        self.by_uid.iter().map(|(uid, pod)| pod.status(*uid))
    }

    /// References of the images of all pods except `gone`: their layers stay.
    pub(crate) fn images_in_use(&self, gone: Option<Uid>) -> Vec<String> {
        let pods = self.by_uid.iter().filter(|(uid, _)| Some(**uid) != gone);
        spec::images(pods.filter_map(|(_, pod)| pod.spec.as_ref()))
    }

    /// The earliest time at which a pod needs an action without an event.
    pub(crate) fn deadline(&self) -> Option<Millis> {
        if !self.discovered {
            return None;
        }
        let pods = self.by_uid.values().flat_map(|pod| {
            let ready = pod.directory == Directory::Ready && pod.missing.is_none();
            let prepare = pod
                .prepare_failure
                .as_ref()
                .filter(|_| pod.to_prepare())
                .map(|(_, at)| *at);
            let remove = pod
                .remove_failure
                .as_ref()
                .filter(|_| pod.to_remove())
                .map(|(_, at)| *at);
            pod.containers
                .iter()
                .filter_map(move |container| {
                    container.deadline(ready && pod.wants(&container.name))
                })
                .chain(prepare)
                .chain(remove)
        });
        pods.min()
    }

    pub(crate) fn any_running(&self) -> bool {
        let containers = self.by_uid.values().flat_map(|pod| &pod.containers);
        containers.into_iter().any(Supervisor::is_running)
    }

    pub(crate) fn trim_logs(&self, outputs: &mut VecDeque<Output>) {
        for (uid, pod) in &self.by_uid {
            let log_bytes = spec::log_bytes(pod.spec.as_ref());
            for container in pod.containers.iter().filter(|one| one.is_running()) {
                outputs.push_back(Output::TrimLog {
                    uid: *uid,
                    container: container.name.clone(),
                    log_bytes,
                });
            }
        }
    }

    /// Sets a pod of the desired set; `None` removes it.
    pub(crate) fn put(
        &mut self,
        uid: Uid,
        payload: Option<&[u8]>,
        pods_max: u32,
    ) -> Result<(), String> {
        self.over_cap.remove(&uid);
        let Some(bytes) = payload else {
            if let Some(pod) = self.by_uid.get_mut(&uid) {
                pod.desired = false;
            }
            return Ok(());
        };
        let pod = Pod::decode(bytes).map_err(|error| error.to_string())?;
        if pod.uid != uid {
            return Err("field 1: the uid is not the key's".to_string());
        }
        check_names(&pod).map_err(String::from)?;
        if !self.by_uid.contains_key(&uid) && !self.has_room(pods_max) {
            if self.over_cap.len() < SET_OBJECTS_MAX {
                self.over_cap.insert(uid, bytes.into());
            }
            return Err("the pod limit of the node is reached".to_string());
        }
        self.by_uid
            .entry(uid)
            .or_insert_with(PodState::new)
            .set_spec(pod, Hash16::of(bytes));
        Ok(())
    }

    /// A pod that was refused because of the cap, if the cap allows it now.
    pub(crate) fn next_over_cap(&mut self, pods_max: u32) -> Option<(Uid, Vec<u8>)> {
        let room = self.has_room(pods_max);
        room.then(|| self.over_cap.pop_first()).flatten()
    }

    fn has_room(&self, pods_max: u32) -> bool {
        self.by_uid.len() < PODS_MAX.min(pods_max as usize)
    }

    pub(crate) const fn confirm(&mut self) {
        self.unconfirmed = false;
    }

    pub(crate) fn shut_down(&mut self) {
        self.over_cap.clear();
        for pod in self.by_uid.values_mut() {
            pod.desired = false;
        }
    }

    /// A ConfigMap or Secret (`true`) of this namespace and name has changed.
    pub(crate) fn config_changed(
        &mut self,
        (namespace, name, secret): (&str, &str, bool),
        objects: &ConfigObjects,
        outputs: &mut VecDeque<Output>,
    ) {
        for (uid, pod) in &mut self.by_uid {
            if !pod.mounts_config(namespace, name, secret) {
                continue;
            }
            match pod.directory {
                Directory::Ready => update_config(*uid, pod, objects, outputs),
                Directory::Preparing => pod.config_stale = true,
                Directory::Absent | Directory::Partial | Directory::Removing => {}
            }
        }
    }

    /// Adopts what runs. If a container was found twice, the running one counts, because starting
    /// another beside it would be worse than leaving remains. `directories` are those of pods.
    pub(crate) fn handle_discovered(
        &mut self,
        now: Millis,
        mut found: Vec<Discovered>,
        directories: Vec<Uid>,
        objects: &ConfigObjects,
        outputs: &mut VecDeque<Output>,
    ) {
        if self.discovered {
            return;
        }
        self.discovered = true;
        for uid in directories {
            let known = self.by_uid.contains_key(&uid) || found.iter().any(|one| one.uid == uid);
            if !known {
                let images_in_use = self.images_in_use(None);
                outputs.push_back(Output::RemovePod { uid, images_in_use });
            }
        }
        found.sort_by_key(|item| {
            let same = self.spec_hash(&item.uid, &item.container) == Some(item.spec);
            (item.pid.is_none(), !same)
        });
        let mut seen = SortedSet::new();
        let mut orphans = 0;
        for item in found {
            let wanted = self
                .by_uid
                .get(&item.uid)
                .is_some_and(|pod| pod.wants(&item.container));
            if !wanted {
                orphans += 1;
                if orphans > ORPHANS_MAX {
                    continue;
                }
            }
            if seen.insert((item.uid, item.container.clone())) {
                self.adopt(now, item, wanted, outputs);
            }
        }
        for (uid, pod) in &self.by_uid {
            // Their files may be older than the stored ConfigMaps.
            if pod.directory == Directory::Ready && pod.wanted() && pod.mounts_any_config() {
                update_config(*uid, pod, objects, outputs);
            }
        }
    }

    fn adopt(
        &mut self,
        now: Millis,
        item: Discovered,
        wanted: bool,
        outputs: &mut VecDeque<Output>,
    ) {
        let pod = self.by_uid.entry(item.uid).or_insert_with(PodState::new);
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
                outputs.push_back(Output::Remove {
                    uid: item.uid,
                    container: item.container.clone(),
                });
                Event::Exited(item.uid, item.container, None)
            }
        };
        outputs.push_back(Output::Event(event));
    }

    /// A container that has ended for good must not run again because a new agent starts.
    pub(crate) fn handle_ended(
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
        if let Some(pod) = self.by_uid.get_mut(uid) {
            let policy = pod.policy();
            if let Some(container) = pod.container(container) {
                container.recall(code, oom, policy);
            }
        }
    }

    pub(crate) fn handle_prepared(
        &mut self,
        now: Millis,
        uid: Uid,
        result: Result<(), String>,
        objects: &ConfigObjects,
        outputs: &mut VecDeque<Output>,
    ) {
        let Some(pod) = self.by_uid.get_mut(&uid) else {
            return;
        };
        if pod.directory != Directory::Preparing {
            return;
        }
        match result {
            Ok(()) => {
                pod.directory = Directory::Ready;
                pod.prepare_failure = None;
                pod.remove_failure = None;
                pod.prepare_failures = 0;
                if core::mem::take(&mut pod.config_stale) {
                    update_config(uid, pod, objects, outputs);
                }
            }
            Err(reason) => {
                // Parts of a directory may exist: it is prepared again, or removed with the pod.
                pod.directory = Directory::Partial;
                pod.config_stale = false;
                pod.prepare_failures = pod.prepare_failures.saturating_add(1);
                let delay_ms = backoff::delay_ms(pod.prepare_failures.saturating_add(1));
                let at = now.saturating_add(delay_ms);
                pod.prepare_failure = Some((clip(&reason).into(), at));
            }
        }
    }

    pub(crate) fn handle_started(
        &mut self,
        now: Millis,
        uid: Uid,
        name: &str,
        (run, spec): (u32, Hash16),
        result: Result<u32, StartFailure>,
        outputs: &mut VecDeque<Output>,
    ) {
        let Some(pod) = self.by_uid.get_mut(&uid) else {
            return;
        };
        let Some(container) = pod.container(name) else {
            return;
        };
        let State::Starting { ended, .. } = container.state else {
            return;
        };
        if container.run != run {
            return;
        }
        match result {
            Ok(pid) => {
                container.started(now, pid, spec);
                outputs.push_back(Output::Event(Event::Started(uid, name.into(), pid)));
                if let Some(end) = ended {
                    self.handle_exited(now, uid, name, end, outputs);
                }
            }
            Err(failure) => self.start_failed(now, uid, name, failure, outputs),
        }
    }

    /// A start failed, or its spec could not be resolved.
    pub(crate) fn start_failed(
        &mut self,
        now: Millis,
        uid: Uid,
        name: &str,
        failure: StartFailure,
        outputs: &mut VecDeque<Output>,
    ) {
        let Some(pod) = self.by_uid.get_mut(&uid) else {
            return;
        };
        let (policy, wanted) = (pod.policy(), pod.wants(name));
        let Some(container) = pod.container(name) else {
            return;
        };
        let reason = failure.reason.clone();
        container.start_failed(now, failure, policy, wanted);
        outputs.push_back(Output::Remove {
            uid,
            container: name.into(),
        });
        let event = Event::StartFailed(uid, name.into(), reason);
        outputs.push_back(Output::Event(event));
    }

    pub(crate) fn handle_exited(
        &mut self,
        now: Millis,
        uid: Uid,
        name: &str,
        (code, oom): (Option<i32>, bool),
        outputs: &mut VecDeque<Output>,
    ) {
        let Some(pod) = self.by_uid.get_mut(&uid) else {
            return;
        };
        let (policy, wanted) = (pod.policy(), pod.wants(name));
        let unknown = pod.spec.is_none();
        let Some(container) = pod.container(name) else {
            return;
        };
        match &mut container.state {
            State::Running { .. } | State::Stopping { .. } => {}
            State::Starting { ended, .. } => {
                *ended = Some((code, oom));
                return;
            }
            _ => return,
        }
        let restart = container.exited(now, code, oom, policy, wanted);
        if unknown {
            container.leave_undecided();
        }
        outputs.push_back(Output::Event(Event::Exited(uid, name.into(), code)));
        if let Some(delay_ms) = restart {
            let event = Event::Restart(uid, name.into(), delay_ms);
            outputs.push_back(Output::Event(event));
        }
        outputs.push_back(Output::Remove {
            uid,
            container: name.into(),
        });
    }

    pub(crate) fn handle_removed(
        &mut self,
        now: Millis,
        uid: Uid,
        name: String,
        result: Result<(), String>,
        outputs: &mut VecDeque<Output>,
    ) {
        let pod = self.by_uid.get_mut(&uid);
        let Some(container) = pod.and_then(|pod| pod.container(&name)) else {
            return;
        };
        match result {
            Ok(()) => container.removed(),
            Err(error) => {
                // It is logged once; the status shows it as long as it lasts.
                if container.remove_failed(now, &error) {
                    let event = Event::RemoveFailed(uid, name, error);
                    outputs.push_back(Output::Event(event));
                }
            }
        }
    }

    /// Remains that could not be removed are removed again later. A directory without a pod, from before the
    /// agent's start, is found again at its next one.
    pub(crate) fn handle_pod_removed(
        &mut self,
        now: Millis,
        uid: Uid,
        result: Result<(), String>,
        outputs: &mut VecDeque<Output>,
    ) {
        let pod = self.by_uid.get_mut(&uid);
        let pod = pod.filter(|pod| pod.directory == Directory::Removing);
        let Err(reason) = result else {
            if let Some(pod) = pod {
                pod.directory = Directory::Absent;
                pod.remove_failure = None;
            }
            return;
        };
        if let Some(pod) = pod {
            pod.directory = Directory::Partial;
            let at = now.saturating_add(KILL_RETRY_MS);
            let before = pod.remove_failure.replace((clip(&reason).into(), at));
            // It is logged once; the status shows it as long as it lasts.
            if before.is_some() {
                return;
            }
        }
        let event = Event::PodRemoveFailed(uid, reason);
        outputs.push_back(Output::Event(event));
    }
}

fn update_config(
    uid: Uid,
    pod: &PodState,
    objects: &ConfigObjects,
    outputs: &mut VecDeque<Output>,
) {
    if let Some(pod) = &pod.spec {
        let volumes = spec::file_volumes(objects, pod);
        outputs.push_back(Output::UpdateConfig { uid, volumes });
    }
}
