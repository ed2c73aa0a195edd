//! The driver between the session and the outbox: what one asks, the other is told.

use edge_proto::session;

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
                let ready = session::Input::RecordsReady {
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
                let read = session::Input::RecordsRead {
                    class,
                    first,
                    entries,
                };
                self.session.handle(now, read);
            }
            // Of an outbox that was given up meanwhile.
            Done::Read { .. } => {}
            Done::Trouble(reason) => {
                if let Some(reason) = &reason {
                    log::error!("outbox_write_failed error={reason}");
                }
                self.condition(
                    "OutboxUnwritable",
                    reason.is_some(),
                    reason.as_deref().unwrap_or(""),
                );
            }
        }
    }

    pub(super) fn perform_stream(&mut self, output: session::Output) {
        let incarnation = self.incarnation;
        let job = match output {
            session::Output::RecordsWanted {
                class,
                from,
                bytes_max,
            } => Job::Read {
                incarnation,
                class,
                from,
                bytes_max,
            },
            session::Output::RecordsAcked { class, next } => Job::Acked {
                incarnation,
                class,
                next,
            },
            session::Output::RecordsAhead { class, next } => {
                log::error!("outbox_behind_cloud class={class} next={next}");
                Job::Renew { incarnation }
            }
            _ => return,
        };
        self.outbox_jobs.push(job);
    }
}
