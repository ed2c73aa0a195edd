//! What both ends do alike inside a session: one set out, one set in.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::receiver::Receiver;
use super::sender::{Sender, send};
use super::{Output, Reason};
use crate::Millis;
use crate::frame::{Frame, SessionId, Set};
use crate::hash::{Hash16, Hash32};
use crate::key::Key;

#[derive(Debug)]
pub(super) struct Link {
    pub(super) session: Option<SessionId>,
    pub(super) sender: Sender,
    pub(super) receiver: Receiver,
    /// Drained after every `handle`, which adds at most an inventory's pages and a few more.
    pub(super) out: VecDeque<Output>,
    /// Highest accepted epoch (node), own epoch (cloud).
    pub(super) epoch: u64,
    sends: Set,
    told: Option<(bool, bool)>,
}

impl Link {
    pub(super) const fn new(sends: Set, receives: Set) -> Self {
        Self {
            session: None,
            sender: Sender::new(sends),
            receiver: Receiver::new(receives),
            out: VecDeque::new(),
            epoch: 0,
            sends,
            told: None,
        }
    }

    pub(super) fn send(&mut self, frame: &Frame) {
        send(&mut self.out, frame);
    }

    /// `session` is live; the peer holds `held` of our set and wants us at `wanted`.
    pub(super) fn open(&mut self, session: SessionId, held: Hash16, wanted: Hash16, kinds: u32) {
        self.session = Some(session);
        self.sender.open(held, kinds);
        self.receiver.open(wanted);
        self.told = None;
    }

    /// Returns whether a session was live.
    pub(super) fn close(&mut self) -> bool {
        self.sender.close();
        self.receiver.close();
        self.told = None;
        self.session.take().is_some()
    }

    pub(super) fn put(&mut self, key: Key, payload: Arc<[u8]>) {
        if let Err(reason) = self.sender.put(&key, payload) {
            self.out.push_back(Output::PutRefused { key, reason });
        }
    }

    /// Changes are durable. Returns the epoch stored with them.
    pub(super) fn applied(&mut self, ticket: u32, refused: Vec<(Key, Reason)>) -> Option<u64> {
        let epoch = self.receiver.handle_applied(ticket, refused)?;
        if let Some(session) = self.session {
            self.receiver.send_have(session, &mut self.out);
        }
        Some(epoch)
    }

    pub(super) fn blob_have(&mut self, now: Millis, sha256: Hash32, bytes: u32) {
        if let Some(session) = self.session {
            let have = (sha256, bytes);
            self.receiver
                .handle_blob_have(now, session, have, self.epoch, &mut self.out);
        }
    }

    /// A frame of the live session. Calls are the caller's.
    pub(super) fn handle_frame(&mut self, now: Millis, session: SessionId, frame: Frame) {
        let out = &mut self.out;
        match frame {
            Frame::Change {
                set,
                base,
                result,
                more,
                items,
                ..
            } if set != self.sends => {
                let step = (base, result, more);
                self.receiver
                    .handle_change(session, step, items, self.epoch, out);
            }
            Frame::Have { set, root, .. } if set == self.sends => self.sender.handle_have(root),
            Frame::Inventory {
                set,
                root,
                page,
                last,
                entries,
                ..
            } if set == self.sends => self.sender.handle_inventory(now, root, page, last, entries),
            Frame::ChunkGet { sha256, offset, .. } => {
                self.sender.handle_chunk_get(session, sha256, offset, out);
                self.sender.postpone(now);
            }
            Frame::Chunk {
                sha256,
                offset,
                bytes,
                ..
            } => self.receiver.handle_chunk(sha256, offset, bytes, out),
            // A frame for the other half, or of the opening: never sent by this peer's build.
            _ => {}
        }
    }

    pub(super) fn tick(&mut self, now: Millis) {
        if let Some(session) = self.session {
            self.sender.tick(now, session, &mut self.out);
            self.receiver.tick(now, session, &mut self.out);
        }
    }

    /// After everything that happened: sends what can be sent, tells what changed.
    pub(super) fn pump(&mut self, now: Millis) {
        let Some(session) = self.session else {
            return;
        };
        self.sender.pump(now, session, &mut self.out);
        let sent = self.sender.is_in_sync();
        let received = self.receiver.is_in_sync();
        let (desired, reported) = match self.sends {
            Set::Desired => (sent, received),
            Set::Reported => (received, sent),
        };
        if self.told != Some((desired, reported)) {
            self.told = Some((desired, reported));
            self.out.push_back(Output::InSync { desired, reported });
        }
    }

    pub(super) fn deadline(&self) -> Option<Millis> {
        self.session?;
        earliest([self.sender.deadline(), self.receiver.deadline()])
    }
}

pub(super) fn earliest<const N: usize>(times: [Option<Millis>; N]) -> Option<Millis> {
    times.into_iter().flatten().min()
}
