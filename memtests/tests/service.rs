//! The real service files: the agent is started and stopped, workloads stay.
#![cfg(test)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use memtests::{Gate, program, root};

const PODS: &str = "\
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: work}
spec:
  selector: {matchLabels: {app: work}}
  template:
    metadata: {labels: {app: work}}
    spec:
      runtimeClassName: process
      terminationGracePeriodSeconds: 1
      containers:
        - {name: one, command: [/bin/sleep, '100000']}
        - {name: two, command: [/bin/sh, -c, 'sleep 100000; exit 1']}
";

/// Agents that run with this config, as processes. A fork of an agent has its command line until it
/// executes another program, and does not count.
fn agents(config: &Path) -> Vec<u32> {
    let mut found: Vec<(u32, u32)> = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        // It may have ended meanwhile.
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        let config = config.to_str().unwrap().as_bytes();
        if words.contains(&config) && words.contains(&b"run".as_slice()) {
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let parent = stat
                .rsplit(") ")
                .next()
                .and_then(|rest| rest.split(' ').nth(1));
            if let Some(parent) = parent {
                let pid = entry.file_name().to_str().unwrap().parse().unwrap();
                found.push((pid, parent.parse().unwrap()));
            }
        }
    }
    let pids: Vec<u32> = found.iter().map(|(pid, _)| *pid).collect();
    let started = |(pid, parent): (u32, u32)| (!pids.contains(&parent)).then_some(pid);
    found.into_iter().filter_map(started).collect()
}

/// Goal: start, stop, restart and a kill of the agent under the plain init script affect no
/// workload, and there is never more than one agent. Method: the real script with the board's usual
/// shells, with its paths set as an operator sets them.
fn the_init_script_keeps_workloads_running(shell: &[&str]) {
    let mut gate = Gate::start(PODS).unwrap();
    gate.until_converged(2).unwrap();
    let before = gate.pids().unwrap();
    gate.kill_agent().unwrap();
    let config = gate.dir().join("edge-min.toml");
    let defaults = gate.dir().join("defaults");
    fs::write(
        &defaults,
        format!(
            "agent={}\nconfig={}\nrun_dir={1}.run\nlog={1}.log\n",
            program("edge-min").unwrap().display(),
            config.display(),
        ),
    )
    .unwrap();
    fs::write(config.with_extension("toml.log"), "").unwrap();
    let script = |word: &str| -> Output {
        Command::new(shell[0])
            .args(&shell[1..])
            .arg(root().join("scripts/init/edge-min.init"))
            .arg(word)
            .env("EDGE_MIN_DEFAULTS", &defaults)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    let expect = |word: &str, code: i32, text: &str| {
        let output = script(word);
        let all = [output.stdout, output.stderr].concat();
        let all = String::from_utf8(all).unwrap();
        assert_eq!(output.status.code(), Some(code), "{word}: {all}");
        assert!(all.contains(text), "{word}: {all}");
    };
    let untouched = |gate: &Gate| {
        gate.until_converged(2).unwrap();
        assert_eq!(gate.pids().unwrap(), before);
        let agents = agents(&config);
        assert_eq!(agents.len(), 1, "{agents:?}");
        agents[0]
    };

    expect("status", 3, "stopped");
    expect("start", 0, "");
    let first = untouched(&gate);
    expect("status", 0, "is running");
    expect("start", 0, "is running");
    assert_eq!(untouched(&gate), first);
    expect("restart", 0, "");
    let second = untouched(&gate);
    assert_ne!(second, first);
    let killed = Command::new("kill")
        .args(["-9", &second.to_string()])
        .status();
    assert!(killed.unwrap().success());
    gate.until("the loop starts another agent", |_| {
        agents(&config).iter().any(|agent| *agent != second)
    })
    .unwrap();
    untouched(&gate);
    expect("stop", 0, "");
    assert!(agents(&config).is_empty());
    expect("status", 3, "stopped");
    expect("stop", 0, "not running");
    for pid in &before {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        assert!(!stat.contains(") Z "), "{stat}");
    }
    expect("no-such-word", 2, "usage");
    // The gate's own agent ends the pods.
    gate.start_agent().unwrap();
    gate.until_converged(2).unwrap();
    assert_eq!(gate.pids().unwrap(), before);
}

#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn the_init_script_keeps_workloads_running_by_sh() {
    the_init_script_keeps_workloads_running(&["sh"]);
}

#[test]
#[ignore = "needs root and busybox"]
fn the_init_script_keeps_workloads_running_by_busybox() {
    the_init_script_keeps_workloads_running(&["busybox", "sh"]);
}

/// Goal: systemd accepts every line of the unit. Method: its own checker, which needs no running
/// systemd, on the unit with the program where it was built.
#[test]
#[ignore = "needs systemd-analyze"]
fn systemd_finds_no_fault_in_the_unit() {
    let unit = fs::read_to_string(root().join("scripts/init/edge-min.service")).unwrap();
    let agent = program("edge-min").unwrap();
    let dir: PathBuf = std::env::temp_dir().join(format!("edge-min-unit-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let file = dir.join("edge-min.service");
    let verify = |text: &str| {
        fs::write(&file, text).unwrap();
        let output = Command::new("systemd-analyze")
            .args(["verify", "--man=no", "--recursive-errors=one"])
            .arg(&file)
            .output()
            .unwrap();
        let printed = String::from_utf8(output.stderr).unwrap();
        (output.status.success(), printed)
    };
    let unit = unit.replace("/usr/bin/edge-min", agent.to_str().unwrap());
    assert_eq!(verify(&unit), (true, String::new()));
    assert!(!verify(&unit.replace("Delegate=", "Deligate=")).0);
    for line in [
        "KillMode=process",
        "Delegate=yes",
        "RuntimeDirectoryPreserve=yes",
        "Restart=always",
        "StartLimitIntervalSec=0",
    ] {
        assert!(unit.lines().any(|have| have == line), "{line}");
    }
    fs::remove_dir_all(&dir).unwrap();
}
