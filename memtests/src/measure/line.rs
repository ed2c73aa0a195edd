//! Measurements over a link of 3 Mbit/s and a round trip of 150 ms: the delay that bulk in flight adds to a
//! single small message, and the rate at which an outbox drains.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{Board, Figure, Latency, get, get_text, median, memory};
use crate::records::{PIPELINE_MAX, Writer, account, fill, ledger};
use crate::wan::Wan;
use crate::{Gate, Setup};

/// Delay of the link, each way.
const DELAY_MS: u32 = 75;
/// Rate of the link, each way.
const RATE_KBIT: u32 = 3_000;
/// Interval of polling a state: the resolution of a timing.
const GLANCE: Duration = Duration::from_millis(2);
/// Timeout of a transfer of several MiB.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(300);
/// A change that follows the previous one sooner waits for pieces of a large object of the same set,
/// so that those make progress: only single changes are measured.
const APART: Duration = Duration::from_millis(2_200);
/// Bytes of a ConfigMap. It takes 3 s at the link's rate, so one for each message, and two more.
const CONFIG_BYTES: usize = (1 << 20) - 1024;
/// Lower bound of waiting records while others are sent: over a second of the link.
const HELD_MIN: u64 = 2_000;
/// Their size, about that of a toll record.
const RECORD_BYTES: usize = 200;
/// Records of each measurement of the writing, in whole rounds of eight workloads.
const APPENDED: usize = 128 * 40;
/// All records that drain: 20 s at the link's rate.
const BACKLOG: usize = 128 * 200;
/// Class of most of them.
const TOLL: &str = "toll";
/// Class of the others, which is stored with fewer syncs.
const TELEMETRY: &str = "telemetry";

/// A pod that has written a word and sleeps.
const TALKER: &str = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: talker}\nspec:\n  \
     runtimeClassName: process\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
     - {name: main, command: [/bin/sh, -c, 'echo hello; exec sleep 100000']}\n";

/// Times of small messages, milliseconds.
#[derive(Debug, Default)]
struct Took {
    /// Pods that were deployed for it.
    pods: usize,
    /// From the change in the cloud until the node has stored it.
    change: Vec<f64>,
    /// From the node's report until the cloud has it.
    report: Vec<f64>,
    /// From the request for a pod's log until its answer.
    call: Vec<f64>,
}

impl Took {
    fn append(&mut self, mut other: Self) {
        self.pods += other.pods;
        self.change.append(&mut other.change);
        self.report.append(&mut other.report);
        self.call.append(&mut other.call);
    }
}

/// Different from all others.
fn config(name: &str, round: usize) -> String {
    let load = format!("{name:0>15}{round}").repeat(CONFIG_BYTES / 16);
    format!(
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{LOAD: {load}}}\n"
    )
}

/// Manifest of a process that names these ConfigMaps.
#[must_use]
pub fn sleeper(name: &str, configs: &[String]) -> String {
    let volumes: Vec<String> = configs
        .iter()
        .map(|config| format!("{{name: {config}, configMap: {{name: {config}}}}}"))
        .collect();
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  \
         runtimeClassName: process\n  terminationGracePeriodSeconds: 1\n  volumes: [{}]\n  \
         containers:\n  - {{name: main, command: [/bin/sleep, '100000']}}\n",
        volumes.join(", ")
    )
}

fn wanted(gate: &Gate) -> Result<String> {
    let nodes = gate.cloud_json("/v1/nodes")?;
    let root = nodes[0]["desired_root"].as_str();
    Ok(root.context("the cloud does not know the node")?.to_owned())
}

/// Phase of a pod according to the agent, or the cloud.
fn phase(pods: &Value, pod: &str) -> Option<String> {
    let mut rows = pods.as_array()?.iter();
    let row = rows.find(|row| row["name"] == pod)?;
    Some(row["phase"].as_str()?.to_owned())
}

fn at_agent(gate: &Gate, pod: &str) -> Result<Option<String>> {
    let status = get(&gate.dir().join("run/edge-min.sock"), "/v1/status")?;
    Ok(phase(&status["pods"], pod))
}

fn at_cloud(gate: &Gate, pod: &str) -> Result<Option<String>> {
    Ok(phase(&gate.cloud_json("/v1/pods")?, pod))
}

/// The moment at which a state is reached.
fn until(what: &str, mut reached: impl FnMut() -> Result<bool>) -> Result<Instant> {
    let start = Instant::now();
    while start.elapsed() < TRANSFER_TIMEOUT {
        if reached()? {
            return Ok(Instant::now());
        }
        std::thread::sleep(GLANCE);
    }
    bail!("{what}: not within {TRANSFER_TIMEOUT:?}")
}

/// Sends small messages, one after the other, as long as `under_way`; at least half of `count`.
fn messages(
    gate: &Gate,
    (count, apart): (usize, Duration),
    load: &str,
    under_way: impl Fn() -> Result<bool>,
) -> Result<Took> {
    let mut took = Took::default();
    let running = Some("Running".to_owned());
    let mut last = Instant::now();
    for index in 0..count {
        std::thread::sleep(apart.saturating_sub(last.elapsed()));
        let name = format!("{load}-{index}");
        let before = wanted(gate)?;
        took.pods += 1;
        gate.manifest(&format!("{name}.yaml"), &sleeper(&name, &[]))?;
        let sent = until("the cloud takes the pod in", || Ok(wanted(gate)? != before))?;
        last = sent;
        let there = until("the agent has the pod", || {
            Ok(at_agent(gate, &name)?.is_some())
        })?;
        took.change.push(ms(there - sent));
        let runs = until("the pod runs", || Ok(at_agent(gate, &name)? == running))?;
        let seen = until("the cloud knows", || Ok(at_cloud(gate, &name)? == running))?;
        took.report.push(ms(seen - runs));
        let asked = Instant::now();
        let socket = gate.dir().join("cloud/api.sock");
        let output = get_text(&socket, "/v1/logs/gate/default/talker")?;
        took.call.push(ms(asked.elapsed()));
        if output != "hello\n" {
            bail!("the pod said {output}");
        }
        if !under_way()? {
            for times in [&mut took.change, &mut took.report, &mut took.call] {
                times.pop();
            }
            break;
        }
    }
    if took.change.len() * 2 < count {
        bail!("{load}: too little was under way: {took:?}");
    }
    Ok(took)
}

/// Delay that bulk in flight adds to a single small message: pieces of large objects downwards, and
/// records upwards. So many rounds with so many messages of each kind, at most 5.
///
/// # Errors
/// The gate does not start, or the bulk is complete too soon.
pub fn added_to_messages(
    agent: Option<PathBuf>,
    (rounds, messages_each): (usize, usize),
    bar_ms: f64,
) -> Result<Vec<Figure>> {
    let gate = Gate::set_up(Setup {
        agent,
        keepalive: Duration::from_secs(60),
        manifests: TALKER.to_owned(),
        wan: Some(Wan::start(DELAY_MS, 0, RATE_KBIT)?),
        // The link is measured, not the disk of this host.
        in_memory: true,
        ..Setup::default()
    })?;
    gate.converged_within(TRANSFER_TIMEOUT, 1)?;
    let (mut idle, mut down, mut up) = (Took::default(), Took::default(), Took::default());
    let names: Vec<String> = (0..messages_each + 2)
        .map(|index| format!("load-{index}"))
        .collect();
    let close = (messages_each, Duration::ZERO);
    for round in 0..rounds {
        idle.append(messages(&gate, close, &format!("idle-{round}"), || {
            Ok(true)
        })?);

        let already = gate.fetched();
        for name in &names {
            gate.manifest(&format!("{name}.yaml"), &config(name, round))?;
        }
        gate.manifest("reader.yaml", &sleeper("reader", &names))?;
        let coming = |gate: &Gate| gate.fetched().saturating_sub(already);
        until("large objects come", || Ok(coming(&gate) > 100_000))?;
        let all = (names.len() * CONFIG_BYTES) as u64;
        down.append(messages(
            &gate,
            (messages_each, APART),
            &format!("down-{round}"),
            || Ok(coming(&gate) < all),
        )?);
        let pods = 1 + idle.pods + down.pods + up.pods;
        gate.converged_within(TRANSFER_TIMEOUT, pods + 1)?;
        fs::remove_file(gate.dir().join("manifests/reader.yaml"))?;
        gate.converged_within(TRANSFER_TIMEOUT, pods)?;

        let load = format!("up-{round}");
        let over = AtomicBool::new(false);
        let going = std::thread::scope(|scope| {
            let writer = scope.spawn(|| keep_filled(&gate, &over));
            let going = until("records go", || Ok(held(&gate)? > HELD_MIN))
                .and_then(|_| messages(&gate, close, &load, || Ok(held(&gate)? > 0)));
            over.store(true, Ordering::Relaxed);
            match writer.join() {
                Ok(written) => written.and(going),
                Err(_) => bail!("the writer died"),
            }
        });
        up.append(going?);
        until("the records are delivered", || Ok(held(&gate)? == 0))?;
        gate.converged_within(TRANSFER_TIMEOUT, 1 + idle.pods + down.pods + up.pods)?;
    }
    let mut figures = Vec::new();
    for (load, busy) in [("large objects come", down), ("records go", up)] {
        for (what, idle, busy) in [
            ("a change down", &idle.change, busy.change),
            ("a report up", &idle.report, busy.report),
            ("a call", &idle.call, busy.call),
        ] {
            let usual = median(idle.clone());
            let worst = busy.iter().copied().fold(0.0, f64::max);
            let name = format!("added to {what} while {load}");
            let most = format!("at most {name}");
            figures.push(Figure::new(name, median(busy) - usual, "ms", bar_ms));
            figures.push(Figure::recorded(most, worst - usual, "ms"));
        }
    }
    Ok(figures)
}

/// Records that wait in the agent.
fn held(gate: &Gate) -> Result<u64> {
    let held = account(gate, TELEMETRY)?["held"].as_u64();
    held.context("no counter")
}

/// Writes records so that some always wait for the link, until it is `over`.
fn keep_filled(gate: &Gate, over: &AtomicBool) -> Result<()> {
    let mut writer = Writer::connect(gate)?;
    let together = vec![(TELEMETRY, "r".repeat(RECORD_BYTES)); PIPELINE_MAX];
    while !over.load(Ordering::Relaxed) {
        match held(gate)? < HELD_MIN * 2 {
            true => drop(writer.write(&together)?),
            false => std::thread::sleep(GLANCE),
        }
    }
    Ok(())
}

/// The rate at which one workload's records are stored, and at which an outbox drains over the link, with
/// the memory of the backlog.
///
/// # Errors
/// The gate does not start, or its ledger does not balance.
pub fn outbox(board: &Board, bars: Latency) -> Result<Vec<Figure>> {
    let mut gate = Gate::set_up(Setup {
        agent: Some(board.agent()),
        keepalive: Duration::from_secs(60),
        wan: Some(Wan::start(DELAY_MS, 0, RATE_KBIT)?),
        ..Setup::default()
    })?;
    gate.converged_within(TRANSFER_TIMEOUT, 0)?;
    gate.kill_cloud()?;
    until("the agent is offline", || Ok(!is_connected(&gate)?))?;
    let mut figures = Vec::new();
    let rate = |records: usize, took: Duration| records as f64 / took.as_secs_f64();
    for (what, class, connections) in [
        ("telemetry, 16 at a time", TELEMETRY, 1),
        ("tolls, 16 at a time", TOLL, 1),
        ("tolls, eight workloads, 16 at a time", TOLL, 8),
    ] {
        let took = fill(&gate, class, (APPENDED, RECORD_BYTES), connections)?;
        let promise = format!("records stored, {what}");
        let value = rate(APPENDED, took);
        let figure = match connections {
            1 => Figure::at_least(promise, value, "records/s", bars.append_per_s),
            _ => Figure::recorded(promise, value, "records/s"),
        };
        figures.push(figure);
    }
    let fill_up = BACKLOG - 3 * APPENDED;
    fill(&gate, TOLL, (fill_up, RECORD_BYTES), 8)?;
    let used = memory(&[gate.agent_pid()?])?;
    let promise = format!("PSS with a backlog of {BACKLOG} records");
    let pss = used.pss_kib as f64;
    figures.push(Figure::new(promise, pss, "KiB", board.budget.pss_kib));

    gate.start_cloud()?;
    let delivered = || -> Result<usize> {
        let mut sum = 0;
        for class in [TOLL, TELEMETRY] {
            let count = account(&gate, class)?["delivered"].as_u64();
            sum += count.context("no counter")? as usize;
        }
        Ok(sum)
    };
    let mut first = 0;
    let start = until("the outbox drains", || {
        first = delivered()?;
        Ok(first > 0)
    })?;
    let end = until("it is drained", || {
        std::thread::sleep(GLANCE * 10);
        Ok(delivered()? == BACKLOG)
    })?;
    for class in [TOLL, TELEMETRY] {
        if ledger(&gate, class)?["balanced"] != true {
            bail!("the ledger of {class} does not balance");
        }
    }
    let a_second = rate(BACKLOG - first, end - start);
    let kbit = a_second * RECORD_BYTES as f64 * 8.0 / 1000.0;
    figures.push(Figure::recorded(
        "an outbox drains over 3 Mbit/s and 150 ms",
        a_second,
        "records/s",
    ));
    figures.push(Figure::at_least(
        "of that line, payload of records of 200 bytes",
        kbit * 100.0 / f64::from(RATE_KBIT),
        "%",
        bars.drain_percent,
    ));
    Ok(figures)
}

fn is_connected(gate: &Gate) -> Result<bool> {
    let status = get(&gate.dir().join("run/edge-min.sock"), "/v1/status")?;
    Ok(status["connected"] == true)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
