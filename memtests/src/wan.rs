//! A bad network link between a gate and its cloud: two network namespaces of the test's own with
//! `scripts/wan.py` between them. Nothing leaves them, and they are removed when the link is dropped.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, bail};

use crate::STATE_TIMEOUT;

/// The cloud's address on every link: the namespaces are separate.
pub const CLOUD: &str = "10.77.0.1";
const GATE: &str = "10.77.0.2";

/// Two namespaces and the link between them.
pub struct Wan {
    gate: String,
    cloud: String,
    line: Option<Child>,
}

fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(args).output()?;
    if !output.status.success() {
        bail!("ip {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

impl Wan {
    /// A link with this delay and loss each way, and this rate (0 is no limit).
    ///
    /// # Errors
    /// Those of `ip` and of `scripts/wan.py`.
    pub fn start(delay_ms: u32, loss_percent: u32, rate_kbit: u32) -> Result<Self> {
        Self::start_with(&[delay_ms, loss_percent, rate_kbit])
    }

    /// A quick link on which IP packets longer than this are dropped without an ICMP message.
    ///
    /// # Errors
    /// Those of `ip` and of `scripts/wan.py`.
    pub fn start_narrow(packet_bytes_max: u32) -> Result<Self> {
        Self::start_with(&[10, 0, 0, packet_bytes_max])
    }

    fn start_with(numbers: &[u32]) -> Result<Self> {
        static LINES: AtomicU32 = AtomicU32::new(0);
        let number = LINES.fetch_add(1, Ordering::Relaxed);
        let name = |end: &str| format!("edge-min-{end}-{}-{number}", std::process::id());
        let mut wan = Self {
            gate: name("gate"),
            cloud: name("cloud"),
            line: None,
        };
        for namespace in [&wan.gate, &wan.cloud] {
            ip(&["netns", "add", namespace])?;
            ip(&["-n", namespace, "link", "set", "lo", "up"])?;
        }
        let mut line = Command::new(crate::root().join("scripts/wan.py"))
            .args([&wan.gate, &format!("{GATE}/24"), &wan.cloud])
            .arg(format!("{CLOUD}/24"))
            .args(numbers.iter().map(ToString::to_string))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = line.stdout.take().context("wan.py has no output")?;
        wan.line = Some(line);
        let mut ready = String::new();
        BufReader::new(output).read_line(&mut ready)?;
        if ready != "ready\n" {
            bail!("wan.py did not start: {ready}");
        }
        Ok(wan)
    }

    /// Uses the oldest congestion control at both ends, as if the kernels had no other default: it
    /// takes each lost packet for a queue.
    ///
    /// # Errors
    /// Those of sysctl.
    pub fn with_reno(self) -> Result<Self> {
        for namespace in [&self.gate, &self.cloud] {
            let setting = "net.ipv4.tcp_congestion_control=reno";
            ip(&["netns", "exec", namespace, "sysctl", "-qw", setting])?;
        }
        Ok(self)
    }

    /// Command prefix that runs a program at the gate's end.
    #[must_use]
    pub fn at_gate(&self) -> Vec<String> {
        enter(&self.gate)
    }

    /// Command prefix that runs a program at the cloud's end.
    #[must_use]
    pub fn at_cloud(&self) -> Vec<String> {
        enter(&self.cloud)
    }

    /// From now on all packets are dropped, without notice: no FIN, no reset, no ICMP.
    ///
    /// # Errors
    /// Those of nft.
    pub fn black_hole(&self) -> Result<()> {
        self.nft(
            "add table inet hole
             add chain inet hole in { type filter hook input priority 0; policy drop; }
             add chain inet hole out { type filter hook output priority 0; policy drop; }",
        )
    }

    /// Ends [`Self::black_hole`].
    ///
    /// # Errors
    /// Those of nft.
    pub fn heal(&self) -> Result<()> {
        self.nft("delete table inet hole")
    }

    fn nft(&self, rules: &str) -> Result<()> {
        let [nsenter, namespace] = enter(&self.gate).try_into().unwrap_or_default();
        let mut nft = Command::new(nsenter)
            .args([&namespace, "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .spawn()?;
        let mut input = nft.stdin.take().context("nft has no input")?;
        input.write_all(rules.as_bytes())?;
        drop(input);
        if !nft.wait()?.success() {
            bail!("nft refused: {rules}");
        }
        Ok(())
    }
}

/// Only the network: in a mount namespace of its own a program would not see the cgroups.
fn enter(namespace: &str) -> Vec<String> {
    vec![
        "nsenter".to_owned(),
        format!("--net=/run/netns/{namespace}"),
    ]
}

impl Drop for Wan {
    fn drop(&mut self) {
        if let Some(line) = &mut self.line {
            line.kill().ok();
            line.wait().ok();
        }
        for namespace in [&self.gate, &self.cloud] {
            ip(&["netns", "del", namespace]).ok();
        }
    }
}

/// Kind of a server in place of the cloud.
#[derive(Clone, Copy)]
pub enum WrongServer {
    /// Accepts connections and sends nothing.
    Silent,
    /// Redirects every client to a login page.
    Portal,
}

/// A [`WrongServer`] on a port of this host.
pub struct Impostor {
    port: u16,
    guests: Arc<AtomicU32>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Impostor {
    /// Listens on the cloud's port, which must be free.
    ///
    /// # Errors
    /// The port is in use.
    pub fn start(port: u16, server: WrongServer) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port))?;
        let (guests, over) = (
            Arc::new(AtomicU32::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (counter, end) = (Arc::clone(&guests), Arc::clone(&over));
        let work = move || {
            let mut held = Vec::new();
            for stream in listener.incoming().map_while(Result::ok) {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                counter.fetch_add(1, Ordering::Relaxed);
                match server {
                    WrongServer::Silent => held.push(stream),
                    WrongServer::Portal => redirect(stream).unwrap_or_default(),
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("impostor".to_owned())
            .spawn(work)?;
        Ok(Self {
            port,
            guests,
            over,
            thread: Some(thread),
        })
    }

    /// Connections so far.
    #[must_use]
    pub fn guests(&self) -> u32 {
        self.guests.load(Ordering::Relaxed)
    }
}

/// Answers as a captive portal does, whatever the request.
fn redirect(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(STATE_TIMEOUT))?;
    let _asked = stream.read(&mut [0; 1024])?;
    stream.write_all(
        b"HTTP/1.1 302 Found\r\nLocation: http://portal.invalid/login\r\nContent-Length: 0\r\n\r\n",
    )
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // Wakes the thread from accepting connections.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}
