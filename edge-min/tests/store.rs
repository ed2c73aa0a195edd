//! The damage matrix: the state cache is a real sled database in a real process, and the files of
//! the store are truncated, changed, emptied and removed. In any case the store opens, never
//! returns bytes that were not stored, and is complete again after the next write.
#![cfg(test)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use edge_min::storage::store::Store;
use edge_proto::hash::{Hash32, sha256};
use edge_proto::key::{Key, Kind};
use edge_proto::session::Payload;

const PROGRAM: &str = env!("CARGO_BIN_EXE_edge-min");
const FLAT: [&str; 2] = ["desired.a", "desired.b"];

/// Hashes instead of bytes, so that a failed comparison can be read.
type Set = BTreeMap<Key, Hash32>;

/// Rounds of each kind of random damage.
fn rounds() -> u64 {
    match std::env::var("EDGE_MIN_LONG") {
        Ok(long) if !long.is_empty() => 60,
        _ => 2,
    }
}

fn open(state: &Path) -> (Store, Set, Option<String>) {
    let (store, objects, damage) = Store::open(state, Path::new(PROGRAM)).unwrap();
    let set = objects
        .into_iter()
        .map(|object| (object.key, sha256(&object.payload.unwrap())))
        .collect();
    (store, set, damage)
}

fn key(kind: Kind, name: &str) -> Key {
    Key::Name(kind, "toll".into(), name.into())
}

/// Stores payloads of `length` bytes, which differ by `salt`.
fn put(store: &mut Store, kind: Kind, name: &str, length: usize, salt: u8) -> (Key, Hash32) {
    let bytes: Vec<u8> = (0..=250_u8)
        .cycle()
        .take(length)
        .map(|at| at ^ salt)
        .collect();
    let hash = sha256(&bytes);
    let payload = if length <= 4096 {
        Payload::Inline(bytes)
    } else {
        let len = u32::try_from(length).unwrap();
        store.blob_piece(hash, 0, &bytes, len).unwrap();
        Payload::Large { sha256: hash, len }
    };
    let key = key(kind, name);
    store.apply(vec![(key.clone(), Some(payload))], 1).unwrap();
    (key, hash)
}

/// A store with small and large, open and sealed objects, and a cache that is up to date.
fn filled(state: &Path) -> Set {
    let (mut store, ..) = open(state);
    let mut set = Set::new();
    for index in 0..40_u8 {
        let name = format!("config-{index}");
        set.extend([put(&mut store, Kind::ConfigMap, &name, 900, index)]);
    }
    set.extend([put(&mut store, Kind::Secret, "small", 700, 3)]);
    set.extend([put(&mut store, Kind::Secret, "large", 20_000, 5)]);
    set.extend([put(&mut store, Kind::ConfigMap, "large", 100_000, 7)]);
    store.write_cache().unwrap();
    set
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn remove_flat(state: &Path) {
    for name in FLAT {
        fs::remove_file(state.join(name)).ok();
    }
    fs::remove_dir_all(state.join("objects")).ok();
}

/// Splitmix64: seeds that can be replayed.
fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn below(seed: &mut u64, bound: usize) -> usize {
    usize::try_from(random(seed) % bound.max(1) as u64).unwrap()
}

fn snapshots(cache: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(cache).unwrap().flatten().map(|one| one.path());
    files
        .filter(|path| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with("snap.")
        })
        .collect()
}

/// Kinds of damage to one database; each is a row of the matrix.
const DAMAGE: [&str; 12] = [
    "none",
    "db truncated",
    "db truncated, no snapshot",
    "bit flip",
    "bit flip, no snapshot",
    "block zeroed",
    "db emptied",
    "conf emptied",
    "conf gone",
    "snapshot emptied",
    "snapshot half-written",
    "folder emptied",
];

fn damage(cache: &Path, kind: &str, seed: &mut u64) {
    let db = cache.join("db");
    let mut bytes = fs::read(&db).unwrap();
    if kind.ends_with("no snapshot") {
        snapshots(cache)
            .into_iter()
            .for_each(|path| fs::remove_file(path).unwrap());
    }
    match kind.split(',').next().unwrap() {
        "db truncated" => bytes.truncate(below(seed, bytes.len())),
        "bit flip" => {
            let at = below(seed, bytes.len());
            bytes[at] ^= 1 << below(seed, 8);
        }
        "block zeroed" => {
            let at = below(seed, bytes.len() / 4096) * 4096;
            let end = bytes.len().min(at + 4096);
            bytes[at..end].fill(0);
        }
        "db emptied" => bytes.clear(),
        "conf emptied" => fs::write(cache.join("conf"), "").unwrap(),
        "conf gone" => fs::remove_file(cache.join("conf")).unwrap(),
        "snapshot emptied" => fs::write(cache.join("snap.00000000000000FF"), "").unwrap(),
        "snapshot half-written" => {
            let whole = snapshots(cache)
                .pop()
                .map_or_else(Vec::new, |path| fs::read(path).unwrap());
            let name = cache.join("snap.00000000000000FF.generating");
            fs::write(name, &whole[..whole.len() / 2]).unwrap();
        }
        "folder emptied" => {
            fs::remove_dir_all(cache).unwrap();
            fs::create_dir(cache).unwrap();
            return;
        }
        _ => {}
    }
    fs::write(&db, bytes).unwrap();
}

/// Goal: a write leaves a readable cache, whatever it was written onto. Method: unnoticed damage
/// while the files of the store are valid; a change; then the files are removed.
#[test]
fn a_write_onto_a_damaged_cache_is_not_lost() {
    let master = tempfile::tempdir().unwrap();
    let set = filled(master.path());
    for (row, kind) in DAMAGE.into_iter().enumerate() {
        for round in 0..rounds() {
            let mut seed = (row as u64) << 32 | round | 1 << 63;
            let context = format!("{kind}, round {round}");
            let dir = tempfile::tempdir().unwrap();
            copy(master.path(), dir.path());
            damage(&dir.path().join("cache"), kind, &mut seed);
            let (mut store, ..) = open(dir.path());
            let mut wanted = set.clone();
            wanted.extend([put(&mut store, Kind::ConfigMap, "after", 100, 1)]);
            store
                .write_cache()
                .unwrap_or_else(|error| panic!("{context}: {error}"));
            drop(store);
            remove_flat(dir.path());
            assert_eq!(open(dir.path()).1, wanted, "{context}: from the cache");
        }
    }
}

/// Goal: no damage to the cache is fatal, and all is noticed. Method: each kind of damage in several
/// places, with valid files of the store and without them.
#[test]
fn a_damaged_cache_loses_at_most_itself() {
    let master = tempfile::tempdir().unwrap();
    let set = filled(master.path());
    let mut recovered = BTreeMap::new();
    for (row, kind) in DAMAGE.into_iter().enumerate() {
        for round in 0..rounds() {
            let mut seed = (row as u64) << 32 | round;
            let context = format!("{kind}, round {round}");
            let dir = tempfile::tempdir().unwrap();
            copy(master.path(), dir.path());
            damage(&dir.path().join("cache"), kind, &mut seed);

            // With valid files the store does not read the cache.
            let (mut store, found, word) = open(dir.path());
            assert_eq!((found, word), (set.clone(), None), "{context}");
            drop(store);

            // Without them the cache returns what it has, unchanged.
            remove_flat(dir.path());
            let (reopened, found, word) = open(dir.path());
            store = reopened;
            for (key, hash) in &found {
                assert_eq!(Some(hash), set.get(key), "{context}: {key} altered");
            }
            assert!(found.is_empty() || word.is_some(), "{context}: unsaid");
            *recovered.entry(kind).or_insert(0) += usize::from(found == set);

            // The next write repairs everything, the cache too.
            let (key, hash) = put(&mut store, Kind::ConfigMap, "after", 100, 1);
            store
                .write_cache()
                .unwrap_or_else(|error| panic!("{context}: {error}"));
            assert!(!store.cache_behind(), "{context}");
            drop(store);
            let mut wanted = found;
            wanted.insert(key, hash);
            assert_eq!(open(dir.path()).1, wanted, "{context}: from the files");
            remove_flat(dir.path());
            assert_eq!(open(dir.path()).1, wanted, "{context}: from the cache");
        }
    }
    for kind in [
        "none",
        "conf emptied",
        "conf gone",
        "snapshot emptied",
        "snapshot half-written",
    ] {
        let whole = recovered[kind];
        assert_eq!(whole as u64, rounds(), "{kind}: everything comes back");
    }
}

/// Goal: the newest set is used, wherever it is. Method: the newer file is damaged, so that the older
/// one and the cache compete.
#[test]
fn the_cache_stands_in_for_a_damaged_newer_generation() {
    let dir = tempfile::tempdir().unwrap();
    let mut set = filled(dir.path());
    let (mut store, ..) = open(dir.path());
    set.extend([put(&mut store, Kind::Secret, "small", 650, 9)]);
    store.write_cache().unwrap();
    drop(store);
    // 43 changes and one more: the newer generation has an even number.
    let newer = dir.path().join("desired.a");
    let bytes = fs::read(&newer).unwrap();
    fs::write(&newer, &bytes[..bytes.len() - 1]).unwrap();
    let (store, found, word) = open(dir.path());
    assert_eq!(found, set);
    assert!(word.unwrap().contains("the set taken from the state cache"));
    drop(store);
    // The cloud has not confirmed the set, so the next start must know of the damage too.
    let (mut store, found, word) = open(dir.path());
    assert_eq!(found, set);
    assert!(word.is_some());
    store.repair().unwrap();
    drop(store);
    let (_, found, word) = open(dir.path());
    assert_eq!((found, word), (set, None), "repaired on the medium");
}

/// Goal: a missing generation is noticed. Method: the newer file is removed.
#[test]
fn a_missing_newer_generation_is_told_and_made_up_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut set = filled(dir.path());
    let (mut store, ..) = open(dir.path());
    set.extend([put(&mut store, Kind::ConfigMap, "config-0", 800, 9)]);
    store.write_cache().unwrap();
    drop(store);
    fs::remove_file(dir.path().join("desired.a")).unwrap();
    let (_, found, word) = open(dir.path());
    assert_eq!(found, set);
    assert!(word.unwrap().contains("desired.a: missing"));
}

/// Goal: a stale cache never replaces a newer file. Method: a change after the cache was written,
/// then the loss of a large object, which the cache still has.
#[test]
fn a_stale_cache_gives_back_only_what_was_lost() {
    let dir = tempfile::tempdir().unwrap();
    let mut set = filled(dir.path());
    let (mut store, ..) = open(dir.path());
    set.extend([put(&mut store, Kind::ConfigMap, "config-0", 800, 99)]);
    drop(store);
    for entry in fs::read_dir(dir.path().join("objects")).unwrap() {
        fs::write(entry.unwrap().path(), "not what it was").unwrap();
    }
    let (_, found, word) = open(dir.path());
    assert_eq!(found, set);
    assert!(
        word.unwrap()
            .contains("lost objects taken from the state cache")
    );
}

/// Goal: a damaged board key loses the Secrets and nothing else. Method: it is truncated to half.
#[test]
fn a_damaged_board_key_costs_only_the_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let mut set = filled(dir.path());
    let path = dir.path().join("board.key");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..16]).unwrap();
    let (_, found, word) = open(dir.path());
    set.retain(|key, _| key.kind() != Kind::Secret);
    assert_eq!(found, set);
    assert!(word.is_some());
}

/// Calls of the cache process at one of which it is killed.
const CALLS: &str = "openat,write,pwrite64,ftruncate,fsync,fdatasync,sync_file_range,rename,renameat,\
                     renameat2,unlink,unlinkat";

/// A program that replaces the agent's, and runs it under strace as long as the file `options` in
/// `dir` says how; each such run needs a new file.
fn traced_program(dir: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let program = dir.join("program");
    let script = format!(
        "#!/bin/sh\ncd {0} || exit\nif mv options taken 2>/dev/null; then\n\
         exec strace -ff -qq -o {0}/log -e trace={CALLS} $(cat taken) {PROGRAM} \"$@\"\nfi\n\
         exec {PROGRAM} \"$@\"\n",
        dir.display(),
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    program
}

/// Names of the calls of the busiest thread in the last run, which was not killed.
fn traced_calls(dir: &Path) -> Vec<String> {
    let mut calls = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.file_stem().is_some_and(|stem| stem == "log") {
            let log = fs::read_to_string(&path).unwrap();
            let names = log.lines().filter_map(|line| line.split_once('('));
            let names: Vec<String> = names.map(|(name, _)| name.to_owned()).collect();
            if names.len() > calls.len() {
                calls = names;
            }
            fs::remove_file(path).unwrap();
        }
    }
    calls
}

/// Goal: a cache process that ends while it writes loses nothing. Method: strace kills it at one of its
/// calls, from the first to the last; the agent's end repairs the cache.
#[test]
fn a_killed_cache_process_is_made_up_for() {
    const ROUNDS: u8 = 8;
    let (dir, tools) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let program = traced_program(tools.path());
    let mut set = filled(dir.path());
    let (mut calls, mut kills) = (Vec::new(), 0);
    for round in 0..2 + ROUNDS {
        let (mut store, ..) = Store::open(dir.path(), &program).unwrap();
        set.extend([put(
            &mut store,
            Kind::ConfigMap,
            "config-1",
            800,
            100 + round,
        )]);
        // The first two are not killed: the second one is a change like those after it.
        let at = calls.len() * usize::from(round.saturating_sub(2)) / usize::from(ROUNDS);
        let options = match calls.get(at) {
            Some(call) if round > 1 => {
                // strace counts calls of one name.
                let nth = calls[..=at].iter().filter(|one| *one == call).count();
                format!("-e inject={call}:signal=KILL:when={nth}")
            }
            _ => String::new(),
        };
        fs::write(tools.path().join("options"), options).unwrap();
        let first = store.write_cache();
        if round < 2 {
            calls = traced_calls(tools.path());
            assert!(first.is_ok() && calls.len() > 20, "{calls:?}, {first:?}");
        }
        if first.is_err() {
            kills += 1;
            store.write_cache().unwrap();
        }
        drop(store);
        remove_flat(dir.path());
        assert_eq!(open(dir.path()).1, set, "round {round}");
    }
    // A process that is killed at its last calls has answered; the distribution of calls over its threads
    // varies a little.
    assert!(kills > ROUNDS / 2, "{kills} of {ROUNDS} kills came");
}

/// Goal: a full medium loses nothing that was acknowledged. Method: a small tmpfs is filled by
/// changes; the failed one leaves the set unchanged, and there is space again after a deletion.
#[test]
#[ignore = "needs root: mounts a tmpfs"]
fn a_full_medium_keeps_the_last_accepted_set() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let dir = tempfile::tempdir().unwrap();
    let options = Some("size=1m");
    mount(
        Some("tmpfs"),
        dir.path(),
        Some("tmpfs"),
        MsFlags::empty(),
        options,
    )
    .unwrap();
    let outcome = std::panic::catch_unwind(|| {
        let (mut store, ..) = open(dir.path());
        let mut set = Set::new();
        let mut failed = 0;
        for index in 0..20_u8 {
            let bytes = vec![index; 100_000];
            let hash = sha256(&bytes);
            let key = key(Kind::ConfigMap, &format!("large-{index}"));
            let taken = store.blob_piece(hash, 0, &bytes, 100_000).and_then(|_| {
                let payload = Payload::Large {
                    sha256: hash,
                    len: 100_000,
                };
                store.apply(vec![(key.clone(), Some(payload))], 1)
            });
            match taken {
                Ok(_) => drop(set.insert(key, hash)),
                Err(_) => failed += 1,
            }
        }
        assert!(
            failed > 0 && set.len() > 3,
            "{failed} failed, {} kept",
            set.len()
        );
        assert!(store.write_cache().is_err(), "the cache is shed first");
        drop(store);
        let (mut store, found, word) = open(dir.path());
        assert_eq!((&found, word), (&set, None));
        let first = set.keys().next().unwrap().clone();
        // The older generation still refers to it, so two changes are needed until there is space.
        store.apply(vec![(first.clone(), None)], 1).unwrap();
        store.apply(Vec::new(), 1).unwrap();
        set.remove(&first);
        drop(store);
        assert_eq!(open(dir.path()).1, set);
    });
    umount2(dir.path(), MntFlags::MNT_DETACH).unwrap();
    if let Err(failure) = outcome {
        std::panic::resume_unwind(failure);
    }
}
