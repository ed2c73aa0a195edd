//! `edge-min launch`: the last steps of a `process` container, in a process of its own with one
//! thread. Reads a [`Plan`] from stdin, enters the cgroup, leaves its state for a later agent,
//! mounts, drops privileges and becomes the program. Nothing of the agent's own is passed on: not
//! its session, signals, umask, descriptors, OOM score, groups or capabilities. Stdout is a pipe to the agent that closes on
//! exec: what comes through it is why there was none.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::thread::{self, CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};

use crate::sys;
use crate::workload::exec;
use crate::workload::spec::Bind;

/// Bytes of a plan: environment and arguments are the bulk.
const PLAN_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Exit code when the program could not be started; as in a shell.
const EXIT_NOT_STARTED: u8 = 127;
/// Files and directories that a program makes are not for others to write, as in containers.
const UMASK: u32 = 0o022;
/// Soft limit of open files: more breaks programs with select(2). A program may raise it to the
/// hard limit, which stays as the board has it.
const FILES_SOFT: u64 = 1024;
/// Numbers of capabilities that the kernel's masks have room for.
const CAPABILITIES_MAX: u32 = 64;

/// Everything about the process.
#[derive(Serialize, Deserialize)]
pub struct Plan {
    /// Process of the agent.
    pub agent: u32,
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
    /// Capabilities as the kernel's bits: all that it can ever have.
    pub granted: u64,
    /// Those of them that a user other than root gets too.
    pub for_users: u64,
    /// It may gain more, by setuid programs.
    pub privileged: bool,
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
    let plan: Plan = postcard::from_bytes(&bytes).map_err(|error| error.to_string())?;
    let pid = std::process::id();
    die_with(plan.agent).map_err(because("agent"))?;
    sys::close_on_exec().map_err(because("descriptors"))?;
    forget_the_agent().map_err(because("process attributes"))?;
    for file in &plan.procs_files {
        fs::write(file, pid.to_string()).map_err(because(&file.to_string_lossy()))?;
    }
    let start = crate::workload::reaper::start_time(pid).ok_or("no start time in /proc")?;
    let identity = [pid.to_string(), start.to_string()].join(" ");
    // Opened while that is allowed; what it says is the last thing before exec.
    let mut state = File::create(&plan.state).map_err(because("make the state"))?;
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
        .stdin(Stdio::null())
        .stdout(Stdio::from(log))
        .stderr(Stdio::from(errors));
    let pipe = keep_pipe()?;
    drop_privileges(&plan).map_err(because("drop privileges"))?;
    if let Err(error) = std::env::set_current_dir(&plan.cwd) {
        return Err(because(
            &["workingDir ", &plan.cwd.to_string_lossy()].concat(),
        )(error));
    }
    // From here on it outlives its agent, and the next one finds it.
    let written = state.write_all(identity.as_bytes());
    written.map_err(because("write the state"))?;
    nix::sys::prctl::set_pdeathsig(None)
        .map_err(io::Error::from)
        .map_err(because("agent"))?;
    let error = command.exec();
    let mut env = plan.env.iter();
    let search = env.find(|(name, _)| name == "PATH");
    let search = search.map_or("", |(_, value)| value);
    let reason = exec::explain(&error, program, search, &plan.cwd);
    // Stdout may be the log by now; the kept pipe is not.
    drop(File::from(pipe).write_all(reason.as_bytes()));
    Err(String::new())
}

/// Ends this process with its agent, which may be gone already: a later agent must not meet a
/// start that it knows nothing of.
fn die_with(agent: u32) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    let parent = u32::try_from(nix::unistd::getppid().as_raw());
    if parent == Ok(agent) {
        Ok(())
    } else {
        Err(io::Error::other("has ended"))
    }
}

/// Undoes what the agent, or whoever started it, has set for itself.
fn forget_the_agent() -> io::Result<()> {
    sys::default_signals();
    nix::sys::signal::SigSet::empty().thread_set_mask()?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(UMASK));
    fs::write("/proc/self/oom_score_adj", oom_score_adj().to_string())?;
    // Cores fill the medium. A program may raise it.
    let (_, hard) = getrlimit(Resource::RLIMIT_CORE)?;
    setrlimit(Resource::RLIMIT_CORE, 0, hard)?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(FILES_SOFT), hard)?;
    Ok(())
}

/// OOM score of workloads: the agent's own, without its protection.
#[must_use]
pub fn oom_score_adj() -> i32 {
    let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    own.trim().parse::<i32>().unwrap_or(0).max(0)
}

/// Becomes the plan's user with no right but those of the plan, for good.
fn drop_privileges(plan: &Plan) -> io::Result<()> {
    let (granted, for_users) = (plan.granted, plan.for_users);
    let user = plan.uid.unwrap_or(0);
    let group = Gid::from_raw(plan.gid.unwrap_or(user));
    setgroups(&[])?;
    setresgid(group, group, group)?;
    for number in 0..CAPABILITIES_MAX {
        let one = CapabilitySet::from_bits_retain(1 << number);
        // A number that this kernel does not know is the end of the list.
        let Ok(have) = thread::capability_is_in_bounding_set(one) else {
            break;
        };
        if have && granted >> number & 1 == 0 {
            thread::remove_capability_from_bounding_set(one)?;
        }
    }
    let (keep, ambient) = if user == 0 {
        (granted, 0)
    } else {
        thread::set_keep_capabilities(true)?;
        (for_users, for_users)
    };
    let user = Uid::from_raw(user);
    setresuid(user, user, user)?;
    let have = thread::capabilities(None)?.permitted;
    let keep = have & CapabilitySet::from_bits_retain(keep);
    let ambient = have & CapabilitySet::from_bits_retain(ambient);
    let sets = CapabilitySets {
        effective: keep,
        permitted: keep,
        inheritable: ambient,
    };
    thread::set_capabilities(None, sets)?;
    // Before Linux 4.3 there is no such set, and nothing to clear.
    thread::clear_ambient_capability_set().ok();
    for one in ambient.iter() {
        thread::configure_capability_in_ambient_set(one, true)?;
    }
    if !plan.privileged {
        thread::set_no_new_privs(true)?;
    }
    Ok(())
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
