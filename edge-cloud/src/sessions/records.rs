//! Records between the sessions and their sink.

use edge_proto::session::{Input, Output};

use super::Sessions;
use super::node::NodeSession;
use crate::records::ledger::{Batch, Incarnation};
use crate::records::{Notice, RecordSessions, Records, Settled};

impl NodeSession {
    /// Hands records to the sink; gives back any other output.
    pub(super) fn take_records(
        &mut self,
        now: u64,
        output: Output,
        records: &Records,
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
        if !records.offer(&self.name, self.stream, ticket, batch) {
            self.session.handle(now, Input::RecordsFailed { ticket });
        }
        None
    }
}

impl RecordSessions for Sessions {
    fn ledger_read(&self, name: &str) {
        let mut state = self.lock();
        if let Some(node) = state.nodes.get_mut(name).filter(|node| !node.has_ledger) {
            (node.stream, node.has_ledger) = self.records.attach(name, &mut node.session);
        }
    }

    fn settle_records(&self, name: &str, settled: &[Settled], notices: Vec<Notice>) {
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
        drop(state);
        for (reason, text) in notices {
            // A sink that fails does so for everybody.
            let whose = if reason.starts_with("Records") && reason != "RecordsLost" {
                ""
            } else {
                name
            };
            self.events.add(whose, reason, &text);
        }
    }
}
