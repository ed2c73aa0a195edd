//! The last accepted desired set on the medium: one flat, checksummed file in two generations
//! (`desired.a`, `desired.b`), and one file for each object over 4 KiB (`objects/`), kept as long as
//! one of the two refers to it.
//! With these alone every workload starts again, whatever the state of the uplink and the clock.
//! The [`cache`] holds a copy; it is read only when these are damaged. An agent without the
//! feature `state-cache` has none, and damaged objects then come from the cloud again.
//!
//! A change is written completely (tmp, fsync, rename, fsync of the directory) over the older
//! generation, so a power cut leaves the newer one. A damaged file is skipped, never fatal:
//! the cloud sends missing objects again. Secrets are sealed, each for its own key.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use edge_core::flash::Subsystem;
use edge_proto::hash::{Hash16, Hash32, sha256};
use edge_proto::key::{Key, Kind};
use edge_proto::limits::{CONFIG_BYTES_MAX, INLINE_BYTES_MAX, NODE_BYTES_MAX, WIRE_VERSION};
use edge_proto::session::{Payload, Reason};
use edge_proto::sorted::{SortedMap, SortedSet};
use serde::{Deserialize, Serialize};

use crate::paths;
use crate::storage::medium::{self, Durability};
use crate::storage::seal::Sealer;
use crate::storage::store::cache::{Cache, Loaded, Meta};

#[cfg(feature = "state-cache")]
pub mod cache;
#[cfg(not(feature = "state-cache"))]
#[path = "store/no_cache.rs"]
pub mod cache;

/// First bytes of a snapshot...
const MAGIC: &[u8; 3] = b"EMD";
/// ...and then the format: the layout of this store, and the wire version of the payloads
/// in it. A store of other versions counts as damaged: the cloud sends the set again.
const FORMAT: [u8; 2] = [b'2', WIRE_VERSION];
/// Bytes of a snapshot: a full node inline, plus space for keys.
const SNAPSHOT_BYTES_MAX: u64 = 2 * NODE_BYTES_MAX as u64;
/// Syncs of one write of the cache: sled's own at its end, ours, and those of two directories.
const CACHE_SYNCS: u64 = 4;

/// An applied change: the present payload, the reason of a stub, or `None` for a deleted object.
pub type Applied = (Key, Option<Result<Vec<u8>, Reason>>);

/// Storage of one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Record {
    /// The payload; sealed for a Secret.
    Inline(Vec<u8>),
    /// A file in `objects/`, see `object_name`; sealed for a Secret.
    Large(Hash32),
    /// Refused; only its hash.
    Stub(Hash16, Reason),
}

/// An object as a new agent gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Key in the desired set.
    pub key: Key,
    /// Hash of the payload.
    pub hash: Hash16,
    /// The payload, or the reason of a stub.
    pub payload: Result<Vec<u8>, Reason>,
}

#[derive(Default, Serialize, Deserialize)]
struct Snapshot {
    generation: u64,
    epoch: u64,
    records: SortedMap<Key, Record>,
}

/// Desired set of the node, and the files that hold it.
pub struct Store {
    dir: PathBuf,
    sealer: Sealer,
    snapshot: Snapshot,
    /// Files in `objects/` that the older generation on the medium refers to.
    older: SortedSet<String>,
    cache: Cache,
    /// A file is damaged or missing, until the cloud has confirmed the set.
    damaged: bool,
}

impl Store {
    /// Opens the store and returns its objects, with the epoch, and a description of damage. `program`
    /// is the agent's own binary, which runs the cache.
    ///
    /// # Errors
    /// Only when the directory or the board key cannot be created; damage is not an error.
    pub fn open(state: &Path, program: &Path) -> io::Result<(Self, Vec<Stored>, Option<String>)> {
        fs::create_dir_all(paths::objects(state))?;
        let sealer = Sealer::open(state)?;
        let mut damage = None;
        let mut newest: Option<Snapshot> = None;
        let mut missing = None;
        let mut older = SortedSet::new();
        for name in paths::DESIRED {
            match read_snapshot(&state.join(name)) {
                Ok(Some(snapshot)) => {
                    let (newer, other) = match newest.take() {
                        Some(best) if best.generation > snapshot.generation => {
                            (best, Some(snapshot))
                        }
                        best => (snapshot, best),
                    };
                    older = other.map_or_else(SortedSet::new, |other| object_names(&other.records));
                    newest = Some(newer);
                }
                Ok(None) => missing = Some(name),
                Err(reason) => damage = Some([name, ": ", &reason].concat()),
            }
        }
        // Only the first generation exists alone; later ones exist in pairs.
        if let Some(name) = missing
            && newest.as_ref().is_some_and(|one| one.generation > 1)
        {
            damage.get_or_insert_with(|| [name, ": missing"].concat());
        }
        let mut store = Self {
            dir: state.to_owned(),
            sealer,
            snapshot: newest.unwrap_or_default(),
            older,
            cache: Cache::new(state, program),
            damaged: false,
        };
        let (mut objects, mut lost) = store.read_all();
        let whole = damage.is_none() && lost.is_empty() && store.snapshot.generation > 0;
        if !whole && let Some(loaded) = store.cache.load() {
            let text = damage.unwrap_or_else(|| "desired.a, desired.b: not whole".to_owned());
            damage = Some(match store.recover(loaded, &lost) {
                Some(what) => text + "; " + what + " taken from the state cache",
                None => text,
            });
            (objects, lost) = store.read_all();
        }
        // Omitted from the set, so that the roots differ and the cloud sends it again.
        for key in lost {
            damage = Some([&key.to_string(), ": lost or altered"].concat());
            store.snapshot.records.remove(&key);
        }
        store.damaged = damage.is_some();
        store.sweep();
        Ok((store, objects, damage))
    }

    /// Readable objects, and keys of unreadable ones.
    fn read_all(&self) -> (Vec<Stored>, Vec<Key>) {
        let mut objects = Vec::with_capacity(self.snapshot.records.len());
        let mut lost = Vec::new();
        for (key, record) in &self.snapshot.records {
            match self.read(key, record) {
                Some((hash, payload)) => objects.push(Stored {
                    key: key.clone(),
                    hash,
                    payload,
                }),
                None => lost.push(key.clone()),
            }
        }
        (objects, lost)
    }

    /// Restores from the cache what the files lack, and returns what that was: the whole set if it is
    /// newer, else the lost objects.
    fn recover(&mut self, loaded: Loaded, lost: &[Key]) -> Option<&'static str> {
        let none = self.snapshot.generation == 0;
        let newer = none || (loaded.complete && loaded.meta.generation > self.snapshot.generation);
        let mut records = SortedMap::new();
        for (key, record) in loaded.entries {
            let key = postcard::from_bytes::<Key>(&key);
            let record = postcard::from_bytes::<Record>(&record);
            if let (Ok(key), Ok(record)) = (key, record)
                && (newer || lost.contains(&key))
                && let Some(record) = self.uncached(&key, record)
                && (newer || self.snapshot.records.get(&key) == Some(&record))
            {
                records.insert(key, record);
            }
        }
        if !newer {
            return (!records.is_empty()).then_some("lost objects");
        }
        self.snapshot = Snapshot {
            generation: loaded.meta.generation,
            epoch: loaded.meta.epoch,
            records,
        };
        Some("the set")
    }

    /// Rewrites both generations if one was damaged. Only for a set that the cloud has
    /// confirmed: until then the next start must see the damage too, because the set may be
    /// older than the accepted one.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn repair(&mut self) -> io::Result<()> {
        if self.damaged {
            for _ in paths::DESIRED {
                self.apply(Vec::new(), self.snapshot.epoch)?;
            }
            self.damaged = false;
        }
        Ok(())
    }

    /// Converts a record of the cache, where every payload is inline, to the form of the snapshot.
    fn uncached(&self, key: &Key, record: Record) -> Option<Record> {
        match record {
            Record::Inline(at_rest) if at_rest.len() > INLINE_BYTES_MAX => {
                let plain = self.opened(key, at_rest.clone())?;
                let hash = sha256(&plain);
                let path = paths::objects(&self.dir).join(object_name(key, hash));
                medium::write(&path, &at_rest, Durability::Must(Subsystem::Objects)).ok()?;
                Some(Record::Large(hash))
            }
            record => Some(record),
        }
    }

    /// Whether the cache is missing, or holds another generation.
    #[must_use]
    pub fn cache_behind(&self) -> bool {
        let generation = self.snapshot.generation;
        cfg!(feature = "state-cache")
            && generation > 0
            && self.cache.generation() != Some(generation)
    }

    /// Updates the cache to the snapshot.
    ///
    /// # Errors
    /// Why it was not written; nothing depends on it.
    pub fn write_cache(&mut self) -> Result<(), String> {
        let meta = Meta {
            generation: self.snapshot.generation,
            epoch: self.snapshot.epoch,
        };
        let entries = || {
            let inline = |key, record: &Record| match record {
                Record::Large(hash) => {
                    // A lost or altered one is missing here too; the cloud sends it again.
                    drop(self.read(key, record)?);
                    let path = paths::objects(&self.dir).join(object_name(key, *hash));
                    fs::read(path).ok().map(Record::Inline)
                }
                record => Some(record.clone()),
            };
            let records = self.snapshot.records.iter().filter_map(|(key, record)| {
                let record = inline(key, record)?;
                Some((edge_proto::encode(key), edge_proto::encode(&record)))
            });
            records.collect()
        };
        let bytes = self.cache.store(meta, entries)?;
        medium::count(Subsystem::Cache, bytes, CACHE_SYNCS);
        Ok(())
    }

    /// Epoch of the last accepted change.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.snapshot.epoch
    }

    /// Makes the changes durable; returns the payloads, those of large objects read back.
    ///
    /// # Errors
    /// Those of the file system; nothing has changed then.
    pub fn apply(
        &mut self,
        changes: Vec<(Key, Option<Payload>)>,
        epoch: u64,
    ) -> io::Result<Vec<Applied>> {
        self.sealer.keep()?;
        let mut records = self.snapshot.records.clone();
        let mut applied = Vec::with_capacity(changes.len());
        for (key, payload) in changes {
            let taken = match payload {
                None => {
                    records.remove(&key);
                    None
                }
                Some(Payload::Inline(bytes)) => {
                    let record = Record::Inline(self.at_rest(&key, &bytes)?);
                    records.insert(key.clone(), record);
                    Some(Ok(bytes))
                }
                Some(Payload::Large { sha256, .. }) => {
                    let bytes = self.take_blob(sha256, &key, &records)?;
                    records.insert(key.clone(), Record::Large(sha256));
                    Some(Ok(bytes))
                }
                Some(Payload::Refused { hash, reason }) => {
                    records.insert(key.clone(), Record::Stub(hash, reason));
                    Some(Err(reason))
                }
            };
            applied.push((key, taken));
        }
        let snapshot = Snapshot {
            generation: self.snapshot.generation.saturating_add(1),
            epoch,
            records,
        };
        self.write_snapshot(&snapshot)?;
        self.older = object_names(&self.snapshot.records);
        self.snapshot = snapshot;
        self.sweep();
        Ok(applied)
    }

    /// Stored bytes of a large object. A complete one counts only if its hash matches.
    #[must_use]
    pub fn blob_have(&self, sha256: Hash32, length: u32) -> u32 {
        let path = self.blob_part(sha256);
        let have = fs::metadata(&path).map_or(0, |metadata| metadata.len());
        match u32::try_from(have) {
            Ok(have) if have < length => have,
            Ok(have) if have == length && self.part_is(sha256) => have,
            _ => {
                fs::remove_file(&path).ok();
                0
            }
        }
    }

    /// Appends a piece of a large object; returns the bytes that are stored now, 0 to start over.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn blob_piece(
        &mut self,
        sha256: Hash32,
        offset: u32,
        bytes: &[u8],
        length: u32,
    ) -> io::Result<u32> {
        let end = u64::from(offset) + bytes.len() as u64;
        if end > CONFIG_BYTES_MAX as u64 {
            return Ok(self.blob_have(sha256, length));
        }
        // Lost to a power cut, it is fetched again.
        let durability = Durability::Soon(Subsystem::Objects);
        let have = medium::append(&self.blob_part(sha256), offset.into(), bytes, durability)?;
        if have != end {
            return Ok(u32::try_from(have).unwrap_or(0));
        }
        Ok(self.blob_have(sha256, length))
    }

    fn blob_part(&self, sha256: Hash32) -> PathBuf {
        paths::object_part(&self.dir, &sha256.to_string())
    }

    fn part_is(&self, wanted: Hash32) -> bool {
        fs::read(self.blob_part(wanted)).is_ok_and(|bytes| sha256(&bytes) == wanted)
    }

    /// Makes a complete received object durable under its name, sealed for a Secret.
    fn take_blob(
        &self,
        hash: Hash32,
        key: &Key,
        records: &SortedMap<Key, Record>,
    ) -> io::Result<Vec<u8>> {
        let part = self.blob_part(hash);
        let wanted = Record::Large(hash);
        let stored = |key: &Key| self.read(key, &wanted)?.1.ok();
        let bytes = match fs::read(&part) {
            Ok(bytes) => bytes,
            // Stored before, under this key or another.
            Err(error) => stored(key)
                .or_else(|| {
                    records
                        .iter()
                        .chain(&self.snapshot.records)
                        .filter(|(_, record)| **record == wanted)
                        .find_map(|(key, _)| stored(key))
                })
                .ok_or(error)?,
        };
        if sha256(&bytes) != hash {
            return Err(io::Error::other("a received object does not have its hash"));
        }
        let at_rest = self.at_rest(key, &bytes)?;
        let path = paths::objects(&self.dir).join(object_name(key, hash));
        medium::write(&path, &at_rest, Durability::Must(Subsystem::Objects))?;
        fs::remove_file(&part).ok();
        Ok(bytes)
    }

    fn at_rest(&self, key: &Key, bytes: &[u8]) -> io::Result<Vec<u8>> {
        if key.kind() != Kind::Secret {
            return Ok(bytes.to_vec());
        }
        self.sealer
            .seal(&key.to_bytes(), bytes)
            .ok_or_else(|| io::Error::other("no random bytes"))
    }

    fn opened(&self, key: &Key, at_rest: Vec<u8>) -> Option<Vec<u8>> {
        match key.kind() {
            Kind::Secret => self.sealer.open_sealed(&key.to_bytes(), &at_rest),
            _ => Some(at_rest),
        }
    }

    fn read(&self, key: &Key, record: &Record) -> Option<(Hash16, Result<Vec<u8>, Reason>)> {
        match record {
            Record::Stub(hash, reason) => Some((*hash, Err(*reason))),
            Record::Inline(bytes) => {
                let bytes = self.opened(key, bytes.clone())?;
                Some((Hash16::of(&bytes), Ok(bytes)))
            }
            Record::Large(hash) => {
                let path = paths::objects(&self.dir).join(object_name(key, *hash));
                let bytes = self.opened(key, fs::read(path).ok()?)?;
                (sha256(&bytes) == *hash).then(|| (hash.short(), Ok(bytes)))
            }
        }
    }

    fn write_snapshot(&self, snapshot: &Snapshot) -> io::Result<()> {
        let body = edge_proto::encode(snapshot);
        let crc = crc32fast::hash(&body).to_be_bytes();
        let bytes = [MAGIC.as_slice(), &FORMAT, &crc, &body].concat();
        let [even, odd] = paths::DESIRED;
        let name = if snapshot.generation.is_multiple_of(2) {
            even
        } else {
            odd
        };
        let must = Durability::Must(Subsystem::Desired);
        medium::write(&self.dir.join(name), &bytes, must)
    }

    /// Removes objects that neither generation refers to. Parts stay: they are downloads in progress.
    fn sweep(&self) {
        let newer = object_names(&self.snapshot.records);
        for entry in fs::read_dir(paths::objects(&self.dir))
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name();
            let keep = name.to_str().is_some_and(|name| {
                name.ends_with(paths::PART) || newer.contains(name) || self.older.contains(name)
            });
            if !keep {
                fs::remove_file(entry.path()).ok();
            }
        }
    }
}

/// File of a large object: its SHA-256, and for a Secret also the hash of the key for which it is sealed,
/// because equal bytes of different objects are sealed separately.
fn object_name(key: &Key, hash: Hash32) -> String {
    if key.kind() != Kind::Secret {
        return hash.to_string();
    }
    let owner = Hash16::of(&key.to_bytes()).to_string();
    [&hash.to_string(), "-", &owner].concat()
}

fn object_names(records: &SortedMap<Key, Record>) -> SortedSet<String> {
    records
        .iter()
        .filter_map(|(key, record)| match record {
            Record::Large(hash) => Some(object_name(key, *hash)),
            _ => None,
        })
        .collect()
}

fn read_snapshot(path: &Path) -> Result<Option<Snapshot>, String> {
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
        Ok(metadata) => metadata,
    };
    if metadata.len() > SNAPSHOT_BYTES_MAX {
        return Err("too large".to_owned());
    }
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    let body = bytes.strip_prefix(MAGIC).ok_or("not a snapshot")?;
    let body = body
        .strip_prefix(&FORMAT)
        .ok_or("of another version of the store or of the wire")?;
    let (crc, body) = body.split_first_chunk::<4>().ok_or("truncated")?;
    if crc32fast::hash(body).to_be_bytes() != *crc {
        return Err("checksum differs".to_owned());
    }
    postcard::from_bytes(body)
        .map(Some)
        .map_err(|_| "unknown layout".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No test here has a cache, so its program is never started.
    fn open(dir: &Path) -> io::Result<(Store, Vec<Stored>, Option<String>)> {
        Store::open(dir, Path::new("/nonexistent"))
    }

    fn put(name: &str, bytes: &[u8]) -> (Key, Option<Payload>) {
        let key = Key::Name(Kind::Secret, "toll".into(), name.into());
        (key, Some(Payload::Inline(bytes.to_vec())))
    }

    fn load(dir: &Path) -> (Vec<Vec<u8>>, u64, Option<String>) {
        let (store, objects, damage) = open(dir).unwrap();
        let payloads = objects
            .into_iter()
            .map(|object| object.payload.unwrap())
            .collect();
        (payloads, store.epoch(), damage)
    }

    #[test]
    fn what_was_applied_is_there_again_and_secrets_are_not_in_the_clear() {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, objects, damage) = open(dir.path()).unwrap();
        assert_eq!((objects.len(), damage), (0, None));
        store
            .apply(vec![put("a", b"plain-a"), put("b", b"plain-b")], 7)
            .unwrap();
        store.apply(vec![(put("a", b"").0, None)], 8).unwrap();
        assert_eq!(load(dir.path()), (vec![b"plain-b".to_vec()], 8, None));
        for name in paths::DESIRED {
            let bytes = fs::read(dir.path().join(name)).unwrap();
            assert!(!bytes.windows(5).any(|window| window == b"plain"));
        }
    }

    #[test]
    fn any_damage_to_the_newer_generation_falls_back_to_the_older() {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, ..) = open(dir.path()).unwrap();
        store.apply(vec![put("a", b"one")], 1).unwrap();
        store.apply(vec![put("a", b"two")], 2).unwrap();
        let newer = dir.path().join("desired.a");
        let whole = fs::read(&newer).unwrap();
        let mut flipped = whole.clone();
        flipped[20] ^= 1;
        let mut zeroed = whole.clone();
        zeroed[9..].fill(0);
        for damaged in [&whole[..whole.len() / 2], &flipped, &zeroed, &[]] {
            fs::write(&newer, damaged).unwrap();
            let (payloads, epoch, damage) = load(dir.path());
            assert_eq!((payloads, epoch), (vec![b"one".to_vec()], 1));
            assert!(damage.is_some());
        }
        fs::remove_file(&newer).unwrap();
        assert_eq!(load(dir.path()).1, 1);
    }

    /// Goal: payloads of an older wire version are never used. Method: the versions of both generations
    /// as an older agent would have left them; then the set comes from the cloud again.
    #[test]
    fn a_store_of_another_version_counts_as_damaged_and_is_filled_again() {
        for (place, version) in [(3, b'1'), (4, WIRE_VERSION - 1), (4, WIRE_VERSION + 1)] {
            let dir = tempfile::tempdir().unwrap();
            let (mut store, ..) = open(dir.path()).unwrap();
            store.apply(vec![put("a", b"one")], 6).unwrap();
            store.apply(vec![put("a", b"two")], 7).unwrap();
            for name in paths::DESIRED {
                let path = dir.path().join(name);
                let mut bytes = fs::read(&path).unwrap();
                bytes[place] = version;
                fs::write(&path, bytes).unwrap();
            }
            let (payloads, epoch, damage) = load(dir.path());
            assert_eq!((payloads.len(), epoch), (0, 0));
            let text = "of another version of the store or of the wire";
            assert!(damage.unwrap().contains(text));
            let (mut store, ..) = open(dir.path()).unwrap();
            store.apply(vec![put("a", b"three")], 8).unwrap();
            store.repair().unwrap();
            assert_eq!(load(dir.path()), (vec![b"three".to_vec()], 8, None));
        }
    }

    #[test]
    fn large_objects_resume_and_count_only_with_their_hash() {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, ..) = open(dir.path()).unwrap();
        let bytes: Vec<u8> = (0..10_000_u32)
            .map(|index| index.to_le_bytes()[0])
            .collect();
        let hash = sha256(&bytes);
        assert_eq!(store.blob_have(hash, 10_000), 0);
        assert_eq!(
            store.blob_piece(hash, 0, &bytes[..4096], 10_000).unwrap(),
            4096
        );
        assert_eq!(
            store
                .blob_piece(hash, 9_000, &bytes[9_000..], 10_000)
                .unwrap(),
            4096
        );
        let (mut store, ..) = open(dir.path()).unwrap();
        assert_eq!(
            store.blob_have(hash, 10_000),
            4096,
            "resumes after a restart"
        );
        assert_eq!(
            store
                .blob_piece(hash, 4096, &bytes[4096..], 10_000)
                .unwrap(),
            10_000
        );
        let key = Key::Name(Kind::ConfigMap, "toll".into(), "big".into());
        let change = vec![(
            key,
            Some(Payload::Large {
                sha256: hash,
                len: 10_000,
            }),
        )];
        store.apply(change, 1).unwrap();
        assert_eq!(load(dir.path()).0, std::slice::from_ref(&bytes));
        fs::write(
            dir.path().join("objects").join(hash.to_string()),
            b"altered",
        )
        .unwrap();
        let (payloads, _, damage) = load(dir.path());
        assert!(
            payloads.is_empty() && damage.is_some(),
            "left out, so the cloud sends it again"
        );
        let mut wrong = bytes;
        wrong[5] ^= 1;
        let (mut store, ..) = open(dir.path()).unwrap();
        store.blob_piece(hash, 0, &wrong[..5000], 10_000).unwrap();
        assert_eq!(
            store
                .blob_piece(hash, 5000, &wrong[5000..], 10_000)
                .unwrap(),
            0
        );
    }

    /// Receives a complete object and puts it under `key`.
    fn put_large(store: &mut Store, key: &Key, bytes: &[u8], epoch: u64) {
        let len = u32::try_from(bytes.len()).unwrap();
        let sha256 = sha256(bytes);
        store.blob_piece(sha256, 0, bytes, len).unwrap();
        let change = (key.clone(), Some(Payload::Large { sha256, len }));
        store.apply(vec![change], epoch).unwrap();
    }

    #[test]
    fn objects_of_the_older_generation_stay_until_it_is_overwritten() {
        for kind in [Kind::ConfigMap, Kind::Secret] {
            let dir = tempfile::tempdir().unwrap();
            let key = Key::Name(kind, "toll".into(), "big".into());
            let [one, two, three] = [vec![1; 5000], vec![2; 5000], vec![3; 5000]];
            let (mut store, ..) = open(dir.path()).unwrap();
            put_large(&mut store, &key, &one, 1);
            put_large(&mut store, &key, &two, 2);
            assert_eq!(load(dir.path()), (vec![two.clone()], 2, None));
            let newer = dir.path().join("desired.a");
            let whole = fs::read(&newer).unwrap();
            fs::write(&newer, &whole[..whole.len() / 2]).unwrap();
            let (payloads, epoch, damage) = load(dir.path());
            assert_eq!((payloads, epoch), (vec![one], 1));
            assert!(damage.is_some());
            let (mut store, ..) = open(dir.path()).unwrap();
            put_large(&mut store, &key, &two, 2);
            put_large(&mut store, &key, &three, 3);
            assert_eq!(load(dir.path()), (vec![three], 3, None));
            let kept = fs::read_dir(dir.path().join("objects")).unwrap().count();
            assert_eq!(kept, 2, "those of the overwritten generation are gone");
        }
    }

    #[test]
    fn objects_of_the_same_bytes_are_sealed_apart() {
        let dir = tempfile::tempdir().unwrap();
        let named = |kind, name: &str| Key::Name(kind, "toll".into(), name.into());
        let bytes = vec![7; 5000];
        let (mut store, ..) = open(dir.path()).unwrap();
        put_large(&mut store, &named(Kind::Secret, "a"), &bytes, 1);
        let large = || Payload::Large {
            sha256: sha256(&bytes),
            len: 5000,
        };
        let changes = vec![
            (named(Kind::Secret, "b"), Some(large())),
            (named(Kind::ConfigMap, "c"), Some(large())),
        ];
        store.apply(changes, 2).unwrap();
        assert_eq!(load(dir.path()), (vec![bytes; 3], 2, None));
    }

    #[test]
    fn a_sealed_payload_does_not_open_under_another_key() {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, ..) = open(dir.path()).unwrap();
        store
            .apply(vec![put("a", b"one"), put("b", b"two")], 1)
            .unwrap();
        let (a, b) = (put("a", b"").0, put("b", b"").0);
        let record = store.snapshot.records.get(&a).unwrap().clone();
        assert!(store.read(&a, &record).is_some());
        assert!(store.read(&b, &record).is_none());
    }
}
