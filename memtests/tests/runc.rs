//! Containers of a real image by the real runc, and plain processes, from the manifest to the state
//! in the kernel: each field that docs/pods.md promises, and a container's whole lifecycle.
#![cfg(test)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use memtests::{Gate, Setup};
use serde_json::{Value, json};

/// Name of the image, in a form that umoci cannot write but a registry would.
const IMAGE: &str = "example.com/toll/busybox:1";

#[derive(Clone, Copy, PartialEq)]
enum Class {
    Runc,
    Process,
}

use Class::{Process, Runc};

impl Class {
    /// Folder of mounted volumes: below `/` in an image, but never in the root of this machine.
    fn volumes(self, gate: &Gate) -> String {
        match self {
            Runc => "/v".to_owned(),
            Process => gate.dir().join("v").display().to_string(),
        }
    }

    fn pod(self, name: &str, spec: Value) -> Value {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}});
        pod["spec"] = spec;
        let class = if self == Runc { "runc" } else { "process" };
        pod["spec"]["runtimeClassName"] = class.into();
        pod["spec"]["hostNetwork"] = true.into();
        pod
    }

    fn container(self, name: &str, script: &str) -> Value {
        let mut container = json!({"name": name, "command": ["/bin/sh", "-c", script]});
        if self == Runc {
            container["image"] = IMAGE.into();
        }
        container
    }
}

fn gate() -> Gate {
    let gate = Gate::set_up(Setup {
        image: Some(IMAGE),
        ..Setup::default()
    });
    let mut gate = gate.unwrap();
    // The name of the folder is only known now.
    let host = gate.dir().join("host");
    fs::create_dir(&host).unwrap();
    let anybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(&host, anybody).unwrap();
    gate.kill_agent().unwrap();
    let config = gate.dir().join("edge-min.toml");
    let text = fs::read_to_string(&config).unwrap();
    let line = format!("host-paths = [\"{}\"]\n", host.display());
    fs::write(config, text + &line).unwrap();
    gate.start_agent().unwrap();
    gate
}

fn apply(gate: &Gate, documents: &[Value]) {
    let documents: Vec<String> = documents.iter().map(Value::to_string).collect();
    gate.manifests(&documents.join("\n---\n")).unwrap();
}

fn pod(gate: &Gate, name: &str) -> Option<Value> {
    let status = gate.status().ok()?;
    let pods = status["pods"].as_array()?;
    pods.iter().find(|pod| pod["name"] == name).cloned()
}

/// The only container, or the first.
fn container(gate: &Gate, name: &str) -> Value {
    pod(gate, name).map_or(Value::Null, |pod| pod["containers"][0].clone())
}

fn pid(gate: &Gate, name: &str) -> u64 {
    container(gate, name)["pid"].as_u64().unwrap()
}

fn until(gate: &Gate, what: &str, reached: impl Fn(&Gate) -> bool) {
    if let Err(error) = gate.until(what, reached) {
        panic!("{error}\n{}", gate.status().unwrap_or_default());
    }
}

fn kill(pid: u64) {
    let killed = Command::new("kill").args(["-9", &pid.to_string()]).status();
    assert!(killed.unwrap().success());
}

/// Whether a process runs. One that only waits to be reaped by its present parent does not.
fn lives(pid: u64) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().unwrap_or_default().trim();
    !state.is_empty() && !state.starts_with(['Z', 'X'])
}

fn logs(gate: &Gate, pod: &str, container: &str) -> String {
    let pod = format!("gate/{pod}");
    // Nothing yet while there is no container.
    gate.cloud_text(&["logs", &pod, "-c", container])
        .unwrap_or_default()
}

/// A file of the cgroup that this process is in, in whichever hierarchy has it.
fn cgroup_file(pid: u64, names: [&str; 2]) -> String {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let roots: Vec<&str> = mounts
        .lines()
        .filter(|line| line.contains(" cgroup"))
        .filter_map(|line| line.split(' ').nth(1))
        .collect();
    for group in groups.lines() {
        let path = group.splitn(3, ':').nth(2).unwrap().trim_start_matches('/');
        for root in &roots {
            for name in names {
                let file = Path::new(root).join(path).join(name);
                // The root of a hierarchy has no limits.
                if let (false, Ok(text)) = (path.is_empty(), fs::read_to_string(file)) {
                    return text.trim().to_owned();
                }
            }
        }
    }
    panic!("no cgroup of {pid} has {names:?}:\n{groups}");
}

fn objects() -> [Value; 2] {
    [
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "lane"},
            "data": {"LANE": "3", "file.txt": "of the config"}}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key"},
            "stringData": {"TOKEN": "of-the-secret"}}),
    ]
}

const MAIN: &str = r#"
echo "env $LANE $TOKEN $GREETING $C_LANE"
echo "args $0, $1, $2"
echo "dir $(pwd)"
echo "user $(busybox id -u) $(busybox id -g)"
echo "config $(cat $V/config/sub/file)"
echo "secret $(cat $V/secret/TOKEN) $(busybox stat -Lc %a $V/secret/TOKEN)"
echo "host $(cat $V/host/given)"
echo taken > $V/host/taken
echo "from main" > $V/shared/new
busybox mv $V/shared/new $V/shared/file
exec sleep 100000
"#;

const OTHER: &str = r#"
until [ -e $V/shared/file ]; do sleep 0.05; done
echo "shared $(cat $V/shared/file)"
for place in config secret host $ROOT; do
    (echo x > $V/$place/new) 2>/dev/null && echo "$place was written"
done
echo "done"
exec sleep 100000
"#;

/// Goal: a manifest's settings take effect in the process. Method: two containers of a pod with
/// every field print them; the limits are read from the kernel.
fn a_pod_gets_what_it_says(class: Class) {
    let gate = gate();
    fs::write(gate.dir().join("host/given"), "of the board").unwrap();
    let volumes = class.volumes(&gate);
    let mount = |name: &str, read_only: bool| {
        let path = format!("{volumes}/{name}");
        json!({"name": name, "mountPath": path, "readOnly": read_only})
    };
    let mut main = class.container("main", MAIN);
    // As in a shell, the word after the script is `$0`.
    main["command"].as_array_mut().unwrap().push("zero".into());
    main["args"] = json!(["one", "two words"]);
    main["workingDir"] = format!("{volumes}/shared").into();
    main["env"] = json!([
        {"name": "V", "value": volumes},
        {"name": "LANE", "valueFrom": {"configMapKeyRef": {"name": "lane", "key": "LANE"}}},
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "key", "key": "TOKEN"}}},
        {"name": "WHO", "value": "driver"},
        {"name": "GREETING", "value": "hello-$(WHO)"},
    ]);
    main["envFrom"] = json!([{"prefix": "C_", "configMapRef": {"name": "lane"}}]);
    main["securityContext"] = json!({"runAsUser": 1234, "runAsGroup": 2345});
    main["resources"] =
        json!({"limits": {"cpu": "250m", "memory": "64Mi", "edge-min.io/pids": "40"}});
    main["volumeMounts"] = json!([
        mount("shared", false),
        mount("host", false),
        mount("config", false),
        mount("secret", false),
    ]);
    let mut other = class.container("other", OTHER);
    let root = if class == Runc { ".." } else { "" };
    other["env"] = json!([{"name": "V", "value": volumes}, {"name": "ROOT", "value": root}]);
    other["volumeMounts"] = json!([
        mount("shared", true),
        mount("host", true),
        mount("config", false),
        mount("secret", false),
    ]);
    if class == Runc {
        other["securityContext"] = json!({"readOnlyRootFilesystem": true});
    }
    let pod = class.pod(
        "whole",
        json!({
            "terminationGracePeriodSeconds": 1,
            "volumes": [
                {"name": "shared", "emptyDir": {}},
                {"name": "host", "hostPath": {"path": gate.dir().join("host")}},
                {"name": "config", "configMap":
                    {"name": "lane", "items": [{"key": "file.txt", "path": "sub/file"}]}},
                {"name": "secret", "secret": {"secretName": "key", "defaultMode": 292}},
            ],
            "containers": [main, other],
        }),
    );
    let [config, secret] = objects();
    apply(&gate, &[config, secret, pod]);
    gate.until_converged(2).unwrap();
    until(&gate, "both have printed", |gate| {
        logs(gate, "whole", "other").contains("done")
    });
    let expected = format!(
        "env 3 of-the-secret hello-driver 3\nargs zero, one, two words\ndir {volumes}/shared\n\
         user 1234 2345\nconfig of the config\nsecret of-the-secret 444\nhost of the board\n"
    );
    assert_eq!(logs(&gate, "whole", "main"), expected);
    assert_eq!(logs(&gate, "whole", "other"), "shared from main\ndone\n");
    let taken = fs::read_to_string(gate.dir().join("host/taken")).unwrap();
    assert_eq!(taken, "taken\n");
    let main = pid(&gate, "whole");
    assert_eq!(cgroup_file(main, ["pids.max", "pids.max"]), "40");
    let memory = cgroup_file(main, ["memory.max", "memory.limit_in_bytes"]);
    assert_eq!(memory, (64 << 20).to_string());
    let cpu = cgroup_file(main, ["cpu.max", "cpu.cfs_quota_us"]);
    assert!(["25000", "25000 100000"].contains(&cpu.as_str()), "{cpu}");
}

#[test]
#[ignore = "needs root and runc"]
fn a_container_gets_what_its_pod_says() {
    a_pod_gets_what_it_says(Runc);
}

#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn a_process_gets_what_its_pod_says() {
    a_pod_gets_what_it_says(Process);
}

const LEAVING: &str = r#"
echo "own $(busybox find /sys -name cgroup.procs | busybox head -c 1)"
for procs in $(busybox find /sys -name cgroup.procs); do
    (echo 0 > $procs) 2>/dev/null && echo "moved to $procs"
    busybox mkdir ${procs%/*}/made 2>/dev/null && echo "made $procs"
done
busybox mount -o remount,rw /sys/fs/cgroup 2>/dev/null && echo "remounted"
echo "done"
exec sleep 100000
"#;

/// Goal: a container of root stays in its cgroups, and so within its limits, its devices and the
/// reach of the agent's SIGKILL. Method: it tries every cgroup that it can find; its cgroup is read
/// from the kernel afterwards.
#[test]
#[ignore = "needs root and runc"]
fn a_container_cannot_leave_its_cgroups() {
    let gate = gate();
    let mut main = Runc.container("main", LEAVING);
    main["resources"] = json!({"limits": {"memory": "64Mi", "edge-min.io/pids": "40"}});
    let spec = json!({"terminationGracePeriodSeconds": 1, "containers": [main]});
    apply(&gate, &[Runc.pod("leaving", spec)]);
    until(&gate, "it has tried", |gate| {
        logs(gate, "leaving", "main").contains("done")
    });
    // It sees them, read-only.
    assert_eq!(logs(&gate, "leaving", "main"), "own /\ndone\n");
    let main = pid(&gate, "leaving");
    assert_eq!(cgroup_file(main, ["pids.max", "pids.max"]), "40");
    let memory = cgroup_file(main, ["memory.max", "memory.limit_in_bytes"]);
    assert_eq!(memory, (64 << 20).to_string());
    apply(&gate, &[]);
    until(&gate, "it has ended", |_| !lives(main));
}

const VOLUMES: &str = r#"
echo here > $V/part/file
echo "part $(cat $V/whole/made/part/file)"
echo "key $(cat $V/key)"
echo "mode $(busybox stat -Lc %a $V/config/LANE)"
echo "optional $(ls $V/optional)$MISSING"
busybox dd if=/dev/zero of=$V/memory/file bs=64k count=64 2>/dev/null || echo "memory is full"
echo "created $(ls $V/created)" > $V/created/file
until [ "$(cat $V/config/LANE)" = 4 ]; do sleep 0.05; done
echo "changed to $(cat $V/config/LANE), and $(cat $V/key) stays"
exec sleep 100000
"#;

/// Goal: the details of volumes work. Method: parts of volumes, modes, caps, optional objects
/// and created directories, and a ConfigMap that changes under a running container.
fn volumes_do_what_they_say(class: Class) {
    let gate = gate();
    let volumes = class.volumes(&gate);
    let mut main = class.container("main", VOLUMES);
    let missing = json!({"name": "none", "key": "k", "optional": true});
    main["env"] = json!([
        {"name": "V", "value": volumes},
        {"name": "MISSING", "valueFrom": {"configMapKeyRef": missing}},
    ]);
    let mount = |path: &str, volume: &str, part: &str| {
        let path = format!("{volumes}/{path}");
        let mut mount = json!({"name": volume, "mountPath": path});
        if !part.is_empty() {
            mount["subPath"] = part.into();
        }
        mount
    };
    main["volumeMounts"] = json!([
        mount("whole", "shared", ""),
        mount("part", "shared", "made/part"),
        mount("config", "config", ""),
        mount("key", "config", "LANE"),
        mount("optional", "optional", ""),
        mount("memory", "memory", ""),
        mount("created", "created", ""),
    ]);
    let created = gate.dir().join("host/created/here");
    let pod = class.pod(
        "volumes",
        json!({
            "terminationGracePeriodSeconds": 1,
            "volumes": [
                {"name": "shared", "emptyDir": {}},
                {"name": "config", "configMap": {"name": "lane", "defaultMode": 256}},
                {"name": "optional", "configMap": {"name": "none", "optional": true}},
                {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
                {"name": "created", "hostPath": {"path": created, "type": "DirectoryOrCreate"}},
            ],
            "containers": [main],
        }),
    );
    let [config, _] = objects();
    apply(&gate, &[config.clone(), pod.clone()]);
    let first = "part here\nkey 3\nmode 400\noptional \nmemory is full\n";
    until(&gate, "the container has printed", |gate| {
        logs(gate, "volumes", "main") == first
    });
    until(&gate, "the folder of the board is written", |_| {
        fs::read_to_string(created.join("file")).is_ok_and(|text| text == "created \n")
    });
    let before = gate.pids().unwrap();
    let mut config = config;
    config["data"]["LANE"] = "4".into();
    apply(&gate, &[config, pod]);
    let second = format!("{first}changed to 4, and 3 stays\n");
    until(&gate, "the container sees the change", |gate| {
        logs(gate, "volumes", "main") == second
    });
    assert_eq!(gate.pids().unwrap(), before, "no restart");
    gate.manifests("").unwrap();
    until(&gate, "the pod ends", |gate| {
        gate.status()
            .is_ok_and(|status| status["pods"] == json!([]))
    });
    assert_eq!(remains(&gate), Vec::<PathBuf>::new());
}

#[test]
#[ignore = "needs root and runc"]
fn volumes_of_a_container_do_what_they_say() {
    volumes_do_what_they_say(Runc);
}

#[test]
#[ignore = "needs root: mounts and namespaces"]
fn volumes_of_a_process_do_what_they_say() {
    volumes_do_what_they_say(Process);
}

const POLITE: &str = "trap 'echo bye > $V/host/bye; exit 0' TERM
echo ready
while :; do sleep 100000 & wait $!; done";
const STUBBORN: &str = "trap '' TERM; echo ready; while :; do sleep 1; done";
const SECOND_TIME: &str = "[ -e $V/host/again ] && exit 0; echo > $V/host/again; exit 4";
/// The buffer alone is four times the limit.
const GREEDY: &str = "exec /bin/busybox dd if=/dev/zero of=/dev/null bs=64M count=9";

/// Goal: a container's lifecycle is Kubernetes': restarts by policy, exit codes and reasons, adoption by
/// a new agent, a graceful end with a final SIGKILL. Method: one pod for each case.
fn a_whole_life(class: Class) {
    let mut gate = gate();
    let volumes = class.volumes(&gate);
    let one = |name: &str, script: &str, policy: &str, grace: u32| {
        let mut main = class.container("main", script);
        main["env"] = json!([{"name": "V", "value": volumes}]);
        let host = format!("{volumes}/host");
        main["volumeMounts"] = json!([{"name": "host", "mountPath": host}]);
        if name == "greedy" {
            main["resources"] = json!({"limits": {"memory": "16Mi"}});
        }
        let volume = json!({"name": "host", "hostPath": {"path": gate.dir().join("host")}});
        class.pod(
            name,
            json!({
                "restartPolicy": policy,
                "terminationGracePeriodSeconds": grace,
                "volumes": [volume],
                "containers": [main],
            }),
        )
    };
    apply(
        &gate,
        &[
            one("steady", "exec sleep 100000", "Always", 1),
            one("polite", POLITE, "Always", 60),
            one("stubborn", STUBBORN, "Always", 1),
            one("well", "exit 0", "Never", 1),
            one("badly", "exit 3", "Never", 1),
            one("again", SECOND_TIME, "OnFailure", 1),
            one("greedy", GREEDY, "Never", 1),
        ],
    );
    let ended = |gate: &Gate, name: &str| {
        let pod = pod(gate, name).unwrap_or_default();
        let main = &pod["containers"][0];
        let (state, code) = (main["state"].clone(), main["exit_code"].clone());
        json!([pod["phase"], state, main["reason"], code, main["restarts"]])
    };
    for (name, end) in [
        (
            "well",
            json!(["Succeeded", "terminated", "Completed", 0, 0]),
        ),
        ("badly", json!(["Failed", "terminated", "Error", 3, 0])),
        (
            "again",
            json!(["Succeeded", "terminated", "Completed", 0, 1]),
        ),
        (
            "greedy",
            json!(["Failed", "terminated", "OOMKilled", 137, 0]),
        ),
    ] {
        until(&gate, &format!("{name} ends with {end}"), |gate| {
            ended(gate, name) == end
        });
    }
    for name in ["polite", "stubborn"] {
        until(&gate, &format!("{name} is ready"), |gate| {
            logs(gate, name, "main") == "ready\n"
        });
    }

    // Killed from outside: it is restarted at once, and counted.
    let first = pid(&gate, "steady");
    kill(first);
    until(&gate, "the killed container comes back", |gate| {
        let main = container(gate, "steady");
        main["restarts"] == 1 && main["state"] == "running" && main["exit_code"] == 137
    });

    // The agent is killed: the next one adopts the same containers, and ended ones stay ended.
    gate.until_converged(3).unwrap();
    let before = gate.pids().unwrap();
    gate.kill_agent().unwrap();
    gate.start_agent().unwrap();
    gate.until_converged(3).unwrap();
    assert_eq!(gate.pids().unwrap(), before);
    for name in ["steady", "polite", "stubborn"] {
        assert_eq!(container(&gate, name)["restarts"], 0, "{name}");
    }
    // An adopted one is watched as well.
    kill(pid(&gate, "steady"));
    until(&gate, "an adopted container comes back", |gate| {
        let main = container(gate, "steady");
        main["restarts"] == 1 && main["state"] == "running"
    });

    // The end: one may clean up, and neither may stay.
    gate.manifests("").unwrap();
    until(&gate, "all pods end", |gate| {
        gate.status()
            .is_ok_and(|status| status["pods"] == json!([]))
    });
    let bye = fs::read_to_string(gate.dir().join("host/bye")).unwrap();
    assert_eq!(bye, "bye\n");
    for pid in before {
        assert!(!lives(pid), "{pid} lives");
    }
    assert_eq!(remains(&gate), Vec::<PathBuf>::new());
}

/// What pods left behind: writable layers, mounts and cgroups.
fn remains(gate: &Gate) -> Vec<PathBuf> {
    let mut remains = Vec::new();
    for folder in ["state/rw", "run/pods", "run/bundles", "run/runc"] {
        let entries = fs::read_dir(gate.dir().join(folder)).into_iter().flatten();
        remains.extend(entries.flatten().map(|entry| entry.path()));
    }
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let mounts: Vec<&Path> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(Path::new)
        .collect();
    let run = gate.dir().join("run");
    for mount in mounts.iter().filter(|path| path.starts_with(&run)) {
        if **mount != run {
            remains.push(mount.to_path_buf());
        }
    }
    let name = gate.dir().file_name().unwrap();
    for root in mounts
        .iter()
        .filter(|path| path.starts_with("/sys/fs/cgroup"))
    {
        let entries = fs::read_dir(root.join(name)).into_iter().flatten();
        let groups = entries.flatten().map(|entry| entry.path());
        remains.extend(groups.filter(|path| path.is_dir()));
    }
    remains
}

#[test]
#[ignore = "needs root and runc"]
fn a_container_lives_and_ends_as_kubernetes_says() {
    a_whole_life(Runc);
}

#[test]
#[ignore = "needs root: cgroups and namespaces"]
fn a_process_lives_and_ends_as_kubernetes_says() {
    a_whole_life(Process);
}

/// Goal: a container that cannot start reports the reason to the operator, and starts once it can. Method: an
/// image that does not exist yet and arrives as a tar, and a host path that the board does not allow.
#[test]
#[ignore = "needs root and runc"]
fn what_cannot_start_says_why() {
    let gate = gate();
    let preload = gate.state_dir().join("preload");
    let renamed = gate.dir().join("image");
    fs::rename(preload.join("image"), &renamed).unwrap();
    let forbidden = json!({
        "volumes": [{"name": "etc", "hostPath": {"path": "/etc"}}],
        "containers": [{"name": "main", "image": IMAGE, "command": ["/bin/true"],
            "volumeMounts": [{"name": "etc", "mountPath": "/e"}]}],
    });
    let program = json!({"containers": [{"name": "main", "command": ["/no/such/program"]}]});
    let late = json!({"terminationGracePeriodSeconds": 1,
        "containers": [Runc.container("main", "echo here; exec sleep 100000")]});
    apply(
        &gate,
        &[Runc.pod("late", late), Process.pod("program", program)],
    );
    let waiting = |name: &str, reason: &str, word: &str| {
        until(&gate, &format!("{name} waits for {reason}"), |gate| {
            let main = container(gate, name);
            main["state"] == "waiting" && main["reason"] == reason
        });
        let message = container(&gate, name)["message"].to_string();
        assert!(message.contains(word), "{message}");
        // Also as text, on both ends.
        let table = gate.agent_text(&["pods"]).unwrap();
        assert!(table.contains(reason) && table.contains(word), "{table}");
        until(&gate, "the cloud knows it", |gate| {
            gate.cloud_text(&["pods"])
                .is_ok_and(|text| text.contains(reason))
        });
    };
    waiting("late", "ErrImageNeverPull", IMAGE);
    waiting("program", "RunContainerError", "/no/such/program");

    // The image is added, as one file.
    let tar = gate.dir().join("image.tar");
    let made = Command::new("tar")
        .arg("-C")
        .arg(&renamed)
        .arg("-cf")
        .arg(&tar)
        .arg(".")
        .status();
    assert!(made.unwrap().success());
    fs::rename(tar, preload.join("image.tar")).unwrap();
    until(&gate, "the late image runs", |gate| {
        container(gate, "late")["state"] == "running"
    });
    gate.until_logged("late", "here\n").unwrap();

    apply(&gate, &[Runc.pod("forbidden", forbidden)]);
    waiting("forbidden", "CreateContainerConfigError", "hostPath /etc");
}

/// Goal: `reset` never removes layers of a running container. Method: with an agent it refuses;
/// without one the container is ended first, and nothing is left of it.
#[test]
#[ignore = "needs root and runc"]
fn reset_stops_what_runs_first() {
    let mut gate = gate();
    let mut spec = json!({"terminationGracePeriodSeconds": 1});
    spec["containers"] = json!([Runc.container("main", "exec sleep 100000")]);
    let mut plain = json!({"terminationGracePeriodSeconds": 1});
    plain["containers"] = json!([Process.container("main", "exec sleep 100000")]);
    apply(&gate, &[Runc.pod("a", spec), Process.pod("b", plain)]);
    gate.until_converged(2).unwrap();
    let pids = gate.pids().unwrap();
    let layers = gate.state_dir().join("layers");
    assert_eq!(fs::read_dir(&layers).unwrap().count(), 1);
    let refused = gate
        .agent_text(&["reset", "--yes"])
        .unwrap_err()
        .to_string();
    assert!(refused.contains("stop it first"), "{refused}");
    assert_eq!(gate.pids().unwrap(), pids);
    gate.kill_agent().unwrap();
    let text = gate.agent_text(&["reset", "--yes"]).unwrap();
    assert!(text.contains("2 containers"), "{text}");
    for pid in pids {
        assert!(!lives(pid), "{pid} lives");
    }
    let left = fs::read_dir(gate.state_dir()).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["preload"]);
    assert_eq!(remains(&gate), Vec::<PathBuf>::new());
}
