//! Bridges the session and the outbox worker: requests of the session become jobs, answers become
//! inputs of the session.

use edge_core::Fault;
use edge_proto::session::{NodeRecordsInput, NodeRecordsOutput};

use super::Driver;
use crate::storage::outbox::{Done, Job};

impl Driver {
    pub(super) fn handle_outbox(&mut self, now: u64, done: Done) {
        match done {
            Done::Ready {
                class,
                incarnation,
                held,
                end,
            } => {
                self.incarnation = incarnation;
                let ready = NodeRecordsInput::Ready {
                    class,
                    incarnation,
                    held,
                    end,
                };
                self.session.handle(now, ready);
            }
            Done::Read {
                incarnation,
                class,
                first,
                entries,
            } if incarnation == self.incarnation => {
                let read = NodeRecordsInput::Read {
                    class,
                    first,
                    entries,
                };
                self.session.handle(now, read);
            }
            // Of an outbox that was replaced meanwhile.
            Done::Read { .. } => {}
            Done::Unwritable(reason) => {
                if let Some(reason) = &reason {
                    log::error!("outbox_write_failed error={reason}");
                }
                self.fault(Fault::OutboxUnwritable, reason);
            }
        }
    }

    pub(super) fn perform_records(&mut self, output: NodeRecordsOutput) {
        let incarnation = self.incarnation;
        let job = match output {
            NodeRecordsOutput::Wanted {
                class,
                from,
                bytes_max,
            } => Job::Read {
                incarnation,
                class,
                from,
                bytes_max,
            },
            NodeRecordsOutput::Acked { class, next } => Job::Acked {
                incarnation,
                class,
                next,
            },
            NodeRecordsOutput::Ahead { class, next } => {
                log::error!("outbox_behind_cloud class={class} next={next}");
                Job::Renew { incarnation }
            }
        };
        self.outbox_jobs.push(job);
    }
}
