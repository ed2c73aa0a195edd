//! The only code that writes to the state directory. The caller states how
//! durable the write must be and for which subsystem it is, so that the flash wear of each is counted.
//! The counters are in memory only: counting must cost no flash.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use edge_core::flash::{Counters, Subsystem};

use crate::paths;

/// What a power cut may do to a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Nothing: it returns when bytes, name and directory are on the medium. Never shed.
    Must(Subsystem),
    /// A power cut soon after the write may lose it: it reaches the medium within
    /// [`edge_core::limits::CACHE_LATEST_MS`], by the agent's or the kernel's own timer. Waits for
    /// the next day when the flash budget is used up, unless a write of class *must* depends on it.
    Soon(Subsystem),
    /// A power cut loses it: it is for the run directory, which is memory, and costs no flash.
    Never,
}

/// Bytes of a block: the smallest write of the file system.
const BLOCK_BYTES: u64 = 4096;
/// Bytes and syncs of each subsystem since the start.
static COUNTERS: [(AtomicU64, AtomicU64); Subsystem::ALL.len()] =
    [const { (AtomicU64::new(0), AtomicU64::new(0)) }; Subsystem::ALL.len()];

/// Writes a whole file over an old one, if there is one. A reader, and a power cut, finds the old
/// file or the new one; with *soon* a power cut may also leave an empty one, and with
/// *never* none.
///
/// # Errors
/// Those of the file system. The old file still exists then, or, if only its directory could not be
/// made durable, the new one.
pub fn write(path: &Path, bytes: &[u8], durability: Durability) -> io::Result<()> {
    // A power cut clears the whole run directory anyway.
    let new = match durability {
        Durability::Never => path.to_owned(),
        _ => path.with_extension(paths::TEMPORARY),
    };
    let mut file = open(&new, fs::OpenOptions::new().write(true).truncate(true))?;
    count_bytes(durability, bytes.len());
    file.write_all(bytes)?;
    if let Durability::Must(subsystem) = durability {
        sync(&file, subsystem)?;
    }
    drop(file);
    if durability == Durability::Never {
        return Ok(());
    }
    fs::rename(&new, path)?;
    match (durability, path.parent()) {
        (Durability::Must(subsystem), Some(dir)) => sync_dir(dir, subsystem),
        _ => Ok(()),
    }
}

/// Appends at `offset`, which is the file's end; returns the new end. A file of another
/// length is not changed, and its end is returned.
///
/// # Errors
/// Those of the file system; some of the bytes may have been written.
pub fn append(path: &Path, offset: u64, bytes: &[u8], durability: Durability) -> io::Result<u64> {
    let mut file = open(path, fs::OpenOptions::new().append(true))?;
    let end = file.metadata()?.len();
    if end != offset {
        return Ok(end);
    }
    count_bytes(durability, bytes.len());
    file.write_all(bytes)?;
    if let Durability::Must(subsystem) = durability {
        sync(&file, subsystem)?;
    }
    Ok(end.saturating_add(bytes.len() as u64))
}

/// Makes the names in a directory durable.
///
/// # Errors
/// Those of the file system.
pub fn sync_dir(dir: &Path, subsystem: Subsystem) -> io::Result<()> {
    sync(&File::open(dir)?, subsystem)
}

/// Makes a file's bytes and length, or a directory's names, durable.
///
/// # Errors
/// Those of the file system. After an error the bytes count as lost: they must be written again, because
/// the kernel reports a failed write-back only once.
pub fn sync(file: &File, subsystem: Subsystem) -> io::Result<()> {
    count(subsystem, 0, 1);
    file.sync_all()
}

/// Makes a file's bytes durable, and of its metadata only the length.
///
/// # Errors
/// As [`sync`].
pub fn sync_data(file: &File, subsystem: Subsystem) -> io::Result<()> {
    count(subsystem, 0, 1);
    file.sync_data()
}

/// Counts a file of so many bytes that other code writes, in whole blocks.
pub fn count_file(subsystem: Subsystem, bytes: u64) {
    let blocks = bytes.checked_next_multiple_of(BLOCK_BYTES);
    count(subsystem, blocks.unwrap_or(bytes), 0);
}

/// Counts writes of other code, for example of a child process.
pub fn count(subsystem: Subsystem, bytes: u64, syncs: u64) {
    if let Some((all_bytes, all_syncs)) = COUNTERS.get(subsystem as usize) {
        all_bytes.fetch_add(bytes, Relaxed);
        all_syncs.fetch_add(syncs, Relaxed);
    }
}

/// Writes of each subsystem since this process started.
#[must_use]
pub fn counters() -> Counters {
    let mut counters = Counters::default();
    for (into, (bytes, syncs)) in counters.iter_mut().zip(&COUNTERS) {
        into.bytes = bytes.load(Relaxed);
        into.syncs = syncs.load(Relaxed);
    }
    counters
}

fn open(path: &Path, how: &mut fs::OpenOptions) -> io::Result<File> {
    how.create(true).mode(0o600).open(path)
}

/// Called before the write: a failed one may have reached the medium.
fn count_bytes(durability: Durability, bytes: usize) {
    if let Durability::Must(subsystem) | Durability::Soon(subsystem) = durability {
        count_file(subsystem, bytes as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the counters match the writes, in whole blocks, and memory costs nothing.
    /// Method: a subsystem that no other test of this process writes for.
    #[test]
    fn each_class_counts_what_it_costs() {
        let dir = tempfile::tempdir().unwrap();
        let (path, part) = (dir.path().join("file"), dir.path().join("part"));
        let outbox = Subsystem::Outbox;
        let costs = |write: &dyn Fn()| {
            let before = counters()[outbox as usize];
            write();
            let after = counters()[outbox as usize];
            (after.bytes - before.bytes, after.syncs - before.syncs)
        };
        let whole = |durability| write(&path, &vec![7; 5000], durability).unwrap();
        assert_eq!(costs(&|| whole(Durability::Must(outbox))), (8192, 2));
        assert_eq!(costs(&|| whole(Durability::Soon(outbox))), (8192, 0));
        assert_eq!(costs(&|| whole(Durability::Never)), (0, 0));
        assert_eq!(fs::read(&path).unwrap(), vec![7; 5000]);
        let piece = |offset| append(&part, offset, &[1; 100], Durability::Must(outbox)).unwrap();
        assert_eq!(costs(&|| assert_eq!(piece(0), 100)), (4096, 1));
        assert_eq!(costs(&|| assert_eq!(piece(50), 100)), (0, 0), "not its end");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
