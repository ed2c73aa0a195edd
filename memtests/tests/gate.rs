//! One gate end to end: real edge-cloud, TLS, MQTT, agent and processes.
#![cfg(test)]

use std::fs;

use memtests::Gate;

const CONFIG: &str = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: lane}
data: {LANE: \"3\"}
";

fn pod(name: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  runtimeClassName: process
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      command: [/bin/sh, -c, 'echo lane $LANE; exec sleep 100000']
      env: [{{name: LANE, valueFrom: {{configMapKeyRef: {{name: lane, key: LANE}}}}}}]
"
    )
}

fn manifests(count: usize) -> String {
    let pods: Vec<String> = (0..count)
        .map(|index| pod(&format!("pod-{index}")))
        .collect();
    CONFIG.to_owned() + &pods.concat()
}

/// Goal: no death of the agent touches a workload. Method: kill -9 again and again, in every
/// third round the stored set is wiped, in every sixth its cache too; the processes must stay the same.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn killing_the_agent_restarts_and_duplicates_nothing() {
    let rounds = if std::env::var("EDGE_MIN_LONG").is_ok_and(|long| !long.is_empty()) {
        100
    } else {
        9
    };
    let mut gate = Gate::start(&manifests(3)).unwrap();
    gate.until_converged(3).unwrap();
    let before = gate.pids().unwrap();
    for round in 0..rounds {
        gate.kill_agent().unwrap();
        if round % 3 == 2 {
            for name in ["desired.a", "desired.b"] {
                fs::remove_file(gate.state_dir().join(name)).ok();
            }
            fs::remove_dir_all(gate.state_dir().join("objects")).ok();
        }
        if round % 6 == 5 {
            fs::remove_dir_all(gate.state_dir().join("cache")).ok();
        }
        gate.start_agent().unwrap();
        gate.until_converged(3).unwrap();
        assert_eq!(gate.pids().unwrap(), before, "round {round}");
    }
}

/// Goal: the gate works alone. Method: cloud gone, agent and workloads killed; everything must
/// run again from the medium, and be in sync once the cloud is back.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn without_a_cloud_everything_starts_again() {
    let mut gate = Gate::start(&manifests(2)).unwrap();
    gate.until_converged(2).unwrap();
    let before = gate.pids().unwrap();
    gate.kill_cloud().unwrap();
    gate.kill_agent().unwrap();
    for pid in &before {
        std::process::Command::new("kill")
            .args(["-9", &pid.to_string()])
            .status()
            .unwrap();
    }
    gate.start_agent().unwrap();
    gate.until("pods run offline", |gate| {
        gate.pids()
            .is_ok_and(|pids| pids.len() == 2 && pids.iter().all(|pid| !before.contains(pid)))
    })
    .unwrap();
    let alone = gate.pids().unwrap();
    assert_eq!(gate.status().unwrap()["connected"], false);
    gate.start_cloud().unwrap();
    gate.until_converged(2).unwrap();
    assert_eq!(
        gate.pids().unwrap(),
        alone,
        "the cloud's return touches nothing"
    );
}

/// Goal: the cloud's death touches nothing, and a change made afterwards arrives.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn a_restarted_cloud_touches_no_workload_and_goes_on() {
    let mut gate = Gate::start(&manifests(1)).unwrap();
    gate.until_converged(1).unwrap();
    let before = gate.pids().unwrap();
    gate.kill_cloud().unwrap();
    gate.start_cloud().unwrap();
    gate.until_converged(1).unwrap();
    assert_eq!(gate.pids().unwrap(), before);
    gate.manifests(&manifests(4)).unwrap();
    gate.until_converged(4).unwrap();
    assert!(gate.pids().unwrap().contains(&before[0]));
    let log = gate.cloud_text(&["logs", "gate/pod-3"]).unwrap();
    assert_eq!(log, "lane 3\n");
}

/// Goal: revocation acts on a live connection, and the node's work goes on.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn revoking_a_node_ends_its_link_and_not_its_work() {
    let gate = Gate::start(&manifests(1)).unwrap();
    gate.until_converged(1).unwrap();
    let before = gate.pids().unwrap();
    gate.cloud_text(&["node", "revoke", "gate"]).unwrap();
    gate.until("the link ends", |gate| {
        gate.status()
            .is_ok_and(|status| status["connected"] == false)
    })
    .unwrap();
    assert_eq!(gate.pids().unwrap(), before);
    assert!(gate.cloud_text(&["logs", "gate/pod-0"]).is_err());
}
