//! The kernel's list of mounts at one moment. A mount that is missed may be removed: a layer
//! under a running container, or the board's files below a host path.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Attempts to read the list without a concurrent change; one read takes less than a
/// millisecond.
const READS_MAX: u32 = 100;

/// Text of `/proc/self/mountinfo`.
///
/// # Errors
/// It cannot be read, or it changes during each attempt.
pub fn info() -> io::Result<String> {
    read("/proc/self/mountinfo", &mut || {})
}

/// The mount points in a text of [`info`].
pub fn places(info: &str) -> impl Iterator<Item = &str> {
    info.lines().filter_map(|line| line.split(' ').nth(4))
}

/// Reads until nothing has changed meanwhile. The kernel returns the list in pages, and before Linux
/// 5.8 it finds the next entry by its number: an entry is missed when an earlier one is removed.
fn read(path: &str, before_look: &mut dyn FnMut()) -> io::Result<String> {
    for _ in 0..READS_MAX {
        let mut file = File::open(path)?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        before_look();
        // The kernel reports that the list has changed since it was opened.
        let mut changed = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
        if poll(&mut changed, PollTimeout::ZERO)? == 0 {
            return Ok(text);
        }
    }
    Err(io::Error::other("mounts come and go all the time"))
}

#[cfg(test)]
mod tests {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// Goal: a list that changes while it is read is read again. Method: a mount between the read
    /// and the look at whether something has changed, in a thread with mounts of its own.
    #[test]
    #[ignore = "needs root: mounts"]
    fn a_list_that_changes_while_it_is_read_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().to_str().unwrap().to_owned();
        let run = move || {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let none: Option<&str> = None;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(none, "/", none, private, none).unwrap();
            let mut mounts_left = 3;
            let text = read("/proc/thread-self/mountinfo", &mut || {
                if mounts_left > 0 {
                    mounts_left -= 1;
                    let flags = MsFlags::empty();
                    mount(Some("none"), place.as_str(), Some("tmpfs"), flags, none).unwrap();
                }
            });
            let found = places(&text.unwrap()).filter(|one| *one == place).count();
            assert_eq!(found, 3);
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "a thread whose mounts go with it"
        )]
        std::thread::spawn(run).join().unwrap();
    }
}
