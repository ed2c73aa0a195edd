//! Nodes behind an external broker that were not asked for their state since the broker came up.
//!
//! Bound: each node once. What a name costs does not depend on how many others there are.

use std::collections::BTreeSet;
use std::sync::Arc;

/// See the module.
#[derive(Default)]
pub(super) struct Unprobed {
    /// Those that have a desired set, which are asked first: the others would be asked again when they
    /// get theirs.
    placed: BTreeSet<Arc<str>>,
    unplaced: BTreeSet<Arc<str>>,
}

impl Unprobed {
    /// A node has no connection any more, or not yet, or has got its first set without one.
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

    /// The next one to ask; one without a desired set only if `unplaced`.
    pub(super) fn pop(&mut self, unplaced: bool) -> Option<Arc<str>> {
        let next = self.placed.pop_first();
        match unplaced {
            true => next.or_else(|| self.unplaced.pop_first()),
            false => next,
        }
    }
}
