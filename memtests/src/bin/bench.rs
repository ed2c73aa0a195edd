//! `scripts/bench`: every promise that can be measured on this machine, with the bar of the
//! board file beside it. Exit code 1 when one is missed, 2 when it cannot be measured.
//!
//! usage: bench [--json] [--long]

use std::fs::{self, OpenOptions};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use memtests::large_image;
use memtests::measure::line;
use memtests::measure::scenario::{self, IMAGE, Kind};
use memtests::measure::{Board, Figure, Latency, median};
use memtests::{Gate, STATE_TIMEOUT, Setup};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Interval of polling a state without a notification: the resolution of a timing.
const GLANCE: Duration = Duration::from_millis(1);
/// Pods, and with them measurements of each timing.
const ROUNDS: usize = 10;
/// Rounds, and small messages in each, while bulk is in flight.
const MESSAGES: (usize, usize) = (2, 5);

fn main() -> ExitCode {
    let (mut json, mut long) = (false, false);
    for word in std::env::args().skip(1) {
        match word.as_str() {
            "--json" => json = true,
            "--long" => long = true,
            _ => {
                eprintln!("usage: bench [--json] [--long]");
                return ExitCode::from(2);
            }
        }
    }
    match bench(json, long) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Measures and prints; true when every promise is kept.
fn bench(json: bool, long: bool) -> Result<bool> {
    let board = Board::here()?;
    let latency = board.latency.context("the board file has no [latency]")?;
    let mut kept = true;
    let mut print = |figures: Vec<Figure>| {
        for figure in figures {
            kept &= figure.ok();
            // Flushed line by line: a reader sees each figure at once.
            let line = if json {
                figure.json().to_string()
            } else {
                figure.to_string()
            };
            println!("{line}");
        }
    };
    if !json {
        println!("{:<62} {:>12} {:>12}  unit", "promise", "value", "bar");
    }
    print(scenario::sizes()?);
    print(timings(&board, latency)?);
    for kind in [Kind::Process, Kind::Runc] {
        print(scenario::ten_pods_in_memory(&board, kind)?);
    }
    print(scenario::link_bytes(&board)?);
    print(scenario::link_bytes_behind_broker(&board)?);
    print(line::outbox(&board, latency)?);
    print(line::added_to_messages(
        Some(board.agent()),
        MESSAGES,
        latency.added_ms,
    )?);
    print(scenario::idle(&board, if long { 10 } else { 2 })?);
    Ok(kept)
}

/// A gate whose pods announce that they run: each first writes its name into a pipe.
struct Stand {
    gate: Gate,
    signal: PathBuf,
    lines: Receiver<(String, Instant)>,
    manifests: String,
}

impl Drop for Stand {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.signal).ok();
    }
}

/// Timings of one new pod.
struct Deployed {
    /// Manifest in the folder, until its process runs.
    written_to_exec: f64,
    /// Accepted by the cloud, until its process runs.
    exec: f64,
    /// Accepted by the cloud, until the cloud sees it Running.
    running: f64,
}

impl Stand {
    fn start(board: &Board) -> Result<Self> {
        let signal = std::env::temp_dir().join(format!("edge-min-bench-{}", std::process::id()));
        fs::create_dir_all(&signal)?;
        let pipe = signal.join("pipe");
        if !Command::new("mkfifo").arg(&pipe).status()?.success() {
            bail!("mkfifo {}", pipe.display());
        }
        // Open both ways: it never ends, and no writer waits for a reader.
        let pipe = OpenOptions::new().read(true).write(true).open(pipe)?;
        let (sender, lines) = channel();
        std::thread::Builder::new()
            .name("signal".to_owned())
            .spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    if sender.send((line, Instant::now())).is_err() {
                        return;
                    }
                }
            })?;
        let gate = Gate::set_up(Setup {
            agent: Some(board.agent()),
            image: Some(IMAGE),
            keepalive: Duration::from_secs(60),
            config: format!("host-paths = [\"{}\"]\n", signal.display()),
            ..Setup::default()
        })?;
        gate.until_converged(0)?;
        Ok(Self {
            gate,
            signal,
            lines,
            manifests: String::new(),
        })
    }

    fn pod(&self, kind: Kind, name: &str) -> String {
        let folder = self.signal.to_string_lossy();
        let script = format!("echo {name} > {folder}/pipe; exec sleep 100000");
        // A process sees the board's folders as they are.
        let volume = (kind == Kind::Runc).then_some(&*folder);
        scenario::pod(kind, name, &script, volume)
    }

    /// When the pod announced that it runs.
    fn printed_at(&self, name: &str) -> Result<Instant> {
        loop {
            let (line, at) = self.lines.recv_timeout(STATE_TIMEOUT)?;
            if line == name {
                return Ok(at);
            }
        }
    }

    fn deploy(&mut self, kind: Kind, name: &str) -> Result<Deployed> {
        self.manifests += &self.pod(kind, name);
        let log = self.gate.dir().join("cloud.log");
        let known = accepted(&log)?;
        let (gate, manifests) = (&self.gate, &self.manifests);
        let (written, accepted_at, seen) = std::thread::scope(|scope| -> Result<_> {
            let accept = scope.spawn(|| until(|| Ok(accepted(&log)? > known)));
            let run = scope.spawn(|| until(|| runs(gate, name)));
            gate.manifests(manifests)?;
            let written = Instant::now();
            Ok((written, join(accept)?, join(run)?))
        })?;
        let exec = self.printed_at(name)?;
        Ok(Deployed {
            written_to_exec: ms(exec - written),
            exec: ms(exec - accepted_at),
            running: ms(seen - accepted_at),
        })
    }

    /// Kills the pod's process; how long until it runs again.
    fn restart(&self, name: &str) -> Result<f64> {
        let status = self.gate.status()?;
        let pod = row(&status["pods"], name).context("the agent does not know the pod")?;
        let pid = pod["containers"][0]["pid"].as_i64().context("no pid")?;
        let pid = Pid::from_raw(i32::try_from(pid)?).context("no pid")?;
        let killed = Instant::now();
        kill_process(pid, Signal::KILL)?;
        Ok(ms(self.printed_at(name)? - killed))
    }

    /// The same for new pods while the image of another one is unpacked.
    fn restart_while_unpacking(&mut self) -> Result<f64> {
        let names: Vec<String> = (0..ROUNDS).map(|index| format!("beside-{index}")).collect();
        self.manifests.clear();
        for name in &names {
            self.deploy(Kind::Process, name)?;
        }
        self.gate.until_converged(ROUNDS)?;
        let state = self.gate.state_dir();
        large_image::make(&state.join("preload/large"))?;
        let large = self
            .pod(Kind::Runc, "large")
            .replace(IMAGE, large_image::NAME);
        self.gate.manifest("large.yaml", &large)?;
        self.gate.until("the image is unpacked", |_| {
            large_image::layers(&state).is_ok_and(|(_, half)| half > 0)
        })?;
        let mut took = Vec::new();
        for name in &names {
            took.push(self.restart(name)?);
        }
        if large_image::layers(&state)?.0 == large_image::LAYERS {
            bail!("all of the image was unpacked before the last crash");
        }
        fs::remove_file(self.gate.dir().join("manifests/large.yaml"))?;
        fs::remove_dir_all(state.join("preload/large"))?;
        Ok(median(took))
    }

    /// Time that runc alone needs to create and start one of the running containers, whose
    /// root filesystem it shares.
    fn runc_alone(&self) -> Result<f64> {
        let bundles = self.gate.dir().join("run/bundles");
        let bundle = fs::read_dir(bundles)?.next().context("no bundle")??.path();
        let own = self.signal.join("bundle");
        fs::create_dir_all(&own)?;
        let mut config: Value = serde_json::from_slice(&fs::read(bundle.join("config.json"))?)?;
        config["root"]["path"] = bundle.join("rootfs").to_string_lossy().into();
        config["linux"]["cgroupsPath"] = format!("/edge-min-bench-{}", std::process::id()).into();
        config["process"]["args"] = serde_json::json!(["/bin/sleep", "100000"]);
        fs::write(own.join("config.json"), config.to_string())?;
        let runc = |words: &[&str]| -> Result<()> {
            let mut command = Command::new("runc");
            command.arg("--root").arg(self.signal.join("runc"));
            // A pipe would be held open by the container.
            let silent = command
                .args(words)
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            if !silent.status()?.success() {
                bail!("runc {words:?} failed");
            }
            Ok(())
        };
        let start = Instant::now();
        runc(&["create", "--bundle", &own.to_string_lossy(), "alone"])?;
        runc(&["start", "alone"])?;
        let took = ms(start.elapsed());
        runc(&["delete", "--force", "alone"])?;
        Ok(took)
    }

    /// Starts the agent again; returns how long until the cloud sees the node connected.
    fn ready(&mut self) -> Result<f64> {
        self.gate.kill_agent()?;
        until(|| Ok(!connected(&self.gate)?))?;
        let started = Instant::now();
        self.gate.start_agent()?;
        let seen = until(|| connected(&self.gate))?;
        self.gate.until_converged(ROUNDS)?;
        Ok(ms(seen - started))
    }
}

fn timings(board: &Board, bars: Latency) -> Result<Vec<Figure>> {
    let mut stand = Stand::start(board)?;
    let mut figures = Vec::new();
    for kind in [Kind::Process, Kind::Runc] {
        let names: Vec<String> = (0..ROUNDS)
            .map(|index| format!("{}-{index}", kind.name()))
            .collect();
        stand.manifests.clear();
        stand.gate.manifests("")?;
        stand.gate.until_converged(0)?;
        let mut deployed = Vec::new();
        for name in &names {
            deployed.push(stand.deploy(kind, name)?);
        }
        stand.gate.until_converged(ROUNDS)?;
        let mut restarts = Vec::new();
        for name in &names {
            restarts.push(stand.restart(name)?);
        }
        stand.gate.until_converged(ROUNDS)?;
        if kind == Kind::Process {
            figures.push(Figure::new(
                "process killed -> running again, while a large image is unpacked",
                stand.restart_while_unpacking()?,
                "ms",
                bars.restart_process_ms,
            ));
        }
        // The bar of a container is the time of its runtime on this host, plus a small allowance.
        let (base, restart_ms) = match kind {
            Kind::Process => (0.0, bars.restart_process_ms),
            Kind::Runc => {
                let mut alone = Vec::new();
                for _ in 0..ROUNDS {
                    alone.push(stand.runc_alone()?);
                }
                let alone = median(alone);
                figures.push(Figure::recorded(
                    "runc alone creates and starts such a container",
                    alone,
                    "ms",
                ));
                (alone, alone + bars.restart_ms)
            }
        };
        let middle = |of: fn(&Deployed) -> f64| median(deployed.iter().map(of).collect());
        let name = kind.name();
        figures.extend([
            Figure::new(
                format!("cloud accepts a {name} pod -> it runs"),
                middle(|one| one.exec),
                "ms",
                base + bars.exec_ms,
            ),
            Figure::recorded(
                format!("manifest in the folder -> a {name} pod runs"),
                middle(|one| one.written_to_exec),
                "ms",
            ),
            Figure::new(
                format!("cloud accepts a {name} pod -> Running in the cloud"),
                middle(|one| one.running),
                "ms",
                bars.running_ms,
            ),
            Figure::new(
                format!("{name} container killed -> running again, first crash"),
                median(restarts),
                "ms",
                restart_ms,
            ),
        ]);
    }
    let mut starts = Vec::new();
    for _ in 0..ROUNDS {
        starts.push(stand.ready()?);
    }
    figures.push(Figure::new(
        "agent start, 10 runc pods -> Ready in the cloud",
        median(starts),
        "ms",
        bars.ready_ms,
    ));
    Ok(figures)
}

/// How many changes of the manifests the cloud has accepted.
fn accepted(log: &Path) -> Result<usize> {
    Ok(fs::read_to_string(log)?
        .matches("manifests_accepted")
        .count())
}

fn runs(gate: &Gate, name: &str) -> Result<bool> {
    let pods = gate.cloud_json("/v1/pods")?;
    Ok(row(&pods, name).is_some_and(|pod| pod["phase"] == "Running"))
}

fn connected(gate: &Gate) -> Result<bool> {
    let nodes = gate.cloud_json("/v1/nodes")?;
    Ok(row(&nodes, "gate").is_some_and(|node| node["connected"] == true))
}

fn row<'a>(rows: &'a Value, name: &str) -> Option<&'a Value> {
    rows.as_array()?.iter().find(|row| row["name"] == name)
}

/// The moment at which a state is reached.
fn until(reached: impl Fn() -> Result<bool>) -> Result<Instant> {
    let start = Instant::now();
    while start.elapsed() < STATE_TIMEOUT {
        if reached()? {
            return Ok(Instant::now());
        }
        std::thread::sleep(GLANCE);
    }
    bail!("a state did not come within {STATE_TIMEOUT:?}")
}

fn join(thread: std::thread::ScopedJoinHandle<'_, Result<Instant>>) -> Result<Instant> {
    thread
        .join()
        .unwrap_or_else(|_| bail!("a thread of the benchmark died"))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
