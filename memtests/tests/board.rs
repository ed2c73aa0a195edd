//! The agent on a whole board: QEMU's virt machine with 4 cores, 1 GB, cgroup v2, Debian's kernel
//! and runc, booted, joined, and cut from power. `scripts/board` makes it.
#![cfg(test)]

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use memtests::board::{Arch, BOARD_TIMEOUT, Board, Boot};
use serde_json::Value;

/// Pods on the board: one container by runc, the rest plain processes.
const PODS: usize = 10;
/// Where the data disk is mounted.
const STATE: &str = "/var/lib/edge-min";
/// Power cuts of the long run, each this much later after its boot than the one before. From the
/// start of the agent to all pods running it takes some ten seconds.
const ROUNDS: u32 = 16;
const CUT_STEP: Duration = Duration::from_millis(600);

/// One ConfigMap that the first pods name, so that a change of it is a generation of the store.
fn manifests(version: u32) -> String {
    let mut text = format!(
        "\
apiVersion: v1
kind: ConfigMap
metadata: {{name: lane}}
data: {{VERSION: \"{version}\"}}
---
apiVersion: v1
kind: Pod
metadata: {{name: camera}}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: board/shell:1
      imagePullPolicy: Never
      command: [/bin/sh, -c, 'echo camera; exec sleep 1000000']
      resources: {{limits: {{memory: 64Mi, cpu: 500m}}}}
      volumeMounts: [{{name: lane, mountPath: /lane}}]
  volumes: [{{name: lane, configMap: {{name: lane}}}}]
"
    );
    for index in 1..PODS {
        text += &format!(
            "---
apiVersion: v1
kind: Pod
metadata: {{name: counter-{index}}}
spec:
  runtimeClassName: process
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      command: [/bin/sh, -c, 'echo counter; exec sleep 1000000']
      resources: {{limits: {{memory: 32Mi}}}}
"
        );
    }
    text
}

fn running(status: &Value) -> usize {
    let pods = status["pods"].as_array().map_or(&[][..], Vec::as_slice);
    let runs = |pod: &&Value| pod["phase"] == "Running" && pod["containers"][0]["pid"].is_u64();
    pods.iter().filter(runs).count()
}

/// The container of the pod with this name; null when there is none.
fn container(status: &Value, name: &str) -> Value {
    let pods = status["pods"].as_array().map_or(&[][..], Vec::as_slice);
    let pod = pods.iter().find(|pod| pod["name"] == name);
    pod.map_or(Value::Null, |pod| pod["containers"][0].clone())
}

/// Damage to the store between a power cut and the next boot, as a command of the board's shell
/// in the state directory. `$new` is the newest file of the desired set.
struct Damage {
    name: &'static str,
    command: &'static str,
    /// The state cache is useless, so the set before the newest change runs. Otherwise the newest does.
    no_cache: bool,
}

const DAMAGES: [Damage; 5] = [
    Damage {
        name: "newest truncated, cache deleted",
        command: "truncate -s $(( $(stat -c %s $new) / 2 )) $new && rm -r cache",
        no_cache: true,
    },
    Damage {
        name: "newest emptied, cache emptied",
        command: ": > $new && rm -r cache && mkdir cache",
        no_cache: true,
    },
    Damage {
        name: "newest deleted, cache truncated",
        command: "rm $new && truncate -s 1000 cache/db",
        no_cache: true,
    },
    Damage {
        name: "one byte of the newest altered, cache whole",
        command: "printf X | dd of=$new bs=1 seek=40 conv=notrunc",
        no_cache: false,
    },
    Damage {
        name: "both emptied, cache whole",
        command: ": > desired.a && : > desired.b",
        no_cache: false,
    },
];

/// Name of the newest file of the desired set.
fn newest(board: &mut Board) -> &'static str {
    // The clock was at 1970 before, so times are useless; the generation is not, a varint
    // after magic and checksum.
    let mut generation = |name: &str| {
        let command = format!("od -An -v -tu1 -j8 -N2 {STATE}/{name}");
        let bytes = board.shell(&command).unwrap();
        let bytes: Vec<u32> = bytes
            .split_whitespace()
            .map(|byte| byte.parse().unwrap())
            .collect();
        if bytes[0] < 128 {
            bytes[0]
        } else {
            bytes[0] - 128 + 128 * bytes[1]
        }
    };
    if generation("desired.a") > generation("desired.b") {
        "desired.a"
    } else {
        "desired.b"
    }
}

/// Damages the newest change as `damage` says, and makes that durable.
fn damage(board: &mut Board, damage: &Damage) {
    let new = newest(board);
    let command = format!("cd {STATE}; new={new}; {} && sync; cd /", damage.command);
    board.shell(&command).unwrap();
}

/// Makes a board with a cloud, boots it and joins with a token. The agent is not restarted yet.
fn join(arch: Arch) -> Board {
    let mut board = Board::make(arch, &manifests(1)).unwrap();
    board.boot(Boot::default()).unwrap();
    let token = board.cloud_text(&["token", "create"]).unwrap();
    let join = format!("edge-min join {} --token {}", board.url(), token.trim());
    assert!(board.shell(&join).unwrap().contains("joined as board"));
    board
}

/// Joins, and waits until the cloud sees all pods running.
fn deploy(arch: Arch) -> Board {
    let mut board = join(arch);
    // An agent reads its identity only at its start.
    board.shell("/etc/init.d/edge-min restart").unwrap();
    board
        .until("the cloud sees all pods running", |board| {
            board
                .running_as_the_cloud_sees()
                .is_ok_and(|names| names.len() == PODS)
        })
        .unwrap();
    in_sync(&mut board);
    board
}

/// Waits until all pods run and both ends have the same sets.
fn in_sync(board: &mut Board) {
    let start = Instant::now();
    loop {
        let status = board
            .until_status("connected, in sync, all pods run", |status| {
                status["connected"] == true && status["in_sync"] == true && running(status) == PODS
            })
            .unwrap();
        // Either may have changed since the other was read.
        let nodes = board.cloud_json("nodes").unwrap();
        let node = &nodes[0];
        let same = |root: &str| node[root] == status[root];
        if node["in_sync"] == true && same("desired_root") && same("reported_root") {
            return;
        }
        assert!(start.elapsed() < BOARD_TIMEOUT, "{node}\n{status}");
    }
}

/// Checks that need a real board: cgroup v2 with limits, and the agent's own memory.
fn check_the_board(board: &mut Board, arch: Arch) {
    let check: Value =
        serde_json::from_str(&board.shell("edge-min check --json").unwrap()).unwrap();
    for finding in check["findings"].as_array().unwrap() {
        assert_eq!(finding["verdict"], "ok", "{finding}");
    }
    let cgroups = "cd /sys/fs/cgroup/edge-min && cat */*/*/memory.max | sort -n | uniq -c; \
                   cat */*/*/cpu.max | sort | uniq -c; cat */*/*/cgroup.procs | wc -l; cd /";
    let cgroups = board.shell(cgroups).unwrap();
    let lines: Vec<Vec<&str>> = cgroups
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let processes = (PODS - 1).to_string();
    assert_eq!(
        lines,
        [
            vec![processes.as_str(), "33554432"],
            vec!["1", "67108864"],
            vec!["1", "50000", "100000"],
            vec![processes.as_str(), "max", "100000"],
            vec![PODS.to_string().as_str()],
        ],
        "{cgroups}"
    );
    let memory = board.status().unwrap()["memory"].clone();
    println!("{}: {PODS} pods: {memory}", arch.name());
    for (key, measured) in [("pss-kib", "pss_kib"), ("anon-kib", "anon_kib")] {
        let measured = memory[measured].as_i64().unwrap();
        assert!(measured > 0, "not measured: {memory}");
        assert!(measured <= arch.budget(key).unwrap(), "{key}: {memory}");
    }
}

/// A process over its memory limit ends with that reason: cgroup v2 counts it elsewhere than v1.
fn outgrow_the_limit(board: &mut Board) {
    let glutton = "---
apiVersion: v1
kind: Pod
metadata: {name: glutton}
spec:
  runtimeClassName: process
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      command: [/bin/sh, -c, 'exec tail /dev/zero']
      resources: {limits: {memory: 8Mi}}
";
    board.manifests(&(manifests(1) + glutton)).unwrap();
    let status = board
        .until_status("the glutton ends", |status| {
            container(status, "glutton")["state"] == "terminated"
        })
        .unwrap();
    let glutton = container(&status, "glutton");
    assert_eq!(glutton["reason"], "OOMKilled", "{glutton}");
    assert_eq!(glutton["exit_code"], 137, "{glutton}");
    board.manifests(&manifests(1)).unwrap();
    board
        .until_status("the glutton goes", |status| {
            container(status, "glutton").is_null()
        })
        .unwrap();
}

/// A container by runc is killed: the agent is its reaper, gets its exit code, and starts it again.
/// Then the agent is killed: its init script starts it again, and it adopts everything that runs.
fn kill_container_and_agent(board: &mut Board) {
    let camera = container(&board.status().unwrap(), "camera");
    board.shell(&format!("kill -9 {}", camera["pid"])).unwrap();
    let status = board
        .until_status("the container runs again", |status| {
            let again = container(status, "camera");
            again["restarts"] == 1 && again["pid"].is_u64() && again["pid"] != camera["pid"]
        })
        .unwrap();
    let camera = container(&status, "camera");
    assert_eq!(camera["exit_code"], 137, "killed, and the agent saw it");
    in_sync(board);

    let pids = |status: &Value| -> Vec<u64> {
        let pods = status["pods"].as_array().map_or(&[][..], Vec::as_slice);
        let pid = |pod: &Value| pod["containers"][0]["pid"].as_u64();
        pods.iter().filter_map(pid).collect()
    };
    let before = pids(&board.status().unwrap());
    assert_eq!(before.len(), PODS);
    let kill = "kill -9 $(ps | awk '/[e]dge-min --config .* run$/ {print $1}')";
    board.shell(kill).unwrap();
    in_sync(board);
    assert_eq!(pids(&board.status().unwrap()), before);
}

/// Changes the ConfigMap and waits until the board has the change; returns the previous root.
fn change(board: &mut Board, version: u32) -> Value {
    let older = board.status().unwrap()["desired_root"].clone();
    board.manifests(&manifests(version)).unwrap();
    board
        .until_status("the change arrives", |status| {
            status["desired_root"] != older
        })
        .unwrap();
    older
}

/// One power cut, and a boot with no cloud and the clock at 1970. With `harm` the newest change is
/// lost as well, and the previous set, with the root `older`, counts.
fn power_cut(board: &mut Board, harm: Option<(&Damage, Value)>, offline: bool) {
    let (harm, older) = harm.unzip();
    let name = harm.map_or("whole", |harm| harm.name);
    let before = board.status().unwrap();
    board.kill_cloud().unwrap();
    if let Some(harm) = harm {
        damage(board, harm);
    }
    board.cut_power().unwrap();
    let boot = Boot {
        offline,
        year_1970: true,
        ..Boot::default()
    };
    board.boot(boot).unwrap();
    let alone = board
        .until_status("all pods run again, alone", |status| {
            running(status) == PODS
        })
        .unwrap();
    assert_eq!(board.shell("date +%Y").unwrap(), "1970", "{name}");
    assert_eq!(alone["connected"], false, "{name}");
    assert_eq!(alone["time_trusted"], false, "{name}");
    let noticed = alone["conditions"].to_string().contains("StoreDamaged");
    assert_eq!(noticed, harm.is_some(), "{name}: {alone}");
    let expected = match (harm, older) {
        (Some(harm), Some(older)) if harm.no_cache => older,
        _ => before["desired_root"].clone(),
    };
    let log = board
        .shell("dmesg | grep -v '\\] \\[' | tail -n 40")
        .unwrap();
    assert_eq!(alone["desired_root"], expected, "{name}: {alone}\n{log}");
    board.start_cloud().unwrap();
    if offline {
        board.cut_power().unwrap();
        board.boot(Boot::default()).unwrap();
    }
    in_sync(board);
    assert_eq!(
        board.status().unwrap()["desired_root"],
        before["desired_root"],
        "{name}"
    );
}

/// Goal: the whole path on one board. Method: boot, join, one container by runc and nine processes,
/// the agent's memory within the board's budget; a killed container starts again, a killed agent
/// adopts everything. Then a change arrives and the power is cut at
/// once; the board boots with no cloud at 1970, and all pods run from the medium, by the changed
/// set. When the cloud is back the roots are equal.
fn whole_path(arch: Arch, long: bool) {
    let _one = one_at_a_time();
    let mut board = deploy(arch);
    check_the_board(&mut board, arch);
    outgrow_the_limit(&mut board);
    kill_container_and_agent(&mut board);
    change(&mut board, 2);
    power_cut(&mut board, None, false);
    if !long {
        return;
    }
    power_cut(&mut board, None, true);
    for (version, harm) in (3..).zip(&DAMAGES) {
        // A generation of its own, so that the previous one also contains all pods.
        // Each boot starts in 1970, so a time of an earlier one may seem to be newer.
        let outdate = format!("touch -c -d '1970-01-01 00:00:00' {STATE}/cache/db");
        board.shell(&outdate).unwrap();
        let older = change(&mut board, version);
        in_sync(&mut board);
        // The process that writes the cache has finished when it has ended.
        let new = newest(&mut board);
        let written =
            format!("test {STATE}/cache/db -nt {STATE}/{new} && ! ps | grep '[s]tate-cache'");
        board.until_shell("the cache follows", &written).unwrap();
        power_cut(&mut board, Some((harm, older)), false);
    }
}

/// Two emulated boards at the same time would only be slower.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Goal: the moment of a power cut does not matter: directly after the join, while the image is
/// unpacked, while containers are created, while pods are replaced. Method: cuts at increasing times
/// after the boot, under a set that changes each time; the identity must stay, and
/// the last boot must converge, leave nothing half-unpacked, and work alone after one more cut.
fn cuts_at_any_moment(arch: Arch) {
    let _one = one_at_a_time();
    let mut board = join(arch);
    board.cut_power().unwrap();
    for round in 1..=ROUNDS {
        board.boot(Boot::default()).unwrap();
        std::thread::sleep(CUT_STEP * round);
        board.cut_power().unwrap();
        let replaced = format!("exec sleep {}", 1_000_000 + round);
        let manifests = manifests(round).replace("exec sleep 1000000", &replaced);
        board.manifests(&manifests).unwrap();
    }
    board.boot(Boot::default()).unwrap();
    in_sync(&mut board);
    let layers = board.shell(&format!("ls {STATE}/layers")).unwrap();
    assert!(!layers.contains(".tmp"), "{layers}");
    assert_eq!(layers.lines().count(), 1, "{layers}");
    power_cut(&mut board, None, false);
}

fn long() -> bool {
    std::env::var("EDGE_MIN_LONG").is_ok_and(|long| !long.is_empty())
}

#[test]
#[ignore = "needs scripts/build aarch64-unknown-linux-musl and QEMU"]
fn an_aarch64_board_goes_the_whole_path() {
    whole_path(Arch::Aarch64, long());
}

/// Takes minutes, so it is only in the long run.
#[test]
#[ignore = "needs scripts/build armv7-unknown-linux-musleabihf and QEMU"]
fn an_armv7_board_goes_the_whole_path() {
    if long() {
        whole_path(Arch::Armv7, true);
    } else {
        println!("not run without EDGE_MIN_LONG=1");
    }
}

/// Takes minutes, so it is only in the long run.
#[test]
#[ignore = "needs scripts/build aarch64-unknown-linux-musl and QEMU"]
fn the_moment_of_a_power_cut_does_not_matter() {
    if long() {
        cuts_at_any_moment(Arch::Aarch64);
    } else {
        println!("not run without EDGE_MIN_LONG=1");
    }
}
