//! When to try the cloud again: decorrelated jitter with growth, so that a province coming back
//! does not arrive as one wave.

use edge_proto::Millis;

/// First delay after a loss, milliseconds. Short, for most losses are a glitch.
pub const DELAY_MS_MIN: Millis = 500;
/// Longest delay, milliseconds.
pub const DELAY_MS_MAX: Millis = 120_000;
/// A connection that lived this long starts the delays anew, milliseconds. A shorter one keeps
/// them growing, or a cloud that accepts and drops would be hammered.
pub const GOOD_MS: Millis = 60_000;

/// The delays of one node.
#[derive(Debug)]
pub struct Reconnect {
    random: u64,
    delay_ms: Millis,
    up_since: Option<Millis>,
}

impl Reconnect {
    /// Delays from a seed that differs from node to node.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        // Xorshift has one fixed point.
        Self {
            random: if seed == 0 { 1 } else { seed },
            delay_ms: DELAY_MS_MIN,
            up_since: None,
        }
    }

    /// The link came up.
    pub const fn up(&mut self, now: Millis) {
        self.up_since = Some(now);
    }

    /// The link is gone or the attempt failed; returns when to try next.
    pub fn down(&mut self, now: Millis) -> Millis {
        if self
            .up_since
            .take()
            .is_some_and(|since| now.saturating_sub(since) >= GOOD_MS)
        {
            self.delay_ms = DELAY_MS_MIN;
        }
        let top = self.delay_ms.saturating_mul(3).min(DELAY_MS_MAX);
        self.delay_ms = DELAY_MS_MIN + self.next_random() % (top - DELAY_MS_MIN + 1);
        now.saturating_add(self.delay_ms)
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
            let mut reconnect = Reconnect::new(seed);
            for _ in 0..1000 {
                let delay = reconnect.down(7) - 7;
                assert!((DELAY_MS_MIN..=DELAY_MS_MAX).contains(&delay), "{delay}");
            }
        }
    }

    #[test]
    fn a_good_connection_starts_the_delays_anew_and_a_short_one_does_not() {
        let mut reconnect = Reconnect::new(3);
        for _ in 0..100 {
            reconnect.down(0);
        }
        let grown = reconnect.delay_ms;
        reconnect.up(0);
        reconnect.down(1);
        assert!(reconnect.delay_ms <= grown * 3);
        reconnect.up(0);
        assert!(reconnect.down(GOOD_MS) <= GOOD_MS + DELAY_MS_MIN * 3);
    }
}
