//! Output of containers: one O_APPEND file each on a sized tmpfs. The agent is not in the data
//! path; it only truncates to the tail by punching holes, and reads.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use nix::unistd::{Whence, lseek};

/// Buffer of one read; a longer log is read in several.
const READ_BYTES: usize = 16 * 1024;
/// Granularity of punched holes.
const PAGE_BYTES: u64 = 4096;

/// Opens a log without ever waiting: it belongs to its container, which may hold a lease on it, and then
/// an ordinary open blocks for 45 s.
fn open(path: &Path, write: bool) -> io::Result<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW;
    let mut options = OpenOptions::new();
    let file = options.read(!write).write(write);
    match file.custom_flags(flags.bits()).open(path) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            let text = "the container holds a lease on its log: try again later";
            Err(io::Error::new(error.kind(), text))
        }
        file => file,
    }
}

/// Frees all but the last `keep` bytes of the file, in whole pages; the writer's offset stays.
///
/// # Errors
/// Those of the file system.
pub fn trim(path: &Path, keep: u64) -> io::Result<()> {
    let file = open(path, true)?;
    let metadata = file.metadata()?;
    if metadata.blocks() * 512 <= keep + PAGE_BYTES {
        return Ok(());
    }
    let end = metadata.len().saturating_sub(keep) / PAGE_BYTES * PAGE_BYTES;
    let Ok(end) = i64::try_from(end) else {
        return Ok(());
    };
    if end > 0 {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&file, flags, 0, end)?;
    }
    Ok(())
}

/// Start of the last `tail` bytes that still exist, rounded to the start of a line if there is one
/// in the first 16 KiB of them; and where the log ends now.
///
/// # Errors
/// Those of the file system.
pub fn tail_of(path: &Path, tail: u64) -> io::Result<Range<u64>> {
    let file = open(path, false)?;
    let length = file.metadata()?.len();
    let first = next_data(&file, 0)?.unwrap_or(length);
    let at = length.saturating_sub(tail).max(first);
    let Some(before) = at.checked_sub(1) else {
        return Ok(0..length);
    };
    let (_, bytes) = read_from(path, before)?;
    let newline = bytes.iter().position(|byte| *byte == b'\n');
    let start = newline.map(|index| at + index as u64);
    // A part of the last line is better than nothing.
    Ok(start.filter(|start| *start < length).unwrap_or(at)..length)
}

/// At most 16 KiB from `at`, and where they begin: what was cut off, or never written, is skipped. A
/// container may make its log as long as it likes without writing anything. No bytes at the end.
///
/// # Errors
/// Those of the file system.
pub fn read_from(path: &Path, at: u64) -> io::Result<(u64, Vec<u8>)> {
    let file = open(path, false)?;
    let Some(at) = next_data(&file, at)? else {
        return Ok((at, Vec::new()));
    };
    let mut bytes = vec![0; READ_BYTES];
    let count = file.read_at(&mut bytes, at)?;
    bytes.truncate(count);
    Ok((at, bytes))
}

/// The first place from `at` on where something was written.
fn next_data(file: &File, at: u64) -> io::Result<Option<u64>> {
    let at = i64::try_from(at).unwrap_or(i64::MAX);
    match lseek(file, at, Whence::SeekData) {
        Ok(found) => Ok(u64::try_from(found).ok()),
        Err(Errno::ENXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    /// A log as its container writes it.
    fn open(path: &Path) -> File {
        let mut options = OpenOptions::new();
        options.create(true).append(true).open(path).unwrap()
    }

    #[test]
    fn trimming_keeps_the_tail_and_frees_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut file = open(&path);
        file.write_all(&vec![b'a'; 100_000]).unwrap();
        file.write_all(b"\nthe end\n").unwrap();
        // A file system may allocate more blocks than a growing file needs.
        let bytes = || file.metadata().unwrap().blocks() * 512;
        let before = bytes();
        trim(&path, 8192).unwrap();
        assert!(before - bytes() >= 100_000 - 8192 - 2 * PAGE_BYTES);
        file.write_all(b"more\n").unwrap();
        for (tail, lines) in [
            (4, "ore\n"),
            (5, "more\n"),
            (12, "more\n"),
            (13, "the end\nmore\n"),
        ] {
            let at = tail_of(&path, tail).unwrap().start;
            let (_, read) = read_from(&path, at).unwrap();
            assert_eq!(read, lines.as_bytes(), "{tail}");
        }
        let all = tail_of(&path, u64::MAX).unwrap();
        assert!(all.start > 80_000, "holes are skipped: {all:?}");
        assert_eq!(all.end, file.metadata().unwrap().len());
        assert!(read_from(&path, 1_000_000).unwrap().1.is_empty());
    }

    /// Goal: a log that its container makes longer than any medium costs what is written in it. Method:
    /// a file that is a hole of 1 TiB between two lines, read to its end.
    #[test]
    fn an_endless_log_is_read_in_a_few_steps() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut file = open(&path);
        file.write_all(b"hello\n").unwrap();
        file.set_len(1 << 40).unwrap();
        file.write_all(b"bye\n").unwrap();
        let Range { start: mut at, end } = tail_of(&path, u64::MAX).unwrap();
        let mut all = Vec::new();
        for _ in 0..4 {
            let (from, bytes) = read_from(&path, at).unwrap();
            at = from + bytes.len() as u64;
            all.extend(bytes);
        }
        assert_eq!(at, end);
        assert!(all.starts_with(b"hello\n") && all.ends_with(b"bye\n"));
    }

    /// Goal: whatever a container makes of its log, the main thread does not wait for it. Method: a FIFO,
    /// whose open waits for the other end as that of a leased file does for the lease.
    #[test]
    fn nothing_waits_to_open_a_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let (done, ended) = std::sync::mpsc::channel();
        let look = move || {
            let failed = [
                trim(&path, 0).is_err(),
                tail_of(&path, 0).is_err(),
                read_from(&path, 0).is_err(),
            ];
            done.send(failed).unwrap();
        };
        crate::worker::spawn("test", 128 * 1024, look).unwrap();
        let failed = ended.recv_timeout(std::time::Duration::from_secs(120));
        assert_eq!(failed, Ok([true; 3]));
    }
}
