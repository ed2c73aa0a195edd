//! The state cache: a copy of the desired set, record by record, in sled. This is the only user of
//! sled, and it runs in a process of its own (`edge-min state-cache`) that runs only while there
//! is something to write or to recover. So sled's panics, its memory and its seven threads that
//! wake each second are never the agent's; docs/adr/0006-state-cache-process.md has the numbers.
//!
//! Both directions over the pipes are [`Message`]s, each after its length. An entry is divided into
//! pieces of [`PIECE_BYTES`], each with a checksum of its own, since sled puts larger values into
//! files that it never syncs; a `meta` record has the number of pieces, because a truncated
//! database opens without an error and without records.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use edge_proto::hash::Hash16;
use edge_proto::limits::{CONFIG_BYTES_MAX, NODE_BYTES_MAX, SET_OBJECTS_MAX, WIRE_VERSION};
use edge_proto::sorted::SortedMap;
use nix::sys::signal::Signal::{SIGABRT, SIGALRM};
use serde::{Deserialize, Serialize};

use crate::paths;

/// Bytes of an entry in one value of the database. With its header a value stays under 1/64 of the
/// segment size, up to which no value was observed to leave the log.
const PIECE_BYTES: usize = 4000;
/// sled's segment size; fixed for the lifetime of a database.
const SEGMENT_BYTES: usize = 256 * 1024;
/// sled's page cache.
const PAGES_BYTES: u64 = 1 << 20;
/// Run time of the process; then the kernel ends it, whatever sled waits for.
const RUN_S_MAX: u32 = 20;
/// Another process may hold the lock of the database for a moment after its end.
const LOCK_TRIES: u32 = 40;
const LOCK_PAUSE: Duration = Duration::from_millis(50);
/// Free bytes of the medium below which the cache is not written: it is the least important file.
const FREE_BYTES_MIN: u64 = 16 * 1024 * 1024;
/// Bytes of one message: the largest object, sealed, with its key.
const MESSAGE_BYTES_MAX: usize = CONFIG_BYTES_MAX + 4096;
/// Entries and bytes of one set over a pipe; a set may be at its caps before and after a change.
const ENTRIES_MAX: usize = 2 * SET_OBJECTS_MAX;
const TOTAL_BYTES_MAX: usize = 2 * NODE_BYTES_MAX;
/// Exit code of a panic that unwinds, in builds where it does.
const EXIT_PANIC: i32 = 101;
/// Layout of the database, and the wire version of the payloads in it. A database of others is renamed.
const FORMAT: [u8; 2] = [2, WIRE_VERSION];
/// Key of the only record that is not a piece; the others have 18 bytes.
const META: &[u8] = b"meta";

/// Version of the cached set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Generation of the snapshot that it copies.
    pub generation: u64,
    /// Epoch stored with that generation.
    pub epoch: u64,
}

/// A message over a pipe.
#[derive(Debug, Serialize, Deserialize)]
enum Message {
    /// Key and record, opaque here.
    Entry(Vec<u8>, Vec<u8>),
    /// The end of a set: its version, and whether all of it was sent.
    Set(Meta, bool),
    /// The set is on the medium; contains the number of written bytes.
    Stored(u64),
    /// Failure; `true` when the database itself is damaged.
    Failed(bool, String),
}

/// The record `meta` of the database.
#[derive(Serialize, Deserialize)]
struct Record {
    format: [u8; 2],
    meta: Meta,
    pieces: u32,
}

/// A set read back.
pub struct Loaded {
    /// Version of the set.
    pub meta: Meta,
    /// No entry is missing.
    pub complete: bool,
    /// Keys and records whose checksums match.
    pub entries: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The agent's end: starts the process and exchanges messages with it.
pub struct Cache {
    dir: PathBuf,
    program: PathBuf,
}

impl Cache {
    /// The cache in `state`; `program` is the agent's own binary.
    #[must_use]
    pub fn new(state: &Path, program: &Path) -> Self {
        Self {
            dir: paths::cache(state),
            program: program.to_owned(),
        }
    }

    /// Whether there is a database.
    #[must_use]
    pub fn exists(&self) -> bool {
        paths::cache_database(&self.dir).exists()
    }

    /// Generation in the database, if it was written completely.
    #[must_use]
    pub fn generation(&self) -> Option<u64> {
        let text = fs::read_to_string(paths::cache_generation(&self.dir)).ok()?;
        text.parse().ok().filter(|_| self.exists())
    }

    /// Reads the set back. A database that cannot be read is tried once without sled's snapshots,
    /// which may be its only damaged part, and then renamed.
    #[must_use]
    pub fn load(&self) -> Option<Loaded> {
        if !self.exists() {
            return None;
        }
        for mode in ["load", "load-log"] {
            match self.run(mode, |_| Ok(()), read_set) {
                Ok(loaded) => return Some(loaded),
                Err((damaged, reason)) => {
                    log::warn!("cache_unreadable mode={mode} error={reason}");
                    if !damaged {
                        return None;
                    }
                }
            }
        }
        self.rename_damaged();
        None
    }

    /// Writes the set, only entries that differ from the stored ones; returns the number of written bytes. A
    /// damaged database is renamed and created again.
    ///
    /// # Errors
    /// Why it was not written; the cache may be lost, so nothing has to be undone.
    pub fn store(
        &self,
        meta: Meta,
        entries: impl Fn() -> Vec<(Vec<u8>, Vec<u8>)>,
    ) -> Result<u64, String> {
        let parent = self.dir.parent().unwrap_or(&self.dir);
        let free = rustix::fs::statvfs(parent)
            .map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
        if free < FREE_BYTES_MIN {
            return Err("the medium is almost full".to_owned());
        }
        let send = |pipe: &mut dyn Write| {
            for (key, record) in entries() {
                write_message(pipe, &Message::Entry(key, record))?;
            }
            write_message(pipe, &Message::Set(meta, true))
        };
        let answer = |pipe: &mut dyn Read| match read_message(pipe)? {
            Message::Stored(bytes) => Ok(bytes),
            Message::Failed(damaged, reason) => Err(Failure::Reported(damaged, reason)),
            _ => Err(Failure::Ended),
        };
        match self.run("store", send, answer) {
            Err((true, reason)) => {
                log::warn!("cache_damaged error={reason}");
                self.rename_damaged();
                self.run("store", send, answer)
                    .map_err(|(_, reason)| reason)
            }
            other => other.map_err(|(_, reason)| reason),
        }
    }

    /// Keeps the latest damaged database for analysis.
    fn rename_damaged(&self) {
        let bad = paths::cache_bad(&self.dir);
        fs::remove_dir_all(&bad).ok();
        if fs::rename(&self.dir, &bad).is_err() {
            fs::remove_dir_all(&self.dir).ok();
        }
    }

    fn run<T>(
        &self,
        mode: &str,
        send: impl Fn(&mut dyn Write) -> io::Result<()>,
        answer: impl Fn(&mut dyn Read) -> Result<T, Failure>,
    ) -> Result<T, (bool, String)> {
        let not_started = |error: io::Error| (false, error.to_string());
        let mut child = Command::new(&self.program)
            .args(["state-cache", mode])
            .arg(&self.dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(not_started)?;
        let sent = child.stdin.take().map(|pipe| {
            let mut pipe = BufWriter::new(pipe);
            send(&mut pipe).and_then(|()| pipe.flush())
        });
        let result = match child.stdout.take() {
            Some(pipe) => answer(&mut BufReader::new(pipe)),
            None => Err(Failure::Ended),
        };
        let at_fault = end(child);
        result.map_err(|failure| match failure {
            Failure::Reported(damaged, reason) => (damaged, reason),
            Failure::Ended => {
                let sent = sent.is_some_and(|sent| sent.is_ok());
                let when = if sent { "" } else { " before it had all" };
                let reason = ["the state cache ended without an answer", when].concat();
                (at_fault, reason)
            }
        })
    }
}

/// Why the process failed.
enum Failure {
    /// With its own message; `true` when the database is damaged.
    Reported(bool, String),
    /// It ended, or sent invalid messages.
    Ended,
}

/// Whether the database is the cause of the end of the process: with a panic or a hang of sled it is, but
/// not with a kill, for example by the OOM killer.
fn end(mut child: Child) -> bool {
    // A process that has ended keeps its status; one that has not would never end.
    child.kill().ok();
    child.wait().is_ok_and(|status| {
        let panicked = status.code() == Some(EXIT_PANIC);
        let signal = status.signal();
        panicked || signal == Some(SIGABRT as i32) || signal == Some(SIGALRM as i32)
    })
}

fn read_set(pipe: &mut dyn Read) -> Result<Loaded, Failure> {
    let mut entries = Vec::new();
    let mut total = 0;
    loop {
        match read_message(pipe)? {
            Message::Entry(key, record) => {
                total += key.len() + record.len();
                if entries.len() >= ENTRIES_MAX || total > TOTAL_BYTES_MAX {
                    return Err(failure(true, "more than a node holds"));
                }
                entries.push((key, record));
            }
            Message::Set(meta, complete) => {
                return Ok(Loaded {
                    meta,
                    complete,
                    entries,
                });
            }
            Message::Failed(damaged, reason) => return Err(Failure::Reported(damaged, reason)),
            Message::Stored(_) => return Err(Failure::Ended),
        }
    }
}

fn write_message(pipe: &mut dyn Write, message: &Message) -> io::Result<()> {
    let bytes = edge_proto::encode(message);
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    pipe.write_all(&length.to_be_bytes())?;
    pipe.write_all(&bytes)
}

fn read_message(pipe: &mut dyn Read) -> Result<Message, Failure> {
    let mut length = [0; 4];
    pipe.read_exact(&mut length).map_err(|_| Failure::Ended)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > MESSAGE_BYTES_MAX {
        return Err(Failure::Ended);
    }
    let mut bytes = vec![0; length];
    pipe.read_exact(&mut bytes).map_err(|_| Failure::Ended)?;
    postcard::from_bytes(&bytes).map_err(|_| Failure::Ended)
}

/// Main function of the process: `edge-min state-cache load|load-log|store DIR`, for the agent only.
#[must_use]
pub fn main() -> ExitCode {
    nix::unistd::alarm::set(RUN_S_MAX);
    let mut args = std::env::args_os().skip(2);
    let (mode, dir) = (args.next(), args.next().map(PathBuf::from));
    let (Some(mode), Some(dir)) = (mode, dir) else {
        return ExitCode::FAILURE;
    };
    let mut out = BufWriter::new(io::stdout().lock());
    let result = match mode.to_str() {
        Some("load") => load(&dir, true, &mut out),
        Some("load-log") => load(&dir, false, &mut out),
        Some("store") => store(&dir, &mut io::stdin().lock()).map(|()| Message::Stored(written())),
        _ => Err(failure(false, "no such mode")),
    };
    let last = result.unwrap_or_else(|failure| match failure {
        Failure::Reported(damaged, reason) => Message::Failed(damaged, reason),
        Failure::Ended => Message::Failed(false, "the agent has ended".to_owned()),
    });
    match write_message(&mut out, &last).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Bytes that this process caused to be written; 0 where the kernel does not count them.
fn written() -> u64 {
    let text = fs::read_to_string("/proc/self/io").unwrap_or_default();
    let field = text
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes: "));
    field.and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
}

fn failed(error: &sled::Error) -> Failure {
    // A full or failing medium does not mean that the database is damaged.
    Failure::Reported(!matches!(error, sled::Error::Io(_)), error.to_string())
}

fn io_failed(error: io::Error) -> Failure {
    Failure::Reported(false, error.to_string())
}

fn failure(damaged: bool, reason: &str) -> Failure {
    Failure::Reported(damaged, reason.to_owned())
}

fn open(dir: &Path, with_snapshots: bool) -> Result<sled::Db, Failure> {
    fs::create_dir_all(dir).map_err(io_failed)?;
    for entry in fs::read_dir(dir).map_err(io_failed)?.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // sled takes a half-written snapshot for a whole one, and then fails for ever.
        if name.starts_with("snap.") && (!with_snapshots || name.ends_with(".generating")) {
            fs::remove_file(entry.path()).map_err(io_failed)?;
        }
    }
    let config = sled::Config::new()
        .path(dir)
        .mode(sled::Mode::LowSpace)
        .cache_capacity(PAGES_BYTES)
        .segment_size(SEGMENT_BYTES)
        .flush_every_ms(None);
    let mut tries = LOCK_TRIES;
    loop {
        match config.open() {
            // The kind of error if another process holds the lock; errors of the system have another kind.
            Err(sled::Error::Io(error)) if error.kind() == io::ErrorKind::Other && tries > 0 => {
                tries -= 1;
                std::thread::sleep(LOCK_PAUSE);
            }
            other => return other.map_err(|error| failed(&error)),
        }
    }
}

fn load(dir: &Path, with_snapshots: bool, out: &mut dyn Write) -> Result<Message, Failure> {
    let db = open(dir, with_snapshots)?;
    let record = db.get(META).map_err(|error| failed(&error))?;
    let record: Record = record
        .as_deref()
        .and_then(checked)
        .and_then(|body| postcard::from_bytes(body).ok())
        .ok_or_else(|| failure(true, "no meta record"))?;
    if record.format != FORMAT {
        return Err(failure(true, "another layout"));
    }
    let mut pieces = 0;
    let mut entry = Pieces::default();
    for item in db.iter() {
        // Entries read so far are still valid.
        let Ok((key, value)) = item else { break };
        if key == META {
            continue;
        }
        if let Some((whole, count)) = entry.add(&key, &value) {
            pieces += count;
            write_message(out, &whole).map_err(io_failed)?;
        }
    }
    Ok(Message::Set(record.meta, pieces == record.pieces))
}

/// Pieces of the entry that is being assembled.
#[derive(Default)]
struct Pieces {
    id: Vec<u8>,
    next: u16,
    bytes: Vec<u8>,
}

impl Pieces {
    /// Adds the next piece in the order of keys; returns a complete entry, and its number of pieces.
    fn add(&mut self, key: &[u8], value: &[u8]) -> Option<(Message, u32)> {
        let (id, index) = key.split_last_chunk::<2>()?;
        let (count, bytes) = checked(value)?.split_first_chunk::<2>()?;
        let (index, count) = (u16::from_be_bytes(*index), u16::from_be_bytes(*count));
        if index == 0 {
            *self = Self {
                id: id.to_vec(),
                ..Self::default()
            };
        }
        if self.id != id || self.next != index {
            return None;
        }
        self.next += 1;
        self.bytes.extend_from_slice(bytes);
        if self.next != count {
            return None;
        }
        let message: Message = postcard::from_bytes(&self.bytes).ok()?;
        match &message {
            Message::Entry(key, _) if Hash16::of(key).0 == *id => Some((message, count.into())),
            _ => None,
        }
    }
}

fn store(dir: &Path, input: &mut dyn Read) -> Result<(), Failure> {
    let mut pieces = Vec::new();
    let meta = loop {
        match read_message(input)? {
            message @ Message::Entry(..) => {
                let Message::Entry(key, _) = &message else {
                    continue;
                };
                cut(key, &message, &mut pieces)?;
            }
            Message::Set(meta, _) => break meta,
            _ => return Err(failure(false, "not a set")),
        }
    };
    let record = Record {
        format: FORMAT,
        meta,
        pieces: u32::try_from(pieces.len()).map_err(|_| failure(false, "too many pieces"))?,
    };
    pieces.push((META.to_vec(), with_checksum(&edge_proto::encode(&record))));
    // Up to some thousands, in the order of hashes: sorted once.
    let mut wanted: SortedMap<Vec<u8>, Vec<u8>> = pieces.into_iter().collect();

    let db = open(dir, true)?;
    // Opened before the first write, so that the kernel reports a failed write-back here.
    let file = File::open(paths::cache_database(dir)).map_err(io_failed)?;
    let mut batch = sled::Batch::default();
    for item in db.iter() {
        let (key, value) = item.map_err(|error| failed(&error))?;
        match wanted.get_mut(key.as_ref()) {
            // It is stored already. An empty value is never valid: each has its checksum.
            Some(new) if value == new.as_slice() => new.clear(),
            Some(_) => {}
            None => batch.remove(key),
        }
    }
    for (key, value) in wanted.into_iter().filter(|(_, value)| !value.is_empty()) {
        batch.insert(key, value);
    }
    db.apply_batch(batch).map_err(|error| failed(&error))?;
    db.flush().map_err(|error| failed(&error))?;
    // sled's flush calls sync_file_range, which guarantees nothing after a power cut.
    file.sync_data().map_err(io_failed)?;
    drop(db);
    let blobs = paths::cache_blobs(dir);
    if fs::read_dir(&blobs).is_ok_and(|mut files| files.next().is_some()) {
        return Err(failure(true, "a value left the log for a file"));
    }
    for folder in [Some(dir), dir.parent()].into_iter().flatten() {
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(io_failed)?;
    }
    let generation = meta.generation.to_string();
    fs::write(paths::cache_generation(dir), generation).map_err(io_failed)
}

/// Divides an entry; each value is checksum, number of pieces, bytes.
fn cut(key: &[u8], entry: &Message, into: &mut Vec<(Vec<u8>, Vec<u8>)>) -> Result<(), Failure> {
    let body = edge_proto::encode(entry);
    let too_large = |_| failure(false, "an entry is too large");
    let count = u16::try_from(body.chunks(PIECE_BYTES).len()).map_err(too_large)?;
    let id = Hash16::of(key);
    for (index, bytes) in (0_u16..).zip(body.chunks(PIECE_BYTES)) {
        let name = [id.0.as_slice(), &index.to_be_bytes()].concat();
        let value = with_checksum(&[count.to_be_bytes().as_slice(), bytes].concat());
        into.push((name, value));
    }
    Ok(())
}

fn with_checksum(body: &[u8]) -> Vec<u8> {
    [crc32fast::hash(body).to_be_bytes().as_slice(), body].concat()
}

fn checked(value: &[u8]) -> Option<&[u8]> {
    let (crc, body) = value.split_first_chunk::<4>()?;
    (crc32fast::hash(body).to_be_bytes() == *crc).then_some(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: payloads of another wire version are never used. Method: a set that reads back, and
    /// the same with the version that an older agent would have left.
    #[test]
    fn a_set_of_another_wire_version_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let meta = Meta {
            generation: 3,
            epoch: 7,
        };
        let mut input = Vec::new();
        write_message(&mut input, &Message::Entry(vec![1], vec![2])).unwrap();
        write_message(&mut input, &Message::Set(meta, true)).unwrap();
        store(dir.path(), &mut input.as_slice()).ok().unwrap();
        let set = load(dir.path(), true, &mut Vec::new()).ok().unwrap();
        assert!(matches!(set, Message::Set(read, true) if read == meta));
        let older = Record {
            format: [FORMAT[0], WIRE_VERSION - 1],
            meta,
            pieces: 1,
        };
        let db = open(dir.path(), true).ok().unwrap();
        let bytes = with_checksum(&edge_proto::encode(&older));
        db.insert(META, bytes).unwrap();
        db.flush().unwrap();
        drop(db);
        assert!(load(dir.path(), true, &mut Vec::new()).is_err());
    }
}
