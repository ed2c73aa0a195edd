//! Wall-clock time that can be relied on: never below the trusted floor, which is the largest of
//! this build's own date, what was persisted, and what the cloud said. The floor file is written
//! when it moves by a day, so it costs the flash nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use edge_core::flash::Subsystem;

use crate::medium::{self, Durability};
use crate::tls::TimeSource;

/// 2026-11-24, raised with each release: no clock of a board that runs this build is below it.
const BUILD_UNIX_S: u64 = 1_795_478_400;
/// 20 years: no board is away for so long, so a clock that is further above the floor is broken, as
/// that of a dead battery may be. Believed, it would take every certificate for expired.
const AHEAD_S_MAX: u64 = 20 * 365 * 24 * 3600;
/// The floor is persisted when it moved by this much, seconds.
const PERSIST_S: u64 = 24 * 3600;

struct State {
    file: PathBuf,
    persisted: u64,
    /// The floor, and when it was learned.
    floor: u64,
    since: Instant,
    confirmed: bool,
    /// The system's clock.
    system: fn() -> u64,
}

impl State {
    fn floor(&self) -> u64 {
        self.floor.saturating_add(self.since.elapsed().as_secs())
    }
}

/// The clock; clones share one state.
#[derive(Clone)]
pub struct Clock(Arc<Mutex<State>>);

impl Clock {
    /// A clock with its floor below `state`. A floor file that is missing or altered counts as 0.
    #[must_use]
    pub fn open(state: &Path) -> Self {
        let file = state.join("time.floor");
        let persisted = fs::read(&file)
            .ok()
            .and_then(|bytes| from_file(&bytes))
            .unwrap_or(0);
        Self(Arc::new(Mutex::new(State {
            file,
            persisted,
            floor: BUILD_UNIX_S.max(persisted),
            since: Instant::now(),
            confirmed: false,
            system,
        })))
    }

    /// Seconds since 1970 for people, and whether they are to be trusted: the system's clock is above
    /// the floor, and not by [`AHEAD_S_MAX`], or the cloud has said the time since the start.
    #[must_use]
    pub fn now(&self) -> (u64, bool) {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (system, floor) = ((state.system)(), state.floor());
        if state.confirmed {
            (floor, true)
        } else {
            let trusted = is_plausible(system, floor);
            (if trusted { system } else { floor }, trusted)
        }
    }

    /// Seconds since 1970 for certificates, and whether the cloud has said them since the start;
    /// else they are the floor. The system's clock has no part in this: one that stands in 2100
    /// would shut out every cloud, and nobody can tell it from one that is right.
    #[must_use]
    pub fn reliable(&self) -> (u64, bool) {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (state.floor(), state.confirmed)
    }

    /// The cloud said the time. An authenticated time never lowers the floor.
    pub fn confirm(&self, unix_s: u64) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_plausible(unix_s, state.floor()) {
            return;
        }
        state.floor = unix_s;
        state.since = Instant::now();
        state.confirmed = true;
        if unix_s.saturating_sub(state.persisted) >= PERSIST_S {
            // Without it the next start only has a lower floor.
            let must = Durability::Must(Subsystem::Time);
            if medium::write(&state.file, &to_file(unix_s), must).is_ok() {
                state.persisted = unix_s;
            }
        }
    }

    /// For TLS.
    #[must_use]
    pub fn source(&self) -> TimeSource {
        let clock = self.clone();
        Arc::new(move || clock.reliable())
    }
}

fn is_plausible(unix_s: u64, floor: u64) -> bool {
    unix_s
        .checked_sub(floor)
        .is_some_and(|ahead| ahead < AHEAD_S_MAX)
}

fn system() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| time.as_secs())
}

/// The floor file: seconds since 1970 and their CRC-32, both big-endian.
fn to_file(unix_s: u64) -> Vec<u8> {
    let seconds = unix_s.to_be_bytes();
    let crc = crc32fast::hash(&seconds).to_be_bytes();
    [seconds.as_slice(), &crc].concat()
}

/// A flipped bit must not lift the floor: certificates would all be out of date for good.
fn from_file(bytes: &[u8]) -> Option<u64> {
    let (seconds, crc) = bytes.split_first_chunk::<8>()?;
    (crc32fast::hash(seconds).to_be_bytes() == *crc).then(|| u64::from_be_bytes(*seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_survives_a_restart_and_is_never_lowered() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::open(dir.path());
        let far = 2_000_000_000;
        clock.confirm(far);
        assert!(clock.now().0 >= far && clock.now().1);
        clock.confirm(BUILD_UNIX_S);
        assert!(clock.now().0 >= far);
        let again = Clock::open(dir.path());
        assert!(again.now().0 >= far);
        assert!(!again.now().1, "the board's own clock is below the floor");
    }

    /// Goal: no broken clock, the board's or the cloud's, makes every certificate expired for good.
    /// Method: times at the edge of what is believed, and the last that 32 bits can hold.
    #[test]
    fn a_time_that_is_far_too_late_is_not_believed() {
        assert!(is_plausible(BUILD_UNIX_S, BUILD_UNIX_S));
        assert!(!is_plausible(BUILD_UNIX_S - 1, BUILD_UNIX_S));
        assert!(is_plausible(BUILD_UNIX_S + AHEAD_S_MAX - 1, BUILD_UNIX_S));
        assert!(!is_plausible(BUILD_UNIX_S + AHEAD_S_MAX, BUILD_UNIX_S));
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::open(dir.path());
        clock.confirm(u64::from(u32::MAX));
        assert!(clock.now().0 < BUILD_UNIX_S + AHEAD_S_MAX);
        assert!(!dir.path().join("time.floor").exists());
    }

    /// Goal: wherever the board's own clock stands, it neither moves the floor nor is asked about a
    /// certificate.
    #[test]
    fn the_systems_clock_moves_neither_the_floor_nor_the_time_for_certificates() {
        let dir = tempfile::tempdir().unwrap();
        for system in [|| 0, || 4_102_444_800, || u64::MAX] {
            let clock = Clock::open(dir.path());
            clock.0.lock().unwrap().system = system;
            let (floor, confirmed) = clock.reliable();
            assert!((BUILD_UNIX_S..BUILD_UNIX_S + 60).contains(&floor) && !confirmed);
            assert_eq!(clock.source()(), clock.reliable());
            assert!(!dir.path().join("time.floor").exists());
        }
        let clock = Clock::open(dir.path());
        clock.0.lock().unwrap().system = || u64::MAX;
        clock.confirm(BUILD_UNIX_S + 1_000_000);
        assert_eq!(clock.now(), clock.reliable());
        let floor = Clock::open(dir.path()).reliable().0;
        assert!((BUILD_UNIX_S + 1_000_000..BUILD_UNIX_S + 1_000_060).contains(&floor));
    }

    #[test]
    fn an_altered_floor_file_counts_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("time.floor");
        Clock::open(dir.path()).confirm(2_000_000_000);
        let whole = fs::read(&file).unwrap();
        let persisted = || Clock::open(dir.path()).0.lock().unwrap().persisted;
        assert_eq!(persisted(), 2_000_000_000);
        for bit in 0..whole.len() * 8 {
            let mut altered = whole.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            fs::write(&file, altered).unwrap();
            assert_eq!(persisted(), 0, "bit {bit}");
        }
        for length in 0..whole.len() {
            fs::write(&file, &whole[..length]).unwrap();
            assert_eq!(persisted(), 0, "{length} bytes");
        }
        for other in [[0; 12].as_slice(), b"4000000000", b"nonsense"] {
            fs::write(&file, other).unwrap();
            assert_eq!(persisted(), 0);
        }
    }
}
