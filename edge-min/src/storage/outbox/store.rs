//! Files of the outbox.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use edge_core::flash::Subsystem;
use edge_core::limits::SEGMENT_BYTES_MAX;
use edge_core::outbox::{ClassConfig, Counters, Next, Outbox, Output, Refused, Saved};
use edge_proto::frame::{Entry, GapReason, Incarnation};
use edge_proto::limits::{CLASSES_MAX, RECORD_ENTRIES_MAX};

use super::segment::{self, Parsed, Scan, SegmentItem};
use super::state::{MAGIC, SLOT_BYTES, State, StateClass, read_state};
use super::{COMMIT_BYTES_MAX, Settings, unix_ms};
use crate::paths;
use crate::storage::medium::{self, Durability};

/// Free space on the medium below which no record is accepted.
const FREE_BYTES_MIN: u64 = 8 << 20;
/// Bytes read of a segment at once; a item always fits.
const PIECE_BYTES: usize = 16 * 1024;
/// Acknowledged numbers since the last note, at which the next record writes the note again.
const NOTE_ACKED: u64 = 64;
const _: () = assert!(segment::ITEM_BYTES_MAX <= PIECE_BYTES);

/// Time and bytes of a record; if it is missing, the next existing number of its segment.
type Found = Result<(u64, Vec<u8>), Option<u64>>;

/// State of one class on the medium.
pub(super) struct Writer {
    pub(super) class: u8,
    /// Difference between a number here and on the wire.
    pub(super) base: u64,
    /// The segment that is written to.
    segment: u64,
    file: Option<File>,
    /// Items that are not written yet.
    buffer: Vec<u8>,
    /// Written bytes are not synced.
    unsynced: bool,
    /// Acknowledged number according to the segments.
    noted: u64,
    /// Position of the session's next read: segment, number, and an offset at or before that number's item.
    reading: (u64, u64, u64),
}

/// The outbox's files. All numbers here are those of the files; on the wire each is lower by its
/// class's base, which changes with each new incarnation.
pub struct Store {
    dir: PathBuf,
    pub(super) outbox: Outbox,
    pub(super) incarnation: Incarnation,
    generation: u64,
    pub(super) writers: Vec<Writer>,
    /// A segment was created since the directory was last synced.
    new_names: bool,
    /// A save that the core requested is not done yet; nothing is deleted before.
    unsaved: bool,
    /// Segments to delete that still exist.
    deletes: Vec<(u8, u64)>,
    /// State of classes that are not in the config any more: kept unchanged.
    others: Vec<StateClass>,
}

impl Store {
    /// Reads the existing files; creates them if there are none.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(dir: &Path, settings: &Settings) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let state = read_state(&paths::outbox_state(dir))?;
        let configs: Vec<_> = settings.classes.iter().map(|class| class.config).collect();
        let writer = |config: &ClassConfig| Writer {
            class: config.number,
            base: 0,
            segment: 0,
            file: None,
            buffer: Vec::new(),
            unsynced: false,
            noted: 0,
            reading: (0, 0, 0),
        };
        let known = state.is_some();
        let mut store = Self {
            dir: dir.to_owned(),
            outbox: Outbox::new(settings.quota_bytes, &configs),
            incarnation: state.as_ref().map_or([0; 8], |state| state.incarnation),
            generation: state.as_ref().map_or(0, |state| state.generation),
            writers: configs.iter().map(writer).collect(),
            new_names: false,
            unsaved: false,
            deletes: Vec::new(),
            others: Vec::new(),
        };
        let mut saved = Vec::new();
        for one in state.into_iter().flat_map(|state| state.classes) {
            let mut writers = store.writers.iter_mut();
            if let Some(writer) = writers.find(|writer| writer.class == one.class) {
                writer.base = one.base;
                saved.push(one.saved());
            } else {
                store.others.push(one);
            }
        }
        let segments = store.segments()?;
        if !known {
            saved = Self::unknown(&segments);
        }
        for one in &saved {
            store.outbox.restore(one);
        }
        for (place, (class, first)) in segments.iter().enumerate() {
            let last = segments.get(place + 1).is_none_or(|next| next.0 != *class);
            store.recover(*class, *first, last)?;
        }
        store.outbox.found_all(&saved);
        for writer in &mut store.writers {
            let held = store.outbox.ready(writer.class).map_or(1, |(held, _)| held);
            writer.base = writer.base.min(held - 1);
        }
        if !known {
            // Both slots are reserved at once: a full medium never prevents writing the counters.
            let path = paths::outbox_state(dir);
            let must = Durability::Must(Subsystem::Outbox);
            medium::write(&path, &vec![0; 2 * SLOT_BYTES], must)?;
            if let Some(parent) = dir.parent() {
                medium::sync_dir(parent, Subsystem::Outbox)?;
            }
            store.renew()?;
        }
        Ok(store)
    }

    /// Counters of a class.
    #[must_use]
    pub fn counters(&self, class: u8) -> Counters {
        self.outbox.counters(class)
    }

    /// Stores one record with the present time, durably; returns its number.
    ///
    /// # Errors
    /// Those of the file system, or the class accepts none.
    pub fn append_durably(&mut self, class: u8, bytes: &[u8]) -> io::Result<u64> {
        let number = self
            .append(class, &[], unix_ms(), bytes)?
            .map_err(|_| io::Error::other("not taken"))?;
        self.write()?;
        self.sync()?;
        self.settle()?;
        Ok(number)
    }

    /// Segments by class and number. Other files are ignored.
    fn segments(&self) -> io::Result<Vec<(u8, u64)>> {
        let mut segments = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let parts = name
                .to_str()
                .and_then(|name| name.strip_suffix(paths::SEGMENT));
            let numbers = parts.and_then(|parts| parts.split_once('-'));
            if let Some((class, first)) = numbers
                && let (Ok(class), Ok(first)) = (class.parse(), u64::from_str_radix(first, 16))
                && usize::from(class) < CLASSES_MAX
            {
                segments.push((class, first));
            }
        }
        // Segments of a class that is not in the config are kept until it is again.
        segments.retain(|(class, _)| self.writers.iter().any(|writer| writer.class == *class));
        segments.sort_unstable();
        Ok(segments)
    }

    /// The fate of the numbers before the segments is unknown: the new incarnation begins
    /// with the existing records.
    fn unknown(segments: &[(u8, u64)]) -> Vec<Saved> {
        let mut saved: Vec<Saved> = Vec::new();
        for (class, first) in segments.iter().filter(|(_, first)| *first > 0) {
            if saved.iter().any(|one| one.class == *class) {
                continue;
            }
            saved.push(Saved {
                class: *class,
                start: *first,
                held: *first,
                next: *first,
                lost: [0, 0, 0, first - 1],
                ..Saved::default()
            });
        }
        saved
    }

    /// Reports the content of a segment to the core; removes the torn tail of the last one of a class.
    fn recover(&mut self, class: u8, first: u64, last: bool) -> io::Result<()> {
        let path = self.path(class, first);
        let bytes = fs::read(&path)?;
        if !self.outbox.found(class, first, bytes.len() as u64) {
            self.deletes.push((class, first));
            return Ok(());
        }
        let mut scan = Scan::new(&bytes);
        for item in scan.by_ref() {
            match item {
                SegmentItem::Record {
                    number,
                    unix_ms,
                    key,
                    ..
                } => self.outbox.found_record(class, number, unix_ms, key),
                SegmentItem::Acked(next) => self.outbox.found_acked(class, next),
            }
        }
        let tail = bytes.len() - scan.end;
        if !last || tail == 0 {
            return Ok(());
        }
        // At most one batch was never synced. More is damage, and its numbers are not
        // assigned again.
        if tail > COMMIT_BYTES_MAX + segment::ITEM_BYTES_MAX {
            let count = tail / segment::RECORD_BYTES_MIN + 1;
            self.outbox.found_damage(class, count as u64);
            return Ok(());
        }
        let file = OpenOptions::new().write(true).open(&path)?;
        file.set_len(scan.end as u64)?;
        medium::sync(&file, Subsystem::Outbox)
    }

    fn path(&self, class: u8, first: u64) -> PathBuf {
        paths::outbox_segment(&self.dir, class, first)
    }

    pub(super) fn base(&self, class: u8) -> u64 {
        let mut writers = self.writers.iter();
        let writer = writers.find(|writer| writer.class == class);
        writer.map_or(0, |writer| writer.base)
    }

    /// Creates a new incarnation with the held records.
    pub(super) fn renew(&mut self) -> io::Result<()> {
        let random = ring::rand::SystemRandom::new();
        ring::rand::SecureRandom::fill(&random, &mut self.incarnation)
            .map_err(|_| io::Error::other("no random bytes"))?;
        for writer in &mut self.writers {
            let held = self.outbox.ready(writer.class).map_or(1, |(held, _)| held);
            writer.base = held - 1;
        }
        self.unsaved = true;
        self.save()
    }

    pub(super) fn is_writable(&self) -> io::Result<()> {
        let stat = rustix::fs::statvfs(&self.dir)?;
        if stat.f_bavail.saturating_mul(stat.f_frsize) < FREE_BYTES_MIN {
            let reason = "less than 8 MiB are free";
            return Err(io::Error::new(io::ErrorKind::StorageFull, reason));
        }
        Ok(())
    }

    /// Assigns a number to a record and adds it to the batch.
    pub(super) fn append(
        &mut self,
        class: u8,
        key: &[u8],
        unix_ms: u64,
        bytes: &[u8],
    ) -> io::Result<Result<u64, Refused>> {
        let item_bytes = segment::record_bytes(key, bytes) as u64;
        let place = match self.outbox.append(unix_ms, class, key, item_bytes) {
            Ok(place) => place,
            Err(refused) => return Ok(Err(refused)),
        };
        let held = self.outbox.ready(class).map_or(1, |(held, _)| held);
        let mut writers = self.writers.iter_mut();
        let Some(writer) = writers.find(|writer| writer.class == class) else {
            return Ok(Err(Refused::LocalClass));
        };
        if writer.segment != place.segment || writer.file.is_none() {
            writer.write()?;
            writer.sync()?;
            let path = paths::outbox_segment(&self.dir, class, place.segment);
            let mut options = OpenOptions::new();
            let file = options.append(true).create(true).mode(0o600).open(path)?;
            writer.file = Some(file);
            writer.segment = place.segment;
            self.new_names = true;
        }
        if held >= writer.noted.saturating_add(NOTE_ACKED) {
            segment::put_acked(&mut writer.buffer, held);
            writer.noted = held;
        }
        segment::put_record(&mut writer.buffer, place.number, unix_ms, key, bytes);
        Ok(Ok(place.number))
    }

    pub(super) fn unwritten(&self) -> usize {
        self.writers.iter().map(|writer| writer.buffer.len()).sum()
    }

    pub(super) fn write(&mut self) -> io::Result<()> {
        self.writers.iter_mut().try_for_each(Writer::write)
    }

    /// Makes all written records durable.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        for writer in &mut self.writers {
            writer.sync()?;
        }
        if std::mem::take(&mut self.new_names) {
            medium::sync_dir(&self.dir, Subsystem::Outbox)?;
        }
        self.outbox.durable();
        Ok(())
    }

    /// A write or sync failed: the content of the files after the last sync is unknown.
    pub(super) fn failed(&mut self) {
        for writer in &mut self.writers {
            writer.buffer.clear();
            writer.buffer.shrink_to_fit();
            writer.unsynced = false;
            writer.file = None;
        }
        self.outbox.failed();
    }

    /// Whether an output of the core could not be performed yet.
    pub(super) fn is_behind(&self) -> bool {
        self.unsaved || !self.deletes.is_empty()
    }

    /// Performs the outputs of the core; a failed one is repeated at the next call.
    pub(super) fn settle(&mut self) -> io::Result<()> {
        loop {
            if self.unsaved {
                self.save()?;
            }
            while let Some(&(class, first)) = self.deletes.last() {
                match fs::remove_file(self.path(class, first)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => drop(self.deletes.pop()),
                }
            }
            let Some(output) = self.outbox.poll() else {
                return Ok(());
            };
            match output {
                Output::Save => self.unsaved = true,
                Output::Delete(class, first) => {
                    for writer in &mut self.writers {
                        if writer.class == class && writer.segment == first {
                            writer.file = None;
                        }
                    }
                    self.deletes.push((class, first));
                }
            }
        }
    }

    /// Writes the state of all classes over the older of the two slots.
    fn save(&mut self) -> io::Result<()> {
        // After a failure the same slot again: the other one may be the only valid one.
        let generation = self.generation + 1;
        let saved = self.outbox.saved().into_iter();
        let classes = saved.map(|saved| StateClass::new(self.base(saved.class), saved));
        let body = edge_proto::encode(&State {
            generation,
            incarnation: self.incarnation,
            classes: classes.chain(self.others.iter().cloned()).collect(),
        });
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes();
        let crc = crc32fast::hash(&body).to_le_bytes();
        let slot = [MAGIC.as_slice(), &length, &crc, &body].concat();
        let file = OpenOptions::new()
            .write(true)
            .open(paths::outbox_state(&self.dir))?;
        medium::count_file(Subsystem::Outbox, slot.len() as u64);
        file.write_all_at(&slot, (generation % 2) * SLOT_BYTES as u64)?;
        medium::sync_data(&file, Subsystem::Outbox)?;
        self.generation = generation;
        self.unsaved = false;
        self.outbox.saved_durably();
        Ok(())
    }

    /// Entries for the session. Empty when the medium cannot be read now.
    pub(super) fn read(&mut self, class: u8, from: u64, bytes_max: usize) -> Vec<Entry> {
        let now_ms = unix_ms();
        let mut at = from.saturating_add(self.base(class));
        let mut bytes_left = bytes_max;
        let mut entries: Vec<Entry> = Vec::new();
        let mut piece = Piece::default();
        while entries.len() < RECORD_ENTRIES_MAX {
            let entry = match self.outbox.next(class, at) {
                Next::End => break,
                Next::Gap(count, reason) => Entry::Gap { count, reason },
                Next::Record { segment, end } => {
                    match self.record(class, segment, at, &mut piece) {
                        Ok(Ok((time, _))) if self.outbox.is_expired(class, time, now_ms) => {
                            self.outbox.lose(class, at, at + 1, GapReason::Expired);
                            continue;
                        }
                        Ok(Ok((unix_ms, bytes))) => Entry::Record { unix_ms, bytes },
                        Ok(Err(next)) => {
                            let end = next.filter(|next| *next < end).unwrap_or(end);
                            self.outbox.lose(class, at, end, GapReason::Damaged);
                            continue;
                        }
                        Err(error) => {
                            log::error!(
                                "record_unreadable class={class} number={at} error={error}"
                            );
                            break;
                        }
                    }
                }
            };
            let Some(left) = bytes_left.checked_sub(entry.bytes_max()) else {
                break;
            };
            bytes_left = left;
            at += entry.count();
            match (entries.last_mut(), &entry) {
                (
                    Some(Entry::Gap { count, reason }),
                    Entry::Gap {
                        count: more,
                        reason: same,
                    },
                ) if *reason == *same => *count += more,
                _ => entries.push(entry),
            }
        }
        entries
    }

    /// Time and bytes of a record; if it is missing, the next existing number of the segment.
    fn record(
        &mut self,
        class: u8,
        segment: u64,
        number: u64,
        piece: &mut Piece,
    ) -> io::Result<Found> {
        let path = self.path(class, segment);
        let mut writers = self.writers.iter_mut();
        let Some(writer) = writers.find(|writer| writer.class == class) else {
            return Ok(Err(None));
        };
        if writer.reading.0 != segment || writer.reading.1 > number {
            writer.reading = (segment, segment, 0);
        }
        loop {
            let offset = writer.reading.2;
            let parsed = segment::parse(piece.at(segment, offset));
            if let Parsed::Whole(item, length) = parsed {
                let after = offset + length as u64;
                match item {
                    SegmentItem::Record {
                        number: found,
                        unix_ms,
                        bytes,
                        ..
                    } if found >= number => {
                        if found > number {
                            return Ok(Err(Some(found)));
                        }
                        writer.reading = (segment, number + 1, after);
                        return Ok(Ok((unix_ms, bytes.to_vec())));
                    }
                    _ => writer.reading.2 = after,
                }
                continue;
            }
            let short = parsed == Parsed::Short;
            if short && piece.load(&path, segment, offset)? {
                continue;
            }
            // Damage, or the end.
            let Some((found, place)) = next_whole(&path, offset, number)? else {
                return Ok(Err(None));
            };
            writer.reading = (segment, found, place);
            if found > number {
                return Ok(Err(Some(found)));
            }
        }
    }
}

/// The first valid record from `number` on after the damage at `offset`, and its position.
fn next_whole(path: &Path, offset: u64, number: u64) -> io::Result<Option<(u64, u64)>> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read?,
    };
    let rest = usize::try_from(offset).ok().and_then(|at| bytes.get(at..));
    let mut scan = Scan::new(rest.unwrap_or_default());
    while let Some(item) = scan.next() {
        if let SegmentItem::Record { number: found, .. } = item
            && found >= number
        {
            return Ok(Some((found, offset + scan.start as u64)));
        }
    }
    Ok(None)
}

/// A piece of a segment in memory.
#[derive(Default)]
struct Piece {
    segment: u64,
    offset: u64,
    bytes: Vec<u8>,
}

impl Piece {
    fn at(&self, segment: u64, offset: u64) -> &[u8] {
        let place = offset
            .checked_sub(self.offset)
            .filter(|_| self.segment == segment);
        let place = place.and_then(|place| usize::try_from(place).ok());
        place
            .and_then(|place| self.bytes.get(place..))
            .unwrap_or_default()
    }

    /// Reads the piece that begins there. False if it is already in memory.
    fn load(&mut self, path: &Path, segment: u64, offset: u64) -> io::Result<bool> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            file => file?,
        };
        let mut bytes = vec![0; PIECE_BYTES];
        let count = file.read_at(&mut bytes, offset)?;
        bytes.truncate(count);
        let same = (self.segment, self.offset) == (segment, offset) && self.bytes.len() == count;
        *self = Self {
            segment,
            offset,
            bytes,
        };
        Ok(!same && count > 0)
    }
}

impl Writer {
    fn write(&mut self) -> io::Result<()> {
        if let Some(file) = self.file.as_mut().filter(|_| !self.buffer.is_empty()) {
            medium::count_file(Subsystem::Outbox, self.buffer.len() as u64);
            self.unsynced = true;
            file.write_all(&self.buffer)?;
            self.buffer.clear();
            self.buffer.shrink_to(segment::ITEM_BYTES_MAX);
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        if let Some(file) = self.file.as_ref().filter(|_| self.unsynced) {
            medium::sync_data(file, Subsystem::Outbox)?;
            self.unsynced = false;
        }
        Ok(())
    }
}

const _: () = assert!(SEGMENT_BYTES_MAX > (COMMIT_BYTES_MAX + segment::ITEM_BYTES_MAX) as u64);
