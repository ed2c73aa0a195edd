//! Reads the nodes' ledgers, after the start and concurrently with all other work: a medium that takes a
//! second for them, or ten thousand nodes, must not delay the links. A node's session opens when
//! its ledger was read, or could not be: before, it could not distinguish a known record from one of
//! an outbox that was restored to an earlier state. A node that waits for its ledger is read next.
//!
//! Bound: [`READERS`] reads at once, and two places in the queue for each node.

use std::sync::Arc;

use super::sink::blocking;
use super::{RecordSessions, Records, State, log_cut};

/// Ledgers that are read at the same time.
pub const READERS: usize = 8;

/// State of a node's ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Reading {
    /// Not requested.
    #[default]
    Unknown,
    /// Waits to be read; contains whether its node waits for it.
    Wanted(bool),
    /// It is being read.
    Running,
    /// It was read, or could not be: then a writer retries, and no record is accepted before.
    Read,
}

impl Records {
    /// Whether a node's ledger is known; if not, it is read, and [`RecordSessions::ledger_read`] is called.
    pub(super) fn has_ledger(&self, state: &mut State, node: &str) -> bool {
        let known = state.nodes.entry(node.to_owned()).or_default();
        if known.reading == Reading::Unknown {
            known.reading = Reading::Wanted(false);
            state.unread.push_back(node.to_owned());
            self.unread.notify_one();
        }
        known.reading == Reading::Read
    }

    /// A node waits for its ledger.
    pub(crate) fn prioritize(&self, node: &str) {
        let mut state = self.lock();
        if let Some(known) = state.nodes.get_mut(node)
            && known.reading == Reading::Wanted(false)
        {
            known.reading = Reading::Wanted(true);
            state.unread.push_front(node.to_owned());
        }
    }

    /// Reads one node's ledger after the other, for ever.
    pub(super) async fn read_ledgers(&self, sessions: &impl RecordSessions) {
        loop {
            let node = self.next_unread().await;
            let Some(sink) = &self.sink else {
                return;
            };
            let (loading, name) = (Arc::clone(sink), node.clone());
            let found = blocking(move || loading.load(&name)).await;
            {
                let mut state = self.lock();
                match (state.nodes.get_mut(&node), found) {
                    (Some(known), Ok(found)) => {
                        known.ledger = Some(log_cut(&node, found));
                        known.reading = Reading::Read;
                    }
                    (Some(known), Err(error)) => {
                        log::error!("records_not_read node={node} error={error}");
                        known.reading = Reading::Read;
                    }
                    // It has left meanwhile.
                    (None, _) => sink.drop_state(&node),
                }
                self.tidy(&mut state, &node);
            }
            sessions.ledger_read(&node);
        }
    }

    async fn next_unread(&self) -> String {
        loop {
            {
                let mut state = self.lock();
                while let Some(node) = state.unread.pop_front() {
                    let known = state.nodes.get_mut(&node);
                    let known = known.filter(|known| matches!(known.reading, Reading::Wanted(_)));
                    if let Some(known) = known {
                        known.reading = Reading::Running;
                        if !state.unread.is_empty() {
                            self.unread.notify_one();
                        }
                        return node;
                    }
                }
            }
            self.unread.notified().await;
        }
    }
}
