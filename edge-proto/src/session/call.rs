//! Calls: two byte streams, one each way, from `CallOpen` of the cloud to `CallResult` of the node.
//! The state machine is the same at both ends; only the cloud opens a call, only the node sends a result.
//!
//! - *Order.* Data, control messages and the result of one direction have sequence numbers, from 0. A
//!   frame that was already received is ignored. A gap means that a frame is lost; on one ordered connection
//!   only a full lane or a broker loses one. The call then ends at both ends, nothing is sent again.
//! - *Credit.* The receiving end grants bytes, so that of all calls together at most
//!   [`CALL_WINDOW_BYTES`] are granted and not yet taken. Each call may have an equal share of them,
//!   and always [`CALL_CREDIT_BYTES_MIN`].
//! - *Frames.* At most [`CALL_FRAMES_MAX`] frames of data are sent without an acknowledgement; further
//!   data waits here, within its credit, and is sent in larger frames.
//! - *Loss at the end.* Every [`CALL_CHECK_MS`] each end sends its position. An end that does not know
//!   the call answers `CallCancel`.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

use super::output::Outputs;
use super::sender::send;
use super::{CallInput, CallOpen, CallOutput, CallResult};
use crate::Millis;
use crate::call::CODE_BUSY;
use crate::frame::{Frame, SessionId};
use crate::limits::{
    CALL_BYTES_MAX, CALL_CHECK_MS, CALL_CONTROL_BYTES_MAX, CALL_CONTROLS_MAX,
    CALL_CREDIT_BYTES_MIN, CALL_FRAMES_MAX, CALL_REASON_BYTES_MAX, CALL_WINDOW_BYTES, CALLS_MAX,
};
use crate::sorted::SortedMap;

/// Credit of a call in each direction before its first frame.
const MIN: u64 = CALL_CREDIT_BYTES_MIN as u64;
/// Number of received frames at which they are acknowledged.
const ACK_FRAMES: u64 = 4;

/// State of the direction in which this end sends.
#[derive(Debug, Default)]
struct Outgoing {
    /// Number of the next frame.
    number: u64,
    /// All frames before this number are acknowledged.
    seen: u64,
    /// Sequence numbers of unacknowledged control messages, at most [`CALL_CONTROLS_MAX`].
    controls: VecDeque<u64>,
    /// Bytes taken from the caller so far.
    given: u64,
    /// Offset up to which the caller may give bytes.
    upto: u64,
    /// Taken from the caller and not yet sent.
    waiting: Vec<u8>,
    /// The caller gives no more data.
    ending: bool,
    /// The end of the data was sent.
    ended: bool,
    /// Sent when no data waits any more.
    result: Option<(u32, String)>,
}

/// State of the direction in which the other end sends.
#[derive(Debug, Default)]
struct Incoming {
    /// Number of the next frame.
    number: u64,
    /// All frames before this number are acknowledged.
    acknowledged: u64,
    received: u64,
    taken: u64,
    /// Offset up to which the other end may send.
    upto: u64,
    ended: bool,
}

impl Incoming {
    /// Bytes that are in flight, wait for the consumer, or are granted.
    const fn outstanding(&self) -> u64 {
        match self.ended {
            true => self.received - self.taken,
            false => self.upto - self.taken,
        }
    }

    /// Bytes of the window that are taken by this call, at least its reserve.
    const fn reserved(&self) -> u64 {
        let outstanding = self.outstanding();
        match outstanding > MIN {
            true => outstanding,
            false => MIN,
        }
    }
}

#[derive(Debug)]
struct Call {
    outgoing: Outgoing,
    incoming: Incoming,
}

/// The open calls of a session, at most [`CALLS_MAX`].
#[derive(Debug)]
pub(super) struct Calls {
    /// This end opens calls: it is the cloud.
    opens: bool,
    calls: SortedMap<u32, Call>,
    /// Highest id so far: a duplicated `CallOpen` does not run a call twice.
    last: Option<u32>,
    /// When each end sends its position next.
    check_at: Option<Millis>,
}

impl Calls {
    pub(super) const fn new(opens: bool) -> Self {
        Self {
            opens,
            calls: SortedMap::new(),
            last: None,
            check_at: None,
        }
    }

    pub(super) const fn deadline(&self) -> Option<Millis> {
        self.check_at
    }

    /// The session has ended: ends all calls.
    pub(super) fn close<O: Outputs>(&mut self, out: &mut VecDeque<O>) {
        if !self.opens {
            self.last = None;
        }
        self.check_at = None;
        for (id, _) in core::mem::take(&mut self.calls) {
            out.push_back(CallOutput::Cancelled { id }.into());
        }
    }

    /// Opens a call, at the cloud. Without a session, over a cap or with an old id it ends at
    /// once.
    pub(super) fn open<O: Outputs>(
        &mut self,
        now: Millis,
        session: Option<SessionId>,
        CallOpen { id, method, args }: CallOpen,
        out: &mut VecDeque<O>,
    ) {
        let fresh = self.last.is_none_or(|last| id > last);
        let fits = args.len() <= CALL_BYTES_MAX && self.calls.len() < CALLS_MAX;
        let (Some(session), true, true) = (session, fresh, fits) else {
            out.push_back(CallOutput::Cancelled { id }.into());
            return;
        };
        self.last = Some(id);
        self.insert(now, id, MIN);
        let (share, free) = self.shares();
        let upto = share.min(MIN + free);
        if let Some(call) = self.calls.get_mut(&id) {
            call.incoming.upto = upto;
        }
        let frame = Frame::CallOpen {
            session,
            id,
            method,
            args,
            upto,
        };
        send(out, &frame);
        let bytes = CALL_CREDIT_BYTES_MIN;
        out.push_back(CallOutput::Window { id, bytes }.into());
    }

    /// The cloud opens a call. If it is new, returns its window; the caller then outputs
    /// the call and the window.
    pub(super) fn handle_open<O: Outputs>(
        &mut self,
        now: Millis,
        session: SessionId,
        (id, upto): (u32, u64),
        out: &mut VecDeque<O>,
    ) -> Option<u32> {
        if self.last.is_some_and(|last| id <= last) {
            return None;
        }
        self.last = Some(id);
        if self.calls.len() >= CALLS_MAX {
            let frame = Frame::CallResult {
                session,
                id,
                number: 0,
                code: CODE_BUSY,
                reason: String::new(),
            };
            send(out, &frame);
            return None;
        }
        let bytes =
            u32::try_from(upto).map_or(CALL_WINDOW_BYTES, |upto| upto.min(CALL_WINDOW_BYTES));
        self.insert(now, id, u64::from(bytes));
        Some(bytes)
    }

    fn insert(&mut self, now: Millis, id: u32, upto: u64) {
        let outgoing = Outgoing {
            upto,
            ..Outgoing::default()
        };
        let incoming = Incoming {
            upto: MIN,
            ..Incoming::default()
        };
        self.calls.insert(id, Call { outgoing, incoming });
        self.check_at
            .get_or_insert_with(|| now.saturating_add(CALL_CHECK_MS));
    }

    /// Handles the caller's input to an open call.
    pub(super) fn handle_input<O: Outputs>(
        &mut self,
        session: SessionId,
        input: CallInput,
        out: &mut VecDeque<O>,
    ) {
        match input {
            CallInput::Data { id, bytes, end } => {
                let Some(Call { outgoing, .. }) = self.calls.get_mut(&id) else {
                    return;
                };
                let given = outgoing.given + bytes.len() as u64;
                if given > outgoing.upto || outgoing.ending {
                    self.abort(session, id, out);
                    return;
                }
                outgoing.given = given;
                outgoing.ending = end;
                let begins = bytes.is_empty() && !end && outgoing.may_send();
                outgoing.waiting.extend(bytes);
                if begins && outgoing.waiting.is_empty() {
                    outgoing.send_data(session, id, 0, out);
                }
                self.pump(session, id, out);
            }
            CallInput::Control { id, kind, bytes } => {
                let Some(Call { outgoing, .. }) = self.calls.get_mut(&id) else {
                    return;
                };
                if bytes.len() > CALL_CONTROL_BYTES_MAX
                    || outgoing.controls.len() >= CALL_CONTROLS_MAX
                {
                    self.abort(session, id, out);
                    return;
                }
                let number = outgoing.next();
                outgoing.controls.push_back(number);
                let frame = Frame::CallControl {
                    session,
                    id,
                    number,
                    kind,
                    bytes,
                };
                send(out, &frame);
            }
            CallInput::Taken { id, bytes } => {
                if let Some(Call { incoming, .. }) = self.calls.get_mut(&id) {
                    let taken = incoming.taken.saturating_add(u64::from(bytes));
                    incoming.taken = taken.min(incoming.received);
                    self.grant(session, out);
                }
            }
            CallInput::Cancel { id } => {
                if self.remove(id) {
                    send(out, &Frame::CallCancel { session, id });
                    self.grant(session, out);
                }
            }
        }
    }

    /// Ends a call, at the node, after all data that was given has been sent.
    pub(super) fn handle_result<O: Outputs>(
        &mut self,
        session: SessionId,
        CallResult {
            id,
            code,
            mut reason,
        }: CallResult,
        out: &mut VecDeque<O>,
    ) {
        super::cut(&mut reason, CALL_REASON_BYTES_MAX);
        if let Some(Call { outgoing, .. }) = self.calls.get_mut(&id) {
            outgoing.ending = true;
            outgoing.result = Some((code, reason));
            self.pump(session, id, out);
        }
    }

    pub(super) fn tick<O: Outputs>(
        &mut self,
        now: Millis,
        session: SessionId,
        out: &mut VecDeque<O>,
    ) {
        if self.check_at.is_some_and(|at| at <= now) {
            self.check_at = (!self.calls.is_empty()).then(|| now.saturating_add(CALL_CHECK_MS));
            for (id, call) in &mut self.calls {
                call.send_credit(session, *id, true, out);
            }
        }
    }

    /// Handles a frame that both ends may send.
    pub(super) fn handle_frame<O: Outputs>(
        &mut self,
        session: SessionId,
        frame: Frame,
        out: &mut VecDeque<O>,
    ) {
        match frame {
            Frame::CallData {
                id,
                number,
                bytes,
                end,
                ..
            } => self.handle_data(session, (id, number), bytes, end, out),
            Frame::CallControl {
                id,
                number,
                kind,
                bytes,
                ..
            } => self.handle_control(session, (id, number), (kind, bytes), out),
            Frame::CallCredit {
                id,
                number,
                seen,
                upto,
                check,
                ..
            } => self.handle_credit(session, id, (number, seen, upto), check, out),
            Frame::CallCancel { id, .. } => self.handle_cancel(session, id, out),
            _ => {}
        }
    }

    /// Checks the sequence number of a data, control or result frame. Returns the call if the number is the
    /// next.
    fn next_frame<O: Outputs>(
        &mut self,
        session: SessionId,
        (id, number): (u32, u64),
        out: &mut VecDeque<O>,
    ) -> Option<&mut Incoming> {
        let Some(call) = self.calls.get(&id) else {
            // Without this the other end could wait for credit for ever.
            send(out, &Frame::CallCancel { session, id });
            return None;
        };
        if number > call.incoming.number {
            self.abort(session, id, out);
            return None;
        }
        let incoming = &mut self.calls.get_mut(&id)?.incoming;
        let next = number == incoming.number;
        incoming.number += u64::from(next);
        next.then_some(incoming)
    }

    fn handle_data<O: Outputs>(
        &mut self,
        session: SessionId,
        (id, number): (u32, u64),
        bytes: Vec<u8>,
        end: bool,
        out: &mut VecDeque<O>,
    ) {
        let Some(incoming) = self.next_frame(session, (id, number), out) else {
            return;
        };
        let received = incoming.received + bytes.len() as u64;
        if received > incoming.upto || incoming.ended {
            self.abort(session, id, out);
            return;
        }
        incoming.received = received;
        incoming.ended = end;
        out.push_back(CallOutput::Data { id, bytes, end }.into());
        self.grant(session, out);
    }

    fn handle_control<O: Outputs>(
        &mut self,
        session: SessionId,
        (id, number): (u32, u64),
        (kind, bytes): (u8, Vec<u8>),
        out: &mut VecDeque<O>,
    ) {
        if self.next_frame(session, (id, number), out).is_some() {
            out.push_back(CallOutput::Control { id, kind, bytes }.into());
            // Few may be in flight, so each is acknowledged at once.
            if let Some(call) = self.calls.get_mut(&id) {
                call.send_credit(session, id, false, out);
            }
        }
    }

    /// Handles a result, at the cloud; returns whether it ends the call.
    pub(super) fn handle_result_frame<O: Outputs>(
        &mut self,
        session: SessionId,
        (id, number): (u32, u64),
        out: &mut VecDeque<O>,
    ) -> bool {
        // An unknown call has already ended here, and needs no answer.
        let over = self.calls.contains_key(&id)
            && self.next_frame(session, (id, number), out).is_some()
            && self.remove(id);
        if over {
            self.grant(session, out);
        }
        over
    }

    /// Handles credit and acknowledgements of the other end.
    fn handle_credit<O: Outputs>(
        &mut self,
        session: SessionId,
        id: u32,
        (number, seen, upto): (u64, u64, u64),
        check: bool,
        out: &mut VecDeque<O>,
    ) {
        let Some(call) = self.calls.get_mut(&id) else {
            // Without the flag the frame is late, or the call had ended here before.
            if check {
                send(out, &Frame::CallCancel { session, id });
            }
            return;
        };
        let (outgoing, incoming) = (&mut call.outgoing, &call.incoming);
        let most = outgoing.given + u64::from(CALL_WINDOW_BYTES);
        if number > incoming.number || seen > outgoing.number || upto > most {
            self.abort(session, id, out);
            return;
        }
        outgoing.seen = outgoing.seen.max(seen);
        let seen = outgoing.seen;
        outgoing.controls.retain(|control| *control >= seen);
        let more = upto.saturating_sub(outgoing.upto);
        outgoing.upto += more;
        // Within the window, which was checked when the call was opened.
        if let (false, Ok(bytes @ 1..)) = (outgoing.ending, u32::try_from(more)) {
            out.push_back(CallOutput::Window { id, bytes }.into());
        }
        self.pump(session, id, out);
    }

    fn handle_cancel<O: Outputs>(&mut self, session: SessionId, id: u32, out: &mut VecDeque<O>) {
        if self.remove(id) {
            out.push_back(CallOutput::Cancelled { id }.into());
            self.grant(session, out);
        }
    }

    /// A frame is lost, or the other end violates the protocol: ends the call at both ends.
    fn abort<O: Outputs>(&mut self, session: SessionId, id: u32, out: &mut VecDeque<O>) {
        send(out, &Frame::CallCancel { session, id });
        self.handle_cancel(session, id, out);
    }

    fn remove(&mut self, id: u32) -> bool {
        let removed = self.calls.remove(&id).is_some();
        if self.calls.is_empty() {
            self.check_at = None;
        }
        removed
    }

    /// Sends waiting data and the result of a call as far as its credit allows.
    fn pump<O: Outputs>(&mut self, session: SessionId, id: u32, out: &mut VecDeque<O>) {
        let Some(Call { outgoing, .. }) = self.calls.get_mut(&id) else {
            return;
        };
        while !outgoing.waiting.is_empty() && outgoing.may_send() {
            let count = outgoing.waiting.len().min(CALL_BYTES_MAX);
            outgoing.send_data(session, id, count, out);
        }
        if !outgoing.waiting.is_empty() {
            return;
        }
        if let Some((code, reason)) = outgoing.result.take() {
            let frame = Frame::CallResult {
                session,
                id,
                number: outgoing.next(),
                code,
                reason,
            };
            send(out, &frame);
            self.remove(id);
            self.grant(session, out);
        } else if outgoing.ending && !outgoing.ended && outgoing.may_send() {
            outgoing.send_data(session, id, 0, out);
        }
    }

    /// Equal share of each call in the window, and the bytes that are not reserved by any call.
    fn shares(&self) -> (u64, u64) {
        let open = self.calls.len();
        let kept = (CALLS_MAX.saturating_sub(open)) as u64 * MIN;
        let window = u64::from(CALL_WINDOW_BYTES) - kept;
        let reserved: u64 = self
            .calls
            .values()
            .map(|call| call.incoming.reserved())
            .sum();
        let share = window / (open.max(1) as u64);
        (share, window.saturating_sub(reserved))
    }

    /// Grants credit when a frame's worth is free or little credit is left, and acknowledges.
    fn grant<O: Outputs>(&mut self, session: SessionId, out: &mut VecDeque<O>) {
        let (share, mut free) = self.shares();
        // Granting only whole windows would leave the link idle for half of each round trip.
        let grain = (share / 2).min(CALL_BYTES_MAX as u64);
        for (id, call) in &mut self.calls {
            let incoming = &mut call.incoming;
            let reserved = incoming.reserved();
            let most = match incoming.ended {
                true => 0,
                false => (incoming.taken + share).saturating_sub(incoming.upto),
            };
            let grow = most.min(free + reserved - incoming.outstanding());
            let low = incoming.upto - incoming.received < MIN && grow >= MIN / 2;
            let unseen = incoming.number - incoming.acknowledged >= ACK_FRAMES;
            if grow >= grain || low || unseen {
                incoming.upto += grow;
                free -= incoming.reserved() - reserved;
                call.send_credit(session, *id, false, out);
            }
        }
    }
}

impl Call {
    fn send_credit<O: Outputs>(
        &mut self,
        session: SessionId,
        id: u32,
        check: bool,
        out: &mut VecDeque<O>,
    ) {
        self.incoming.acknowledged = self.incoming.number;
        let frame = Frame::CallCredit {
            session,
            id,
            number: self.outgoing.number,
            seen: self.incoming.number,
            upto: self.incoming.upto,
            check,
        };
        send(out, &frame);
    }
}

impl Outgoing {
    /// Whether one more frame of data may be sent.
    fn may_send(&self) -> bool {
        let unseen = self.number - self.seen;
        unseen < (CALL_FRAMES_MAX + self.controls.len()) as u64
    }

    const fn next(&mut self) -> u64 {
        let number = self.number;
        self.number += 1;
        number
    }

    /// Sends the first bytes of the waiting data.
    fn send_data<O: Outputs>(
        &mut self,
        session: SessionId,
        id: u32,
        count: usize,
        out: &mut VecDeque<O>,
    ) {
        let rest = self.waiting.split_off(count);
        let bytes = core::mem::replace(&mut self.waiting, rest);
        // If a result follows, the result also marks the end of the data.
        self.ended = self.ending && self.waiting.is_empty() && self.result.is_none();
        let frame = Frame::CallData {
            session,
            id,
            number: self.next(),
            bytes,
            end: self.ended,
        };
        send(out, &frame);
    }
}
