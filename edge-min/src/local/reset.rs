//! `edge-min reset`: a board without identity and state, as before its first join. The containers
//! are ended first: their root filesystems are in the folders that are wiped.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::board::config::Config;
use crate::paths;
use crate::storage::lock::Lock;
use crate::storage::outbox::Store;
use crate::storage::tree;
use crate::workload::runtime::{Found, Runtime};

/// Grace period of containers. Their own is in the desired set, which is wiped.
const GRACE: Duration = Duration::from_secs(10);
/// Interval of checking them.
const POLL: Duration = Duration::from_millis(50);

/// Containers that run.
///
/// # Errors
/// The board has no cgroups, or what runs cannot be known.
pub fn running(config: &Config) -> Result<usize, String> {
    let found = discover(&runtime(config)?)?;
    Ok(found.iter().filter(|one| runs(one)).count())
}

fn discover(runtime: &Runtime) -> Result<Vec<Found>, String> {
    runtime.discover().map_err(|error| unknown(&error))
}

fn unknown(error: &io::Error) -> String {
    ["what runs cannot be known: ", &error.to_string()].concat()
}

const fn runs(one: &Found) -> bool {
    one.process.is_some()
}

/// Number of records that wait for the cloud, human-readable. Opening the outbox repairs it at most, and no
/// other process has it open.
#[must_use]
pub fn unsent(config: &Config, _alone: &Lock) -> String {
    let dir = paths::outbox(&config.state_dir);
    let mut count = 0;
    if dir.exists() {
        match Store::open(&dir, &config.outbox) {
            Ok(store) => {
                for class in &config.outbox.classes {
                    count += store.counters(class.config.number).held;
                }
            }
            // Unreadable records are wiped, too: they may be the reason of the reset.
            Err(_) => return "unsent records that cannot be counted".to_owned(),
        }
    }
    [&count.to_string(), " unsent records"].concat()
}

/// Ends every container, then wipes identity and state. The lock guarantees that no agent runs, which would
/// start them again.
///
/// # Errors
/// What could not be ended or wiped; the identity is still there when a container is.
pub fn reset(config: &Config, _alone: &Lock) -> Result<(), String> {
    let runtime = runtime(config)?;
    runtime.clear_strays().map_err(|error| unknown(&error))?;
    for one in discover(&runtime)? {
        if let Some(process) = one.process {
            process.terminate();
        }
    }
    let start = Instant::now();
    while start.elapsed() < GRACE && discover(&runtime)?.iter().any(runs) {
        std::thread::sleep(POLL);
    }
    for one in discover(&runtime)? {
        let failed = |error: io::Error| {
            let container = [&one.uid.to_string(), "/", &one.container].concat();
            ["container ", &container, ": ", &error.to_string()].concat()
        };
        runtime.remove(one.uid, &one.container).map_err(failed)?;
    }
    if discover(&runtime)?.iter().any(runs) {
        return Err("a container does not end; identity and state are still there".to_owned());
    }
    for uid in runtime.pods().map_err(|error| unknown(&error))? {
        runtime
            .remove_pod(uid)
            .map_err(|error| ["pod ", &uid.to_string(), ": ", &error.to_string()].concat())?;
    }
    for name in paths::RESET {
        remove(&config.state_dir.join(name))?;
    }
    // After a power cut nothing reappears.
    let synced = fs::File::open(&config.state_dir).and_then(|dir| Ok(rustix::fs::syncfs(dir)?));
    synced.map_err(|error| ["sync: ", &error.to_string()].concat())
}

fn runtime(config: &Config) -> Result<Runtime, String> {
    Runtime::new(config).map_err(|error| ["containers: ", &error.to_string()].concat())
}

fn remove(path: &Path) -> Result<(), String> {
    tree::remove(path).map_err(|error| [&path.to_string_lossy(), ": ", &error.to_string()].concat())
}
