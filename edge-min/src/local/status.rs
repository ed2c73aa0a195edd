//! The content of `edge-min status`, as JSON and as text: both from this one struct.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

/// The agent's state at one moment.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// Node name.
    pub node: String,
    /// Version of the agent.
    pub agent: String,
    /// A session with the cloud is live.
    pub connected: bool,
    /// Why there is no connection; empty while there is one, or before the first attempt ended.
    pub link_error: String,
    /// Both roots are equal on both ends, as far as this end knows.
    pub in_sync: bool,
    /// Root of the desired set, 32 hex digits.
    pub desired_root: String,
    /// Root of the reported set, 32 hex digits.
    pub reported_root: String,
    /// The clock was confirmed by the cloud or is above the trusted floor.
    pub time_trusted: bool,
    /// The agent's time, seconds since 1970.
    pub unix_s: u64,
    /// When the node's certificate expires, seconds since 1970; 0 before the join.
    pub certificate_not_after: u64,
    /// When it is to be renewed, seconds since 1970.
    pub certificate_renewal_unix_s: u64,
    /// Why the last renewal failed; empty after a success.
    pub certificate_error: String,
    /// Conditions that hold.
    pub conditions: Vec<Condition>,
    /// Objects that the node does not support.
    pub refused: Vec<Refused>,
    /// All pods on the board, with their status.
    pub pods: Vec<Pod>,
    /// The agent's own memory.
    pub memory: Memory,
    /// Bytes that the agent has written to the flash, and the flash's wear.
    pub flash: Flash,
    /// Counts of records that wait for the cloud, and of delivered and lost ones.
    pub outbox: Outbox,
}

/// The counters of the outbox.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Outbox {
    /// Id of the outbox, 16 hex digits; a new id means that the previous outbox is lost.
    pub incarnation: String,
    /// One row for each class.
    pub classes: Vec<OutboxRow>,
}

/// A class of records: `appended` is the sum of delivered, held and the four of lost.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct OutboxRow {
    /// Name in the config.
    pub class: String,
    /// Records ever written.
    pub appended: u64,
    /// Records that the cloud has acknowledged.
    pub delivered: u64,
    /// Records that wait.
    pub held: u64,
    /// Records that were dropped because of the quota.
    pub lost_quota: u64,
    /// Records that became too old.
    pub lost_expired: u64,
    /// Records that a newer one of the same key replaced.
    pub lost_superseded: u64,
    /// Records that the medium has damaged.
    pub lost_damaged: u64,
    /// Bytes on the medium.
    pub bytes: u64,
}

impl Outbox {
    /// Converts the outbox's own report; empty before the first one.
    #[must_use]
    pub fn new(
        report: &crate::storage::outbox::Report,
        classes: &[crate::storage::outbox::Class],
    ) -> Self {
        let rows = report.classes.iter().map(|(number, counters)| {
            let class = classes.iter().find(|class| class.config.number == *number);
            let [lost_quota, lost_expired, lost_superseded, lost_damaged] = counters.lost;
            OutboxRow {
                class: class.map(|class| class.name.clone()).unwrap_or_default(),
                appended: counters.appended,
                delivered: counters.delivered,
                held: counters.held,
                lost_quota,
                lost_expired,
                lost_superseded,
                lost_damaged,
                bytes: counters.bytes,
            }
        });
        Self {
            incarnation: hex(report.incarnation),
            classes: rows.collect(),
        }
    }
}

impl fmt::Display for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in self.classes.iter().filter(|row| row.appended > 0) {
            let lost = row.lost_quota + row.lost_expired + row.lost_superseded + row.lost_damaged;
            writeln!(
                f,
                "records    {} {} held, {} KiB; {} delivered, {lost} lost of {}",
                row.class,
                row.held,
                row.bytes / 1024,
                row.delivered,
                row.appended
            )?;
        }
        Ok(())
    }
}

/// Bytes that the agent has written to the flash since its start; a day is 24 hours of its run time.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Flash {
    /// Budget of the board file for a day, bytes; null without one.
    pub budget_bytes_per_day: Option<u64>,
    /// The day is over the budget, or will be at the rate of the last hours.
    pub at_risk: bool,
    /// One row for each subsystem.
    pub subsystems: Vec<FlashRow>,
    /// eMMCs of the board that report their wear.
    pub wear: Vec<Wear>,
}

/// Writes of a subsystem.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct FlashRow {
    /// `desired`, `objects`, `cache`, `identity`, `time`, `images` or `outbox`.
    pub name: String,
    /// Bytes today, whole blocks.
    pub today_bytes: u64,
    /// Syncs of files and directories today.
    pub today_syncs: u64,
    /// Bytes since the start.
    pub bytes: u64,
    /// Syncs since the start.
    pub syncs: u64,
}

/// Wear of an eMMC, from its own registers.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Wear {
    /// For example `mmcblk0`.
    pub device: String,
    /// Used lifetime, percent, rounded up to tens; above 100 it may fail any day. Null when not reported.
    pub used_percent: Option<u8>,
    /// Reserved blocks: 1 normal, 2 four fifths are used, 3 nine tenths. Null when not reported.
    pub reserve: Option<u8>,
}

impl fmt::Display for Flash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let today: u64 = self.subsystems.iter().map(|row| row.today_bytes).sum();
        write!(f, "flash      {} KiB today", today / 1024)?;
        if let Some(bytes) = self.budget_bytes_per_day {
            write!(f, " of {} KiB", bytes / 1024)?;
        }
        f.write_char('\n')?;
        for row in self
            .subsystems
            .iter()
            .filter(|row| row.bytes + row.syncs > 0)
        {
            let (today, since) = (row.today_bytes / 1024, row.bytes / 1024);
            writeln!(
                f,
                "           {} {today} KiB, {} syncs; since the start {since} KiB, {} syncs",
                row.name, row.today_syncs, row.syncs
            )?;
        }
        for wear in &self.wear {
            let (used, reserve) = (or_dash(wear.used_percent), or_dash(wear.reserve));
            writeln!(
                f,
                "wear       {} life {used} % used, reserve {reserve}",
                wear.device
            )?;
        }
        Ok(())
    }
}

/// A node condition that holds.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Condition {
    /// For example `StoreDamaged`.
    pub name: String,
    /// Human-readable.
    pub message: String,
}

/// A refused object.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Refused {
    /// `Kind/namespace/name`.
    pub key: String,
    /// Human-readable text of its reason.
    pub reason: String,
}

/// Status of one pod.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Pod {
    /// UID, 32 hex digits.
    pub uid: String,
    /// As in its manifest.
    pub namespace: String,
    /// As in its manifest.
    pub name: String,
    /// Kubernetes' phase.
    pub phase: String,
    /// Reason of the phase; empty when there is none.
    pub reason: String,
    /// Human-readable.
    pub message: String,
    /// Restarts of all its containers.
    pub restarts: u32,
    /// In the order of the Pod.
    pub containers: Vec<Container>,
}

/// Status of one container.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Container {
    /// Name in the pod.
    pub name: String,
    /// `waiting`, `running` or `terminated`.
    pub state: String,
    /// Kubernetes' reason; empty when running.
    pub reason: String,
    /// Human-readable.
    pub message: String,
    /// Process id while running.
    pub pid: Option<u32>,
    /// Since the pod was assigned to this node.
    pub restarts: u32,
    /// Exit code of the last run that ended; null when none did or it is unknown.
    pub exit_code: Option<i32>,
    /// The kernel ended that run for want of memory.
    pub last_oom: bool,
}

/// Memory of the agent's own processes, from `smaps_rollup`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Memory {
    /// Proportional set size, KiB.
    pub pss_kib: u64,
    /// Anonymous memory, KiB.
    pub anon_kib: u64,
}

impl Memory {
    /// Of this process now; zeros where the kernel has no `smaps_rollup`.
    #[must_use]
    pub fn own() -> Self {
        let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
        let kib = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name))
                .and_then(|rest| rest.split_whitespace().next())
                .and_then(|number| number.parse().ok())
                .unwrap_or(0)
        };
        Self {
            pss_kib: kib("Pss:"),
            anon_kib: kib("Anonymous:"),
        }
    }
}

impl Status {
    /// Adds a pod as the core reports it.
    pub fn add_pod(&mut self, status: &edge_proto::object::PodStatus) {
        use edge_proto::object::ContainerState;
        let containers = status.containers.iter().map(|container| {
            let (pid, exit_code, reason, message) = match &container.state {
                ContainerState::Running { pid } => (
                    Some(*pid),
                    container.last_exit_code,
                    String::new(),
                    String::new(),
                ),
                ContainerState::Waiting { reason, message } => (
                    None,
                    container.last_exit_code,
                    reason.clone(),
                    message.clone(),
                ),
                ContainerState::Terminated { exit_code, reason } => {
                    (None, *exit_code, reason.clone(), String::new())
                }
            };
            Container {
                name: container.name.clone(),
                state: container.state.as_str().to_owned(),
                reason,
                message,
                pid,
                restarts: container.restarts,
                exit_code,
                last_oom: container.last_oom,
            }
        });
        self.pods.push(Pod {
            uid: status.uid.to_string(),
            namespace: status.namespace.clone(),
            name: status.name.clone(),
            phase: status.phase.as_str().to_owned(),
            reason: status.reason.clone(),
            message: status.message.clone(),
            restarts: status
                .containers
                .iter()
                .map(|container| container.restarts)
                .sum(),
            containers: containers.collect(),
        });
    }

    /// The table of `edge-min pods`.
    #[must_use]
    pub fn pods_table(&self) -> String {
        if self.pods.is_empty() {
            return "no pods\n".to_owned();
        }
        let mut rows = vec![
            [
                "NAMESPACE/POD",
                "CONTAINER",
                "PHASE",
                "STATE",
                "PID",
                "RESTARTS",
                "EXIT",
                "WHY",
            ]
            .map(str::to_owned),
        ];
        for pod in &self.pods {
            let name = [pod.namespace.as_str(), "/", pod.name.as_str()].concat();
            if pod.containers.is_empty() {
                rows.push([
                    name.clone(),
                    "-".to_owned(),
                    pod.phase.clone(),
                    "-".to_owned(),
                    "-".to_owned(),
                    "0".to_owned(),
                    "-".to_owned(),
                    join_words(&pod.reason, &pod.message),
                ]);
            }
            for container in &pod.containers {
                let own = join_words(&container.reason, &container.message);
                let of_pod = join_words(&pod.reason, &pod.message);
                let why = match (own.as_str(), of_pod.is_empty()) {
                    (_, true) => own,
                    // It waits for the same object as its pod.
                    ("" | "ContainerCreating", false) => of_pod,
                    (own, false) => [own, "; ", &of_pod].concat(),
                };
                rows.push([
                    name.clone(),
                    container.name.clone(),
                    pod.phase.clone(),
                    container.state.clone(),
                    or_dash(container.pid),
                    container.restarts.to_string(),
                    or_dash(container.exit_code),
                    why,
                ]);
            }
        }
        table(&rows)
    }
}

/// A time relative to now.
fn in_days(now: u64, unix_s: u64) -> String {
    const DAY_S: u64 = 24 * 3600;
    match unix_s.checked_sub(now) {
        None => "now".to_owned(),
        Some(left) if left < 2 * DAY_S => ["in ", &(left / 3600).to_string(), " hours"].concat(),
        Some(left) => ["in ", &(left / DAY_S).to_string(), " days"].concat(),
    }
}

fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

fn join_words(reason: &str, message: &str) -> String {
    match (reason.is_empty(), message.is_empty()) {
        (_, true) => reason.to_owned(),
        (true, false) => message.to_owned(),
        (false, false) => [reason, ": ", message].concat(),
    }
}

/// Pads columns to their widest cell, two spaces apart.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width + 2 - cell.chars().count()));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |holds: bool, yes: &'static str, no: &'static str| if holds { yes } else { no };
        writeln!(f, "node       {}", self.node)?;
        writeln!(f, "agent      {}", self.agent)?;
        let link = word(self.connected, "connected", "not connected");
        writeln!(f, "cloud      {}", join_words(link, &self.link_error))?;
        writeln!(
            f,
            "state      {}",
            word(self.in_sync, "in sync", "not in sync")
        )?;
        writeln!(f, "desired    {}", self.desired_root)?;
        writeln!(f, "reported   {}", self.reported_root)?;
        writeln!(
            f,
            "time       {}",
            word(self.time_trusted, "trusted", "untrusted")
        )?;
        if self.certificate_not_after > 0 {
            let ends = in_days(self.unix_s, self.certificate_not_after);
            let due = in_days(self.unix_s, self.certificate_renewal_unix_s);
            let text = ["ends ", &ends, ", to be renewed ", &due].concat();
            writeln!(
                f,
                "identity   {}",
                join_words(&text, &self.certificate_error)
            )?;
        }
        writeln!(
            f,
            "memory     {} KiB PSS, {} KiB anonymous",
            self.memory.pss_kib, self.memory.anon_kib
        )?;
        self.flash.fmt(f)?;
        self.outbox.fmt(f)?;
        for condition in &self.conditions {
            writeln!(f, "condition  {}: {}", condition.name, condition.message)?;
        }
        for refused in &self.refused {
            writeln!(f, "refused    {}: {}", refused.key, refused.reason)?;
        }
        f.write_char('\n')?;
        f.write_str(&self.pods_table())
    }
}

/// Sixteen hex digits.
#[must_use]
pub fn hex(incarnation: [u8; 8]) -> String {
    format!("{:016x}", u64::from_be_bytes(incarnation))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_memory_is_measured() {
        assert!(Memory::own().pss_kib > 100);
    }

    #[test]
    fn a_container_says_what_its_pod_waits_for() {
        let mut status = Status::default();
        status.pods.push(Pod {
            reason: "WaitingForConfig".into(),
            message: "ConfigMap lane not found".into(),
            containers: vec![Container::default()],
            ..Pod::default()
        });
        for (own, why) in [
            ("", "  WaitingForConfig: ConfigMap"),
            ("ContainerCreating", "  WaitingForConfig: ConfigMap"),
            ("CrashLoopBackOff", "  CrashLoopBackOff; WaitingForConfig: "),
        ] {
            status.pods[0].containers[0].reason = own.into();
            let text = status.pods_table();
            assert!(text.contains(why), "{text}");
        }
    }

    #[test]
    fn human_output_shows_what_json_has() {
        let status = Status {
            node: "gate-7".into(),
            link_error: "no route".into(),
            pods: vec![Pod {
                namespace: "toll".into(),
                name: "counter".into(),
                phase: "Running".into(),
                containers: vec![Container {
                    name: "main".into(),
                    state: "running".into(),
                    pid: Some(42),
                    ..Container::default()
                }],
                ..Pod::default()
            }],
            flash: Flash {
                budget_bytes_per_day: Some(512 << 20),
                subsystems: vec![FlashRow {
                    name: "desired".into(),
                    today_bytes: 8192,
                    today_syncs: 4,
                    bytes: 20480,
                    syncs: 10,
                }],
                wear: vec![Wear {
                    device: "mmcblk0".into(),
                    used_percent: Some(20),
                    reserve: None,
                }],
                ..Flash::default()
            },
            ..Status::default()
        };
        let text = status.to_string();
        for word in [
            "gate-7",
            "not connected: no route",
            "toll/counter",
            "main",
            "42",
            "untrusted",
            "flash      8 KiB today of 524288 KiB",
            "desired 8 KiB, 4 syncs; since the start 20 KiB, 10 syncs",
            "mmcblk0 life 20 % used, reserve -",
        ] {
            assert!(text.contains(word), "{word} in {text}");
        }
    }
}
