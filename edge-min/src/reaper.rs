//! Ends of containers: one epoll over the pidfds of all of them, which the executor watches as
//! one descriptor. Children give their exit code; a container of an earlier agent only its end.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use edge_proto::key::Uid;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Ends taken from the kernel at once.
const EVENTS_MAX: usize = 32;

/// A container's process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Pod.
    pub uid: Uid,
    /// Container.
    pub container: String,
    /// Code, 128 + signal; `None` when it was not our child.
    pub code: Option<i32>,
}

struct Watched {
    uid: Uid,
    container: String,
    pidfd: OwnedFd,
}

/// Watches processes.
pub struct Reaper {
    epoll: Epoll,
    watched: BTreeMap<u64, Watched>,
    next: u64,
}

impl Reaper {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self {
            epoll,
            watched: BTreeMap::new(),
            next: 0,
        })
    }

    /// Readable when [`Self::drain`] has something.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn readiness(&self) -> io::Result<OwnedFd> {
        self.epoll.0.as_fd().try_clone_to_owned()
    }

    /// Watches a process until it ends. One that is gone already ends at once.
    ///
    /// # Errors
    /// No such process, or out of descriptors.
    pub fn watch(&mut self, uid: Uid, container: &str, pid: u32) -> io::Result<()> {
        let pid = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or(io::ErrorKind::NotFound)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        self.epoll
            .add(&pidfd, EpollEvent::new(EpollFlags::EPOLLIN, self.next))?;
        let watched = Watched {
            uid,
            container: container.to_owned(),
            pidfd,
        };
        self.watched.insert(self.next, watched);
        self.next += 1;
        Ok(())
    }

    /// Ends since the last time, at most [`EVENTS_MAX`].
    pub fn drain(&mut self) -> Vec<Exit> {
        let mut events = [EpollEvent::empty(); EVENTS_MAX];
        let count = self
            .epoll
            .wait(&mut events, EpollTimeout::ZERO)
            .unwrap_or(0);
        let mut exits = Vec::with_capacity(count);
        for event in events.iter().take(count) {
            let Some(watched) = self.watched.remove(&event.data()) else {
                continue;
            };
            let code = exit_code(watched.pidfd.as_fd());
            // Closing the descriptor takes it out as well; this only makes it certain.
            self.epoll.delete(&watched.pidfd).ok();
            exits.push(Exit {
                uid: watched.uid,
                container: watched.container,
                code,
            });
        }
        exits
    }
}

fn exit_code(pidfd: BorrowedFd<'_>) -> Option<i32> {
    match waitid(
        Id::PIDFd(pidfd),
        WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG,
    ) {
        Ok(WaitStatus::Exited(_, code)) => Some(code),
        Ok(WaitStatus::Signaled(_, signal, _)) => Some(128 + signal as i32),
        _ => None,
    }
}
