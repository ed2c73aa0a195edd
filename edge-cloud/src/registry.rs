//! The nodes that have joined, on disk, and the epoch of this edge-cloud.
//!
//! A certificate is accepted only while the registry lists its serial under its name: deleting or
//! revoking a node needs no list of what is no longer valid. After a restore from a backup there is
//! a [`Grace`]: nodes that joined after the backup are unknown, and come back by themselves.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use edge_proto::limits::NODE_NAME_BYTES_MAX;
use serde::{Deserialize, Serialize};

use crate::ca::{NODE_LIFE_S, replace};
use crate::tls::Peer;

/// File with the nodes in the data folder.
pub const NODES: &str = "nodes.json";
/// Nodes of one edge-cloud.
pub const NODES_MAX: usize = 10_000;
/// Certificates that are refused before they expire. The oldest ones make room, which matters only
/// behind an external broker, and there only with more than this many in a certificate's life.
pub const RETIRED_MAX: usize = 50_000;

/// One node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Serial number of its certificate, hex.
    pub serial: String,
    /// Refused from now on.
    pub revoked: bool,
    /// When its certificate was issued, seconds since 1970.
    pub joined_unix_s: u64,
    /// Hex SHA-256 of its public key; empty when it was not seen.
    #[serde(default)]
    pub key_sha256: String,
    /// Token that it joined with.
    #[serde(default)]
    pub token_id: String,
}

/// After a restore: a certificate that our CA issued after the backup was made is taken although
/// the registry does not list it. One that was issued before and is not listed was deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grace {
    /// When the backup was made, seconds since 1970.
    pub issued_from_unix_s: u64,
    /// When the grace ends, seconds since 1970.
    pub until_unix_s: u64,
}

/// What becomes of a node that shows a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is listed.
    Known,
    /// It is listed from now on, see [`Grace`].
    Readmitted,
    /// Revoked, replaced, deleted or never listed.
    Refused,
}

/// Why a node was not added.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Another node has the name; delete that one first.
    #[error("a node of this name has joined already; `edge-cloud node delete NAME` makes room")]
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

/// A certificate that was revoked, or whose node was deleted: an external broker cannot look into
/// the registry, so it is told what is no longer valid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Retired {
    /// Empty when it was not seen.
    serial: String,
    unix_s: u64,
    /// Whose it was; empty when that was not noted.
    #[serde(default)]
    node: String,
}

impl Retired {
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.serial == other.serial && (!self.serial.is_empty() || self.node == other.node)
    }

    fn listed(self) -> Option<(String, u64)> {
        (!self.serial.is_empty()).then_some((self.serial, self.unix_s))
    }
}

/// The file.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) epoch: u64,
    pub(crate) nodes: BTreeMap<String, NodeRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) grace: Option<Grace>,
    /// When nodes were deleted during the grace: without this they would come back.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) deleted: BTreeMap<String, u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) retired: Vec<Retired>,
}

impl State {
    pub(crate) fn grace_at(&self, unix_s: u64) -> Option<Grace> {
        self.grace.filter(|grace| unix_s < grace.until_unix_s)
    }

    fn retire(&mut self, node: &str, serial: &str) {
        let known = |one: &Retired| match serial {
            // A node that was readmitted by its name has none that we know.
            "" => one.node == node,
            serial => one.serial == serial,
        };
        if let Some(one) = self.retired.iter_mut().find(|one| known(one)) {
            node.clone_into(&mut one.node);
            return;
        }
        let unix_s = crate::clock::unix_s();
        self.retired
            .retain(|one| one.unix_s.saturating_add(NODE_LIFE_S) > unix_s);
        let over = (self.retired.len() + 1).saturating_sub(RETIRED_MAX);
        self.retired.drain(..over);
        self.retired.push(Retired {
            serial: serial.to_owned(),
            unix_s,
            node: node.to_owned(),
        });
    }
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
        let mut state = load(&path)?;
        state.epoch = state.epoch.saturating_add(1).max(unix_s);
        if state
            .grace
            .is_some_and(|grace| grace.until_unix_s <= unix_s)
        {
            state.grace = None;
            state.deleted.clear();
        }
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

    /// The node of this name.
    pub fn find(&self, node: &str) -> Option<NodeRecord> {
        self.read(|state| state.nodes.get(node).cloned())
    }

    /// The grace, while it lasts.
    pub fn grace(&self, unix_s: u64) -> Option<Grace> {
        self.read(|state| state.grace_at(unix_s))
    }

    /// Whether a node may come with this certificate. A node that is readmitted is durable when
    /// this returns.
    ///
    /// # Errors
    /// See [`RegistryError`]; the node is to be refused then.
    pub fn admit(&self, peer: &Peer, unix_s: u64) -> Result<Admission, RegistryError> {
        let record = self.find(&peer.node);
        if record.is_some_and(|record| !record.revoked && record.serial == peer.serial) {
            return Ok(Admission::Known);
        }
        // Every node certificate lives equally long.
        let issued_unix_s = peer.expires_unix_s.saturating_sub(NODE_LIFE_S);
        let grace = self.grace(unix_s);
        if grace.is_none_or(|grace| issued_unix_s < grace.issued_from_unix_s) {
            return Ok(Admission::Refused);
        }
        let readmitted = self.change(|state| {
            let deleted = state.deleted.get(&peer.node);
            if deleted.is_some_and(|deleted| issued_unix_s <= *deleted) {
                return Ok(false);
            }
            match state.nodes.get(&peer.node) {
                // Revoked stays revoked, and of two certificates the newer one counts.
                Some(record) if record.revoked || record.joined_unix_s >= issued_unix_s => {
                    return Ok(false);
                }
                Some(_) => {}
                None => room(state, &peer.node)?,
            }
            let record = NodeRecord {
                serial: peer.serial.clone(),
                joined_unix_s: issued_unix_s,
                ..NodeRecord::default()
            };
            state.nodes.insert(peer.node.clone(), record);
            Ok(true)
        })?;
        Ok(if readmitted {
            Admission::Readmitted
        } else {
            Admission::Refused
        })
    }

    /// Whether a node of this name has joined and is not revoked: all that can be said when an
    /// external broker has looked at the certificate.
    pub fn knows(&self, node: &str) -> bool {
        self.read(|state| state.nodes.get(node).is_some_and(|record| !record.revoked))
    }

    /// Readmits a node by its name, see [`Grace`]: an external broker has looked at its
    /// certificate. It may not have read the list of refused ones yet, so a name that has one is
    /// not readmitted. `false` when it is not to be. It is durable when this returns.
    ///
    /// # Errors
    /// See [`RegistryError`]; the node is to be refused then.
    pub fn readmit(&self, node: &str, unix_s: u64) -> Result<bool, RegistryError> {
        if self.grace(unix_s).is_none() {
            return Ok(false);
        }
        self.change(|state| {
            let retired = state.retired.iter().any(|one| one.node == node);
            if retired || state.nodes.contains_key(node) || state.deleted.contains_key(node) {
                return Ok(false);
            }
            room(state, node)?;
            let record = NodeRecord {
                joined_unix_s: unix_s,
                ..NodeRecord::default()
            };
            state.nodes.insert(node.to_owned(), record);
            Ok(true)
        })
    }

    /// Serial numbers, hex, of the certificates that are refused, with when that began.
    pub fn retired(&self) -> Vec<(String, u64)> {
        self.read(|state| {
            let retired = state.retired.iter().cloned();
            retired.filter_map(Retired::listed).collect()
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

    /// Notes with which token a node has asked again for its certificate.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn joined_with(&self, node: &str, token_id: &str) -> Result<bool, RegistryError> {
        self.change(|state| {
            let record = state.nodes.get_mut(node);
            Ok(record
                .map(|record| token_id.clone_into(&mut record.token_id))
                .is_some())
        })
    }

    /// Forgets a node. `false` when there is none of this name. During a [`Grace`] a name that is
    /// not known is noted, so that it does not come back with a certificate of before.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn delete(&self, node: &str, unix_s: u64) -> Result<bool, RegistryError> {
        self.change(|state| {
            let grace = state.grace_at(unix_s).is_some();
            match state.nodes.remove(node) {
                Some(record) => state.retire(node, &record.serial),
                None if grace && is_label(node) => {}
                None => return Ok(false),
            }
            if grace {
                state.deleted.insert(node.to_owned(), unix_s);
                if state.deleted.len() > NODES_MAX {
                    // Nobody comes back unseen because we have forgotten that it must not.
                    state.grace = None;
                    state.deleted.clear();
                }
            }
            Ok(true)
        })
    }

    /// Refuses a node from now on. `false` when there is none of this name. During a [`Grace`] a
    /// name that is not known is listed as revoked: its node may have joined after the backup.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn revoke(&self, node: &str, unix_s: u64) -> Result<bool, RegistryError> {
        self.change(|state| {
            if let Some(record) = state.nodes.get_mut(node) {
                record.revoked = true;
                let serial = record.serial.clone();
                state.retire(node, &serial);
                return Ok(true);
            }
            if state.grace_at(unix_s).is_none() || !is_label(node) {
                return Ok(false);
            }
            room(state, node)?;
            let record = NodeRecord {
                revoked: true,
                joined_unix_s: unix_s,
                ..NodeRecord::default()
            };
            state.nodes.insert(node.to_owned(), record);
            Ok(true)
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

/// Serial numbers of the certificates that are refused, read beside a running server.
///
/// # Errors
/// Those of the file system; a damaged file is one, too.
pub fn retired(data: &Path) -> io::Result<Vec<(String, u64)>> {
    let retired = load(&data.join(NODES))?.retired.into_iter();
    Ok(retired.filter_map(Retired::listed).collect())
}

fn load(path: &Path) -> io::Result<State> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(State::default()),
        Err(error) => Err(error),
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

    /// A peer whose certificate was issued at `issued_unix_s`.
    fn peer(node: &str, serial: &str, issued_unix_s: u64) -> Peer {
        Peer {
            node: node.to_owned(),
            serial: serial.to_owned(),
            expires_unix_s: issued_unix_s + NODE_LIFE_S,
        }
    }

    fn admits(registry: &Registry, node: &str, serial: &str) -> bool {
        registry.admit(&peer(node, serial, 50), 1_000).unwrap() == Admission::Known
    }

    /// A registry as a restore leaves it: the backup was made at 100, the grace lasts until 2000.
    fn restored(folder: &Path) -> Registry {
        let mut old = record("01");
        old.joined_unix_s = 40;
        let mut revoked = record("02");
        revoked.joined_unix_s = 40;
        revoked.revoked = true;
        let state = State {
            epoch: 7,
            nodes: [("old".to_owned(), old), ("revoked".to_owned(), revoked)].into(),
            retired: Vec::new(),
            grace: Some(Grace {
                issued_from_unix_s: 100,
                until_unix_s: 2_000,
            }),
            deleted: BTreeMap::new(),
        };
        std::fs::write(folder.join(NODES), serde_json::to_vec(&state).unwrap()).unwrap();
        Registry::open(folder, 1_000).unwrap()
    }

    #[test]
    fn after_a_restore_nodes_that_joined_after_the_backup_come_back_for_good() {
        let folder = tempfile::tempdir().unwrap();
        let registry = restored(folder.path());
        let admit = |peer, unix_s| registry.admit(&peer, unix_s).unwrap();
        assert_eq!(admit(peer("old", "01", 40), 1_000), Admission::Known);
        assert_eq!(admit(peer("new", "03", 100), 1_000), Admission::Readmitted);
        assert_eq!(admit(peer("new", "03", 100), 1_000), Admission::Known);
        let registry = Registry::open(folder.path(), 1_001).unwrap();
        let admit = |peer, unix_s| registry.admit(&peer, unix_s).unwrap();
        assert_eq!(admit(peer("new", "03", 100), 3_000), Admission::Known);
        // The newer of two certificates counts, whoever comes first.
        assert_eq!(admit(peer("old", "04", 200), 1_002), Admission::Readmitted);
        assert_eq!(admit(peer("old", "01", 40), 1_003), Admission::Refused);
        assert_eq!(admit(peer("old", "05", 150), 1_003), Admission::Refused);
        assert_eq!(admit(peer("old", "04", 200), 1_003), Admission::Known);
        registry.delete("new", 1_003).unwrap();
        assert_eq!(admit(peer("new", "03", 100), 1_004), Admission::Refused);
        let rejoined = peer("new", "06", 1_004);
        assert_eq!(admit(rejoined, 1_005), Admission::Readmitted);
        registry.revoke("old", 1_003).unwrap();
        assert_eq!(admit(peer("old", "04", 200), 1_003), Admission::Refused);
    }

    #[test]
    fn the_grace_is_for_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let registry = restored(folder.path());
        let admit = |peer, unix_s| registry.admit(&peer, unix_s).unwrap();
        // Deleted before the backup; revoked; revoked with a later certificate; too late.
        assert_eq!(admit(peer("gone", "09", 99), 1_000), Admission::Refused);
        assert_eq!(admit(peer("revoked", "02", 40), 1_000), Admission::Refused);
        assert_eq!(admit(peer("revoked", "0a", 200), 1_000), Admission::Refused);
        assert_eq!(admit(peer("late", "0b", 200), 2_000), Admission::Refused);
        assert_eq!(registry.nodes().len(), 2);
        assert!(registry.admit(&peer("a/b", "0c", 200), 1_000).is_err());
    }

    /// Goal: a board that joined after the backup and was stolen can be shut out before it shows up.
    #[test]
    fn during_the_grace_a_node_that_is_not_known_can_be_revoked_and_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let registry = restored(folder.path());
        assert!(registry.revoke("stolen", 1_000).unwrap());
        assert!(registry.delete("gone", 1_000).unwrap());
        assert!(!registry.revoke("a/b", 1_000).unwrap());
        assert!(!registry.delete("a/b", 1_000).unwrap());
        assert!(!registry.revoke("late", 2_000).unwrap());
        assert!(!registry.delete("late", 2_000).unwrap());
        let registry = Registry::open(folder.path(), 1_001).unwrap();
        for name in ["stolen", "gone"] {
            let refused = registry.admit(&peer(name, "0d", 200), 1_002).unwrap();
            assert_eq!(refused, Admission::Refused, "{name}");
            assert!(!registry.readmit(name, 1_002).unwrap(), "{name}");
        }
        assert!(registry.retired().is_empty(), "their serials are not known");
        // A new join is no return, and what was revoked has to be deleted first.
        registry.add("gone", record("0e")).unwrap();
        assert!(registry.add("stolen", record("0f")).is_err());
        assert!(registry.delete("stolen", 1_003).unwrap());
        registry.add("stolen", record("0f")).unwrap();
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
        assert!(admits(&registry, "a", "01"));
        assert!(!admits(&registry, "a", "02"));
        assert!(registry.revoke("a", 0).unwrap());
        assert!(registry.delete("b", 0).unwrap());
        assert!(!registry.delete("b", 0).unwrap());
        let registry = Registry::open(folder.path(), 0).unwrap();
        assert!(!admits(&registry, "a", "01"));
        assert!(!admits(&registry, "b", "02"));
        registry.add("b", record("04")).unwrap();
        assert!(admits(&registry, "b", "04"));
        assert!(registry.knows("b") && !registry.knows("a") && !registry.knows("c"));
        assert!(registry.delete("a", 60).unwrap());
        let retired: Vec<_> = registry.retired().into_iter().map(|one| one.0).collect();
        assert_eq!(retired, ["01", "02"], "each once, also when deleted later");
    }

    #[test]
    fn behind_a_broker_a_node_comes_back_by_name_within_the_grace_unless_deleted_or_revoked() {
        let folder = tempfile::tempdir().unwrap();
        let registry = restored(folder.path());
        assert!(registry.readmit("late", 1_999).unwrap());
        assert!(registry.knows("late"));
        assert!(!registry.readmit("later", 2_000).unwrap(), "too late");
        for name in ["late", "old", "revoked"] {
            assert!(!registry.readmit(name, 1_000).unwrap(), "{name} is listed");
        }
        assert!(registry.delete("late", 1_500).unwrap());
        assert!(!registry.readmit("late", 1_600).unwrap());
        assert!(registry.retired().is_empty(), "its serial is not known");
        assert!(registry.delete("old", 1_500).unwrap());
        // A later restore, from a backup that was made after these two were deleted.
        let mut state = load(&folder.path().join(NODES)).unwrap();
        state.deleted.clear();
        std::fs::write(
            folder.path().join(NODES),
            serde_json::to_vec(&state).unwrap(),
        )
        .unwrap();
        let registry = Registry::open(folder.path(), 1_600).unwrap();
        for name in ["late", "old"] {
            assert!(
                !registry.readmit(name, 1_700).unwrap(),
                "{name} was deleted"
            );
        }
        assert_eq!(registry.retired()[0].0, "01");
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
