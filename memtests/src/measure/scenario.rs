//! Scenarios of measurements, shared by the tests and `scripts/bench`: a gate is brought into a state,
//! and its figures are compared with the bars of a board.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::{Board, Figure, Memory, PacketCounter, activity, boards, files, memory, stack};
use crate::{BrokerCa, Gate, STATE_TIMEOUT, Setup};

/// The agent's default keepalive, and that of the metered profile.
const KEEPALIVE: Duration = Duration::from_secs(60);
const KEEPALIVE_METERED: Duration = Duration::from_secs(600);
const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);
/// Silence on the link after which a state counts as reached.
const SETTLED: Duration = Duration::from_secs(1);
/// The same in the agent: its state cache follows two seconds after the last change.
const QUIET: Duration = Duration::from_secs(4);
/// A ping this close to the ends of a window could count twice or not at all.
const MARGIN: Duration = Duration::from_secs(10);
/// Measured reconnects; the largest counts.
const RECONNECTS: usize = 3;
/// Pods of the promises about memory and idling.
const PODS: usize = 10;
/// Name of the image of runc pods.
pub const IMAGE: &str = "toll/measure:1";

/// How a pod runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A plain process.
    Process,
    /// A container by runc.
    Runc,
}

impl Kind {
    /// As in a manifest.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Runc => "runc",
        }
    }
}

/// A manifest of a pod that runs `script` in a shell. `signal` is a folder that is mounted with
/// the same path.
#[must_use]
pub fn pod(kind: Kind, name: &str, script: &str, signal: Option<&str>) -> String {
    let mut text = format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  \
         runtimeClassName: {}\n  hostNetwork: true\n  terminationGracePeriodSeconds: 1\n  \
         containers:\n    - name: main\n      image: {IMAGE}\n      \
         command: [/bin/sh, -c, '{script}']\n",
        kind.name()
    );
    if let Some(path) = signal {
        write!(
            text,
            "      volumeMounts: [{{name: signal, mountPath: {path}}}]\n  \
             volumes: [{{name: signal, hostPath: {{path: {path}}}}}]\n"
        )
        .ok();
    }
    text
}

fn ten_pods(kinds: [Kind; 2]) -> String {
    let pods = (0..PODS).zip(kinds.into_iter().cycle());
    pods.map(|(index, kind)| pod(kind, &format!("pod-{index}"), "exec sleep 100000", None))
        .collect()
}

/// The file size of every built agent.
///
/// # Errors
/// A board file is wrong.
pub fn sizes() -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for board in boards()? {
        let Ok(found) = std::fs::metadata(board.agent()) else {
            continue;
        };
        let promise = format!("static binary, {}", board.name);
        let bar = board.budget.binary_bytes;
        figures.push(Figure::new(promise, found.len() as f64, "bytes", bar));
    }
    Ok(figures)
}

/// Memory and threads with ten pods of a kind, connected and in sync.
///
/// # Errors
/// The gate does not start, or another process of ours runs beside the agent.
pub fn ten_pods_in_memory(board: &Board, kind: Kind) -> Result<Vec<Figure>> {
    let gate = Gate::set_up(Setup {
        agent: Some(board.agent()),
        manifests: ten_pods([kind; 2]),
        image: Some(IMAGE),
        keepalive: KEEPALIVE,
        ..Setup::default()
    })?;
    gate.until_converged(PODS)?;
    let pid = gate.agent_pid()?;
    until_idle(&gate, board, pid)?;
    let processes = [pid];
    let Memory { pss_kib, anon_kib } = memory(&processes)?;
    let threads = activity(pid)?.threads;
    let name = kind.name();
    let budget = board.budget;
    let figure = |what: &str, value: u64, unit, bar| {
        Figure::new(format!("{what}, 10 {name} pods"), value as f64, unit, bar)
    };
    Ok(vec![
        figure("node stack PSS", pss_kib, "KiB", budget.pss_kib),
        figure("its anonymous memory", anon_kib, "KiB", budget.anon_kib),
        figure("its threads", threads, "threads", budget.threads),
    ])
}

/// Costs of ten pods (five of each kind) while nothing happens, over some minutes.
///
/// # Errors
/// The gate does not start.
pub fn idle(board: &Board, minutes: u32) -> Result<Vec<Figure>> {
    let gate = Gate::set_up(Setup {
        agent: Some(board.agent()),
        manifests: ten_pods([Kind::Process, Kind::Runc]),
        image: Some(IMAGE),
        keepalive: KEEPALIVE,
        counted: true,
        ..Setup::default()
    })?;
    gate.until_converged(PODS)?;
    let pid = gate.agent_pid()?;
    until_idle(&gate, board, pid)?;
    // One ping for each minute of the window: it begins and ends away from one.
    let opened = gate.proxy()?.opened().context("no connection")?;
    let since_ping = Duration::from_millis(opened.elapsed().as_millis() as u64 % 60_000);
    if since_ping < MARGIN {
        std::thread::sleep(MARGIN - since_ping);
    } else if since_ping > KEEPALIVE - MARGIN {
        std::thread::sleep(KEEPALIVE - since_ping + MARGIN);
    }
    let counter = PacketCounter::start(gate.proxy()?.port())?;
    let (before, files_before) = (activity(pid)?, files(&gate.state_dir())?);
    std::thread::sleep(KEEPALIVE * minutes);
    let after = activity(pid)?;
    let bytes = counter.bytes()?;
    let changed = files(&gate.state_dir())? != files_before;
    let budget = board.budget;
    let a_minute = |value: f64| value / f64::from(minutes);
    let per_keepalive = a_minute(bytes as f64);
    let a_month = |every: Duration| per_keepalive * MONTH.as_secs_f64() / every.as_secs_f64();
    let cpu = (after.cpu - before.cpu).as_secs_f64() * 1000.0;
    let written = after.write_bytes - before.write_bytes;
    Ok(vec![
        Figure::new(
            "wakeups, idle",
            a_minute((after.waits - before.waits) as f64),
            "a minute",
            budget.wakeups_per_minute,
        ),
        Figure::new(
            "CPU, idle",
            a_minute(cpu),
            "ms a minute",
            budget.cpu_ms_per_minute,
        ),
        Figure::new(
            "flash writes, idle",
            written as f64,
            "bytes",
            budget.flash_bytes_idle,
        ),
        Figure::new(
            "changed state folder, idle",
            f64::from(u8::from(changed)),
            "changes",
            0.0,
        ),
        Figure::new(
            "traffic, idle, IP bytes both ways",
            a_month(KEEPALIVE),
            "bytes/month",
            budget.idle_bytes_per_month,
        ),
        Figure::new(
            "traffic, idle, metered profile (same exchange every 600 s)",
            a_month(KEEPALIVE_METERED),
            "bytes/month",
            budget.metered_bytes_per_month,
        ),
    ])
}

/// Costs of the metered profile in real time: so many keepalives of ten minutes.
///
/// # Errors
/// The gate does not start.
pub fn idle_metered(board: &Board, exchanges: u32) -> Result<Vec<Figure>> {
    let gate = Gate::set_up(Setup {
        agent: Some(board.agent()),
        manifests: ten_pods([Kind::Process; 2]),
        keepalive: KEEPALIVE_METERED,
        counted: true,
        ..Setup::default()
    })?;
    gate.until_converged(PODS)?;
    // The first ping comes a keepalive after the connect, so the window's ends are away from one.
    std::thread::sleep(MARGIN * 2);
    let counter = PacketCounter::start(gate.proxy()?.port())?;
    let window = KEEPALIVE_METERED * exchanges;
    std::thread::sleep(window);
    let bytes = counter.bytes()? as f64;
    if gate.status()?["connected"] != true {
        bail!("the link was lost in the window");
    }
    Ok(vec![Figure::new(
        "traffic, idle, metered profile",
        bytes * MONTH.as_secs_f64() / window.as_secs_f64(),
        "bytes/month",
        board.budget.metered_bytes_per_month,
    )])
}

/// Bytes of the link, TLS records both ways: the first session, a pod, a lost link.
///
/// # Errors
/// The gate does not start.
pub fn link_bytes(board: &Board) -> Result<Vec<Figure>> {
    let [connect, reconnect, deploy] = link_exchanges(board.agent(), None)?;
    let budget = board.budget;
    let figure = |what: &str, bytes: u64, bar| Figure::new(what, bytes as f64, "bytes", bar);
    Ok(vec![
        figure(
            "first connect of a process, TLS included",
            connect,
            budget.connect_bytes,
        ),
        figure(
            "reconnect, nothing changed, TLS included",
            reconnect,
            budget.reconnect_bytes,
        ),
        figure(
            "one pod deployed, both ways, TLS included",
            deploy,
            budget.deploy_bytes,
        ),
    ])
}

/// The same behind mosquitto, whose TLS is not ours: it may need twice as much.
///
/// # Errors
/// The gate does not start.
pub fn link_bytes_behind_broker(board: &Board) -> Result<Vec<Figure>> {
    let [connect, reconnect, deploy] = link_exchanges(board.agent(), Some(BrokerCa::Own))?;
    let budget = board.budget;
    let figure = |what: &str, bytes: u64, bar| Figure::new(what, bytes as f64, "bytes", 2.0 * bar);
    Ok(vec![
        figure(
            "first connect, behind mosquitto",
            connect,
            budget.connect_bytes,
        ),
        figure(
            "reconnect, nothing changed, behind mosquitto",
            reconnect,
            budget.reconnect_bytes,
        ),
        figure(
            "one pod deployed, behind mosquitto",
            deploy,
            budget.deploy_bytes,
        ),
    ])
}

/// Bytes of the first connect, of the worst reconnect, and of one pod.
fn link_exchanges(agent: PathBuf, broker: Option<BrokerCa>) -> Result<[u64; 3]> {
    let mut gate = Gate::set_up(Setup {
        agent: Some(agent),
        image: Some(IMAGE),
        keepalive: KEEPALIVE,
        counted: true,
        broker,
        ..Setup::default()
    })?;
    // Joined, and known to the cloud: a new process opens its first session.
    gate.until_converged(0)?;
    gate.kill_agent()?;
    settled(&gate)?;
    let before = gate.proxy()?.total();
    gate.start_agent()?;
    gate.until_converged(0)?;
    let connect = settled(&gate)? - before;

    let before = gate.proxy()?.total();
    gate.manifests(&pod(Kind::Runc, "pod-0", "exec sleep 100000", None))?;
    gate.until_converged(1)?;
    let deploy = settled(&gate)? - before;

    let mut reconnect = 0;
    for _ in 0..RECONNECTS {
        let before = gate.proxy()?.total();
        let opened = gate.proxy()?.opened();
        gate.proxy()?.cut();
        // The agent may reconnect in half a second, which polling its status could miss.
        gate.until("the agent connects again", |gate| {
            gate.proxy().is_ok_and(|proxy| proxy.opened() != opened)
        })?;
        gate.until_converged(1)?;
        reconnect = reconnect.max(settled(&gate)? - before);
    }
    Ok([connect, reconnect, deploy])
}

/// Bytes of the link once it has been silent for a while.
fn settled(gate: &Gate) -> Result<u64> {
    let start = Instant::now();
    let mut since = (gate.proxy()?.total(), Instant::now());
    while since.1.elapsed() < SETTLED {
        if start.elapsed() > STATE_TIMEOUT {
            bail!("the link is never silent");
        }
        std::thread::sleep(Duration::from_millis(20));
        let total = gate.proxy()?.total();
        if total != since.0 {
            since = (total, Instant::now());
        }
    }
    Ok(since.0)
}

/// Waits until the agent does nothing, and is the only process of ours: the one that writes the state
/// cache ends by itself.
fn until_idle(gate: &Gate, board: &Board, agent: u32) -> Result<()> {
    until_quiet(agent)?;
    gate.until("of our processes the agent alone runs", |gate| {
        stack(&board.agent(), gate.dir()).is_ok_and(|processes| processes == [agent])
    })
}

/// Waits until a process has not used a CPU for a while.
fn until_quiet(pid: u32) -> Result<()> {
    let start = Instant::now();
    let mut since = (activity(pid)?.cpu, Instant::now());
    while since.1.elapsed() < QUIET {
        if start.elapsed() > STATE_TIMEOUT {
            bail!("the agent is never quiet");
        }
        std::thread::sleep(Duration::from_millis(20));
        let cpu = activity(pid)?.cpu;
        if cpu != since.0 {
            since = (cpu, Instant::now());
        }
    }
    Ok(())
}
