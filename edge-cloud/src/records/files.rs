//! Records in files: `DIR/NODE/YYYY-MM-DD/CLASS.jsonl`, lines of [`super::line`] closed by
//! [`super::mark`]s. The day is that of the arrival, UTC.
//!
//! Effectively once: the high-water mark is in the same write as the records, that write is synced
//! before anything is acknowledged, and at the start all bytes after the last valid mark are moved to another
//! file. So the files contain each record once, whatever was killed in between.
//!
//! The first mark of a file contains the ledger of all classes: every folder of a day except the newest
//! may be removed at any time. One writer at a time for each node, and one edge-cloud for `DIR`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::ledger::{Ledger, Plan, class_name, class_of};
use super::line;
use super::mark::{self, LINES_BYTES_MAX, MARK_BYTES_MAX, WINDOW_BYTES};

/// Ending of a record file.
const ENDING: &str = "jsonl";
/// Bytes that are read first from the end of a file: in most cases they contain the last write.
const GLANCE_BYTES: usize = 8 * 1024;
/// The year has four digits only until 9999.
const DAY_MAX: u64 = 2_932_896;

/// A folder of record files.
#[derive(Debug)]
pub struct Files {
    dir: PathBuf,
    places: Mutex<BTreeMap<String, Arc<Mutex<Place>>>>,
    _lock: File,
}

/// Position of a node's next records.
#[derive(Debug, Default)]
struct Place {
    /// Days since 1970; never decreases.
    day: u64,
    /// Valid bytes of the files of this day, by class; 0 for a file that was just created.
    good: BTreeMap<u8, u64>,
}

/// Result of reading a node's files at the start.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The node's ledger.
    pub ledger: Ledger,
    /// Files whose end was removed, and its bytes.
    pub cut: Vec<(PathBuf, u64)>,
}

impl Files {
    /// Locks the folder, and creates it if it is missing.
    ///
    /// # Errors
    /// Another edge-cloud has locked it; those of the file system.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let at = |error: io::Error| named(dir, &error);
        fs::create_dir_all(dir).map_err(at)?;
        let lock = File::create(dir.join(".lock")).map_err(at)?;
        lock.try_lock()
            .map_err(|_| at(io::Error::other("another edge-cloud writes to this folder")))?;
        Ok(Self {
            dir: dir.to_owned(),
            places: Mutex::default(),
            _lock: lock,
        })
    }

    /// Reads the positions of a node's streams, and removes bytes that no mark covers.
    ///
    /// # Errors
    /// Those of the file system, with the file.
    pub fn load(&self, node: &str) -> io::Result<Found> {
        let mut found = Found::default();
        let mut place = Place::default();
        for day in self.days(node)?.into_iter().rev() {
            let folder = self.folder(node, day);
            for entry in fs::read_dir(&folder).map_err(|error| named(&folder, &error))? {
                let path = entry?.path();
                let Some(class) = class_of_file(&path) else {
                    continue;
                };
                let failed = |error| named(&path, &error);
                if let Some(good) = recover(&path, &mut found).map_err(failed)? {
                    place.day = place.day.max(day);
                    if place.day == day {
                        place.good.insert(class, good);
                    }
                }
            }
            if !place.good.is_empty() {
                break;
            }
        }
        self.places()
            .insert(node.to_owned(), Arc::new(Mutex::new(place)));
        Ok(found)
    }

    /// Appends a plan, durable when this returns. `ledger` is the ledger before it.
    ///
    /// # Errors
    /// Those of the file system, with the file. Then no part of the plan counts.
    pub fn append(&self, node: &str, ledger: &Ledger, plan: &Plan, unix_s: u64) -> io::Result<()> {
        let place = Arc::clone(self.places().entry(node.to_owned()).or_default());
        let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
        let today = (unix_s / 86_400).min(DAY_MAX);
        if today > place.day {
            place.day = today;
            place.good.clear();
        }
        let folder = self.folder(node, place.day);
        let path = folder.join(class_name(plan.class)).with_extension(ENDING);
        self.write(&mut place, &path, node, ledger, plan)
            .map_err(|error| named(&path, &error))
    }

    fn write(
        &self,
        place: &mut Place,
        path: &Path,
        node: &str,
        ledger: &Ledger,
        plan: &Plan,
    ) -> io::Result<()> {
        let file = open(place, path, plan.class)?;
        let mut good = place.good.get(&plan.class).copied().unwrap_or_default();
        let known = file.metadata()?.len();
        let fresh = good == 0;
        let mut out = Vec::new();
        if known < good {
            // Another program has truncated it. The ledger is complete in memory, and continues from there.
            log::warn!(
                "record_file_shortened file={} from={good} to={known}",
                path.display()
            );
            good = known;
            out.push(b'\n');
        } else {
            // From a failed write.
            file.set_len(good)?;
        }
        if fresh || !out.is_empty() {
            mark::close(&mut out, 0, ledger.streams.clone());
        }
        let mut after = ledger.clone();
        let stream = after.streams.entry(plan.class).or_default();
        let lane = stream.outbox_mut(plan.incarnation);
        lane.duplicates = lane.duplicates.saturating_add(plan.duplicates);
        let mut items = plan.items.iter().peekable();
        // No write is larger than the window that a start searches after the last valid mark.
        loop {
            let head = out.len();
            let stream = after.streams.entry(plan.class).or_default();
            let lane = stream.outbox_mut(plan.incarnation);
            while out.len() - head < LINES_BYTES_MAX - MARK_BYTES_MAX
                && let Some(item) = items.next()
            {
                line::write(&mut out, node, plan.incarnation, plan.class, item);
                lane.apply(item);
            }
            let streams = BTreeMap::from([(plan.class, stream.clone())]);
            let lines = out.len() - head;
            mark::close(&mut out, lines, streams);
            file.write_all_at(&out, good)?;
            file.sync_data()?;
            good += out.len() as u64;
            out.clear();
            if items.peek().is_none() {
                break;
            }
        }
        if fresh {
            self.sync_folders(path)?;
        }
        place.good.insert(plan.class, good);
        Ok(())
    }

    /// A new file is durable only when its folder is synced, and so on upwards.
    fn sync_folders(&self, path: &Path) -> io::Result<()> {
        for folder in path.ancestors().skip(1) {
            File::open(folder)?.sync_all()?;
            if folder == self.dir {
                break;
            }
        }
        Ok(())
    }

    fn folder(&self, node: &str, day: u64) -> PathBuf {
        self.dir.join(node).join(day_name(day))
    }

    /// The days for which a node has folders, ascending.
    fn days(&self, node: &str) -> io::Result<Vec<u64>> {
        let folder = self.dir.join(node);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(named(&folder, &error)),
        };
        let mut days = Vec::new();
        for entry in entries {
            days.extend(entry?.file_name().to_str().and_then(day_of));
        }
        days.sort_unstable();
        Ok(days)
    }

    fn places(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Mutex<Place>>>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops the position of a node's next records; [`Self::load`] determines it again.
    pub fn drop_state(&self, node: &str) {
        self.places().remove(node);
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn class_of_file(path: &Path) -> Option<u8> {
    let fits = path.extension().is_some_and(|ending| ending == ENDING);
    class_of(path.file_stem()?.to_str()?).filter(|_| fits)
}

/// Opens the file of a class for writing, and creates it if it is missing.
fn open(place: &mut Place, path: &Path, class: u8) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    match options.clone().create_new(true).open(path) {
        Ok(file) => {
            place.good.insert(class, 0);
            Ok(file)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // A file that was not there at the start must not be overwritten.
            if let Entry::Vacant(unseen) = place.good.entry(class) {
                let good = recover(path, &mut Found::default())?;
                unseen.insert(good.unwrap_or_default());
            }
            options.open(path)
        }
        Err(error) => Err(error),
    }
}

/// Finds the last valid mark, merges its ledger and removes the bytes after it. Returns the valid
/// bytes, `None` if there is no valid mark: then nothing of the file was ever acknowledged.
fn recover(path: &Path, found: &mut Found) -> io::Result<Option<u64>> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let len = file.metadata()?.len();
    let mut good = None;
    for window in [GLANCE_BYTES, WINDOW_BYTES] {
        let start = len.saturating_sub(window as u64);
        let tail = read(&mut file, start, window)?;
        if let Some((end, mark)) = mark::last(&tail) {
            found.ledger.merge(&mark.streams);
            good = Some(start + end as u64);
            break;
        }
        if start == 0 {
            break;
        }
    }
    if good.is_some_and(|good| good > 0) {
        let head = read(&mut file, 0, MARK_BYTES_MAX)?;
        if let Some((_, mark)) = mark::first(&head) {
            found.ledger.merge(&mark.streams);
        }
    }
    let end = good.unwrap_or_default();
    if end < len {
        save_tail(&mut file, path, end)?;
        found.cut.push((path.to_owned(), len - end));
        file.set_len(end)?;
    }
    // Bytes written by a killed process may be in memory only, and count as acknowledged from now on.
    file.sync_all()?;
    Ok(good)
}

/// Removed bytes were never acknowledged, unless the medium has damaged them: they are kept for analysis.
fn save_tail(file: &mut File, path: &Path, start: u64) -> io::Result<()> {
    let mut copy = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path.with_extension("cut"))?;
    file.seek(SeekFrom::Start(start))?;
    io::copy(file, &mut copy)?;
    copy.flush()
}

fn read(file: &mut File, start: u64, bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(start))?;
    file.take(bytes_max as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// `YYYY-MM-DD` of a number of days since 1970.
fn day_name(days: u64) -> String {
    // From Howard Hinnant's `civil_from_days`: years begin in March, so that the leap day is last.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// The number of days of a `YYYY-MM-DD`.
fn day_of(name: &str) -> Option<u64> {
    let mut parts = name.splitn(3, '-').map(str::parse::<u64>);
    let (year, month, day) = (
        parts.next()?.ok()?,
        parts.next()?.ok()?,
        parts.next()?.ok()?,
    );
    let (year, month) = match month {
        1 | 2 => (year.checked_sub(1)?, month + 9),
        3..=12 => (year, month - 3),
        _ => return None,
    };
    let day_of_year = (153 * month + 2) / 5 + day.checked_sub(1)?;
    let (era, year) = (year / 400, year % 400);
    let days = era.checked_mul(146_097)? + year * 365 + year / 4 - year / 100 + day_of_year;
    let days = days.checked_sub(719_468).filter(|days| *days <= DAY_MAX)?;
    // A name that does not convert back is not ours.
    (day_name(days) == name).then_some(days)
}

#[cfg(test)]
mod tests;
