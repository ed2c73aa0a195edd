//! Congestion window: how many pieces a receiver requests ahead, to fill the link with short queues.
//!
//! The signal is the time from a request to its piece. Near the shortest time that was seen, nothing
//! queues, and the window grows. Well above it, pieces queue somewhere on the path, and state and control
//! frames would wait behind them; the window is then reduced to what the link carries in the
//! shortest time. Only the shortest time of a round counts, because the retransmission of a single lost
//! packet does not indicate a queue.

use crate::Millis;
use crate::limits::{BLOB_WINDOW_BYTES, PIECE_BYTES_MAX};

/// Upper bound of the window, pieces.
pub(super) const WINDOW_MAX: u64 = (BLOB_WINDOW_BYTES / PIECE_BYTES_MAX) as u64;
/// Initial window, pieces.
const WINDOW_FIRST: u64 = 4;
/// Lower bound of the window, pieces: one is sent while another is received.
const WINDOW_MIN: u64 = 2;
/// Queueing delay up to which the window grows.
const QUEUE_MS_LOW: Millis = 40;
/// Queueing delay above which it shrinks.
const QUEUE_MS_HIGH: Millis = 90;
/// Time for which the shortest delay is remembered, at most twice that: the path may change.
const MEMORY_MS: Millis = 60_000;

#[derive(Debug)]
pub(super) struct CongestionWindow {
    window: u64,
    /// The window doubles each round while it is below this.
    threshold: u64,
    /// Requests in flight.
    pub(super) in_flight: u64,
    /// Number of the next request.
    number: u32,
    /// The round ends when a request with this number or a later one is answered.
    round: u32,
    /// Shortest time of this round.
    shortest: Option<Millis>,
    /// Only the window has delayed a request.
    full: bool,
    /// Shortest delays of this period of memory and of the previous one.
    base: [Option<Millis>; 2],
    span_end: Millis,
}

impl CongestionWindow {
    pub(super) const fn new() -> Self {
        Self {
            window: WINDOW_FIRST,
            threshold: WINDOW_MAX,
            in_flight: 0,
            number: 0,
            round: 0,
            shortest: None,
            full: false,
            base: [None; 2],
            span_end: 0,
        }
    }

    /// A session opens, possibly over another path.
    pub(super) const fn open(&mut self) {
        *self = Self::new();
    }

    /// Whether another request may be sent.
    pub(super) const fn may_request(&mut self) -> bool {
        self.full |= self.in_flight >= self.window;
        self.in_flight < self.window
    }

    /// A request is sent; returns its number.
    pub(super) const fn sent(&mut self) -> u32 {
        self.in_flight += 1;
        self.number = self.number.wrapping_add(1);
        self.number
    }

    /// Request `number` was answered, after the delay `after` if it was sent only once.
    pub(super) fn answered(&mut self, now: Millis, number: u32, after: Option<Millis>) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(after) = after {
            self.remember(now, after);
            self.shortest = Some(self.shortest.map_or(after, |shortest| shortest.min(after)));
        }
        // Numbers wrap after 16 TiB of pieces.
        if number.wrapping_sub(self.round) < u32::MAX / 2 {
            self.end_round();
        }
    }

    /// Requests are given up and will be sent again: the session's repeat is due, or later requests were
    /// answered before.
    pub(super) fn lost(&mut self, requests: u64, all: bool) {
        self.in_flight = self.in_flight.saturating_sub(requests);
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
