//! Containers that the agent must not touch, starts that it cancels, and remains that it removes.

use super::*;
use edge_core::Fault;
use edge_core::limits::{DISCOVER_RETRY_MS, KILL_RETRY_MS};

/// Goal: a damaged store stops no workload. Method: an agent without its desired set discovers a
/// container, does not touch it, adopts it when the pod arrives, and stops others once confirmed.
#[test]
fn what_an_incomplete_store_does_not_name_is_left_alone_until_confirmed() {
    let mut board = Board::new();
    board.put(&pod(1, RestartPolicy::Always));
    board.put(&pod(2, RestartPolicy::Always));
    board.settle();
    let found = board
        .running
        .iter()
        .map(|((uid, container), (pid, spec))| Discovered {
            uid: *uid,
            container: container.clone(),
            spec: *spec,
            pid: Some(*pid),
        })
        .collect();
    let facts = NodeStatus {
        pods_max: 20,
        ..NodeStatus::default()
    };
    board.agent = Agent::new(AgentConfig {
        facts,
        damage: Some("desired.a: no snapshot".to_owned()),
        ..AgentConfig::default()
    });
    let damaged = |board: &Board| {
        let status = board.agent.node_status();
        let mut conditions = status.conditions.into_iter();
        let found = conditions.find(|one| one.name == "StoreDamaged").unwrap();
        (found.holds, found.message)
    };
    assert_eq!(damaged(&board), (true, "desired.a: no snapshot".to_owned()));
    board.reported.clear();
    board.tell(discovered(found));
    board.settle();
    assert_eq!(board.running.len(), 2);
    assert_eq!(board.status(UID), None);
    board.put(&pod(1, RestartPolicy::Always));
    board.settle();
    assert_eq!(
        (board.starts, board.running.len()),
        (2, 2),
        "adopted late, not started again"
    );
    board.tell(Input::Confirmed);
    board.settle();
    assert_eq!(damaged(&board), (false, String::new()));
    assert_eq!(board.repairs, 1);
    assert_eq!(
        board
            .running
            .keys()
            .map(|(uid, _)| *uid)
            .collect::<Vec<_>>(),
        [UID]
    );
}

/// Goal: a running container is signalled by the spec that it was started with, not by the newest one.
#[test]
fn a_spec_that_changes_during_the_start_does_not_hide_what_was_started() {
    let mut board = Board::new();
    let mut pod = pod(1, RestartPolicy::Always);
    board.put(&pod);
    // The directory is prepared, the start is in progress.
    let prepared = board.answers.pop_front().unwrap();
    board.tell(prepared);
    pod.containers[0].args = vec!["other".into()];
    board.put(&pod);
    // The board checks the spec of each signal.
    board.advance(3);
    let spec = board.agent.spec_hash(&UID, "main").unwrap();
    assert_eq!(board.starts, 2);
    assert_eq!(board.running[&(UID, "main".to_owned())].1, spec);
}

/// Goal: a start that cannot be resolved does not reach the shell, is reported, and is made when
/// the missing object exists.
#[test]
fn a_start_that_cannot_be_resolved_fails_in_the_core_and_backs_off() {
    let mut board = Board::new();
    let mut pod = pod(1, RestartPolicy::Always);
    pod.containers[0].env = vec![EnvVar {
        name: "LEVEL".into(),
        value: EnvValue::ConfigMap {
            name: "lane".into(),
            key: "level".into(),
            optional: false,
        },
    }];
    let config = |keys: &[&str]| {
        let data = keys.iter().map(|key| ((*key).to_owned(), b"1".to_vec()));
        let map = ConfigMap {
            data: data.collect(),
        };
        let key = Key::Name(Kind::ConfigMap, "toll".into(), "lane".into());
        Input::Desired(key, Some(map.encode()))
    };
    board.tell(config(&[]));
    board.put(&pod);
    board.settle();
    assert_eq!((board.starts, board.removals), (0, 1));
    let state = board.status(UID).unwrap().containers.remove(0).state;
    let ContainerState::Waiting { reason, message } = state else {
        panic!("{state:?}");
    };
    assert_eq!(reason, "CreateContainerConfigError");
    assert_eq!(message, "key level of lane not found");
    board.tell(config(&["level"]));
    assert_eq!(board.agent.deadline(), Some(board.now + 10_000));
    board.advance(1);
    assert_eq!(board.starts, 1);
    assert_eq!(board.status(UID).unwrap().phase, Phase::Running);
}

/// Goal: what runs is left alone, and nothing is started beside it, until it is known. Method: a board
/// that cannot be looked at twice, while a pod is desired and an orphan runs.
#[test]
fn nothing_starts_or_ends_while_it_is_not_known_what_runs() {
    let mut agent = agent();
    let unknown = |agent: &Agent| {
        let mut conditions = agent.node_status().conditions.into_iter();
        conditions.any(|one| one.name == "ContainersUnknown" && one.holds)
    };
    let desired = pod(1, RestartPolicy::Always);
    agent.handle(0, Input::Desired(Key::pod(UID), Some(desired.encode())));
    let mut now = 0;
    for _ in 0..2 {
        agent.handle(now, Input::NotDiscovered("no descriptors left".into()));
        agent.handle(now, Input::Confirmed);
        let acts = std::iter::from_fn(|| agent.poll()).filter(|output| {
            !matches!(
                output,
                Output::Report(..) | Output::Event(_) | Output::RepairStore
            )
        });
        assert_eq!(acts.count(), 0);
        assert!(unknown(&agent));
        assert_eq!(agent.deadline(), Some(now + DISCOVER_RETRY_MS));
        now += DISCOVER_RETRY_MS;
        agent.handle(now, Input::Tick);
        assert_eq!(agent.poll(), Some(Output::Discover));
        assert_eq!(agent.poll(), None);
    }
    let containers = vec![Discovered {
        uid: UID,
        container: "main".into(),
        spec: agent.spec_hash(&UID, "main").unwrap(),
        pid: Some(5),
    }];
    let pods = vec![UID];
    agent.handle(now, Input::Discovered { containers, pods });
    assert!(!unknown(&agent));
    assert_eq!(agent.statuses().next().unwrap().phase, Phase::Running);
}

#[test]
fn what_does_not_work_is_a_condition_until_it_works() {
    let mut agent = agent();
    for fault in [
        (Fault::StoreUnwritable, "StoreUnwritable"),
        (Fault::OutboxUnwritable, "OutboxUnwritable"),
        (Fault::WorkerStalled, "WorkerStalled"),
        (Fault::HandOverFailed, "HandOverFailed"),
    ] {
        for message in [Some("why"), Some("worse"), None] {
            let input = Input::Fault(fault.0, message.map(str::to_owned));
            agent.handle(0, input);
            let mut conditions = agent.node_status().conditions.into_iter();
            let found = conditions.find(|one| one.name == fault.1).unwrap();
            assert_eq!(found.holds, message.is_some());
            assert_eq!(found.message, message.unwrap_or(""));
        }
    }
}

#[test]
fn directories_of_pods_that_nobody_knows_are_removed() {
    let mut agent = agent();
    let desired = pod(1, RestartPolicy::Always);
    agent.handle(0, Input::Desired(Key::pod(UID), Some(desired.encode())));
    let uid = |id| Uid([id; 16]);
    let orphan = Discovered {
        uid: uid(2),
        container: "main".into(),
        spec: Hash16::default(),
        pid: Some(5),
    };
    let pods = vec![uid(1), uid(2), uid(3)];
    let containers = vec![orphan];
    agent.handle(0, Input::Discovered { containers, pods });
    let outputs = std::iter::from_fn(|| agent.poll());
    let removed = outputs.filter_map(|output| match output {
        Output::RemovePod { uid, images_in_use } => Some((uid, images_in_use)),
        _ => None,
    });
    assert_eq!(removed.collect::<Vec<_>>(), [(uid(3), vec![String::new()])]);
}

#[test]
fn logs_are_trimmed_every_ten_seconds_while_a_container_runs() {
    let mut board = Board::new();
    board.agent = Agent::new(AgentConfig {
        facts: NodeStatus {
            pods_max: 20,
            ..NodeStatus::default()
        },
        trims_logs: true,
        ..AgentConfig::default()
    });
    board.reported.clear();
    board.tell(discovered(Vec::new()));
    assert_eq!(board.agent.deadline(), None);
    board.put(&pod(1, RestartPolicy::Never));
    board.settle();
    let started = board.now;
    for round in 1..=3 {
        let at = started + round * 10_000;
        assert_eq!(board.agent.deadline(), Some(at));
        board.agent.handle(at, Input::Tick);
        let trim = Output::TrimLog {
            uid: UID,
            container: "main".into(),
            log_bytes: 256 * 1024,
        };
        assert_eq!(board.agent.poll(), Some(trim));
        assert_eq!(board.agent.poll(), None);
    }
    board.exit(UID, "main", Some(0));
    board.settle();
    assert_eq!(board.agent.deadline(), None);
}

/// A pod that has run and is not desired any more, whose directory cannot be removed.
fn kept() -> (Board, Pod) {
    let mut board = Board::new();
    let pod = pod(1, RestartPolicy::Always);
    board.put(&pod);
    board.settle();
    board.keeps_pods = true;
    board.tell(Input::Desired(Key::pod(pod.uid), None));
    board.settle();
    (board, pod)
}

/// Goal: a pod is not reported as gone while something of it is left. Method: removing its directory
/// fails; the pod stays with the reason, is removed again and again, and is gone once that succeeds.
#[test]
fn a_pod_whose_directory_cannot_be_removed_stays_and_is_removed_again() {
    let (mut board, pod) = kept();
    for removals in 1..5 {
        assert_eq!(board.pod_removals, removals);
        let status = board.status(pod.uid).unwrap();
        assert_eq!(
            (status.reason.as_str(), status.message.as_str()),
            ("Terminating", "still mounted: logs")
        );
        assert_eq!(board.agent.deadline(), Some(board.now + KILL_RETRY_MS));
        board.advance(1);
    }
    let failures = board.events.iter();
    let failures = failures.filter(|event| event.starts_with("pod_remove_failed"));
    assert_eq!(failures.count(), 1);
    board.keeps_pods = false;
    board.advance(1);
    assert!(board.status(pod.uid).is_none());
    assert_eq!(board.agent.deadline(), None);
}

/// Goal: a pod that is desired again while remains of it are left starts, in a newly prepared directory.
#[test]
fn a_pod_that_is_desired_again_before_it_is_gone_is_prepared_again() {
    let (mut board, pod) = kept();
    board.put(&pod);
    board.settle();
    assert_eq!((board.starts, board.pod_removals), (2, 1));
    assert_eq!(board.status(pod.uid).unwrap().reason, "");
}
