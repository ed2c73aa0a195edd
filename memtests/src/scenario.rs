//! Scenarios that must hold over any link: the same steps on a gate of the embedded cloud and on one behind a
//! broker.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::Gate;

/// A ConfigMap and so many process pods that read it.
#[must_use]
pub fn manifests(count: usize) -> String {
    let config = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: lane}
data: {LANE: \"3\"}
";
    let pods: Vec<String> = (0..count)
        .map(|index| pod(&format!("pod-{index}")))
        .collect();
    config.to_owned() + &pods.concat()
}

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

/// An end of the agent affects no workload, whatever it was doing. In each round other pods are added
/// and removed, and the agent is killed at some moment of that; in every third round the stored set is
/// wiped, in every sixth its cache too. The pods that stay must keep their processes, and no process
/// may run that does not belong to a pod.
///
/// # Errors
/// Which condition is violated.
pub fn agent_killed(mut gate: Gate, rounds: u32) -> Result<()> {
    let stay = manifests(3);
    gate.manifests(&stay)?;
    gate.until_converged(3)?;
    let before = gate.pids()?;
    for round in 0..rounds {
        let come: Vec<String> = (0..round % 3)
            .map(|index| pod(&format!("round-{round}-{index}")))
            .collect();
        gate.manifests(&[stay.as_str(), &come.concat()].concat())?;
        // The moment of the kill, spread over the second in which the change is applied.
        std::thread::sleep(Duration::from_millis(u64::from(round * 137 % 1000)));
        gate.kill_agent()?;
        if round % 3 == 2 {
            for name in ["desired.a", "desired.b"] {
                fs::remove_file(gate.state_dir().join(name)).ok();
            }
            fs::remove_dir_all(gate.state_dir().join("objects")).ok();
        }
        if round % 6 == 5 {
            fs::remove_dir_all(gate.state_dir().join("cache")).ok();
        }
        gate.start_agent()?;
        gate.until_converged(3 + come.len())?;
        let now = gate.pids()?;
        let kept = before.iter().all(|pid| now.contains(pid));
        ensure!(kept, "round {round}: {before:?} became {now:?}");
        gate.until("every process belongs to a pod", |gate| {
            gate.cgroup_pids().ok() == gate.pids().ok()
        })?;
    }
    let status = gate.status()?;
    let pods = status["pods"].as_array().context("no pods in the status")?;
    let restarted = pods.iter().find(|pod| pod["restarts"] != 0);
    ensure!(restarted.is_none(), "{restarted:?}");
    Ok(())
}

/// The gate works alone. Without a cloud, agent and workloads are killed: everything must run again from
/// the medium, and be in sync once the cloud is back.
///
/// # Errors
/// Which condition is violated.
pub fn alone(mut gate: Gate) -> Result<()> {
    gate.manifests(&manifests(2))?;
    gate.until_converged(2)?;
    let before = gate.pids()?;
    gate.kill_cloud()?;
    gate.kill_agent()?;
    for pid in &before {
        Command::new("kill")
            .args(["-9", &pid.to_string()])
            .status()?;
    }
    gate.start_agent()?;
    gate.until("pods run offline", |gate| {
        gate.pids()
            .is_ok_and(|pids| pids.len() == 2 && pids.iter().all(|pid| !before.contains(pid)))
    })?;
    let alone = gate.pids()?;
    ensure!(gate.status()?["connected"] == false);
    gate.start_cloud()?;
    gate.until_converged(2)?;
    ensure!(gate.pids()? == alone, "the cloud's return touches nothing");
    Ok(())
}

/// The end of the cloud affects nothing, and a change made afterwards arrives.
///
/// # Errors
/// Which condition is violated.
pub fn cloud_restarted(mut gate: Gate) -> Result<()> {
    gate.manifests(&manifests(1))?;
    gate.until_converged(1)?;
    let before = gate.pids()?;
    gate.kill_cloud()?;
    gate.start_cloud()?;
    gate.until_converged(1)?;
    ensure!(gate.pids()? == before);
    gate.manifests(&manifests(4))?;
    gate.until_converged(4)?;
    ensure!(gate.pids()?.contains(&before[0]));
    gate.until_logged("pod-3", "lane 3\n")
}

/// Revocation ends a live session, and the node continues to work.
///
/// # Errors
/// Which condition is violated.
pub fn revoked(gate: &Gate) -> Result<()> {
    gate.manifests(&manifests(1))?;
    gate.until_converged(1)?;
    let before = gate.pids()?;
    gate.cloud_text(&["node", "revoke", "gate", "--yes"])?;
    gate.until("the session ends", |gate| {
        gate.status()
            .is_ok_and(|status| status["connected"] == false)
    })?;
    ensure!(gate.pids()? == before);
    ensure!(gate.cloud_text(&["logs", "gate/pod-0"]).is_err());
    Ok(())
}
