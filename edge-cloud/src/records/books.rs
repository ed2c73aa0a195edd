//! Reading of the nodes' books, after the start and beside everything else: a medium that takes a
//! second for them, or ten thousand nodes, must not hold up the links. A node's session opens once
//! its books are read, or could not be: before, it could not tell a record that is known from one of
//! an outbox that went back in time. A node that waits for it is read next.
//!
//! Bound: [`READERS`] reads at once, and two places in the line for each node.

use std::sync::Arc;

use super::sink::blocking;
use super::{RecordSessions, Records, State, took_over};

/// Nodes whose books are read at once.
pub const READERS: usize = 8;

/// How far a node's books are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Books {
    /// Nobody has asked for them.
    #[default]
    Unknown,
    /// They wait to be read; whether their node waits for it.
    Wanted(bool),
    /// They are being read.
    Reading,
    /// They were read, or could not be: then a writer tries again, and nothing is taken before.
    Read,
}

impl Records {
    /// Whether a node's books are known; if not, they will be, and [`RecordSessions::books_read`] is told.
    pub(super) fn has_books(&self, state: &mut State, node: &str) -> bool {
        let known = state.nodes.entry(node.to_owned()).or_default();
        if known.books == Books::Unknown {
            known.books = Books::Wanted(false);
            state.unread.push_back(node.to_owned());
            self.unread.notify_one();
        }
        known.books == Books::Read
    }

    /// A node waits for its books.
    pub(crate) fn hurry(&self, node: &str) {
        let mut state = self.lock();
        if let Some(known) = state.nodes.get_mut(node)
            && known.books == Books::Wanted(false)
        {
            known.books = Books::Wanted(true);
            state.unread.push_front(node.to_owned());
        }
    }

    /// Reads one node's books after the other, for ever.
    pub(super) async fn read_books(&self, sessions: &impl RecordSessions) {
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
                        known.account = Some(took_over(&node, found));
                        known.books = Books::Read;
                    }
                    (Some(known), Err(error)) => {
                        log::error!("records_not_read node={node} error={error}");
                        known.books = Books::Read;
                    }
                    // It has left meanwhile.
                    (None, _) => sink.forget(&node),
                }
                self.tidy(&mut state, &node);
            }
            sessions.books_read(&node);
        }
    }

    async fn next_unread(&self) -> String {
        loop {
            {
                let mut state = self.lock();
                while let Some(node) = state.unread.pop_front() {
                    let known = state.nodes.get_mut(&node);
                    let known = known.filter(|known| matches!(known.books, Books::Wanted(_)));
                    if let Some(known) = known {
                        known.books = Books::Reading;
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
