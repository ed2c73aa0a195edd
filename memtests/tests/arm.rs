//! The ARM binaries of `scripts/build`, run on this machine by QEMU's user-mode emulation: for
//! function only, because memory and time mean nothing there. `tests/board.rs` has a real kernel.
#![cfg(test)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use memtests::{Gate, Setup, root};
use serde_json::Value;

/// One target and Debian's emulator for it.
struct Target {
    name: &'static str,
    emulator: &'static str,
}

const AARCH64: Target = Target {
    name: "aarch64-unknown-linux-musl",
    emulator: "qemu-aarch64",
};
const ARMV7: Target = Target {
    name: "armv7-unknown-linux-musleabihf",
    emulator: "qemu-arm",
};

const POD: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: counter}
spec:
  runtimeClassName: process
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      command: [/bin/sh, -c, 'echo lane 3; exec sleep 100000']
      resources: {limits: {memory: 64Mi}}
";

/// The agent starts its own program for each pod, so the kernel has to know the interpreter of its files.
/// Registers the emulator as Debian's own service does, which needs systemd; it stays registered.
fn register(target: &Target) {
    let folder = Path::new("/proc/sys/fs/binfmt_misc");
    if folder.join(target.emulator).exists() {
        return;
    }
    if !folder.join("register").exists() {
        let mounted = Command::new("mount")
            .args(["-t", "binfmt_misc", "binfmt_misc"])
            .arg(folder)
            .status()
            .unwrap();
        // The other test may have registered it first.
        let there = mounted.success() || folder.join("register").exists();
        assert!(there, "binfmt_misc does not mount");
    }
    let rule = format!("/usr/lib/binfmt.d/{}.conf", target.emulator);
    let rule = fs::read(&rule).unwrap_or_else(|error| panic!("{rule}: {error}"));
    let registered = fs::write(folder.join("register"), rule);
    // The same race.
    assert!(registered.is_ok() || folder.join(target.emulator).exists());
}

fn agent(target: &Target) -> PathBuf {
    let agent = root().join("dist").join(target.name).join("edge-min");
    assert!(
        agent.exists(),
        "{} is missing: scripts/build {}",
        agent.display(),
        target.name
    );
    agent
}

/// Goal: the binary works, whatever its target. Method: commands through the emulator,
/// then a whole gate: join over TLS, one process pod with a limit, seen and read by the cloud.
///
/// Two things cannot be tested here. A new agent does not adopt a pod, because the emulator invents
/// the content of a process's own `/proc/PID/stat`, so the stored start time is not the
/// one that another process sees. And the emulator refuses to make the agent a subreaper, so
/// containers by runc would lose their exit codes. `tests/board.rs` has both.
fn works(target: &Target) {
    let agent = agent(target);
    register(target);
    let run = |args: &[&str]| {
        Command::new(format!("{}-static", target.emulator))
            .arg(&agent)
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    let version = run(&["--version"]);
    assert!(version.status.success(), "{version:?}");
    assert!(version.stdout.starts_with(b"edge-min "), "{version:?}");
    // This machine has no config in the default place, which `check` reports.
    let check = run(&["check", "--json"]);
    let check: Value = serde_json::from_slice(&check.stdout).unwrap();
    let findings = check["findings"].as_array().unwrap();
    let cgroups = findings.iter().find(|one| one["name"] == "cgroups");
    assert_eq!(cgroups.unwrap()["verdict"], "ok");

    let gate = Gate::set_up(Setup {
        agent: Some(agent),
        manifests: POD.to_owned(),
        ..Setup::default()
    })
    .unwrap();
    gate.until_converged(1).unwrap();
    gate.until("the cloud sees it running", |gate| {
        let pods = gate.cloud_text(&["--json", "pods"]).unwrap_or_default();
        let pods: Value = serde_json::from_str(&pods).unwrap_or_default();
        pods[0]["name"] == "counter" && pods[0]["phase"] == "Running" && pods[0]["current"] == true
    })
    .unwrap();
    gate.until_logged("counter", "lane 3\n").unwrap();
}

#[test]
#[ignore = "needs root, qemu-user-static, and scripts/build aarch64-unknown-linux-musl"]
fn the_aarch64_binary_works_under_emulation() {
    works(&AARCH64);
}

#[test]
#[ignore = "needs root, qemu-user-static, and scripts/build armv7-unknown-linux-musleabihf"]
fn the_armv7_binary_works_under_emulation() {
    works(&ARMV7);
}
