//! When to try the cloud again: decorrelated jitter with growth, so that the nodes of a region do not
//! reconnect at the same moment after an outage.

use edge_proto::Millis;
use edge_proto::hash::sha256;

/// First delay after a loss, milliseconds. Short, because most losses are short.
pub const DELAY_MS_MIN: Millis = 500;
/// Longest delay, milliseconds.
pub const DELAY_MS_MAX: Millis = 120_000;
/// A connection of this length resets the delays, milliseconds. A shorter one does not,
/// because a cloud may accept connections and drop them at once.
pub const STABLE_MS: Millis = 60_000;
/// Longest time over which a policy spreads the first attempts of a fleet, milliseconds.
pub const SPREAD_MS_MAX: Millis = 600_000;

/// A node's fixed place in that time: its fleet returns in the same even order each time, even if
/// clocks and random sources of its nodes agree.
#[must_use]
pub fn slot(node: &str) -> u16 {
    let [high, low, ..] = sha256(node.as_bytes()).0;
    u16::from_be_bytes([high, low])
}

/// Delays between the attempts of one node.
#[derive(Debug)]
pub struct Reconnect {
    random: u64,
    delay_ms: Millis,
    up_since: Option<Millis>,
    slot: u16,
}

impl Reconnect {
    /// `seed` differs from node to node; `slot` is the node's [`slot`].
    #[must_use]
    pub const fn new(seed: u64, slot: u16) -> Self {
        // Xorshift has one fixed point.
        Self {
            random: if seed == 0 { 1 } else { seed },
            delay_ms: DELAY_MS_MIN,
            up_since: None,
            slot,
        }
    }

    /// The link was established.
    pub const fn up(&mut self, now: Millis) {
        self.up_since = Some(now);
    }

    /// The link is lost or the attempt failed; returns the time of the next attempt. After a stable link it
    /// is in the node's slot of `spread_ms`.
    pub fn down(&mut self, now: Millis, spread_ms: Millis) -> Millis {
        let good = |since| now.saturating_sub(since) >= STABLE_MS;
        let mut place_ms = 0;
        if self.up_since.take().is_some_and(good) {
            self.delay_ms = DELAY_MS_MIN;
            place_ms = spread_ms.min(SPREAD_MS_MAX) * u64::from(self.slot) / 65_536;
        }
        let top = self.delay_ms.saturating_mul(3).min(DELAY_MS_MAX);
        self.delay_ms = DELAY_MS_MIN + self.next_random() % (top - DELAY_MS_MIN + 1);
        now.saturating_add(self.delay_ms + place_ms)
    }

    const fn next_random(&mut self) -> u64 {
        let mut x = self.random;
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random = x;
        x
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_stay_within_their_bounds_for_ever() {
        for seed in 0..50 {
            let mut reconnect = Reconnect::new(seed, 0);
            for _ in 0..1000 {
                let delay = reconnect.down(7, SPREAD_MS_MAX) - 7;
                assert!((DELAY_MS_MIN..=DELAY_MS_MAX).contains(&delay), "{delay}");
            }
        }
    }

    #[test]
    fn a_good_connection_starts_the_delays_anew_and_a_short_one_does_not() {
        let mut reconnect = Reconnect::new(3, 0);
        for _ in 0..100 {
            reconnect.down(0, 0);
        }
        let grown = reconnect.delay_ms;
        reconnect.up(0);
        reconnect.down(1, 0);
        assert!(reconnect.delay_ms <= grown * 3);
        reconnect.up(0);
        assert!(reconnect.down(STABLE_MS, 0) <= STABLE_MS + DELAY_MS_MIN * 3);
    }

    #[test]
    fn a_fleet_that_loses_its_link_at_once_comes_back_spread_evenly() {
        let mut seconds = [0_u32; 60];
        for node in 0..6_000 {
            let name = std::format!("gate-{node}");
            let mut reconnect = Reconnect::new(node, slot(&name));
            reconnect.up(0);
            let at = reconnect.down(STABLE_MS, 60_000) - STABLE_MS;
            let second = usize::try_from(at / 1_000).unwrap().min(59);
            seconds[second] += 1;
        }
        // 100 a second are expected; the additional jitter empties the first seconds and fills the last.
        let inner = &seconds[2..59];
        assert!(
            inner.iter().all(|count| (50..200).contains(count)),
            "{seconds:?}"
        );
    }

    #[test]
    fn only_a_good_link_waits_for_its_slot() {
        let mut reconnect = Reconnect::new(1, u16::MAX);
        assert!(reconnect.down(0, 60_000) < 2_000);
        reconnect.up(0);
        assert!(reconnect.down(1, 60_000) < 60_000);
        reconnect.up(0);
        assert!(reconnect.down(STABLE_MS, 60_000) >= STABLE_MS + 59_000);
        reconnect.up(0);
        assert!(reconnect.down(STABLE_MS, u64::MAX) <= STABLE_MS + SPREAD_MS_MAX + 2_000);
    }
}
