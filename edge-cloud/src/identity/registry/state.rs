//! What the registry holds, and its file: one JSON value with all of it, then a line with the steps
//! of each change since. So a change costs its own bytes, however many nodes there are, and ten
//! thousand that come back after a restore do not each rewrite the file.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Grace, NodeRecord};
use crate::durable::replace;
use crate::identity::ca::{NODE_LIFE_S, damaged};

/// Certificates that are refused before they expire. The oldest ones make room, which matters only
/// behind an external broker, and there only with more than this many in a certificate's life.
pub const RETIRED_MAX: usize = 50_000;
/// Bytes of changes after which the file is rewritten whole, if that is less.
pub const CHANGES_BYTES: u64 = 1024 * 1024;
/// Hex digits of a CA's SHA-256 that tell it from the others.
const CA_DIGITS: usize = 16;

/// A certificate that was revoked, or whose node was deleted: an external broker cannot look into
/// the registry, so it is given a list of what is no longer valid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Retired {
    /// Empty when it was not seen.
    pub(super) serial: String,
    unix_s: u64,
    /// Whose it was; empty when that was not noted.
    #[serde(default)]
    pub(super) node: String,
    /// Start of the SHA-256 of its CA; empty when that was not noted.
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

/// A step of a change; all steps of one change are made or none.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Step {
    /// The node is this from now on.
    Put(String, Box<NodeRecord>),
    /// The node is not known any more.
    Remove(String),
    /// The certificate is refused from now on.
    Retire(Retired),
    /// The CA with this SHA-256 is accepted no more, so nobody has to know which of its
    /// certificates are refused.
    ForgetCa(String),
    /// The node was deleted at this time, seconds since 1970.
    Deleted(String, u64),
    /// No node comes back any more.
    EndGrace,
}

/// All that the registry holds.
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
    /// Reads the bytes of the file. What a power cut left of a last line was promised to nobody: a part
    /// of it, with zeros where blocks were not written yet.
    ///
    /// # Errors
    /// They are damaged.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let mut whole = serde_json::Deserializer::from_slice(bytes).into_iter();
        let mut state: Self = match whole.next() {
            Some(state) => state?,
            None => return serde_json::from_slice(bytes),
        };
        let changes = bytes.get(whole.byte_offset()..).unwrap_or_default();
        let mut lines = changes.split_inclusive(|byte| *byte == b'\n').peekable();
        while let Some(line) = lines.next() {
            let is_torn = !line.ends_with(b"\n") || line.contains(&0);
            if is_torn && lines.peek().is_none() {
                break;
            }
            if !line.trim_ascii().is_empty() {
                let steps: Vec<Step> = serde_json::from_slice(line)?;
                state.make(steps);
            }
        }
        Ok(state)
    }

    /// Bytes of a file without changes.
    ///
    /// # Errors
    /// None that is known.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut bytes = serde_json::to_vec(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    pub(crate) fn grace_at(&self, unix_s: u64) -> Option<Grace> {
        self.grace.filter(|grace| unix_s < grace.until_unix_s)
    }

    /// Serial numbers, hex, of the certificates that are refused, with when that began.
    pub(super) fn listed(&self) -> Vec<(String, u64)> {
        self.retired.iter().filter_map(Retired::listed).collect()
    }

    fn make(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Put(name, record) => drop(self.nodes.insert(name, *record)),
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
    }

    fn retire(&mut self, retired: Retired) {
        let known = |one: &Retired| match retired.serial.as_str() {
            // A node that was readmitted by its name has none that we know.
            "" => one.node == retired.node,
            serial => one.serial == serial,
        };
        if let Some(one) = self.retired.iter_mut().find(|one| known(one)) {
            one.node = retired.node;
            return;
        }
        self.retired
            .retain(|one| one.unix_s.saturating_add(NODE_LIFE_S) > retired.unix_s);
        let over = (self.retired.len() + 1).saturating_sub(RETIRED_MAX);
        self.retired.drain(..over);
        self.retired.push(retired);
    }
}

/// The state, and how its file was left.
pub(super) struct Kept {
    pub(super) state: State,
    /// Bytes of the file.
    bytes: u64,
    /// Bytes of it before the changes.
    whole: u64,
}

impl Kept {
    /// Writes the file anew.
    pub(super) fn new(path: &Path, state: State) -> io::Result<Self> {
        let bytes = state.to_bytes()?;
        replace(path, &bytes)?;
        let whole = bytes.len() as u64;
        Ok(Self {
            state,
            bytes: whole,
            whole,
        })
    }

    /// Changes memory only after the disk.
    pub(super) fn make(&mut self, path: &Path, steps: Vec<Step>) -> io::Result<()> {
        let mut line = serde_json::to_vec(&steps)?;
        line.push(b'\n');
        let bytes = self.bytes.saturating_add(line.len() as u64);
        let is_long = bytes - self.whole > self.whole.max(CHANGES_BYTES);
        // A file that cannot be added to, or is not as it was left, is replaced.
        if is_long || append(path, self.bytes, &line).is_err() {
            let mut next = self.state.clone();
            next.make(steps);
            *self = Self::new(path, next)?;
        } else {
            self.bytes = bytes;
            self.state.make(steps);
        }
        Ok(())
    }
}

/// Adds a line to a file of `bytes`, durably. A change that was refused may still be in the file after a
/// power cut, because its removal is not synced.
fn append(path: &Path, bytes: u64, line: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).open(path)?;
    if file.metadata()?.len() != bytes {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let added = file.write_all(line).and_then(|()| file.sync_data());
    if added.is_err() {
        // Should this fail, too, the file is longer than we know, and is replaced next time.
        drop(file.set_len(bytes));
    }
    added
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
