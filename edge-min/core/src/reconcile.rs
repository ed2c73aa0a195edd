//! What follows from what is desired and what is: starts, stops, removals and reports.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

use edge_proto::Millis;
use edge_proto::key::{Key, Kind, Uid};
use edge_proto::object::{ConfigMap, NodeStatus, Secret};
use edge_proto::sorted::SortedMap;

use crate::agent::Agent;
use crate::event::Event;
use crate::pod::{Directory, PodState};
use crate::port::{Output, Signal};
use crate::supervisor::{State, Step};

impl Agent {
    pub(crate) fn reconcile(&mut self, now: Millis) {
        if !self.discovered {
            return;
        }
        let mut gone = Vec::new();
        for (uid, pod) in &mut self.pods {
            if self.unconfirmed && pod.spec.is_none() {
                continue;
            }
            pod.missing = missing(pod, &self.config_maps, &self.secrets);
            reconcile_pod(now, *uid, pod, &mut self.outputs);
            let empty = pod.is_empty();
            match pod.directory {
                Directory::Ready | Directory::Partial if empty => {
                    pod.directory = Directory::Removing;
                    self.outputs.push_back(Output::RemovePod(*uid));
                }
                Directory::Absent if empty => gone.push(*uid),
                _ => {}
            }
        }
        for uid in gone {
            // A terminating pod stays as a spec until the cloud drops it; its status goes now,
            // after which the cloud may drop it.
            let desired = self.pods.get(&uid).is_some_and(|pod| pod.desired);
            if let Some(pod) = self.pods.get_mut(&uid)
                && pod.reported.take().is_some()
            {
                self.outputs
                    .push_back(Output::Report(Key::pod_status(uid), None));
                self.outputs.push_back(Output::Event(Event::PodGone(uid)));
            }
            if !desired {
                self.pods.remove(&uid);
            }
        }
    }

    pub(crate) fn report(&mut self) {
        for (uid, pod) in &mut self.pods {
            let held = self.unconfirmed && pod.spec.is_none();
            if held || pod.directory == Directory::Absent && pod.is_empty() {
                continue;
            }
            let payload = pod.status_payload(*uid);
            if pod.reported.as_ref() != Some(&payload) {
                pod.reported = Some(payload.clone());
                self.outputs
                    .push_back(Output::Report(Key::pod_status(*uid), Some(payload)));
            }
        }
        let payload = node_payload(self.node_status());
        if self.node_reported.as_ref() != Some(&payload) {
            self.node_reported = Some(payload.clone());
            self.outputs
                .push_back(Output::Report(Key::node_status(), Some(payload)));
        }
    }
}

/// Names the first ConfigMap or Secret that the pod waits for.
fn missing(
    pod: &PodState,
    config_maps: &SortedMap<(String, String), ConfigMap>,
    secrets: &SortedMap<(String, String), Secret>,
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
    if pod.to_prepare() && retry {
        pod.directory = Directory::Preparing;
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
            Some(Step::Kill { again }) => {
                if let Some(pid) = again {
                    let event = Event::KillFailed(uid, name.clone(), pid);
                    outputs.push_back(Output::Event(event));
                }
                outputs.push_back(Output::Signal {
                    uid,
                    container: name,
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
    pod.forget_gone();
}

/// Payload of the node's status: refusals, then conditions' messages, give way to the cap.
/// `refused_count` still counts what is not listed.
fn node_payload(mut status: NodeStatus) -> Vec<u8> {
    loop {
        let payload = status.encode();
        if payload.len() <= Kind::NodeStatus.bytes_max() {
            return payload;
        }
        if status.refused.pop().is_none() {
            for condition in &mut status.conditions {
                condition.message.clear();
            }
            return status.encode();
        }
    }
}
