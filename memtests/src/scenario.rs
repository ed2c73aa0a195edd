//! What must hold over any link: the same acts on a gate of the embedded cloud and on one behind a
//! broker.

use std::fs;
use std::process::Command;

use anyhow::{Result, ensure};

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
    let pod = |index| {
        format!(
            "---
apiVersion: v1
kind: Pod
metadata: {{name: pod-{index}}}
spec:
  runtimeClassName: process
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      command: [/bin/sh, -c, 'echo lane $LANE; exec sleep 100000']
      env: [{{name: LANE, valueFrom: {{configMapKeyRef: {{name: lane, key: LANE}}}}}}]
"
        )
    };
    let pods: Vec<String> = (0..count).map(pod).collect();
    config.to_owned() + &pods.concat()
}

/// No death of the agent touches a workload. kill -9 again and again, in every third round the
/// stored set is wiped, in every sixth its cache too; the processes must stay the same.
///
/// # Errors
/// Where it does not hold.
pub fn agent_killed(mut gate: Gate, rounds: u32) -> Result<()> {
    gate.manifests(&manifests(3))?;
    gate.until_converged(3)?;
    let before = gate.pids()?;
    for round in 0..rounds {
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
        gate.until_converged(3)?;
        ensure!(gate.pids()? == before, "round {round}");
    }
    Ok(())
}

/// The gate works alone. Cloud gone, agent and workloads killed: everything must run again from
/// the medium, and be in sync once the cloud is back.
///
/// # Errors
/// Where it does not hold.
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

/// The cloud's death touches nothing, and a change made afterwards arrives.
///
/// # Errors
/// Where it does not hold.
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
    let log = gate.cloud_text(&["logs", "gate/pod-3"])?;
    ensure!(log == "lane 3\n", "{log}");
    Ok(())
}

/// Revocation ends a live session, and the node's work goes on.
///
/// # Errors
/// Where it does not hold.
pub fn revoked(gate: &Gate) -> Result<()> {
    gate.manifests(&manifests(1))?;
    gate.until_converged(1)?;
    let before = gate.pids()?;
    gate.cloud_text(&["node", "revoke", "gate"])?;
    gate.until("the session ends", |gate| {
        gate.status()
            .is_ok_and(|status| status["connected"] == false)
    })?;
    ensure!(gate.pids()? == before);
    ensure!(gate.cloud_text(&["logs", "gate/pod-0"]).is_err());
    Ok(())
}
