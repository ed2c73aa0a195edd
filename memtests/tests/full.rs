//! Limits of what a pod may fill.
#![cfg(test)]

use std::path::Path;
use std::process::Command;

use memtests::{Gate, Setup};
use serde_json::{Value, json};

const IMAGE: &str = "toll/box:1";

fn pod(name: &str, process: bool, spec: &Value, script: &str) -> Value {
    let shell = if process { "/bin/sh" } else { "/bin/busybox" };
    let mut container = json!({"name": "main", "image": IMAGE, "command": [shell, "-c", script]});
    if !process {
        container["command"] = json!([shell, "sh", "-c", script]);
    }
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}});
    pod["spec"] = spec.clone();
    container["volumeMounts"] = pod["spec"]["mounts"].take();
    pod["spec"].as_object_mut().unwrap().remove("mounts");
    pod["spec"]["runtimeClassName"] = if process { "process" } else { "runc" }.into();
    pod["spec"]["hostNetwork"] = true.into();
    pod["spec"]["terminationGracePeriodSeconds"] = 1.into();
    pod["spec"]["containers"] = json!([container]);
    pod
}

fn apply(gate: &Gate, pods: &[&Value]) {
    let pods: Vec<String> = pods.iter().map(|pod| pod.to_string()).collect();
    gate.manifests(&pods.join("\n---\n")).unwrap();
}

fn phase(gate: &Gate, name: &str) -> Option<String> {
    let status = gate.status().ok()?;
    let pods = status["pods"].as_array()?;
    let pod = pods.iter().find(|pod| pod["name"] == name)?;
    Some(pod["phase"].as_str()?.to_owned())
}

fn until(gate: &Gate, what: &str, reached: impl Fn(&Gate) -> bool) {
    if let Err(error) = gate.until(what, reached) {
        panic!("{error}\n{}", gate.status().unwrap_or_default());
    }
}

/// KiB that are free where `path` lies.
fn free(path: &Path) -> u64 {
    let output = Command::new("df")
        .args(["-k", "--output=avail"])
        .arg(path)
        .output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    text.lines().nth(1).unwrap().trim().parse().unwrap()
}

fn mount(arguments: &[&str], path: &Path) {
    let mounted = Command::new("mount").args(arguments).arg(path).status();
    assert!(mounted.unwrap().success());
}

/// Goal: a pod that fills its emptyDir does not use space that others need to start.
/// Method: a small run directory, one pod that writes until it is full, and one after it.
#[test]
#[ignore = "needs root: cgroups and mounts"]
fn an_empty_dir_that_is_full_keeps_nobody_from_starting() {
    let gate = Gate::start("").unwrap();
    let run = gate.dir().join("run");
    mount(&["-o", "remount,size=8m"], &run);
    let place = gate.dir().join("place").display().to_string();
    let spec = json!({
        "volumes": [{"name": "room", "emptyDir": {}}],
        "mounts": [{"name": "room", "mountPath": place}],
    });
    let script = format!(
        "while dd if=/dev/zero bs=64k count=1 2>/dev/null >> {place}/file; do :; done; \
         echo full; exec sleep 100000"
    );
    let greedy = pod("greedy", true, &spec, &script);
    apply(&gate, &[&greedy]);
    until(&gate, "the emptyDir is full", |gate| {
        gate.cloud_text(&["logs", "gate/greedy", "-c", "main"])
            .is_ok_and(|text| text == "full\n")
    });
    assert!(free(&run) > 4_000, "{} KiB free", free(&run));
    let other = pod("other", true, &json!({}), "exec sleep 100000");
    apply(&gate, &[&greedy, &other]);
    until(&gate, "the other one runs", |gate| {
        phase(gate, "other").as_deref() == Some("Running")
    });
    apply(&gate, &[]);
    gate.until_converged(0).unwrap();
    until(&gate, "nothing is left of it", |_| {
        !run.join("scratch").exists()
    });
}

/// Goal: a pod that has filled the medium of the state can be removed by the cloud, although
/// that change cannot be stored while the pod exists. Method: a small medium, and a container that
/// writes to its root directory whenever there is space.
#[test]
#[ignore = "needs root and runc"]
fn a_pod_that_has_filled_the_medium_can_be_removed() {
    let gate = Gate::set_up(Setup {
        image: Some(IMAGE),
        ..Setup::default()
    });
    let mut gate = gate.unwrap();
    gate.kill_agent().unwrap();
    let (state, kept) = (gate.state_dir(), gate.dir().join("kept"));
    let copy = |from: &Path, to: &Path| {
        let copied = Command::new("cp").arg("-a").args([from, to]).status();
        assert!(copied.unwrap().success());
    };
    copy(&state, &kept);
    mount(&["-t", "tmpfs", "-o", "size=64m", "tmpfs"], &state);
    copy(&kept.join("."), &state);
    gate.start_agent().unwrap();
    let script =
        "while :; do /bin/busybox dd if=/dev/zero bs=4k count=64 2>/dev/null >> /file; done";
    let greedy = pod("greedy", false, &json!({}), script);
    apply(&gate, &[&greedy]);
    until(&gate, "the medium is full", |_| free(&state) == 0);
    apply(&gate, &[]);
    gate.until_converged(0).unwrap();
    until(&gate, "there is room again", |_| free(&state) > 16_000);
}
