//! The board files: the one source of every bar.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// Content of a board file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Board {
    /// Version of the format.
    pub version: u32,
    /// Name of the board.
    pub name: String,
    /// Triple of the agent's binary.
    pub target: String,
    /// Features of its agent; `None` is all of them.
    pub features: Option<Vec<String>>,
    /// Limits for pods.
    pub limits: Limits,
    /// Budgets of the agent.
    pub budget: Budget,
    /// Bars of timings; only on boards where they can be measured.
    pub latency: Option<Latency>,
}

/// Resources of a board for pods.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Limits {
    /// Highest number of pods.
    pub pods_max: u32,
    /// Memory for pods.
    pub memory_mib: u32,
}

/// Budgets of the agent on a board; the comments of the board files explain them.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Budget {
    /// Proportional set size with ten pods.
    pub pss_kib: f64,
    /// Anonymous memory with ten pods.
    pub anon_kib: f64,
    /// The static binary.
    pub binary_bytes: f64,
    /// Threads of the agent.
    pub threads: f64,
    /// Wakeups a minute, idle.
    pub wakeups_per_minute: f64,
    /// Milliseconds of a core a minute, idle.
    pub cpu_ms_per_minute: f64,
    /// Bytes written to storage, idle.
    pub flash_bytes_idle: f64,
    /// MiB that the agent may write to storage in a day; it counts and limits that itself.
    pub flash_mib_per_day: f64,
    /// First session after a start.
    pub connect_bytes: f64,
    /// A session after a lost link.
    pub reconnect_bytes: f64,
    /// One small pod.
    pub deploy_bytes: f64,
    /// A month without a change.
    pub idle_bytes_per_month: f64,
    /// The same with the metered profile.
    pub metered_bytes_per_month: f64,
}

/// Bars of timings: medians in milliseconds, rates at least.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Latency {
    /// The cloud accepts a pod, until its process runs; beyond what runc alone takes.
    pub exec_ms: f64,
    /// The cloud accepts a pod, until the cloud sees it Running.
    pub running_ms: f64,
    /// A container is killed for the first time, until it runs again; beyond what runc alone takes.
    pub restart_ms: f64,
    /// The same for a plain process.
    pub restart_process_ms: f64,
    /// The agent starts, until the cloud sees the node connected.
    pub ready_ms: f64,
    /// Delay that large objects or records in flight may add to a single small message over a link of
    /// 3 Mbit/s and 150 ms.
    pub added_ms: f64,
    /// Records of 200 bytes a second from one workload.
    pub append_per_s: f64,
    /// Share of that link's rate that the payload of such records gets when an outbox drains.
    pub drain_percent: f64,
}

impl Board {
    /// The board's agent, as `scripts/build` leaves it.
    #[must_use]
    pub fn agent(&self) -> PathBuf {
        crate::root()
            .join("dist")
            .join(&self.target)
            .join("edge-min")
    }

    /// The board on which this program runs: the industrial PC.
    ///
    /// # Errors
    /// Its file is missing or wrong.
    pub fn here() -> Result<Self> {
        let mut boards = boards()?.into_iter();
        boards
            .find(|board| board.name == "ipc-x86_64")
            .context("board-configs/ipc-x86_64.toml is missing")
    }
}

/// All boards.
///
/// # Errors
/// A file that cannot be read or has a wrong key.
pub fn boards() -> Result<Vec<Board>> {
    let mut boards = Vec::new();
    for entry in fs::read_dir(crate::root().join("board-configs"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|kind| kind == "toml") {
            let text = fs::read_to_string(&path)?;
            let board: Board = toml::from_str(&text).with_context(|| path.display().to_string())?;
            boards.push(board);
        }
    }
    boards.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(boards)
}
