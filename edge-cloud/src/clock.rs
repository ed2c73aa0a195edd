//! The wall clock.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970; 0 with a clock that is before.
pub(crate) fn unix_s() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
