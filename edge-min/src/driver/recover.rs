//! The state of the board when the agent starts: running containers, remains of an earlier
//! agent, and the identity.

use std::io;

use edge_core::{Discovered, Input};
use edge_proto::key::Uid;

use super::handover::Handover;
use super::{Driver, failed};
use crate::link::identity::Identity;
use crate::workload::reaper::{self, Process};
use crate::workload::runtime::Found;

/// A container that has ended, and its exit code if that is known.
type Ended = ((Uid, String), Option<i32>);

impl Driver {
    /// Adopts what is running. `before` is from the previous agent in the same process.
    pub(super) fn recover(&mut self, before: Handover) {
        if let Some(unix_s) = before.unix_s {
            self.clock.confirm(unix_s);
        }
        self.handed_over = before;
        self.watch_flash();
        self.discover();
        self.settle();
    }

    /// Finds out what runs, and adopts it.
    pub(super) fn discover(&mut self) {
        if let Err(error) = self.try_to_discover() {
            let reason = error.to_string();
            self.agent.handle(self.now(), Input::NotDiscovered(reason));
        }
    }

    /// All is known before anything is done.
    fn try_to_discover(&mut self) -> io::Result<()> {
        self.runtime.clear_strays()?;
        let (ends, pods) = (self.runtime.ends()?, self.runtime.pods()?);
        let found = self.runtime.discover()?;
        for end in ends {
            self.agent.handle(self.now(), end);
        }
        let before = std::mem::take(&mut self.handed_over);
        let mut ended = Vec::new();
        let containers = found
            .into_iter()
            .map(|one| self.adopt(one, &before, &mut ended))
            .collect();
        let discovered = Input::Discovered { containers, pods };
        self.agent.handle(self.now(), discovered);
        for ((uid, container), code) in ended {
            self.exited(uid, container, code);
        }
        Ok(())
    }

    fn adopt(&mut self, found: Found, before: &Handover, ended: &mut Vec<Ended>) -> Discovered {
        let key = (found.uid, found.container.clone());
        let mut pid = found.process.as_ref().map(Process::pid);
        if let Some(process) = found.process {
            self.running.insert(key.clone(), found.hash);
            if self
                .reaper
                .hold(found.uid, &found.container, process)
                .is_err()
            {
                ended.push((key, None));
            }
        } else if let Some(known) = before.pid_of(found.uid, &found.container)
            && let Some(code) = reaper::child_ended(known)
        {
            // It ended while the agent replaced itself, and was not waited for since.
            pid = Some(known);
            self.running.insert(key.clone(), found.hash);
            ended.push((key, Some(code)));
        }
        Discovered {
            uid: found.uid,
            container: found.container,
            spec: found.hash,
            pid,
        }
    }

    /// Starts the link, or the join. Without a link the agent still runs its pods.
    pub(super) fn connect(&mut self) {
        match Identity::load(&self.config.state_dir) {
            Ok(Some(identity)) => {
                if let Err(reason) = self.start_link(&identity) {
                    self.unlinked(reason);
                }
            }
            Ok(None) => self.not_joined(),
            Err(error) => self.unlinked(failed("identity", &error)),
        }
    }
}
