//! A power cut offline, with damage to stored files: every workload runs again from the remaining
//! ones, and nothing prevents the agent from starting.
#![cfg(test)]

use std::fs;
use std::path::Path;

use memtests::Gate;

const PODS: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: first}
spec:
  runtimeClassName: process
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      command: [/bin/sleep, '100000']
      env: [{name: KEY, valueFrom: {secretKeyRef: {name: lane, key: key}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: second}
spec:
  runtimeClassName: process
  terminationGracePeriodSeconds: 1
  containers: [{name: main, command: [/bin/sleep, '100000']}]
---
apiVersion: v1
kind: Secret
metadata: {name: lane}
stringData: {key: open}
";
fn long() -> bool {
    std::env::var("EDGE_MIN_LONG").is_ok_and(|long| !long.is_empty())
}

fn cut(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.len() / 3;
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

/// Damages the two files, and the cache.
fn hurt(state: &Path, flat: &str, cache: &str) {
    let files = ["desired.a", "desired.b"].map(|name| state.join(name));
    // The last row but one has removed them, and no cloud has confirmed the set since.
    let there = || files.iter().filter(|file| file.exists());
    let newest = || {
        there()
            .max_by_key(|file| fs::metadata(file).unwrap().modified().unwrap())
            .unwrap()
    };
    match flat {
        "whole" => {}
        "newest cut" => cut(newest()),
        "newest flipped" => flip(newest()),
        "both flipped" => files.iter().for_each(|file| flip(file)),
        "gone" => there().for_each(|file| fs::remove_file(file).unwrap()),
        other => panic!("{other}"),
    }
    let folder = state.join("cache");
    match cache {
        "whole" => {}
        "cut" => cut(&folder.join("db")),
        "flipped" => flip(&folder.join("db")),
        "emptied" => {
            fs::remove_dir_all(&folder).unwrap();
            fs::create_dir(&folder).unwrap();
        }
        "gone" => fs::remove_dir_all(&folder).unwrap(),
        other => panic!("{other}"),
    }
}

/// Waits until the cache is written to its end: the file with its generation comes last.
fn until_cached(gate: &Gate) {
    let folder = gate.state_dir().join("cache");
    gate.until("the cache is written", |_| {
        let generation = fs::read_to_string(folder.join("generation"));
        generation.is_ok_and(|text| !text.is_empty()) && folder.join("db").exists()
    })
    .unwrap();
}

/// Goal: a gate without a cloud runs everything again after any damage, as long as one copy is
/// valid; without any it waits for the cloud. Method: power cut, damage, start, row by row.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn a_power_cut_and_damage_stop_no_workload() {
    let mut gate = Gate::start(PODS).unwrap();
    gate.until_converged(2).unwrap();
    let root = gate.status().unwrap()["desired_root"].clone();
    // The Secret changes, so that both generations on the medium hold the pods.
    let more = PODS.replace("{key: open}", "{key: open, more: closed}");
    gate.manifests(&more).unwrap();
    gate.until("one more change is stored", |gate| {
        gate.status()
            .is_ok_and(|status| status["desired_root"] != root && status["in_sync"] == true)
    })
    .unwrap();
    until_cached(&gate);
    gate.kill_cloud().unwrap();
    let rows: &[(&str, &str)] = if long() {
        &[
            ("whole", "gone"),
            ("whole", "emptied"),
            ("whole", "cut"),
            ("whole", "flipped"),
            ("newest cut", "gone"),
            ("newest cut", "cut"),
            ("newest flipped", "emptied"),
            ("newest flipped", "whole"),
            ("both flipped", "whole"),
            ("gone", "whole"),
        ]
    } else {
        &[
            ("whole", "flipped"),
            ("newest cut", "emptied"),
            ("both flipped", "whole"),
        ]
    };
    for (flat, cache) in rows {
        let before = gate.pids().unwrap();
        until_cached(&gate);
        gate.power_cut().unwrap();
        hurt(&gate.state_dir(), flat, cache);
        gate.start_agent().unwrap();
        gate.until(&format!("files {flat}, cache {cache}: pods run"), |gate| {
            gate.pids()
                .is_ok_and(|pids| pids.len() == 2 && pids.iter().all(|pid| !before.contains(pid)))
        })
        .unwrap();
        let status = gate.status().unwrap();
        assert_eq!(status["connected"], false);
        let shown = status["conditions"].to_string().contains("StoreDamaged");
        assert_eq!(
            shown,
            *flat != "whole",
            "files {flat}, cache {cache}: {status}"
        );
    }
    gate.power_cut().unwrap();
    hurt(&gate.state_dir(), "gone", "gone");
    gate.start_agent().unwrap();
    gate.until("the agent answers", |gate| gate.status().is_ok())
        .unwrap();
    assert_eq!(gate.pids().unwrap(), Vec::<u64>::new(), "nothing is known");
    gate.start_cloud().unwrap();
    gate.until_converged(2).unwrap();
    let status = gate.status().unwrap();
    assert!(
        !status["conditions"].to_string().contains("StoreDamaged"),
        "{status}"
    );
}

/// Goal: a reset board has nothing of its former state. Method: reset after everything was stored, then
/// start the agent again.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn a_reset_board_is_as_before_its_first_join() {
    let mut gate = Gate::start(PODS).unwrap();
    gate.until_converged(2).unwrap();
    until_cached(&gate);
    let refused = gate.agent_text(&["reset", "--yes"]).unwrap_err();
    assert!(refused.to_string().contains("stop it first"), "{refused}");
    gate.kill_agent().unwrap();
    gate.agent_text(&["reset", "--yes"]).unwrap();
    assert_eq!(gate.cgroup_pids().unwrap(), Vec::<u64>::new());
    let left: Vec<_> = fs::read_dir(gate.state_dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["preload"]);
    gate.start_agent().unwrap();
    gate.until("the agent answers", |gate| gate.status().is_ok())
        .unwrap();
    let status = gate.status().unwrap();
    assert_eq!(status["pods"].as_array().map(Vec::len), Some(0), "{status}");
    assert_eq!(status["connected"], false);
}
