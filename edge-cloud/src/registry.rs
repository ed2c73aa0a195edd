//! The nodes that have joined, on disk, and the epoch of this edge-cloud.
//!
//! A certificate is accepted only while the registry lists its serial under its name: deleting or
//! revoking a node needs no list of what is no longer valid.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use edge_proto::limits::NODE_NAME_BYTES_MAX;
use serde::{Deserialize, Serialize};

use crate::ca::replace;

/// File with the nodes in the data folder.
pub const NODES: &str = "nodes.json";
/// Nodes of one edge-cloud.
pub const NODES_MAX: usize = 10_000;

/// One node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Serial number of its certificate, hex.
    pub serial: String,
    /// Refused from now on.
    pub revoked: bool,
    /// When it joined, seconds since 1970.
    pub joined_unix_s: u64,
}

/// Why a node was not added.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Another node has the name; delete that one first.
    #[error("a node of this name has joined already")]
    Taken,
    /// [`NODES_MAX`] nodes have joined.
    #[error("there are {NODES_MAX} nodes already")]
    Full,
    /// Not an RFC 1123 label.
    #[error("the name of a node must be an RFC 1123 label")]
    Name,
    /// The file system.
    #[error("cannot store the nodes: {0}")]
    Store(#[from] io::Error),
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct State {
    epoch: u64,
    nodes: BTreeMap<String, NodeRecord>,
}

/// All nodes, in memory and on disk.
pub struct Registry {
    path: PathBuf,
    state: Mutex<State>,
}

impl Registry {
    /// Reads the nodes in `data` and takes the next epoch: max(last + 1, `unix_s`).
    ///
    /// # Errors
    /// Those of the file system; a damaged file is one, too.
    pub fn open(data: &Path, unix_s: u64) -> io::Result<Self> {
        let path = data.join(NODES);
        let mut state = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => State::default(),
            Err(error) => return Err(error),
        };
        state.epoch = state.epoch.saturating_add(1).max(unix_s);
        replace(&path, &serde_json::to_vec(&state)?)?;
        let state = Mutex::new(state);
        Ok(Self { path, state })
    }

    /// Epoch of this start.
    pub fn epoch(&self) -> u64 {
        self.read(|state| state.epoch)
    }

    /// Every node.
    pub fn nodes(&self) -> BTreeMap<String, NodeRecord> {
        self.read(|state| state.nodes.clone())
    }

    /// Whether `node` may come with the certificate of this serial number.
    pub fn admits(&self, node: &str, serial: &str) -> bool {
        self.read(|state| {
            let record = state.nodes.get(node);
            record.is_some_and(|record| !record.revoked && record.serial == serial)
        })
    }

    /// Whether a node of this name could join.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn check(&self, node: &str) -> Result<(), RegistryError> {
        self.read(|state| room(state, node))
    }

    /// Adds a node.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn add(&self, node: &str, record: NodeRecord) -> Result<(), RegistryError> {
        self.change(|state| {
            room(state, node)?;
            state.nodes.insert(node.to_owned(), record);
            Ok(true)
        })
        .map(|_| ())
    }

    /// Forgets a node. `false` when there is none of this name.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn delete(&self, node: &str) -> Result<bool, RegistryError> {
        self.change(|state| Ok(state.nodes.remove(node).is_some()))
    }

    /// Refuses a node from now on. `false` when there is none of this name.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn revoke(&self, node: &str) -> Result<bool, RegistryError> {
        self.change(|state| {
            let record = state.nodes.get_mut(node);
            Ok(record.map(|record| record.revoked = true).is_some())
        })
    }

    fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes memory only after the disk.
    fn change(
        &self,
        change: impl FnOnce(&mut State) -> Result<bool, RegistryError>,
    ) -> Result<bool, RegistryError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = state.clone();
        let changed = change(&mut next)?;
        if changed {
            let bytes = serde_json::to_vec(&next).map_err(io::Error::from)?;
            replace(&self.path, &bytes)?;
            *state = next;
        }
        Ok(changed)
    }
}

fn room(state: &State, node: &str) -> Result<(), RegistryError> {
    if !is_label(node) {
        Err(RegistryError::Name)
    } else if state.nodes.contains_key(node) {
        Err(RegistryError::Taken)
    } else if state.nodes.len() >= NODES_MAX {
        Err(RegistryError::Full)
    } else {
        Ok(())
    }
}

/// RFC 1123 label: lower-case letters, digits and inner hyphens.
fn is_label(name: &str) -> bool {
    let fits = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    (1..=NODE_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(fits)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(serial: &str) -> NodeRecord {
        NodeRecord {
            serial: serial.to_owned(),
            ..NodeRecord::default()
        }
    }

    #[test]
    fn the_epoch_rises_at_each_start_even_with_the_clock_behind() {
        let folder = tempfile::tempdir().unwrap();
        for (unix_s, epoch) in [(1000, 1000), (5, 1001), (1001, 1002), (2000, 2000)] {
            let registry = Registry::open(folder.path(), unix_s).unwrap();
            assert_eq!(registry.epoch(), epoch);
        }
    }

    #[test]
    fn only_the_listed_serial_is_admitted_until_it_is_revoked_or_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::open(folder.path(), 0).unwrap();
        registry.add("a", record("01")).unwrap();
        registry.add("b", record("02")).unwrap();
        let taken = registry.add("a", record("03"));
        assert!(matches!(taken, Err(RegistryError::Taken)));
        assert!(registry.admits("a", "01"));
        assert!(!registry.admits("a", "02"));
        assert!(registry.revoke("a").unwrap());
        assert!(registry.delete("b").unwrap());
        assert!(!registry.delete("b").unwrap());
        let registry = Registry::open(folder.path(), 0).unwrap();
        assert!(!registry.admits("a", "01"));
        assert!(!registry.admits("b", "02"));
        registry.add("b", record("04")).unwrap();
        assert!(registry.admits("b", "04"));
    }

    #[test]
    fn names_are_labels() {
        let longest = "a".repeat(63);
        for name in ["a", "gate-7", "0", &longest] {
            assert!(is_label(name), "{name}");
        }
        let long = "a".repeat(64);
        for name in ["", "-a", "a-", "A", "a.b", "a/b", "+", "#", "ä", &long] {
            assert!(!is_label(name), "{name}");
        }
    }
}
