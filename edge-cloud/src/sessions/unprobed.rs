//! Nodes behind an external broker that were not probed since the broker came up.
//!
//! Bound: each node once. The cost of a name does not depend on the number of others.

use std::collections::BTreeSet;
use std::sync::Arc;

/// See the description of the module.
#[derive(Default)]
pub(super) struct Unprobed {
    /// Those with a desired set, which are probed first: the others would be probed again when they
    /// get theirs.
    placed: BTreeSet<Arc<str>>,
    unplaced: BTreeSet<Arc<str>>,
}

impl Unprobed {
    /// A node lost its connection, has none yet, or got its first set without one.
    pub(super) fn insert(&mut self, name: &Arc<str>, is_placed: bool) {
        self.remove(name);
        match is_placed {
            true => self.placed.insert(Arc::clone(name)),
            false => self.unplaced.insert(Arc::clone(name)),
        };
    }

    /// A node has a connection, or has left.
    pub(super) fn remove(&mut self, name: &str) {
        if !self.placed.remove(name) {
            self.unplaced.remove(name);
        }
    }

    /// The next one to probe; one without a desired set only if `unplaced`.
    pub(super) fn pop(&mut self, unplaced: bool) -> Option<Arc<str>> {
        let next = self.placed.pop_first();
        match unplaced {
            true => next.or_else(|| self.unplaced.pop_first()),
            false => next,
        }
    }
}
