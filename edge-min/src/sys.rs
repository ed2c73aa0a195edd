//! The one module with `unsafe`: calls that neither nix nor rustix offers without it. Nothing
//! here takes a pointer or a descriptor from outside.
#![expect(unsafe_code, reason = "this is the module that may")]

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Descriptors from here on are not standard input, output or error.
const FD_FIRST: RawFd = 3;

/// Gives every signal its default effect again, but SIGPIPE, which std restores itself when it
/// executes a program. A parent's `nohup` or `&` is not the program's affair.
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
/// process nothing changes, but a program that it starts gets the default effect instead.
pub fn ignore_for_this_process_only() {
    extern "C" fn nothing(_: libc::c_int) {}
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    let handler = SigAction::new(
        SigHandler::Handler(nothing),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    for signal in Signal::iterator().filter(|signal| *signal != Signal::SIGPIPE) {
        if ignored >> (signal as i32 - 1) & 1 == 0 {
            continue;
        }
        // JUSTIFICATION: nix's call is unsafe whatever the handler.
        // SAFETY: the handler does nothing, so it may interrupt anything.
        // Only a wrong number fails, and then it stays as it is.
        unsafe { sigaction(signal, &handler) }.ok();
    }
}

/// Marks every descriptor but the standard three to close when a program is executed.
///
/// # Errors
/// `/proc` is not there.
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
