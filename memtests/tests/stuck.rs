//! A tool that hangs or is away, few descriptors, and workloads that are in the way on purpose: each harms
//! its own pod at most.
#![cfg(test)]

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::Command;

use memtests::{Gate, SCRIPT_IMAGE, Setup, script_pod};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Containers that need more descriptors than the agent is given.
const MANY: usize = 45;
/// Threads of the agent for containers while nothing hangs.
const SHORT_THREADS: usize = 2;
const SLEEPS: &str = "exec sleep 100000";

/// Writes a program into a folder, and returns its path.
fn write(folder: &TempDir, name: &str, text: &str) -> String {
    let file = folder.path().join(name);
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    file.display().to_string()
}

fn container(gate: &Gate, name: &str) -> Option<Value> {
    let status = gate.status().ok()?;
    let pods = status["pods"].as_array()?;
    let pod = pods.iter().find(|pod| pod["name"] == name)?;
    Some(pod["containers"][0].clone())
}

/// The first crash of this pod is answered.
fn restarts(gate: &Gate, name: &str) {
    let before = container(gate, name).unwrap();
    let killed = Command::new("kill")
        .args(["-9", &before["pid"].to_string()])
        .status();
    assert!(killed.unwrap().success());
    gate.until("it runs again", |gate| {
        container(gate, name).is_some_and(|now| {
            now["state"] == "running" && now["restarts"] == 1 && now["pid"] != before["pid"]
        })
    })
    .unwrap();
}

/// Goal: containers that run are left alone while runc cannot be asked, and pods that need it delay no
/// other. Method: a program in runc's place that hangs whatever it is asked, while the agent is killed
/// and started, and while more pods start than the agent has threads for; then these pods go.
#[test]
#[ignore = "needs root, runc and umoci"]
fn a_runc_that_hangs_harms_its_own_pods_only() {
    let folder = tempfile::tempdir().unwrap();
    // A file that was written just now may be open still in a child of another test, and cannot be
    // executed then: what this does stands in another.
    write(&folder, "answer", "exec runc \"$@\"\n");
    let runc = write(&folder, "runc", "#!/bin/sh\n. \"${0%/*}/answer\"\n");
    let pods = [("plain", true), ("box", false)]
        .map(|(name, process)| script_pod(name, process, "Always", SLEEPS))
        .concat();
    let mut gate = Gate::set_up(Setup {
        manifests: pods.clone(),
        config: format!("runc = \"{runc}\"\n"),
        image: Some(SCRIPT_IMAGE),
        // Without CAP_SYS_RESOURCE this is all that the agent gets.
        wrapper: ["prlimit", "--nofile=64:64"].map(str::to_owned).into(),
        ..Setup::default()
    })
    .unwrap();
    gate.until_converged(2).unwrap();
    let before = gate.pids().unwrap();
    write(
        &folder,
        "answer",
        "echo >> \"${0%/*}/asked\"\nexec sleep 100000\n",
    );
    gate.kill_agent().unwrap();
    gate.start_agent().unwrap();
    gate.until_converged(2).unwrap();
    assert_eq!(gate.pids().unwrap(), before);

    let hung = ["one", "two", "three", "four"];
    let hanging = hung
        .map(|name| script_pod(name, false, "Always", SLEEPS))
        .concat();
    gate.manifests(&(pods.clone() + &hanging)).unwrap();
    let asked = || fs::read(folder.path().join("asked")).map_or(0, |lines| lines.len());
    assert_eq!(asked(), 0, "what runs is known without runc");
    gate.until("more wait for runc than there are threads", |_| {
        asked() > SHORT_THREADS
    })
    .unwrap();
    restarts(&gate, "plain");
    for name in hung {
        let one = container(&gate, name).unwrap();
        assert_eq!(one["state"], "waiting", "{one}");
        assert!(
            !one["message"].to_string().contains("not done"),
            "given up: {one}"
        );
    }
    gate.manifests(&pods).unwrap();
    gate.until_converged(2).unwrap();
    // The gate ends its pods.
    write(&folder, "answer", "exec runc \"$@\"\n");
}

/// Goal: the agent raises its own limit of 64 descriptors and not that of its workloads, and nothing that
/// one makes of its log or puts in the way of a mount reaches others. Method: more containers than
/// descriptors, found again by a new agent; a lease on a log; a link in a folder that a volume shows.
#[test]
#[ignore = "needs root and python3"]
fn few_descriptors_a_leased_log_and_a_link_harm_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let host = folder.path().join("host");
    let elsewhere = folder.path().join("elsewhere");
    fs::create_dir(&host).unwrap();
    fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, host.join("link")).unwrap();
    let many: String = (0..MANY)
        .map(|number| script_pod(&format!("pod-{number}"), true, "Always", SLEEPS))
        .collect();
    let mut gate = Gate::set_up(Setup {
        manifests: many.clone(),
        config: format!("host-paths = [\"{}\"]\n", host.display()),
        wrapper: ["prlimit", "--nofile=64:4096"].map(str::to_owned).into(),
        ..Setup::default()
    })
    .unwrap();
    gate.until_converged(MANY).unwrap();
    let before = gate.pids().unwrap();
    gate.kill_agent().unwrap();
    gate.start_agent().unwrap();
    gate.until_converged(MANY).unwrap();
    assert_eq!(gate.pids().unwrap(), before);
    let files = |pid: u64| {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = limits
            .lines()
            .find(|line| line.starts_with("Max open files"));
        let mut words = line.unwrap().split_whitespace().skip(3);
        [words.next(), words.next()].map(|word| word.unwrap().to_owned())
    };
    assert_eq!(files(before[0]), ["1024", "4096"]);
    assert_eq!(files(gate.agent_pid().unwrap().into()), ["4096", "4096"]);

    let leased = write(
        &folder,
        "lease.py",
        &format!(
            "import fcntl, signal, time\nsignal.signal(signal.SIGIO, lambda *_: None)\n\
             print('x', flush=True)\nfcntl.fcntl(1, fcntl.F_SETLEASE, fcntl.F_WRLCK)\n\
             open('{}', 'w').close()\nwhile True: time.sleep(1000)\n",
            folder.path().join("held").display(),
        ),
    );
    let lease = script_pod("lease", true, "Always", &format!("exec python3 {leased}"));
    let link = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "link"}, "spec": {
        "runtimeClassName": "process", "volumes": [{"name": "v", "emptyDir": {}}],
        "containers": [{"name": "main", "command": ["/bin/sleep", "100000"],
            "volumeMounts": [{"name": "v", "mountPath": host.join("link/new")}]}]}});
    gate.manifests(&[many, lease, format!("---\n{link}\n")].concat())
        .unwrap();
    gate.until("the lease is held", |_| folder.path().join("held").exists())
        .unwrap();
    let refused = gate.agent_text(&["logs", "lease"]).unwrap_err().to_string();
    assert!(refused.contains("lease on its log"), "{refused}");
    restarts(&gate, "pod-0");
    gate.until("the link is named", |gate| {
        container(gate, "link").is_some_and(|one| one["message"].to_string().contains("is a link"))
    })
    .unwrap();
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
}
