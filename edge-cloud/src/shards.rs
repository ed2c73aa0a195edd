//! Shards: the name of a node determines one of 256 parts of the fleet. They are a constant of the
//! wire, because the topics upwards begin with them. The owner of a shard sends to its nodes in an
//! epoch, and a node refuses a lower one than it has accepted. One edge-cloud owns all shards from its
//! start to its end, so it has one epoch, that of [`crate::identity::registry`] (docs/adr/0015).

use std::fmt;

use edge_proto::hash::sha256;

/// A part of the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shard(pub u8);

impl Shard {
    /// The shard of a node: the first byte of its name's SHA-256.
    #[must_use]
    pub fn of(node: &str) -> Self {
        let [first, ..] = sha256(node.as_bytes()).0;
        Self(first)
    }
}

/// As in topics: two hex digits.
impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Golden: an ACL at a broker and the nodes use the same shards.
    #[test]
    fn shards_never_change() {
        let shards = ["gate-7", "gate-8"].map(|node| Shard::of(node).to_string());
        assert_eq!(shards, ["4f", "ea"]);
    }
}
