//! What the agent writes to the flash, against the board's budget for a day, and how worn the flash
//! is. Counters come from the shell and live in memory only; a day is 24 hours of the agent's own
//! life, because the board's clock may be wrong.

use edge_proto::Millis;

/// An hour, the grain of the projection.
const HOUR_MS: Millis = 3_600_000;
const HOURS_OF_DAY: u64 = 24;

/// Who writes. The order is that of the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subsystem {
    /// The two generations of the desired set.
    Desired,
    /// Large objects, and what is there of those that are still coming.
    Objects,
    /// The state cache.
    Cache,
    /// Board key and node identity.
    Identity,
    /// The trusted floor of the time.
    Time,
    /// Unpacked layers.
    Images,
    /// The outbox of records.
    Outbox,
}

impl Subsystem {
    /// All subsystems in the order of the counters.
    pub const ALL: [Self; 7] = [
        Self::Desired,
        Self::Objects,
        Self::Cache,
        Self::Identity,
        Self::Time,
        Self::Images,
        Self::Outbox,
    ];

    /// Its name in the status.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Desired => "desired",
            Self::Objects => "objects",
            Self::Cache => "cache",
            Self::Identity => "identity",
            Self::Time => "time",
            Self::Images => "images",
            Self::Outbox => "outbox",
        }
    }
}

/// Writes of one subsystem since the agent's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Bytes, whole blocks of the file system.
    pub bytes: u64,
    /// Syncs of a file or a directory.
    pub syncs: u64,
}

/// Counters of all subsystems, by [`Subsystem::ALL`].
pub type Counters = [Written; Subsystem::ALL.len()];

/// State of the day's budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Risk {
    /// The budget is not exceeded.
    None,
    /// At the rate of the last two full hours the day would exceed the budget.
    Projected,
    /// The day has exceeded the budget.
    Over,
}

/// The budget of a day. A single burst, for example a roll-out, is counted but not projected; writes that
/// continue for two hours are.
#[derive(Debug)]
pub struct Budget {
    /// Bytes of a day; `None` is no budget.
    bytes_max: Option<u64>,
    /// Hours since the agent's start.
    hour: u64,
    /// Counters at the start of the day.
    day: Counters,
    /// Bytes at the start of the hour, and at the last call.
    hour_began: u64,
    seen: Counters,
    /// Bytes of the last two full hours.
    full: [u64; 2],
    risk: Risk,
}

impl Budget {
    /// `bytes_max`: bytes of a day; `None` is no budget.
    #[must_use]
    pub const fn new(bytes_max: Option<u64>) -> Self {
        let none = [Written { bytes: 0, syncs: 0 }; Subsystem::ALL.len()];
        Self {
            bytes_max,
            hour: 0,
            day: none,
            hour_began: 0,
            seen: none,
            full: [0; 2],
            risk: Risk::None,
        }
    }

    /// Sets the counters as they are at `now`, milliseconds since the agent's start; returns
    /// the state of the day if it has changed. Call it after a write and at the deadline.
    pub fn handle(&mut self, now: Millis, counters: &Counters) -> Option<Risk> {
        let hour = now / HOUR_MS;
        // Bytes written since the last call count for this hour: a call follows each write.
        for _ in self.hour..hour.min(self.hour.saturating_add(2)) {
            let bytes = total(&self.seen).saturating_sub(self.hour_began);
            self.full = [bytes, self.full[0]];
            self.hour_began = total(&self.seen);
        }
        if hour / HOURS_OF_DAY > self.hour / HOURS_OF_DAY {
            self.day = self.seen;
        }
        self.hour = hour;
        self.seen = *counters;
        let risk = self.evaluate();
        let changed = risk != self.risk;
        self.risk = risk;
        changed.then_some(risk)
    }

    /// When to call `handle` although nothing was written: never while there is no risk.
    #[must_use]
    pub fn deadline(&self) -> Option<Millis> {
        let next = self.hour.saturating_add(1).saturating_mul(HOUR_MS);
        (self.risk != Risk::None).then_some(next)
    }

    /// The counters as they were last passed in.
    pub(crate) const fn counters(&self) -> &Counters {
        &self.seen
    }

    /// State of the day.
    #[must_use]
    pub const fn risk(&self) -> Risk {
        self.risk
    }

    /// Bytes of a day.
    #[must_use]
    pub const fn bytes_max(&self) -> Option<u64> {
        self.bytes_max
    }

    /// Writes of a subsystem today, and since the agent's start.
    #[must_use]
    pub fn of(&self, subsystem: Subsystem) -> (Written, Written) {
        let index = subsystem as usize;
        let at = |counters: &Counters| counters.get(index).copied().unwrap_or_default();
        let (now, began) = (at(&self.seen), at(&self.day));
        let today = Written {
            bytes: now.bytes.saturating_sub(began.bytes),
            syncs: now.syncs.saturating_sub(began.syncs),
        };
        (today, now)
    }

    fn evaluate(&self) -> Risk {
        let Some(bytes_max) = self.bytes_max else {
            return Risk::None;
        };
        let today = total(&self.seen).saturating_sub(total(&self.day));
        let hours_left = HOURS_OF_DAY - 1 - self.hour % HOURS_OF_DAY;
        let [last, before] = self.full;
        let projected = last.min(before).saturating_mul(hours_left);
        if today > bytes_max {
            Risk::Over
        } else if today.saturating_add(projected) > bytes_max {
            Risk::Projected
        } else {
            Risk::None
        }
    }
}

fn total(counters: &Counters) -> u64 {
    let bytes = counters.iter().map(|one| one.bytes);
    bytes.fold(0, u64::saturating_add)
}

/// Wear of an eMMC as its registers report it (JESD84-B51, EXT_CSD 267 to 269).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wear {
    /// Used lifetime, percent, rounded up to tens, of the worse of its two kinds of memory; above 100
    /// when it exceeds the manufacturer's specification. `None` when it is not reported.
    pub used_percent: Option<u8>,
    /// Reserved blocks: 1 normal, 2 four fifths are used, 3 nine tenths are. `None` when it is not
    /// reported.
    pub reserve: Option<u8>,
}

impl Wear {
    /// Parses `life_time`, for example `0x01 0x02`, and `pre_eol_info`, for example
    /// `0x01`. An undefined value becomes `None`.
    #[must_use]
    pub fn parse(life_time: &str, pre_eol_info: &str) -> Self {
        let registers = |text: &'_ str, max: u8| {
            let words = text.split_ascii_whitespace().take(2);
            let number = |word: &str| u8::from_str_radix(word.strip_prefix("0x")?, 16).ok();
            let defined = |number: &u8| (1..=max).contains(number);
            words.filter_map(number).filter(defined).max()
        };
        Self {
            used_percent: registers(life_time, 11).map(|tenths| tenths * 10),
            reserve: registers(pre_eol_info, 3),
        }
    }

    /// Whether to replace it: over 90 percent of its lifetime, or four fifths of its reserve, are used.
    #[must_use]
    pub fn worn(self) -> bool {
        self.used_percent.is_some_and(|used| used >= 100) || self.reserve.is_some_and(|one| one > 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn counters(bytes: u64) -> Counters {
        let mut counters = Counters::default();
        counters[Subsystem::Images as usize].bytes = bytes;
        counters
    }

    #[test]
    fn the_order_of_all_is_that_of_the_counters() {
        for (index, subsystem) in Subsystem::ALL.into_iter().enumerate() {
            assert_eq!(subsystem as usize, index);
        }
    }

    #[test]
    fn a_day_over_its_budget_is_over_until_the_next_begins() {
        let mut budget = Budget::new(Some(10 * MIB));
        assert_eq!(budget.handle(0, &counters(10 * MIB)), None);
        assert_eq!(budget.deadline(), None, "nothing to wait for");
        assert_eq!(budget.handle(5, &counters(11 * MIB)), Some(Risk::Over));
        assert_eq!(budget.deadline(), Some(HOUR_MS));
        assert_eq!(
            budget.handle(HOUR_MS, &counters(11 * MIB)),
            None,
            "reported once"
        );
        let (today, since) = budget.of(Subsystem::Images);
        assert_eq!((today.bytes, since.bytes), (11 * MIB, 11 * MIB));
        let next_day = 24 * HOUR_MS;
        assert_eq!(
            budget.handle(next_day, &counters(12 * MIB)),
            Some(Risk::None)
        );
        let (today, since) = budget.of(Subsystem::Images);
        assert_eq!((today.bytes, since.bytes), (MIB, 12 * MIB));
        assert_eq!(budget.deadline(), None);
    }

    #[test]
    fn one_burst_is_no_habit_and_two_full_hours_are() {
        let mut budget = Budget::new(Some(24 * MIB));
        // A roll-out in the first hour.
        assert_eq!(budget.handle(10, &counters(20 * MIB)), None);
        assert_eq!(budget.handle(3 * HOUR_MS, &counters(20 * MIB)), None);
        // Then half a MiB an hour: 20 hours of that are too much.
        let mut bytes = 20 * MIB;
        let mut reported = None;
        for hour in 3..7 {
            bytes += MIB / 2;
            let risk = budget.handle(hour * HOUR_MS + 60_000, &counters(bytes));
            reported = reported.or_else(|| risk.map(|risk| (hour, risk)));
        }
        assert_eq!(
            reported,
            Some((5, Risk::Projected)),
            "after the second full hour"
        );
        // At the end of an hour without a write the risk is over.
        assert_eq!(budget.deadline(), Some(7 * HOUR_MS));
        assert_eq!(budget.handle(7 * HOUR_MS, &counters(bytes)), None);
        assert_eq!(
            budget.handle(8 * HOUR_MS, &counters(bytes)),
            Some(Risk::None)
        );
    }

    #[test]
    fn without_a_budget_there_is_no_risk() {
        let mut budget = Budget::new(None);
        for hour in 0..50 {
            assert_eq!(budget.handle(hour * HOUR_MS, &counters(hour << 40)), None);
        }
    }

    #[test]
    fn wear_is_what_the_kernel_prints() {
        let parsed = |life, reserve| {
            let wear = Wear::parse(life, reserve);
            (wear.used_percent, wear.reserve, wear.worn())
        };
        assert_eq!(parsed("0x01 0x02\n", "0x01\n"), (Some(20), Some(1), false));
        assert_eq!(parsed("0x09 0x01\n", "0x01\n"), (Some(90), Some(1), false));
        assert_eq!(parsed("0x01 0x0a\n", "0x01\n"), (Some(100), Some(1), true));
        assert_eq!(parsed("0x0b 0x0b\n", "0x03\n"), (Some(110), Some(3), true));
        assert_eq!(parsed("0x02 0x01\n", "0x02\n"), (Some(20), Some(2), true));
        // Undefined, from before the registers existed, or not from an eMMC.
        assert_eq!(parsed("0x00 0x00\n", "0x00\n"), (None, None, false));
        assert_eq!(parsed("0x00 0x03\n", "0x00\n"), (Some(30), None, false));
        assert_eq!(parsed("", ""), (None, None, false));
        assert_eq!(parsed("0xff 0x0c", "0x04"), (None, None, false));
        assert_eq!(parsed("10 20", "normal"), (None, None, false));
    }

    proptest! {
        #[test]
        fn any_text_is_wear_within_its_bounds(life in ".{0,20}", reserve in ".{0,20}") {
            let wear = Wear::parse(&life, &reserve);
            prop_assert!(wear.used_percent.is_none_or(|used| (10..=110).contains(&used)));
            prop_assert!(wear.reserve.is_none_or(|one| (1..=3).contains(&one)));
        }

        /// Any steps of time and any growth: a day over the budget is reported, a day under it is not, and
        /// the figures of a day never exceed those since the start.
        #[test]
        fn over_is_over(steps in proptest::collection::vec((0_u64..200 * HOUR_MS, 0_u64..4 * MIB), 1..40)) {
            let mut budget = Budget::new(Some(8 * MIB));
            let (mut now, mut bytes) = (0, 0);
            for (wait, more) in steps {
                now += wait;
                bytes += more;
                budget.handle(now, &counters(bytes));
                let (today, since) = budget.of(Subsystem::Images);
                prop_assert!(today.bytes <= since.bytes);
                prop_assert_eq!(since.bytes, bytes);
                prop_assert_eq!(budget.risk() == Risk::Over, today.bytes > 8 * MIB);
                prop_assert_eq!(budget.deadline().is_some(), budget.risk() != Risk::None);
                prop_assert!(budget.deadline().is_none_or(|at| at > now));
            }
        }
    }
}
