//! The shell of an agent on a board: passes events to the core and the session, and performs their
//! outputs, after the time that it takes there.

use std::sync::Arc;

use edge_core::spec::ContainerSpec;
use edge_core::write_scheduler as scheduler;
use edge_core::{Input as AgentInput, Output as AgentOutput, Signal, StartFailure, UplinkInput};
use edge_proto::limits::FRAME_BYTES_MAX;
use edge_proto::session::{
    BlobInput, BlobOutput, CallOpen, CallOutput, LinkInput, LinkOutput, NodeOutput,
    NodeRecordsOutput, StateInput, StateOutput,
};

use crate::board::{Conn, Run};
use crate::certs::Enrolment;
use crate::event::{Answer, Event, Packet, Topic};
use crate::line::SOCKET_BYTES;
use crate::rng::Share;
use crate::world::World;

/// Bytes around a frame: topic, MQTT, TLS record, TCP and IP.
pub(crate) const PACKET_BYTES: usize = 100;
/// Highest number of outputs of one input: an inventory's pages, and a few for each of 110 pods.
const OUTPUTS_MAX: usize = 2_000;

impl World {
    /// Whether the event is not for a stalled board; such a board gets it later.
    pub(crate) fn passes_board(&mut self, event: Event) -> Option<Event> {
        let board = match &event {
            Event::Wake(board)
            | Event::Enrolled(Enrolment { board, .. }, _)
            | Event::Answer(board, ..)
            | Event::Dialled { board, .. }
            | Event::Broken { board, .. }
            | Event::Down { board, .. } => *board as usize,
            _ => return Some(event),
        };
        let until = self.boards[board].asleep_until;
        if until <= self.now {
            return Some(event);
        }
        if matches!(event, Event::Wake(_)) {
            self.boards[board].wake_at = until;
        }
        self.queue.push(until, event);
        None
    }

    /// Starts agent and link of a board: after power on, or after the agent was killed.
    pub(crate) fn board_starts(&mut self, board: usize, boot: u32) {
        let one = &mut self.boards[board];
        if one.retired || one.machine.is_some() || one.boot != boot {
            return;
        }
        let records = self.scenario.workload.record.is_some();
        let outbox_bytes = records.then_some(self.scenario.outbox_bytes);
        one.start_agent(self.now, outbox_bytes, self.scenario.flash_bytes_per_day);
        self.settle_board(board);
    }

    /// The board loses power for `off_ms`.
    pub(crate) fn cut_power(&mut self, board: usize, off_ms: u64) {
        let one = &mut self.boards[board];
        if !one.powered || one.retired {
            return;
        }
        self.stats.power_cuts += 1;
        let gone = one.conn;
        one.cut_power();
        one.conn = Conn::None;
        let boot = one.boot;
        let index = board as u32;
        self.leave_half_open(board, gone);
        self.plan(off_ms, Event::Start(index, boot));
        self.refresh(self.boards[board].node);
    }

    /// The agent is killed and started again; its socket closes.
    pub(crate) fn kill_agent(&mut self, board: usize) {
        let one = &mut self.boards[board];
        if one.machine.is_none() {
            return;
        }
        self.stats.agent_crashes += 1;
        let gone = one.conn;
        one.kill_agent();
        one.conn = Conn::None;
        let boot = one.boot;
        if let Conn::Up(conn) | Conn::Trying(conn) = gone {
            self.socket_closed(board, conn);
        }
        self.plan(500, Event::Start(board as u32, boot));
        self.refresh(self.boards[board].node);
    }

    pub(crate) fn board_wakes(&mut self, board: usize) {
        let now = self.now;
        let one = &mut self.boards[board];
        if one.wake_at != now {
            return;
        }
        one.wake_at = u64::MAX;
        let local = one.local(now);
        let Some(machine) = &mut one.machine else {
            return;
        };
        machine.agent.handle(local, AgentInput::Tick);
        machine.session.handle(local, LinkInput::Tick);
        machine.scheduler.handle(local, scheduler::Input::Tick);
        self.run_store(board);
        self.run_outbox(board);
        self.settle_board(board);
    }

    /// A frame from the cloud arrives. It was sent under `epoch`.
    pub(crate) fn frame_at_board(&mut self, board: usize, conn: u32, epoch: u64, bytes: Box<[u8]>) {
        let now = self.now;
        let one = &mut self.boards[board];
        one.down.waiting = one.down.waiting.saturating_sub(1);
        if one.conn != Conn::Up(conn) {
            return;
        }
        let node = one.node;
        self.check_served(node, &bytes);
        let one = &mut self.boards[board];
        let local = one.local(now);
        let Some(machine) = &mut one.machine else {
            return;
        };
        if one.compromised && one.seen.len() < 16 {
            one.seen.push(bytes.to_vec());
        }
        let accepted = machine.session.epoch();
        machine.session.handle(local, LinkInput::Frame(&bytes));
        self.settle_after(board, Some((epoch, accepted)));
    }

    /// A job of the shell has ended.
    pub(crate) fn board_answer(&mut self, board: usize, boot: u32, answer: Answer) {
        let now = self.now;
        let one = &mut self.boards[board];
        if one.boot != boot {
            return;
        }
        let local = one.local(now);
        let Some(machine) = &mut one.machine else {
            return;
        };
        match answer {
            Answer::Agent(input) => {
                if let AgentInput::Removed(uid, name, Ok(())) = &input {
                    one.remains
                        .retain(|(other, known, _)| (other, known) != (uid, name));
                }
                machine.agent.handle(local, input);
            }
            Answer::Joined => {
                one.joined = true;
                self.stats.joins += 1;
                let one = &mut self.boards[board];
                let identity = one.known_identity();
                self.agent_input(board, AgentInput::Uplink(identity));
            }
            Answer::Durable(ticket) => {
                if matches!(&one.applying, Some((at, ..)) if *at == ticket) {
                    self.write_store(board);
                }
            }
            Answer::Piece(id) => self.call_piece(board, id),
            Answer::Written => self.records_written(board),
            Answer::Records(class, first, bytes) => {
                self.read_records(board, (class, first), bytes);
            }
            Answer::Blob(sha256) => {
                let bytes = one.store.blob_bytes(sha256, machine.blob_len);
                machine
                    .session
                    .handle(local, BlobInput::Have { sha256, bytes });
            }
        }
        self.settle_board(board);
    }

    /// A container's process has ended.
    pub(crate) fn container_exits(&mut self, board: usize, pid: u32, code: i32) {
        let now = self.now;
        let one = &mut self.boards[board];
        let Some(index) = one.running.iter().position(|run| run.pid == pid) else {
            return;
        };
        let run = one.running.swap_remove(index);
        one.remains.push((run.uid, run.name.clone(), run.spec));
        let local = one.local(now);
        let Some(machine) = &mut one.machine else {
            return;
        };
        let input = AgentInput::Exited {
            uid: run.uid,
            container: run.name,
            code: Some(code),
            oom: false,
        };
        machine.agent.handle(local, input);
        self.settle_board(board);
    }

    /// Performs the outputs of agent and session until there are none.
    pub(crate) fn settle_board(&mut self, board: usize) {
        self.settle_after(board, None);
    }

    /// `order`: the epoch of the frame that was just handled, and the epoch that the node had accepted
    /// before.
    fn settle_after(&mut self, board: usize, order: Option<(u64, u64)>) {
        let mut outputs = 0;
        while let Some(machine) = &mut self.boards[board].machine {
            if let Some(output) = machine.agent.poll() {
                self.perform(board, output);
            } else if let Some(output) = machine.session.poll() {
                self.check_order(board, order, &output);
                self.perform_session(board, output);
            } else {
                break;
            }
            outputs += 1;
        }
        self.pump_up(board);
        self.check_cap(board, "outputs of one input", outputs, OUTPUTS_MAX);
        self.check_epoch(board);
        let one = &mut self.boards[board];
        if let Some(at) = one.deadline() {
            let at = at.max(self.now);
            if at < one.wake_at {
                one.wake_at = at;
                self.queue.push(at, Event::Wake(board as u32));
            }
        }
        self.refresh(self.boards[board].node);
    }

    /// Plans the shell's answer after `ms` on a healthy board.
    pub(crate) fn answer(&mut self, board: usize, ms: u64, answer: Answer) {
        let one = &mut self.boards[board];
        let ms = one.rng.between(ms / 2, ms) * one.slow;
        let boot = one.boot;
        self.plan(ms, Event::Answer(board as u32, boot, Box::new(answer)));
    }

    pub(crate) fn chance(&mut self, board: usize, share: Share) -> bool {
        self.now < self.faults_until && self.boards[board].rng.chance(share)
    }

    fn start_container(&mut self, board: usize, start: ContainerSpec) {
        let (uid, container, spec) = (start.uid, start.container, start.hash);
        self.stats.starts += 1;
        self.check_start(board, uid, &container);
        let result = if self.chance(board, self.scenario.faults.start_failure) {
            Err(StartFailure {
                reason: "CreateContainerError".to_owned(),
                message: "simulated".to_owned(),
                counts_as_run: self.boards[board].rng.below(2) == 0,
            })
        } else {
            let one = &mut self.boards[board];
            one.pids += 1;
            one.running.push(Run {
                pid: one.pids,
                uid,
                name: container.clone(),
                spec,
            });
            Ok(one.pids)
        };
        let done = AgentInput::Started {
            uid,
            container,
            run: start.run,
            spec,
            result,
        };
        self.answer(board, 100, Answer::Agent(done));
    }

    fn perform(&mut self, board: usize, output: AgentOutput) {
        match output {
            AgentOutput::PreparePod { uid, .. } => {
                let done = AgentInput::PodPrepared(uid, Ok(()));
                self.answer(board, 20, Answer::Agent(done));
            }
            AgentOutput::Start(start) => self.start_container(board, *start),
            AgentOutput::Signal {
                uid,
                container,
                signal,
                ..
            } => {
                let term = signal == Signal::Terminate;
                if term && self.chance(board, self.scenario.faults.ignore_term) {
                    return;
                }
                let one = &mut self.boards[board];
                let runs = |run: &&Run| run.uid == uid && run.name == container;
                if let Some(pid) = one.running.iter().find(runs).map(|run| run.pid) {
                    let (ms, code) = if term { (400, 143) } else { (10, 137) };
                    let ms = one.rng.between(1, ms) * one.slow;
                    self.plan(ms, Event::Exit(board as u32, pid, code));
                }
            }
            AgentOutput::Remove { uid, container } => {
                let result = if self.chance(board, self.scenario.faults.remove_failure) {
                    Err("rmdir: busy".to_owned())
                } else {
                    Ok(())
                };
                let done = AgentInput::Removed(uid, container, result);
                self.answer(board, 20, Answer::Agent(done));
            }
            AgentOutput::RemovePod { uid, .. } => {
                let result = match self.chance(board, self.scenario.faults.remove_failure) {
                    true => Err("still mounted".to_owned()),
                    false => Ok(()),
                };
                let done = AgentInput::PodRemoved(uid, result);
                self.answer(board, 20, Answer::Agent(done));
            }
            AgentOutput::Report(key, payload) => {
                let local = self.boards[board].local(self.now);
                if let Some(machine) = &mut self.boards[board].machine {
                    let input = match payload {
                        Some(payload) => StateInput::Put {
                            key,
                            payload: Arc::from(payload),
                        },
                        None => StateInput::Delete { key },
                    };
                    machine.session.handle(local, input);
                }
            }
            AgentOutput::Uplink(output) => self.perform_uplink(board, output),
            AgentOutput::FlashOverBudget(over) => {
                self.stats.flash_over_budget += u64::from(over);
                self.schedule_write(board, scheduler::Input::OverBudget(over));
            }
            AgentOutput::ReadWear => {
                let worn = AgentInput::FlashWorn(String::new());
                self.answer(board, 5, Answer::Agent(worn));
            }
            // Files, logs, damage of the store and a board that cannot be looked at are not modelled,
            // and a start takes no time that could be saved.
            AgentOutput::CancelStarts(_)
            | AgentOutput::Discover
            | AgentOutput::RepairStore
            | AgentOutput::UpdateConfig { .. }
            | AgentOutput::TrimLog { .. }
            | AgentOutput::Event(_) => {}
        }
    }

    /// One input to the agent; its outputs are performed when the board settles.
    pub(crate) fn agent_input(&mut self, board: usize, input: AgentInput) {
        let one = &mut self.boards[board];
        let local = one.local(self.now);
        if let Some(machine) = &mut one.machine {
            machine.agent.handle(local, input);
        }
    }

    fn session_down(&mut self, board: usize) {
        self.boards[board].waiting_since = self.now;
        if let Some(machine) = &mut self.boards[board].machine {
            machine.in_sync = false;
            machine.calls.clear();
        }
        self.agent_input(board, AgentInput::Uplink(UplinkInput::NotLive));
    }

    fn perform_session(&mut self, board: usize, output: NodeOutput) {
        match output {
            NodeOutput::Link(LinkOutput::Send(frame)) => {
                let now = self.now;
                let machine = self.boards[board].machine.as_mut();
                if !machine.is_none_or(|machine| machine.line.push(now, frame)) {
                    self.stats.dropped += 1;
                }
            }
            NodeOutput::State(StateOutput::Apply {
                ticket,
                changes,
                epoch,
            }) => {
                self.check_apply(board, epoch);
                self.boards[board].applying = Some((ticket, changes, epoch));
                self.answer(board, 30, Answer::Durable(ticket));
            }
            NodeOutput::Blob(BlobOutput::Wanted { sha256, len }) => {
                if let Some(machine) = &mut self.boards[board].machine {
                    machine.blob_len = len;
                }
                self.answer(board, 5, Answer::Blob(sha256));
            }
            NodeOutput::Blob(BlobOutput::Piece {
                sha256,
                offset,
                bytes,
            }) => {
                let blob = self.boards[board].store.blobs.entry(sha256).or_default();
                blob.truncate(offset as usize);
                blob.extend(bytes);
                self.answer(board, 5, Answer::Blob(sha256));
            }
            NodeOutput::Link(LinkOutput::Live { unix_s }) => {
                self.agent_input(board, AgentInput::Uplink(UplinkInput::Live));
                if unix_s != 0 {
                    self.agent_input(board, AgentInput::CloudTime(unix_s));
                }
            }
            NodeOutput::Link(LinkOutput::Down) => self.session_down(board),
            NodeOutput::State(StateOutput::InSync { desired, reported }) => {
                if let Some(machine) = &mut self.boards[board].machine {
                    machine.in_sync = desired && reported;
                }
                if desired {
                    self.agent_input(board, AgentInput::Confirmed);
                }
            }
            NodeOutput::Records(NodeRecordsOutput::Wanted {
                class,
                from,
                bytes_max,
            }) => self.answer(board, 5, Answer::Records(class, from, bytes_max)),
            NodeOutput::Records(NodeRecordsOutput::Acked { class, next }) => {
                self.records_acked(board, class, next)
            }
            NodeOutput::Records(NodeRecordsOutput::Ahead { .. }) => self.records_ahead(board),
            NodeOutput::CallOpen(CallOpen { id, args, .. }) => {
                self.call_requested(board, id, &args)
            }
            NodeOutput::Call(CallOutput::Window { id, bytes }) => {
                self.call_window(board, id, bytes)
            }
            NodeOutput::Call(CallOutput::Cancelled { id }) => {
                if let Some(machine) = &mut self.boards[board].machine {
                    machine.calls.remove(&id);
                }
            }
            NodeOutput::Link(LinkOutput::PeerProblem(_)) => self.stats.problems_at_nodes += 1,
            NodeOutput::State(StateOutput::PutRefused { key, reason }) => {
                let node = self.boards[board].node;
                self.fail(node, format!("a report was refused: {key} {reason}"));
            }
            _ => {}
        }
    }

    /// As `pump_lanes` of the driver: passes frames to the socket while that accepts them.
    fn pump_up(&mut self, board: usize) {
        let now = self.now;
        let kbit = self.scenario.link.bandwidth_kbit;
        loop {
            let one = &mut self.boards[board];
            let (up, conn, asleep_until) = (one.up, one.conn, one.asleep_until);
            let Some(machine) = &mut one.machine else {
                return;
            };
            machine.send_at = None;
            machine.line.limit(now, machine.agent.policy().limits_up());
            if !matches!(conn, Conn::Up(_)) {
                machine.line.clear();
                return;
            }
            let room_at = (up.free_us / 1000).saturating_sub(SOCKET_BYTES * 8 / kbit);
            if machine.line.is_empty() {
                return;
            }
            if room_at > now {
                machine.send_at = Some(room_at);
                return;
            }
            let Some((lane, since, frame)) = machine.line.poll(now) else {
                machine.send_at = machine.line.deadline();
                return;
            };
            let wait_ms_max = machine.line.wait_ms_max(lane, kbit);
            let node = one.node;
            self.check_lane(
                node,
                lane,
                now - since.max(asleep_until).min(now),
                wait_ms_max,
            );
            self.send_up(board, frame);
        }
    }

    /// Publishes a frame under the board's own topic.
    pub(crate) fn send_up(&mut self, board: usize, bytes: Vec<u8>) {
        let node = self.boards[board].node;
        let shard = self.stored_nodes[node as usize].shard;
        self.publish_up(board, Topic { shard, node }, bytes);
    }

    /// Publishes a frame.
    pub(crate) fn publish_up(&mut self, board: usize, topic: Topic, bytes: Vec<u8>) {
        self.check_cap(board, "bytes of a frame", bytes.len(), FRAME_BYTES_MAX);
        let Conn::Up(conn) = self.boards[board].conn else {
            return;
        };
        let from = self.boards[board].node;
        if self.boards[board].compromised && self.boards[board].seen.len() < 16 {
            self.boards[board].seen.push(bytes.clone());
        }
        self.stats.frames_up += 1;
        self.series.up(self.now, bytes.len() + PACKET_BYTES);
        if self.is_cut(from) {
            return;
        }
        let arrivals = self.transmit(board, true, bytes.len() + PACKET_BYTES);
        for at in arrivals.into_iter().flatten() {
            self.boards[board].up.waiting += 1;
            let packet = Box::new(Packet {
                topic,
                from,
                bytes: bytes.clone(),
            });
            let board = board as u32;
            self.queue.push(
                at,
                Event::Up {
                    board,
                    conn,
                    packet,
                },
            );
        }
    }
}
