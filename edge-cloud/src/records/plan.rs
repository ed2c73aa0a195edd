//! Plans: the entries of a frame that the sink lacks, without holes.

use edge_proto::frame::Entry;

use super::loss::Loss;
use super::stream::{Incarnation, Item, Outbox, class_name};

/// Records as output by a node's session.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Id of their outbox.
    pub incarnation: Incarnation,
    /// Below `CLASSES_MAX`.
    pub class: u8,
    /// Number of the first entry.
    pub first: u64,
    /// Lowest number that the node still accounts for.
    pub held: u64,
    /// The entries, in order.
    pub entries: Vec<Entry>,
}

/// Items for the sink, and their effect on the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Id of the outbox.
    pub incarnation: Incarnation,
    /// Below `CLASSES_MAX`.
    pub class: u8,
    /// Number of the first item.
    pub first: u64,
    /// Lowest number that is not accounted for afterwards.
    pub next: u64,
    /// Records that the sink has already.
    pub duplicates: u64,
    /// What the sink lacks, without holes.
    pub items: Vec<Item>,
    /// Number of batches that this covers.
    pub taken: usize,
    /// The outbox was not known.
    pub is_new: bool,
    /// The outbox that this one replaces.
    pub follows: Option<Outbox>,
}

impl Plan {
    /// Returns whether the batch follows on.
    pub(super) fn take(&mut self, outbox: &mut Outbox, batch: &Batch) -> bool {
        let held = batch.held.min(batch.first);
        if held > outbox.next {
            let (first, count) = (outbox.next, held - outbox.next);
            let loss = Loss::Forgotten;
            self.push(outbox, Item::Lost { first, count, loss });
        }
        let mut at = batch.first;
        if at > outbox.next {
            return false;
        }
        for entry in &batch.entries {
            match entry {
                Entry::Record { unix_ms, bytes } => {
                    if at < outbox.next {
                        self.duplicates += 1;
                    } else if at == u64::MAX {
                        // No outbox reaches this number, and there is none after it.
                        return false;
                    } else {
                        let item = Item::Record {
                            seq: at,
                            unix_ms: *unix_ms,
                            bytes: bytes.clone(),
                        };
                        self.push(outbox, item);
                    }
                    at = at.saturating_add(1);
                }
                Entry::Gap { count, reason } => {
                    let end = at.saturating_add(*count);
                    // A part of it may have arrived before the node dropped it.
                    let (first, count) = (outbox.next, end.saturating_sub(outbox.next));
                    if count > 0 {
                        let loss = Loss::from(*reason);
                        self.push(outbox, Item::Lost { first, count, loss });
                    }
                    at = end;
                }
            }
        }
        true
    }

    fn push(&mut self, outbox: &mut Outbox, item: Item) {
        outbox.apply(&item);
        self.items.push(item);
    }

    /// Whether it has only numbers that the ledger already contains.
    #[must_use]
    pub const fn is_known(&self) -> bool {
        self.items.is_empty() && !self.is_new
    }

    /// Identifies these records for a sink that keeps no ledger: equal keys mean equal records.
    #[must_use]
    pub fn key(&self, node: &str) -> String {
        let (class, last) = (class_name(self.class), self.next.saturating_sub(1));
        format!("{node}/{}/{class}/{}-{last}", self.incarnation, self.first)
    }
}
