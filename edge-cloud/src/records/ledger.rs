//! Position of every stream of a node: the next number that is not accounted for, the count of delivered
//! records, and of lost ones by reason. No IO: a [`Sink`](super::sink::Sink) makes it durable together with
//! the records.
//!
//! The ledger balances by construction, and [`Outbox::balances`] checks it: of the numbers before
//! `next` each is either delivered or lost for one reason.
//!
//! Bound: [`CLASSES_MAX`] streams of a node, [`OUTBOXES_MAX`] outboxes of a stream.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use edge_proto::limits::CLASSES_MAX;
use serde::{Deserialize, Serialize};

pub use super::loss::{Loss, Lost, Totals};
pub use super::plan::{Batch, Plan};
pub use super::stream::{
    Incarnation, Item, OUTBOXES_MAX, Outbox, Stream, class_name, class_of, classes,
};

/// Counters of all streams of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// By class, below `CLASSES_MAX`.
    pub streams: BTreeMap<u8, Stream>,
}

impl Ledger {
    /// Takes the positions of another copy of the same ledger where they are higher. Numbers only ever grow.
    pub fn merge(&mut self, other: &BTreeMap<u8, Stream>) {
        let classes = other
            .iter()
            .filter(|(class, _)| usize::from(**class) < CLASSES_MAX);
        for (class, stream) in classes {
            let known = self.streams.entry(*class).or_default();
            if known.totals().numbered < stream.totals().numbered || known.outboxes.is_empty() {
                known.clone_from(stream);
            }
        }
    }

    /// Plan for the entries of `batches`, all of one outbox and class. The
    /// batches are a prefix of what is given: one that does not follow ends it.
    #[must_use]
    pub fn plan(&self, batches: &[Batch]) -> Plan {
        let (incarnation, class) = batches.first().map_or((Incarnation([0; 8]), 0), |batch| {
            (batch.incarnation, batch.class)
        });
        let stream = self.streams.get(&class);
        let known = stream.and_then(|stream| stream.find(incarnation));
        let mut outbox = known.cloned().unwrap_or_else(|| Outbox::new(incarnation));
        let mut plan = Plan {
            incarnation,
            class,
            first: outbox.next,
            next: outbox.next,
            duplicates: 0,
            items: Vec::new(),
            taken: 0,
            is_new: known.is_none(),
            follows: stream
                .filter(|_| known.is_none())
                .and_then(|stream| stream.outboxes.first().cloned()),
        };
        for batch in batches {
            if !plan.take(&mut outbox, batch) {
                break;
            }
            plan.taken += 1;
        }
        plan.next = outbox.next;
        plan
    }

    /// Updates the ledger after the sink has stored the plan.
    pub fn apply(&mut self, plan: &Plan) {
        let outbox = self
            .streams
            .entry(plan.class)
            .or_default()
            .outbox_mut(plan.incarnation);
        for item in &plan.items {
            outbox.apply(item);
        }
        outbox.duplicates = outbox.duplicates.saturating_add(plan.duplicates);
    }
}
