//! State of each path from the events of the watch: a writer has it open, a writer has closed it, or it was
//! renamed into its place. Decides nothing; [`super::files`] does.
//!
//! A modified file counts as open until a writer closes it. inotify does not identify writers, so with two
//! of them the first one that closes the file counts.
//!
//! Bound: [`PATHS_MAX`] paths; with more, the state of all of them is dropped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use notify::event::{AccessKind, AccessMode, ModifyKind, RenameMode};
use notify::{Event, EventKind};

/// Paths whose state is kept.
const PATHS_MAX: usize = 10_000;

/// How a path got its present content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Writing {
    /// There was no event, or it was lost.
    #[default]
    Unknown,
    /// Modified, and not closed since.
    Open,
    /// Closed by a writer, and not modified since.
    Closed,
    /// It was renamed to this path.
    Renamed,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Activity(Mutex<Paths>);

#[derive(Debug, Default)]
struct Paths {
    /// With the number of the event.
    paths: BTreeMap<PathBuf, (Writing, u64)>,
    count: u64,
}

impl Activity {
    /// Processes an event of the watch on `folder`. Returns whether the folder may have changed.
    pub(super) fn take(&self, folder: &Path, event: &Event) -> bool {
        if event.need_rescan() {
            self.clear();
        }
        let writing = match event.kind {
            // The event with both paths repeats the two before it.
            EventKind::Modify(ModifyKind::Name(RenameMode::To)) => Some(Writing::Renamed),
            EventKind::Modify(ModifyKind::Data(_)) => Some(Writing::Open),
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => Some(Writing::Closed),
            EventKind::Create(_)
            | EventKind::Remove(_)
            | EventKind::Modify(ModifyKind::Name(RenameMode::From)) => Some(Writing::Unknown),
            // Our own reads cause such events, too.
            EventKind::Access(_) => return false,
            _ => None,
        };
        if let (Some(writing), [path]) = (writing, event.paths.as_slice()) {
            self.note(path.strip_prefix(folder).unwrap_or(path), writing);
        }
        true
    }

    /// Sets the state of a path.
    pub(super) fn note(&self, path: &Path, writing: Writing) {
        let mut all = self.lock();
        all.count += 1;
        if writing == Writing::Unknown {
            all.paths.remove(path);
            return;
        }
        if all.paths.len() >= PATHS_MAX && !all.paths.contains_key(path) {
            all.paths.clear();
        }
        let count = all.count;
        all.paths.insert(path.to_owned(), (writing, count));
    }

    /// State of a path relative to the folder. Files in a renamed folder count as renamed.
    pub(super) fn of(&self, path: &Path) -> Writing {
        let all = self.lock();
        if let Some((writing, _)) = all.paths.get(path) {
            return *writing;
        }
        let mut above = path.ancestors().skip(1);
        let brought = |path: &Path| {
            let known = all.paths.get(path);
            known.is_some_and(|(writing, _)| *writing == Writing::Renamed)
        };
        match above.any(brought) {
            true => Writing::Renamed,
            false => Writing::Unknown,
        }
    }

    /// Events so far, for [`Self::forget`].
    pub(super) fn count(&self) -> u64 {
        self.lock().count
    }

    /// Drops the states of events up to this number, except of open files and of those in `kept`.
    pub(super) fn forget(&self, count: u64, kept: impl Fn(&Path) -> bool) {
        self.lock().paths.retain(|path, (writing, number)| {
            *number > count || *writing == Writing::Open || kept(path)
        });
    }

    /// Drops the state of all paths.
    pub(super) fn clear(&self) {
        self.lock().paths.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Paths> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use notify::event::{CreateKind, DataChange};

    use super::*;

    const CLOSE: EventKind = EventKind::Access(AccessKind::Close(AccessMode::Write));
    const DATA: EventKind = EventKind::Modify(ModifyKind::Data(DataChange::Any));

    /// Goal: the ways to create or change a file are distinguished. Method: the events of each of them, as
    /// the watch delivers them.
    #[test]
    fn each_way_to_write_a_file_is_told_apart() {
        let activity = Activity::default();
        let folder = Path::new("/m");
        let of = |kinds: &[EventKind]| {
            for kind in kinds {
                let event = Event::new(*kind).add_path("/m/a.yaml".into());
                activity.take(folder, &event);
            }
            activity.of(Path::new("a.yaml"))
        };
        let renamed = |mode| EventKind::Modify(ModifyKind::Name(mode));
        assert_eq!(of(&[EventKind::Create(CreateKind::File)]), Writing::Unknown);
        assert_eq!(of(&[DATA]), Writing::Open);
        assert_eq!(of(&[CLOSE]), Writing::Closed);
        assert_eq!(of(&[DATA, DATA]), Writing::Open);
        assert_eq!(of(&[renamed(RenameMode::To)]), Writing::Renamed);
        assert_eq!(of(&[renamed(RenameMode::From)]), Writing::Unknown);
        let read = EventKind::Access(AccessKind::Close(AccessMode::Read));
        assert!(!activity.take(folder, &Event::new(read).add_path("/m/a.yaml".into())));
        // Events were lost.
        assert_eq!(of(&[DATA]), Writing::Open);
        let rescan = Event::new(EventKind::Other).set_flag(notify::event::Flag::Rescan);
        assert!(activity.take(folder, &rescan));
        assert_eq!(activity.of(Path::new("a.yaml")), Writing::Unknown);
    }

    #[test]
    fn a_folder_that_is_renamed_brings_its_files() {
        let activity = Activity::default();
        activity.note(Path::new("site"), Writing::Renamed);
        activity.note(Path::new("site/b.yaml"), Writing::Closed);
        assert_eq!(activity.of(Path::new("site/a.yaml")), Writing::Renamed);
        assert_eq!(activity.of(Path::new("site/b.yaml")), Writing::Closed);
        assert_eq!(activity.of(Path::new("other/a.yaml")), Writing::Unknown);
    }

    /// Goal: a read drops only states from before its begin.
    #[test]
    fn what_comes_during_a_look_is_not_forgotten() {
        let activity = Activity::default();
        for (path, writing) in [
            ("a", Writing::Renamed),
            ("b", Writing::Closed),
            ("c", Writing::Open),
        ] {
            activity.note(Path::new(path), writing);
        }
        let count = activity.count();
        activity.note(Path::new("d"), Writing::Closed);
        activity.forget(count, |path| path == Path::new("b"));
        let known = ["a", "b", "c", "d"].map(|path| activity.of(Path::new(path)));
        let [a, b, c, d] = known;
        assert_eq!((a, b), (Writing::Unknown, Writing::Closed));
        assert_eq!((c, d), (Writing::Open, Writing::Closed));
        for number in 0..=PATHS_MAX {
            activity.note(Path::new(&number.to_string()), Writing::Closed);
        }
        assert!(activity.lock().paths.len() <= PATHS_MAX);
    }
}
