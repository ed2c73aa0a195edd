//! Content of a folder of manifests, file by file. A file is read again only when it has changed, so
//! one changed file costs its own documents and one stat of each of the others.
//!
//! Of two documents of one object that of the first file counts. An object whose document is refused
//! stays unchanged: a mistake in a manifest must not stop a workload. The same applies to an object that
//! is missing in a file that cannot be read, or that has a refused document without a known identity.
//!
//! A file that is written in place has intermediate states that are not intended. [`Take`] says which part
//! of it is applied: nothing while it is open, additions and changes after it was closed, and removals
//! after [`QUIET`] without a write. A file that was renamed into its place is applied at once. Bounds are
//! those of [`crate::manifest`].

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use edge_proto::hash::{Hash32, sha256};
use tokio::time::Instant;

use super::SourceChanges;
use super::activity::{Activity, Writing};
use crate::manifest::{self, Id, Manifests, Origin, PROBLEMS_MAX, Problem, Severity};
use crate::objects::Object;

/// Time without a write after which the objects that are missing in a file that was written in place are
/// removed. An upload may stall between two documents, and a generator truncates its output first.
pub(super) const QUIET: Duration = Duration::from_secs(5);
/// Time without a write after which an open file counts as closed: its event may be lost. An upload over a
/// dead connection has been aborted by then.
const OPEN_MAX: Duration = Duration::from_secs(15 * 60);
/// A file that was changed so shortly before it was read may change again within the same tick
/// of its file system's clock: it is read again next time.
const FRESH: Duration = Duration::from_secs(2);

/// Time of a read, by the monotonic clock and by the clock of the file systems.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) at: Instant,
    pub(super) wall: SystemTime,
}

impl Now {
    /// Reads both clocks.
    pub(super) fn of_clocks() -> Self {
        Self {
            at: Instant::now(),
            wall: SystemTime::now(),
        }
    }

    /// Whether `time` is at least `age` ago; `false` for the future.
    fn is_after(self, time: SystemTime, age: Duration) -> bool {
        self.wall.duration_since(time).is_ok_and(|past| past >= age)
    }
}

/// Identifies a version of a file: inode, size, the modification time, and the time of the last
/// change of the inode, which no program can set. Tools that keep modification times (`rsync -t`, a
/// reproducible tar) would otherwise hide a change that keeps the size.
type Stamp = (u64, u64, SystemTime, (i64, i64));

/// The part of a file that is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Take {
    /// Nothing yet: what was applied before stays.
    Nothing,
    /// Its objects; missing ones are not removed yet.
    WhatIsThere,
    /// Its objects, and missing ones are removed.
    All,
}

/// Shape of a text, to detect a truncated one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Form {
    lines: usize,
    is_terminated: bool,
}

impl Form {
    fn of(text: &str) -> Self {
        Self {
            lines: text.lines().count(),
            is_terminated: text.ends_with('\n'),
        }
    }

    /// Whether a text that replaces `before` may be truncated.
    const fn may_be_cut(self, before: Self) -> bool {
        self.lines < before.lines || before.is_terminated && !self.is_terminated
    }
}

#[derive(Debug)]
struct ReadFile {
    /// `None`: it is read again next time.
    stamp: Option<Stamp>,
    /// Hash of the text that was read last; `None`: it could not be read.
    hash: Option<Hash32>,
    /// Time of the last change of the text; `None`: longer ago than [`QUIET`].
    changed: Option<Instant>,
    /// The part of that text that is applied.
    take: Take,
    /// A writer had it open at the last read.
    is_open: bool,
    /// The applied documents.
    manifests: Manifests,
    /// Shape of the applied text; `None`: none was applied.
    form: Option<Form>,
}

impl ReadFile {
    fn is_quiet(&self, now: Now, time: Duration) -> bool {
        self.changed.is_none_or(|since| now.at >= since + time)
    }
}

/// State of all files at the last read.
#[derive(Debug, Default)]
pub(super) struct Files {
    files: BTreeMap<String, ReadFile>,
    /// Files that disappeared, and when that was noticed, for [`QUIET`].
    gone: BTreeMap<String, Instant>,
    /// Files with a valid document of an object.
    holders: BTreeMap<Id, BTreeSet<String>>,
    /// Objects with documents in several files.
    doubled: BTreeSet<Id>,
    /// Active objects without a valid document, and their former places.
    kept: BTreeMap<Id, Origin>,
    /// This process has read the folder before.
    is_read: bool,
    /// Counts reads, for tests.
    #[cfg(test)]
    reads: usize,
}

impl Files {
    /// Has only the active objects of an earlier run.
    pub(super) fn new(in_force: impl Iterator<Item = (Id, Origin)>) -> Self {
        Self {
            kept: in_force.collect(),
            ..Self::default()
        }
    }

    /// Reads the changed files of the folder.
    pub(super) fn read(&mut self, folder: &Path, now: Now, activity: &Activity) -> SourceChanges {
        let count = activity.count();
        let (found, faults) = manifest::files(folder);
        let mut touched: BTreeSet<Id> = self.kept.keys().cloned().collect();
        let stood: BTreeSet<String> = self.kept.values().map(|at| at.file.clone()).collect();
        // A folder that was read in part does not show which files are missing.
        if faults.is_empty() {
            self.lose(&found, &stood, now, &mut touched);
        }
        for (name, path) in &found {
            self.gone.remove(name);
            let has_stood = stood.contains(name);
            self.look(name, path, has_stood, now, activity, &mut touched);
        }
        self.is_read |= faults.is_empty();
        let is_waiting = |path: &Path| {
            let file = path.to_str().and_then(|name| self.files.get(name));
            file.is_some_and(|file| file.take != Take::All)
        };
        activity.forget(count, is_waiting);
        SourceChanges {
            objects: self.settle(touched, !faults.is_empty()),
            problems: self.problems(faults, now),
            has_objects: !self.holders.is_empty(),
            is_partial: self.files.values().any(|file| file.take == Take::Nothing),
        }
    }

    /// When the next read gives another result without any event.
    pub(super) fn next(&self, now: Now) -> Option<Instant> {
        let waiting = self.files.values().filter(|file| file.take != Take::All);
        let since = waiting.filter_map(|file| file.changed);
        let ends = since.flat_map(|since| [since + QUIET, since + OPEN_MAX]);
        let gone = self.gone.values().map(|since| *since + QUIET);
        ends.chain(gone).filter(|end| *end > now.at).min()
    }

    /// Handles files that disappeared. Their objects are removed after [`QUIET`]: a program may replace a
    /// file by removing it first.
    fn lose(
        &mut self,
        found: &BTreeMap<String, PathBuf>,
        stood: &BTreeSet<String>,
        now: Now,
        touched: &mut BTreeSet<Id>,
    ) {
        let lost = |name: &&String| !found.contains_key(*name);
        let mut gone: Vec<String> = self.files.keys().filter(lost).cloned().collect();
        if !self.is_read {
            gone.extend(stood.iter().filter(lost).cloned());
        }
        for name in gone {
            self.forget(&name, touched);
            self.gone.insert(name, now.at);
        }
        self.gone.retain(|_, since| now.at < *since + QUIET);
    }

    /// Reads a file if it may have changed. `has_stood`: it is the former place of a kept object.
    fn look(
        &mut self,
        name: &str,
        path: &Path,
        has_stood: bool,
        now: Now,
        activity: &Activity,
        touched: &mut BTreeSet<Id>,
    ) {
        let seen = stamp(path);
        let known = self.files.get(name);
        let is_told = matches!(
            activity.of(Path::new(name)),
            Writing::Open | Writing::Closed
        );
        if !is_told
            && known.is_some_and(|file| file.take == Take::All && file.stamp == seen)
            && seen.is_some()
        {
            return;
        }
        #[cfg(test)]
        {
            self.reads += 1;
        }
        let text = manifest::text_of(path);
        // Checked after the text was read: a writer that is active now may have been active before.
        let writing = activity.of(Path::new(name));
        let is_moving = stamp(path) != seen;
        let hash = text.as_ref().ok().map(|text| sha256(text.as_bytes()));
        let is_changed = known.is_none_or(|file| file.hash != hash);
        let mut file = self.seen(name, seen, hash, now);
        if std::mem::take(&mut file.is_open) && writing != Writing::Open {
            // The writer may have been interrupted, and try again.
            file.changed = Some(now.at);
        }
        file.is_open = (is_moving || writing == Writing::Open) && !file.is_quiet(now, OPEN_MAX);
        if file.take == Take::All && hash.is_some() && !is_changed {
            self.files.insert(name.to_owned(), file);
            return;
        }
        let form = text.as_ref().ok().map(|text| Form::of(text));
        let has_something = has_stood || file.form.is_some();
        let is_cut = match (file.form, form) {
            (Some(before), Some(now)) => now.may_be_cut(before),
            _ => true,
        };
        file.take = match writing {
            _ if text.is_err() => Take::All,
            _ if file.is_open => Take::Nothing,
            Writing::Renamed => Take::All,
            _ if !has_something || file.is_quiet(now, QUIET) => Take::All,
            Writing::Closed if !is_cut => Take::WhatIsThere,
            _ => Take::Nothing,
        };
        self.take(name, file, text, form, touched);
    }

    /// Updates what is known of the text; the applied part is unchanged.
    fn seen(
        &mut self,
        name: &str,
        seen: Option<Stamp>,
        hash: Option<Hash32>,
        now: Now,
    ) -> ReadFile {
        let is_fresh = |(_, _, changed, _): &Stamp| !now.is_after(*changed, FRESH);
        // What prevented the read may pass without a change of the stamp.
        let stamp = seen.filter(|stamp| hash.is_some() && !is_fresh(stamp));
        match self.files.remove(name) {
            Some(file) if file.hash == hash => ReadFile { stamp, ..file },
            Some(file) => ReadFile {
                stamp,
                hash,
                changed: Some(now.at),
                ..file
            },
            None => {
                // At a start only the file system knows the time of the last change.
                let is_old = seen.is_some_and(|stamp| now.is_after(inode_changed(stamp), QUIET));
                ReadFile {
                    stamp,
                    hash,
                    changed: (self.is_read || !is_old).then_some(now.at),
                    take: Take::Nothing,
                    is_open: false,
                    manifests: Manifests::default(),
                    form: None,
                }
            }
        }
    }

    /// Applies a file according to its [`Take`].
    fn take(
        &mut self,
        name: &str,
        file: ReadFile,
        text: Result<String, String>,
        form: Option<Form>,
        touched: &mut BTreeSet<Id>,
    ) {
        let take = file.take;
        self.files.insert(name.to_owned(), file);
        if take == Take::Nothing {
            return;
        }
        let Some(file) = self.forget(name, touched) else {
            return;
        };
        let mut manifests = Manifests::default();
        manifests.add_text(name, text);
        for id in manifests.objects.keys() {
            let holders = self.holders.entry(id.clone()).or_default();
            holders.insert(name.to_owned());
            touched.insert(id.clone());
        }
        let file = ReadFile {
            manifests,
            form: form.or(file.form),
            ..file
        };
        self.files.insert(name.to_owned(), file);
    }

    /// Removes the objects of a file for now.
    fn forget(&mut self, name: &str, touched: &mut BTreeSet<Id>) -> Option<ReadFile> {
        let mut file = self.files.remove(name)?;
        for (id, (origin, _)) in std::mem::take(&mut file.manifests.objects) {
            if let Some(holders) = self.holders.get_mut(&id) {
                // Its object was active if it was the first, and no earlier file of this read had it.
                if holders.first().is_some_and(|first| first == name) {
                    self.kept.entry(id.clone()).or_insert(origin);
                }
                holders.remove(name);
                if holders.is_empty() {
                    self.holders.remove(&id);
                }
            }
            touched.insert(id);
        }
        Some(file)
    }

    /// Determines the new state of the touched objects.
    fn settle(&mut self, touched: BTreeSet<Id>, lost: bool) -> Vec<(Id, Option<Object>)> {
        let mut changes = Vec::new();
        for id in touched {
            match self.holders.get(&id).map_or(0, BTreeSet::len) {
                0 | 1 => drop(self.doubled.remove(&id)),
                _ => drop(self.doubled.insert(id.clone())),
            }
            let object = self.object(&id);
            let stood = self.kept.remove(&id);
            if let (None, Some(origin)) = (&object, &stood)
                && (lost || self.is_waiting(origin) || self.is_unclear(&id, origin))
            {
                self.kept.extend(stood.map(|origin| (id, origin)));
                continue;
            }
            changes.push((id, object));
        }
        changes
    }

    /// The object as the first file has it.
    fn object(&self, id: &Id) -> Option<Object> {
        let file = self.files.get(self.holders.get(id)?.first()?)?;
        let (origin, content) = file.manifests.objects.get(id)?.clone();
        Some(Object { origin, content })
    }

    /// Whether removals from a file are still delayed.
    fn is_waiting(&self, origin: &Origin) -> bool {
        let file = self.files.get(&origin.file);
        self.gone.contains_key(&origin.file) || file.is_some_and(|file| file.take != Take::All)
    }

    /// Whether an object may be intended although it has no valid document.
    fn is_unclear(&self, id: &Id, origin: &Origin) -> bool {
        let stood = self.files.get(&origin.file);
        stood.is_some_and(|file| file.manifests.may_have(&origin.file, id))
            || self
                .files
                .values()
                .any(|file| file.manifests.is_refused(id))
    }

    fn problems(&self, faults: Vec<Problem>, now: Now) -> Vec<Problem> {
        let of_files = self
            .files
            .values()
            .flat_map(|file| file.manifests.problems.iter().cloned());
        let is_left_open = |file: &ReadFile| file.is_open && file.is_quiet(now, QUIET);
        let open = self.files.iter().filter(|(_, file)| is_left_open(file));
        let open = open.map(|(name, _)| Problem {
            severity: Severity::Error,
            origin: Origin {
                file: name.clone(),
                document: 0,
            },
            object: None,
            path: String::new(),
            reason: "is open for writing: what was read of it before holds until it is closed"
                .to_owned(),
        });
        let doubled = self.doubled.iter().flat_map(|id| {
            let mut holders = self.holders.get(id).into_iter().flatten();
            let first = holders.next().and_then(|name| self.origin(name, id));
            holders.filter_map(move |name| {
                let first = first.as_ref()?;
                let reason = format!(
                    "stands in {} document {}, too: that one holds",
                    first.file, first.document
                );
                Some(problem(
                    self.origin(name, id)?,
                    id,
                    "metadata.name",
                    &reason,
                ))
            })
        });
        // A delayed removal is no problem.
        let kept = self.kept.iter().filter(|(_, at)| !self.is_waiting(at));
        let kept = kept.map(|(id, origin)| {
            problem(
                origin.clone(),
                id,
                "",
                "its last good version stays in force",
            )
        });
        let all = faults
            .into_iter()
            .chain(of_files)
            .chain(open)
            .chain(doubled)
            .chain(kept);
        all.take(PROBLEMS_MAX).collect()
    }

    fn origin(&self, name: &str, id: &Id) -> Option<Origin> {
        let objects = &self.files.get(name)?.manifests.objects;
        objects.get(id).map(|(origin, _)| origin.clone())
    }
}

fn problem(origin: Origin, id: &Id, path: &str, reason: &str) -> Problem {
    Problem {
        severity: Severity::Error,
        origin,
        object: Some(id.to_string()),
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let file = std::fs::metadata(path).ok()?;
    let changed = (file.ctime(), file.ctime_nsec());
    Some((file.ino(), file.len(), file.modified().ok()?, changed))
}

/// The change time of the inode, as a time of the wall clock.
fn inode_changed((_, _, _, (seconds, nanoseconds)): Stamp) -> SystemTime {
    let part = |value: i64| u64::try_from(value).unwrap_or_default();
    SystemTime::UNIX_EPOCH
        + Duration::from_secs(part(seconds))
        + Duration::from_nanos(part(nanoseconds))
}

#[cfg(test)]
mod tests;
