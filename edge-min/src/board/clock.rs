//! The reliable time, see [`edge_core::time`], over this process's monotonic clock. The
//! floor file is written when the floor has advanced by a day, so it hardly wears the flash.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use edge_core::flash::Subsystem;
use edge_core::renewal::Time;
use edge_core::time::TrustedTime;

use crate::paths;
use crate::storage::medium::{self, Durability};

/// 2026-11-24, raised with each release: no clock of a board that runs this build is below it.
const BUILD_UNIX_S: u64 = 1_795_478_400;

struct State {
    file: PathBuf,
    time: TrustedTime,
    start: Instant,
    /// Reads the system's clock.
    system: fn() -> u64,
}

impl State {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// The clock; clones share one state.
#[derive(Clone)]
pub struct Clock(Arc<Mutex<State>>);

impl core::fmt::Debug for Clock {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Clock")
    }
}

impl Clock {
    /// Reads the floor from `state`. A floor file that is missing or altered counts as 0.
    #[must_use]
    pub fn open(state: &Path) -> Self {
        let file = paths::time_floor(state);
        let kept = fs::read(&file)
            .ok()
            .and_then(|bytes| from_file(&bytes))
            .unwrap_or(0);
        Self(Arc::new(Mutex::new(State {
            file,
            time: TrustedTime::new(BUILD_UNIX_S, kept),
            start: Instant::now(),
            system,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seconds since 1970 for display, and whether they are trusted.
    #[must_use]
    pub fn now(&self) -> (u64, bool) {
        let state = self.lock();
        state.time.shown(state.now(), (state.system)())
    }

    /// The time for certificates and their renewal.
    #[must_use]
    pub fn reliable(&self) -> Time {
        let state = self.lock();
        state.time.reliable(state.now())
    }

    /// The floor, seconds since 1970: servers' certificates are checked against it.
    #[must_use]
    pub fn floor(&self) -> u64 {
        let state = self.lock();
        state.time.floor(state.now())
    }

    /// A server of the link has proven that it holds the key of a certificate with this expiry.
    pub fn server(&self, not_after: u64) {
        let mut state = self.lock();
        let now = state.now();
        state.time.server(now, not_after);
    }

    /// The cloud has sent its time.
    pub fn confirm(&self, unix_s: u64) {
        let mut state = self.lock();
        let now = state.now();
        state.time.confirm(now, unix_s);
        if let Some(floor) = state.time.to_keep(now) {
            let must = Durability::Must(Subsystem::Time);
            if medium::write(&state.file, &to_file(floor), must).is_ok() {
                state.time.kept(floor);
            }
        }
    }
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

/// A flipped bit must not advance the floor: all certificates would count as expired permanently.
fn from_file(bytes: &[u8]) -> Option<u64> {
    let (seconds, crc) = bytes.split_first_chunk::<8>()?;
    (crc32fast::hash(seconds).to_be_bytes() == *crc).then(|| u64::from_be_bytes(*seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge_core::time::AHEAD_S_MAX;

    #[test]
    fn the_floor_survives_a_restart_and_is_never_lowered() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::open(dir.path());
        let far = 2_000_000_000;
        clock.server(u64::MAX);
        clock.confirm(far);
        assert!(clock.now().0 >= far && clock.now().1);
        clock.confirm(BUILD_UNIX_S);
        assert!(clock.floor() >= far);
        assert!(
            clock.now().0 < far,
            "the cloud's clock was wrong, and is right now"
        );
        let again = Clock::open(dir.path());
        assert!(again.now().0 >= far && again.floor() >= far);
        assert!(!again.now().1, "the board's own clock is below the floor");
    }

    #[test]
    fn a_time_that_is_far_too_late_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::open(dir.path());
        clock.server(u64::MAX);
        clock.confirm(u64::from(u32::MAX));
        assert!(clock.now().0 < BUILD_UNIX_S + AHEAD_S_MAX);
        assert!(!dir.path().join("time.floor").exists());
    }

    #[test]
    fn the_floor_is_written_up_to_what_the_server_has_proven() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::open(dir.path());
        let end = BUILD_UNIX_S + 3_000_000;
        clock.server(end);
        clock.confirm(end + 9_000_000);
        assert_eq!(clock.floor(), end);
        assert_eq!(Clock::open(dir.path()).floor(), end);
    }

    /// Goal: the board's own clock never changes the floor, and is not used for a
    /// certificate.
    #[test]
    fn the_systems_clock_moves_neither_the_floor_nor_the_time_for_certificates() {
        let dir = tempfile::tempdir().unwrap();
        for system in [|| 0, || 4_102_444_800, || u64::MAX] {
            let clock = Clock::open(dir.path());
            clock.0.lock().unwrap().system = system;
            let Time { unix_s, confirmed } = clock.reliable();
            assert!((BUILD_UNIX_S..BUILD_UNIX_S + 60).contains(&unix_s) && !confirmed);
            assert_eq!(clock.floor(), unix_s);
            assert!(!dir.path().join("time.floor").exists());
        }
        let clock = Clock::open(dir.path());
        clock.0.lock().unwrap().system = || u64::MAX;
        clock.server(u64::MAX);
        clock.confirm(BUILD_UNIX_S + 1_000_000);
        let reliable = clock.reliable();
        assert_eq!(clock.now(), (reliable.unix_s, reliable.confirmed));
        let floor = Clock::open(dir.path()).reliable().unix_s;
        assert!((BUILD_UNIX_S + 1_000_000..BUILD_UNIX_S + 1_000_060).contains(&floor));
    }

    #[test]
    fn an_altered_floor_file_counts_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("time.floor");
        let clock = Clock::open(dir.path());
        clock.server(u64::MAX);
        clock.confirm(2_000_000_000);
        let whole = fs::read(&file).unwrap();
        let persisted = || Clock::open(dir.path()).0.lock().unwrap().time.kept_unix_s();
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
