//! The agent's command line against a live agent: fields, exit codes, and commands that end.
#![cfg(test)]

use std::process::{Child, Command, Output, Stdio};

use memtests::{Gate, program};
use serde_json::Value;

fn command(gate: &Gate, words: &[&str]) -> Command {
    let mut command = Command::new(program("edge-min").unwrap());
    command
        .arg("--config")
        .arg(gate.dir().join("edge-min.toml"))
        .args(words)
        .stdin(Stdio::null());
    command
}

fn run(gate: &Gate, words: &[&str]) -> (i32, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command(gate, words).output().unwrap();
    let text = String::from_utf8([stdout, stderr].concat()).unwrap();
    (status.code().unwrap(), text)
}

fn pod(name: &str, policy: &str, script: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  \
         runtimeClassName: process\n  restartPolicy: {policy}\n  \
         terminationGracePeriodSeconds: 1\n  containers:\n    \
         - {{name: main, command: [/bin/sh, -c, '{script}']}}\n"
    )
}

/// Goal: the documentation of `status --json` is correct, and the text has the same content. Method: a
/// running agent with a pod that runs and one that has ended.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn status_has_the_promised_fields_and_shows_people_the_same() {
    let manifests = pod("runs", "Always", "exec sleep 100000") + &pod("ends", "Never", "exit 7");
    let gate = Gate::start(&manifests).unwrap();
    gate.until("both pods are where they belong", |gate| {
        gate.status().is_ok_and(|status| {
            let phases: Vec<_> = status["pods"].as_array().unwrap().iter().collect();
            status["in_sync"] == true
                && phases.iter().any(|pod| pod["phase"] == "Running")
                && phases.iter().any(|pod| pod["phase"] == "Failed")
        })
    })
    .unwrap();
    let status = gate.status().unwrap();
    let is_root = |value: &Value| {
        let text = value.as_str().unwrap();
        text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    assert_eq!(status["node"], "gate");
    assert_eq!(status["connected"], true);
    assert_eq!(status["in_sync"], true);
    assert_eq!(status["time_trusted"], true);
    assert!(is_root(&status["desired_root"]) && is_root(&status["reported_root"]));
    for key in ["pss_kib", "anon_kib"] {
        assert!(status["memory"][key].as_u64().unwrap() > 0, "{key}");
    }
    let (code, human) = run(&gate, &["status"]);
    assert_eq!(code, 0);
    for pod in status["pods"].as_array().unwrap() {
        assert_eq!(pod["namespace"], "default");
        assert!(pod["restarts"].is_u64());
        let [one] = pod["containers"].as_array().unwrap().as_slice() else {
            panic!("{pod}");
        };
        assert_eq!(one["name"], "main");
        assert!(one["restarts"].is_u64());
        let (state, pid, exit) = match pod["name"].as_str().unwrap() {
            "runs" => ("running", true, Value::Null),
            _ => ("terminated", false, Value::from(7)),
        };
        assert_eq!(one["state"], state);
        assert_eq!(one["pid"].is_u64(), pid);
        assert_eq!(one["exit_code"], exit);
        let line = human
            .lines()
            .find(|line| {
                ["name", "phase"].map(|key| line.contains(pod[key].as_str().unwrap())) == [true; 2]
            })
            .unwrap();
        for key in ["phase", "name"] {
            assert!(line.contains(pod[key].as_str().unwrap()), "{line}");
        }
        assert!(line.contains(state), "{line}");
        let number = if pid { &one["pid"] } else { &exit };
        assert!(line.contains(&number.to_string()), "{line}");
    }
    for key in ["node", "desired_root", "reported_root"] {
        assert!(human.contains(status[key].as_str().unwrap()), "{key}");
    }
    let (code, pods) = run(&gate, &["pods", "--json"]);
    let pods: Value = serde_json::from_str(&pods).unwrap();
    assert_eq!((code, pods), (0, status["pods"].clone()));
}

/// Goal: exit codes and messages are the documented ones. Method: each kind of mistake.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn each_mistake_has_its_exit_code_and_says_what_to_do() {
    let mut gate = Gate::start(&pod("one", "Always", "exec sleep 100000")).unwrap();
    gate.until_converged(1).unwrap();
    for name in [
        "run", "join", "status", "pods", "logs", "check", "reset", "version",
    ] {
        let (code, text) = run(&gate, &[name, "--help"]);
        assert_eq!(code, 0, "{name}");
        assert!(
            text.starts_with(&format!("usage: edge-min [--config FILE] {name}")),
            "{text}"
        );
        assert_eq!(run(&gate, &["help", name]), (0, text));
        let (_, all) = run(&gate, &["--help"]);
        assert!(all.contains(&format!("\n  {name}")), "{all}");
    }
    for (words, code, text) in [
        (&["statsu"][..], 2, "unknown command"),
        (&[][..], 2, "usage"),
        (&["status", "--yes"][..], 2, "--yes is not for `status`"),
        (&["logs"][..], 2, "usage: edge-min [--config FILE] logs"),
        (&["logs", "--tail", "x", "one"][..], 2, "a number"),
        (&["logs", "nothing"][..], 1, "no pod default/nothing"),
        (
            &["logs", "one", "-c", "two"][..],
            1,
            "choose a container: main",
        ),
        (
            &["join", "mqtts://localhost:1"][..],
            2,
            "--token is missing",
        ),
        (&["reset", "--yes"][..], 1, "stop it first"),
        (
            &["run"][..],
            1,
            "another edge-min uses this folder: stop it first",
        ),
        (
            &["--config", "/nowhere/a.toml", "status"][..],
            1,
            "write it",
        ),
    ] {
        let (found, output) = run(&gate, words);
        assert_eq!(found, code, "{words:?}: {output}");
        assert!(output.contains(text), "{words:?}: {output}");
    }
    let (code, text) = run(&gate, &["check", "--json"]);
    assert_eq!(code, 0, "{text}");
    let report: Value = serde_json::from_str(&text).unwrap();
    let findings = report["findings"].as_array().unwrap();
    for name in [
        "root",
        "config",
        "kernel",
        "cgroups",
        "runc",
        "overlay",
        "run-dir",
        "disk",
        "memory",
        "clock",
        "identity",
        "certificate",
    ] {
        let one = findings.iter().find(|one| one["name"] == name).unwrap();
        assert!(!one["seen"].as_str().unwrap().is_empty(), "{one}");
        if name != "disk" && name != "memory" {
            assert_eq!(one["verdict"], "ok", "{one}");
        }
    }
    gate.kill_agent().unwrap();
    let (code, text) = run(&gate, &["status"]);
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("is `edge-min run` running?"), "{text}");
    // There is no terminal here, and nothing must be wiped.
    let (code, text) = run(&gate, &["reset"]);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("--yes"), "{text}");
    assert!(gate.state_dir().join("identity/node.key").exists());
    gate.start_agent().unwrap();
    gate.until_converged(1).unwrap();
}

/// Goal: a second agent, and a user without rights, get no access to the first one's files. Method: the
/// same state folder with another run folder, and the commands as another user.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn a_second_agent_and_another_user_are_sent_away() {
    use std::os::unix::process::CommandExt as _;
    let mut gate = Gate::start(&pod("one", "Always", "exec sleep 100000")).unwrap();
    gate.until_converged(1).unwrap();
    let pids = gate.pids().unwrap();
    let other = gate.dir().join("other.toml");
    let state = gate.state_dir();
    let config = format!(
        "version = 1\nstate-dir = \"{}\"\nrun-dir = \"{}\"\ncgroup = \"other\"\n",
        state.display(),
        gate.dir().join("other-run").display()
    );
    std::fs::write(&other, config).unwrap();
    let other = other.to_str().unwrap();
    for words in [
        &["--config", other, "run"][..],
        &["--config", other, "reset", "--yes"][..],
    ] {
        let (code, text) = run(&gate, words);
        let expected = format!("{}: another edge-min uses this folder", state.display());
        assert!(code == 1 && text.contains(&expected), "{code} {text}");
    }
    for words in [&["status"][..], &["run"][..], &["reset", "--yes"][..]] {
        let mut other_user = command(&gate, words);
        let answer = other_user.uid(65534).gid(65534).output().unwrap();
        let text = String::from_utf8(answer.stderr).unwrap();
        assert!(
            !answer.status.success() && text.contains("run it as root"),
            "{text}"
        );
    }
    gate.until_converged(1).unwrap();
    assert_eq!(gate.pids().unwrap(), pids);
    // A killed agent holds no lock.
    gate.kill_agent().unwrap();
    gate.start_agent().unwrap();
    gate.until_converged(1).unwrap();
    assert_eq!(gate.pids().unwrap(), pids);
}

/// Goal: following a log ends with its container, its pod or its reader, and a reader that has disconnected
/// occupies nothing. Method: real followers of each kind.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn a_followed_log_ends_with_its_container_pod_or_reader() {
    let quiet = pod("quiet", "Always", "echo ready; exec sleep 100000");
    let ends = pod("ends", "Never", "echo first; sleep 2; echo last");
    let gate = Gate::start(&(quiet + &ends)).unwrap();
    gate.until("both have written", |gate| {
        ["quiet", "ends"]
            .iter()
            .all(|pod| matches!(run(gate, &["logs", pod]), (0, text) if !text.is_empty()))
    })
    .unwrap();
    // Through the link first, so that both wait for the end.
    let far = gate.cloud_text(&["logs", "-f", "gate/ends"]);
    assert_eq!(far.unwrap(), "first\nlast\n");
    let (code, text) = run(&gate, &["logs", "-f", "ends"]);
    assert_eq!((code, text.as_str()), (0, "first\nlast\n"));
    gate.cloud_text(&["logs", "-f", "gate/ends"]).unwrap();

    // As many as the agent serves at once, each killed while it waits.
    for _ in 0..8 {
        let mut follower = command(&gate, &["logs", "-f", "quiet"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        first_line(&mut follower);
        follower.kill().unwrap();
        follower.wait().unwrap();
    }
    assert_eq!(run(&gate, &["pods"]).0, 0);

    let mut follower = command(&gate, &["logs", "-f", "quiet"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    first_line(&mut follower);
    gate.manifests("").unwrap();
    assert!(follower.wait().unwrap().success());
}

/// Reads until a line has come, and leaves the pipe open.
fn first_line(follower: &mut Child) {
    use std::io::Read as _;
    let mut byte = [0; 1];
    let pipe = follower.stdout.as_mut().unwrap();
    while byte[0] != b'\n' {
        pipe.read_exact(&mut byte).unwrap();
    }
}
