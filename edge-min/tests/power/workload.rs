//! The recorded programs, and checks of the files afterwards. A workload prints a line with
//! `@` for what it would acknowledge, each in one write, and `@end` at its end; it continues when a
//! write fails, as the agent does.

#[path = "outbox.rs"]
mod outbox;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use edge_min::board::clock::Clock;
use edge_min::driver::workers::{StoreDone, StoreJob, spawn_store};
use edge_min::link::identity::{self, Identity};
use edge_min::storage::store::Store;
use edge_min::worker::{CHANNEL_MAX, Jobs, Watch};
use edge_proto::hash::{Hash32, sha256};
use edge_proto::key::{Key, Kind};
use edge_proto::session::Payload;

/// The name of the workload, and its folder, for the process.
pub(crate) const NAME: &str = "EDGE_MIN_WORKLOAD";
pub(crate) const DIR: &str = "EDGE_MIN_WORKLOAD_DIR";
const PROGRAM: &str = env!("CARGO_BIN_EXE_edge-min");
/// Tries of a write: a single failing call may hit more than one step of it.
const TRIES: u32 = 5;
const PIECE: usize = 4096;

/// Hashes instead of bytes, so that a failed comparison can be read.
type Set = BTreeMap<Key, Hash32>;

/// A program that writes to a folder, and the check of the result.
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    /// The program, in an empty folder.
    pub(crate) run: fn(&Path),
    /// Checks that a folder contains all that was acknowledged, and nothing else; then writes further.
    pub(crate) check: fn(&Path, &[&str]) -> Result<(), String>,
}

pub(crate) const ALL: [Workload; 3] = [
    Workload {
        name: "store",
        run: run_store,
        check: check_store,
    },
    Workload {
        name: "identity",
        run: run_identity,
        check: check_identity,
    },
    Workload {
        name: "outbox",
        run: outbox::run,
        check: outbox::check,
    },
];

/// The same accepts as of `ALL[0]`, by the agent's own thread: it retries every five seconds.
pub(crate) const THREAD: Workload = Workload {
    name: "thread",
    run: run_thread,
    check: check_thread,
};

/// Opens an existing store, and prints its content.
pub(crate) const REOPEN: Workload = Workload {
    name: "reopen",
    run: run_reopen,
    check: |_, _| Ok(()),
};

/// Opens an existing outbox, and prints its content.
pub(crate) const REOPEN_OUTBOX: Workload = Workload {
    name: "reopen-outbox",
    run: outbox::reopen,
    check: |_, _| Ok(()),
};

pub(crate) fn named(name: &str) -> &'static Workload {
    let mut all = ALL.iter().chain([&THREAD, &REOPEN, &REOPEN_OUTBOX]);
    all.find(|one| one.name == name).unwrap()
}

/// Prints in one write, past the capture of tests.
fn say(text: &str) {
    if std::env::var_os(NAME).is_none() {
        // This is not that process.
        return;
    }
    let line = ["\n@", text, "\n"].concat();
    std::io::stdout().write_all(line.as_bytes()).unwrap();
    std::io::stdout().flush().unwrap();
}

/// Repeats until it succeeds.
fn insist<T, E: std::fmt::Display>(mut write: impl FnMut() -> Result<T, E>) -> T {
    for _ in 1..TRIES {
        match write() {
            Ok(value) => return value,
            Err(error) => say(&format!("failed {error}")),
        }
    }
    write().unwrap_or_else(|error| panic!("still fails: {error}"))
}

/// The largest number after this word.
fn number(printed: &[&str], word: &str) -> u64 {
    let numbers = printed
        .iter()
        .filter_map(|line| line.strip_prefix(word)?.parse().ok());
    numbers.max().unwrap_or(0)
}

/// The changes of an accept: small and large, open and sealed, and removals.
fn changes(epoch: u64) -> Vec<(Key, Option<Vec<u8>>)> {
    let key = |kind, name: &str| Key::Name(kind, "toll".into(), name.into());
    let bytes = |length: u64| {
        (0..length)
            .map(|at| (at * 7 + epoch).to_le_bytes()[0])
            .collect::<Vec<u8>>()
    };
    match epoch % 6 {
        0 => vec![
            (key(Kind::ConfigMap, "a"), None),
            (key(Kind::Secret, "large"), None),
        ],
        1 => vec![
            (key(Kind::ConfigMap, "a"), Some(bytes(900))),
            (key(Kind::Secret, "s"), Some(bytes(300))),
        ],
        2 => vec![(key(Kind::ConfigMap, "large"), Some(bytes(10_000)))],
        3 => vec![(key(Kind::Secret, "large"), Some(bytes(9_000)))],
        // The same bytes under another key.
        4 => vec![(
            key(Kind::ConfigMap, "twin"),
            Some(
                (0..10_000)
                    .map(|at| (at * 7 + epoch - 2).to_le_bytes()[0])
                    .collect(),
            ),
        )],
        _ => vec![
            (key(Kind::ConfigMap, "b"), Some(bytes(4_000))),
            (key(Kind::ConfigMap, "large"), None),
        ],
    }
}

/// Hashes of the objects after an accept.
fn set_of(epoch: u64) -> Set {
    let mut set = BTreeMap::new();
    for (key, bytes) in (1..=epoch).flat_map(changes) {
        match bytes {
            Some(bytes) => drop(set.insert(key, sha256(&bytes))),
            None => drop(set.remove(&key)),
        }
    }
    set
}

/// Number of accepts of the store's workload.
const EPOCHS: u64 = 13;

/// Stores an accept as the agent does: large objects in pieces, from where they stopped.
fn accept(store: &mut Store, epoch: u64) -> std::io::Result<()> {
    let mut wanted = Vec::new();
    for (key, bytes) in changes(epoch) {
        let payload = match bytes {
            Some(bytes) if bytes.len() > PIECE => {
                let (hash, len) = (sha256(&bytes), u32::try_from(bytes.len()).unwrap());
                let mut have = store.blob_have(hash, len);
                // Damage to stored bytes is found at the end, and the transfer starts again.
                for _ in 0..20 {
                    let at = have as usize;
                    if at == bytes.len() {
                        break;
                    }
                    let piece = &bytes[at..bytes.len().min(at + PIECE)];
                    have = store.blob_piece(hash, have, piece, len)?;
                }
                Some(Payload::Large { sha256: hash, len })
            }
            other => other.map(Payload::Inline),
        };
        wanted.push((key, payload));
    }
    store.apply(wanted, epoch).map(drop)
}

fn open(dir: &Path) -> Result<(Store, Set, Option<String>), String> {
    let (store, objects, damage) =
        Store::open(dir, Path::new(PROGRAM)).map_err(|error| error.to_string())?;
    let mut set = BTreeMap::new();
    for object in objects {
        set.insert(
            object.key,
            sha256(&object.payload.map_err(|reason| reason.to_string())?),
        );
    }
    Ok((store, set, damage))
}

fn run_store(dir: &Path) {
    let (mut store, ..) = insist(|| open(dir));
    for epoch in 1..=EPOCHS {
        insist(|| accept(&mut store, epoch));
        say(&format!("accepted {epoch}"));
        // The cache may fail: it is then older than the set.
        if epoch % 5 == 0
            && let Err(error) = store.write_cache()
        {
            say(&format!("cache {error}"));
        }
    }
    say("end");
}

fn run_reopen(dir: &Path) {
    let (store, set, damage) = open(dir).unwrap();
    for (key, hash) in &set {
        let known = (1..=EPOCHS).flat_map(changes).filter(|(one, _)| one == key);
        let known: Vec<Hash32> = known
            .filter_map(|(_, bytes)| Some(sha256(&bytes?)))
            .collect();
        assert!(known.contains(hash), "{key} was never accepted");
    }
    let whole = store.epoch() == EPOCHS && set == set_of(EPOCHS);
    let floor = Clock::open(dir).now().0;
    let damage = damage.map_or("none", |_| "told");
    say(&format!(
        "whole {whole} damage {damage} floor {}",
        floor >= FLOOR
    ));
    say("end");
}

/// A store as [`run_store`] leaves it, and a time floor.
pub(crate) fn fill(dir: &Path) {
    run_store(dir);
    let clock = Clock::open(dir);
    clock.server(u64::MAX);
    clock.confirm(FLOOR);
}

fn run_thread(dir: &Path) {
    let (store, ..) = open(dir).unwrap();
    let (mut jobs, receiver) = Jobs::new();
    let (sender, done) = async_channel::bounded(CHANNEL_MAX);
    let watch = Watch::new(|| {}).thread("store");
    spawn_store(store, receiver, sender, watch).unwrap();
    for epoch in [1, 7, 13] {
        let inline = |bytes: Option<Vec<u8>>| bytes.map(Payload::Inline);
        let changes = changes(epoch).into_iter();
        jobs.push(StoreJob::Apply {
            ticket: u32::try_from(epoch).unwrap(),
            changes: changes.map(|(key, bytes)| (key, inline(bytes))).collect(),
            epoch: epoch / 6 + 1,
        });
    }
    let mut answers = 0;
    while answers < 3 {
        match done.recv_blocking().unwrap() {
            StoreDone::Applied { ticket, .. } => {
                say(&format!("applied {ticket}"));
                answers += 1;
            }
            StoreDone::Unwritable(Some(error)) => say(&format!("trouble {error}")),
            StoreDone::Unwritable(None) => say("well again"),
            // None of it is durable.
            StoreDone::Ahead(_) => {}
            StoreDone::Have(..) => panic!("nobody asked"),
        }
    }
    say("end");
}

fn check_thread(dir: &Path, printed: &[&str]) -> Result<(), String> {
    let answers: Vec<_> = printed
        .iter()
        .filter(|line| line.starts_with("applied "))
        .collect();
    if answers != [&"applied 1", &"applied 7", &"applied 13"] {
        return Err("not answered in order".to_owned());
    }
    let (store, set, damage) = open(dir)?;
    let wanted: BTreeMap<_, _> = changes(13)
        .into_iter()
        .filter_map(|(key, bytes)| Some((key, sha256(&bytes?))))
        .collect();
    match (store.epoch(), damage) {
        (3, None) if set == wanted => Ok(()),
        (epoch, damage) => Err(format!("epoch {epoch}, {damage:?}, {set:?}")),
    }
}

/// A cache contains only accepted data, and a damaged cache is not an error.
pub(crate) fn check_cache(dir: &Path) -> Result<(), String> {
    for name in ["desired.a", "desired.b"] {
        std::fs::remove_file(dir.join(name)).ok();
    }
    std::fs::remove_dir_all(dir.join("objects")).ok();
    let (mut store, set, _) = open(dir)?;
    for (key, hash) in set {
        let known = (1..=EPOCHS).flat_map(changes);
        let known = known.filter(|(one, _)| *one == key);
        if !known
            .filter_map(|(_, bytes)| bytes)
            .any(|bytes| sha256(&bytes) == hash)
        {
            return Err(format!("{key} in the cache was never accepted"));
        }
    }
    accept(&mut store, 1).map_err(|error| error.to_string())?;
    store.write_cache()
}

fn check_store(dir: &Path, printed: &[&str]) -> Result<(), String> {
    let accepted = number(printed, "accepted ");
    let (mut store, set, damage) = open(dir)?;
    let epoch = store.epoch();
    // The following one may be stored before it is acknowledged.
    if epoch < accepted || epoch > accepted + 1 {
        return Err(format!(
            "epoch {epoch}, and {accepted} was acknowledged; {damage:?}"
        ));
    }
    if set != set_of(epoch) {
        return Err(format!("not the set of epoch {epoch}: {set:?}; {damage:?}"));
    }
    if let Some(damage) = damage {
        return Err(format!("damage: {damage}"));
    }
    // Continues: two more, so that both generations are overwritten.
    for next in [epoch + 1, epoch + 2] {
        accept(&mut store, next).map_err(|error| error.to_string())?;
    }
    drop(store);
    let (store, set, damage) = open(dir)?;
    if (store.epoch(), &damage) != (epoch + 2, &None) || set != set_of(epoch + 2) {
        return Err(format!(
            "does not go on: epoch {}, {damage:?}, {set:?}",
            store.epoch()
        ));
    }
    Ok(())
}

/// The node's identity after its join and so many renewals.
fn joined(nth: u8) -> Identity {
    Identity {
        node: format!("gate-{nth}"),
        key: vec![nth; 100],
        certificate: vec![nth; 500],
        cas: vec![vec![nth; 400]],
        cloud: format!("mqtts://cloud-{nth}:1"),
        broker: None,
    }
}

const JOINS: u8 = 3;
/// Far above the date of any build, and a day apart.
const FLOOR: u64 = 2_000_000_000;
const DAY: u64 = 86_400;

fn run_identity(dir: &Path) {
    for nth in 1..=JOINS {
        let identity = joined(nth);
        insist(|| identity::keep_key(dir, &identity.key));
        say(&format!("key {nth}"));
        // The first is a join, the others are renewals.
        insist(|| match nth {
            1 => identity.save(dir),
            _ => identity.save_renewed(dir),
        });
        say(&format!("joined {nth}"));
        let time = FLOOR + u64::from(nth) * DAY;
        let clock = Clock::open(dir);
        clock.server(u64::MAX);
        // One attempt each time that the cloud sends its time.
        for _ in 0..TRIES {
            clock.confirm(time);
        }
        say(&format!("time {time}"));
    }
    say("end");
}

fn check_identity(dir: &Path, printed: &[&str]) -> Result<(), String> {
    let last = number(printed, "joined ");
    let loaded = Identity::load(dir).map_err(|error| format!("joined {last}: {error}"))?;
    let found = loaded.as_ref().map_or(0, |one| u64::from(one.key[0]));
    if found < last || found > last + 1 {
        return Err(format!("identity {found}, and {last} was acknowledged"));
    }
    if let Some(one) = loaded {
        let wanted = joined(one.key[0]);
        let same = one.node == wanted.node
            && one.key == wanted.key
            && one.certificate == wanted.certificate;
        if !(same && one.cas == wanted.cas && one.cloud == wanted.cloud) {
            return Err(format!("identity {found} is mixed with another"));
        }
    }
    let key = number(printed, "key ");
    let pending = identity::pending_key(dir).map_err(|error| error.to_string())?;
    let pending = pending.map_or(0, |key| u64::from(key[0]));
    if key > last && found != key && pending != key {
        return Err(format!("key {pending} waits, and {key} was acknowledged"));
    }
    let floor = number(printed, "time ");
    if floor > 0 && Clock::open(dir).now().0 < floor {
        return Err(format!("the time is below {floor}"));
    }
    // Continues: a join on top of the remaining files.
    let next = joined(9);
    next.save(dir)
        .map_err(|error| format!("does not go on: {error}"))?;
    match Identity::load(dir) {
        Ok(Some(one)) if one.node == next.node && one.key == next.key => Ok(()),
        _ => Err("does not go on".to_owned()),
    }
}
