//! When a new connection may end the live one of the same node, and when two boards share an
//! identity.
//!
//! A board whose link broke comes back before we notice: at first, the newest connection wins at
//! once. Two boards with one certificate would then end each other's connection for ever. So after
//! [`TAKEOVERS_MAX`] takeovers in [`WINDOW_MS`] a newcomer has to wait outside until the live
//! connection was asked for a sign of life: silence gives the place away, an answer proves a clone.
//! Never does IO, never reads a clock.

/// Takeovers at once in [`WINDOW_MS`]: a board that loses power again and again has as many.
pub const TAKEOVERS_MAX: usize = 3;
/// Takeovers older than this are forgotten.
pub const WINDOW_MS: u64 = 300_000;
/// Longest wait for the sign of life: many round trips at 30 % loss.
pub const ANSWER_TIMEOUT_MS: u64 = 10_000;
/// An identity counts as cloned for this long after the last proof. A refused board tries again
/// at least every ten minutes.
pub const CLONED_MS: u64 = 3_600_000;

/// What becomes of a newcomer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It takes the live connection's place.
    TakesOver,
    /// It is refused and may try again.
    Refused {
        /// Ask the live connection for a sign of life.
        ask: bool,
        /// The first proof of a clone since the last quiet time.
        proven: bool,
    },
}

/// One node's newcomers.
#[derive(Debug, Default)]
pub struct Takeovers {
    at: Vec<u64>,
    /// When the live connection was asked for a sign of life.
    asked: Option<u64>,
    /// It has given one since.
    answered: bool,
    proof: Option<u64>,
}

impl Takeovers {
    /// A newcomer is there while another connection is live.
    pub fn newcomer(&mut self, now: u64) -> Verdict {
        self.at.retain(|at| now.saturating_sub(*at) < WINDOW_MS);
        if self.at.len() < TAKEOVERS_MAX && !self.cloned(now) {
            self.at.push(now);
            self.asked = None;
            return Verdict::TakesOver;
        }
        match self.asked {
            Some(_) if self.answered => {
                let proven = !self.cloned(now);
                self.proof = Some(now);
                self.ask(now, proven)
            }
            Some(asked) if now.saturating_sub(asked) >= ANSWER_TIMEOUT_MS => {
                self.asked = None;
                Verdict::TakesOver
            }
            Some(_) => Verdict::Refused {
                ask: false,
                proven: false,
            },
            None => self.ask(now, false),
        }
    }

    /// Two boards were seen by other means. Whether that is news.
    pub fn prove(&mut self, now: u64) -> bool {
        let proven = !self.cloned(now);
        self.proof = Some(now);
        proven
    }

    const fn ask(&mut self, now: u64, proven: bool) -> Verdict {
        self.asked = Some(now);
        self.answered = false;
        Verdict::Refused { ask: true, proven }
    }

    /// The live connection was asked for a sign of life and has given none yet.
    #[must_use]
    pub const fn waits(&self) -> bool {
        self.asked.is_some() && !self.answered
    }

    /// The live connection has answered.
    pub const fn heard(&mut self) {
        self.answered = true;
    }

    /// The live connection has ended by itself: the next one is welcome.
    pub const fn vacant(&mut self) {
        self.asked = None;
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

    const WAITS: Verdict = Verdict::Refused {
        ask: false,
        proven: false,
    };

    /// Three takeovers at 0, 1 and 2 s.
    fn suspicious() -> Takeovers {
        let mut takeovers = Takeovers::default();
        for now in [0, 1_000, 2_000] {
            assert_eq!(takeovers.newcomer(now), Verdict::TakesOver);
            takeovers.heard();
        }
        takeovers
    }

    fn asks(proven: bool) -> Verdict {
        Verdict::Refused { ask: true, proven }
    }

    #[test]
    fn a_silent_connection_gives_its_place_away_and_is_no_clone() {
        let mut takeovers = suspicious();
        assert_eq!(takeovers.newcomer(3_000), asks(false));
        assert_eq!(takeovers.newcomer(5_000), WAITS);
        assert_eq!(takeovers.newcomer(13_000), Verdict::TakesOver);
        assert!(!takeovers.cloned(13_000));
    }

    #[test]
    fn an_answer_proves_a_clone_and_keeps_the_place_for_as_long_as_answers_come() {
        let mut takeovers = suspicious();
        assert_eq!(takeovers.newcomer(3_000), asks(false));
        takeovers.heard();
        assert_eq!(takeovers.newcomer(3_000), asks(true));
        // The window of takeovers is long over, and still it is refused.
        for now in (600_000..6_000_000).step_by(600_000) {
            takeovers.heard();
            assert_eq!(takeovers.newcomer(now), asks(false), "{now}");
            assert!(takeovers.cloned(now));
        }
        takeovers.heard();
        // The live board is switched off without a word.
        assert_eq!(takeovers.newcomer(6_000_000), asks(false));
        assert_eq!(takeovers.newcomer(6_005_000), WAITS);
        assert_eq!(takeovers.newcomer(6_010_000), Verdict::TakesOver);
    }

    #[test]
    fn a_lone_board_is_free_again_after_the_window() {
        let mut takeovers = suspicious();
        assert_eq!(takeovers.newcomer(3_000), asks(false));
        for now in [400_000, 410_000, 420_000] {
            assert_eq!(takeovers.newcomer(now), Verdict::TakesOver);
            takeovers.heard();
        }
        // The question of then proves nothing now.
        assert_eq!(takeovers.newcomer(430_000), asks(false));
        assert!(!takeovers.cloned(430_000));
    }

    #[test]
    fn an_earlier_question_says_nothing_of_the_next_connection() {
        let mut takeovers = suspicious();
        assert_eq!(takeovers.newcomer(3_000), asks(false));
        takeovers.vacant();
        takeovers.heard();
        assert_eq!(takeovers.newcomer(4_000), asks(false));
        assert!(!takeovers.cloned(4_000));
    }
}
