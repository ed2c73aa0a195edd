//! Duties of the agent for the processes that it starts: every end is observed, nothing is left behind,
//! and a process that does not end is reported.
#![cfg(test)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use memtests::{Gate, SCRIPT_IMAGE as IMAGE, Setup, script_pod as pod};
use serde_json::Value;

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
        // It may have ended meanwhile.
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

/// Goal: orphans of a workload are waited for, which takes no exit code of a container.
/// Method: a pod orphans 1000 short processes and one long one, while 20 containers of both
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
    gate.until("an orphan comes to the agent", |_| {
        children(agent).iter().any(inherited)
    })
    .unwrap();
    gate.until("no zombie is left", |_| {
        children(agent).iter().all(|(_, state)| *state != 'Z')
    })
    .unwrap();
}

/// Goal: a container that cannot be removed is reported, and removed as soon as it can. Method: runc
/// refuses to delete while a file exists.
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

/// Value of a line of `/proc/PID/status`.
fn status_line(pid: u64, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap().trim().to_owned()
}

/// The same as a mask.
fn mask(pid: u64, name: &str) -> u64 {
    u64::from_str_radix(&status_line(pid, name), 16).unwrap()
}

/// Goal: a container has the documented rights and nothing of the agent's own, in both runtimes.
/// Method: an agent that was started with every attribute set wrongly (signals ignored and blocked, a
/// group, an open file, a umask, an OOM score); the kernel shows the attributes of its containers.
#[test]
#[ignore = "needs root, runc and umoci"]
fn containers_have_the_documented_rights_and_nothing_of_the_agents() {
    /// The default set of containerd.
    const DEFAULT: u64 = 0xa804_25fb;
    const SYS_TIME: u64 = 1 << 25;
    let contexts = [
        ("plain", "{}"),
        ("user", "{runAsUser: 1234, runAsGroup: 4321}"),
        (
            "named",
            "{runAsUser: 1234, capabilities: {add: [SYS_TIME], drop: [CHOWN]}}",
        ),
        ("none", "{capabilities: {drop: [ALL]}}"),
        ("all", "{privileged: true}"),
    ];
    let script = "umask; ls /proc/self/fd | wc -l; ulimit -c; exec sleep 100000";
    let mut manifests = String::new();
    for (name, context) in contexts {
        for process in [true, false] {
            if name == "all" && !process {
                continue;
            }
            let name = format!("{name}-{}", if process { "process" } else { "box" });
            let pod = pod(&name, process, "Always", script);
            manifests += &pod.replace(
                "{name: main,",
                &format!("{{name: main, securityContext: {context},"),
            );
        }
    }
    // The shell of Debian cannot block a signal, but ignore it.
    let dir = std::env::temp_dir().join(format!("edge-min-agent-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let agent = dir.join("agent");
    let real = memtests::program("edge-min").unwrap();
    fs::write(
        &agent,
        format!(
            "#!/bin/sh\ntrap '' HUP INT QUIT USR1 ALRM\numask 077\nexec 7</etc/passwd\n\
             echo 300 >/proc/self/oom_score_adj\nexec setpriv --groups 5,6 {} \"$@\"\n",
            real.display()
        ),
    )
    .unwrap();
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).unwrap();
    let gate = Gate::set_up(Setup {
        agent: Some(agent),
        manifests,
        image: Some(IMAGE),
        ..Setup::default()
    })
    .unwrap();
    gate.until_converged(9).unwrap();
    let own = u64::from(gate.agent_pid().unwrap());
    assert_eq!(
        status_line(own, "Groups:"),
        "5 6",
        "the agent is not as set up"
    );
    let all = mask(own, "CapBnd:");
    for (name, _) in contexts {
        for runtime in ["process", "box"] {
            let name = format!("{name}-{runtime}");
            let Some(found) = container(&gate, &name) else {
                assert_eq!(name, "all-box");
                continue;
            };
            let pid = found["pid"].as_u64().unwrap();
            // A container counts as running before its program is executed, which changes its rights, and a
            // shell blocks signals now and then: the kernel is read when the script has finished.
            let words = if runtime == "process" { 3 } else { 2 };
            let place = format!("gate/{name}");
            let log = || gate.cloud_text(&["logs", &place]);
            gate.until("the script has said all", |_| {
                let command = fs::read(format!("/proc/{pid}/cmdline"));
                command.is_ok_and(|command| command.starts_with(b"sleep\0"))
                    && log().is_ok_and(|log| log.split_whitespace().count() >= words)
            })
            .unwrap();
            let sets = ["CapBnd:", "CapPrm:", "CapEff:", "CapInh:", "CapAmb:"];
            let sets = sets.map(|set| mask(pid, set));
            let named = (DEFAULT | SYS_TIME) & !1 & all;
            let (wanted, no_new_privs) = match name.split('-').next().unwrap() {
                "plain" => ([DEFAULT, DEFAULT, DEFAULT, 0, 0], "1"),
                "user" => ([DEFAULT, 0, 0, 0, 0], "1"),
                "named" => {
                    let time = SYS_TIME & all;
                    ([named, time, time, time, time], "1")
                }
                "none" => ([0; 5], "1"),
                _ => ([all, all, all, 0, 0], "0"),
            };
            assert_eq!(sets, wanted.map(|set| set & all), "{name}");
            assert_eq!(status_line(pid, "NoNewPrivs:"), no_new_privs, "{name}");
            assert_eq!(status_line(pid, "Groups:"), "", "{name}");
            let (user, group) = match name.split('-').next().unwrap() {
                "user" => ("1234", "4321"),
                "named" => ("1234", "1234"),
                _ => ("0", "0"),
            };
            assert_eq!(status_line(pid, "Uid:"), [user; 4].join("\t"), "{name}");
            assert_eq!(status_line(pid, "Gid:"), [group; 4].join("\t"), "{name}");
            // Signals 32 and 33 are the C library's own, which cannot be set.
            let ignored = mask(pid, "SigIgn:") & !(0b11 << 31);
            assert_eq!(ignored, 0, "{name}");
            assert_eq!(mask(pid, "SigBlk:"), 0, "{name}");
            let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
            assert_eq!(score, "300\n", "{name}");
            let log = log().unwrap();
            let printed: Vec<&str> = log.split_whitespace().collect();
            // Standard three and the list itself.
            assert_eq!(printed[..2], ["0022", "4"], "{name}");
            if runtime == "process" {
                assert_eq!(printed[2], "0", "{name}");
            }
        }
    }
    drop(gate);
    fs::remove_dir_all(&dir).unwrap();
}

/// Goal: a program that cannot be executed reports why, and leaves nothing behind.
#[test]
#[ignore = "needs root"]
fn a_program_that_cannot_run_says_why_in_the_status() {
    let command = |name: &str, program: &str| {
        pod(name, true, "Always", "").replace("[/bin/sh, -c, '']", &format!("[{program}]"))
    };
    let missing = command("missing", "/nowhere/toll");
    let plain = command("plain", "/etc/passwd");
    let never = command("never", "/nowhere/once").replace("Always", "Never");
    let mut gate = Gate::start(&(missing + &plain + &never)).unwrap();
    let says = |gate: &Gate, pod: &str, words: &str| {
        container(gate, pod).is_some_and(|one| {
            let message = one["message"].as_str().unwrap_or_default();
            one["reason"] == "RunContainerError" && message.contains(words)
        })
    };
    gate.until("both say why", |gate| {
        says(gate, "missing", "/nowhere/toll: there is no such file")
            && says(gate, "plain", "/etc/passwd: is not executable: chmod +x")
    })
    .unwrap();
    // A pod that may run once has had its run, for a later agent, too.
    for _ in 0..2 {
        gate.until("the run that may be only one has failed", |gate| {
            let main = container(gate, "never").unwrap_or_default();
            main["state"] == "terminated" && main["exit_code"] == 128
        })
        .unwrap();
        gate.until("the cloud knows it", |gate| {
            gate.cloud_text(&["pods"]).is_ok_and(|text| {
                text.lines()
                    .any(|line| line.contains("never") && line.contains("Failed"))
            })
        })
        .unwrap();
        gate.until("no process is left", |gate| {
            children(gate.agent_pid().unwrap()).is_empty()
        })
        .unwrap();
        gate.kill_agent().unwrap();
        gate.start_agent().unwrap();
    }
}

/// Goal: a pod that forks faster than its processes can be killed one by one ends completely. Method:
/// loops that orphan loops, up to the pod's own limit of processes; none handles SIGTERM.
#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn a_pod_that_forks_without_end_is_killed_whole() {
    let script = "trap \"\" TERM; while :; do (while :; do (true &); done &); done 2>/dev/null";
    let manifests = pod("bomb", true, "Always", script).replace(
        "{name: main,",
        "{name: main, resources: {limits: {cpu: 500m, edge-min.io/pids: 60}},",
    );
    let gate = Gate::start(&manifests).unwrap();
    gate.until_converged(1).unwrap();
    let agent = gate.agent_pid().unwrap();
    gate.until("orphans abound", |_| children(agent).len() > 20)
        .unwrap();
    gate.manifests("").unwrap();
    gate.until("the pod is gone", |gate| {
        gate.status()
            .is_ok_and(|status| status["pods"] == Value::Array(Vec::new()))
    })
    .unwrap();
    gate.until("nothing of it is left", |_| children(agent).is_empty())
        .unwrap();
}
