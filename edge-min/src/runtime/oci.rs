//! runc's `config.json`, as data. Capabilities, masked and read-only paths are those that Docker
//! and containerd give by default.

use serde_json::{Value, json};

use super::Spec;

const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];
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
pub(super) fn config(spec: &Spec, cgroups_path: &str) -> Value {
    let env: Vec<String> = spec
        .env
        .iter()
        .map(|(name, value)| [name, "=", value].concat())
        .collect();
    let uid = spec.uid_number.unwrap_or(0);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": uid, "gid": spec.gid.unwrap_or(uid) },
            "args": spec.argv,
            "env": env,
            "cwd": spec.cwd,
            "capabilities": {
                "bounding": CAPABILITIES,
                "effective": CAPABILITIES,
                "permitted": CAPABILITIES,
            },
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": spec.read_only_root },
        "hostname": spec.hostname,
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

fn mounts(spec: &Spec) -> Vec<Value> {
    let mut mounts = vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc",
            "options": ["nosuid", "noexec", "nodev"] }),
        json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] }),
        json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] }),
        json!({ "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] }),
        json!({ "destination": "/sys", "type": "bind", "source": "/sys",
            "options": ["rbind", "nosuid", "noexec", "nodev", "ro"] }),
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

/// Nothing but the devices that every container needs; runc adds null, zero, random and tty.
fn devices() -> Value {
    json!([
        { "allow": false, "access": "rwm" },
        { "allow": true, "type": "c", "major": 136, "access": "rwm" },
        { "allow": true, "type": "c", "major": 5, "minor": 2, "access": "rwm" },
    ])
}
