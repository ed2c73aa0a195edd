//! The part of a session that is the same at both ends: one set sent, one set received.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::congestion_window::CongestionWindow;
use super::output::Outputs;
use super::piece::{Fetch, Want};
use super::receiver::Receiver;
use super::sender::{Sender, send};
use super::{BlobInput, LinkOutput, Problem, StateInput, StateOutput};
use crate::Millis;
use crate::frame::{Frame, SessionId, Set};
use crate::hash::{Hash16, Hash32};

#[derive(Debug)]
pub(super) struct Link<O> {
    pub(super) session: Option<SessionId>,
    pub(super) sender: Sender,
    pub(super) receiver: Receiver,
    /// Blobs that the caller fetches besides the set.
    pub(super) blobs: Fetch,
    /// Window of all requested pieces.
    pub(super) window: CongestionWindow,
    /// Drained after every `handle`, which adds at most an inventory's pages and a few more.
    pub(super) out: VecDeque<O>,
    /// Highest accepted epoch (node), own epoch (cloud).
    pub(super) epoch: u64,
    sends: Set,
    /// The last `InSync` output of the session: desired, reported.
    in_sync: Option<(bool, bool)>,
}

impl<O: Outputs> Link<O> {
    pub(super) fn new(sends: Set, receives: Set) -> Self {
        Self {
            session: None,
            sender: Sender::new(sends),
            receiver: Receiver::new(receives),
            blobs: Fetch::new(VecDeque::new()),
            window: CongestionWindow::new(),
            out: VecDeque::new(),
            epoch: 0,
            sends,
            in_sync: None,
        }
    }

    pub(super) fn problem(&mut self, problem: Problem) {
        self.out.push_back(LinkOutput::PeerProblem(problem).into());
    }

    pub(super) fn send(&mut self, frame: &Frame) {
        send(&mut self.out, frame);
    }

    /// `session` is live; the peer holds `held` of our set and was sent the target root `target`, if that
    /// is certain. Our own target root is `wanted`.
    pub(super) fn open(
        &mut self,
        session: SessionId,
        (held, target): (Hash16, Option<Hash16>),
        wanted: Hash16,
        kinds: u32,
    ) {
        self.session = Some(session);
        self.window.open();
        self.sender.open(held, target, kinds);
        self.receiver.open(wanted);
        self.blobs.begin(&mut self.window, &mut self.out);
        self.in_sync = None;
    }

    /// Returns whether a session was live.
    pub(super) fn close(&mut self) -> bool {
        self.sender.close();
        self.receiver.close();
        self.blobs.drop_current(&mut self.window);
        self.in_sync = None;
        self.session.take().is_some()
    }

    /// Returns the epoch that is now durable, if changes became durable.
    pub(super) fn handle_state(&mut self, input: StateInput) -> Option<u64> {
        match input {
            StateInput::Put { key, payload } => {
                if let Err(reason) = self.sender.put(&key, payload) {
                    let refused = StateOutput::PutRefused { key, reason };
                    self.out.push_back(refused.into());
                }
            }
            StateInput::Delete { key } => self.sender.delete(&key),
            StateInput::Applied { ticket, refused } => {
                let epoch = self.receiver.handle_applied(ticket, refused)?;
                if let Some(session) = self.session {
                    self.receiver.send_have(session, &mut self.out);
                }
                return Some(epoch);
            }
        }
        None
    }

    pub(super) fn handle_blob(&mut self, now: Millis, input: BlobInput) {
        let BlobInput::Have { sha256, bytes } = input;
        if self.session.is_some() {
            let have = (sha256, bytes);
            let (window, out) = (&mut self.window, &mut self.out);
            self.receiver
                .handle_blob_have(now, have, self.epoch, window, out);
            self.blobs.handle_have(now, have, window, out);
        }
    }

    /// Returns whether one more blob can be queued.
    pub(super) fn blob_fetch(&mut self, sha256: Hash32, len: u32) -> bool {
        let want = Want { sha256, len };
        len > 0 && self.blobs.push(want, self.session.is_some(), &mut self.out)
    }

    pub(super) fn blob_cancel(&mut self, sha256: Hash32) -> bool {
        let live = self.session.is_some();
        self.blobs
            .remove(sha256, live, &mut self.window, &mut self.out)
    }

    /// Returns whether the piece means that a blob is not available.
    pub(super) fn handle_piece(
        &mut self,
        now: Millis,
        (sha256, offset): (Hash32, u32),
        mut bytes: Vec<u8>,
    ) -> bool {
        let (place, window) = ((sha256, offset), &mut self.window);
        if bytes.is_empty() {
            // An object that is gone from the peer's set has been replaced: a change follows.
            return self.blob_cancel(sha256);
        }
        if !self.receiver.handle_piece(now, place, &mut bytes, window) {
            self.blobs.handle_piece(now, place, &mut bytes, window);
        }
        false
    }

    /// Returns whether a large object of the sent set was requested.
    pub(super) fn handle_piece_get(
        &mut self,
        now: Millis,
        session: SessionId,
        (sha256, offset): (Hash32, u32),
    ) -> bool {
        let known = self
            .sender
            .handle_piece_get(session, sha256, offset, &mut self.out);
        if known {
            self.sender.postpone(now);
        }
        known
    }

    /// Handles a frame of the live session about one of the two sets; the caller handles all others.
    pub(super) fn handle_frame(&mut self, now: Millis, session: SessionId, frame: Frame) {
        let out = &mut self.out;
        match frame {
            Frame::Change {
                set,
                base,
                result,
                order,
                items,
                ..
            } if set != self.sends => {
                let step = (base, result, order);
                let window = &mut self.window;
                self.receiver
                    .handle_change(session, step, items, self.epoch, window, out);
            }
            Frame::Have {
                set, root, order, ..
            } if set == self.sends => self.sender.handle_have(root, order),
            Frame::Inventory {
                set,
                root,
                page,
                last,
                order,
                entries,
                ..
            } if set == self.sends => {
                let page = (page, last);
                self.sender
                    .handle_inventory(now, (root, order), page, entries);
            }
            // A frame for the other half, or of the opening: a correct peer never sends it.
            _ => {}
        }
    }

    pub(super) fn tick(&mut self, now: Millis) {
        if let Some(session) = self.session {
            self.sender.tick(now, session, &mut self.out);
            self.receiver
                .tick(now, session, &mut self.window, &mut self.out);
            self.blobs.tick(now, &mut self.window);
        }
    }

    /// Called after every event: sends what can be sent, and outputs state changes.
    pub(super) fn pump(&mut self, now: Millis) {
        let Some(session) = self.session else {
            return;
        };
        self.sender.pump(now, session, &mut self.out);
        self.receiver
            .pump(now, session, &mut self.window, &mut self.out);
        // Objects of the set are fetched before other blobs.
        if !self.receiver.is_fetching() {
            self.blobs
                .pump(now, session, &mut self.window, &mut self.out);
        }
        let sent = self.sender.is_in_sync();
        let received = self.receiver.is_in_sync();
        let (desired, reported) = match self.sends {
            Set::Desired => (sent, received),
            Set::Reported => (received, sent),
        };
        if self.in_sync != Some((desired, reported)) {
            self.in_sync = Some((desired, reported));
            let in_sync = StateOutput::InSync { desired, reported };
            self.out.push_back(in_sync.into());
        }
    }

    pub(super) fn deadline(&self) -> Option<Millis> {
        self.session?;
        earliest([
            self.sender.deadline(),
            self.receiver.deadline(),
            self.blobs.deadline(),
        ])
    }
}

pub(super) fn earliest<const N: usize>(times: [Option<Millis>; N]) -> Option<Millis> {
    times.into_iter().flatten().min()
}
