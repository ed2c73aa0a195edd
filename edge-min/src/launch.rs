//! `edge-min launch`: the last steps of a `process` container, in a process of its own with one
//! thread. Reads a [`Plan`] from stdin, enters the cgroup, leaves its state for a later agent,
//! mounts, drops privileges and becomes the program. Stdout is a pipe to the agent that closes on
//! exec: what comes through it is why there was none.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};

/// Bytes of a plan: environment and arguments are the bulk.
const PLAN_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Exit code when the program could not be started; as in a shell.
const EXIT_NOT_STARTED: u8 = 127;

/// A bind mount.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bind {
    /// Path on the board.
    pub source: PathBuf,
    /// Absolute path in the container.
    pub target: PathBuf,
    /// Mounted read-only.
    pub read_only: bool,
}

/// Everything about the process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Working directory.
    pub cwd: PathBuf,
    /// User, `None` stays root.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Files to write the own pid to.
    pub procs_files: Vec<PathBuf>,
    /// Bind mounts.
    pub binds: Vec<Bind>,
    /// File for stdout and stderr.
    pub log: PathBuf,
    /// File for pid and start time.
    pub state: PathBuf,
}

/// Runs the subcommand; only returns when it failed.
#[must_use]
pub fn main() -> ExitCode {
    let reason = match launch() {
        Ok(never) => match never {},
        Err(reason) => reason,
    };
    // The agent reads this; if it is gone, the exit code is all there is.
    drop(io::stdout().write_all(reason.as_bytes()));
    ExitCode::from(EXIT_NOT_STARTED)
}

fn launch() -> Result<std::convert::Infallible, String> {
    let mut bytes = Vec::new();
    io::stdin()
        .take(PLAN_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(because("read the plan"))?;
    let plan: Plan = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    let pid = std::process::id();
    for file in &plan.procs_files {
        fs::write(file, pid.to_string()).map_err(because(&file.to_string_lossy()))?;
    }
    // After the cgroup, before exec: a new agent never sees one without the other for long.
    let start = crate::runtime::start_time(pid).ok_or("no start time in /proc")?;
    let text = [pid.to_string(), start.to_string()].join(" ");
    fs::write(&plan.state, text).map_err(because("write the state"))?;
    nix::unistd::setsid()
        .map_err(io::Error::from)
        .map_err(because("setsid"))?;
    if !plan.binds.is_empty() {
        mounts(&plan.binds)?;
    }
    let log: OwnedFd = OpenOptions::new()
        .append(true)
        .create(true)
        .open(&plan.log)
        .map_err(because("open the log"))?
        .into();
    let [program, args @ ..] = plan.argv.as_slice() else {
        return Err("command is empty".to_owned());
    };
    let errors = log.try_clone().map_err(because("clone the log"))?;
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .envs(plan.env.iter().map(|(name, value)| (name, value)))
        .current_dir(&plan.cwd)
        .stdin(Stdio::null())
        .stdout(Stdio::from(log))
        .stderr(Stdio::from(errors));
    let pipe = keep_pipe()?;
    if let Some(gid) = plan.gid.or(plan.uid) {
        command.gid(gid);
    }
    if let Some(uid) = plan.uid {
        command.uid(uid);
    }
    let error = command.exec();
    let reason = [program, ": ", &error.to_string()].concat();
    // Stdout may be the log by now; the kept pipe is not.
    drop(File::from(pipe).write_all(reason.as_bytes()));
    Err(String::new())
}

/// The pipe to the agent under a number that closes on exec.
fn keep_pipe() -> Result<OwnedFd, String> {
    use std::os::fd::AsFd as _;
    io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .map_err(because("keep the pipe"))
}

fn mounts(binds: &[Bind]) -> Result<(), String> {
    let none: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS)
        .map_err(io::Error::from)
        .map_err(because("unshare"))?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(io::Error::from)
        .map_err(because("make mounts private"))?;
    for bind in binds {
        bind_mount(bind).map_err(because(&bind.target.to_string_lossy()))?;
    }
    Ok(())
}

fn bind_mount(bind: &Bind) -> io::Result<()> {
    let none: Option<&str> = None;
    make_target(&bind.source, &bind.target)?;
    mount(
        Some(&bind.source),
        &bind.target,
        none,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        none,
    )?;
    if bind.read_only {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(none, &bind.target, none, flags, none)?;
    }
    Ok(())
}

fn make_target(source: &Path, target: &Path) -> io::Result<()> {
    if target.exists() {
        return Ok(());
    }
    if fs::metadata(source)?.is_dir() {
        return fs::create_dir_all(target);
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    File::create(target).map(drop)
}

fn because(what: &str) -> impl FnOnce(io::Error) -> String {
    move |error| [what, ": ", &error.to_string()].concat()
}
