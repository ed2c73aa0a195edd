//! TCP ports for programs that get their port as an argument, and that a test ends and starts again.
//!
//! A port that was found by binding port 0 is free for every process as soon as it is closed: the kernel
//! may give it to a connection of another test before the program listens. The ports here are
//! [`reserved`](Port::reserve) by a lock on a file until they are dropped, and are below the range from
//! which the kernel takes ports by itself.

use std::fs::{self, File, TryLockError};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

/// The first port that is tried, and the number of ports.
const FIRST: u16 = 12_000;
const COUNT: u16 = 12_000;
/// Ports from here on may be assigned by the kernel.
const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// A port that no other test on this host uses, as long as this value exists.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    /// Reserves a port without a listener.
    ///
    /// # Errors
    /// There is none, or the folder of the locks cannot be written.
    pub fn reserve() -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let range = fs::read_to_string(RANGE)?;
        let first_of_kernel: Option<u16> =
            range.split_whitespace().next().and_then(|n| n.parse().ok());
        if first_of_kernel.is_none_or(|first| first < FIRST + COUNT) {
            return Err(io::Error::other(format!("{RANGE} leaves no room: {range}")));
        }
        let folder = std::env::temp_dir().join("edge-min-ports");
        fs::create_dir_all(&folder)?;
        // Processes begin at different ports, so that they seldom try the same one.
        let own = std::process::id().wrapping_mul(37);
        for _ in 0..COUNT {
            let step = NEXT.fetch_add(1, Ordering::Relaxed);
            let number = FIRST + (own.wrapping_add(step) % u32::from(COUNT)) as u16;
            let lock = File::create(folder.join(number.to_string()))?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(error)) => return Err(error),
            }
            if TcpListener::bind((Ipv4Addr::UNSPECIFIED, number)).is_ok() {
                return Ok(Self {
                    number,
                    _lock: lock,
                });
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }

    /// The TCP port.
    #[must_use]
    pub const fn number(&self) -> u16 {
        self.number
    }
}

#[cfg(test)]
mod tests {
    use super::Port;

    #[test]
    fn a_reserved_port_is_given_to_nobody_else() {
        let ports: Vec<Port> = (0..50).map(|_| Port::reserve().unwrap()).collect();
        let mut numbers: Vec<u16> = ports.iter().map(Port::number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), ports.len());
    }
}
