//! Records between the sessions and their sink.

use std::sync::Arc;

use edge_proto::session::{Input, Output};

use super::Links;
use super::node::NodeSession;
use crate::records::account::{Batch, Incarnation};
use crate::records::{Records, Settled, Told};

impl NodeSession {
    /// Hands records to the sink; gives back any other output.
    pub(super) fn take_records(
        &mut self,
        now: u64,
        name: &str,
        output: Output,
        records: &Arc<Records>,
    ) -> Option<Output> {
        let Output::Records {
            ticket,
            incarnation,
            class,
            first,
            held,
            entries,
            ..
        } = output
        else {
            return Some(output);
        };
        let batch = Batch {
            incarnation: Incarnation(incarnation),
            class,
            first,
            held,
            entries,
        };
        if !records.offer(name, self.stream, ticket, batch) {
            self.session.handle(now, Input::RecordsFailed { ticket });
        }
        None
    }
}

impl Links {
    /// A node's books are there: its session may open.
    pub(crate) fn books_read(&self, name: &str) {
        let mut guard = self.lock();
        let state = &mut *guard;
        if let Some(node) = state.nodes.get_mut(name).filter(|node| !node.booked) {
            (node.stream, node.booked) = state.records.attach(name, &mut node.session);
        }
    }

    /// What became of a node's records: its session acknowledges, or asks for them again.
    pub(crate) fn settle_records(&self, name: &str, settled: &[Settled], told: Vec<Told>) {
        let mut state = self.lock();
        for one in settled {
            // A session that is over has forgotten its tickets, and the next one has its own.
            let current = state.nodes.get(name).map(|node| node.stream);
            if current == Some(one.session) {
                let ticket = one.ticket;
                let input = match one.durable {
                    true => Input::RecordsDurable { ticket },
                    false => Input::RecordsFailed { ticket },
                };
                self.handle(&mut state, name, input);
            }
        }
        let visible = !told.is_empty();
        for (reason, text) in told {
            // A sink that fails does so for everybody.
            let whose = if reason.starts_with("Records") && reason != "RecordsLost" {
                ""
            } else {
                name
            };
            state.event(whose, reason, &text);
        }
        drop(state);
        if visible {
            self.changes.changed(name);
        }
    }
}
