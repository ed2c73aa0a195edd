//! The wall clock.

use std::time::{SystemTime, UNIX_EPOCH};

/// 2026-11-24, raised with each release: a clock that shows less is wrong.
const BUILD_UNIX_S: u64 = 1_795_478_400;

/// Seconds since 1970; 0 if the clock is earlier.
pub(crate) fn unix_s() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// Whether the clock can be correct.
pub(crate) const fn is_plausible(unix_s: u64) -> bool {
    unix_s >= BUILD_UNIX_S
}
