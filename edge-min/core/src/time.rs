//! What a node assumes about the time. Two answers, for two questions:
//!
//! - *Has a certificate expired?* The floor: the latest of the build date, of the stored floor,
//!   and of the cloud's time. It never goes back, or an old certificate whose key was stolen
//!   would be valid again. But a cloud with a wrong clock must not lock its nodes out: a server
//!   cannot prove a time at which its own certificate would have expired, so the floor is accepted up
//!   to that expiry only, and does not advance past it either.
//! - *What time is it?* The cloud's time, as last received, wherever the floor is.

use edge_proto::Millis;

use crate::limits::FLOOR_KEPT_S;
use crate::renewal::Time;

/// 20 years: no board is offline for so long, so a clock that is further above the floor is broken, for
/// example after its battery is empty. If accepted, it would make every certificate expired.
pub const AHEAD_S_MAX: u64 = 20 * 365 * 24 * 3600;

/// A time, and the monotonic instant at which it held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reading {
    unix_s: u64,
    at: Millis,
}

impl Reading {
    fn runs_on(self, now: Millis) -> u64 {
        let since_s = now.saturating_sub(self.at) / 1000;
        self.unix_s.saturating_add(since_s)
    }
}

/// The floor and the cloud's time.
#[derive(Clone, Debug)]
pub struct TrustedTime {
    build_unix_s: u64,
    floor: Reading,
    /// Expiry of the certificate of the last server of the link; 0 before the first.
    server_not_after: u64,
    cloud: Option<Reading>,
    /// The floor that is stored on the medium.
    kept_unix_s: u64,
}

impl TrustedTime {
    /// At the agent's start: the build's date, and the stored floor. The floor does not advance until a
    /// server of the link has proven its identity and the cloud has sent its time: the floor may already be
    /// the expiry of that server's certificate. The time in the answer to a join or a renewal does not
    /// advance it, because their server's certificate does not bound it.
    #[must_use]
    pub fn new(build_unix_s: u64, kept_unix_s: u64) -> Self {
        let unix_s = build_unix_s.max(kept_unix_s);
        Self {
            build_unix_s,
            floor: Reading { unix_s, at: 0 },
            server_not_after: 0,
            cloud: None,
            kept_unix_s,
        }
    }

    /// The earliest possible present time, seconds since 1970: certificates are checked against it.
    #[must_use]
    pub fn floor(&self, now: Millis) -> u64 {
        let Reading { unix_s, .. } = self.floor;
        match self.cloud {
            None => unix_s,
            Some(_) => {
                let end = self.server_not_after.max(unix_s);
                self.floor.runs_on(now).min(end)
            }
        }
    }

    /// The cloud's time, seconds since 1970, if it was received since the start.
    #[must_use]
    pub fn cloud(&self, now: Millis) -> Option<u64> {
        self.cloud.map(|reading| reading.runs_on(now))
    }

    /// The time for certificates and their renewal: the cloud's time, or else the floor. The system's
    /// clock is not used: one that shows 2100 would make every certificate expired, and it
    /// cannot be distinguished from a correct one.
    #[must_use]
    pub fn reliable(&self, now: Millis) -> Time {
        let cloud = self.cloud(now);
        Time {
            unix_s: cloud.unwrap_or_else(|| self.floor(now)),
            confirmed: cloud.is_some(),
        }
    }

    /// Seconds since 1970 for display, and whether they are trusted: the cloud's time, or
    /// the system's clock if it is above the floor, but by less than [`AHEAD_S_MAX`]; else the floor.
    #[must_use]
    pub fn shown(&self, now: Millis, system_unix_s: u64) -> (u64, bool) {
        let Time { unix_s, confirmed } = self.reliable(now);
        let ahead_s = system_unix_s.checked_sub(unix_s);
        match !confirmed && ahead_s.is_some_and(|ahead_s| ahead_s < AHEAD_S_MAX) {
            true => (system_unix_s, true),
            false => (unix_s, confirmed),
        }
    }

    /// The floor that is to be written to the medium now, if any: it is written when it has advanced by
    /// [`FLOOR_KEPT_S`], because each write wears the flash. The shell answers with [`Self::kept`]; a
    /// failed write only makes the floor of the next start lower.
    #[must_use]
    pub fn to_keep(&self, now: Millis) -> Option<u64> {
        let floor = self.floor(now);
        let moved = floor.saturating_sub(self.kept_unix_s) >= FLOOR_KEPT_S;
        (moved && self.cloud.is_some()).then_some(floor)
    }

    /// The floor that is stored on the medium, seconds since 1970.
    #[must_use]
    pub const fn kept_unix_s(&self) -> u64 {
        self.kept_unix_s
    }

    /// This floor was written to the medium.
    pub const fn kept(&mut self, unix_s: u64) {
        self.kept_unix_s = unix_s;
    }

    /// A server of the link has proven that it holds the key of a certificate that is valid by the
    /// floor, and that expires then.
    pub fn server(&mut self, now: Millis, not_after: u64) {
        let unix_s = self.floor(now);
        self.floor = Reading { unix_s, at: now };
        self.server_not_after = not_after;
    }

    /// The cloud has sent its time, authenticated. Ignored when only a broken clock can show it.
    pub fn confirm(&mut self, now: Millis, unix_s: u64) {
        let floor = self.floor(now);
        if unix_s < self.build_unix_s || unix_s.saturating_sub(floor) >= AHEAD_S_MAX {
            return;
        }
        let proven = unix_s.min(self.server_not_after);
        let unix_s_floor = floor.max(proven);
        self.floor = Reading {
            unix_s: unix_s_floor,
            at: now,
        };
        self.cloud = Some(Reading { unix_s, at: now });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BUILD: u64 = 1_795_478_400;
    const DAY_S: u64 = 86_400;
    const YEAR_S: u64 = 365 * DAY_S;

    /// Goal: a cloud whose clock is a year ahead does not lock a node out of a broker whose certificate
    /// is valid for 90 days, neither while the agent runs nor after a restart.
    #[test]
    fn a_clock_that_is_a_year_ahead_lifts_the_floor_to_the_end_of_the_servers_certificate_only() {
        let end = BUILD + 90 * DAY_S;
        let mut time = TrustedTime::new(BUILD, 0);
        time.server(1_000, end);
        time.confirm(1_000, BUILD + YEAR_S);
        assert_eq!(time.floor(1_000), end);
        assert_eq!(time.floor(DAY_S * 1000), end, "it does not run past it");
        assert_eq!(time.cloud(2_000), Some(BUILD + YEAR_S + 1));
        let again = TrustedTime::new(BUILD, time.floor(2_000));
        assert_eq!(again.floor(DAY_S * 1000), end, "nor after a restart");
    }

    /// Goal: when the clock is correct again the node accepts the time, and the floor stays where it is
    /// until the correct time has reached it; then an old certificate stays expired.
    #[test]
    fn the_cloud_corrects_its_clock_and_the_floor_waits_for_it() {
        let first = BUILD + 90 * DAY_S;
        let mut time = TrustedTime::new(BUILD, 0);
        time.server(0, first);
        time.confirm(0, BUILD + YEAR_S);
        time.confirm(1_000, BUILD + 1);
        assert_eq!(time.cloud(3_000), Some(BUILD + 3));
        assert_eq!(time.floor(3_000), first);
        // The broker has its next certificate, and on this day the first one has expired.
        let day_91 = 91 * DAY_S;
        time.server(day_91 * 1000, BUILD + 150 * DAY_S);
        time.confirm(day_91 * 1000, BUILD + day_91);
        assert_eq!(time.floor(day_91 * 1000), BUILD + day_91);
        assert!(time.floor(day_91 * 1000) > first);
    }

    #[test]
    fn a_right_clock_runs_on_and_is_the_floor() {
        let mut time = TrustedTime::new(BUILD, BUILD + 5);
        assert_eq!(time.floor(60_000), BUILD + 5);
        assert_eq!(time.cloud(60_000), None);
        time.confirm(60_000, BUILD + 900);
        assert_eq!(
            time.floor(70_000),
            BUILD + 5,
            "no server has proven anything"
        );
        assert_eq!(time.cloud(70_000), Some(BUILD + 910));
        time.server(60_000, BUILD + 90 * DAY_S);
        time.confirm(60_000, BUILD + 1_000);
        assert_eq!(time.floor(70_000), BUILD + 1_010);
        assert_eq!(time.cloud(70_000), Some(BUILD + 1_010));
    }

    /// Goal: no broken clock makes every certificate expired permanently.
    #[test]
    fn a_time_before_the_build_or_far_too_late_is_not_believed() {
        for unix_s in [0, BUILD - 1, BUILD + AHEAD_S_MAX, u64::MAX] {
            let mut time = TrustedTime::new(BUILD, 0);
            time.server(0, u64::MAX);
            time.confirm(0, unix_s);
            assert_eq!((time.floor(9_000), time.cloud(9_000)), (BUILD, None));
        }
        let mut time = TrustedTime::new(BUILD, 0);
        time.server(0, u64::MAX);
        time.confirm(0, BUILD + AHEAD_S_MAX - 1);
        assert_eq!(time.floor(0), BUILD + AHEAD_S_MAX - 1);
    }

    #[test]
    fn the_floor_is_kept_once_a_day_and_only_when_the_cloud_has_confirmed_the_time() {
        let mut time = TrustedTime::new(BUILD, BUILD);
        time.server(0, u64::MAX);
        assert_eq!(time.to_keep(2 * DAY_S * 1000), None);
        time.confirm(0, BUILD + DAY_S - 1);
        assert_eq!(time.to_keep(0), None);
        assert_eq!(time.to_keep(1_000), Some(BUILD + DAY_S));
        time.kept(BUILD + DAY_S);
        assert_eq!(time.to_keep(1_000), None);
        assert_eq!(time.to_keep(DAY_S * 1000), None);
        assert!(time.to_keep((DAY_S + 1) * 1000).is_some());
    }

    #[test]
    fn the_systems_clock_is_shown_only_in_a_range_above_the_floor_and_never_relied_on() {
        let mut time = TrustedTime::new(BUILD, 0);
        let floor = Time {
            unix_s: BUILD,
            confirmed: false,
        };
        for (system, shown) in [
            (0, (BUILD, false)),
            (BUILD - 1, (BUILD, false)),
            (BUILD, (BUILD, true)),
            (BUILD + AHEAD_S_MAX - 1, (BUILD + AHEAD_S_MAX - 1, true)),
            (BUILD + AHEAD_S_MAX, (BUILD, false)),
            (u64::MAX, (BUILD, false)),
        ] {
            assert_eq!(time.shown(0, system), shown);
            assert_eq!(time.reliable(0), floor);
        }
        time.confirm(0, BUILD + 50);
        for system in [0, BUILD + 60, u64::MAX] {
            assert_eq!(time.shown(1_000, system), (BUILD + 51, true));
        }
        assert!(time.reliable(0).confirmed);
    }

    proptest! {
        /// The floor never goes back, and never exceeds the latest expiry of a server's certificate.
        #[test]
        fn the_floor_never_goes_back_nor_past_what_was_proven(
            steps in prop::collection::vec((any::<bool>(), 0..3 * YEAR_S, 0..30 * DAY_S), 1..60)
        ) {
            let mut time = TrustedTime::new(BUILD, 0);
            let (mut now, mut last, mut end) = (0, BUILD, BUILD);
            for (server, ahead_s, later_s) in steps {
                now += later_s * 1000;
                prop_assert!(time.floor(now) >= last);
                match server {
                    true => {
                        time.server(now, BUILD + ahead_s);
                        end = end.max(BUILD + ahead_s);
                    }
                    false => time.confirm(now, BUILD + ahead_s),
                }
                let floor = time.floor(now);
                prop_assert!(floor >= last && floor <= end, "{floor} {last} {end}");
                last = floor;
            }
        }
    }
}
