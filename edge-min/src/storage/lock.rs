//! One agent for a state folder and a run folder: a second one would start a second copy of every
//! pod, and a reset would wipe the folders of a running agent.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use crate::paths;

/// Attempts, and the delay between two. A child that an earlier agent was about to start holds the lock
/// until it executes another program.
const TRIES: u32 = 40;
const PAUSE: Duration = Duration::from_millis(50);

/// Held as long as this exists; the kernel releases it at the end of the process.
pub struct Lock {
    _files: (File, Option<File>),
}

/// Locks both folders, which are created if they are missing. A state folder on a medium
/// that accepts no new file is not locked: its pods must run nevertheless.
///
/// # Errors
/// Another process has one of them, or this user may not open it; human-readable.
pub fn take(state_dir: &Path, run_dir: &Path) -> Result<Lock, String> {
    let run = open(run_dir).map_err(|error| text(run_dir, &error.to_string()))?;
    lock(run_dir, &run)?;
    if run_dir == state_dir {
        return Ok(Lock {
            _files: (run, None),
        });
    }
    let state = match open(state_dir) {
        Ok(file) => Some(file),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(text(state_dir, &error.to_string()));
        }
        Err(error) => {
            log::warn!("state_not_locked error={error}");
            None
        }
    };
    if let Some(file) = &state {
        lock(state_dir, file)?;
    }
    Ok(Lock {
        _files: (run, state),
    })
}

fn open(folder: &Path) -> io::Result<File> {
    fs::create_dir_all(folder)?;
    // Only root can open it: any process that can may lock it for ever.
    let path = paths::lock(folder);
    match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path),
        opened => opened,
    }
}

fn lock(folder: &Path, file: &File) -> Result<(), String> {
    for tried in 0..TRIES {
        if tried > 0 {
            std::thread::sleep(PAUSE);
        }
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(text(folder, &error.to_string())),
        }
    }
    Err(text(
        folder,
        "another edge-min uses this folder: stop it first",
    ))
}

fn text(folder: &Path, what: &str) -> String {
    [&folder.to_string_lossy(), ": ", what].concat()
}
