//! Fetching large objects, one after the other, several pieces ahead. Pieces that arrive out of order
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

/// A request is given up when this many later ones were answered.
const OVERTAKEN_MAX: u8 = 3;
/// Bytes of a piece that is not the last.
#[expect(clippy::cast_possible_truncation, reason = "4 KiB")]
pub(super) const PIECE_BYTES: u32 = PIECE_BYTES_MAX as u32;

/// A large object of a change, to be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Want {
    pub(super) sha256: Hash32,
    pub(super) len: u32,
}

/// A missing piece.
#[derive(Debug)]
struct Request {
    offset: u32,
    /// Number and time of its request, if one is in flight.
    in_flight: Option<(u32, Millis)>,
    /// It was requested before.
    again: bool,
    /// Pieces that were requested later and have arrived.
    overtaken: u8,
}

#[derive(Debug)]
pub(super) struct Fetch {
    /// The first is being fetched.
    wants: VecDeque<Want>,
    /// Bytes that the caller has stored; `None` while it has not answered `Wanted` or `Piece`.
    have: Option<u32>,
    /// Bytes that it will have when it has stored what was output.
    given: u32,
    /// Missing pieces before `next`, ascending; with `held` at most a window.
    requests: VecDeque<Request>,
    /// Pieces that arrived before an earlier one, by offset.
    held: SortedMap<u32, Vec<u8>>,
    /// No piece from here on has been requested.
    next: u32,
    repeat: Repeat,
    /// The caller made no progress: nothing is done until this is due.
    pause: Repeat,
}

impl Fetch {
    /// Objects in the order of the fetch.
    pub(super) const fn new(wants: VecDeque<Want>) -> Self {
        Self {
            wants,
            have: None,
            given: 0,
            requests: VecDeque::new(),
            held: SortedMap::new(),
            next: 0,
            repeat: Repeat::new(),
            pause: Repeat::new(),
        }
    }

    /// Adds an object after all others; in a `live` session, if it is the first, the
    /// caller is asked what it has of it. Returns false if the queue is full.
    pub(super) fn push<O: Outputs>(
        &mut self,
        want: Want,
        live: bool,
        out: &mut VecDeque<O>,
    ) -> bool {
        if self.wants.iter().any(|other| other.sha256 == want.sha256) {
            return true;
        }
        let fits = self.wants.len() < BLOBS_MAX;
        if fits {
            self.wants.push_back(want);
            if live && self.wants.len() == 1 {
                self.ask_caller(out);
            }
        }
        fits
    }

    /// Stops fetching an object. Returns whether it was queued.
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
            self.drop_current(window);
            self.pause.reset();
            if live {
                self.begin(window, out);
            }
        }
        true
    }

    /// Begins with the first object: requests the caller what it has of it.
    pub(super) fn begin<O: Outputs>(
        &mut self,
        window: &mut CongestionWindow,
        out: &mut VecDeque<O>,
    ) {
        self.drop_current(window);
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

    /// Drops the requests and pieces of the current object that are not stored.
    pub(super) fn drop_current(&mut self, window: &mut CongestionWindow) {
        window.in_flight = window.in_flight.saturating_sub(self.in_flight());
        self.requests.clear();
        self.held.clear();
        self.have = None;
        self.given = 0;
        self.next = 0;
        self.repeat.reset();
    }

    fn in_flight(&self) -> u64 {
        let in_flight = self
            .requests
            .iter()
            .filter(|request| request.in_flight.is_some());
        in_flight.count() as u64
    }

    pub(super) fn tick(&mut self, now: Millis, window: &mut CongestionWindow) {
        self.pause.is_due(now);
        if self.repeat.is_due(now) {
            window.lost(self.in_flight(), true);
            for request in &mut self.requests {
                request.in_flight = None;
            }
        }
    }

    /// Outputs the next piece to the caller, and requests as many pieces as may be in flight.
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
            // The piece is within the object: checked when it was received.
            self.given = offset + piece_bytes(offset, len);
            let piece = BlobOutput::Piece {
                sha256,
                offset,
                bytes,
            };
            out.push_back(piece.into());
        }
        let mut asked = false;
        let mut send_request = |request: &mut Request, window: &mut CongestionWindow| {
            request.in_flight = Some((window.sent(), now));
            asked = true;
            let offset = request.offset;
            let frame = Frame::PieceGet {
                session,
                sha256,
                offset,
            };
            send(out, &frame);
        };
        for request in self
            .requests
            .iter_mut()
            .filter(|request| request.in_flight.is_none())
        {
            if !window.may_request() {
                break;
            }
            request.again = true;
            request.overtaken = 0;
            send_request(request, window);
        }
        // Not before the caller has answered how much it has.
        let begun = self.have.is_some() || self.given > 0;
        while begun
            && self.next < len
            && ((self.requests.len() + self.held.len()) as u64) < WINDOW_MAX
            && window.may_request()
        {
            let mut request = Request {
                offset: self.next,
                in_flight: None,
                again: false,
                overtaken: 0,
            };
            send_request(&mut request, window);
            self.next += piece_bytes(self.next, len);
            self.requests.push_back(request);
        }
        if asked && self.repeat.at.is_none() {
            self.repeat.arm(now);
        }
    }

    /// The caller has stored `bytes` of the object. Returns whether all objects are complete.
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
            // Storing or checking failed: try again after a delay that doubles.
            self.pause.arm(now);
        }
        if bytes != self.given || self.requests.is_empty() && self.held.is_empty() {
            // The first answer, or the caller could not store: later pieces are of no use.
            self.drop_current(window);
            self.given = bytes;
            self.next = bytes;
        }
        self.have = Some(bytes);
        false
    }

    /// Handles a received piece. Returns whether it was requested here.
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
        let place = self
            .requests
            .iter()
            .position(|request| request.offset == offset);
        let request = match place {
            Some(place) if whole => self.requests.remove(place),
            _ => None,
        };
        let Some(request) = request else {
            return false;
        };
        if let Some((number, at)) = request.in_flight {
            let after = (!request.again).then(|| now.saturating_sub(at));
            window.answered(now, number, after);
            self.note_overtaken(number, window);
        }
        self.held.insert(offset, core::mem::take(bytes));
        self.repeat.reset();
        if self
            .requests
            .iter()
            .any(|request| request.in_flight.is_some())
        {
            self.repeat.arm(now);
        }
        true
    }

    fn note_overtaken(&mut self, number: u32, window: &mut CongestionWindow) {
        let mut lost = 0;
        for request in &mut self.requests {
            let earlier = |(sent, _)| number.wrapping_sub(sent) < u32::MAX / 2;
            if request.in_flight.is_some_and(earlier) {
                request.overtaken += 1;
                if request.overtaken >= OVERTAKEN_MAX {
                    request.in_flight = None;
                    lost += 1;
                }
            }
        }
        window.lost(lost, false);
    }
}

/// Length of the piece at `offset`; 0 beyond the end.
fn piece_bytes(offset: u32, len: u32) -> u32 {
    len.saturating_sub(offset).min(PIECE_BYTES)
}
