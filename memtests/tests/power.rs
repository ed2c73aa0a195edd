//! Power cuts of a whole board, at random moments of a stream of changes: kernel, ext4, virtio disk
//! and agent are real, and the disk loses what was not flushed. The cloud on the host knows what
//! was acknowledged over the link.
#![cfg(test)]

use std::time::{Duration, Instant};

use memtests::board::{Arch, Board, Boot};
use serde_json::Value;

/// Power cuts of the default run, what fits into it with a boot of some seconds for each; the long
/// run has a thousand.
const CUTS: u64 = 6;
const CUTS_LONG: u64 = 1000;
/// A cut comes this long after the board is in sync again, at most.
const CHURN_MS_MAX: u64 = 2500;
/// Stands in for the switch that the board hangs on: it boots unconnected, so that what it holds
/// can be seen before the cloud mends it.
const CONNECT: &str = "ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0 && \
                       ip route add default via 10.0.2.2";

/// A ConfigMap that changes; every other time it is a large object. Its pod waits for ever for a
/// Secret that nobody has, so that nothing runs: here it is about the store.
fn manifests(version: u64) -> String {
    let filler = "x".repeat(if version.is_multiple_of(2) { 9000 } else { 10 });
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
  containers:
    - name: main
      command: [/bin/sh]
      env: [{{name: KEY, valueFrom: {{secretKeyRef: {{name: nobody-has-it, key: key}}}}}}]
      volumeMounts: [{{name: lane, mountPath: /lane}}]
  volumes: [{{name: lane, configMap: {{name: lane}}}}]
"
    )
}

/// What the cloud wants of the board, and whether the board has acknowledged it.
fn wanted(board: &Board) -> Option<(Value, bool)> {
    let nodes = board.cloud_json("nodes").ok()?;
    let node = nodes.get(0)?;
    let acknowledged = node["connected"] == true && node["in_sync"] == true;
    Some((node["desired_root"].clone(), acknowledged))
}

/// Goal: a power cut at any moment loses nothing that the cloud was told, and damages nothing.
/// Method: the host cuts at random moments and keeps score; the next boot looks before it connects.
#[test]
#[ignore = "needs QEMU and dist/"]
fn random_power_cuts_lose_nothing_that_was_acknowledged() {
    let long = std::env::var("EDGE_MIN_LONG").is_ok_and(|long| !long.is_empty());
    let cuts = if long { CUTS_LONG } else { CUTS };
    let boot = Boot {
        store: true,
        ..Boot::default()
    };
    let mut board = Board::make(Arch::Aarch64, &manifests(0)).unwrap();
    board.boot(boot).unwrap();
    board.shell(CONNECT).unwrap();
    let token = board.cloud_text(&["token", "create"]).unwrap();
    let join = format!("edge-min join {} --token {}", board.url(), token.trim());
    assert!(board.shell(&join).unwrap().contains("joined as board"));
    board.shell("/etc/init.d/edge-min restart").unwrap();

    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let (mut version, mut acknowledged) = (0, Value::Null);
    let (mut accepted, mut lost) = (0, 0);
    for cut in 0..cuts {
        board
            .until("the board is in sync", |board| {
                wanted(board).is_some_and(|(_, acknowledged)| acknowledged)
            })
            .unwrap();
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let churn = Duration::from_millis(random % CHURN_MS_MAX);
        let start = Instant::now();
        while start.elapsed() < churn {
            if let Some((root, true)) = wanted(&board)
                && root != acknowledged
            {
                acknowledged = root;
                accepted += 1;
                version += 1;
                board.manifests(&manifests(version)).unwrap();
            }
        }
        // What came in after the last look counts for the next.
        let left = board.cut_power_of_disk(random).unwrap();
        lost += left.sectors_lost;
        board.boot(boot).unwrap();
        let status = board
            .until_status("the agent answers", |status| status["node"] == "board")
            .unwrap();
        let (outstanding, _) = wanted(&board).unwrap();
        let found = &status["desired_root"];
        assert!(
            *found == acknowledged || *found == outstanding || acknowledged.is_null(),
            "cut {cut}: acknowledged {acknowledged}, outstanding {outstanding}, {left:?}: {status}"
        );
        assert_eq!(status["conditions"], serde_json::json!([]), "cut {cut}");
        board.shell(CONNECT).unwrap();
    }
    println!("{cuts} cuts, {accepted} changes acknowledged, {lost} sectors lost");
    assert!(accepted >= cuts / 2, "{accepted} changes in {cuts} cuts");
}
