//! `edge-min launch`: the last steps of a `process` container, in a process of its own with one thread, and
//! [`hand_over`], the agent's end of it. It reads a [`Plan`] from stdin, enters the cgroup, writes its
//! state for a later agent, mounts, drops privileges and executes the program. The program inherits nothing
//! of the agent's own: not its session, signals, umask, descriptors, OOM score, groups or capabilities.
//! Stdout is a pipe to the agent that closes on exec: its content is the reason why there was no exec.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};

use edge_core::HostPaths;
use edge_core::limits::{OOM_SCORE_ADJ_MIN, OPEN_FILES_SOFT, UMASK};
use edge_proto::encode;
use nix::fcntl::{FcntlArg, fcntl};
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::thread::{self, CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};

use crate::sys;
use crate::worker::Stop;
use crate::workload::deadline::readable;
use crate::workload::exec;
use crate::workload::place::Place;
use crate::workload::reaper::identity;
use crate::workload::spec::Bind;

/// Bytes of a plan: environment and arguments are the bulk.
const PLAN_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Bytes of the reason of its failure; the rest is truncated.
const REASON_BYTES_MAX: usize = 512;
/// Exit code when the program could not be started; as in a shell.
const EXIT_NOT_STARTED: u8 = 127;
/// Number of capabilities in the kernel's masks.
const CAPABILITIES_MAX: u32 = 64;

/// All settings of the process.
#[derive(Serialize, Deserialize)]
pub struct Plan {
    /// Process id of the agent.
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
    /// Bounding set of capabilities, as the kernel's bits.
    pub granted: u64,
    /// Those of them that a user other than root gets too.
    pub for_users: u64,
    /// It may gain further capabilities, by setuid programs.
    pub privileged: bool,
    /// Files of the cgroups to which it writes its own pid.
    pub procs_files: Vec<PathBuf>,
    /// Bind mounts.
    pub binds: Vec<Bind>,
    /// Folders that workloads see: in them root follows no link.
    pub shown: Vec<String>,
    /// Soft and hard limit of open files.
    pub open_files: (u64, u64),
    /// File for stdout and stderr.
    pub log: PathBuf,
    /// File for pid and start time.
    pub state: PathBuf,
}

/// Sends the plan to `launch` and reads why it failed; empty when it executed the program.
///
/// # Errors
/// `TimedOut`, cancelled, or those of the system.
pub(super) fn hand_over(child: &mut Child, plan: &Plan, stop: &Stop) -> io::Result<String> {
    let plan = encode(plan);
    if let Some(mut stdin) = child.stdin.take() {
        // It fits completely: a `launch` that never reads does not block the worker.
        let bytes = i32::try_from(plan.len()).unwrap_or(i32::MAX);
        fcntl(&stdin, FcntlArg::F_SETPIPE_SZ(bytes))?;
        stdin.write_all(&plan)?;
    }
    let mut reason = Vec::new();
    let mut buffer = [0; REASON_BYTES_MAX];
    if let Some(mut stdout) = child.stdout.take() {
        while reason.len() < REASON_BYTES_MAX {
            readable(stdout.as_fd(), stop)?;
            let count = stdout.read(&mut buffer)?;
            let bytes = buffer.get(..count).unwrap_or_default();
            if bytes.is_empty() {
                break;
            }
            reason.extend_from_slice(bytes);
        }
    }
    reason.truncate(REASON_BYTES_MAX);
    Ok(String::from_utf8_lossy(&reason).into_owned())
}

/// Runs the subcommand; only returns when it failed.
#[must_use]
pub fn main() -> ExitCode {
    let reason = match launch() {
        Ok(never) => match never {},
        Err(reason) => reason,
    };
    // The agent reads this; if it has ended, only the exit code is left.
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
    end_with(plan.agent).map_err(because("agent"))?;
    // An agent that has replaced itself has the same pid, but does not know of this start.
    has_reader(io::stdout().as_fd()).map_err(because("agent"))?;
    sys::close_on_exec().map_err(because("descriptors"))?;
    reset_attributes(plan.open_files).map_err(because("process attributes"))?;
    for file in &plan.procs_files {
        fs::write(file, pid.to_string()).map_err(because(&file.to_string_lossy()))?;
    }
    let identity = identity(pid).map_err(because("identity"))?;
    // Opened while that is allowed; it is written as the last step before exec.
    let mut state = File::create(&plan.state).map_err(because("make the state"))?;
    nix::unistd::setsid()
        .map_err(io::Error::from)
        .map_err(because("setsid"))?;
    if !plan.binds.is_empty() {
        mounts(&plan.binds, plan.shown.clone())?;
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
    has_reader(io::stdout().as_fd()).map_err(because("agent"))?;
    // From here on it outlives its agent, and the next agent finds it.
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

/// Ends this process with its agent, which may have ended already: a later agent must not meet a
/// start that it does not know of.
fn end_with(agent: u32) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    let parent = u32::try_from(nix::unistd::getppid().as_raw());
    if parent == Ok(agent) {
        Ok(())
    } else {
        Err(io::Error::other("has ended"))
    }
}

/// Fails if this pipe has no reader any more.
fn has_reader(pipe: BorrowedFd<'_>) -> io::Result<()> {
    // POLLERR is reported in any case.
    let mut ready = [PollFd::new(pipe, PollFlags::empty())];
    match poll(&mut ready, PollTimeout::ZERO)? {
        0 => Ok(()),
        _ => Err(io::Error::other("does not listen any more")),
    }
}

/// Restores the attributes that the agent, or its parent, has set for itself.
fn reset_attributes(open_files: (u64, u64)) -> io::Result<()> {
    sys::default_signals();
    nix::sys::signal::SigSet::empty().thread_set_mask()?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(UMASK));
    fs::write("/proc/self/oom_score_adj", oom_score_adj().to_string())?;
    // Core dumps would fill the medium. A program may raise the limit.
    let (_, hard) = getrlimit(Resource::RLIMIT_CORE)?;
    setrlimit(Resource::RLIMIT_CORE, 0, hard)?;
    let (soft, hard) = open_files;
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
    Ok(())
}

/// Soft and hard limit of open files of workloads: what the agent was started with, without what it has
/// raised for itself.
#[must_use]
pub fn open_files() -> (u64, u64) {
    let (_, hard) = sys::open_files().unwrap_or((OPEN_FILES_SOFT, OPEN_FILES_SOFT));
    (hard.min(OPEN_FILES_SOFT), hard)
}

/// OOM score of workloads: the agent's own, without its protection.
#[must_use]
pub fn oom_score_adj() -> i32 {
    let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    own.trim()
        .parse::<i32>()
        .unwrap_or(0)
        .max(OOM_SCORE_ADJ_MIN)
}

/// Changes to the plan's user, with the capabilities of the plan only, irrevocably.
fn drop_privileges(plan: &Plan) -> io::Result<()> {
    let (granted, for_users) = (plan.granted, plan.for_users);
    let user = plan.uid.unwrap_or(0);
    let group = Gid::from_raw(plan.gid.unwrap_or(user));
    setgroups(&[])?;
    setresgid(group, group, group)?;
    for number in 0..CAPABILITIES_MAX {
        let one = CapabilitySet::from_bits_retain(1 << number);
        // A number that this kernel does not know ends the list.
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

/// Duplicates the pipe to the agent to a number that closes on exec.
fn keep_pipe() -> Result<OwnedFd, String> {
    io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .map_err(because("keep the pipe"))
}

/// `shown`: folders in which workloads may have put links. Each mounted volume is one more of them.
fn mounts(binds: &[Bind], mut shown: Vec<String>) -> Result<(), String> {
    let none: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS)
        .map_err(io::Error::from)
        .map_err(because("unshare"))?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(io::Error::from)
        .map_err(because("make mounts private"))?;
    for bind in binds {
        let place = bind_mount(bind, &HostPaths::new(shown.clone()))
            .map_err(because(&bind.target.to_string_lossy()))?;
        shown.push(place);
    }
    Ok(())
}

/// Mounts a volume, and returns where.
fn bind_mount(bind: &Bind, shown: &HostPaths) -> io::Result<String> {
    let none: Option<&str> = None;
    let is_dir = fs::metadata(&bind.source)?.is_dir();
    let place = Place::make(&bind.target, is_dir, shown)?;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    let (_held, target) = place.hold()?;
    mount(Some(&bind.source), &target, none, flags, none)?;
    if bind.read_only {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        // What is mounted there now; the kernel refuses anything else.
        let (_held, target) = place.hold()?;
        mount(none, &target, none, flags, none)?;
    }
    let path = place.path().to_str();
    let path = path.ok_or_else(|| io::Error::other("the path is not UTF-8"))?;
    Ok(path.to_owned())
}

fn because(what: &str) -> impl FnOnce(io::Error) -> String {
    move |error| [what, ": ", &error.to_string()].concat()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::workload::deadline::kill;

    /// Goal: a link in a volume leads root nowhere, also in a folder that only root may write. Method: a volume
    /// with such a folder, and a second one to be mounted behind a link in it. The mounts are this thread's.
    #[test]
    #[ignore = "needs root: mounts"]
    fn a_link_in_a_mounted_volume_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(dir.path()).unwrap();
        let [volume, data, elsewhere] = ["volume", "data", "elsewhere"].map(|name| top.join(name));
        for made in [&volume.join("sub"), &data, &elsewhere] {
            fs::create_dir_all(made).unwrap();
        }
        std::os::unix::fs::symlink(&elsewhere, volume.join("sub/link")).unwrap();
        let bind = |target| Bind {
            source: volume.clone(),
            target,
            read_only: false,
        };
        let binds = [bind(data.clone()), bind(data.join("sub/link/new"))];
        let error = mounts(&binds, Vec::new()).unwrap_err();
        assert!(error.contains("sub/link is a link"), "{error}");
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
        mounts(
            &[bind(data.clone()), bind(data.join("sub/new"))],
            Vec::new(),
        )
        .unwrap();
    }

    fn plan(argument: &str) -> Plan {
        Plan {
            agent: 0,
            argv: vec![argument.to_owned()],
            env: Vec::new(),
            cwd: PathBuf::new(),
            uid: None,
            gid: None,
            granted: 0,
            for_users: 0,
            privileged: false,
            procs_files: Vec::new(),
            binds: Vec::new(),
            shown: Vec::new(),
            open_files: (64, 64),
            log: PathBuf::new(),
            state: PathBuf::new(),
        }
    }

    /// Goal: a launch that hangs, on a medium that does not answer, causes one failure and blocks no worker.
    /// Method: a program that neither reads the plan, which is larger than a pipe, nor ends.
    #[test]
    fn a_launch_that_never_answers_fails_at_the_deadline() {
        let mut child = Command::new("sleep")
            .arg("1000000")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let plan = plan(&"x".repeat(300_000));
        let stop = Stop::after(Duration::from_millis(10));
        let error = hand_over(&mut child, &plan, &stop).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        kill(&mut child).unwrap();
        assert!(child.try_wait().unwrap().is_some());
    }

    #[test]
    fn a_launch_notices_that_its_agent_does_not_listen_any_more() {
        let (reader, writer) = io::pipe().unwrap();
        has_reader(writer.as_fd()).unwrap();
        drop(reader);
        has_reader(writer.as_fd()).unwrap_err();
    }

    #[test]
    fn what_launch_says_is_why_it_failed_and_silence_is_success() {
        for (script, expected) in [("cat >&2", ""), ("cat >&2; echo no", "no\n")] {
            let mut child = Command::new("sh")
                .args(["-c", script])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let stop = Stop::after(Duration::from_secs(120));
            assert_eq!(hand_over(&mut child, &plan("x"), &stop).unwrap(), expected);
            child.wait().unwrap();
        }
    }
}
