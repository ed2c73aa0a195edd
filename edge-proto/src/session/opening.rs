//! What both ends need to open a session: nonces and repeat timers.

use crate::Millis;
use crate::frame::Nonce;
use crate::hash::sha256;
use crate::limits::{REPEAT_MS_MAX, REPEAT_MS_MIN};

/// Random numbers from a seed; nonces are unpredictable only if the seed is.
#[derive(Debug)]
pub(super) struct Rng {
    state: [u8; 40],
}

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        let mut state = [0; 40];
        for (to, from) in state.iter_mut().zip(seed.to_le_bytes()) {
            *to = from;
        }
        Self { state }
    }

    pub(super) fn nonce(&mut self) -> Nonce {
        // A hash chain: one half is the next state and never leaves, the other half is the output.
        let digest = sha256(&self.state).0;
        let mut nonce = Nonce::default();
        for (to, from) in nonce.iter_mut().zip(digest) {
            *to = from;
        }
        for (to, from) in self.state.iter_mut().zip(digest.iter().skip(8)) {
            *to = *from;
        }
        nonce
    }

    /// Uniform below `bound`; 0 for 0.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        u64::from_le_bytes(self.nonce())
            .checked_rem(bound)
            .unwrap_or(0)
    }
}

/// Timer of repeats of an unanswered frame: 4 s, doubling, at most 5 minutes.
#[derive(Debug)]
pub(super) struct Repeat {
    pub(super) at: Option<Millis>,
    delay: Millis,
}

impl Repeat {
    pub(super) const fn new() -> Self {
        Self {
            at: None,
            delay: REPEAT_MS_MIN,
        }
    }

    /// Sets the timer to the current delay, which then doubles.
    pub(super) fn arm(&mut self, now: Millis) {
        self.at = Some(now.saturating_add(self.delay));
        self.delay = (self.delay * 2).min(REPEAT_MS_MAX);
    }

    /// As `arm`, later by up to a quarter, so that the nodes of a fleet do not send at once.
    pub(super) fn arm_spread(&mut self, now: Millis, rng: &mut Rng) {
        let spread = rng.below(self.delay / 4);
        self.arm(now.saturating_add(spread));
    }

    /// Sets the timer to `at`; the delays start again with the shortest.
    pub(super) const fn arm_at(&mut self, at: Millis) {
        self.at = Some(at);
        self.delay = REPEAT_MS_MIN;
    }

    /// Whether the timer has expired; it is then cleared.
    pub(super) fn is_due(&mut self, now: Millis) -> bool {
        let due = self.at.is_some_and(|at| at <= now);
        if due {
            self.at = None;
        }
        due
    }

    /// Progress was made: clears the timer, and the next delay is the shortest.
    pub(super) fn reset(&mut self) {
        *self = Self::new();
    }
}
