//! How many pieces a receiver asks for ahead: as many as the line carries, and few that queue.
//!
//! What counts is the time from a request to its piece. Near the shortest that was seen, nothing
//! queues, and the window grows; a good deal over it, pieces queue somewhere on the line, where
//! state and control would queue behind them, and the window becomes what the line carries in the
//! shortest time. Only the shortest time of a round counts, for a single packet that was lost and
//! sent again says nothing of queues.

use crate::Millis;
use crate::limits::{BLOB_WINDOW_BYTES, PIECE_BYTES_MAX};

/// Pieces ahead at most.
pub(super) const WINDOW_MAX: u64 = (BLOB_WINDOW_BYTES / PIECE_BYTES_MAX) as u64;
/// Pieces ahead at first.
const WINDOW_FIRST: u64 = 4;
/// Pieces ahead however long they take: one that is sent while another comes.
const WINDOW_MIN: u64 = 2;
/// Time in queues, up to which the window grows.
const QUEUE_MS_LOW: Millis = 40;
/// Time in queues, over which it shrinks.
const QUEUE_MS_HIGH: Millis = 90;
/// For so long, and up to twice that, the shortest time is remembered: the path may change.
const MEMORY_MS: Millis = 60_000;

#[derive(Debug)]
pub(super) struct CongestionWindow {
    window: u64,
    /// Below it the window doubles.
    threshold: u64,
    /// Requests on their way.
    pub(super) flying: u64,
    /// Number of the next request.
    number: u32,
    /// The round is over when a request of this number or a later one is answered.
    round: u32,
    /// Shortest time of this round.
    shortest: Option<Millis>,
    /// The window was all that kept a request back.
    full: bool,
    /// Shortest times of this span of memory and of the one before.
    base: [Option<Millis>; 2],
    span_end: Millis,
}

impl CongestionWindow {
    pub(super) const fn new() -> Self {
        Self {
            window: WINDOW_FIRST,
            threshold: WINDOW_MAX,
            flying: 0,
            number: 0,
            round: 0,
            shortest: None,
            full: false,
            base: [None; 2],
            span_end: 0,
        }
    }

    /// A session opens, maybe over another line.
    pub(super) const fn open(&mut self) {
        *self = Self::new();
    }

    /// Whether another request may go.
    pub(super) const fn has_room(&mut self) -> bool {
        self.full |= self.flying >= self.window;
        self.flying < self.window
    }

    /// A request goes; returns its number.
    pub(super) const fn sent(&mut self) -> u32 {
        self.flying += 1;
        self.number = self.number.wrapping_add(1);
        self.number
    }

    /// Request `number` was answered, `after` so long if it was sent once only.
    pub(super) fn answered(&mut self, now: Millis, number: u32, after: Option<Millis>) {
        self.flying = self.flying.saturating_sub(1);
        if let Some(after) = after {
            self.remember(now, after);
            self.shortest = Some(self.shortest.map_or(after, |shortest| shortest.min(after)));
        }
        // Numbers wrap after 16 TiB of pieces.
        if number.wrapping_sub(self.round) < u32::MAX / 2 {
            self.end_round();
        }
    }

    /// Requests are given up, to be sent anew: the session's repeat is due, or later ones were
    /// answered before.
    pub(super) fn lost(&mut self, requests: u64, all: bool) {
        self.flying = self.flying.saturating_sub(requests);
        if requests > 0 {
            self.threshold = (self.window / 2).max(WINDOW_MIN);
            self.window = if all { WINDOW_MIN } else { self.threshold };
            self.start_round();
        }
    }

    fn remember(&mut self, now: Millis, after: Millis) {
        let [newer, older] = &mut self.base;
        if now >= self.span_end {
            *older = newer.take();
            self.span_end = now.saturating_add(MEMORY_MS);
        }
        *newer = Some(newer.map_or(after, |newer| newer.min(after)));
    }

    const fn start_round(&mut self) {
        self.round = self.number.wrapping_add(1);
        self.shortest = None;
        self.full = false;
    }

    fn end_round(&mut self) {
        if let (Some(shortest), Some(base)) = (self.shortest, self.base.into_iter().flatten().min())
        {
            let queue = shortest - base.min(shortest);
            if queue > QUEUE_MS_HIGH {
                let carried = self.window * (base + QUEUE_MS_LOW) / shortest.max(1);
                self.window = carried.max(self.window / 2).max(WINDOW_MIN);
                self.threshold = self.window;
            } else if queue < QUEUE_MS_LOW && self.full {
                let grown = match self.window < self.threshold {
                    true => self.window * 2,
                    false => self.window + 1,
                };
                self.window = grown.min(WINDOW_MAX);
            }
        }
        self.start_round();
    }
}
