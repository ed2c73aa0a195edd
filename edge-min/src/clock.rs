//! Wall-clock time that can be relied on: never below the trusted floor, which is the largest of
//! this build's own date, what was persisted, and what the cloud said. The floor file is written
//! when it moves by a day, so it costs the flash nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::tls::TimeSource;

/// 2026-11-24, raised with each release: no clock of a board that runs this build is below it.
const BUILD_UNIX_S: u64 = 1_795_478_400;
/// The floor is persisted when it moved by this much, seconds.
const PERSIST_S: u64 = 24 * 3600;

struct State {
    file: PathBuf,
    persisted: u64,
    /// The floor, and when it was learned.
    floor: u64,
    since: Instant,
    confirmed: bool,
}

/// The clock; clones share one state.
#[derive(Clone)]
pub struct Clock(Arc<Mutex<State>>);

impl Clock {
    /// A clock with its floor below `state`. A floor file that is missing or altered counts as 0.
    #[must_use]
    pub fn open(state: &Path) -> Self {
        let file = state.join("time.floor");
        let persisted = fs::read_to_string(&file)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0);
        Self(Arc::new(Mutex::new(State {
            file,
            persisted,
            floor: BUILD_UNIX_S.max(persisted),
            since: Instant::now(),
            confirmed: false,
        })))
    }

    /// Seconds since 1970, and whether they are to be trusted: the system's clock is above the
    /// floor, or the cloud has said the time since the start.
    #[must_use]
    pub fn now(&self) -> (u64, bool) {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let system = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.as_secs());
        let floor = state.floor.saturating_add(state.since.elapsed().as_secs());
        if state.confirmed {
            (floor, true)
        } else {
            (system.max(floor), system >= floor)
        }
    }

    /// The cloud said the time. An authenticated time never lowers the floor.
    pub fn confirm(&self, unix_s: u64) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let floor = state.floor.saturating_add(state.since.elapsed().as_secs());
        if unix_s < floor {
            return;
        }
        state.floor = unix_s;
        state.since = Instant::now();
        state.confirmed = true;
        if unix_s.saturating_sub(state.persisted) >= PERSIST_S {
            let dir = state
                .file
                .parent()
                .unwrap_or_else(|| Path::new("/"))
                .to_owned();
            // Without it the next start only has a lower floor.
            if crate::store::write_durably(&dir, &state.file, unix_s.to_string().as_bytes()).is_ok()
            {
                state.persisted = unix_s;
            }
        }
    }

    /// For TLS.
    #[must_use]
    pub fn source(&self) -> TimeSource {
        let clock = self.clone();
        Arc::new(move || clock.now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_survives_a_restart_and_is_never_lowered() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::open(dir.path());
        let far = 4_000_000_000;
        clock.confirm(far);
        assert!(clock.now().0 >= far && clock.now().1);
        clock.confirm(BUILD_UNIX_S);
        assert!(clock.now().0 >= far);
        let again = Clock::open(dir.path());
        assert!(again.now().0 >= far);
        assert!(!again.now().1, "the board's own clock is below the floor");
        fs::write(dir.path().join("time.floor"), "nonsense").unwrap();
        assert!(Clock::open(dir.path()).now().0 < far);
    }
}
