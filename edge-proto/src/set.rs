//! The receiver's half of a replicated set: the hash of the object under each key.

use sha2::{Digest as _, Sha256};

use crate::hash::{Hash16, Hash32};
use crate::key::Key;
use crate::limits::SET_OBJECTS_MAX;
use crate::sorted::SortedMap;

/// Why an object is in a set only as a stub: key, hash and this reason. Membership never depends
/// on admission, so the roots of both ends become equal nevertheless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum Reason {
    /// The payload is over its kind's cap.
    TooLarge,
    /// The node has no memory or flash for it.
    Full,
    /// A field that must be understood is unknown to this agent.
    Field(u32),
    /// The payload cannot be decoded as an object of its kind.
    Malformed,
    /// The signature is missing or wrong.
    Signature,
    /// The kind is not used on this node.
    Kind,
    /// The key's form does not match its kind.
    Key,
}

impl core::fmt::Display for Reason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::TooLarge => f.write_str("over the cap of its kind"),
            Self::Full => f.write_str("no space on the node"),
            Self::Field(number) => {
                write!(f, "field {number}: not supported by this agent, upgrade it")
            }
            Self::Malformed => f.write_str("malformed"),
            Self::Signature => f.write_str("signature missing or wrong"),
            Self::Kind => f.write_str("kind not supported on this node"),
            Self::Key => f.write_str("key does not fit its kind"),
        }
    }
}

/// Hash and state of one object at the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Hash of the payload bytes.
    pub hash: Hash16,
    /// Why the object is refused, if it is.
    pub refused: Option<Reason>,
}

/// A set of at most [`SET_OBJECTS_MAX`] objects, by key.
#[derive(Clone, Debug, Default)]
pub struct ReplicaSet {
    members: SortedMap<Key, Member>,
}

impl ReplicaSet {
    /// Starts without members.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            members: SortedMap::new(),
        }
    }

    /// Root over all members. Linear in their number: about 35 KB of hashing for a full set.
    #[must_use]
    pub fn root(&self) -> Hash16 {
        root(self.iter())
    }

    /// Keys and hashes in ascending order of keys.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, Hash16)> {
        self.members.iter().map(|(key, member)| (key, member.hash))
    }

    /// Stubs in ascending order of keys.
    pub fn refused(&self) -> impl Iterator<Item = (&Key, Reason)> {
        self.members
            .iter()
            .filter_map(|(key, member)| Some((key, member.refused?)))
    }

    /// The member under `key`.
    #[must_use]
    pub fn member(&self, key: &Key) -> Option<&Member> {
        self.members.get(key)
    }

    /// Number of members, stubs included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there is no member.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Sets or removes a member. Returns false, and changes nothing, when the set is full.
    pub fn change(&mut self, key: Key, member: Option<Member>) -> bool {
        match member {
            None => {
                self.members.remove(&key);
            }
            Some(member) => {
                if self.members.len() >= SET_OBJECTS_MAX && !self.members.contains_key(&key) {
                    return false;
                }
                self.members.insert(key, member);
            }
        }
        true
    }

    /// Makes the member under `key` a stub, if it exists.
    pub(crate) fn refuse(&mut self, key: &Key, reason: Reason) {
        if let Some(member) = self.members.get_mut(key) {
            member.refused = Some(reason);
        }
    }
}

/// Root of a set: the first 16 bytes of the SHA-256 over each key's canonical bytes and hash, in
/// ascending order of keys.
pub fn root<'a>(sorted: impl Iterator<Item = (&'a Key, Hash16)>) -> Hash16 {
    let mut sha256 = Sha256::new();
    for (key, hash) in sorted {
        sha256.update(key.to_bytes());
        sha256.update(hash.0);
    }
    Hash32(sha256.finalize().into()).short()
}
