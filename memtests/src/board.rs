//! A whole board in QEMU (`scripts/board`) with an edge-cloud beside it. A test boots it, cuts its
//! power and drives a shell on its serial console.
//!
//! The protocol on the console: one command a line; the guest runs it and prints `@@NUMBER:CODE` at
//! the start of a line. Whatever the kernel prints in between belongs to the answer. Each command
//! has a deadline, and the end of QEMU ends the wait.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::blocklog::{self, Cut};
use crate::host::text;
use crate::ports::Port;
use crate::qmp::Control;
use crate::{measure, program, root};

/// Timeout for a state of an emulated board, on which every instruction takes ten; a container by
/// runc alone takes up to ten seconds on a busy machine.
pub const BOARD_TIMEOUT: Duration = Duration::from_secs(600);
/// Timeout of one command on the console.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(600);
/// Interval of polling the cloud, which costs a process of this machine.
const CLOUD_POLL: Duration = Duration::from_millis(100);
/// Interval of polling a state: each poll costs the board a process.
const POLL: Duration = Duration::from_millis(500);
/// Interval of reading the console's file, which costs the board nothing.
const CONSOLE_POLL: Duration = Duration::from_millis(10);
/// Printed by the guest's shell when it takes commands.
const READY: &str = "board: ready";
/// Printed when its boot has stopped before the disk.
const HALFWAY: &str = "board: halfway";
/// Address of the host for a guest of QEMU's user network.
const HOST: &str = "10.0.2.2";

/// Architecture of the emulated board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// 64-bit Arm, Cortex-A53.
    Aarch64,
    /// 32-bit Arm, Cortex-A15.
    Armv7,
}

impl Arch {
    /// As `scripts/board` calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aarch64 => "aarch64",
            Self::Armv7 => "armv7",
        }
    }

    /// The number `key` of the board file's budget.
    ///
    /// # Errors
    /// There is none.
    pub fn budget(self, key: &str) -> Result<i64> {
        let file = root().join(format!("board-configs/qemu-virt-{}.toml", self.name()));
        let board: toml::Table = fs::read_to_string(&file)?.parse()?;
        board
            .get("budget")
            .and_then(|budget| budget.get(key)?.as_integer())
            .with_context(|| format!("{}: no budget {key}", file.display()))
    }
}

/// Options of a boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Boot {
    /// Without a network device.
    pub offline: bool,
    /// With a clock that stands at 1970.
    pub year_1970: bool,
    /// As small and fast as possible, for tests of the store: no runc, unconnected until the test
    /// enables the network, and a disk that loses unflushed writes; see
    /// [`Board::cut_power_of_disk`].
    pub store: bool,
    /// Resumed from the middle of a boot, where [`Board::save`] has saved it, instead of booted from
    /// the start; with `store` only.
    pub resumed: bool,
}

/// A booted board, the disk that survives a power cut, and its cloud.
pub struct Board {
    dir: PathBuf,
    arch: Arch,
    port: Port,
    cloud: Option<Child>,
    qemu: Option<Child>,
    /// Bytes of the console's file that were read.
    seen: usize,
    commands: u32,
}

impl Board {
    /// A board as delivered, not booted, and a running cloud with these manifests.
    ///
    /// # Errors
    /// Everything that cannot be created: the agent's binary or the kernel may be missing.
    pub fn make(arch: Arch, manifests: &str) -> Result<Self> {
        static BOARDS: AtomicU32 = AtomicU32::new(0);
        let number = BOARDS.fetch_add(1, Ordering::Relaxed);
        let name = format!("edge-min-board-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(dir.join("manifests"))?;
        let port = Port::reserve()?;
        let mut board = Self {
            dir,
            arch,
            port,
            cloud: None,
            qemu: None,
            seen: 0,
            commands: 0,
        };
        let config = format!(
            "version = 1\nnode = \"board\"\nboard-file = \"/etc/edge-min/board.toml\"\n\
             cloud = \"{}\"\nkeepalive-ms = 5000\n",
            board.url()
        );
        fs::write(board.dir.join("edge-min.toml"), config)?;
        board.manifests(manifests)?;
        text(
            Command::new(root().join("scripts/board"))
                .args(["make", arch.name()])
                .arg(&board.dir),
        )?;
        board.start_cloud()?;
        Ok(board)
    }

    /// URL of its cloud.
    #[must_use]
    pub fn url(&self) -> String {
        format!("mqtts://{HOST}:{}", self.port.number())
    }

    /// Replaces the manifests.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn manifests(&self, manifests: &str) -> Result<()> {
        // Atomically: edge-cloud may read it at any time.
        let new = self.dir.join("all.yaml");
        fs::write(&new, manifests)?;
        Ok(fs::rename(new, self.dir.join("manifests/all.yaml"))?)
    }

    /// Starts edge-cloud and waits for its API.
    ///
    /// # Errors
    /// It does not answer.
    pub fn start_cloud(&mut self) -> Result<()> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join("cloud.log"))?;
        let child = Command::new(program("edge-cloud")?)
            .arg("--data")
            .arg(self.dir.join("cloud"))
            .args(["serve", "--name", &format!("localhost,{HOST}")])
            .args(["--listen", &format!("127.0.0.1:{}", self.port.number())])
            .arg("--manifests")
            .arg(self.dir.join("manifests"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()?;
        self.cloud = Some(child);
        self.until("edge-cloud answers", |board| {
            board.cloud_text(&["nodes"]).is_ok()
        })
    }

    /// SIGKILL to edge-cloud.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill_cloud(&mut self) -> Result<()> {
        kill(&mut self.cloud)
    }

    /// What `edge-cloud ARGS` prints.
    ///
    /// # Errors
    /// Its error message.
    pub fn cloud_text(&self, args: &[&str]) -> Result<String> {
        text(
            Command::new(program("edge-cloud")?)
                .arg("--data")
                .arg(self.dir.join("cloud"))
                .args(args),
        )
    }

    /// Answer of `edge-cloud --json ARGS`.
    ///
    /// # Errors
    /// Its error message.
    pub fn cloud_json(&self, what: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.cloud_text(&["--json", what])?)?)
    }

    /// Answer of edge-cloud's API to a GET, without the separate process of
    /// [`Self::cloud_text`].
    ///
    /// # Errors
    /// It does not answer.
    pub fn cloud_get(&self, target: &str) -> Result<Value> {
        measure::get(&self.dir.join("cloud/api.sock"), target)
    }

    /// The image of the disk, as the last power cut has left it.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.dir.join("disk")
    }

    /// The folder of edge-cloud's data.
    #[must_use]
    pub fn cloud_data(&self) -> PathBuf {
        self.dir.join("cloud")
    }

    /// Names of the pods that run according to the cloud, sorted.
    ///
    /// # Errors
    /// The cloud does not answer.
    pub fn running_as_the_cloud_sees(&self) -> Result<Vec<String>> {
        let pods = self.cloud_json("pods")?;
        let pods = pods.as_array().context("no list of pods")?;
        let mut names: Vec<String> = pods
            .iter()
            .filter(|pod| pod["phase"] == "Running" && pod["current"] == true)
            .filter_map(|pod| Some(pod["name"].as_str()?.to_owned()))
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Switches the power on and waits for the shell on the console.
    ///
    /// # Errors
    /// It does not boot; the console is in the message.
    pub fn boot(&mut self, boot: Boot) -> Result<()> {
        self.switch_on(boot)?;
        self.until_booted()
    }

    /// Switches the power on. A resumed board runs then, before its disk is mounted.
    ///
    /// # Errors
    /// QEMU does not start, or does not resume the board.
    pub fn switch_on(&mut self, boot: Boot) -> Result<()> {
        self.qemu(boot, boot.resumed.then_some("resumed"))?;
        if boot.resumed {
            // Input that is typed while the state is loaded is lost.
            Control::connect(&self.dir.join("control"), COMMAND_TIMEOUT)?
                .until_running(COMMAND_TIMEOUT)?;
            // The clock was saved, too.
            let unix_s = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
            self.type_in(&format!("date -s @{unix_s} && /init data\n"))?;
        }
        Ok(())
    }

    /// Waits for the shell on the console of a board that was switched on.
    ///
    /// # Errors
    /// It does not boot; the console is in the message.
    pub fn until_booted(&mut self) -> Result<()> {
        self.until_console(READY, BOARD_TIMEOUT)?;
        Ok(())
    }

    /// Boots a board up to before it touches its disk, and saves it there, for boots with `resumed`.
    ///
    /// # Errors
    /// It does not boot, or QEMU does not save it.
    pub fn save(&mut self, boot: Boot) -> Result<()> {
        self.qemu(boot, Some("halfway"))?;
        self.until_console(HALFWAY, BOARD_TIMEOUT)?;
        Control::connect(&self.dir.join("control"), COMMAND_TIMEOUT)?
            .save(&self.dir.join("saved"), COMMAND_TIMEOUT)?;
        kill(&mut self.qemu)
    }

    fn qemu(&mut self, boot: Boot, how: Option<&str>) -> Result<()> {
        let console = fs::File::create(self.console_file())?;
        let mut command = Command::new(root().join("scripts/board"));
        command
            .args(["boot", self.arch.name()])
            .arg(&self.dir)
            .args(boot.offline.then_some("offline"))
            .args(boot.year_1970.then_some("1970"))
            .args(boot.store.then_some("store"))
            .args(how)
            .arg("quiet")
            .stdin(Stdio::piped())
            .stderr(console.try_clone()?)
            .stdout(console);
        self.qemu = Some(command.spawn()?);
        self.seen = 0;
        Ok(())
    }

    /// What the board has printed since it was switched on.
    ///
    /// # Errors
    /// There is none.
    pub fn console(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(self.console_file())?).replace('\r', ""))
    }

    /// Types into the console without waiting.
    ///
    /// # Errors
    /// The board is not booted.
    pub fn type_in(&mut self, text: &str) -> Result<()> {
        let stdin = self.qemu.as_mut().and_then(|qemu| qemu.stdin.as_mut());
        let stdin = stdin.context("the board is not booted")?;
        Ok(stdin.write_all(text.as_bytes())?)
    }

    /// Cuts the power: everything in the guest's memory is lost.
    ///
    /// # Errors
    /// It is not booted.
    pub fn cut_power(&mut self) -> Result<()> {
        kill(&mut self.qemu)
    }

    /// Cuts the power of a board that was booted with [`Boot::store`]: besides the guest's memory
    /// a part of the disk's unflushed writes is lost, chosen by `seed`.
    ///
    /// # Errors
    /// It is not booted in that way.
    pub fn cut_power_of_disk(&mut self, seed: u64) -> Result<Cut> {
        kill(&mut self.qemu)?;
        let log = self.dir.join("disk.log");
        let cut = blocklog::cut(&self.dir.join("disk"), &log, seed)?;
        // The next boot may be cut before it starts a log of its own.
        fs::write(log, "")?;
        Ok(cut)
    }

    /// CPU time that the board has used since it was switched on.
    ///
    /// # Errors
    /// It is not booted.
    pub fn cpu(&self) -> Result<Duration> {
        let qemu = self.qemu.as_ref().context("the board is not booted")?;
        Ok(measure::activity(qemu.id())?.cpu)
    }

    /// Output of a command in the guest's shell.
    ///
    /// # Errors
    /// It fails, or does not end in time; the console is in the message.
    pub fn shell(&mut self, command: &str) -> Result<String> {
        self.commands += 1;
        let number = self.commands;
        let line = format!("{{ {command}; }} 2>&1; code=$?; echo; echo \"@@{number}:$code\"\n");
        self.type_in(&line)?;
        let mark = format!("\n@@{number}:");
        let answer = self.until_console(&mark, COMMAND_TIMEOUT)?;
        let code = self.until_console("\n", COMMAND_TIMEOUT)?;
        if code.trim() != "0" {
            bail!("{command}: exit code {}\n{answer}", code.trim());
        }
        Ok(answer.trim_end().to_owned())
    }

    /// Answer of `edge-min status --json` on the board.
    ///
    /// # Errors
    /// The agent does not answer, or the kernel printed in between.
    pub fn status(&mut self) -> Result<Value> {
        let answer = self.shell("edge-min status --json")?;
        let line = answer.lines().find(|line| line.starts_with('{'));
        Ok(serde_json::from_str(line.context(answer.clone())?)?)
    }

    /// Waits until the agent's status on the board fulfils the condition.
    ///
    /// # Errors
    /// It does not; the last status and the logs are in the message.
    pub fn until_status(&mut self, what: &str, reached: impl Fn(&Value) -> bool) -> Result<Value> {
        let start = Instant::now();
        loop {
            let status = self.status();
            match status {
                Ok(status) if reached(&status) => return Ok(status),
                status if start.elapsed() > BOARD_TIMEOUT || self.qemu.is_none() => {
                    let status = status.map_or_else(|error| error.to_string(), |v| v.to_string());
                    let kernel = self.shell("dmesg | tail -n 30").unwrap_or_default();
                    bail!(
                        "{what}: not within {BOARD_TIMEOUT:?}\n{status}\n{kernel}\n{}",
                        self.logs()
                    );
                }
                _ => std::thread::sleep(POLL),
            }
        }
    }

    /// Waits until a command succeeds in the guest's shell.
    ///
    /// # Errors
    /// It does not; the last answer and the logs are in the message.
    pub fn until_shell(&mut self, what: &str, command: &str) -> Result<()> {
        let start = Instant::now();
        loop {
            match self.shell(command) {
                Ok(_) => return Ok(()),
                Err(error) if start.elapsed() > BOARD_TIMEOUT || self.qemu.is_none() => {
                    bail!(
                        "{what}: not within {BOARD_TIMEOUT:?}\n{error}\n{}",
                        self.logs()
                    );
                }
                Err(_) => std::thread::sleep(POLL),
            }
        }
    }

    /// Waits for a state of the cloud.
    ///
    /// # Errors
    /// It is not reached; the logs are in the message.
    pub fn until(&self, what: &str, reached: impl Fn(&Self) -> bool) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < BOARD_TIMEOUT {
            if reached(self) {
                return Ok(());
            }
            std::thread::sleep(CLOUD_POLL);
        }
        bail!("{what}: not within {BOARD_TIMEOUT:?}\n{}", self.logs())
    }

    fn console_file(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    /// Console output up to `mark`, which is skipped.
    fn until_console(&mut self, mark: &str, timeout: Duration) -> Result<String> {
        let start = Instant::now();
        loop {
            let ended = match &mut self.qemu {
                Some(qemu) => qemu.try_wait()?.is_some(),
                None => true,
            };
            let bytes = fs::read(self.console_file())?;
            let new = bytes.get(self.seen..).unwrap_or_default();
            if let Some(at) = find(new, mark.as_bytes()) {
                self.seen += at + mark.len();
                let text = String::from_utf8_lossy(new.get(..at).unwrap_or_default());
                // A serial line ends its lines with both characters.
                return Ok(text.replace('\r', ""));
            }
            if ended || start.elapsed() > timeout {
                let why = if ended {
                    "QEMU ended"
                } else {
                    "no answer in time"
                };
                bail!("console: {why}, waiting for {mark:?}\n{}", self.logs());
            }
            std::thread::sleep(CONSOLE_POLL);
        }
    }

    fn logs(&self) -> String {
        let mut logs = String::new();
        for name in ["console.log", "cloud.log"] {
            let bytes = fs::read(self.dir.join(name)).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            let tail: Vec<&str> = text.lines().rev().take(40).collect();
            logs += &format!("{name}, newest first:\n{}\n", tail.join("\n"));
        }
        logs
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}

fn kill(child: &mut Option<Child>) -> Result<()> {
    let mut child = child.take().context("not running")?;
    child.kill()?;
    child.wait()?;
    Ok(())
}

impl Drop for Board {
    fn drop(&mut self) {
        kill(&mut self.qemu).ok();
        kill(&mut self.cloud).ok();
        fs::remove_dir_all(&self.dir).ok();
    }
}
