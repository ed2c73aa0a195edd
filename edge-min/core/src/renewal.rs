//! When the node's certificate is renewed: at two thirds of its lifetime, spread by the node's name so
//! that a fleet that joined on one day does not renew on one day; at once when the other end requests
//! it or refuses the current one; and again, with growing delays, after a failure.
//!
//! While the time is not confirmed only the floor counts, which no clock of the board can change: a
//! certificate is due when it has expired by the floor. An earlier expiry is noticed only when the
//! other end refuses it.

use edge_proto::Millis;

use crate::limits::{RENEWAL_MS_MAX, RENEWAL_MS_MIN};

/// Certificates are due between two thirds of their lifetime and this many percent later.
const SPREAD_PERCENT: u64 = 10;

/// Validity of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// When it was issued, seconds since 1970: later than its `notBefore`, which the CA backdates.
    pub issued_unix_s: u64,
    /// Its notAfter, seconds since 1970.
    pub not_after: u64,
}

impl Validity {
    const fn seconds(self) -> u64 {
        self.not_after.saturating_sub(self.issued_unix_s)
    }
}

/// Whether a new certificate with this expiry is accepted. One that has expired by the floor comes from a
/// cloud whose clock is in the past; but the floor itself may be too late, and then a certificate that
/// expires after the one in use is accepted.
#[must_use]
pub const fn is_taken(not_after: u64, not_after_in_use: u64, floor_unix_s: u64) -> bool {
    not_after > floor_unix_s || not_after > not_after_in_use
}

/// The time that can be relied on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    /// Seconds since 1970: the cloud's when it is confirmed, else the floor.
    pub unix_s: u64,
    /// The cloud has confirmed it since the agent started.
    pub confirmed: bool,
}

/// The renewals of one node. The shell calls [`Self::begins`] at each [`Self::deadline`], makes the
/// attempt, and reports its end by [`Self::renewed`] or [`Self::failed`].
#[derive(Debug)]
pub struct Renewal {
    life: Validity,
    /// Fraction of 65536, derived from the node's name.
    spread: u16,
    /// An attempt is in progress.
    in_progress: bool,
    /// The other end requests it, or refuses the current certificate.
    wanted: bool,
    failures: u32,
    /// No attempt before this time.
    earliest: Millis,
}

impl Renewal {
    /// For a certificate of this validity, of the node with this name.
    #[must_use]
    pub fn new(node: &str, life: Validity) -> Self {
        let [high, low, ..] = edge_proto::hash::sha256(node.as_bytes()).0;
        Self {
            life,
            spread: u16::from_be_bytes([high, low]),
            in_progress: false,
            wanted: false,
            failures: 0,
            earliest: 0,
        }
    }

    /// When the certificate is to be renewed, seconds since 1970.
    #[must_use]
    pub fn due_unix_s(&self) -> u64 {
        let life_s = self.life.seconds();
        let spread_s = (life_s / 100 * SPREAD_PERCENT).saturating_mul(u64::from(self.spread)) >> 16;
        self.life.issued_unix_s + life_s / 3 * 2 + spread_s
    }

    pub(crate) const fn life(&self) -> Validity {
        self.life
    }

    /// Its notAfter, seconds since 1970.
    #[must_use]
    pub const fn not_after(&self) -> u64 {
        self.life.not_after
    }

    /// Whether it should have been renewed long ago: five sixths of its lifetime have passed.
    #[must_use]
    pub const fn is_late(&self, time: Time) -> bool {
        let late = self.life.not_after.saturating_sub(self.life.seconds() / 6);
        time.unix_s >= late
    }

    /// Seconds since 1970 from which an attempt is due without a request.
    fn due(&self, confirmed: bool) -> u64 {
        match confirmed {
            true => self.due_unix_s(),
            false => self.life.not_after,
        }
    }

    /// When to call [`Self::begins`] next; call it also whenever the time is confirmed.
    #[must_use]
    pub fn deadline(&self, now: Millis, time: Time) -> Option<Millis> {
        let left_s = self.due(time.confirmed).saturating_sub(time.unix_s);
        let at = match self.wanted {
            true => now,
            false => now.saturating_add(left_s.saturating_mul(1000)),
        };
        (!self.in_progress).then(|| at.max(self.earliest))
    }

    /// Whether an attempt begins now.
    #[must_use]
    pub fn begins(&mut self, now: Millis, time: Time) -> bool {
        let due = self.wanted || time.unix_s >= self.due(time.confirmed);
        let begins = due && !self.in_progress && now >= self.earliest;
        self.in_progress |= begins;
        begins
    }

    /// The cloud requests it, or the certificate was refused. After failures this waits, too.
    pub const fn want(&mut self) {
        self.wanted = true;
    }

    /// The attempt failed; the next one is later, and much later if the cloud has refused. Short
    /// lifetimes have short waits.
    pub fn failed(&mut self, now: Millis, refused: bool) {
        self.in_progress = false;
        self.wanted = false;
        let life_ms = self.life.seconds().saturating_mul(1000);
        let min = (life_ms / 50).clamp(1_000, RENEWAL_MS_MIN);
        let max = (life_ms / 10).clamp(min, RENEWAL_MS_MAX);
        self.failures = match refused {
            true => u32::MAX,
            false => self.failures.saturating_add(1),
        };
        let wait = min
            .saturating_mul(1 << (self.failures - 1).min(16))
            .min(max);
        // Half of it is spread by the name: nodes that failed together do not retry together.
        let spread = (wait / 2).saturating_mul(u64::from(self.spread)) >> 16;
        self.earliest = now.saturating_add(wait / 2 + spread);
    }

    /// A new certificate was issued.
    pub const fn renewed(&mut self, life: Validity) {
        self.life = life;
        self.in_progress = false;
        self.wanted = false;
        self.failures = 0;
        self.earliest = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const YEAR_S: u64 = 365 * 24 * 3600;
    const LIFE: Validity = Validity {
        issued_unix_s: 1_800_000_000,
        not_after: 1_800_000_000 + YEAR_S,
    };

    const fn at(unix_s: u64, confirmed: bool) -> Time {
        Time { unix_s, confirmed }
    }

    #[test]
    fn a_new_certificate_that_has_ended_is_taken_only_if_it_outlives_the_one_in_use() {
        for (not_after, in_use, floor, taken) in [
            (9, 5, 8, true),
            (9, 20, 8, true),
            (8, 5, 8, true),
            (8, 8, 8, false),
            (7, 20, 8, false),
        ] {
            assert_eq!(is_taken(not_after, in_use, floor), taken, "{not_after}");
        }
    }

    #[test]
    fn a_fleet_that_joined_on_one_day_renews_over_weeks_after_two_thirds() {
        let mut days = [0; 400];
        for node in 0..1000 {
            let name = std::format!("gate-{node}");
            let due = Renewal::new(&name, LIFE).due_unix_s() - LIFE.issued_unix_s;
            days[usize::try_from(due / (24 * 3600)).unwrap()] += 1;
        }
        assert_eq!(days[243..280].iter().sum::<i32>(), 1000);
        assert!(days.iter().all(|count| *count < 60), "{days:?}");
    }

    #[test]
    fn an_attempt_begins_when_due_and_only_one_at_a_time() {
        let mut renewal = Renewal::new("gate", LIFE);
        let due = renewal.due_unix_s();
        let before = at(due - 10, true);
        assert!(!renewal.begins(5, before));
        assert_eq!(renewal.deadline(5, before), Some(10_005));
        assert!(renewal.begins(10_005, at(due, true)));
        assert_eq!(renewal.deadline(10_005, at(due, true)), None);
        assert!(!renewal.begins(20_000, at(due + 10, true)));
        let next = Validity {
            issued_unix_s: due,
            not_after: due + YEAR_S,
        };
        renewal.renewed(next);
        assert!(!renewal.begins(20_000, at(due + 10, true)));
        assert!(renewal.due_unix_s() > due + YEAR_S / 3 * 2 - 1);
    }

    /// Goal: no clock of a board, whatever it shows, makes the agent request a renewal; the floor does.
    #[test]
    fn without_a_confirmed_time_only_an_end_by_the_floor_or_a_refusal_counts() {
        let mut renewal = Renewal::new("gate", LIFE);
        assert!(!renewal.begins(0, at(LIFE.not_after - 1, false)));
        assert_eq!(
            renewal.deadline(0, at(LIFE.not_after - 1, false)),
            Some(1_000)
        );
        renewal.want();
        assert_eq!(renewal.deadline(0, at(0, false)), Some(0));
        assert!(renewal.begins(0, at(0, false)));
        let mut renewal = Renewal::new("gate", LIFE);
        assert!(renewal.begins(0, at(LIFE.not_after, false)));
    }

    #[test]
    fn a_refusal_waits_long_and_a_want_does_not_shorten_it() {
        let mut renewal = Renewal::new("gate", LIFE);
        renewal.want();
        assert!(renewal.begins(0, at(0, false)));
        renewal.failed(0, true);
        renewal.want();
        let deadline = renewal.deadline(0, at(0, false)).unwrap();
        assert!((RENEWAL_MS_MAX / 2..=RENEWAL_MS_MAX).contains(&deadline));
        assert!(!renewal.begins(deadline - 1, at(0, false)));
        assert!(renewal.begins(deadline, at(0, false)));
    }

    #[test]
    fn a_certificate_is_late_when_a_sixth_is_left() {
        let renewal = Renewal::new("gate", LIFE);
        let late = LIFE.not_after - YEAR_S / 6;
        assert!(!renewal.is_late(at(late - 1, true)));
        assert!(renewal.is_late(at(late, false)));
        assert!(renewal.due_unix_s() < late);
    }

    proptest! {
        /// Waits grow to their cap and never exceed it, whatever the lifetime.
        #[test]
        fn waits_stay_within_their_bounds(
            issued in any::<u64>(), end in any::<u64>(), failures in 1_u32..200, unix_s in any::<u64>()
        ) {
            let life = Validity { issued_unix_s: issued / 2, not_after: end };
            let mut renewal = Renewal::new("gate", life);
            let _due = (renewal.due_unix_s(), renewal.is_late(at(unix_s, true)));
            let mut last = 0;
            for _ in 0..failures {
                renewal.failed(7, false);
                let wait = renewal.earliest - 7;
                prop_assert!(wait >= last && (500..=RENEWAL_MS_MAX).contains(&wait));
                last = wait;
            }
            prop_assert!(renewal.deadline(7, at(unix_s, false)).unwrap() >= renewal.earliest);
        }
    }
}
