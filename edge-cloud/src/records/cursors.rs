//! The ledgers of a sink that keeps none itself: one small file for each node in `DATA/cursors`,
//! replaced and synced after the sink has confirmed. Confirmed records that are not stored here yet are
//! given to the sink again: at least once.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::ledger::Ledger;
use crate::durable::replace;

/// Folder in the data folder.
pub const CURSORS: &str = "cursors";
/// Bytes of a file: more than 16 streams of 4 outboxes need.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The folder.
#[derive(Clone, Debug)]
pub struct Cursors {
    dir: PathBuf,
}

impl Cursors {
    /// Opens the folder in this data folder.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(data: &Path) -> io::Result<Self> {
        let dir = data.join(CURSORS);
        std::fs::create_dir_all(&dir)?;
        std::fs::File::open(data)?.sync_all()?;
        Ok(Self { dir })
    }

    /// Ledger of a node; an empty one if there is none.
    ///
    /// # Errors
    /// Those of the file system; a damaged file is one, too.
    pub fn load(&self, node: &str) -> io::Result<Ledger> {
        read(&self.path(node))
    }

    /// Replaces a node's ledger, durable when this returns.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn save(&self, node: &str, ledger: &Ledger) -> io::Result<()> {
        if !is_name(node) {
            return Err(io::Error::other(format!("{node:?} is no node")));
        }
        replace(&self.path(node), &serde_json::to_vec(ledger)?)
    }

    fn path(&self, node: &str) -> PathBuf {
        self.dir.join(node).with_extension("json")
    }
}

fn read(path: &Path) -> io::Result<Ledger> {
    let bytes = match std::fs::metadata(path) {
        Ok(file) if file.len() > FILE_BYTES_MAX => {
            return Err(io::Error::other(format!("{}: too large", path.display())));
        }
        Ok(_) => std::fs::read(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ledger::default()),
        Err(error) => return Err(error),
    };
    serde_json::from_slice(&bytes)
        .map_err(|error| io::Error::other(format!("{}: {error}", path.display())))
}

/// A name from a backup becomes a part of a path.
fn is_name(node: &str) -> bool {
    let fits = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    !node.is_empty() && node.bytes().all(fits)
}

/// Ledgers of all nodes of a data folder, for a backup.
///
/// # Errors
/// Those of the file system; a damaged file is one, too.
pub(crate) fn all(data: &Path) -> io::Result<BTreeMap<String, Ledger>> {
    let mut ledgers = BTreeMap::new();
    let entries = match std::fs::read_dir(data.join(CURSORS)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(ledgers),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let path = entry?.path();
        let node = path.file_stem().and_then(|name| name.to_str());
        if let Some(node) = node.filter(|_| path.extension().is_some_and(|end| end == "json")) {
            ledgers.insert(node.to_owned(), read(&path)?);
        }
    }
    Ok(ledgers)
}

/// Deletes all ledgers of a data folder.
///
/// # Errors
/// Those of the file system.
pub(crate) fn clear(data: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(data.join(CURSORS)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
