//! Debian's mosquitto with the configuration that `edge-cloud broker-config` writes: the external
//! broker of the tests.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Result, bail};

use crate::host::kill;
use crate::ports::Port;
use crate::{POLL, STATE_TIMEOUT};

/// A broker in a folder of its own.
pub struct Broker {
    dir: PathBuf,
    port: Port,
    child: Option<Child>,
}

impl Broker {
    /// Uses the configuration in `dir`; the broker is not started.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn new(dir: PathBuf, port: Port) -> Result<Self> {
        let child = None;
        let broker = Self { dir, port, child };
        broker.amend()?;
        Ok(broker)
    }

    /// Adds the settings of the tests to a configuration that was just written.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn amend(&self) -> Result<()> {
        let mut config = fs::OpenOptions::new()
            .append(true)
            .open(self.dir.join("mosquitto.conf"))?;
        // A service has a user of its own; here it reads files of the test's user.
        writeln!(config, "user root\nlog_dest stderr\nlog_type all")?;
        Ok(())
    }

    /// Folder of its configuration and certificates.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// TCP port of its listener.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port.number()
    }

    /// Starts it, and waits until it listens.
    ///
    /// # Errors
    /// It does not.
    pub fn start(&mut self) -> Result<()> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))?;
        // Debian has it in /usr/sbin, which is not in every PATH.
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let child = Command::new("mosquitto")
            .env("PATH", path)
            .arg("-c")
            .arg(self.dir.join("mosquitto.conf"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()?;
        self.child = Some(child);
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port())).is_err() {
            if start.elapsed() > STATE_TIMEOUT {
                bail!("mosquitto does not listen:\n{}", self.log()?);
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// SIGKILL: no will is sent.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self) -> Result<()> {
        kill(&mut self.child)
    }

    /// SIGHUP: certificates and lists are read again.
    ///
    /// # Errors
    /// It does not run.
    pub fn reload(&self) -> Result<()> {
        let Some(child) = &self.child else {
            bail!("the broker does not run");
        };
        let pid = child.id().to_string();
        if !Command::new("kill")
            .args(["-HUP", &pid])
            .status()?
            .success()
        {
            bail!("SIGHUP failed");
        }
        Ok(())
    }

    /// Its log: each packet is a line.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.dir.join("log"))?)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill().ok();
    }
}
