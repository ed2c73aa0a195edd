//! The agent with a shell that violates the contract: nothing may panic or be started twice.
#![cfg(test)]

use std::collections::BTreeMap;

use edge_core::{Agent, AgentConfig, Discovered, Input, Output, StartFailure};
use edge_proto::hash::Hash16;
use edge_proto::key::{Key, Kind, Uid};
use edge_proto::object::{
    ConfigMap, Container, NodeStatus, Pod, RestartPolicy, Volume, VolumeSource,
};
use proptest::prelude::*;

const UID: Uid = Uid([1; 16]);

fn agent() -> Agent {
    let facts = NodeStatus {
        pods_max: 20,
        ..NodeStatus::default()
    };
    Agent::new(AgentConfig {
        facts,
        trims_logs: true,
        ..AgentConfig::default()
    })
}

fn pod(id: u8, policy: RestartPolicy) -> Pod {
    Pod {
        uid: Uid([id; 16]),
        namespace: "toll".into(),
        name: format!("pod-{id}"),
        restart_policy: policy,
        containers: vec![Container {
            name: "main".into(),
            command: vec!["/bin/true".into()],
            ..Container::default()
        }],
        ..Pod::default()
    }
}

fn any_input() -> impl Strategy<Value = Input> {
    let uid = || (1_u8..4).prop_map(|id| Uid([id; 16]));
    let name = || prop_oneof![Just("main".to_string()), Just("side".to_string())];
    let config = || Key::Name(Kind::ConfigMap, "toll".into(), "lane".into());
    let put = (1_u8..4, 0_u8..3, any::<[bool; 4]>()).prop_map(move |(id, policy, flags)| {
        let policies = [
            RestartPolicy::Always,
            RestartPolicy::OnFailure,
            RestartPolicy::Never,
        ];
        let mut pod = pod(id, policies[usize::from(policy)]);
        let [terminating, side, needy, no_grace] = flags;
        pod.terminating = terminating;
        pod.grace_s = no_grace.then_some(0);
        if side {
            let mut side = pod.containers[0].clone();
            side.name = "side".into();
            pod.containers.push(side);
        }
        if needy {
            pod.volumes.push(Volume {
                name: "lane".into(),
                source: VolumeSource::ConfigMap {
                    name: "lane".into(),
                    items: Vec::new(),
                    mode: 0,
                    optional: false,
                },
            });
        }
        Input::Desired(Key::pod(pod.uid), Some(pod.encode()))
    });
    let failure = |reason: String| StartFailure {
        counts_as_run: reason.len().is_multiple_of(2),
        reason: reason.clone(),
        message: reason,
    };
    prop_oneof![
        3 => put,
        1 => uid().prop_map(|uid| Input::Desired(Key::pod(uid), None)),
        1 => proptest::collection::vec(any::<u8>(), 0..40)
            .prop_map(|bytes| Input::Desired(Key::pod(UID), Some(bytes))),
        1 => any::<bool>().prop_map(move |there| {
            let payload = there.then(|| ConfigMap::default().encode());
            Input::Desired(config(), payload)
        }),
        1 => (uid(), name(), any::<bool>()).prop_map(|(uid, container, runs)| {
            Input::Discovered {
                containers: vec![Discovered {
                    uid,
                    container,
                    spec: Hash16::default(),
                    pid: runs.then_some(9),
                }],
                pods: vec![uid],
            }
        }),
        1 => (uid(), name(), proptest::option::of(any::<i32>()), any::<bool>()).prop_map(
            |(uid, container, code, oom)| Input::Ended {
                uid,
                container,
                spec: Hash16::default(),
                code,
                oom,
            }
        ),
        3 => (uid(), proptest::option::of(".{0,300}"))
            .prop_map(|(uid, error)| Input::PodPrepared(uid, error.map_or(Ok(()), Err))),
        3 => (uid(), name(), 0_u32..5, proptest::result::maybe_err(1_u32..9, ".{0,300}")).prop_map(
            move |(uid, container, run, result)| Input::Started {
                uid,
                container,
                run,
                spec: Hash16::default(),
                result: result.map_err(failure),
            }
        ),
        2 => (uid(), name(), proptest::option::of(any::<i32>()), any::<bool>()).prop_map(
            |(uid, container, code, oom)| Input::Exited {
                uid,
                container,
                code,
                oom,
            }
        ),
        2 => (uid(), name(), proptest::option::of(".{0,300}")).prop_map(|(uid, container, error)| {
            Input::Removed(uid, container, error.map_or(Ok(()), Err))
        }),
        1 => (uid(), proptest::option::of(".{0,300}"))
            .prop_map(|(uid, error)| Input::PodRemoved(uid, error.map_or(Ok(()), Err))),
        1 => Just(Input::Shutdown),
        2 => Just(Input::Tick),
    ]
}

proptest! {
    /// Goal: answers without a request, repeated, late or invalid ones never make the agent panic,
    /// number a run twice, request a second action before the first is answered, report without a
    /// change or over the cap, or leave a deadline in the past.
    #[test]
    fn no_input_in_any_order_breaks_a_promise(
        inputs in proptest::collection::vec((any_input(), 0_u64..400_000), 0..80),
    ) {
        let mut agent = agent();
        let mut now = 0;
        let mut reported: BTreeMap<Key, Vec<u8>> = BTreeMap::new();
        let mut asked: BTreeMap<(Uid, String), u32> = BTreeMap::new();
        for (input, wait) in inputs.into_iter().chain([(Input::Tick, u64::MAX)]) {
            now = u64::saturating_add(now, wait);
            if let Input::Started { uid, container, run, .. } = &input {
                let key = (*uid, container.clone());
                if asked.get(&key) == Some(run) {
                    asked.remove(&key);
                }
            }
            agent.handle(now, input);
            while let Some(output) = agent.poll() {
                match output {
                    Output::Start(start) => {
                        let before = asked.insert((start.uid, start.container), start.run);
                        prop_assert_eq!(before, None, "a start is under way");
                    }
                    Output::Report(key, payload) => {
                        let cap = key.kind().bytes_max();
                        prop_assert!(payload.as_ref().is_none_or(|payload| payload.len() <= cap));
                        let before = match payload.clone() {
                            Some(payload) => reported.insert(key, payload),
                            None => reported.remove(&key),
                        };
                        prop_assert_ne!(before, payload, "reported without a change");
                    }
                    _ => {}
                }
            }
            prop_assert!(agent.deadline().is_none_or(|deadline| deadline >= now));
        }
    }
}
