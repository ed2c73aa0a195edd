//! The thread of a board's store, `StoreThread` in `edge-min/src/driver/workers.rs`, over a model of the
//! medium. The core decides when a failed write is retried, and what takes effect before it is durable.

use edge_core::Input as AgentInput;
use edge_core::flash::Subsystem;
use edge_core::write_scheduler::{self as scheduler, ends_before_write};
use edge_proto::session::StateInput;

use crate::world::World;

/// Bytes that one write costs besides its payloads: file, directory and journal.
const WRITE_BYTES: u64 = 12 << 10;

impl World {
    /// Writes the change that the store was given, which may fail.
    pub(crate) fn write_store(&mut self, board: usize) {
        let fails = self.chance(board, self.scenario.faults.write_failure);
        let one = &mut self.boards[board];
        let local = one.local(self.now);
        let Some(machine) = &mut one.machine else {
            return;
        };
        let changes = one.applying.take_if(|_| !fails);
        match changes {
            None => machine.scheduler.handle(local, scheduler::Input::Failed),
            Some((ticket, changes, epoch)) => {
                for (key, payload) in one.store.apply(&changes, epoch) {
                    let desired = AgentInput::Desired(key, payload);
                    machine.agent.handle(local, desired);
                }
                let refused = Vec::new();
                let applied = StateInput::Applied { ticket, refused };
                machine.session.handle(local, applied);
                machine.scheduler.handle(local, scheduler::Input::Changed);
                machine.scheduler.handle(local, scheduler::Input::Written);
                let written = &mut machine.written[Subsystem::Desired as usize];
                written.bytes += WRITE_BYTES;
                written.syncs += 1;
                let flash = AgentInput::Flash(machine.written);
                machine.agent.handle(local, flash);
            }
        }
        self.run_store(board);
    }

    pub(crate) fn schedule_write(&mut self, board: usize, input: scheduler::Input) {
        let one = &mut self.boards[board];
        let local = one.local(self.now);
        if let Some(machine) = &mut one.machine {
            machine.scheduler.handle(local, input);
        }
    }

    /// Performs the outputs of the scheduler.
    pub(crate) fn run_store(&mut self, board: usize) {
        let one = &mut self.boards[board];
        let local = one.local(self.now);
        let Some(machine) = &mut one.machine else {
            return;
        };
        match machine.scheduler.poll() {
            Some(scheduler::Output::Failing) => {
                self.stats.writes_failed += 1;
                let changes = one.applying.iter().flat_map(|(_, changes, _)| changes);
                let changes: Vec<_> = changes.cloned().collect();
                for (key, payload) in ends_before_write(&changes) {
                    let desired = AgentInput::Desired(key, payload);
                    machine.agent.handle(local, desired);
                }
            }
            Some(scheduler::Output::Retry) => self.write_store(board),
            Some(scheduler::Output::Cache) => {
                let written = &mut machine.written[Subsystem::Cache as usize];
                written.bytes += WRITE_BYTES;
                written.syncs += 1;
                let flash = AgentInput::Flash(machine.written);
                machine.agent.handle(local, flash);
            }
            Some(scheduler::Output::Recovered) | None => {}
        }
    }
}
