//! The agent's writes are counted, shown, and compared with the board's budget for a day.
#![cfg(test)]

use std::fs;
use std::time::{Duration, Instant};

use memtests::{Gate, Setup};
use serde_json::Value;

/// Bytes of the ConfigMap: each change of it is written twice, as it arrives and as it is kept.
const CONFIG_BYTES: usize = 300_000;

fn manifests(version: u32) -> String {
    let filler = "x".repeat(CONFIG_BYTES);
    format!(
        "\
apiVersion: v1
kind: ConfigMap
metadata: {{name: lane}}
data: {{version: \"{version}\", filler: {filler}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: counter}}
spec:
  runtimeClassName: process
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      command: [/bin/sh, -c, 'exec sleep 100000']
      volumeMounts: [{{name: lane, mountPath: /lane}}]
  volumes: [{{name: lane, configMap: {{name: lane}}}}]
"
    )
}

/// Brings a change to the gate, and waits until it is acknowledged.
fn change(gate: &Gate, version: u32) -> Value {
    let root = gate.status().unwrap()["desired_root"].clone();
    gate.manifests(&manifests(version)).unwrap();
    gate.until("the change is acknowledged", |gate| {
        gate.status()
            .is_ok_and(|status| status["desired_root"] != root && status["in_sync"] == true)
    })
    .unwrap();
    gate.status().unwrap()
}

fn today(status: &Value, name: &str) -> u64 {
    let rows = status["flash"]["subsystems"].as_array().unwrap();
    let row = rows.iter().find(|row| row["name"] == name).unwrap();
    row["today_bytes"].as_u64().unwrap()
}

/// Goal: over the budget the board reports it, here and to the cloud, still accepts changes, and
/// does not write the state cache. Method: a budget of 2 MiB, and changes of a large ConfigMap.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn over_the_budget_only_the_cache_waits() {
    let dir = tempdir();
    let board = memtests::root().join("board-configs/ipc-x86_64.toml");
    let board = fs::read_to_string(board).unwrap();
    let small = board.replace("flash-mib-per-day = 512", "flash-mib-per-day = 2");
    assert_ne!(board, small);
    let file = dir.join("board.toml");
    fs::write(&file, small).unwrap();
    let gate = Gate::set_up(Setup {
        manifests: manifests(1),
        config: format!("board-file = \"{}\"\n", file.display()),
        ..Setup::default()
    })
    .unwrap();
    gate.until_converged(1).unwrap();
    let status = gate.status().unwrap();
    assert_eq!(status["flash"]["budget_bytes_per_day"], 2 << 20);
    assert_eq!(status["flash"]["at_risk"], false, "{status}");
    assert!(
        today(&status, "objects") >= 2 * CONFIG_BYTES as u64,
        "{status}"
    );
    assert!(today(&status, "desired") > 0, "{status}");
    gate.until("the cache is written, and counted", |gate| {
        gate.status()
            .is_ok_and(|status| today(&status, "cache") > 0)
    })
    .unwrap();

    // As many as it takes: how often the cache is written meanwhile is not tested.
    let mut version = 2;
    while change(&gate, version)["flash"]["at_risk"] == false {
        version += 1;
        assert!(version < 8, "{}", gate.status().unwrap());
    }
    gate.until("the cloud sees the condition", |gate| {
        let nodes = gate.cloud_json("/v1/nodes");
        nodes.is_ok_and(|nodes| nodes[0]["conditions"]["FlashBudgetAtRisk"].is_string())
    })
    .unwrap();
    let text = gate.agent_text(&["status"]).unwrap();
    assert!(text.contains("FlashBudgetAtRisk"), "{text}");
    assert!(text.contains(" KiB today of 2048 KiB"), "{text}");

    // The store does one thing after the other: with this one accepted, no cache is being written.
    let generation = gate.state_dir().join("cache/generation");
    change(&gate, version + 1);
    let cached = fs::read_to_string(&generation).unwrap();
    // Longer than the quiet time after which it would be written: a window, because nothing happens.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(4) {
        assert_eq!(fs::read_to_string(&generation).unwrap(), cached);
        std::thread::sleep(Duration::from_millis(200));
    }
    fs::remove_dir_all(dir).unwrap();
}

fn tempdir() -> std::path::PathBuf {
    let name = format!("edge-min-flash-{}", std::process::id());
    let dir = std::env::temp_dir().join(name);
    fs::create_dir_all(&dir).unwrap();
    dir
}
