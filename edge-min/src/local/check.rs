//! `edge-min check`: what this board lacks, and how to fix it. It only reads; it changes nothing.

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Serialize;

use crate::board::clock::Clock;
use crate::board::config::{Config, PSS_KIB_DEFAULT};
use crate::link::certificate;
use crate::link::identity::Identity;
use crate::paths;

/// Free bytes of the state directory below which a store and one image do not fit.
const DISK_FREE_BYTES_MIN: u64 = 64 * 1024 * 1024;
/// Free RAM below which workloads will not start reliably.
const MEMORY_FREE_KIB_MIN: u64 = 32 * 1024;
/// Remaining validity, seconds, below which a certificate causes a warning: 30 days.
const CERTIFICATE_LEFT_S_MIN: u64 = 30 * 86_400;
/// One day in seconds.
const DAY_S: u64 = 86_400;
/// `f_type` of tmpfs.
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// 2024-01-01: a clock before it was never set.
const CLOCK_UNIX_S_MIN: u64 = 1_704_067_200;

/// Severity of a finding.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// No problem.
    Ok,
    /// The agent works, but not everything does.
    Warning,
    /// Pods will not run.
    Missing,
}

/// Result of one check.
#[derive(Serialize)]
pub struct Finding {
    /// Name, stable for scripts.
    pub name: &'static str,
    /// Severity: whether pods can run.
    pub verdict: Verdict,
    /// The observed state.
    pub seen: String,
    /// The fix; empty without a problem.
    pub fix: &'static str,
}

/// Results of all checks.
#[derive(Serialize)]
pub struct Report {
    /// In the order of the checks.
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

/// Checks the board that this config describes; without a config, the default folders.
#[must_use]
pub fn check(config: &Result<Config, String>) -> Report {
    let (state, run, runc) = match config {
        Ok(config) => (&*config.state_dir, &*config.run_dir, &*config.runc),
        Err(_) => (
            Path::new(paths::STATE_DEFAULT),
            Path::new(paths::RUN_DEFAULT),
            Path::new("runc"),
        ),
    };
    let identity = Identity::load(state);
    let findings = vec![
        check_root(),
        check_config(config),
        check_kernel(),
        check_cgroups(),
        check_runc(runc),
        check_filesystem(
            "overlay",
            "load the kernel module `overlay`, or build it in; process pods work without",
        ),
        check_filesystem("tmpfs", "build the kernel with CONFIG_TMPFS"),
        check_run_dir(run),
        check_disk(state),
        check_memory(
            config
                .as_ref()
                .map_or(PSS_KIB_DEFAULT, |config| config.pss_kib),
        ),
        check_clock(state),
        check_identity(&identity),
        check_certificate(&identity, Clock::open(state).now().0),
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
            let first = text.lines().next().unwrap_or("runc").to_owned();
            let verdict = ok_or(is_new_enough(&first), Verdict::Warning);
            (verdict, first)
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

/// Whether the first line of `runc --version` names 1.1 or newer.
fn is_new_enough(line: &str) -> bool {
    let version = line.split_whitespace().last().unwrap_or_default();
    let mut numbers = version.split('.').map(|part| part.parse::<u32>());
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= (1, 1),
        _ => false,
    }
}

fn check_config(config: &Result<Config, String>) -> Finding {
    let fix = "write it: `version = 1` alone is a config; docs/operations.md has the keys. The rest \
               of this list is of the default places";
    match config {
        Ok(config) => finding(
            "config",
            Verdict::Ok,
            ["read; board ", &config.board].concat(),
            fix,
        ),
        Err(error) => finding("config", Verdict::Missing, error.clone(), fix),
    }
}

fn check_kernel() -> Finding {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    // Asked for the agent's own process: the kernel answers for itself, whatever its version.
    let own = Pid::from_raw(std::process::id().try_into().unwrap_or(0));
    let has = own.is_some_and(|own| pidfd_open(own, PidfdFlags::empty()).is_ok());
    let seen = if has {
        ["Linux ", release.trim()].concat()
    } else {
        ["Linux ", release.trim(), " has no pidfd_open"].concat()
    };
    let fix = "use Linux 5.3 or newer: the agent holds its containers by pidfd";
    finding("kernel", ok_or(has, Verdict::Missing), seen, fix)
}

fn check_run_dir(run: &Path) -> Finding {
    let fix = "put run-dir on a tmpfs: what stands there is written often and need not survive";
    let there = existing(run);
    let (verdict, seen) = match rustix::fs::statfs(there) {
        Ok(stat) => {
            let tmpfs = u64::try_from(stat.f_type) == Ok(TMPFS_MAGIC);
            let what = if tmpfs {
                " is on tmpfs"
            } else {
                " is not on tmpfs"
            };
            let seen = [&*there.to_string_lossy(), what].concat();
            (ok_or(tmpfs, Verdict::Warning), seen)
        }
        Err(error) => (Verdict::Missing, error.to_string()),
    };
    finding("run-dir", verdict, seen, fix)
}

/// The path, or its nearest existing ancestor: nothing may exist before the first start.
fn existing(path: &Path) -> &Path {
    let mut ancestors = path.ancestors();
    let found = ancestors.find(|path| path.exists());
    found.unwrap_or_else(|| Path::new("/"))
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

fn check_clock(state: &Path) -> Finding {
    let unix_s = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let floor = Clock::open(state).now().0;
    let set = unix_s >= CLOCK_UNIX_S_MIN.max(floor);
    let mut seen = date(unix_s);
    if !set {
        seen += &["; the trusted floor is ", &date(floor)].concat();
    }
    finding(
        "clock",
        ok_or(set, Verdict::Warning),
        seen,
        "set the clock (NTP or RTC); until then the trusted floor and the cloud's time are used",
    )
}

fn check_disk(state: &Path) -> Finding {
    let fix = "free space, or move state-dir to a larger partition";
    let there = existing(state);
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

fn check_identity(identity: &std::io::Result<Option<Identity>>) -> Finding {
    let fix =
        "join: edge-min join mqtts://HOST --token TOKEN (make one with `edge-cloud token create`)";
    let (verdict, seen) = match identity {
        Ok(Some(identity)) => (Verdict::Ok, ["joined as ", &identity.node].concat()),
        Ok(None) => (Verdict::Warning, "not joined".to_owned()),
        Err(error) => (Verdict::Warning, error.to_string()),
    };
    finding("identity", verdict, seen, fix)
}

fn check_certificate(identity: &std::io::Result<Option<Identity>>, now_s: u64) -> Finding {
    let fix =
        "join again: `edge-cloud node delete NAME`, then edge-min join; pods run on meanwhile";
    let end = match identity {
        Ok(Some(identity)) => certificate::life(&identity.certificate).map(|(_, end)| end),
        _ => {
            let seen = "none before the join".to_owned();
            return finding("certificate", Verdict::Warning, seen, "join first");
        }
    };
    let (verdict, seen) = match end {
        None => (
            Verdict::Warning,
            "identity/node.crt is no certificate".to_owned(),
        ),
        Some(end) if end <= now_s => (Verdict::Warning, "has expired".to_owned()),
        Some(end) => {
            let left = end - now_s;
            let days = (left / DAY_S).to_string();
            let verdict = ok_or(left >= CERTIFICATE_LEFT_S_MIN, Verdict::Warning);
            (verdict, ["valid for ", &days, " days"].concat())
        }
    };
    finding("certificate", verdict, seen, fix)
}

/// `2026-11-26 01:39 UTC`, the inverse of [`certificate::days_since_1970`].
fn date(unix_s: u64) -> String {
    let days = unix_s / DAY_S + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = match month {
        0..10 => (year, month + 3),
        _ => (year + 1, month - 9),
    };
    let two = |number: u64| [if number < 10 { "0" } else { "" }, &number.to_string()].concat();
    [
        (era * 400 + year).to_string().as_str(),
        "-",
        &two(month),
        "-",
        &two(day),
        " ",
        &two(unix_s % DAY_S / 3600),
        ":",
        &two(unix_s % 3600 / 60),
        " UTC",
    ]
    .concat()
}

fn check_memory(pss_kib: u32) -> Finding {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0);
    finding(
        "memory",
        ok_or(
            available >= MEMORY_FREE_KIB_MIN + u64::from(pss_kib),
            Verdict::Warning,
        ),
        [
            &(available / 1024).to_string(),
            " MiB available; the agent may take ",
            &pss_kib.to_string(),
            " KiB",
        ]
        .concat(),
        "stop what is not needed: pods need what the agent leaves",
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
    use crate::link::certificate::days_since_1970;

    #[test]
    fn a_missing_runc_is_named_with_its_fix() {
        let file = Path::new("/nonexistent/config");
        let text =
            "version = 1\nstate-dir = \"/nonexistent/state\"\nrunc = \"/nonexistent/runc\"\n";
        let dir = tempfile::tempdir().unwrap();
        let there = dir.path().join("edge-min.toml");
        std::fs::write(&there, text).unwrap();
        let config = crate::board::config::load(&there).map_err(|error| error.to_string());
        let report = check(&config);
        let text = report.to_string();
        assert!(text.contains("/nonexistent/runc"), "{text}");
        assert!(text.contains("fix: install runc"), "{text}");
        assert!(
            report
                .findings
                .iter()
                .any(|finding| finding.name == "disk" && finding.verdict == Verdict::Ok)
        );
        let missing = crate::board::config::load(file).map_err(|error| error.to_string());
        let report = check(&missing);
        assert!(!report.passes(), "no config: {report}");
        for one in &report.findings {
            let named = one.verdict == Verdict::Ok || !one.fix.is_empty() && !one.seen.is_empty();
            assert!(named, "{}", one.name);
        }
    }

    #[test]
    fn versions_of_runc_are_compared_as_numbers() {
        assert!(is_new_enough("runc version 1.1.5+ds1"));
        assert!(is_new_enough("runc version 1.10.0"));
        assert!(is_new_enough("runc version 2.0.0-rc1"));
        assert!(!is_new_enough("runc version 1.0.3"));
        assert!(!is_new_enough("crun"));
    }

    #[test]
    fn dates_are_counted_from_1970() {
        assert_eq!(days_since_1970(1970, 1, 1), Some(0));
        assert_eq!(days_since_1970(2000, 2, 29), Some(11_016));
        assert_eq!(days_since_1970(2024, 3, 1), Some(19_783));
        assert_eq!(days_since_1970(2024, 13, 1), None);
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        for days in 0..200_000 {
            let text = date(days * DAY_S + 3660);
            let mut numbers = text.split(['-', ' ']).map(|word| word.parse().unwrap_or(0));
            let mut next = || numbers.next().unwrap();
            assert_eq!(
                days_since_1970(next(), next(), next()),
                Some(days),
                "{text}"
            );
            assert!(text.ends_with(" 01:01 UTC"), "{text}");
        }
    }
}
