//! SIGHUP: the agent replaces itself in place by the program at its path, and no workload is affected.
#![cfg(test)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use memtests::{Gate, SCRIPT_IMAGE as IMAGE, Setup, measure, program, script_pod as pod};
use serde_json::Value;
use tempfile::TempDir;

/// Pods that stay and pods that end with a code of their own on SIGUSR1, by both runtimes.
fn pods() -> String {
    [true, false]
        .map(|process| {
            let kind = if process { "plain" } else { "box" };
            let code = if process { 23 } else { 24 };
            let stays = pod(
                &format!("{kind}-stays"),
                process,
                "Always",
                "exec sleep 100000",
            );
            let ends = format!(
                "trap \"exit {code}\" USR1; sleep 100000 & echo ready; while :; do wait; done"
            );
            stays + &pod(&format!("{kind}-ends"), process, "Never", &ends)
        })
        .concat()
}

/// The agent's answer; the command line would be the replaced program.
fn status(gate: &Gate) -> Option<Value> {
    measure::get(&gate.dir().join("run/edge-min.sock"), "/v1/status").ok()
}

fn container(gate: &Gate, pod: &str) -> Option<Value> {
    let status = status(gate)?;
    let pods = status["pods"].as_array()?.clone();
    let found = pods.into_iter().find(|one| one["name"] == pod)?;
    found["containers"].get(0).cloned()
}

fn pid(gate: &Gate, pod: &str) -> u64 {
    let found = container(gate, pod).unwrap();
    found["pid"].as_u64().unwrap()
}

/// Replaces the agent's program by `content`, as an update does: written beside it, then renamed.
fn replace(agent: &Path, content: &[u8]) {
    let new = agent.with_extension("new");
    fs::write(&new, content).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(new, agent).unwrap();
}

fn hang_up(gate: &Gate) {
    let agent = gate.agent_pid().unwrap().to_string();
    let sent = Command::new("kill").args(["-HUP", &agent]).status();
    assert!(sent.unwrap().success());
}

fn logged(gate: &Gate, text: &str) -> usize {
    let log = fs::read_to_string(gate.dir().join("agent.log")).unwrap();
    log.matches(text).count()
}

/// Whether the condition about it is set.
fn has_failed(status: &Value) -> bool {
    let mut conditions = status["conditions"].as_array().unwrap().iter();
    conditions.any(|one| one["name"] == "HandOverFailed")
}

/// A copy of the agent's program, which the test replaces.
fn agent_in(folder: &TempDir) -> PathBuf {
    let agent = folder.path().join("edge-min");
    fs::copy(program("edge-min").unwrap(), &agent).unwrap();
    agent
}

/// Goal: the agent is replaced and has the same process id, containers of both runtimes continue, and those
/// that end while no agent is there keep their exit codes. Method: the program that replaces it is first
/// a shell script, in the same process, which ends two containers and waits by builtins (it must have
/// no child of its own) until the kernel shows them as ended; then it executes the agent. A second signal
/// replaces that one, too.
#[test]
#[ignore = "needs root, runc and umoci"]
fn the_agent_replaces_itself_and_no_exit_code_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let agent = agent_in(&folder);
    let gate = Gate::set_up(Setup {
        agent: Some(agent.clone()),
        manifests: pods(),
        image: Some(IMAGE),
        ..Setup::default()
    })
    .unwrap();
    gate.until_converged(4).unwrap();
    gate.until_logged("plain-ends", "ready\n").unwrap();
    gate.until_logged("box-ends", "ready\n").unwrap();
    let number = gate.agent_pid().unwrap();
    let stay = ["plain-stays", "box-stays"].map(|name| pid(&gate, name));
    let end = ["plain-ends", "box-ends"].map(|name| pid(&gate, name));
    let [one, two] = end;
    let script = format!(
        "#!/bin/sh\nfor pid in {one} {two}; do\n  kill -USR1 $pid\n  \
         while read -r line < /proc/$pid/stat; do\n    \
         case \"$line\" in *') Z '*) break ;; esac\n  done\ndone\n\
         exec {} \"$@\"\n",
        program("edge-min").unwrap().display()
    );
    replace(&agent, script.as_bytes());

    hang_up(&gate);
    for (name, code) in [("plain-ends", 23), ("box-ends", 24)] {
        gate.until("the exit code is known", |gate| {
            container(gate, name).is_some_and(|found| found["exit_code"] == code)
        })
        .unwrap();
    }
    assert_eq!(logged(&gate, "handed_over"), 1);
    hang_up(&gate);
    gate.until("a second hand-over", |gate| {
        logged(gate, "handed_over") == 2
    })
    .unwrap();
    gate.until("the agent answers", |gate| status(gate).is_some())
        .unwrap();
    for (name, code) in [("plain-ends", 23), ("box-ends", 24)] {
        assert_eq!(container(&gate, name).unwrap()["exit_code"], code);
    }
    assert_eq!(
        ["plain-stays", "box-stays"].map(|name| pid(&gate, name)),
        stay
    );
    assert_eq!(gate.agent_pid().unwrap(), number);
    assert_eq!(logged(&gate, "agent_started"), 3);
    assert_eq!(logged(&gate, "hand_over_failed"), 0);
}

/// Goal: a program that cannot be executed leaves the agent running, which reports it. Method: no program,
/// an empty one, and an invalid one, each with a signal; then a valid one again.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn a_program_that_cannot_be_executed_leaves_the_agent_running() {
    let folder = tempfile::tempdir().unwrap();
    let agent = agent_in(&folder);
    let good = fs::read(&agent).unwrap();
    let gate = Gate::set_up(Setup {
        agent: Some(agent.clone()),
        manifests: pod("stays", true, "Always", "exec sleep 100000"),
        ..Setup::default()
    })
    .unwrap();
    gate.until_converged(1).unwrap();
    let (number, stays) = (gate.agent_pid().unwrap(), pid(&gate, "stays"));
    let descriptors = || {
        let all = fs::read_dir(format!("/proc/{number}/fd")).unwrap();
        let links = all.filter_map(|one| fs::read_link(one.unwrap().path()).ok());
        links
            .filter(|link| link.to_string_lossy().starts_with("/memfd:"))
            .count()
    };
    fs::remove_file(&agent).unwrap();
    for failures in 1..=3 {
        match failures {
            1 => {}
            2 => replace(&agent, b""),
            _ => replace(&agent, b"no program"),
        }
        hang_up(&gate);
        gate.until("the failure is logged", |gate| {
            logged(gate, "hand_over_failed") == failures
        })
        .unwrap();
        assert!(has_failed(&status(&gate).unwrap()));
        assert_eq!(descriptors(), 0);
    }
    assert_eq!(logged(&gate, "agent_started"), 1);
    assert_eq!(pid(&gate, "stays"), stays);

    replace(&agent, &good);
    hang_up(&gate);
    gate.until("the agent is replaced", |gate| {
        logged(gate, "agent_started") == 2
            && status(gate).is_some_and(|status| !has_failed(&status))
    })
    .unwrap();
    assert_eq!(gate.agent_pid().unwrap(), number);
    assert_eq!(pid(&gate, "stays"), stays);
}
