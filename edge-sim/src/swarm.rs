//! A swarm of real nodes against a real edge-cloud: each has the agent's own identity, link and
//! session, but runs no pods. It measures what only real sockets and real TLS can show.
//!
//! Bound: [`NODES_MAX`] nodes, a thread each, as the agent's link has one.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use async_channel::{Receiver, Sender};
use edge_core::reconnect::{Reconnect, slot};
use edge_min::board::clock::Clock;
use edge_min::link::connection::{self, Connect, LinkConfig, LinkEvent, LinkSender, Target};
use edge_min::link::identity::Identity;
use edge_min::link::join;
use edge_min::link::tls;
use edge_proto::enrol::Endpoint;
use edge_proto::session::{
    self, BlobInput, BlobOutput, LinkInput, LinkOutput, NodeConfig, NodeOutput, StateInput,
    StateOutput,
};
use serde::Serialize;
use smol::future::or;

use crate::rng::Rng;

/// Highest number of nodes of one swarm: their threads and sockets are this process's.
pub const NODES_MAX: u32 = 20_000;
/// Changes of presence that are not counted yet: a node that was live and gone twice is far ahead.
const PRESENCE_MAX: usize = 4 * NODES_MAX as usize;
/// Nodes that join at the same time, a thread each.
const JOINS_AT_ONCE: u32 = 8;
/// Descriptors that a node needs: its socket, and those of its event loop.
const DESCRIPTORS_PER_NODE: u64 = 8;

/// Settings of a swarm.
#[derive(Clone, Debug)]
pub struct Options {
    /// `mqtts://HOST[:PORT]` of edge-cloud's port, or `https://...` behind a broker.
    pub url: String,
    /// A token with at least as many uses as there are nodes without an identity.
    pub token: Option<String>,
    /// Number of nodes.
    pub nodes: u32,
    /// Folder of identities, kept for the next time.
    pub state: PathBuf,
    /// Time between connect and return in which the swarm is left alone.
    pub quiet: Duration,
    /// MQTT keepalive.
    pub keepalive: Duration,
    /// Longest time of a phase.
    pub timeout: Duration,
    /// Processes whose memory is the cloud's.
    pub cloud_pids: Vec<u32>,
}

/// Result of one phase.
#[derive(Clone, Debug, Serialize)]
pub struct Phase {
    /// `connect`, `quiet` or `return`.
    pub phase: &'static str,
    /// Nodes with a live session at the end of the phase.
    pub live: u32,
    /// Seconds until the last was live, or of quiet.
    pub seconds: f64,
    /// Sessions that became live in an average and in the busiest second.
    pub per_second: f64,
    /// The same in the busiest second.
    pub per_second_peak: u32,
    /// Connection attempts.
    pub attempts: u32,
    /// Links lost although the swarm has not cut them.
    pub lost: u32,
    /// IP bytes of one node, both ways, from the counters of the loopback device; `None` when the
    /// cloud is not on this machine.
    pub bytes_per_node: Option<f64>,
    /// Anonymous memory of the cloud's processes, KiB, all together.
    pub cloud_kib: Option<u64>,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:8} {:>6} live, {:>7.1} s, {:>6.1} a second (peak {}), {} attempts, {} lost",
            self.phase,
            self.live,
            self.seconds,
            self.per_second,
            self.per_second_peak,
            self.attempts,
            self.lost,
        )?;
        if let Some(bytes) = self.bytes_per_node {
            write!(f, ", {bytes:.0} IP bytes a node")?;
        }
        if let Some(kib) = self.cloud_kib {
            write!(f, ", cloud {kib} KiB")?;
        }
        Ok(())
    }
}

/// Counters of all nodes.
#[derive(Default)]
struct Counts {
    attempts: AtomicU32,
    lost: AtomicU32,
}

/// Whether a node has a session.
enum Presence {
    Live,
    Gone,
}

/// Runs the swarm: joins nodes without an identity, connects all at once, waits, cuts all
/// links at once, and waits until all are back. `report` gets each phase.
///
/// # Errors
/// What keeps it from running, or a phase that did not end in time.
pub fn run(options: &Options, mut report: impl FnMut(&Phase)) -> Result<(), String> {
    if options.nodes == 0 || options.nodes > NODES_MAX {
        return Err(format!("--nodes: from 1 to {NODES_MAX}"));
    }
    raise_descriptors(u64::from(options.nodes) * DESCRIPTORS_PER_NODE)?;
    let identities = identities(options)?;
    let counts = Arc::new(Counts::default());
    let (sender, presence) = async_channel::bounded(PRESENCE_MAX);
    let executor = Arc::new(smol::Executor::new());
    let mut cuts = Vec::new();
    for (number, identity) in identities.into_iter().enumerate() {
        let (cut, cutting) = async_channel::bounded(1);
        cuts.push(cut);
        let node = Node::open(number as u64, &identity, options)?;
        let task = node.run(cutting, sender.clone(), Arc::clone(&counts));
        executor.spawn(task).detach();
    }
    drop(sender);
    let mut swarm = Swarm {
        presence,
        live: 0,
        options,
        counts: &counts,
    };
    // Before the first node runs.
    let begin = swarm.begin();
    let (stop, stopped) = async_channel::bounded::<()>(1);
    let worker = Arc::clone(&executor);
    let thread = std::thread::Builder::new()
        .name("swarm".to_owned())
        .spawn(move || smol::block_on(worker.run(stopped.recv())))
        .map_err(|error| error.to_string())?;
    let result = (|| {
        report(&swarm.until_all_live("connect", begin)?);
        report(&swarm.quiet());
        let begin = swarm.begin();
        for cut in &cuts {
            cut.try_send(()).map_err(|error| error.to_string())?;
        }
        // All links are down before the first can be back: the shortest delay is half a second.
        report(&swarm.until_all_live("return", begin)?);
        Ok(())
    })();
    drop(stop);
    thread.join().ok();
    result
}

/// Attempts, lost links and bytes so far.
type Measured = (u32, u32, Option<u64>);
/// Start of a phase, and the counters then.
type Begin = (Instant, Measured);

struct Swarm<'a> {
    presence: Receiver<Presence>,
    live: u32,
    options: &'a Options,
    counts: &'a Counts,
}

impl Swarm<'_> {
    fn until_all_live(&mut self, phase: &'static str, begin: Begin) -> Result<Phase, String> {
        let (start, before) = begin;
        let end = start + self.options.timeout;
        let mut live_at: Vec<u32> = Vec::new();
        // A return begins with all of them gone.
        let mut gone = u32::from(phase == "return") * self.options.nodes;
        while self.live < self.options.nodes || gone > 0 {
            match self.next(end) {
                Some(Presence::Live) => {
                    self.live += 1;
                    let second = usize::try_from(start.elapsed().as_secs()).unwrap_or(0);
                    live_at.resize(live_at.len().max(second + 1), 0);
                    if let Some(count) = live_at.get_mut(second) {
                        *count += 1;
                    }
                }
                Some(Presence::Gone) => {
                    self.live = self.live.saturating_sub(1);
                    gone = gone.saturating_sub(1);
                }
                None => {
                    return Err(format!(
                        "{phase}: {} of {} nodes are live after {:?}",
                        self.live, self.options.nodes, self.options.timeout
                    ));
                }
            }
        }
        let cut = u32::from(phase == "return") * self.options.nodes;
        let mut done = self.since(phase, start, &before, cut);
        done.per_second = f64::from(live_at.iter().sum::<u32>()) / done.seconds.max(0.001);
        done.per_second_peak = live_at.into_iter().max().unwrap_or(0);
        Ok(done)
    }

    fn quiet(&mut self) -> Phase {
        let (start, before) = self.begin();
        let end = start + self.options.quiet;
        while let Some(presence) = self.next(end) {
            match presence {
                Presence::Live => self.live += 1,
                Presence::Gone => self.live = self.live.saturating_sub(1),
            }
        }
        self.since("quiet", start, &before, 0)
    }

    fn next(&self, end: Instant) -> Option<Presence> {
        smol::block_on(or(async { self.presence.recv().await.ok() }, async {
            smol::Timer::at(end).await;
            None
        }))
    }

    fn begin(&self) -> Begin {
        (Instant::now(), self.measure())
    }

    fn measure(&self) -> Measured {
        (
            self.counts.attempts.load(Ordering::SeqCst),
            self.counts.lost.load(Ordering::SeqCst),
            loopback_bytes(&self.options.url),
        )
    }

    fn since(&self, phase: &'static str, start: Instant, before: &Measured, cut: u32) -> Phase {
        let after = self.measure();
        let bytes = after.2.zip(before.2);
        let bytes = bytes.map(|(after, before)| after.saturating_sub(before) as f64);
        Phase {
            phase,
            live: self.live,
            seconds: start.elapsed().as_secs_f64(),
            per_second: 0.0,
            per_second_peak: 0,
            attempts: after.0 - before.0,
            lost: (after.1 - before.1).saturating_sub(cut),
            bytes_per_node: bytes.map(|bytes| bytes / f64::from(self.options.nodes)),
            cloud_kib: cloud_kib(&self.options.cloud_pids),
        }
    }
}

/// One node: the agent's link and session.
struct Node {
    session: session::Node,
    reconnect: Reconnect,
    connects: Sender<Connect>,
    to: Arc<Target>,
    events: Receiver<LinkEvent>,
    link: Option<LinkSender>,
    start: Instant,
    connect_at: Option<u64>,
    /// It was counted as live: a session that replaces another counts once.
    live: bool,
}

impl Node {
    fn open(number: u64, identity: &Identity, options: &Options) -> Result<Self, String> {
        let url = identity.urls(Some(&options.url)).link().to_owned();
        let end = Endpoint::parse(&url).ok_or_else(|| format!("{url}: not a URL of a cloud"))?;
        let clock = Clock::open(&options.state.join(&identity.node));
        let (connects, receiver) = async_channel::bounded(1);
        let (sender, events) = async_channel::bounded(64);
        let config = LinkConfig {
            node: identity.node.clone(),
            keepalive: options.keepalive,
        };
        let to = Arc::new(Target {
            host: end.host,
            port: end.port,
            tls: tls::link_config(identity, clock).map_err(|error| error.to_string())?,
        });
        connection::spawn(config, receiver, sender).map_err(|error| error.to_string())?;
        let mut rng = Rng::new(number ^ u64::from(std::process::id()) << 32);
        let config = NodeConfig {
            kinds: u32::MAX,
            agent: "edge-sim swarm".to_owned(),
        };
        Ok(Self {
            session: session::Node::new(config, rng.draw()),
            reconnect: Reconnect::new(rng.draw(), slot(&identity.node)),
            connects,
            to,
            events,
            link: None,
            start: Instant::now(),
            connect_at: Some(0),
            live: false,
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn run(mut self, cuts: Receiver<()>, presence: Sender<Presence>, counts: Arc<Counts>) {
        enum Event {
            Link(LinkEvent),
            Cut,
            Time,
        }
        loop {
            let deadline = [self.connect_at, self.session.deadline()];
            let at = deadline.into_iter().flatten().min();
            let at = at.map(|at| self.start + Duration::from_millis(at));
            let event = or(
                async {
                    match self.events.recv().await {
                        Ok(event) => Event::Link(event),
                        Err(_) => std::future::pending().await,
                    }
                },
                or(
                    async {
                        match cuts.recv().await {
                            Ok(()) => Event::Cut,
                            Err(_) => std::future::pending().await,
                        }
                    },
                    async {
                        match at {
                            Some(at) => drop(smol::Timer::at(at).await),
                            None => std::future::pending().await,
                        }
                        Event::Time
                    },
                ),
            )
            .await;
            let now = self.now();
            match event {
                Event::Link(LinkEvent::Up(sender)) => {
                    self.reconnect.up(now);
                    self.link = Some(sender);
                    self.handle(LinkInput::TransportUp, &presence);
                }
                Event::Link(LinkEvent::Frame(frame)) => {
                    self.handle(LinkInput::Frame(&frame), &presence)
                }
                Event::Link(LinkEvent::Down(..)) => {
                    if self.link.take().is_some() {
                        counts.lost.fetch_add(1, Ordering::SeqCst);
                    }
                    self.handle(LinkInput::TransportDown, &presence);
                    self.connect_at = Some(self.reconnect.down(now, 0));
                }
                Event::Link(_) => {}
                Event::Cut => {
                    if let Some(link) = &self.link {
                        link.close();
                    }
                }
                Event::Time => {
                    if self.connect_at.is_some_and(|at| at <= now) {
                        self.connect_at = None;
                        counts.attempts.fetch_add(1, Ordering::SeqCst);
                        let will = self.session.will();
                        // The thread takes one at a time, and only this sends them.
                        let to = Arc::clone(&self.to);
                        self.connects.try_send(Connect { to, will }).ok();
                    }
                    self.handle(LinkInput::Tick, &presence);
                }
            }
        }
    }

    fn handle(&mut self, input: LinkInput<'_>, presence: &Sender<Presence>) {
        let now = self.now();
        self.session.handle(now, input);
        while let Some(output) = self.session.poll() {
            match output {
                NodeOutput::Link(LinkOutput::Send(frame)) => {
                    if let Some(link) = &mut self.link {
                        // Updates its count of frames that the socket has taken.
                        link.is_writable();
                        link.send(frame);
                    }
                }
                NodeOutput::State(StateOutput::Apply { ticket, .. }) => {
                    let refused = Vec::new();
                    self.session
                        .handle(now, StateInput::Applied { ticket, refused });
                }
                NodeOutput::Blob(BlobOutput::Wanted { sha256, len }) => {
                    // It runs nothing, so it acknowledges everything that it is sent.
                    self.session
                        .handle(now, BlobInput::Have { sha256, bytes: len });
                }
                // The receiver exists as long as the swarm runs.
                NodeOutput::Link(LinkOutput::Live { .. }) if !self.live => {
                    self.live = true;
                    presence.try_send(Presence::Live).ok();
                }
                NodeOutput::Link(LinkOutput::Down) if self.live => {
                    self.live = false;
                    presence.try_send(Presence::Gone).ok();
                }
                _ => {}
            }
        }
    }
}

/// Loads the identities of the nodes, and joins those that have none.
fn identities(options: &Options) -> Result<Vec<Identity>, String> {
    let next = AtomicU32::new(0);
    let joined = std::sync::Mutex::new(Vec::new());
    let work = || -> Result<(), String> {
        loop {
            let number = next.fetch_add(1, Ordering::SeqCst);
            if number >= options.nodes {
                return Ok(());
            }
            let identity = identity(&format!("swarm-{number}"), options)?;
            if let Ok(mut joined) = joined.lock() {
                joined.push(identity);
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..JOINS_AT_ONCE).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| {
            let broke = |_| Err("a thread that joins broke".to_owned());
            thread.join().unwrap_or_else(broke)
        })
    })?;
    joined.into_inner().map_err(|error| error.to_string())
}

fn identity(name: &str, options: &Options) -> Result<Identity, String> {
    let state = options.state.join(name);
    let failed = |error: std::io::Error| format!("{}: {error}", state.display());
    std::fs::create_dir_all(&state).map_err(failed)?;
    if let Some(identity) = Identity::load(&state).map_err(failed)? {
        return Ok(identity);
    }
    let token = options
        .token
        .as_deref()
        .ok_or_else(|| format!("{name} has no identity yet: give --token, with a use for each"))?;
    let clock = Clock::open(&state);
    join::join(&options.url, token, name, &state, clock)
        .map(|(identity, _)| identity)
        .map_err(|error| format!("{name}: {error}"))
}

fn raise_descriptors(wanted: u64) -> Result<(), String> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|error| error.to_string())?;
    if soft >= wanted {
        return Ok(());
    }
    setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted)).map_err(|error| {
        format!("needs {wanted} descriptors, may have {hard}: raise `ulimit -n` ({error})")
    })
}

/// Bytes that the loopback device has carried, when the cloud is on this machine.
fn loopback_bytes(url: &str) -> Option<u64> {
    let host = Endpoint::parse(url)?.host;
    if host != "localhost" && !host.starts_with("127.") && host != "::1" {
        return None;
    }
    let text = std::fs::read_to_string("/sys/class/net/lo/statistics/rx_bytes").ok()?;
    text.trim().parse().ok()
}

/// Anonymous memory: pages of the program's file do not grow with the nodes, and their share of
/// one process depends on how many others run the same file.
fn cloud_kib(pids: &[u32]) -> Option<u64> {
    let anonymous = |pid: &u32| {
        let file = Path::new("/proc").join(pid.to_string());
        let text = std::fs::read_to_string(file.join("smaps_rollup")).ok()?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("Anonymous:"))?;
        line.trim()
            .trim_end_matches(" kB")
            .trim()
            .parse::<u64>()
            .ok()
    };
    let sizes: Option<Vec<u64>> = pids.iter().map(anonymous).collect();
    sizes
        .filter(|sizes| !sizes.is_empty())
        .map(|sizes| sizes.iter().sum())
}
