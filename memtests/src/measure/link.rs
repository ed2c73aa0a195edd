//! Bytes of the link, counted between the agent and edge-cloud.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

/// Bytes of one read.
const BUFFER_BYTES: usize = 16 * 1024;

#[derive(Default)]
struct Counts {
    up: AtomicU64,
    down: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
    opened: Mutex<Option<Instant>>,
}

/// Passes connections on to edge-cloud and counts the bytes: the TLS records of the link,
/// without TCP and IP. Its threads end with their connection, the listening one with the process.
pub struct Proxy {
    port: u16,
    counts: Arc<Counts>,
}

impl Proxy {
    /// A proxy for the port `to` of this machine.
    ///
    /// # Errors
    /// The system's.
    pub fn start(to: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let counts = Arc::new(Counts::default());
        let shared = Arc::clone(&counts);
        std::thread::Builder::new()
            .name("proxy".to_owned())
            .spawn(move || {
                for inside in listener.incoming().flatten() {
                    // While the cloud is down the connection is closed, as by a port without a listener.
                    if let Err(error) = connect(inside, to, &shared) {
                        eprintln!("proxy: {error}");
                    }
                }
            })?;
        Ok(Self { port, counts })
    }

    /// Port on which it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Bytes so far, from and to the agent, over all connections.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        let load = |count: &AtomicU64| count.load(Ordering::SeqCst);
        (load(&self.counts.up), load(&self.counts.down))
    }

    /// Bytes so far, both ways.
    #[must_use]
    pub fn total(&self) -> u64 {
        let (up, down) = self.bytes();
        up + down
    }

    /// When the newest connection was opened; from then on the agent counts its keepalives.
    #[must_use]
    pub fn opened(&self) -> Option<Instant> {
        let opened = &self.counts.opened;
        *opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes all connections, as a router that restarts does.
    pub fn cut(&self) {
        let mut open = self
            .counts
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for stream in open.drain(..) {
            // It may be closed already.
            stream.shutdown(Shutdown::Both).ok();
        }
    }
}

fn connect(inside: TcpStream, to: u16, counts: &Arc<Counts>) -> Result<()> {
    let outside = TcpStream::connect(("127.0.0.1", to))?;
    for stream in [&inside, &outside] {
        stream.set_nodelay(true)?;
        let mut open = counts.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.push(stream.try_clone()?);
    }
    let mut opened = counts.opened.lock().unwrap_or_else(PoisonError::into_inner);
    *opened = Some(Instant::now());
    drop(opened);
    let (back_in, back_out) = (inside.try_clone()?, outside.try_clone()?);
    let (up, down) = (Arc::clone(counts), Arc::clone(counts));
    let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
    thread("proxy-up").spawn(move || copy(inside, outside, &up.up))?;
    thread("proxy-down").spawn(move || copy(back_out, back_in, &down.down))?;
    Ok(())
}

fn copy(mut from: TcpStream, mut to: TcpStream, count: &AtomicU64) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        count.fetch_add(length as u64, Ordering::SeqCst);
        let Some(bytes) = buffer.get(..length) else {
            break;
        };
        if to.write_all(bytes).is_err() {
            break;
        }
    }
    // The reader of the other direction also gets the end.
    for stream in [from, to] {
        stream.shutdown(Shutdown::Both).ok();
    }
}

/// The kernel's count of IP bytes to and from one TCP port of this machine, by nftables.
pub struct PacketCounter {
    table: String,
}

impl PacketCounter {
    /// Starts to count.
    ///
    /// # Errors
    /// nft is missing or refuses.
    pub fn start(port: u16) -> Result<Self> {
        static TABLES: AtomicU32 = AtomicU32::new(0);
        let number = TABLES.fetch_add(1, Ordering::Relaxed);
        let table = format!("edge_min_{}_{number}", std::process::id());
        let rules = format!(
            "table inet {table} {{\n counter both {{ }}\n chain out {{\n \
             type filter hook output priority 0;\n \
             tcp dport {port} counter name both\n tcp sport {port} counter name both\n }}\n}}\n"
        );
        let mut nft = Command::new("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .context("nft")?;
        nft.stdin
            .take()
            .context("no pipe")?
            .write_all(rules.as_bytes())?;
        if !nft.wait()?.success() {
            bail!("nft refuses the counter");
        }
        Ok(Self { table })
    }

    /// IP bytes both ways since the start.
    ///
    /// # Errors
    /// nft does not report it.
    pub fn bytes(&self) -> Result<u64> {
        let output = Command::new("nft")
            .args(["list", "counter", "inet", &self.table, "both"])
            .output()?;
        let text = String::from_utf8(output.stdout)?;
        super::number_after(&text, " bytes")
    }
}

impl Drop for PacketCounter {
    fn drop(&mut self) {
        let delete = ["delete", "table", "inet", &self.table];
        Command::new("nft").args(delete).status().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::Port;

    /// A server that answers each connection's first byte with two, on a port of its own.
    fn doubling() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let serve = move || {
            for mut stream in listener.incoming().flatten() {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() {
                    stream.write_all(&[byte[0]; 2]).unwrap();
                }
            }
        };
        std::thread::Builder::new().spawn(serve).unwrap();
        port
    }

    #[test]
    fn every_byte_is_counted_over_all_connections_and_a_cut_ends_them() {
        let proxy = Proxy::start(doubling()).unwrap();
        for round in 1..=3 {
            let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
            let mut answer = [0; 2];
            stream.write_all(b"x").unwrap();
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"xx");
            assert_eq!(proxy.bytes(), (round, 2 * round));
            proxy.cut();
            assert_eq!(stream.read(&mut answer).unwrap(), 0);
        }
        assert_eq!(proxy.total(), 9);
    }

    #[test]
    #[ignore = "needs root and nft"]
    fn the_kernel_counts_ip_and_tcp_as_well() {
        let port = doubling();
        let counter = PacketCounter::start(port).unwrap();
        let unused = Port::reserve().unwrap();
        let other = PacketCounter::start(unused.number()).unwrap();
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0; 2]).unwrap();
        // Three packets to open, one each way: at least 40 bytes of headers in each.
        assert!(counter.bytes().unwrap() >= 5 * 40 + 3);
        assert_eq!(other.bytes().unwrap(), 0);
    }
}
