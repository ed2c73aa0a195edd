//! Output of containers: one O_APPEND file each on a sized tmpfs. The agent is not in the data
//! path; it only truncates to the tail by punching holes, and reads.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};

/// Buffer of one read; a longer log is read in several.
const READ_BYTES: usize = 16 * 1024;
/// Granularity of punched holes.
const PAGE_BYTES: u64 = 4096;

/// Frees all but the last `keep` bytes of the file, in whole pages; the writer's offset stays.
///
/// # Errors
/// Those of the file system.
pub fn trim(path: &Path, keep: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
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
/// in the first 16 KiB of them.
///
/// # Errors
/// Those of the file system.
pub fn start_of_tail(path: &Path, tail: u64) -> io::Result<u64> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    // No data at all is ENXIO.
    let first = match lseek(&file, 0, Whence::SeekData) {
        Ok(first) => u64::try_from(first).unwrap_or(0),
        Err(_) => length,
    };
    let at = length.saturating_sub(tail).max(first);
    let Some(before) = at.checked_sub(1) else {
        return Ok(0);
    };
    let bytes = read_from(path, before)?;
    let newline = bytes.iter().position(|byte| *byte == b'\n');
    let start = newline.map(|index| at + index as u64);
    // A part of the last line is better than nothing.
    Ok(start.filter(|start| *start < length).unwrap_or(at))
}

/// At most 16 KiB from `at`; empty at the end of the file.
///
/// # Errors
/// Those of the file system.
pub fn read_from(path: &Path, at: u64) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mut bytes = vec![0; READ_BYTES];
    let count = file.read_at(&mut bytes, at)?;
    bytes.truncate(count);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn trimming_keeps_the_tail_and_frees_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .unwrap();
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
            let at = start_of_tail(&path, tail).unwrap();
            assert_eq!(read_from(&path, at).unwrap(), lines.as_bytes(), "{tail}");
        }
        let all = start_of_tail(&path, u64::MAX).unwrap();
        assert!(all > 80_000, "holes are skipped: {all}");
        assert!(read_from(&path, 1_000_000).unwrap().is_empty());
    }
}
