//! Answers of the driver to the command line and tools on the board.

use std::path::PathBuf;

use edge_core::calls::Log;

use super::{Driver, VERSION, flash};
use crate::local::read_api::Request;
use crate::local::status::{self, Status};
use crate::paths;

impl Driver {
    pub(super) fn handle_local(&self, request: Request) {
        match request {
            Request::Status(reply) => {
                let text = serde_json::to_string(&self.status()).unwrap_or_default();
                // The client may have disconnected.
                reply.try_send(text + "\n").ok();
            }
            Request::LogFile {
                namespace,
                pod,
                container,
                reply,
            } => {
                let log = self.agent.log(&namespace, &pod, &container);
                let file = log.and_then(|log| Ok((self.log_file(&log)?, log.over)));
                reply.try_send(file).ok();
            }
        }
    }

    /// The file with a container's output.
    ///
    /// # Errors
    /// There is none yet, for a person.
    pub(super) fn log_file(&self, log: &Log) -> Result<PathBuf, String> {
        let file = paths::log(&self.config.run_dir, log.uid, &log.container);
        if file.exists() {
            Ok(file)
        } else {
            Err(["container ", &log.container, " has not started yet"].concat())
        }
    }

    pub(super) fn status(&self) -> Status {
        let node = self.agent.node_status();
        let (unix_s, time_trusted) = self.clock.now();
        let (end, due, error) = self.agent.certificate();
        let mut status = Status {
            node: self.node.clone(),
            agent: VERSION.to_owned(),
            connected: self.agent.is_live(),
            link_error: self.agent.link_error().to_owned(),
            in_sync: self.agent.is_live() && self.in_sync,
            desired_root: self.session.desired().root().to_string(),
            reported_root: self.session.reported_root().to_string(),
            time_trusted,
            unix_s,
            certificate_not_after: end,
            certificate_renewal_unix_s: due,
            certificate_error: error.to_owned(),
            conditions: node
                .conditions
                .into_iter()
                .filter(|condition| condition.holds)
                .map(|condition| status::Condition {
                    name: condition.name,
                    message: condition.message,
                })
                .collect(),
            refused: node
                .refused
                .into_iter()
                .map(|one| status::Refused {
                    key: one.key.to_string(),
                    reason: one.reason,
                })
                .collect(),
            pods: Vec::new(),
            memory: status::Memory::own(),
            flash: flash::status(self.agent.flash()),
            outbox: status::Outbox::new(
                &crate::storage::outbox::report(&self.outbox_report),
                &self.config.outbox.classes,
            ),
        };
        for pod in self.agent.statuses() {
            status.add_pod(&pod);
        }
        status
    }
}
