//! QEMU's control socket (QMP): saves a running board, and waits until a resumed one runs.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

/// Interval of polling a state.
const POLL: Duration = Duration::from_millis(5);

/// A connection to QEMU.
pub struct Control(BufReader<UnixStream>);

impl Control {
    /// Connects, as soon as QEMU listens.
    ///
    /// # Errors
    /// It does not within `timeout`.
    pub fn connect(socket: &Path, timeout: Duration) -> Result<Self> {
        let start = Instant::now();
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if start.elapsed() > timeout => return Err(error.into()),
                Err(_) => std::thread::sleep(POLL),
            }
        };
        stream.set_read_timeout(Some(timeout))?;
        let mut control = Self(BufReader::new(stream));
        control.line().context("QEMU does not greet")?;
        control.ask("qmp_capabilities", json!({}))?;
        Ok(control)
    }

    /// Waits until the state of a board that is resumed is loaded, and the board runs.
    ///
    /// # Errors
    /// It does not within `timeout`.
    pub fn until_running(&mut self, timeout: Duration) -> Result<()> {
        let start = Instant::now();
        while self.ask("query-status", json!({}))?["running"] != true {
            ensure!(start.elapsed() < timeout, "QEMU does not resume the board");
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Saves memory and devices, without the disk, into a file. The board is paused then.
    ///
    /// # Errors
    /// QEMU cannot, or not within `timeout`.
    pub fn save(&mut self, file: &Path, timeout: Duration) -> Result<()> {
        let target = format!("exec:cat >'{}'", file.display());
        self.ask("migrate", json!({"uri": target}))?;
        let start = Instant::now();
        loop {
            let state = self.ask("query-migrate", json!({}))?;
            if state["status"] == "completed" {
                return Ok(());
            }
            if state["status"] == "failed" || start.elapsed() > timeout {
                bail!("QEMU does not save the board: {state}");
            }
            std::thread::sleep(POLL);
        }
    }

    fn ask(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.0.get_mut(), "{request}")?;
        loop {
            let answer = self.line()?;
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
            // Any other message is an event.
            if let Some(error) = answer.get("error") {
                bail!("QEMU: {command}: {error}");
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("QEMU says {line:?}"))
    }
}
