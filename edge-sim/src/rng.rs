//! Random numbers from a seed, and the rates that they are compared with.

use serde::Deserialize;

/// Parts of one in [`Share`].
const WHOLE: u32 = 1_000_000;
/// Milliseconds of an hour.
const HOUR_MS: u64 = 3_600_000;

/// Random numbers (splitmix64). Equal seeds give equal numbers on every machine.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Numbers from `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`; 0 for 0.
    pub const fn below(&mut self, bound: u64) -> u64 {
        match self.draw().checked_rem(bound) {
            Some(number) => number,
            None => 0,
        }
    }

    /// From `low` to `high`, both included.
    pub const fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// An index into something of `len` elements.
    #[expect(clippy::cast_possible_truncation, reason = "it is below a usize")]
    pub const fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// True in `share` of all cases.
    pub const fn chance(&mut self, share: Share) -> bool {
        share.0 > 0 && self.below(WHOLE as u64) < share.0 as u64
    }
}

/// A probability, or a part of all nodes: 0 to 1 in a scenario.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "f64")]
pub struct Share(u32);

impl Share {
    /// Always, or all.
    pub const ALL: Self = Self(WHOLE);

    /// So many percent.
    #[must_use]
    pub const fn percent(percent: u32) -> Self {
        Self(percent * (WHOLE / 100))
    }
}

impl TryFrom<f64> for Share {
    type Error = &'static str;

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "from 0 to 1"
    )]
    fn try_from(share: f64) -> Result<Self, Self::Error> {
        if (0.0..=1.0).contains(&share) {
            Ok(Self((share * f64::from(WHOLE)).round() as u32))
        } else {
            Err("a share is from 0 to 1")
        }
    }
}

/// How often something happens to each of its kind, as events in an hour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "f64")]
pub struct PerHour(u64);

impl PerHour {
    /// In thousandths of events.
    #[must_use]
    pub const fn milli(milli: u64) -> Self {
        Self(milli)
    }

    /// Time until the next event when each of `count` has this rate, milliseconds: evenly spread
    /// up to twice the mean. `None`: never.
    pub fn wait(self, count: usize, rng: &mut Rng) -> Option<u64> {
        let milli = self.0.checked_mul(count as u64).filter(|rate| *rate > 0)?;
        let mean = (HOUR_MS * 1000 / milli).max(1);
        Some(1 + rng.below(mean * 2))
    }
}

impl TryFrom<f64> for PerHour {
    type Error = &'static str;

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked above"
    )]
    fn try_from(rate: f64) -> Result<Self, Self::Error> {
        if (0.0..=1e6).contains(&rate) {
            Ok(Self((rate * 1000.0).round() as u64))
        } else {
            Err("a rate is from 0 to a million an hour")
        }
    }
}
