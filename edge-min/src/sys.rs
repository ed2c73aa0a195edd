//! The only module with `unsafe`: calls that neither nix nor rustix offers without it. Nothing
//! here takes a pointer or a descriptor from a caller.
#![expect(unsafe_code, reason = "this is the module that may")]

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Descriptors from here on are not standard input, output or error.
const FD_FIRST: RawFd = 3;
/// Signals that this process ignores by a handler, as the kernel's bits.
static IGNORED: AtomicU32 = AtomicU32::new(0);
/// Soft and hard limit of open files before they were raised.
static OPEN_FILES: OnceLock<(u64, u64)> = OnceLock::new();

/// Restores the default action of every signal, except SIGPIPE, which std restores itself when it
/// executes a program. A program must not inherit `nohup` or `&` of the agent's parent.
pub fn default_signals() {
    for number in 1..=libc::SIGRTMAX() {
        if number == libc::SIGPIPE {
            continue;
        }
        // JUSTIFICATION: nix has no real-time signals, and its calls for the others are unsafe too.
        // SAFETY: SIG_DFL runs no code of ours. A number that may not be set (SIGKILL, SIGSTOP,
        // the C library's own) is refused by the kernel or the library.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
}

/// Signals that this process ignores become signals that it handles by doing nothing. For the
/// process nothing changes, but a program that it starts gets the default action instead.
pub fn ignore_for_this_process_only() {
    extern "C" fn nothing(_: libc::c_int) {}
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    // Real-time signals, the upper half, are not for us.
    let ignored = u32::try_from(ignored & u64::from(u32::MAX)).unwrap_or(0);
    IGNORED.store(ignored, Relaxed);
    handle_ignored(SigHandler::Handler(nothing));
}

/// Signals that [`ignore_for_this_process_only`] has found are ignored by the next program of this process
/// too, so that it finds the same state. Call it just before; if that program cannot be executed, call
/// [`ignore_for_this_process_only`] again.
pub fn ignore_for_next_program() {
    handle_ignored(SigHandler::SigIgn);
}

fn handle_ignored(handler: SigHandler) {
    let ignored = IGNORED.load(Relaxed);
    let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
    for signal in Signal::iterator() {
        // std restores SIGPIPE itself. A process that ignores SIGCHLD gets no exit code of a child.
        let left = match signal {
            Signal::SIGPIPE => true,
            Signal::SIGCHLD => matches!(handler, SigHandler::SigIgn),
            _ => false,
        };
        if left || ignored >> (signal as i32 - 1) & 1 == 0 {
            continue;
        }
        // JUSTIFICATION: nix's call is unsafe whatever the handler.
        // SAFETY: the only handler does nothing, so it may interrupt anything.
        // Only an invalid number fails, and then its action is unchanged.
        unsafe { sigaction(signal, &action) }.ok();
    }
}

/// Marks every descriptor but the standard three to close when a program is executed.
///
/// # Errors
/// `/proc` is not mounted.
pub fn close_on_exec() -> io::Result<()> {
    // close_range(2) needs Linux 5.11 for this; a list is as good in a process with one thread.
    for entry in fs::read_dir("/proc/self/fd")?.flatten() {
        let name = entry.file_name();
        let Some(fd) = name.to_str().and_then(|name| name.parse::<RawFd>().ok()) else {
            continue;
        };
        if fd < FD_FIRST {
            continue;
        }
        // JUSTIFICATION: descriptors that came in over exec have no owner in this program.
        // SAFETY: it is open, for the kernel listed it and no other thread closes any; it is
        // borrowed for one call.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    Ok(())
}

/// Raises the limit of open files of this process to `wanted`, or as far as it may. Its workloads keep what
/// it was started with, see [`open_files`].
///
/// # Errors
/// Those of the kernel.
pub fn raise_open_files(wanted: u64) -> io::Result<()> {
    let (soft, hard) = open_files()?;
    if soft >= wanted {
        return Ok(());
    }
    // The hard limit is root's to raise, if its capabilities are not cut.
    let raised = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted));
    Ok(raised.or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard.min(wanted), hard))?)
}

/// The soft and the hard limit of open files that this process was started with.
///
/// # Errors
/// Those of the kernel.
pub fn open_files() -> io::Result<(u64, u64)> {
    if let Some(limits) = OPEN_FILES.get() {
        return Ok(*limits);
    }
    let limits = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(*OPEN_FILES.get_or_init(|| limits))
}

/// Undoes [`raise_open_files`], for a program that this process is about to become.
///
/// # Errors
/// Those of the kernel.
pub fn restore_open_files() -> io::Result<()> {
    let (soft, hard) = open_files()?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?)
}

/// What is not there, or has ended meanwhile, is no error: a file, a process, a cgroup. Anything else
/// (no descriptor or memory left, a medium that fails) leaves open whether it is there.
///
/// # Errors
/// Those others.
pub fn if_there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR | libc::ESRCH | libc::ENODEV) => Ok(None),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: signals that the agent's starter has ignored are ignored by each agent that replaces it, but
    /// not by its children. Method: two signals that no test uses; the kernel reports what is ignored.
    #[test]
    fn an_ignored_signal_is_ignored_by_the_next_program_too() {
        let ignored = || {
            let status = fs::read_to_string("/proc/self/status").unwrap();
            let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
            let mask = u64::from_str_radix(mask.unwrap().trim(), 16).unwrap();
            [Signal::SIGUSR2, Signal::SIGCHLD].map(|signal| mask >> (signal as i32 - 1) & 1)
        };
        let action = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
        // JUSTIFICATION: as above.
        // SAFETY: ignoring runs no code of ours.
        unsafe { sigaction(Signal::SIGUSR2, &action) }.unwrap();
        ignore_for_this_process_only();
        // As if the starter had ignored this one as well; the other tests have children.
        IGNORED.fetch_or(1 << (Signal::SIGCHLD as i32 - 1), Relaxed);
        assert_eq!(ignored(), [0, 0]);
        ignore_for_next_program();
        assert_eq!(ignored(), [1, 0]);
        ignore_for_this_process_only();
        assert_eq!(ignored(), [0, 0]);
    }
}
