//! Answers of the driver to the command line and tools on the board.

use std::path::PathBuf;

use edge_proto::object::ContainerState;

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
                reply
                    .try_send(self.log_path(&namespace, &pod, container.as_deref()))
                    .ok();
            }
        }
    }

    /// The file with a container's output, and whether the container has ended for good.
    pub(super) fn log_path(
        &self,
        namespace: &str,
        pod: &str,
        container: Option<&str>,
    ) -> Result<(PathBuf, bool), String> {
        let status = self
            .agent
            .statuses()
            .find(|status| status.namespace == namespace && status.name == pod)
            .ok_or_else(|| ["no pod ", namespace, "/", pod, " on this node"].concat())?;
        let all = status.containers.as_slice();
        let found = match (container, all) {
            (None, [only]) => Some(only),
            (name, all) => all.iter().find(|one| Some(one.name.as_str()) == name),
        };
        let Some(found) = found else {
            let names: Vec<&str> = all.iter().map(|one| one.name.as_str()).collect();
            return Err(["choose a container: ", &names.join(", ")].concat());
        };
        let file = paths::log(&self.config.run_dir, status.uid, &found.name);
        let over = matches!(found.state, ContainerState::Terminated { .. });
        if file.exists() {
            Ok((file, over))
        } else {
            Err(["container ", &found.name, " has not started yet"].concat())
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
