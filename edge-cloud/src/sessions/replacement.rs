//! When a new connection may replace the live one of the same node, and when two boards share an
//! identity.
//!
//! A board whose link was lost reconnects before we notice: at first, the newest connection replaces the
//! live one at once. Two boards with one certificate would then end each other's connection for ever. So
//! after [`REPLACEMENTS_MAX`] replacements in [`WINDOW_MS`] a new connection is refused until the live
//! one was probed: if it is silent it is replaced, an answer proves a clone.
//! Never does IO, never reads a clock.

/// Replacements without a probe in [`WINDOW_MS`]: a board that loses power repeatedly has as
/// many.
pub const REPLACEMENTS_MAX: usize = 3;
/// Replacements older than this are dropped.
pub const WINDOW_MS: u64 = 300_000;
/// Longest wait for the answer to the probe: many round trips at 30 % loss.
pub const ANSWER_TIMEOUT_MS: u64 = 10_000;
/// An identity counts as cloned for this long after the last proof. A refused board tries again
/// at least every ten minutes.
pub const CLONED_MS: u64 = 3_600_000;

/// Decision about a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The live connection is closed and replaced.
    Replaces,
    /// It is refused and may try again.
    Refused {
        /// Probe the live connection.
        probe: bool,
        /// The first proof of a clone since the last quiet time.
        proven: bool,
    },
}

/// The new connections of one node while another one was live.
#[derive(Debug, Default)]
pub struct Replacements {
    at: Vec<u64>,
    /// When the live connection was probed.
    probed_at: Option<u64>,
    /// It has answered since.
    answered: bool,
    proof: Option<u64>,
}

impl Replacements {
    /// There is a new connection while another one is live.
    pub fn new_connection(&mut self, now: u64) -> Decision {
        self.at.retain(|at| now.saturating_sub(*at) < WINDOW_MS);
        if self.at.len() < REPLACEMENTS_MAX && !self.cloned(now) {
            self.at.push(now);
            self.probed_at = None;
            return Decision::Replaces;
        }
        match self.probed_at {
            Some(_) if self.answered => {
                let proven = !self.cloned(now);
                self.proof = Some(now);
                self.probe(now, proven)
            }
            Some(probed_at) if now.saturating_sub(probed_at) >= ANSWER_TIMEOUT_MS => {
                self.probed_at = None;
                Decision::Replaces
            }
            Some(_) => Decision::Refused {
                probe: false,
                proven: false,
            },
            None => self.probe(now, false),
        }
    }

    /// Two boards were detected in another way. Returns whether this is new.
    pub fn prove(&mut self, now: u64) -> bool {
        let proven = !self.cloned(now);
        self.proof = Some(now);
        proven
    }

    const fn probe(&mut self, now: u64, proven: bool) -> Decision {
        self.probed_at = Some(now);
        self.answered = false;
        Decision::Refused {
            probe: true,
            proven,
        }
    }

    /// Whether the live connection was probed and has not answered yet.
    #[must_use]
    pub const fn waits(&self) -> bool {
        self.probed_at.is_some() && !self.answered
    }

    /// The live connection has answered.
    pub const fn record_answer(&mut self) {
        self.answered = true;
    }

    /// The live connection has ended by itself: the next one is accepted.
    pub const fn vacant(&mut self) {
        self.probed_at = None;
    }

    /// Whether two boards use the identity.
    #[must_use]
    pub fn cloned(&self, now: u64) -> bool {
        self.proof
            .is_some_and(|proof| now.saturating_sub(proof) < CLONED_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAITS: Decision = Decision::Refused {
        probe: false,
        proven: false,
    };

    /// Three replacements at 0, 1 and 2 s.
    fn suspicious() -> Replacements {
        let mut replacements = Replacements::default();
        for now in [0, 1_000, 2_000] {
            assert_eq!(replacements.new_connection(now), Decision::Replaces);
            replacements.record_answer();
        }
        replacements
    }

    fn probes(proven: bool) -> Decision {
        Decision::Refused {
            probe: true,
            proven,
        }
    }

    #[test]
    fn a_silent_connection_gives_its_place_away_and_is_no_clone() {
        let mut replacements = suspicious();
        assert_eq!(replacements.new_connection(3_000), probes(false));
        assert_eq!(replacements.new_connection(5_000), WAITS);
        assert_eq!(replacements.new_connection(13_000), Decision::Replaces);
        assert!(!replacements.cloned(13_000));
    }

    #[test]
    fn an_answer_proves_a_clone_and_keeps_the_place_for_as_long_as_answers_come() {
        let mut replacements = suspicious();
        assert_eq!(replacements.new_connection(3_000), probes(false));
        replacements.record_answer();
        assert_eq!(replacements.new_connection(3_000), probes(true));
        // The window of replacements is over, and the connection is still refused.
        for now in (600_000..6_000_000).step_by(600_000) {
            replacements.record_answer();
            assert_eq!(replacements.new_connection(now), probes(false), "{now}");
            assert!(replacements.cloned(now));
        }
        replacements.record_answer();
        // The live board is switched off without closing its connection.
        assert_eq!(replacements.new_connection(6_000_000), probes(false));
        assert_eq!(replacements.new_connection(6_005_000), WAITS);
        assert_eq!(replacements.new_connection(6_010_000), Decision::Replaces);
    }

    #[test]
    fn a_lone_board_is_free_again_after_the_window() {
        let mut replacements = suspicious();
        assert_eq!(replacements.new_connection(3_000), probes(false));
        for now in [400_000, 410_000, 420_000] {
            assert_eq!(replacements.new_connection(now), Decision::Replaces);
            replacements.record_answer();
        }
        // The earlier probe proves nothing now.
        assert_eq!(replacements.new_connection(430_000), probes(false));
        assert!(!replacements.cloned(430_000));
    }

    #[test]
    fn an_earlier_question_says_nothing_of_the_next_connection() {
        let mut replacements = suspicious();
        assert_eq!(replacements.new_connection(3_000), probes(false));
        replacements.vacant();
        replacements.record_answer();
        assert_eq!(replacements.new_connection(4_000), probes(false));
        assert!(!replacements.cloned(4_000));
    }
}
