//! A file of one JSON value, followed by a line for each change since. So a change costs its own
//! bytes and one sync, however large the value is; when the changes are longer than the value, the
//! whole file is written again.
//!
//! The last line may be incomplete after a power cut, with zeros where
//! blocks were not written; it was not acknowledged. Any other damage is an error.
//!
//! Bound: twice the value, or [`REWRITE_BYTES_MIN`] more than it if that is larger.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::durable::replace;

/// Bytes of changes below which the whole file is not written again.
pub const REWRITE_BYTES_MIN: u64 = 1024 * 1024;

/// The file and its last known state. A new one is written as a whole first.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    /// Bytes of the file and, of these, of its value; `None`: it must be written as a whole.
    bytes: Option<(u64, u64)>,
}

impl Journal {
    /// The journal in this file, which is written as a whole before anything is added.
    #[must_use]
    pub const fn new(path: PathBuf) -> Self {
        Self { path, bytes: None }
    }

    /// Whether the file exists and is unchanged since its last write.
    #[must_use]
    pub const fn is_written(&self) -> bool {
        self.bytes.is_some()
    }

    /// Writes the whole value, durable when this returns.
    ///
    /// # Errors
    /// Those of the file system; the next write is of the whole value again.
    pub fn write(&mut self, value: &impl Serialize) -> io::Result<()> {
        self.bytes = None;
        let bytes = whole(value)?;
        replace(&self.path, &bytes)?;
        let bytes = bytes.len() as u64;
        self.bytes = Some((bytes, bytes));
        Ok(())
    }

    /// Adds the changes of one round, durable when this returns. `false`: the file must be
    /// written as a whole instead.
    ///
    /// # Errors
    /// Only those of encoding: a file that cannot be appended to, or was changed, is written as a whole.
    pub fn append(&mut self, changes: &[impl Serialize]) -> io::Result<bool> {
        let mut line = serde_json::to_vec(changes)?;
        line.push(b'\n');
        let Some((bytes, value)) = self.bytes else {
            return Ok(false);
        };
        let longer = bytes.saturating_add(line.len() as u64);
        let is_long = longer - value > value.max(REWRITE_BYTES_MIN);
        if is_long || append(&self.path, bytes, &line).is_err() {
            self.bytes = None;
            return Ok(false);
        }
        self.bytes = Some((longer, value));
        Ok(true)
    }
}

/// The bytes of a file without changes.
///
/// # Errors
/// None that is known.
pub fn whole(value: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(value)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Reads the bytes of a file: its value, with `apply` for each of its changes.
///
/// # Errors
/// They are damaged.
pub fn parse<V: DeserializeOwned, C: DeserializeOwned>(
    bytes: &[u8],
    mut apply: impl FnMut(&mut V, C),
) -> serde_json::Result<V> {
    let mut values = serde_json::Deserializer::from_slice(bytes).into_iter();
    let mut value: V = match values.next() {
        Some(value) => value?,
        None => return serde_json::from_slice(bytes),
    };
    let changes = bytes.get(values.byte_offset()..).unwrap_or_default();
    let mut lines = changes.split_inclusive(|byte| *byte == b'\n').peekable();
    while let Some(line) = lines.next() {
        let is_torn = !line.ends_with(b"\n") || line.contains(&0);
        if is_torn && lines.peek().is_none() {
            break;
        }
        if !line.trim_ascii().is_empty() {
            for change in serde_json::from_slice::<Vec<C>>(line)? {
                apply(&mut value, change);
            }
        }
    }
    Ok(value)
}

/// Adds a line to a file of `bytes`, durably. A failed one may still be in the file after a power
/// cut, because its removal is not synced.
fn append(path: &Path, bytes: u64, line: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).open(path)?;
    if file.metadata()?.len() != bytes {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let added = file.write_all(line).and_then(|()| file.sync_data());
    if added.is_err() {
        // If this fails, too, the file is longer than expected, and is replaced next time.
        drop(file.set_len(bytes));
    }
    added
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> serde_json::Result<Vec<u64>> {
        parse(&std::fs::read(path).unwrap(), |all: &mut Vec<u64>, one| {
            all.push(one);
        })
    }

    #[test]
    fn a_cut_in_the_last_change_undoes_it_and_no_other_damage_passes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut journal = Journal::new(path.clone());
        assert!(!journal.append(&[1]).unwrap(), "there is no value yet");
        journal.write(&[1]).unwrap();
        assert!(journal.append(&[2, 3]).unwrap());
        let two = std::fs::read(&path).unwrap();
        assert!(journal.append(&[4]).unwrap());
        let all = std::fs::read(&path).unwrap();
        assert_eq!(read(&path).unwrap(), [1, 2, 3, 4]);
        for cut in two.len()..all.len() {
            std::fs::write(&path, &all[..cut]).unwrap();
            assert_eq!(read(&path).unwrap(), [1, 2, 3], "{cut}");
            // The file was changed.
            assert!(!journal.append(&[5]).unwrap());
            journal.write(&[1, 2, 3, 5]).unwrap();
            assert_eq!(read(&path).unwrap(), [1, 2, 3, 5]);
        }
        let mut zeros = all.clone();
        let end = zeros.len() - 2;
        zeros[two.len()..end].fill(0);
        std::fs::write(&path, &zeros).unwrap();
        assert_eq!(read(&path).unwrap(), [1, 2, 3]);
        let mut damaged = all;
        damaged[two.len() - 3] = b'x';
        std::fs::write(&path, &damaged).unwrap();
        assert!(read(&path).is_err());
    }

    #[test]
    fn a_file_with_more_changes_than_value_is_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::new(folder.path().join("log"));
        journal.write(&"").unwrap();
        let long = "x".repeat(REWRITE_BYTES_MIN as usize / 4);
        for _ in 0..3 {
            assert!(journal.append(&[&long]).unwrap());
        }
        assert!(!journal.append(&[&long]).unwrap());
        journal.write(&"").unwrap();
        assert!(journal.append(&[&long]).unwrap());
    }
}
