//! Waits for programs, until their job's deadline or its cancellation.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::process::{Child, ExitStatus};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::worker::Stop;

/// Time for a killed program to end. One in uninterruptible sleep, on a medium that does not
/// answer, does not end; it is left behind, because a worker that waits for it would be blocked as well.
const KILL_WAIT: Duration = Duration::from_secs(2);
/// Killed programs that are left and waited for later, so that they do not stay zombies. What is more
/// stays one until the agent ends: then a medium does not answer, and each of them is in the kernel.
const LEFT_MAX: usize = 16;
/// By descriptor and not by number: the reaper may have waited for one, and another has its number.
static LEFT: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());
/// Interval of checking whether the job was cancelled.
const CANCEL_PACE: Duration = Duration::from_secs(1);

/// Waits for a program. One that hangs is killed: a pod fails, and the worker continues. The program is
/// also killed after any other error, so that none continues unnoticed.
///
/// # Errors
/// `TimedOut`, cancelled, or those of the system.
pub(super) fn wait_within(child: &mut Child, stop: &Stop) -> io::Result<ExitStatus> {
    wait_for_left(None);
    match ended(child, stop) {
        Ok(()) => child.wait(),
        Err(error) => {
            kill(child)?;
            Err(error)
        }
    }
}

/// Kills a program and waits a little for its end. One that needs longer is waited for by a later call.
///
/// # Errors
/// Those of the system.
pub(super) fn kill(child: &mut Child) -> io::Result<()> {
    child.kill()?;
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    if readable(pidfd.as_fd(), &Stop::after(KILL_WAIT)).is_ok() {
        child.wait()?;
    } else {
        wait_for_left(Some(pidfd));
    }
    Ok(())
}

/// Frees the programs that were left and have ended since, and leaves one more.
fn wait_for_left(more: Option<OwnedFd>) {
    let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
    // An error is that of one for which the reaper has waited.
    left.retain(|pidfd| {
        let status = waitid(Id::PIDFd(pidfd.as_fd()), flags);
        matches!(status, Ok(WaitStatus::StillAlive))
    });
    if left.len() < LEFT_MAX {
        left.extend(more);
    }
}

fn ended(child: &Child, stop: &Stop) -> io::Result<()> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    readable(pidfd.as_fd(), stop)
}

/// Waits until a descriptor can be read, is closed at its other end, or is that of a process that has
/// ended.
///
/// # Errors
/// `TimedOut`, cancelled, or those of the system.
pub(super) fn readable(fd: BorrowedFd<'_>, stop: &Stop) -> io::Result<()> {
    loop {
        let wait = stop.left().min(CANCEL_PACE);
        let timeout = PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO);
        let mut ready = [PollFd::new(fd, PollFlags::POLLIN)];
        match poll(&mut ready, timeout) {
            Ok(0) => stop.check()?,
            Err(Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Goal: a killed program that does not end in time is no zombie once it has ended. Method: one that
    /// is left as if its time had passed; the kernel says whether it is there.
    #[test]
    fn a_killed_program_that_was_left_is_waited_for_later() {
        let mut child = Command::new("sleep").arg("1000000").spawn().unwrap();
        let entry = ["/proc/", &child.id().to_string()].concat();
        child.kill().unwrap();
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        wait_for_left(Some(pidfd.try_clone().unwrap()));
        readable(pidfd.as_fd(), &Stop::after(Duration::from_secs(120))).unwrap();
        drop(child);
        wait_for_left(None);
        assert!(!std::path::Path::new(&entry).exists());
    }

    /// Goal: a runc that hangs causes one failure and blocks no worker. Method: a program that never ends.
    #[test]
    fn a_program_that_hangs_is_ended_and_one_that_ends_is_not() {
        let run = |program: &str, argument: &str, limit: Duration| {
            let mut child = Command::new(program).arg(argument).spawn().unwrap();
            let result = wait_within(&mut child, &Stop::after(limit));
            // It is waited for in either case.
            assert!(child.try_wait().unwrap().is_some());
            result
        };
        let error = run("sleep", "1000000", Duration::from_millis(10)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let status = run("true", "", Duration::from_secs(120)).unwrap();
        assert!(status.success());
    }
}
