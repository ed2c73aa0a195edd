//! Admission at the cloud: a constant number of openings per second; each further node gets its own time
//! to retry. When a whole fleet reconnects, the load is constant instead of a spike, and nodes are
//! admitted in the order of their first request.

use crate::Millis;

/// Admissions at a constant rate, with a burst (the generic cell rate algorithm).
#[derive(Clone, Debug)]
pub struct RateLimiter {
    interval_us: u64,
    burst_us: u64,
    /// Time of the next admission without the burst, microseconds.
    next_us: u64,
}

/// Time at which one node is admitted, if it has requested admission; kept until its session is live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reservation(Option<Millis>);

impl RateLimiter {
    /// `per_s` openings a second, and as many at once after a quiet second. 0 counts as 1.
    #[must_use]
    pub fn new(per_s: u32) -> Self {
        let per_s = u64::from(per_s.max(1));
        let interval_us = (1_000_000 / per_s).max(1);
        Self {
            interval_us,
            burst_us: interval_us * (per_s - 1),
            next_us: 0,
        }
    }

    /// How long a request at `now` would have to wait, milliseconds.
    #[must_use]
    pub fn wait_ms(&self, now: Millis) -> Millis {
        let now_us = now.saturating_mul(1_000);
        let admitted_us = self.next_us.saturating_sub(self.burst_us);
        admitted_us.saturating_sub(now_us).div_ceil(1_000)
    }

    /// Takes the next admission; returns how long to wait for it, milliseconds.
    pub fn take(&mut self, now: Millis) -> Millis {
        let wait_ms = self.wait_ms(now);
        let now_us = now.saturating_mul(1_000);
        self.next_us = self.next_us.max(now_us).saturating_add(self.interval_us);
        wait_ms
    }

    /// A node requests admission, possibly again. Returns 0 when it is admitted, else how long it still has
    /// to wait, milliseconds. It keeps one reservation, however often it requests.
    pub fn request(&mut self, now: Millis, reservation: &mut Reservation) -> Millis {
        let at = match reservation.0 {
            Some(at) => at,
            None => {
                let at = now.saturating_add(self.take(now));
                reservation.0 = Some(at);
                at
            }
        };
        at.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn a_mass_return_becomes_a_plateau_in_the_order_of_asking() {
        let mut limiter = RateLimiter::new(200);
        let mut reservations: Vec<Reservation> = Vec::new();
        reservations.resize(20_000, Reservation::default());
        let waits: Vec<Millis> = reservations
            .iter_mut()
            .map(|one| limiter.request(5_000, one))
            .collect();
        assert!(waits.is_sorted());
        for second in 0..99 {
            let within = second * 1_000..(second + 1) * 1_000;
            let served = waits.iter().filter(|wait| within.contains(*wait)).count();
            // The first second also includes the burst.
            let most = if second == 0 { 400 } else { 200 };
            assert!(
                (199..=most).contains(&served),
                "{served} in second {second}"
            );
        }
        assert_eq!(waits.last().copied(), Some(99_000));
    }

    #[test]
    fn a_repeated_request_keeps_its_reservation() {
        let mut limiter = RateLimiter::new(1);
        let (mut first, mut second) = (Reservation::default(), Reservation::default());
        assert_eq!(limiter.request(0, &mut first), 0);
        assert_eq!(limiter.request(0, &mut second), 1_000);
        assert_eq!(limiter.request(400, &mut second), 600);
        assert_eq!(limiter.request(400, &mut first), 0);
        assert_eq!(limiter.request(1_000, &mut second), 0);
        assert_eq!(limiter.wait_ms(1_000), 1_000);
    }

    #[test]
    fn a_quiet_time_saves_up_no_more_than_a_second() {
        let mut limiter = RateLimiter::new(10);
        let now = 86_400_000;
        let at_once = (0..50).filter(|_| limiter.take(now) == 0).count();
        assert_eq!(at_once, 10);
    }

    #[test]
    fn no_rate_and_no_time_overflow() {
        for per_s in [0, 1, u32::MAX] {
            let mut limiter = RateLimiter::new(per_s);
            for now in [0, u64::MAX / 2, u64::MAX] {
                limiter.take(now);
            }
        }
    }
}
