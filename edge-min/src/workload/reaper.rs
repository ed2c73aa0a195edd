//! Ends of processes. Containers: one epoll over the pidfds of all of them, which the executor
//! watches as one descriptor. Children return their exit code; a container of an earlier agent only
//! its end. Orphans: the agent is a subreaper, so the orphans of a workload become its children
//! and stay zombies, charged to the pod, until they are waited for.
//!
//! Parent threads: orphans, and with them the first processes of runc's containers, are
//! children of the main thread, because the kernel assigns them to the first thread of a subreaper
//! (`find_new_reaper`). A process that another thread forks (runc itself, `edge-min launch`) is that
//! thread's child until the thread exits. So a wait with `__WNOTHREAD` on the main thread takes every orphan,
//! and never the status that a `Command` of a worker waits for. This must therefore run on the main
//! thread, which may itself fork only what it waits for at once.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use edge_proto::key::Uid;
use edge_proto::sorted::SortedMap;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};

/// Ends of containers taken from the kernel at once.
const EVENTS_MAX: usize = 32;
/// Orphans reaped at once: a pod that forks endlessly must not block the driver.
const ORPHANS_MAX: u32 = 256;
/// Key of the signal descriptor in the epoll; containers count up from 0.
const SIGNALS: u64 = u64::MAX;

/// A container's process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// UID of the pod.
    pub uid: Uid,
    /// Name in the pod.
    pub container: String,
    /// Exit code, or 128 + signal; `None` when it was not our child.
    pub code: Option<i32>,
}

/// A process held by a descriptor: its number alone may later refer to another.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    fd: OwnedFd,
}

impl Process {
    /// Opens the process that has this number now. The caller must check afterwards whether it is the
    /// intended one.
    ///
    /// # Errors
    /// Whether there is one cannot be known: out of descriptors or memory.
    pub fn open(pid: u32) -> io::Result<Option<Self>> {
        let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        match pidfd_open(number, PidfdFlags::empty()) {
            // The second is the number of a thread.
            Err(Errno::SRCH | Errno::INVAL) => Ok(None),
            fd => Ok(Some(Self { pid, fd: fd? })),
        }
    }

    /// Process id.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends SIGTERM to it, and to no other process.
    pub fn terminate(&self) {
        // It may have ended by itself.
        pidfd_send_signal(&self.fd, rustix::process::Signal::TERM).ok();
    }
}

/// First processes of containers that were started and that the reaper does not watch yet, with
/// the code of those that have ended meanwhile. At most one for each start in progress.
#[derive(Clone, Debug, Default)]
pub struct StartingPids(Arc<Mutex<SortedMap<u32, Option<i32>>>>);

impl StartingPids {
    fn lock(&self) -> MutexGuard<'_, SortedMap<u32, Option<i32>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Call it before the process may run and end.
    pub fn announce(&self, pid: u32) {
        self.lock().insert(pid, None);
    }

    /// The process will not be watched.
    pub fn remove(&self, pid: u32) {
        self.lock().remove(&pid);
    }
}

struct Watched {
    uid: Uid,
    container: String,
    process: Process,
}

/// Watches containers and reaps orphans.
pub struct Reaper {
    epoll: Epoll,
    signals: SignalFd,
    watched: SortedMap<u64, Watched>,
    next: u64,
    starting_pids: StartingPids,
    hang_up: bool,
}

impl Reaper {
    /// Watches nothing yet. Blocks SIGCHLD and SIGHUP in this thread and those that it starts from now
    /// on: a thread that does not block them would consume them.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new(starting_pids: StartingPids) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.add(Signal::SIGHUP);
        mask.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&mask, flags)?;
        epoll.add(&signals, EpollEvent::new(EpollFlags::EPOLLIN, SIGNALS))?;
        Ok(Self {
            epoll,
            signals,
            watched: SortedMap::new(),
            next: 0,
            starting_pids,
            hang_up: false,
        })
    }

    /// A descriptor that is readable when [`Self::drain`] has results.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn readiness(&self) -> io::Result<OwnedFd> {
        self.epoll.0.as_fd().try_clone_to_owned()
    }

    /// Watches a process that was just started until it ends. It cannot be another one: only
    /// this reaper frees its number.
    ///
    /// # Errors
    /// Its code when it has ended already; `None` when that is unknown.
    pub fn watch(&mut self, uid: Uid, container: &str, pid: u32) -> Result<(), Option<i32>> {
        // The lock is released before the branch.
        let ended = self.starting_pids.lock().remove(&pid).flatten();
        if ended.is_some() {
            return Err(ended);
        }
        let process = Process::open(pid).ok().flatten().ok_or(None)?;
        self.hold(uid, container, process).map_err(|_| None)
    }

    /// Watches a process that is already open.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn hold(&mut self, uid: Uid, container: &str, process: Process) -> io::Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, self.next);
        self.epoll.add(&process.fd, event)?;
        let watched = Watched {
            uid,
            container: container.to_owned(),
            process,
        };
        self.watched.insert(self.next, watched);
        self.next += 1;
        Ok(())
    }

    /// Sends SIGTERM to a container's first process, if it is still watched.
    pub fn terminate(&self, uid: Uid, container: &str) {
        let mut all = self.watched.values();
        if let Some(watched) = all.find(|one| one.uid == uid && one.container == container) {
            watched.process.terminate();
        }
    }

    /// Whether SIGHUP was received since the last call.
    pub fn take_hang_up(&mut self) -> bool {
        std::mem::take(&mut self.hang_up)
    }

    /// All containers that are watched, each with its first process.
    #[must_use]
    pub fn watched(&self) -> Vec<(Uid, String, u32)> {
        let all = self.watched.values();
        all.map(|one| (one.uid, one.container.clone(), one.process.pid))
            .collect()
    }

    /// Ends since the last call. If there are more, the descriptor is readable again.
    pub fn drain(&mut self) -> Vec<Exit> {
        let mut exits = Vec::new();
        self.reap(&mut exits);
        let mut events = [EpollEvent::empty(); EVENTS_MAX];
        let count = self.epoll.wait(&mut events, EpollTimeout::ZERO);
        for event in events.iter().take(count.unwrap_or(0)) {
            let Some(watched) = self.watched.remove(&event.data()) else {
                continue;
            };
            let code = exit_code(watched.process.fd.as_fd());
            exits.push(self.exit(watched, code));
        }
        exits
    }

    /// Waits for children of the main thread: orphans, and containers of runc.
    fn reap(&mut self, exits: &mut Vec<Exit>) {
        // Before the waiting: a child that ends after it signals again. SIGCHLD coalesces.
        while let Ok(Some(signal)) = self.signals.read_signal() {
            self.hang_up |= signal.ssi_signo == Signal::SIGHUP as u32;
        }
        let any = nix::unistd::Pid::from_raw(-1);
        for _ in 0..ORPHANS_MAX {
            let flags = WaitPidFlag::WNOHANG | WaitPidFlag::__WNOTHREAD;
            let Ok(status) = waitpid(any, Some(flags)) else {
                return;
            };
            let (Some(pid), code) = (status.pid(), code_of(status)) else {
                return;
            };
            let pid = u32::try_from(pid.as_raw()).unwrap_or(0);
            let mut all = self.watched.iter();
            let known = all.find_map(|(key, one)| (one.process.pid == pid).then_some(*key));
            if let Some(watched) = known.and_then(|key| self.watched.remove(&key)) {
                exits.push(self.exit(watched, code));
            } else if let Some(ended) = self.starting_pids.lock().get_mut(&pid) {
                *ended = code;
            }
        }
        // There may be more, and their signal was read above.
        kill(nix::unistd::Pid::this(), Signal::SIGCHLD).ok();
    }

    fn exit(&self, watched: Watched, code: Option<i32>) -> Exit {
        // Closing the descriptor removes it as well; this only makes it certain.
        self.epoll.delete(&watched.process.fd).ok();
        Exit {
            uid: watched.uid,
            container: watched.container,
            code,
        }
    }
}

/// Number of a process and its start in clock ticks since boot, which together name one process for good.
///
/// # Errors
/// It has ended, or `/proc` cannot be read.
pub fn identity(pid: u32) -> io::Result<String> {
    let pid = pid.to_string();
    let stat = fs::read_to_string(["/proc/", &pid, "/stat"].concat())?;
    // The second field is the name in brackets and may contain anything, even brackets.
    let rest = stat.rsplit_once(')').map(|(_, rest)| rest);
    let start = rest.and_then(|rest| rest.split_whitespace().nth(19));
    start
        .map(|start| [&pid, " ", start].concat())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Exit code of a child of this thread that has ended, and frees its number; `None` if it runs or is
/// no child.
#[must_use]
pub fn child_ended(pid: u32) -> Option<i32> {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).ok().filter(|pid| *pid > 0)?);
    let flags = WaitPidFlag::WNOHANG | WaitPidFlag::__WNOTHREAD;
    waitpid(pid, Some(flags)).ok().and_then(code_of)
}

fn exit_code(pidfd: BorrowedFd<'_>) -> Option<i32> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
    waitid(Id::PIDFd(pidfd), flags).ok().and_then(code_of)
}

fn code_of(status: WaitStatus) -> Option<i32> {
    match status {
        WaitStatus::Exited(_, code) => Some(code),
        WaitStatus::Signaled(_, signal, _) => Some(128 + signal as i32),
        _ => None,
    }
}
