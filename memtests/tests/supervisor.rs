//! What the agent owes the processes that it starts: every end is seen, nothing is left behind,
//! and what does not go away is named.
#![cfg(test)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use memtests::{Gate, Setup};
use serde_json::Value;

const IMAGE: &str = "toll/box:1";

/// A pod of one container that runs a shell script; in the image when it is not a plain process.
fn pod(name: &str, process: bool, policy: &str, script: &str) -> String {
    let (class, image, shell) = if process {
        ("process", String::new(), "/bin/sh")
    } else {
        ("runc", format!("image: '{IMAGE}', "), "/bin/busybox, sh")
    };
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  \
         runtimeClassName: {class}\n  hostNetwork: true\n  restartPolicy: {policy}\n  \
         terminationGracePeriodSeconds: 1\n  containers:\n    \
         - {{name: main, {image}command: [{shell}, -c, '{script}']}}\n"
    )
}

fn container(gate: &Gate, pod: &str) -> Option<Value> {
    let status = gate.status().ok()?;
    let pods = status["pods"].as_array()?.clone();
    let found = pods.into_iter().find(|one| one["name"] == pod)?;
    found["containers"].get(0).cloned()
}

/// (pid, state) of every child of `parent`, dead ones too.
fn children(parent: u32) -> Vec<(u32, char)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // It may be gone by now.
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let Some((_, rest)) = stat.rsplit_once(") ") else {
            continue;
        };
        let mut words = rest.split(' ');
        let (state, of) = (words.next().unwrap(), words.next().unwrap());
        if of == parent.to_string() {
            found.push((pid, state.chars().next().unwrap()));
        }
    }
    found
}

/// Goal: what a workload leaves behind is waited for, and no exit code of a container is taken by
/// that. Method: a pod orphans 1000 short processes and one long one, while 20 containers of both
/// runtimes end at once with codes of their own.
#[test]
#[ignore = "needs root, runc and umoci"]
fn orphans_leave_no_zombie_and_no_exit_code_is_lost() {
    let mut manifests = pod(
        "forks",
        true,
        "Always",
        "(sleep 100000 &); i=0; while [ $i -lt 1000 ]; do (true &); i=$((i+1)); done; echo done; exec sleep 100000",
    );
    for code in 10..20 {
        manifests += &pod(
            &format!("end-{code}"),
            true,
            "Never",
            &format!("exit {code}"),
        );
        manifests += &pod(
            &format!("box-{code}"),
            false,
            "Never",
            &format!("exit {code}"),
        );
    }
    let gate = Gate::set_up(Setup {
        manifests,
        image: Some(IMAGE),
        ..Setup::default()
    })
    .unwrap();
    gate.until("everything has run", |gate| {
        let ended = (10..20)
            .flat_map(|code| [format!("end-{code}"), format!("box-{code}")])
            .all(|name| container(gate, &name).is_some_and(|one| one["state"] == "terminated"));
        let log = gate.cloud_text(&["logs", "gate/forks"]);
        ended && log.is_ok_and(|log| log == "done\n")
    })
    .unwrap();
    for code in 10..20 {
        for name in [format!("end-{code}"), format!("box-{code}")] {
            let found = container(&gate, &name).unwrap();
            assert_eq!(found["exit_code"], code, "{name}: {found}");
        }
    }
    let agent = gate.agent_pid().unwrap();
    let forks = container(&gate, "forks").unwrap()["pid"].as_u64().unwrap();
    let inherited = |(pid, state): &(u32, char)| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        u64::from(*pid) != forks && *state != 'Z' && name == "sleep\n"
    };
    assert!(
        children(agent).iter().any(inherited),
        "orphans do not come to the agent"
    );
    gate.until("no zombie is left", |_| {
        children(agent).iter().all(|(_, state)| *state != 'Z')
    })
    .unwrap();
}

/// Goal: a container that cannot be cleared is named, and goes as soon as it can. Method: runc
/// refuses to delete while a file is there.
#[test]
#[ignore = "needs root, runc and umoci"]
fn a_container_that_cannot_be_cleared_says_so_and_is_cleared_later() {
    let dir: PathBuf = std::env::temp_dir().join(format!("edge-min-runc-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let (runc, block) = (dir.join("runc"), dir.join("block"));
    fs::write(
        &runc,
        format!(
            "#!/bin/sh\ncase \" $* \" in *' delete '*) [ -e {0} ] && {{ echo blocked >&2; exit 1; }};; esac\nexec runc \"$@\"\n",
            block.display()
        ),
    )
    .unwrap();
    fs::set_permissions(&runc, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(&block, "").unwrap();
    let gate = Gate::set_up(Setup {
        manifests: pod("box", false, "Always", "exec sleep 100000"),
        image: Some(IMAGE),
        config: format!("runc = \"{}\"\n", runc.display()),
        ..Setup::default()
    })
    .unwrap();
    gate.until_converged(1).unwrap();
    gate.manifests("").unwrap();
    gate.until("the pod says why it stays", |gate| {
        gate.status().is_ok_and(|status| {
            let pod = &status["pods"][0];
            pod["reason"] == "Terminating" && pod["message"] == "runc delete: blocked"
        })
    })
    .unwrap();
    fs::remove_file(&block).unwrap();
    gate.until("the pod goes", |gate| {
        gate.status()
            .is_ok_and(|status| status["pods"] == Value::Array(Vec::new()))
    })
    .unwrap();
    let log = fs::read_to_string(gate.dir().join("agent.log")).unwrap();
    assert_eq!(log.matches("remove_failed").count(), 1, "{log}");
    drop(gate);
    fs::remove_dir_all(&dir).unwrap();
}
