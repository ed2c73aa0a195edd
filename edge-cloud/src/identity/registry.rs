//! The nodes that have joined, on disk, and the epoch of this edge-cloud.
//!
//! A certificate is accepted only while the registry lists its serial under its name: deleting or
//! revoking a node needs no list of invalid certificates. After a restore from a backup there is
//! a [`Grace`]: nodes that joined after the backup are unknown, and are readmitted.
//!
//! A node that renews its certificate has two of them until it has connected with the new one: a lost
//! answer locks no node out.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use edge_proto::limits::{NODE_NAME_BYTES_MAX, RENEW_INTERVAL_S};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

pub use self::enrolment::{Certificate, Enrolment};
pub use self::state::RETIRED_MAX;
pub(crate) use self::state::State;
use self::state::{Kept, Retired, Step, load};
use super::peer::Peer;
use crate::nodes::Grants;

mod enrolment;
mod state;

/// File with the nodes in the data folder.
pub const NODES: &str = "nodes.json";
/// Highest number of nodes of one edge-cloud.
pub const NODES_MAX: usize = 10_000;

/// After a restore: a certificate that our CA issued after the backup was made is accepted although
/// the registry does not list it. One that was issued before and is not listed was deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grace {
    /// When the backup was made, seconds since 1970.
    pub issued_from_unix_s: u64,
    /// When the grace ends, seconds since 1970.
    pub until_unix_s: u64,
}

/// Decision about a node that presents a certificate.
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
    /// Its certificate is refused, so it proves nothing.
    #[error(
        "its certificate is revoked, replaced or not known here: delete the node, and join again \
         with a token"
    )]
    NotKnown,
    /// Labels that are none, or too many.
    #[error("{0}")]
    Grants(String),
    /// [`RENEW_INTERVAL_S`] has not passed.
    #[error("its last certificate is only {0} s old: ask again later")]
    TooSoon(u64),
    /// The file system.
    #[error("cannot store the nodes: {0}")]
    Store(#[from] io::Error),
}

/// All nodes, in memory and on disk.
pub struct Registry {
    kept: Mutex<Kept>,
    refused: Notify,
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
        let kept = Mutex::new(Kept::new(&path, state)?);
        let refused = Notify::new();
        Ok(Self { kept, refused })
    }

    /// The epoch in which this edge-cloud sends to every node: it owns all shards since its start.
    pub fn epoch(&self) -> u64 {
        self.read(|state| state.epoch)
    }

    /// Every node.
    pub fn nodes(&self) -> BTreeMap<String, Enrolment> {
        self.read(|state| state.nodes.clone())
    }

    /// Calls `each` for every node, without a copy of all. The registry is locked meanwhile: `each` must
    /// not call it.
    pub(crate) fn map<T>(&self, mut each: impl FnMut(&str, &Enrolment) -> Option<T>) -> Vec<T> {
        self.read(|state| {
            let nodes = state.nodes.iter();
            nodes.filter_map(|(name, node)| each(name, node)).collect()
        })
    }

    /// The node of this name.
    pub fn find(&self, node: &str) -> Option<Enrolment> {
        self.read(|state| state.nodes.get(node).cloned())
    }

    /// The grace, until it ends.
    pub fn grace(&self, unix_s: u64) -> Option<Grace> {
        self.read(|state| state.grace_at(unix_s))
    }

    /// Whether a node may connect with this certificate. A readmission is durable when
    /// this returns.
    ///
    /// # Errors
    /// See [`RegistryError`]; the node is to be refused then.
    pub fn admit(&self, peer: &Peer, unix_s: u64) -> Result<Admission, RegistryError> {
        if let Some(enrolment) = self.find(&peer.node).filter(|enrolment| !enrolment.revoked) {
            if enrolment.serial == peer.serial {
                return Ok(Admission::Known);
            }
            if is_pending(&enrolment, &peer.serial) && self.promote(&peer.node, &peer.serial)? {
                return Ok(Admission::Known);
            }
        }
        let issued_unix_s = peer.issued_unix_s;
        if self.grace(unix_s).is_none() {
            return Ok(Admission::Refused);
        }
        let readmitted = self.change(|state| {
            if !readmits(state, peer, unix_s) {
                return Ok(Vec::new());
            }
            if !state.nodes.contains_key(&peer.node) {
                check_name_and_count(state, &peer.node)?;
            }
            // One that was known keeps its labels, and waits for its approval if it did.
            let known = state.nodes.get(&peer.node);
            let enrolment = Enrolment {
                serial: peer.serial.clone(),
                joined_unix_s: issued_unix_s,
                life_s: peer.expires_unix_s.saturating_sub(issued_unix_s),
                grants: known.map(|known| known.grants.clone()).unwrap_or_default(),
                ..Enrolment::default()
            };
            Ok(vec![put(&peer.node, enrolment)])
        })?;
        Ok(if readmitted {
            Admission::Readmitted
        } else {
            Admission::Refused
        })
    }

    /// Whether [`Self::admit`] may let a node in. Changes nothing: for the TLS handshake, before which a
    /// connection has cost next to nothing.
    pub fn may_admit(&self, peer: &Peer, unix_s: u64) -> bool {
        self.read(|state| {
            let listed = |enrolment: &Enrolment| {
                !enrolment.revoked
                    && (enrolment.serial == peer.serial || is_pending(enrolment, &peer.serial))
            };
            state.nodes.get(&peer.node).is_some_and(listed) || readmits(state, peer, unix_s)
        })
    }

    /// The node has connected with its pending certificate: the previous one is refused from now on.
    /// `false` when there is no such certificate any more.
    fn promote(&self, node: &str, serial: &str) -> Result<bool, RegistryError> {
        self.change(|state| {
            let enrolment = state.nodes.get(node).filter(|enrolment| !enrolment.revoked);
            let Some(enrolment) = enrolment.filter(|enrolment| is_pending(enrolment, serial))
            else {
                return Ok(Vec::new());
            };
            let before = Step::Retire(Retired::now(node, &enrolment.serial, &enrolment.ca_sha256));
            let mut enrolment = enrolment.clone();
            enrolment.promote();
            Ok(vec![put(node, enrolment), before])
        })
    }

    /// Issues a node's next certificate: `next`, or the one that was issued for the same
    /// key before, whose answer was lost. `peer` has proven that it holds the key of its current or
    /// its pending certificate, which may have expired. It is durable when this returns.
    /// # Errors
    /// See [`RegistryError`].
    pub fn renew(
        &self,
        peer: &Peer,
        next: &Certificate,
        unix_s: u64,
    ) -> Result<Certificate, RegistryError> {
        // Also promotes, and readmits nodes after a restore.
        let unseen = |enrolment: Enrolment| enrolment.serial.is_empty() && !enrolment.revoked;
        if !self.find(&peer.node).is_some_and(unseen)
            && self.admit(peer, unix_s)? == Admission::Refused
        {
            return Err(RegistryError::NotKnown);
        }
        let mut issued = None;
        self.change(|state| {
            let gone = state.retired.iter().any(|one| one.serial == peer.serial);
            let enrolment = state.nodes.get(&peer.node);
            let enrolment = enrolment.filter(|enrolment| !enrolment.revoked && !gone);
            let mut enrolment = enrolment.cloned().ok_or(RegistryError::NotKnown)?;
            if enrolment.serial.is_empty() {
                // It was readmitted by its name, and this is its first certificate that we see.
                enrolment.serial.clone_from(&peer.serial);
                enrolment.joined_unix_s = peer.issued_unix_s;
                enrolment.life_s = peer.expires_unix_s.saturating_sub(peer.issued_unix_s);
            } else if enrolment.serial != peer.serial {
                return Err(RegistryError::NotKnown);
            }
            // A certificate of which half the validity has passed is not issued again.
            let given = |one: &Certificate| {
                one.ca_sha256 == next.ca_sha256 && one.other_ca_sha256 == next.other_ca_sha256
            };
            let same = |one: &&Certificate| {
                let half = one.issued_unix_s.saturating_add(one.life_s / 2);
                one.key_sha256 == next.key_sha256 && unix_s < half && given(one)
            };
            if let Some(same) = enrolment.pending.as_ref().filter(same) {
                issued = Some(same.clone());
                return Ok(Vec::new());
            }
            let last = match &enrolment.pending {
                Some(pending) => pending.clone(),
                None => enrolment.certificate(),
            };
            // A clock that was set back is ignored, and after a change of the CAs no node waits.
            let age = unix_s.checked_sub(last.issued_unix_s);
            let age = age.filter(|_| last.ca_sha256.is_empty() || given(&last));
            if let Some(age) = age.filter(|age| *age < RENEW_INTERVAL_S.min(next.life_s / 20)) {
                return Err(RegistryError::TooSoon(age));
            }
            issued = Some(next.clone());
            let unused = enrolment.pending.replace(next.clone());
            let unused = unused.map(|one| Retired::now(&peer.node, &one.serial, &one.ca_sha256));
            let steps = std::iter::once(put(&peer.node, enrolment));
            Ok(steps.chain(unused.map(Step::Retire)).collect())
        })?;
        issued.ok_or(RegistryError::NotKnown)
    }

    /// Whether a node of this name has joined and is not revoked: the only check when an
    /// external broker has verified the certificate.
    pub fn knows(&self, node: &str) -> bool {
        self.read(|state| {
            state
                .nodes
                .get(node)
                .is_some_and(|enrolment| !enrolment.revoked)
        })
    }

    /// Readmits a node by its name, see [`Grace`]: an external broker has verified its
    /// certificate. It may not have read the list of refused ones yet, so a name with a refused one is
    /// not readmitted, and `false` is returned. A readmission is durable when this returns.
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
                return Ok(Vec::new());
            }
            check_name_and_count(state, node)?;
            let enrolment = Enrolment {
                joined_unix_s: unix_s,
                ..Enrolment::default()
            };
            Ok(vec![put(node, enrolment)])
        })
    }

    /// Serial numbers, hex, of the certificates that are refused, with the time of their refusal.
    pub fn retired(&self) -> Vec<(String, u64)> {
        self.read(State::listed)
    }

    /// Notified when further certificates are refused.
    pub const fn refused(&self) -> &Notify {
        &self.refused
    }

    /// Whether a node of this name could join.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn check(&self, node: &str) -> Result<(), RegistryError> {
        self.read(|state| check_name_and_count(state, node))
    }

    /// Adds a node.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn add(&self, node: &str, enrolment: Enrolment) -> Result<(), RegistryError> {
        self.change(|state| {
            check_name_and_count(state, node)?;
            Ok(vec![put(node, enrolment)])
        })
        .map(|_| ())
    }

    /// Stores with which token a node has requested its certificate again, and which CAs it got
    /// this time.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn joined_with(
        &self,
        node: &str,
        token_id: &str,
        (ca, other): (String, String),
    ) -> Result<bool, RegistryError> {
        self.change(|state| {
            let Some(before) = state.nodes.get(node) else {
                return Ok(Vec::new());
            };
            let enrolment = Enrolment {
                token_id: token_id.to_owned(),
                ca_sha256: ca,
                other_ca_sha256: other,
                ..before.clone()
            };
            let changed = enrolment != *before;
            Ok(changed.then(|| put(node, enrolment)).into_iter().collect())
        })
    }

    /// Behind an external broker: the node reports that its session uses the certificate with this
    /// expiry. If that is its pending one, the previous one is refused from now on, and `true` is returned.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn lives_with(&self, node: &str, not_after: u64) -> Result<bool, RegistryError> {
        let Some(enrolment) = self.find(node) else {
            return Ok(false);
        };
        let end = |one: &Certificate| one.issued_unix_s.saturating_add(one.life_s);
        match &enrolment.pending {
            // Two with the same expiry cannot be distinguished.
            Some(next) if end(next) == not_after && enrolment.expires_unix_s() != not_after => {
                self.promote(node, &next.serial)
            }
            _ => Ok(false),
        }
    }

    /// Names of the nodes that are not revoked and have not connected with the present CAs.
    pub fn outdated(&self, given: &(String, String)) -> Vec<String> {
        self.read(|state| {
            let outdated = |(_, enrolment): &(&String, &Enrolment)| {
                !enrolment.revoked && !enrolment.has(given)
            };
            let outdated = state.nodes.iter().filter(outdated);
            outdated.map(|(name, _)| name.clone()).collect()
        })
    }

    /// Revokes every node that has no certificate of this CA, if there are exactly `expected` of them.
    /// Returns their names; `Err` with them when the number differs, and nothing has changed then.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn revoke_others(
        &self,
        ca_sha256: &str,
        expected: usize,
    ) -> Result<Result<Vec<String>, Vec<String>>, RegistryError> {
        let (mut others, mut fits) = (Vec::new(), false);
        self.change(|state| {
            let other =
                |enrolment: &Enrolment| !enrolment.revoked && enrolment.ca_sha256 != ca_sha256;
            let names = state.nodes.iter().filter(|(_, enrolment)| other(enrolment));
            others = names.map(|(name, _)| name.clone()).collect();
            fits = others.len() == expected;
            if !fits {
                return Ok(Vec::new());
            }
            let of = |name: &String| Some((name.clone(), state.nodes.get(name)?));
            let others = others.iter().filter_map(of);
            Ok(others
                .flat_map(|(name, enrolment)| revoke(&name, enrolment))
                .collect())
        })?;
        Ok(if fits { Ok(others) } else { Err(others) })
    }

    /// Deletes a node. `false` when there is none of this name. During a [`Grace`] an unknown
    /// name is stored, so that it is not readmitted with an earlier certificate.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn delete(&self, node: &str, unix_s: u64) -> Result<bool, RegistryError> {
        self.change(|state| {
            let grace = state.grace_at(unix_s).is_some();
            let mut steps = match state.nodes.get(node) {
                Some(enrolment) => {
                    let remove = std::iter::once(Step::Remove(node.to_owned()));
                    remove.chain(enrolment.retire(node)).collect()
                }
                None if grace && is_label(node) => Vec::new(),
                None => return Ok(Vec::new()),
            };
            if grace {
                steps.push(Step::Deleted(node.to_owned(), unix_s));
                if state.deleted.len() >= NODES_MAX && !state.deleted.contains_key(node) {
                    // Without the list, deleted nodes could be readmitted.
                    steps.push(Step::EndGrace);
                }
            }
            Ok(steps)
        })
    }

    /// Changes what a node is granted. `false` when there is none of this name.
    ///
    /// # Errors
    /// See [`RegistryError`]; [`RegistryError::Grants`] when what comes of it is wrong.
    pub fn grant(
        &self,
        node: &str,
        change: impl FnOnce(&mut Grants),
    ) -> Result<bool, RegistryError> {
        let mut found = false;
        self.change(|state| {
            let Some(before) = state.nodes.get(node) else {
                return Ok(Vec::new());
            };
            found = true;
            let mut enrolment = before.clone();
            change(&mut enrolment.grants);
            enrolment.grants.check().map_err(RegistryError::Grants)?;
            let changed = enrolment != *before;
            Ok(changed.then(|| put(node, enrolment)).into_iter().collect())
        })?;
        Ok(found)
    }

    /// Refuses a node from now on. `false` when there is none of this name. During a [`Grace`] an unknown
    /// name is listed as revoked: its node may have joined after the backup.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn revoke(&self, node: &str, unix_s: u64) -> Result<bool, RegistryError> {
        self.change(|state| {
            if let Some(enrolment) = state.nodes.get(node) {
                return Ok(revoke(node, enrolment));
            }
            if state.grace_at(unix_s).is_none() || !is_label(node) {
                return Ok(Vec::new());
            }
            check_name_and_count(state, node)?;
            let enrolment = Enrolment {
                revoked: true,
                joined_unix_s: unix_s,
                ..Enrolment::default()
            };
            Ok(vec![put(node, enrolment)])
        })
    }

    /// A CA is not accepted any more: its certificates need not be on the list of refused ones.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn drop_ca(&self, ca_sha256: &str) -> Result<(), RegistryError> {
        let steps = vec![Step::ForgetCa(ca_sha256.to_owned())];
        self.change(|_| Ok(steps)).map(|_| ())
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.lock().state)
    }

    /// Performs the steps of `plan`, durably. `false` when there are none.
    fn change(
        &self,
        plan: impl FnOnce(&State) -> Result<Vec<Step>, RegistryError>,
    ) -> Result<bool, RegistryError> {
        let mut kept = self.lock();
        let steps = plan(&kept.state)?;
        let changes = !steps.is_empty();
        let refuses = steps.iter().any(|step| matches!(step, Step::Retire(_)));
        if changes {
            kept.make(steps)?;
        }
        if refuses {
            self.refused.notify_one();
        }
        Ok(changes)
    }
}

/// Serial numbers of the certificates that are refused, read beside a running server.
///
/// # Errors
/// Those of the file system; a damaged file is one, too.
pub fn retired(data: &Path) -> io::Result<Vec<(String, u64)>> {
    Ok(load(&data.join(NODES))?.listed())
}

/// Whether a node that is not listed with this certificate comes back after a restore, see [`Grace`].
fn readmits(state: &State, peer: &Peer, unix_s: u64) -> bool {
    let issued = peer.issued_unix_s;
    let grace = state.grace_at(unix_s);
    let deleted = state.deleted.get(&peer.node);
    // Revoked stays revoked, and of two certificates the newer one counts.
    let newer = |enrolment: &Enrolment| !enrolment.revoked && enrolment.joined_unix_s < issued;
    grace.is_some_and(|grace| issued >= grace.issued_from_unix_s)
        && deleted.is_none_or(|deleted| issued > *deleted)
        && state.nodes.get(&peer.node).is_none_or(newer)
}

fn is_pending(enrolment: &Enrolment, serial: &str) -> bool {
    enrolment
        .pending
        .as_ref()
        .is_some_and(|next| next.serial == serial)
}

fn put(node: &str, enrolment: Enrolment) -> Step {
    Step::Put(node.to_owned(), Box::new(enrolment))
}

fn revoke(node: &str, enrolment: &Enrolment) -> Vec<Step> {
    let revoked = Enrolment {
        revoked: true,
        ..enrolment.clone()
    };
    let put = std::iter::once(put(node, revoked));
    put.chain(enrolment.retire(node)).collect()
}

fn check_name_and_count(state: &State, node: &str) -> Result<(), RegistryError> {
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
mod tests;
