//! The end of a program that somebody waits for, or of its time.

use std::io;
use std::os::fd::AsFd as _;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Waits for a program. One that hangs is killed: a pod fails, and the worker goes on.
///
/// # Errors
/// `TimedOut`, and those of the system.
pub(super) fn wait_within(child: &mut Child, limit: Duration) -> io::Result<ExitStatus> {
    let pid = Pid::from_child(child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let limit_ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
    let deadline = Instant::now().checked_add(limit);
    loop {
        let left = deadline.map_or(limit, |at| at.saturating_duration_since(Instant::now()));
        let left_ms = u32::try_from(left.as_millis()).unwrap_or(limit_ms);
        let timeout = PollTimeout::try_from(left_ms).unwrap_or(PollTimeout::MAX);
        match poll(
            &mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)],
            timeout,
        ) {
            Ok(0) if left.is_zero() => {
                child.kill()?;
                child.wait()?;
                let text = ["no answer within ", &limit.as_secs().to_string(), " s"].concat();
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return child.wait(),
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
