//! The agent with a board in virtual time: processes that run, crash or hang, answers that
//! arrive late, and an agent that is replaced while it works.
#![cfg(test)]

mod board;
#[path = "agent/given_up.rs"]
mod given_up;
#[path = "agent/housekeeping.rs"]
mod housekeeping;
#[path = "agent/oom.rs"]
mod oom;

use std::collections::BTreeMap;

use board::{Board, agent, discovered};

use edge_core::{Agent, AgentConfig, Discovered, Input, Output, StartFailure};
use edge_proto::hash::Hash16;
use edge_proto::key::{Key, Kind, Uid};
use edge_proto::object::{
    ConfigMap, Container, ContainerState, EnvValue, EnvVar, NodeStatus, Phase, Pod, RestartPolicy,
};
use proptest::prelude::*;

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

const UID: Uid = Uid([1; 16]);

#[test]
fn a_desired_pod_runs_and_is_reported() {
    let mut board = Board::new();
    board.put(&pod(1, RestartPolicy::Always));
    board.settle();
    let status = board.status(UID).unwrap();
    assert_eq!(status.phase, Phase::Running);
    assert_eq!(
        status.containers[0].state,
        ContainerState::Running { pid: 1 }
    );
}

#[test]
fn first_crash_restarts_at_once_and_the_second_waits_ten_seconds() {
    let mut board = Board::new();
    board.put(&pod(1, RestartPolicy::Always));
    board.settle();
    board.exit(UID, "main", Some(1));
    board.settle();
    assert_eq!(board.starts, 2, "restarted without waiting");
    board.exit(UID, "main", Some(1));
    board.settle();
    assert_eq!(board.starts, 2);
    assert_eq!(board.agent.deadline(), Some(board.now + 10_000));
    let state = board.status(UID).unwrap().containers[0].state.clone();
    assert!(
        matches!(state, ContainerState::Waiting { reason, .. } if reason == "CrashLoopBackOff")
    );
    board.advance(1);
    assert_eq!(board.starts, 3);
    assert_eq!(board.status(UID).unwrap().containers[0].restarts, 2);
}

#[test]
fn ten_good_minutes_forget_the_crashes() {
    let mut board = Board::new();
    board.put(&pod(1, RestartPolicy::Always));
    board.settle();
    for _ in 0..3 {
        board.exit(UID, "main", Some(1));
        board.advance(1);
    }
    board.now += 600_000;
    board.exit(UID, "main", Some(1));
    board.settle();
    assert_eq!(board.starts, 5, "immediate again");
}

#[test]
fn restart_policies_differ_as_in_kubernetes() {
    for (policy, code, restarted, phase) in [
        (RestartPolicy::Never, Some(0), false, Phase::Succeeded),
        (RestartPolicy::Never, Some(3), false, Phase::Failed),
        (RestartPolicy::OnFailure, Some(0), false, Phase::Succeeded),
        (RestartPolicy::OnFailure, Some(3), true, Phase::Running),
        (RestartPolicy::OnFailure, None, true, Phase::Running),
        (RestartPolicy::Always, Some(0), true, Phase::Running),
    ] {
        let mut board = Board::new();
        board.put(&pod(1, policy));
        board.settle();
        board.exit(UID, "main", code);
        board.settle();
        assert_eq!(board.starts == 2, restarted);
        assert_eq!(board.status(UID).unwrap().phase, phase);
    }
}

#[test]
fn a_stubborn_container_is_killed_after_its_grace() {
    let mut board = Board::new();
    board.ignores_term = true;
    board.put(&Pod {
        grace_s: Some(7),
        ..pod(1, RestartPolicy::Always)
    });
    board.settle();
    board.put(&Pod {
        grace_s: Some(7),
        terminating: true,
        ..pod(1, RestartPolicy::Always)
    });
    assert_eq!(board.agent.deadline(), Some(board.now + 7_000));
    assert_eq!(board.running.len(), 1);
    board.advance(1);
    assert!(board.running.is_empty());
    assert_eq!(board.status(UID), None, "a pod that is gone has no status");
    board.tell(Input::Desired(Key::pod(UID), None));
    assert_eq!(board.agent.statuses().count(), 0);
}

/// Goal: a hanging container is reported. Method: a process that survives SIGKILL; the status must say so,
/// the log once, and the pod must end when the process does.
#[test]
fn a_container_that_cannot_be_killed_is_named_and_tried_for_ever() {
    let mut board = Board::new();
    let pod = pod(1, RestartPolicy::Always);
    board.put(&pod);
    board.settle();
    (board.ignores_term, board.survives_kill) = (true, true);
    board.tell(Input::Desired(Key::pod(pod.uid), None));
    board.advance(10);
    let status = board.status(pod.uid).unwrap();
    assert_eq!(status.reason, "Terminating");
    assert_eq!(status.message, "process 1 does not end after SIGKILL");
    let failures = board.events.iter().filter(|e| e.starts_with("kill_failed"));
    assert_eq!(failures.count(), 1);
    board.exit(pod.uid, "main", Some(137));
    board.advance(10);
    assert!(board.status(pod.uid).is_none());
}

/// Goal: remains never lead to two runs at once, and are reported. Method: removing fails; the
/// restart must wait and give the reason, and continue as soon as it succeeds.
#[test]
fn remains_that_cannot_be_cleared_hold_back_the_restart_and_say_so() {
    let mut board = Board::new();
    let pod = pod(1, RestartPolicy::Always);
    board.put(&pod);
    board.settle();
    board.keeps_remains = true;
    board.exit(pod.uid, "main", Some(1));
    board.advance(5);
    assert_eq!((board.starts, board.removals), (1, 6));
    let status = board.status(pod.uid).unwrap();
    let ContainerState::Waiting { reason, message } = &status.containers[0].state else {
        panic!("{status:?}");
    };
    assert_eq!(
        (reason.as_str(), message.as_str()),
        ("RemoveContainerError", "rmdir: busy")
    );
    let failures = board
        .events
        .iter()
        .filter(|e| e.starts_with("remove_failed"));
    assert_eq!(failures.count(), 1);
    board.keeps_remains = false;
    board.advance(1);
    assert_eq!(board.starts, 2);
    board.keeps_remains = true;
    board.tell(Input::Desired(Key::pod(pod.uid), None));
    board.advance(3);
    let status = board.status(pod.uid).unwrap();
    assert_eq!(
        (status.reason.as_str(), status.message.as_str()),
        ("Terminating", "rmdir: busy")
    );
    board.keeps_remains = false;
    board.advance(1);
    assert!(board.status(pod.uid).is_none());
}

#[test]
fn a_pod_waits_for_what_it_needs_and_names_it() {
    let mut needy = pod(1, RestartPolicy::Always);
    needy.containers[0].env.push(EnvVar {
        name: "LANE".into(),
        value: EnvValue::ConfigMap {
            name: "lane".into(),
            key: "id".into(),
            optional: false,
        },
    });
    let mut board = Board::new();
    board.put(&needy);
    board.settle();
    assert_eq!(board.starts, 0);
    let status = board.status(UID).unwrap();
    assert_eq!(
        (status.reason.as_str(), status.message.as_str()),
        ("WaitingForConfig", "ConfigMap lane not found")
    );
    let key = Key::Name(Kind::ConfigMap, "toll".into(), "lane".into());
    let map = ConfigMap {
        data: vec![("id".into(), b"7".to_vec())],
    };
    board.tell(Input::Desired(key.clone(), Some(map.encode())));
    board.settle();
    assert_eq!(board.starts, 1);
    board.tell(Input::Desired(key, None));
    board.settle();
    assert_eq!(
        board.running.len(),
        1,
        "what is missing never stops what runs"
    );
}

#[test]
fn a_new_agent_adopts_what_runs_and_stops_orphans() {
    let mut board = Board::new();
    board.put(&pod(1, RestartPolicy::Always));
    board.put(&pod(2, RestartPolicy::Always));
    board.settle();
    let found: Vec<_> = board
        .running
        .iter()
        .map(|((uid, container), (pid, spec))| Discovered {
            uid: *uid,
            container: container.clone(),
            spec: *spec,
            pid: Some(*pid),
        })
        .collect();
    board.agent = agent();
    board.reported.clear();
    board.put(&pod(1, RestartPolicy::Always));
    assert_eq!(
        board.starts, 2,
        "nothing starts before it is known what runs"
    );
    board.tell(discovered(found));
    board.settle();
    assert_eq!(board.starts, 2, "adopted, not restarted");
    assert_eq!(
        board
            .running
            .keys()
            .map(|(uid, _)| *uid)
            .collect::<Vec<_>>(),
        [UID]
    );
    assert_eq!(board.status(UID).unwrap().phase, Phase::Running);
    assert_eq!(board.status(Uid([2; 16])), None);
}

#[test]
fn a_changed_container_is_replaced_and_changed_labels_are_not() {
    let mut board = Board::new();
    board.put(&pod(1, RestartPolicy::Always));
    board.settle();
    let labels = vec![("a".into(), "b".into())];
    board.put(&Pod {
        labels,
        ..pod(1, RestartPolicy::Always)
    });
    board.settle();
    assert_eq!(board.starts, 1);
    let mut changed = pod(1, RestartPolicy::Always);
    changed.containers[0].args.push("--verbose".into());
    board.put(&changed);
    board.settle();
    assert_eq!(board.starts, 2);
    assert_eq!(board.running.len(), 1);
    assert_eq!(board.status(UID).unwrap().containers[0].restarts, 0);
}

#[test]
fn a_failing_start_backs_off_with_its_reason() {
    let mut board = Board::new();
    board.broken_image = true;
    board.put(&pod(1, RestartPolicy::Always));
    board.advance(3);
    assert_eq!(board.starts, 4);
    let state = board.status(UID).unwrap().containers[0].state.clone();
    assert!(
        matches!(state, ContainerState::Waiting { reason, .. } if reason == "ErrImageNeverPull")
    );
    board.broken_image = false;
    board.advance(1);
    assert_eq!(board.status(UID).unwrap().phase, Phase::Running);
}

#[test]
fn refused_objects_are_reported_with_a_reason() {
    let mut board = Board::new();
    let key = Key::Name(Kind::Device, "toll".into(), "gate".into());
    board.tell(Input::Desired(key.clone(), Some(vec![1])));
    board.tell(Input::Desired(Key::pod(UID), Some(vec![0xff])));
    let status = board.agent.node_status();
    assert_eq!(status.refused_count, 2);
    board.tell(Input::Desired(key, None));
    assert_eq!(board.agent.node_status().refused_count, 1);
}

#[test]
fn pods_above_the_cap_are_refused() {
    let mut board = Board::new();
    for id in 1..=21 {
        board.put(&pod(id, RestartPolicy::Always));
    }
    board.settle();
    assert_eq!(board.running.len(), 20);
    assert_eq!(board.agent.node_status().refused_count, 1);
}

#[derive(Clone, Debug)]
enum Act {
    Put(u8, bool, bool),
    Drop(u8),
    Exit(u8, Option<i32>),
    Answer,
    Wait,
    Broken(bool),
    Stubborn(bool),
    Restart,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (1_u8..5, any::<bool>(), any::<bool>()).prop_map(|(id, a, b)| Act::Put(id, a, b)),
        (1_u8..5).prop_map(Act::Drop),
        (1_u8..5, proptest::option::of(0..3)).prop_map(|(id, code)| Act::Exit(id, code)),
        Just(Act::Answer),
        Just(Act::Wait),
        any::<bool>().prop_map(Act::Broken),
        any::<bool>().prop_map(Act::Stubborn),
        Just(Act::Restart),
    ]
}

proptest! {
    /// Goal: in any order of events, no container runs twice, nothing is reported
    /// without a change, and once processes run normally the board converges to the desired state.
    #[test]
    fn any_history_converges_once_children_behave(acts in proptest::collection::vec(act(), 0..60)) {
        let mut board = Board::new();
        let mut desired = BTreeMap::new();
        for act in acts {
            match act {
                Act::Put(id, changed, terminating) => {
                    let mut pod = pod(id, RestartPolicy::Always);
                    if changed {
                        pod.containers[0].args.push("x".into());
                    }
                    pod.terminating = terminating;
                    board.put(&pod);
                    desired.insert(pod.uid, pod);
                }
                Act::Drop(id) => {
                    desired.remove(&Uid([id; 16]));
                    board.tell(Input::Desired(Key::pod(Uid([id; 16])), None));
                }
                Act::Exit(id, code) => board.exit(Uid([id; 16]), "main", code),
                Act::Answer => {
                    if let Some(answer) = board.answers.pop_front() {
                        board.tell(answer);
                    }
                }
                Act::Wait => board.advance(1),
                Act::Broken(broken) => board.broken_image = broken,
                Act::Stubborn(stubborn) => board.ignores_term = stubborn,
                Act::Restart => board.restart_agent(desired.values()),
            }
        }
        board.broken_image = false;
        board.ignores_term = false;
        board.advance(50);
        let running: Vec<_> = board.running.iter().map(|((uid, _), (_, spec))| (*uid, *spec)).collect();
        let wanted: Vec<_> = desired
            .values()
            .filter(|pod| !pod.terminating)
            .map(|pod| (pod.uid, board.agent.spec_hash(&pod.uid, "main").unwrap()))
            .collect();
        prop_assert_eq!(running, wanted);
    }
}

#[test]
fn a_pod_that_is_wanted_again_after_its_stop_runs_again() {
    for gone in [true, false] {
        let mut board = Board::new();
        board.put(&pod(1, RestartPolicy::Never));
        board.settle();
        if gone {
            board.tell(Input::Desired(Key::pod(UID), None));
        } else {
            board.put(&Pod {
                terminating: true,
                ..pod(1, RestartPolicy::Never)
            });
        }
        board.settle();
        assert!(board.running.is_empty());
        board.put(&pod(1, RestartPolicy::Never));
        board.settle();
        assert_eq!(board.running.len(), 1);
    }
}

#[test]
fn a_pod_refused_for_want_of_room_starts_when_another_leaves() {
    let mut board = Board::new();
    for id in 1..=21 {
        board.put(&pod(id, RestartPolicy::Always));
    }
    board.settle();
    board.tell(Input::Desired(Key::pod(UID), None));
    board.settle();
    assert_eq!(board.running.len(), 20);
    assert_eq!(board.agent.node_status().refused_count, 0);
}

#[test]
fn an_exit_told_before_its_start_is_not_lost() {
    let mut board = Board::new();
    board.put(&pod(1, RestartPolicy::Never));
    board.tell(Input::PodPrepared(UID, Ok(())));
    board.answers.clear();
    board.running.clear();
    board.tell(Input::Exited {
        uid: UID,
        container: "main".into(),
        code: Some(0),
        oom: false,
    });
    board.tell(Input::Started {
        uid: UID,
        container: "main".into(),
        run: 1,
        spec: board.agent.spec_hash(&UID, "main").unwrap(),
        result: Ok(1),
    });
    board.settle();
    assert_eq!(board.status(UID).unwrap().phase, Phase::Succeeded);
}

/// Goal: a new agent does not repeat a run that ended for good. Method: a stored end for each policy and
/// code, of this spec and of another, with remains and without.
#[test]
fn what_has_ended_for_good_is_not_run_by_a_new_agent() {
    for (policy, code, same, remains, starts) in [
        (RestartPolicy::Never, Some(3), true, false, 0),
        (RestartPolicy::Never, Some(3), true, true, 0),
        (RestartPolicy::Never, Some(3), false, false, 1),
        (RestartPolicy::OnFailure, Some(0), true, false, 0),
        (RestartPolicy::OnFailure, Some(0), true, true, 0),
        (RestartPolicy::OnFailure, Some(3), true, false, 1),
        (RestartPolicy::Always, Some(0), true, false, 1),
    ] {
        let mut board = Board::new();
        board.agent = agent();
        board.reported.clear();
        board.put(&pod(1, policy));
        let spec = board.agent.spec_hash(&UID, "main").unwrap();
        board.tell(Input::Ended {
            uid: UID,
            container: "main".into(),
            spec: if same { spec } else { Hash16::default() },
            code,
            oom: false,
        });
        let found = Discovered {
            uid: UID,
            container: "main".into(),
            spec,
            pid: None,
        };
        let found = if remains { vec![found] } else { Vec::new() };
        board.tell(discovered(found));
        board.settle();
        assert_eq!(board.starts, starts, "{policy:?} {code:?} {same} {remains}");
        if starts == 0 {
            let status = board.status(UID).unwrap();
            let state = &status.containers[0].state;
            assert!(
                matches!(state, ContainerState::Terminated { exit_code, .. } if *exit_code == code)
            );
            assert_ne!(status.phase, Phase::Running);
        }
    }
}

#[test]
fn a_running_container_is_adopted_whatever_is_found_beside_it() {
    let mut board = Board::new();
    board.put(&pod(1, RestartPolicy::Always));
    board.settle();
    let (pid, spec) = board.running[&(UID, "main".into())];
    let found = |uid, spec, pid| Discovered {
        uid,
        container: "main".into(),
        spec,
        pid,
    };
    let mut all: Vec<_> = (0..2000_u32)
        .map(|id| {
            let mut uid = Uid([9; 16]);
            uid.0[..4].copy_from_slice(&id.to_le_bytes());
            found(uid, Hash16::default(), None)
        })
        .collect();
    all.push(found(UID, Hash16::default(), None));
    all.push(found(UID, spec, Some(pid)));
    board.agent = agent();
    board.reported.clear();
    board.put(&pod(1, RestartPolicy::Always));
    board.tell(discovered(all));
    board.settle();
    assert_eq!(board.starts, 1, "adopted, not started beside itself");
}

#[test]
fn a_failed_preparation_backs_off_and_its_remains_are_removed() {
    let mut board = Board::new();
    board.put(&pod(1, RestartPolicy::Always));
    board.answers.clear();
    board.tell(Input::PodPrepared(UID, Err("no space".into())));
    assert_eq!(board.agent.deadline(), Some(board.now + 10_000));
    board
        .agent
        .handle(board.now, Input::Desired(Key::pod(UID), None));
    let outputs: Vec<_> = std::iter::from_fn(|| board.agent.poll()).collect();
    let removal = Output::RemovePod {
        uid: UID,
        images_in_use: Vec::new(),
    };
    assert!(outputs.contains(&removal));
    assert_eq!(board.agent.deadline(), None);
}

#[test]
fn a_dropped_pod_keeps_its_own_grace_and_name() {
    let mut board = Board::new();
    board.ignores_term = true;
    board.put(&Pod {
        grace_s: Some(90),
        ..pod(1, RestartPolicy::Always)
    });
    board.settle();
    board.tell(Input::Desired(Key::pod(UID), None));
    assert_eq!(board.agent.deadline(), Some(board.now + 90_000));
    assert_eq!(board.status(UID).unwrap().name, "pod-1");
}

#[test]
fn a_changed_container_does_not_wait_for_the_back_off_of_the_old_one() {
    let mut board = Board::new();
    board.broken_image = true;
    board.put(&pod(1, RestartPolicy::Always));
    board.advance(4);
    board.broken_image = false;
    let mut changed = pod(1, RestartPolicy::Always);
    changed.containers[0].image = "fixed".into();
    board.put(&changed);
    board.settle();
    assert_eq!(board.running.len(), 1);
}

/// Goal: a program that cannot be executed is a failed run, as in Kubernetes; a container that
/// cannot be created is not a run. Method: both, under each policy, for a while.
#[test]
fn a_program_that_cannot_run_counts_as_a_failed_run_and_a_missing_image_does_not() {
    for policy in [
        RestartPolicy::Always,
        RestartPolicy::OnFailure,
        RestartPolicy::Never,
    ] {
        let mut board = Board::new();
        board.broken_image = true;
        board.put(&pod(1, policy));
        board.advance(3);
        let status = board.status(UID).unwrap();
        assert_eq!(board.starts, 4, "{policy:?}");
        assert_eq!(status.phase, Phase::Pending);
        assert_eq!(status.containers[0].restarts, 0);
        assert_eq!(status.containers[0].last_exit_code, None);

        board.broken_image = false;
        board.broken_program = true;
        board.advance(3);
        let status = board.status(UID).unwrap();
        let main = &status.containers[0];
        assert_eq!(main.last_exit_code, Some(128), "{policy:?}");
        if policy == RestartPolicy::Never {
            assert_eq!((board.starts, status.phase), (5, Phase::Failed));
            assert_eq!(status.message, "there is no such file");
            let ContainerState::Terminated { exit_code, reason } = &main.state else {
                panic!("{main:?}");
            };
            assert_eq!((*exit_code, reason.as_str()), (Some(128), "StartError"));
            assert_eq!(board.agent.deadline(), None, "never again");
            // A new spec gets all tries again.
            board.broken_program = false;
            let mut changed = pod(1, policy);
            changed.containers[0].image = "fixed".into();
            board.put(&changed);
            board.settle();
            let status = board.status(UID).unwrap();
            assert_eq!(
                (status.phase, status.message.as_str()),
                (Phase::Running, "")
            );
        } else {
            assert_eq!((board.starts, main.restarts), (7, 3));
            assert_eq!(status.phase, Phase::Running, "as Kubernetes counts it");
            let ContainerState::Waiting { reason, message } = &main.state else {
                panic!("{main:?}");
            };
            assert_eq!(reason, "RunContainerError");
            assert_eq!(message, "there is no such file");
        }
    }
}

#[test]
fn names_that_could_leave_their_directory_are_refused() {
    for name in ["..", "a/b", "", "A", "-a"] {
        let mut bad = pod(1, RestartPolicy::Always);
        bad.containers[0].name = name.into();
        let mut board = Board::new();
        board.put(&bad);
        assert_eq!(board.agent.node_status().refused_count, 1, "{name}");
    }
}

#[test]
fn statuses_fit_their_cap_however_long_the_reasons() {
    let mut board = Board::new();
    for id in 0..40 {
        let name = format!("{id:-<253}");
        board.tell(Input::Desired(
            Key::Name(Kind::Device, name.clone(), name),
            Some(vec![1]),
        ));
    }
    let payload = &board.reported[&Key::node_status()];
    assert!(payload.len() <= Kind::NodeStatus.bytes_max());
    assert_eq!(NodeStatus::decode(payload).unwrap().refused_count, 40);

    let mut wide = pod(1, RestartPolicy::Always);
    wide.containers = (0..16)
        .map(|id| Container {
            name: format!("c{id}"),
            ..Container::default()
        })
        .collect();
    board.put(&wide);
    board.answers.clear();
    board.tell(Input::PodPrepared(UID, Ok(())));
    board.answers.clear();
    board.running.clear();
    for id in 0..16 {
        board.tell(Input::Started {
            uid: UID,
            container: format!("c{id}"),
            run: 1,
            spec: Hash16::default(),
            result: Err(StartFailure {
                reason: "CreateContainerError".into(),
                message: "x".repeat(2000),
                counts_as_run: false,
            }),
        });
    }
    let payload = &board.reported[&Key::pod_status(UID)];
    assert!(payload.len() <= Kind::PodStatus.bytes_max());
}

#[test]
fn shutdown_stops_and_removes_every_pod() {
    let mut board = Board::new();
    for id in 1..=3 {
        board.put(&pod(id, RestartPolicy::Always));
    }
    board.settle();
    board.tell(Input::Shutdown);
    board.settle();
    assert!(board.running.is_empty());
    assert_eq!(board.agent.statuses().count(), 0);
}

/// Goal: a container that ended while its pod was unknown follows the pod's policy. Method: an agent
/// without its desired set discovers remains of one container, and observes the end of another.
#[test]
fn what_ended_before_its_pod_was_known_follows_the_policy_of_the_pod() {
    for (policy, restarts) in [
        (RestartPolicy::Always, 1),
        (RestartPolicy::OnFailure, 1),
        (RestartPolicy::Never, 0),
    ] {
        for remains in [true, false] {
            let mut board = Board::new();
            board.agent = Agent::new(AgentConfig {
                facts: NodeStatus {
                    pods_max: 20,
                    ..NodeStatus::default()
                },
                empty: true,
                ..AgentConfig::default()
            });
            board.reported.clear();
            let pod = pod(1, policy);
            let mut knows = agent();
            knows.handle(0, Input::Desired(Key::pod(UID), Some(pod.encode())));
            let key = (UID, "main".to_owned());
            if !remains {
                board.running.insert(key, (9, Hash16([1; 16])));
            }
            board.tell(discovered(vec![Discovered {
                uid: UID,
                container: "main".into(),
                spec: knows.spec_hash(&UID, "main").unwrap(),
                pid: (!remains).then_some(9),
            }]));
            board.exit(UID, "main", Some(3));
            board.settle();
            board.put(&pod);
            board.settle();
            let status = board.status(UID).unwrap();
            assert_eq!(board.starts, restarts, "{policy:?} {remains}");
            assert_eq!(status.containers[0].restarts, restarts);
        }
    }
}
