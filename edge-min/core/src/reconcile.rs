//! Derives starts, stops, removals and reports from the difference of desired and actual state.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

use edge_proto::Millis;
use edge_proto::key::{Key, Uid};

use crate::config_objects::ConfigObjects;
use crate::event::Event;
use crate::pod::{Directory, PodState};
use crate::pods::Pods;
use crate::port::{Output, Signal};
use crate::spec::{self, ContainerSpec};
use crate::supervisor::{State, Step};

impl Pods {
    pub(crate) fn reconcile(
        &mut self,
        now: Millis,
        objects: &ConfigObjects,
        outputs: &mut VecDeque<Output>,
    ) {
        if !self.discovered {
            return;
        }
        let (mut starts, mut empty, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for (uid, pod) in &mut self.by_uid {
            if self.unconfirmed && pod.spec.is_none() {
                continue;
            }
            pod.missing = pod.spec.as_ref().and_then(|spec| objects.missing(spec));
            reconcile_pod(now, *uid, pod, &mut starts, outputs);
            let failure = pod.remove_failure.as_ref();
            if pod.to_remove() && failure.is_none_or(|(_, at)| *at <= now) {
                pod.directory = Directory::Removing;
                empty.push(*uid);
            } else if pod.directory == Directory::Absent && pod.is_empty() {
                gone.push(*uid);
            }
        }
        for uid in empty {
            let images_in_use = self.images_in_use(Some(uid));
            outputs.push_back(Output::RemovePod { uid, images_in_use });
        }
        if !starts.is_empty() {
            let images = self.images_in_use(None);
            for (uid, name) in starts {
                self.start(now, uid, &name, (objects, &images), outputs);
            }
        }
        for uid in gone {
            // A terminating pod keeps its spec until the cloud drops it; its status is removed now,
            // after which the cloud may drop it.
            let desired = self.by_uid.get(&uid).is_some_and(|pod| pod.desired);
            if let Some(pod) = self.by_uid.get_mut(&uid)
                && pod.reported.take().is_some()
            {
                outputs.push_back(Output::Report(Key::pod_status(uid), None));
                outputs.push_back(Output::Event(Event::PodGone(uid)));
            }
            if !desired {
                self.by_uid.remove(&uid);
            }
        }
    }

    /// Starts a container that is in `Starting`. If its spec cannot be resolved, the start
    /// fails here, and the shell is not involved.
    fn start(
        &mut self,
        now: Millis,
        uid: Uid,
        name: &str,
        (objects, images): (&ConfigObjects, &[String]),
        outputs: &mut VecDeque<Output>,
    ) {
        let Some(state) = self.by_uid.get_mut(&uid) else {
            return;
        };
        let run = state.container(name).map_or(0, |container| container.run);
        let Some(pod) = &state.spec else { return };
        let Some(container) = pod.containers.iter().find(|one| one.name == name) else {
            return;
        };
        let host_paths = &self.host_paths;
        match ContainerSpec::resolve(pod, container, run, objects, (images, host_paths)) {
            Ok(spec) => outputs.push_back(Output::Start(spec.into())),
            Err(failure) => self.start_failed(now, uid, name, failure, outputs),
        }
    }

    pub(crate) fn report(&mut self, outputs: &mut VecDeque<Output>) {
        for (uid, pod) in &mut self.by_uid {
            let held = self.unconfirmed && pod.spec.is_none();
            if held || pod.directory == Directory::Absent && pod.is_empty() {
                continue;
            }
            let payload = pod.status_payload(*uid);
            if pod.reported.as_ref() != Some(&payload) {
                pod.reported = Some(payload.clone());
                outputs.push_back(Output::Report(Key::pod_status(*uid), Some(payload)));
            }
        }
    }
}

/// `starts`: containers that start now.
fn reconcile_pod(
    now: Millis,
    uid: Uid,
    pod: &mut PodState,
    starts: &mut Vec<(Uid, String)>,
    outputs: &mut VecDeque<Output>,
) {
    let ready = pod.directory == Directory::Ready && pod.missing.is_none();
    let retry = pod
        .prepare_failure
        .as_ref()
        .is_none_or(|(_, at)| *at <= now);
    if pod.to_prepare() && retry {
        pod.directory = Directory::Preparing;
        outputs.push_back(Output::PreparePod {
            uid,
            logs_bytes: spec::logs_bytes(pod.spec.as_ref()),
        });
    }
    let (grace_ms, pod_wanted) = (pod.grace_ms(), pod.wanted());
    let wants: Vec<bool> = pod.containers.iter().map(|c| pod.wants(&c.name)).collect();
    for (container, wanted) in pod.containers.iter_mut().zip(wants) {
        // A missing object delays a start; it never stops a running container.
        let may_start =
            ready || !matches!(container.state, State::Idle { .. } | State::Ended { .. });
        if !may_start {
            continue;
        }
        let name = container.name.clone();
        match container.step(now, (wanted, pod_wanted), grace_ms) {
            Some(Step::Start) => starts.push((uid, name)),
            Some(Step::Cancel) => outputs.push_back(Output::CancelStarts(uid)),
            Some(Step::Terminate) => {
                outputs.push_back(Output::Signal {
                    uid,
                    container: name,
                    spec: container.running_spec(),
                    signal: Signal::Terminate,
                });
            }
            Some(Step::Kill { again }) => {
                if let Some(pid) = again {
                    let event = Event::KillFailed(uid, name.clone(), pid);
                    outputs.push_back(Output::Event(event));
                }
                outputs.push_back(Output::Signal {
                    uid,
                    container: name,
                    spec: container.running_spec(),
                    signal: Signal::Kill,
                });
            }
            Some(Step::Remove) => {
                outputs.push_back(Output::Remove {
                    uid,
                    container: name,
                });
            }
            None => {}
        }
    }
    pod.drop_gone();
}
