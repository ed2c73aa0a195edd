//! Fetching the large objects of one change, one after the other, one chunk in flight.

use alloc::collections::VecDeque;

use super::Output;
use super::opening::Repeat;
use super::sender::send;
use crate::Millis;
use crate::frame::{Frame, SessionId};
use crate::hash::Hash32;

/// A large object of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Want {
    pub(super) sha256: Hash32,
    pub(super) len: u32,
}

#[derive(Debug)]
pub(super) struct Fetch {
    /// At most `CHANGE_ITEMS_MAX`; the first is being fetched.
    wants: VecDeque<Want>,
    /// Bytes that the caller has; `None` while it has a question or a chunk to answer.
    have: Option<u32>,
    /// Highest `have` of the current object.
    reached: u32,
    repeat: Repeat,
}

impl Fetch {
    /// Starts with the first object; `wants` is not empty.
    pub(super) fn new(wants: VecDeque<Want>, out: &mut VecDeque<Output>) -> Self {
        let fetch = Self {
            wants,
            have: None,
            reached: 0,
            repeat: Repeat::new(),
        };
        fetch.ask_caller(out);
        fetch
    }

    fn ask_caller(&self, out: &mut VecDeque<Output>) {
        if let Some(Want { sha256, len }) = self.wants.front().copied() {
            out.push_back(Output::BlobWanted { sha256, len });
        }
    }

    pub(super) const fn deadline(&self) -> Option<Millis> {
        self.repeat.at
    }

    pub(super) fn tick(&mut self, now: Millis, session: SessionId, out: &mut VecDeque<Output>) {
        if self.repeat.is_due(now) {
            self.ask_peer(now, session, out);
        }
    }

    fn ask_peer(&mut self, now: Millis, session: SessionId, out: &mut VecDeque<Output>) {
        if let (Some(want), Some(offset)) = (self.wants.front(), self.have) {
            let sha256 = want.sha256;
            let frame = Frame::ChunkGet {
                session,
                sha256,
                offset,
            };
            send(out, &frame);
            self.repeat.arm(now);
        }
    }

    /// The caller has `bytes` of the object. Returns whether all objects are there.
    pub(super) fn handle_have(
        &mut self,
        now: Millis,
        session: SessionId,
        sha256: Hash32,
        bytes: u32,
        out: &mut VecDeque<Output>,
    ) -> bool {
        let Some(want) = self.wants.front().filter(|want| want.sha256 == sha256) else {
            return self.wants.is_empty();
        };
        if bytes == want.len {
            self.wants.pop_front();
            self.have = None;
            self.reached = 0;
            self.repeat.reset();
            self.ask_caller(out);
            return self.wants.is_empty();
        }
        let bytes = if bytes < want.len { bytes } else { 0 };
        self.have = Some(bytes);
        if bytes > self.reached || self.reached == 0 {
            self.reached = bytes;
            self.repeat.reset();
            self.ask_peer(now, session, out);
        } else {
            // Storing or checking failed: not at once again.
            self.repeat.arm(now);
        }
        false
    }

    /// A chunk came.
    pub(super) fn handle_chunk(
        &mut self,
        sha256: Hash32,
        offset: u32,
        bytes: alloc::vec::Vec<u8>,
        out: &mut VecDeque<Output>,
    ) {
        let Some(want) = self.wants.front().filter(|want| want.sha256 == sha256) else {
            return;
        };
        let end = u32::try_from(bytes.len())
            .ok()
            .and_then(|bytes| offset.checked_add(bytes));
        let fits = end.is_some_and(|end| end > offset && end <= want.len);
        if fits && self.have == Some(offset) {
            self.have = None;
            self.repeat.at = None;
            out.push_back(Output::ChunkReceived {
                sha256,
                offset,
                bytes,
            });
        }
    }
}
