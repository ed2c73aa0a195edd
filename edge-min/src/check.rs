//! `edge-min check`: what this board lacks, and how to mend it. Looks only; changes nothing.

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::Serialize;

/// Free bytes of the state directory below which a store and one image do not fit.
const DISK_FREE_BYTES_MIN: u64 = 64 * 1024 * 1024;
/// Free RAM below which workloads will not start reliably.
const MEMORY_FREE_KIB_MIN: u64 = 32 * 1024;
/// 2024-01-01: a clock before it was never set.
const CLOCK_UNIX_S_MIN: u64 = 1_704_067_200;

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// The agent works, but not everything does.
    Warning,
    /// Pods will not run.
    Missing,
}

/// One thing that was looked at.
#[derive(Serialize)]
pub struct Finding {
    /// Name, stable for scripts.
    pub name: &'static str,
    /// Verdict.
    pub verdict: Verdict,
    /// What was seen.
    pub seen: String,
    /// What to do; empty when all is well.
    pub fix: &'static str,
}

/// All findings.
#[derive(Serialize)]
pub struct Report {
    /// In the order of looking.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether pods can run.
    #[must_use]
    pub fn passes(&self) -> bool {
        self.findings
            .iter()
            .all(|finding| finding.verdict != Verdict::Missing)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            let word = match finding.verdict {
                Verdict::Ok => "ok     ",
                Verdict::Warning => "warning",
                Verdict::Missing => "MISSING",
            };
            writeln!(f, "{word}  {:<12} {}", finding.name, finding.seen)?;
            if finding.verdict != Verdict::Ok {
                writeln!(f, "         {:<12} fix: {}", "", finding.fix)?;
            }
        }
        Ok(())
    }
}

/// Looks at the board.
#[must_use]
pub fn check(state: &Path, runc: &Path) -> Report {
    let findings = vec![
        check_runc(runc),
        check_cgroups(),
        check_filesystem(
            "overlay",
            "load the kernel module `overlay`, or build it in; process pods work without",
        ),
        check_filesystem("tmpfs", "build the kernel with CONFIG_TMPFS"),
        check_clock(),
        check_disk(state),
        check_identity(state),
        check_memory(),
        check_root(),
    ];
    Report { findings }
}

fn finding(name: &'static str, verdict: Verdict, seen: String, fix: &'static str) -> Finding {
    Finding {
        name,
        verdict,
        seen,
        fix: if verdict == Verdict::Ok { "" } else { fix },
    }
}

fn ok_or(holds: bool, otherwise: Verdict) -> Verdict {
    if holds { Verdict::Ok } else { otherwise }
}

fn check_runc(runc: &Path) -> Finding {
    let output = Command::new(runc)
        .arg("--version")
        .stderr(Stdio::null())
        .output();
    let (verdict, seen) = match output {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            (
                Verdict::Ok,
                text.lines().next().unwrap_or("runc").to_owned(),
            )
        }
        Ok(output) => (
            Verdict::Warning,
            ["runc --version fails: ", &output.status.to_string()].concat(),
        ),
        Err(error) => (
            Verdict::Warning,
            [&runc.to_string_lossy(), ": ", &error.to_string()].concat(),
        ),
    };
    finding(
        "runc",
        verdict,
        seen,
        "install runc 1.1 or newer, or set `runc` in the config; process pods work without",
    )
}

fn check_cgroups() -> Finding {
    let v2 = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let v1 = |name: &str| {
        mounts.lines().any(|line| {
            let mut words = line.split(' ').skip(2);
            words.next() == Some("cgroup")
                && words
                    .next()
                    .is_some_and(|options| options.split(',').any(|option| option == name))
        })
    };
    let needed = ["cpu", "memory", "pids"];
    let missing: Vec<&str> = needed
        .into_iter()
        .filter(|name| !v2.split_whitespace().any(|have| have == *name) && !v1(name))
        .collect();
    let seen = if missing.is_empty() {
        if v2.is_empty() {
            "v1: cpu, memory, pids".to_owned()
        } else {
            "v2: cpu, memory, pids".to_owned()
        }
    } else {
        ["no controller: ", &missing.join(", ")].concat()
    };
    finding(
        "cgroups",
        ok_or(missing.is_empty(), Verdict::Missing),
        seen,
        "mount cgroup2 at /sys/fs/cgroup and enable the controllers (kernel command line: cgroup_enable=memory)",
    )
}

fn check_filesystem(name: &'static str, fix: &'static str) -> Finding {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let have = known
        .lines()
        .any(|line| line.split_whitespace().last() == Some(name));
    let seen = if have {
        "in the kernel"
    } else {
        "not in /proc/filesystems"
    };
    finding(name, ok_or(have, Verdict::Warning), seen.to_owned(), fix)
}

fn check_clock() -> Finding {
    let unix_s = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let set = unix_s >= CLOCK_UNIX_S_MIN;
    finding(
        "clock",
        ok_or(set, Verdict::Warning),
        [&unix_s.to_string(), " s since 1970"].concat(),
        "set the clock (NTP or RTC); until then the trusted floor and the cloud's time are used",
    )
}

fn check_disk(state: &Path) -> Finding {
    let fix = "make room, or move state-dir to a larger partition";
    // The directory may not exist before the first start: its nearest ancestor tells.
    let there = state
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or_else(|| Path::new("/"));
    match rustix::fs::statvfs(there) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let seen = [
                &(free / 1024 / 1024).to_string(),
                " MiB free at ",
                &there.to_string_lossy(),
            ]
            .concat();
            finding(
                "disk",
                ok_or(free >= DISK_FREE_BYTES_MIN, Verdict::Warning),
                seen,
                fix,
            )
        }
        Err(error) => finding("disk", Verdict::Missing, error.to_string(), fix),
    }
}

fn check_identity(state: &Path) -> Finding {
    let fix =
        "join: edge-min join mqtts://HOST --token TOKEN (make one with `edge-cloud token create`)";
    match crate::identity::Identity::load(state) {
        Ok(Some(identity)) => finding(
            "identity",
            Verdict::Ok,
            ["joined as ", &identity.node].concat(),
            fix,
        ),
        Ok(None) => finding("identity", Verdict::Warning, "not joined".to_owned(), fix),
        Err(error) => finding("identity", Verdict::Warning, error.to_string(), fix),
    }
}

fn check_memory() -> Finding {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0);
    finding(
        "memory",
        ok_or(available >= MEMORY_FREE_KIB_MIN, Verdict::Warning),
        [&(available / 1024).to_string(), " MiB available"].concat(),
        "stop what is not needed; the agent itself takes 5 MiB",
    )
}

fn check_root() -> Finding {
    let root = nix::unistd::geteuid().is_root();
    finding(
        "root",
        ok_or(root, Verdict::Missing),
        if root { "yes" } else { "no" }.to_owned(),
        "run as root: cgroups, mounts and namespaces need it",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_runc_is_named_with_its_fix() {
        let report = check(
            Path::new("/nonexistent/state"),
            Path::new("/nonexistent/runc"),
        );
        let text = report.to_string();
        assert!(text.contains("/nonexistent/runc"), "{text}");
        assert!(text.contains("fix: install runc"), "{text}");
        assert!(
            report
                .findings
                .iter()
                .any(|finding| finding.name == "disk" && finding.verdict == Verdict::Ok)
        );
    }
}
