//! The end of a program that somebody waits for, or of its time.

use std::io;
use std::os::fd::AsFd as _;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// How long a killed program may take to end. One in uninterruptible sleep, on a medium that does not
/// answer, does not; it is left, since a worker that waits for it would be lost as well.
const KILL_WAIT: Duration = Duration::from_secs(2);

/// Waits for a program. One that hangs is killed: a pod fails, and the worker goes on. The program is
/// killed after any other error too, so that none works on unnoticed.
///
/// # Errors
/// `TimedOut`, and those of the system.
pub(super) fn wait_within(child: &mut Child, limit: Duration) -> io::Result<ExitStatus> {
    let ended = poll_within(child, limit);
    match ended {
        Ok(true) => return child.wait(),
        Ok(false) | Err(_) => child.kill()?,
    }
    if poll_within(child, KILL_WAIT).is_ok_and(|ended| ended) {
        child.wait()?;
    }
    ended?;
    let text = ["no answer within ", &limit.as_secs().to_string(), " s"].concat();
    Err(io::Error::new(io::ErrorKind::TimedOut, text))
}

/// Whether the program ended in time.
fn poll_within(child: &Child, limit: Duration) -> io::Result<bool> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let deadline = Instant::now().checked_add(limit);
    loop {
        let left = deadline.map_or(limit, |at| at.saturating_duration_since(Instant::now()));
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut ready = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, timeout) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Goal: a runc that hangs costs a failure and no worker. Method: a program that never ends.
    #[test]
    fn a_program_that_hangs_is_ended_and_one_that_ends_is_not() {
        let run = |program: &str, argument: &str, limit: Duration| {
            let mut child = Command::new(program).arg(argument).spawn().unwrap();
            let result = wait_within(&mut child, limit);
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
