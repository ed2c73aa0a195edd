//! Deadlines of all nodes' timers. A change of one node's deadline costs the logarithm of the number
//! of nodes, and the next deadline of all is the first element.
//!
//! Bound: one entry for each node.

use std::collections::BTreeSet;
use std::sync::Arc;

/// Deadlines of all nodes, milliseconds of [`super::Sessions`]'s clock.
#[derive(Default)]
pub(super) struct Deadlines {
    order: BTreeSet<(u64, Arc<str>)>,
}

impl Deadlines {
    /// Sets a node's deadline. `scheduled` is the node's own copy of its position in the order, so
    /// that nothing has to be searched.
    pub(super) fn set(
        &mut self,
        node: &Arc<str>,
        scheduled: &mut Option<u64>,
        deadline: Option<u64>,
    ) {
        if *scheduled == deadline {
            return;
        }
        if let Some(at) = scheduled.take() {
            self.order.remove(&(at, Arc::clone(node)));
        }
        if let Some(at) = deadline {
            self.order.insert((at, Arc::clone(node)));
            *scheduled = Some(at);
        }
    }

    /// The next deadline of all.
    pub(super) fn next(&self) -> Option<u64> {
        self.order.first().map(|(at, _)| *at)
    }

    /// Up to `count` nodes whose deadline has passed, the longest overdue first. They stay in the order
    /// until their deadline is set again.
    pub(super) fn due(&self, now: u64, count: usize) -> Vec<Arc<str>> {
        let due = self.order.iter().take_while(|(at, _)| *at <= now);
        due.take(count).map(|(_, node)| Arc::clone(node)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the order contains each node once, at its last deadline. Method: random moves of a few nodes,
    /// compared with a plain table.
    #[test]
    fn each_node_stands_once_and_at_its_last_deadline() {
        let names: Vec<Arc<str>> = (0..7).map(|n| format!("gate-{n}").into()).collect();
        let mut table = vec![None; names.len()];
        let mut scheduled = vec![None; names.len()];
        let mut deadlines = Deadlines::default();
        let mut random = 1_u64;
        for _ in 0..10_000 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let node = (random >> 33) as usize % names.len();
            table[node] = Some(random >> 40 & 0xff).filter(|at| *at != 0);
            deadlines.set(&names[node], &mut scheduled[node], table[node]);
            assert_eq!(scheduled, table);
            assert_eq!(deadlines.next(), table.iter().flatten().min().copied());
            assert_eq!(deadlines.order.len(), table.iter().flatten().count());
        }
        let due = deadlines.due(0x80, usize::MAX);
        let late = table.iter().flatten().filter(|at| **at <= 0x80);
        assert_eq!(due.len(), late.count());
        assert!(deadlines.due(0x80, 1).len() <= 1);
    }
}
