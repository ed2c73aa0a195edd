//! The memory promise, against the budget of the board file. PSS and anonymous memory come from
//! `smaps_rollup` of the agent, which is the whole node stack: there is no daemon and no shim.
#![cfg(test)]

use std::fs;
use std::path::{Path, PathBuf};

use memtests::Gate;

/// Goal: with 10 pods running and in sync the static agent stays within its board's budget.
#[test]
#[ignore = "needs root, and scripts/build x86_64-unknown-linux-musl"]
fn ten_pods_fit_the_budget() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let binary: PathBuf = root.join("dist/x86_64-unknown-linux-musl/edge-min");
    let board = fs::read_to_string(root.join("board-configs/ipc-x86_64.toml")).unwrap();
    let board: toml::Table = board.parse().unwrap();
    let budget = |key: &str| board["budget"][key].as_integer().unwrap();
    let pods: String = (0..10)
        .map(|index| {
            format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: pod-{index}}}\nspec:\n  \
                 runtimeClassName: process\n  terminationGracePeriodSeconds: 1\n  containers:\n    \
                 - {{name: main, command: [/bin/sleep, '100000']}}\n"
            )
        })
        .collect();
    let gate = Gate::start_with(binary, &pods).unwrap();
    gate.until_converged(10).unwrap();
    let memory = gate.status().unwrap()["memory"].clone();
    println!("10 pods: {memory}");
    assert!(
        memory["pss_kib"].as_i64().unwrap() <= budget("pss-kib"),
        "{memory}"
    );
    assert!(
        memory["anon_kib"].as_i64().unwrap() <= budget("anon-kib"),
        "{memory}"
    );
    assert!(memory["pss_kib"].as_i64().unwrap() > 0, "not measured");
}
