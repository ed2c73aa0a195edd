//! Calls: a client requests a log through the session of a node, reads it, cancels it, or times
//! out. The sessions are real; reader and writer are modelled after
//! `edge-cloud/src/sessions/call.rs` and `edge-min/src/driver/log_calls.rs`.

use edge_proto::call::{CODE_OK, METHOD_LOGS};
use edge_proto::limits::{CALL_BYTES_MAX, CALL_TIMEOUT_MS, CALLS_MAX};
use edge_proto::session::{CallInput, CallOpen, CallResult};

use crate::event::{Answer, Event};
use crate::world::World;

/// Longest answer: several windows.
const ANSWER_BYTES_MAX: u64 = 60_000;
/// Slowest reader, milliseconds for a piece.
const READ_MS: u64 = 400;

/// The client that reads an answer, at the cloud.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader {
    total: u64,
    got: u64,
    /// It cancels when it has so many bytes.
    enough: u64,
    heard: u64,
}

/// The log that a node sends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writer {
    total: u64,
    sent: u64,
    window: u64,
}

/// The byte of an answer at this offset.
fn byte(id: u32, at: u64) -> u8 {
    (u64::from(id).wrapping_mul(31) + at * 7 + (at >> 8)) as u8
}

impl World {
    /// A client requests a log of this node, if it has a session.
    pub(crate) fn begin_call(&mut self, node: u32) {
        let now = self.now;
        let total = self.rng.below(ANSWER_BYTES_MAX);
        let leaves = self.rng.below(4) == 0;
        let enough = if leaves {
            self.rng.below(total + 1)
        } else {
            u64::MAX
        };
        let shard = usize::from(self.stored_nodes[node as usize].shard);
        let Some(replica) = self.shards[shard].owner else {
            return;
        };
        let life = self.replicas[replica].life;
        let Some(session) = &mut self.replicas[replica].sessions[node as usize] else {
            return;
        };
        if !session.cloud.is_live() || session.calls.len() >= CALLS_MAX {
            return;
        }
        session.last_call += 1;
        let (id, serial) = (session.last_call, session.serial);
        let reader = Reader {
            total,
            got: 0,
            enough,
            heard: now,
        };
        session.calls.insert(id, reader);
        self.stats.calls += 1;
        let (method, args) = (METHOD_LOGS, total.to_be_bytes().to_vec());
        self.session_input(replica, node, CallOpen { id, method, args });
        let replica = u8::try_from(replica).unwrap_or_default();
        let timeout = Event::CallTimeout {
            replica,
            life,
            node,
            call: (serial, id),
        };
        self.plan(CALL_TIMEOUT_MS, timeout);
    }

    /// Whether the reader still waits: it cancels after a timeout without data.
    pub(crate) fn call_timeout(&mut self, replica: usize, node: u32, (serial, id): (u32, u32)) {
        let now = self.now;
        let life = self.replicas[replica].life;
        let session = self.replicas[replica].sessions[node as usize].as_mut();
        let Some(session) = session.filter(|session| session.serial == serial) else {
            return;
        };
        let Some(reader) = session.calls.get(&id) else {
            return;
        };
        let left_ms = (reader.heard + CALL_TIMEOUT_MS).saturating_sub(now);
        if left_ms == 0 {
            session.calls.remove(&id);
            self.stats.calls_broken += 1;
            self.session_input(replica, node, CallInput::Cancel { id });
            return;
        }
        let replica = u8::try_from(replica).unwrap_or_default();
        let call = (serial, id);
        let timeout = Event::CallTimeout {
            replica,
            life,
            node,
            call,
        };
        self.plan(left_ms, timeout);
    }

    /// Data has arrived at the reader.
    pub(crate) fn call_data(&mut self, replica: usize, node: u32, id: u32, bytes: &[u8]) {
        let now = self.now;
        let life = self.replicas[replica].life;
        let session = self.replicas[replica].sessions[node as usize].as_mut();
        // A reader that leaves cancels only after a delay.
        let Some((serial, reader)) =
            session.and_then(|session| Some((session.serial, session.calls.get_mut(&id)?)))
        else {
            return;
        };
        let wrong = (reader.got..)
            .zip(bytes)
            .find(|(at, one)| byte(id, *at) != **one);
        reader.got += bytes.len() as u64;
        reader.heard = now;
        let leaves = reader.got >= reader.enough;
        if let Some((at, _)) = wrong {
            self.fail(node, format!("the answer to call {id} is wrong at {at}"));
        }
        if leaves {
            if let Some(session) = &mut self.replicas[replica].sessions[node as usize] {
                session.calls.remove(&id);
            }
            self.stats.calls_left += 1;
            self.later(replica, life, node, (serial, id), None);
        } else {
            let count = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            self.later(replica, life, node, (serial, id), Some(count));
        }
    }

    /// The node has ended the call, so all of its answer has arrived.
    pub(crate) fn call_result(&mut self, replica: usize, node: u32, result: &CallResult) {
        let session = self.replicas[replica].sessions[node as usize].as_mut();
        let Some(Reader { total, got, .. }) =
            session.and_then(|session| session.calls.remove(&result.id))
        else {
            return;
        };
        self.stats.calls_done += 1;
        if got != total || result.code != CODE_OK {
            let id = result.id;
            self.fail(node, format!("call {id} ends after {got} of {total} bytes"));
        }
    }

    /// The reader takes so many bytes, or leaves, after a delay.
    fn later(
        &mut self,
        replica: usize,
        life: u32,
        node: u32,
        call: (u32, u32),
        taken: Option<u32>,
    ) {
        let ms = self.rng.between(1, READ_MS);
        let replica = u8::try_from(replica).unwrap_or_default();
        let taken = Event::CallRead {
            replica,
            life,
            node,
            call,
            taken,
        };
        self.plan(ms, taken);
    }

    pub(crate) fn call_read(
        &mut self,
        replica: usize,
        node: u32,
        (serial, id): (u32, u32),
        taken: Option<u32>,
    ) {
        let session = self.replicas[replica].sessions[node as usize].as_ref();
        if session.is_some_and(|session| session.serial == serial) {
            let input = match taken {
                Some(bytes) => CallInput::Taken { id, bytes },
                None => CallInput::Cancel { id },
            };
            self.session_input(replica, node, input);
        }
    }

    /// The node receives the call.
    pub(crate) fn call_requested(&mut self, board: usize, id: u32, args: &[u8]) {
        let total = args.try_into().map_or(0, u64::from_be_bytes);
        let writer = Writer {
            total,
            sent: 0,
            window: 0,
        };
        if let Some(machine) = &mut self.boards[board].machine {
            machine.calls.insert(id, writer);
            let count = machine.calls.len();
            self.check_cap(board, "calls of a node", count, CALLS_MAX);
        }
    }

    pub(crate) fn call_window(&mut self, board: usize, id: u32, bytes: u32) {
        let machine = self.boards[board].machine.as_mut();
        let writer = machine.and_then(|machine| machine.calls.get_mut(&id));
        if let Some(writer) = writer {
            writer.window += u64::from(bytes);
            self.answer(board, 5, Answer::Piece(id));
        }
    }

    /// The node reads a piece of the log and sends it, or the result behind all of them.
    pub(crate) fn call_piece(&mut self, board: usize, id: u32) {
        let one = &mut self.boards[board];
        let local = one.local(self.now);
        let Some(machine) = &mut one.machine else {
            return;
        };
        let Some(writer) = machine.calls.get_mut(&id) else {
            return;
        };
        let left = writer.total - writer.sent;
        let count = left.min(writer.window).min(CALL_BYTES_MAX as u64);
        if left == 0 {
            machine.calls.remove(&id);
            let (code, reason) = (CODE_OK, String::new());
            machine
                .session
                .handle(local, CallResult { id, code, reason });
            return;
        }
        if count == 0 {
            return;
        }
        let bytes: Vec<u8> = (writer.sent..writer.sent + count)
            .map(|at| byte(id, at))
            .collect();
        writer.sent += count;
        writer.window -= count;
        let end = false;
        machine
            .session
            .handle(local, CallInput::Data { id, bytes, end });
        self.answer(board, 5, Answer::Piece(id));
    }
}
