//! Content of the registry, and its file: a [`Journal`] with a line for the steps of each change. So a
//! change costs its own bytes, however many nodes there are, and ten thousand that are readmitted after a
//! restore do not each rewrite the file.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Enrolment, Grace};
use crate::identity::ca::{NODE_VALIDITY_S, damaged};
use crate::journal::{self, Journal};

/// Certificates that are refused before they expire. The oldest ones are dropped, which matters only
/// behind an external broker, and there only with more than this many within a certificate's validity.
pub const RETIRED_MAX: usize = 50_000;
/// Hex digits of a CA's SHA-256 that identify it.
const CA_DIGITS: usize = 16;

/// A certificate that was revoked, or whose node was deleted. An external broker cannot read
/// the registry, so it gets a list of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Retired {
    /// Empty when it is not known.
    pub(super) serial: String,
    unix_s: u64,
    /// Name of its node; empty when that was not stored.
    #[serde(default)]
    pub(super) node: String,
    /// Start of the SHA-256 of its CA; empty when that was not stored.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    ca: String,
}

impl Retired {
    pub(super) fn now(node: &str, serial: &str, ca_sha256: &str) -> Self {
        Self {
            serial: serial.to_owned(),
            unix_s: crate::clock::unix_s(),
            node: node.to_owned(),
            ca: start(ca_sha256).to_owned(),
        }
    }

    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.serial == other.serial && (!self.serial.is_empty() || self.node == other.node)
    }

    fn listed(&self) -> Option<(String, u64)> {
        (!self.serial.is_empty()).then(|| (self.serial.clone(), self.unix_s))
    }
}

fn start(ca_sha256: &str) -> &str {
    ca_sha256.get(..CA_DIGITS).unwrap_or(ca_sha256)
}

/// A step of a change; either all steps of a change are performed or none.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Step {
    /// Sets a node.
    Put(String, Box<Enrolment>),
    /// Removes a node.
    Remove(String),
    /// Refuses a certificate from now on.
    Retire(Retired),
    /// The CA with this SHA-256 is not accepted any more, so its refused certificates need
    /// not be listed.
    ForgetCa(String),
    /// Stores that the node was deleted at this time, seconds since 1970.
    Deleted(String, u64),
    /// No node comes back any more.
    EndGrace,
}

/// Content of the registry.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) epoch: u64,
    pub(crate) nodes: BTreeMap<String, Enrolment>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) grace: Option<Grace>,
    /// When nodes were deleted during the grace: without this they would be readmitted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) deleted: BTreeMap<String, u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) retired: Vec<Retired>,
}

impl State {
    /// Reads the bytes of the file.
    ///
    /// # Errors
    /// They are damaged.
    pub(crate) fn parse(bytes: &[u8]) -> serde_json::Result<Self> {
        journal::parse(bytes, Self::make)
    }

    pub(crate) fn grace_at(&self, unix_s: u64) -> Option<Grace> {
        self.grace.filter(|grace| unix_s < grace.until_unix_s)
    }

    /// Serial numbers, hex, of the certificates that are refused, with the time of their refusal.
    pub(super) fn listed(&self) -> Vec<(String, u64)> {
        self.retired.iter().filter_map(Retired::listed).collect()
    }

    fn make(&mut self, step: Step) {
        match step {
            Step::Put(name, enrolment) => drop(self.nodes.insert(name, *enrolment)),
            Step::Remove(name) => drop(self.nodes.remove(&name)),
            Step::Retire(retired) => self.retire(retired),
            Step::ForgetCa(ca_sha256) => {
                self.retired.retain(|one| one.ca != start(&ca_sha256));
            }
            Step::Deleted(name, unix_s) => drop(self.deleted.insert(name, unix_s)),
            Step::EndGrace => {
                self.grace = None;
                self.deleted.clear();
            }
        }
    }

    fn retire(&mut self, retired: Retired) {
        let known = |one: &Retired| match retired.serial.as_str() {
            // A node that was readmitted by its name has no known serial number.
            "" => one.node == retired.node,
            serial => one.serial == serial,
        };
        if let Some(one) = self.retired.iter_mut().find(|one| known(one)) {
            one.node = retired.node;
            return;
        }
        self.retired
            .retain(|one| one.unix_s.saturating_add(NODE_VALIDITY_S) > retired.unix_s);
        let over = (self.retired.len() + 1).saturating_sub(RETIRED_MAX);
        self.retired.drain(..over);
        self.retired.push(retired);
    }
}

/// The state and its file.
pub(super) struct Kept {
    pub(super) state: State,
    journal: Journal,
}

impl Kept {
    /// Writes the whole file.
    pub(super) fn new(path: &Path, state: State) -> io::Result<Self> {
        let mut journal = Journal::new(path.to_owned());
        journal.write(&state)?;
        Ok(Self { state, journal })
    }

    /// Changes memory only after the medium.
    pub(super) fn make(&mut self, steps: Vec<Step>) -> io::Result<()> {
        if self.journal.append(&steps)? {
            steps.into_iter().for_each(|step| self.state.make(step));
        } else {
            let mut next = self.state.clone();
            steps.into_iter().for_each(|step| next.make(step));
            self.journal.write(&next)?;
            self.state = next;
        }
        Ok(())
    }
}

/// Reads the file.
///
/// # Errors
/// Those of the file system; a damaged file is one, too.
pub(super) fn load(path: &Path) -> io::Result<State> {
    match std::fs::read(path) {
        Ok(bytes) => State::parse(&bytes).map_err(|error| damaged(path, &error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(State::default()),
        Err(error) => Err(error),
    }
}
