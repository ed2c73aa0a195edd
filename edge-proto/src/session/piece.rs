//! Fetching large objects, one after the other, several pieces ahead. Pieces that come out of turn
//! wait here, so that the caller gets the bytes in order and one piece at a time.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::BlobOutput;
use super::congestion_window::{CongestionWindow, WINDOW_MAX};
use super::link::earliest;
use super::opening::Repeat;
use super::output::Outputs;
use super::sender::send;
use crate::Millis;
use crate::frame::{Frame, SessionId};
use crate::hash::Hash32;
use crate::limits::{BLOBS_MAX, PIECE_BYTES_MAX};
use crate::sorted::SortedMap;

/// A piece is given up when so many that were asked for later have come.
const OVERTAKEN_MAX: u8 = 3;
/// Bytes of a piece that is not the last.
#[expect(clippy::cast_possible_truncation, reason = "4 KiB")]
pub(super) const PIECE_BYTES: u32 = PIECE_BYTES_MAX as u32;

/// A large object of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Want {
    pub(super) sha256: Hash32,
    pub(super) len: u32,
}

/// A piece that is missing.
#[derive(Debug)]
struct Ask {
    offset: u32,
    /// Number and time of the request, if one is on its way.
    flying: Option<(u32, Millis)>,
    /// It was asked for before.
    again: bool,
    /// Pieces that were asked for later and have come.
    overtaken: u8,
}

#[derive(Debug)]
pub(super) struct Fetch {
    /// The first is being fetched.
    wants: VecDeque<Want>,
    /// Bytes that the caller has; `None` while it has a question or a piece to answer.
    have: Option<u32>,
    /// What it will have when it has stored what it was given.
    given: u32,
    /// Missing pieces before `next`, ascending; with `held` at most a window.
    asks: VecDeque<Ask>,
    /// Pieces that came before their turn.
    held: SortedMap<u32, Vec<u8>>,
    /// Nothing was asked for from here on.
    next: u32,
    repeat: Repeat,
    /// The caller got no further: nothing is done until this is due.
    pause: Repeat,
}

impl Fetch {
    /// Objects in the order of the fetch.
    pub(super) const fn new(wants: VecDeque<Want>) -> Self {
        Self {
            wants,
            have: None,
            given: 0,
            asks: VecDeque::new(),
            held: SortedMap::new(),
            next: 0,
            repeat: Repeat::new(),
            pause: Repeat::new(),
        }
    }

    /// One more object is wanted, after all others; in a `live` session, if it is the first, the
    /// caller is asked for it. Returns whether there is a place.
    pub(super) fn push<O: Outputs>(
        &mut self,
        want: Want,
        live: bool,
        out: &mut VecDeque<O>,
    ) -> bool {
        if self.wants.iter().any(|other| other.sha256 == want.sha256) {
            return true;
        }
        let room = self.wants.len() < BLOBS_MAX;
        if room {
            self.wants.push_back(want);
            if live && self.wants.len() == 1 {
                self.ask_caller(out);
            }
        }
        room
    }

    /// An object is not wanted any more, or not there. Returns whether it was.
    pub(super) fn remove<O: Outputs>(
        &mut self,
        sha256: Hash32,
        live: bool,
        window: &mut CongestionWindow,
        out: &mut VecDeque<O>,
    ) -> bool {
        let Some(place) = self.wants.iter().position(|want| want.sha256 == sha256) else {
            return false;
        };
        self.wants.remove(place);
        if place == 0 {
            self.forget(window);
            self.pause.reset();
            if live {
                self.begin(window, out);
            }
        }
        true
    }

    /// Begins with the first object, from what the caller says that it has.
    pub(super) fn begin<O: Outputs>(
        &mut self,
        window: &mut CongestionWindow,
        out: &mut VecDeque<O>,
    ) {
        self.forget(window);
        self.pause.reset();
        self.ask_caller(out);
    }

    fn ask_caller<O: Outputs>(&self, out: &mut VecDeque<O>) {
        if let Some(Want { sha256, len }) = self.wants.front().copied() {
            out.push_back(BlobOutput::Wanted { sha256, len }.into());
        }
    }

    pub(super) fn deadline(&self) -> Option<Millis> {
        earliest([self.repeat.at, self.pause.at])
    }

    /// The current object is forgotten as far as it is not stored.
    pub(super) fn forget(&mut self, window: &mut CongestionWindow) {
        window.flying = window.flying.saturating_sub(self.flying());
        self.asks.clear();
        self.held.clear();
        self.have = None;
        self.given = 0;
        self.next = 0;
        self.repeat.reset();
    }

    fn flying(&self) -> u64 {
        let flying = self.asks.iter().filter(|ask| ask.flying.is_some());
        flying.count() as u64
    }

    pub(super) fn tick(&mut self, now: Millis, window: &mut CongestionWindow) {
        self.pause.is_due(now);
        if self.repeat.is_due(now) {
            window.lost(self.flying(), true);
            for ask in &mut self.asks {
                ask.flying = None;
            }
        }
    }

    /// Gives the caller the next piece, asks the peer for as many as may be on their way.
    pub(super) fn pump<O: Outputs>(
        &mut self,
        now: Millis,
        session: SessionId,
        window: &mut CongestionWindow,
        out: &mut VecDeque<O>,
    ) {
        let Some(Want { sha256, len }) = self.wants.front().copied() else {
            return;
        };
        if self.pause.at.is_some() {
            return;
        }
        if let Some((offset, bytes)) = self.have.and_then(|have| self.held.remove_entry(&have)) {
            self.have = None;
            // Within the object: checked when it came.
            self.given = offset + piece_bytes(offset, len);
            let piece = BlobOutput::Piece {
                sha256,
                offset,
                bytes,
            };
            out.push_back(piece.into());
        }
        let mut asked = false;
        let mut ask_peer = |ask: &mut Ask, window: &mut CongestionWindow| {
            ask.flying = Some((window.sent(), now));
            asked = true;
            let offset = ask.offset;
            let frame = Frame::PieceGet {
                session,
                sha256,
                offset,
            };
            send(out, &frame);
        };
        for ask in self.asks.iter_mut().filter(|ask| ask.flying.is_none()) {
            if !window.has_room() {
                break;
            }
            ask.again = true;
            ask.overtaken = 0;
            ask_peer(ask, window);
        }
        // Not before the caller has said where to begin.
        let begun = self.have.is_some() || self.given > 0;
        while begun
            && self.next < len
            && ((self.asks.len() + self.held.len()) as u64) < WINDOW_MAX
            && window.has_room()
        {
            let mut ask = Ask {
                offset: self.next,
                flying: None,
                again: false,
                overtaken: 0,
            };
            ask_peer(&mut ask, window);
            self.next += piece_bytes(self.next, len);
            self.asks.push_back(ask);
        }
        if asked && self.repeat.at.is_none() {
            self.repeat.arm(now);
        }
    }

    /// The caller has `bytes` of the object. Returns whether all objects are there.
    pub(super) fn handle_have<O: Outputs>(
        &mut self,
        now: Millis,
        (sha256, bytes): (Hash32, u32),
        window: &mut CongestionWindow,
        out: &mut VecDeque<O>,
    ) -> bool {
        let Some(want) = self.wants.front().filter(|want| want.sha256 == sha256) else {
            return self.wants.is_empty();
        };
        if bytes == want.len {
            self.wants.pop_front();
            self.begin(window, out);
            return self.wants.is_empty();
        }
        let bytes = if bytes < want.len { bytes } else { 0 };
        if bytes < self.given {
            // Storing or checking failed: not at once again, and less and less often.
            self.pause.arm(now);
        }
        if bytes != self.given || self.asks.is_empty() && self.held.is_empty() {
            // The first answer, or the caller could not store: what comes after is of no use.
            self.forget(window);
            self.given = bytes;
            self.next = bytes;
        }
        self.have = Some(bytes);
        false
    }

    /// A piece came. Returns whether it was asked for here.
    pub(super) fn handle_piece(
        &mut self,
        now: Millis,
        (sha256, offset): (Hash32, u32),
        bytes: &mut Vec<u8>,
        window: &mut CongestionWindow,
    ) -> bool {
        let Some(want) = self.wants.front().filter(|want| want.sha256 == sha256) else {
            return false;
        };
        let whole = bytes.len() == piece_bytes(offset, want.len) as usize;
        let place = self.asks.iter().position(|ask| ask.offset == offset);
        let ask = match place {
            Some(place) if whole => self.asks.remove(place),
            _ => None,
        };
        let Some(ask) = ask else {
            return false;
        };
        if let Some((number, at)) = ask.flying {
            let after = (!ask.again).then(|| now.saturating_sub(at));
            window.answered(now, number, after);
            self.note_overtaken(number, window);
        }
        self.held.insert(offset, core::mem::take(bytes));
        self.repeat.reset();
        if self.asks.iter().any(|ask| ask.flying.is_some()) {
            self.repeat.arm(now);
        }
        true
    }

    fn note_overtaken(&mut self, number: u32, window: &mut CongestionWindow) {
        let mut lost = 0;
        for ask in &mut self.asks {
            let earlier = |(sent, _)| number.wrapping_sub(sent) < u32::MAX / 2;
            if ask.flying.is_some_and(earlier) {
                ask.overtaken += 1;
                if ask.overtaken >= OVERTAKEN_MAX {
                    ask.flying = None;
                    lost += 1;
                }
            }
        }
        window.lost(lost, false);
    }
}

/// Bytes of the piece at `offset`; 0 beyond the end.
fn piece_bytes(offset: u32, len: u32) -> u32 {
    len.saturating_sub(offset).min(PIECE_BYTES)
}
