//! Calls: the cloud asks, the node answers in pieces within the credit that the cloud gives.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::sender::send;
use super::{CloudCallOutput, CloudOutput, NodeCallOutput, NodeOutput};
use crate::frame::{Frame, SessionId};
use crate::limits::{CALL_BYTES_MAX, CALL_WINDOW_BYTES, CALLS_MAX};
use crate::sorted::SortedMap;

/// The node's half. At most [`CALLS_MAX`] calls.
#[derive(Debug, Default)]
pub(super) struct Answers {
    calls: SortedMap<u32, Answer>,
    /// Highest id seen in this session: a doubled `CallOpen` does not run a call twice.
    last: Option<u32>,
}

#[derive(Debug)]
struct Answer {
    sent: u64,
    upto: u64,
}

impl Answers {
    /// The session is over, and all calls with it.
    pub(super) fn close(&mut self, out: &mut VecDeque<NodeOutput>) {
        self.last = None;
        for (id, _) in core::mem::take(&mut self.calls) {
            out.push_back(NodeCallOutput::Cancelled { id }.into());
        }
    }

    pub(super) fn handle_open(
        &mut self,
        session: SessionId,
        (id, method, body): (u32, u16, Vec<u8>),
        out: &mut VecDeque<NodeOutput>,
    ) {
        if self.last.is_some_and(|last| id <= last) {
            return;
        }
        self.last = Some(id);
        if self.calls.len() >= CALLS_MAX {
            send(out, &Frame::CallCancel { session, id });
            return;
        }
        let upto = u64::from(CALL_WINDOW_BYTES);
        self.calls.insert(id, Answer { sent: 0, upto });
        out.push_back(NodeCallOutput::Request { id, method, body }.into());
        let bytes = CALL_WINDOW_BYTES;
        out.push_back(NodeCallOutput::Window { id, bytes }.into());
    }

    pub(super) fn handle_credit(&mut self, id: u32, upto: u64, out: &mut VecDeque<NodeOutput>) {
        let Some(call) = self.calls.get_mut(&id) else {
            return;
        };
        let bytes = upto.saturating_sub(call.upto);
        // The cloud never gives more than a window over what it has received.
        let fits = upto <= call.sent + u64::from(CALL_WINDOW_BYTES);
        if let (true, Ok(bytes @ 1..)) = (fits, u32::try_from(bytes)) {
            call.upto = upto;
            out.push_back(NodeCallOutput::Window { id, bytes }.into());
        }
    }

    pub(super) fn handle_cancel(&mut self, id: u32, out: &mut VecDeque<NodeOutput>) {
        if self.calls.remove(&id).is_some() {
            out.push_back(NodeCallOutput::Cancelled { id }.into());
        }
    }

    /// The caller ends a call.
    pub(super) fn cancel(&mut self, session: SessionId, id: u32, out: &mut VecDeque<NodeOutput>) {
        if self.calls.remove(&id).is_some() {
            send(out, &Frame::CallCancel { session, id });
        }
    }

    /// A piece of an answer; over the window it ends the call on both sides.
    pub(super) fn answer(
        &mut self,
        session: SessionId,
        (id, bytes, end): (u32, &[u8], bool),
        out: &mut VecDeque<NodeOutput>,
    ) {
        let Some(call) = self.calls.get_mut(&id) else {
            return;
        };
        if call.sent + bytes.len() as u64 > call.upto {
            self.cancel(session, id, out);
            out.push_back(NodeCallOutput::Cancelled { id }.into());
            return;
        }
        let mut rest = bytes;
        loop {
            let (piece, after) = rest.split_at_checked(CALL_BYTES_MAX).unwrap_or((rest, &[]));
            let frame = Frame::CallData {
                session,
                id,
                offset: call.sent,
                bytes: piece.to_vec(),
                end: end && after.is_empty(),
            };
            send(out, &frame);
            call.sent += piece.len() as u64;
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        if end {
            self.calls.remove(&id);
        }
    }
}

/// The cloud's half. At most [`CALLS_MAX`] calls.
#[derive(Debug, Default)]
pub(super) struct Requests {
    calls: SortedMap<u32, Request>,
    last: Option<u32>,
}

#[derive(Debug)]
struct Request {
    received: u64,
    taken: u64,
    upto: u64,
}

impl Requests {
    /// The session is over, and all calls with it.
    pub(super) fn close(&mut self, out: &mut VecDeque<CloudOutput>) {
        for (id, _) in core::mem::take(&mut self.calls) {
            out.push_back(CloudCallOutput::Cancelled { id }.into());
        }
    }

    pub(super) fn start(
        &mut self,
        session: Option<SessionId>,
        (id, method, body): (u32, u16, Vec<u8>),
        out: &mut VecDeque<CloudOutput>,
    ) {
        let fresh = self.last.is_none_or(|last| id > last);
        let fits = body.len() <= CALL_BYTES_MAX && self.calls.len() < CALLS_MAX;
        let (Some(session), true, true) = (session, fresh, fits) else {
            out.push_back(CloudCallOutput::Cancelled { id }.into());
            return;
        };
        self.last = Some(id);
        let request = Request {
            received: 0,
            taken: 0,
            upto: u64::from(CALL_WINDOW_BYTES),
        };
        self.calls.insert(id, request);
        let frame = Frame::CallOpen {
            session,
            id,
            method,
            body,
        };
        send(out, &frame);
    }

    pub(super) fn handle_data(
        &mut self,
        session: SessionId,
        (id, offset, bytes, end): (u32, u64, Vec<u8>, bool),
        out: &mut VecDeque<CloudOutput>,
    ) {
        let Some(call) = self.calls.get_mut(&id) else {
            // Unless the node learns it, it would wait for credit for ever.
            if !end {
                send(out, &Frame::CallCancel { session, id });
            }
            return;
        };
        let after = offset.saturating_add(bytes.len() as u64);
        if offset < call.received {
            return;
        }
        if offset > call.received || after > call.upto {
            // A piece is lost, or the node does not keep to its credit.
            self.cancel(session, id, out);
            out.push_back(CloudCallOutput::Cancelled { id }.into());
            return;
        }
        call.received = after;
        if end {
            self.calls.remove(&id);
        }
        out.push_back(CloudCallOutput::Data { id, bytes, end }.into());
    }

    /// The consumer took `bytes`; credit goes out by half windows.
    pub(super) fn take(
        &mut self,
        session: SessionId,
        id: u32,
        bytes: u32,
        out: &mut VecDeque<CloudOutput>,
    ) {
        let Some(call) = self.calls.get_mut(&id) else {
            return;
        };
        call.taken = (call.taken + u64::from(bytes)).min(call.received);
        let upto = call.taken + u64::from(CALL_WINDOW_BYTES);
        if upto - call.upto >= u64::from(CALL_WINDOW_BYTES / 2) {
            call.upto = upto;
            send(out, &Frame::CallCredit { session, id, upto });
        }
    }

    pub(super) fn handle_cancel(&mut self, id: u32, out: &mut VecDeque<CloudOutput>) {
        if self.calls.remove(&id).is_some() {
            out.push_back(CloudCallOutput::Cancelled { id }.into());
        }
    }

    /// The caller ends a call.
    pub(super) fn cancel(&mut self, session: SessionId, id: u32, out: &mut VecDeque<CloudOutput>) {
        if self.calls.remove(&id).is_some() {
            send(out, &Frame::CallCancel { session, id });
        }
    }
}
