//! Records between the sessions and their sink.

use edge_proto::session::{CloudRecordsInput, RecordsOutput};

use super::Sessions;
use super::node::NodeSession;
use crate::records::ledger::{Batch, Incarnation};
use crate::records::{Notice, RecordSessions, Records, Settled};

impl NodeSession {
    /// Passes records to the sink.
    pub(super) fn take_records(&mut self, now: u64, output: RecordsOutput, records: &Records) {
        let RecordsOutput {
            ticket,
            incarnation,
            class,
            first,
            held,
            entries,
            ..
        } = output;
        let batch = Batch {
            incarnation: Incarnation(incarnation),
            class,
            first,
            held,
            entries,
        };
        if !records.offer(&self.name, self.stream, ticket, batch) {
            self.session
                .handle(now, CloudRecordsInput::Failed { ticket });
        }
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
            // An ended session has lost its tickets, and the next one has its own.
            let current = state.nodes.get(name).map(|node| node.stream);
            if current == Some(one.session) {
                let ticket = one.ticket;
                let input = match one.durable {
                    true => CloudRecordsInput::Durable { ticket },
                    false => CloudRecordsInput::Failed { ticket },
                };
                self.handle(&mut state, name, input);
            }
        }
        drop(state);
        for (reason, text) in notices {
            // A failing sink fails for all nodes.
            let whose = if reason.starts_with("Records") && reason != "RecordsLost" {
                ""
            } else {
                name
            };
            match whose {
                "" => self.events.add("", reason, &text),
                node => self.events.add_by_node(node, reason, &text),
            }
        }
    }
}
