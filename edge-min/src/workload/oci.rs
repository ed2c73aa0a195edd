//! runc's `config.json`, as data. Masked and read-only paths are the defaults of Docker and
//! containerd.

use edge_proto::object::CAPABILITY_NAMES;
use serde_json::{Value, json};

use crate::sys;
use crate::workload::launch;
use crate::workload::spec::Spec;

const MASKED: [&str; 8] = [
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// The configuration of `spec` in the cgroup at `cgroups_path`, below the cgroup root.
pub(super) fn config(spec: &Spec<'_>, cgroups_path: &str) -> Value {
    let (resolved, process) = (spec.resolved, &spec.process);
    let env: Vec<String> = process
        .env
        .iter()
        .map(|(name, value)| [name, "=", value].concat())
        .collect();
    // Not those that the agent has raised for itself.
    let open_files: Vec<Value> = sys::open_files()
        .into_iter()
        .map(|(soft, hard)| json!({ "type": "RLIMIT_NOFILE", "soft": soft, "hard": hard }))
        .collect();
    let uid = process.user.unwrap_or(0);
    let granted = names(resolved.rights.granted);
    let for_users = names(if uid == 0 {
        0
    } else {
        resolved.rights.for_users
    });
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": uid, "gid": resolved.group.unwrap_or(uid) },
            "args": process.argv,
            "env": env,
            "cwd": process.cwd,
            "capabilities": {
                "bounding": granted,
                "effective": granted,
                "permitted": granted,
                "inheritable": for_users,
                "ambient": for_users,
            },
            "noNewPrivileges": true,
            "oomScoreAdj": launch::oom_score_adj(),
            "rlimits": open_files,
        },
        "root": { "path": "rootfs", "readonly": resolved.read_only_root },
        "hostname": resolved.hostname,
        "mounts": mounts(spec),
        "linux": {
            "cgroupsPath": cgroups_path,
            "namespaces": [
                { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
            ],
            "resources": { "devices": devices() },
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
        },
    })
}

fn names(capabilities: u64) -> Vec<String> {
    let mut names = Vec::new();
    for (number, name) in CAPABILITY_NAMES.iter().enumerate() {
        if capabilities >> number & 1 == 1 {
            names.push(["CAP_", name].concat());
        }
    }
    names
}

fn mounts(spec: &Spec<'_>) -> Vec<Value> {
    let mut mounts = vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc",
            "options": ["nosuid", "noexec", "nodev"] }),
        json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] }),
        json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] }),
        json!({ "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] }),
        // A new mount: with a bind mount from the board, only the topmost one would be read-only, and in
        // those below, a container of root could leave its cgroups and so its limits and devices.
        json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", "ro"] }),
        json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] }),
        // Host network: names resolve as on the board.
        json!({ "destination": "/etc/resolv.conf", "type": "bind", "source": "/etc/resolv.conf",
            "options": ["bind", "ro"] }),
    ];
    if !std::path::Path::new("/etc/resolv.conf").exists() {
        mounts.pop();
    }
    for bind in &spec.binds {
        let access = if bind.read_only { "ro" } else { "rw" };
        mounts.push(
            json!({ "destination": bind.target, "type": "bind", "source": bind.source,
            "options": ["rbind", access] }),
        );
    }
    mounts
}

/// Only the devices that every container needs; runc adds null, zero, random and tty.
fn devices() -> Value {
    json!([
        { "allow": false, "access": "rwm" },
        { "allow": true, "type": "c", "major": 136, "access": "rwm" },
        { "allow": true, "type": "c", "major": 5, "minor": 2, "access": "rwm" },
    ])
}
