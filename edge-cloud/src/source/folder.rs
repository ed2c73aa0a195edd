//! A folder of manifests, watched for changes and scanned at an interval.
//!
//! A file system that does not answer blocks only the read itself: the objects stay unchanged, and the
//! result is applied when it is there.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::files::{Files, Now};
use super::watcher::{self, Watch};
use super::{Source, SourceChanges};
use crate::manifest::{Origin, Problem, Severity};
use crate::objects::ObjectStore;

/// Quiet time after a change: an editor or `cp` writes a file in several steps.
const QUIET: Duration = Duration::from_millis(100);
/// A folder that changes all the time is read at this interval.
const QUIET_MAX: Duration = Duration::from_secs(2);
/// Interval of reads without any event: network file systems do not send them.
const RESCAN: Duration = Duration::from_secs(30);
/// Interval in which the watched inode is compared with the path: there is no event for a changed link to
/// the folder, or for a mount.
const CHECK: Duration = Duration::from_secs(1);
/// A read that takes longer is reported as a problem, and continues in the background.
const LOOK_MAX: Duration = Duration::from_secs(10);

/// Source that reads a folder of manifests.
pub struct Folder {
    path: PathBuf,
    touched: Arc<Notify>,
    /// `None` during a read.
    reader: Option<Reader>,
    looking: Option<JoinHandle<(SourceChanges, Reader)>>,
    /// Result of a read that is not passed on yet.
    done: Option<SourceChanges>,
    /// Result of the last read, without its objects.
    last: SourceChanges,
    /// Something has changed, and is read at the latest now. Stored here, so that a cancelled wait does not
    /// lose it.
    due: Option<Instant>,
    /// The next read without any event, stored here for the same reason.
    rescan: Instant,
    /// Time of the next check of the watch.
    check: Instant,
    checking: Option<JoinHandle<Option<watcher::Place>>>,
    /// The watched folder.
    place: Option<watcher::Place>,
}

/// State that a read takes along to its thread.
struct Reader {
    watch: Watch,
    /// State at the last read; `None` before the first one.
    files: Option<Files>,
}

impl Folder {
    /// Watches `path`.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        // Events have absolute paths.
        let path = std::path::absolute(&path).unwrap_or(path);
        let touched = Arc::new(Notify::new());
        let watch = Watch::new(path.clone(), Arc::clone(&touched));
        Self {
            path,
            touched,
            reader: Some(Reader { watch, files: None }),
            looking: None,
            done: None,
            last: SourceChanges::default(),
            due: None,
            rescan: Instant::now() + RESCAN,
            check: Instant::now() + CHECK,
            checking: None,
            place: None,
        }
    }

    /// Starts a read unless one is running.
    fn look(&mut self, store: &ObjectStore) {
        let Some(mut reader) = self.reader.take() else {
            return;
        };
        let in_force = || {
            store
                .iter()
                .map(|(id, object)| (id.clone(), object.origin.clone()))
        };
        let mut files = reader
            .files
            .take()
            .unwrap_or_else(|| Files::new(in_force()));
        let path = self.path.clone();
        self.looking = Some(tokio::task::spawn_blocking(move || {
            reader.watch.renew();
            let activity = Arc::clone(&reader.watch.activity);
            let changes = files.read(&path, Now::of_clocks(), &activity);
            reader.files = Some(files);
            (changes, reader)
        }));
    }

    /// Waits for the running read. Cancel-safe.
    async fn looked(&mut self) -> Option<SourceChanges> {
        // The task only fails when the runtime shuts down.
        let (changes, reader) = self.looking.as_mut()?.await.ok()?;
        self.looking = None;
        let now = Now::of_clocks();
        let next = reader.files.as_ref().and_then(|files| files.next(now));
        self.rescan = next.map_or(now.at + RESCAN, |next| next.min(now.at + RESCAN));
        self.place = reader.watch.place();
        self.reader = Some(reader);
        Some(changes)
    }

    fn silent(&self) -> Problem {
        let folder = self.path.display();
        Problem {
            severity: Severity::Error,
            origin: Origin::default(),
            object: None,
            path: String::new(),
            reason: format!(
                "{folder}: the file system does not answer: the objects in force stay as they are"
            ),
        }
    }

    /// Returns when the path is another folder than the watched one. Cancel-safe.
    async fn moved(&mut self) {
        loop {
            if self.checking.is_none() {
                tokio::time::sleep_until(self.check).await;
                let path = self.path.clone();
                let check = move || watcher::place(&path);
                self.checking = Some(tokio::task::spawn_blocking(check));
            }
            if let Some(checking) = &mut self.checking {
                let place = checking.await;
                self.checking = None;
                self.check = Instant::now() + CHECK;
                if place.is_ok_and(|place| place != self.place) {
                    return;
                }
            }
        }
    }
}

impl Source for Folder {
    async fn read(&mut self, store: &ObjectStore) -> SourceChanges {
        self.due = None;
        let changes = match self.done.take() {
            Some(changes) => Some(changes),
            None => {
                self.look(store);
                let end = Instant::now() + LOOK_MAX;
                timeout_at(end, self.looked()).await.ok().flatten()
            }
        };
        let Some(changes) = changes else {
            let mut changes = self.last.clone();
            changes.problems.insert(0, self.silent());
            return changes;
        };
        self.last = SourceChanges {
            objects: Vec::new(),
            problems: changes.problems.clone(),
            ..changes
        };
        changes
    }

    async fn changed(&mut self) {
        if self.looking.is_some() {
            self.done = self.looked().await;
            return;
        }
        let touched = Arc::clone(&self.touched);
        let end = match self.due {
            Some(end) => end,
            None => {
                let rescan = self.rescan;
                tokio::select! {
                    () = touched.notified() => {}
                    () = tokio::time::sleep_until(rescan) => return,
                    () = self.moved() => return,
                }
                *self.due.insert(Instant::now() + QUIET_MAX)
            }
        };
        while Instant::now() < end {
            let quiet = (Instant::now() + QUIET).min(end);
            if timeout_at(quiet, touched.notified()).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a cancelled wait loses nothing. Method: cancel as soon as the change is
    /// noticed, and wait again; virtual time replaces the quiet time.
    #[tokio::test(start_paused = true)]
    async fn a_change_is_not_forgotten_when_a_wait_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let mut source = Folder::new(folder.path().to_owned());
        let start = Instant::now();
        source.touched.notify_one();
        let given_up = timeout_at(start + QUIET / 2, source.changed()).await;
        assert!(given_up.is_err());
        source.changed().await;
        assert!(start.elapsed() < QUIET_MAX, "only the rescan found it");
    }

    /// Goal: a folder whose file system sends no events is read nevertheless, however often the wait
    /// is cancelled. Method: virtual time; the folder does not change.
    #[tokio::test(start_paused = true)]
    async fn the_rescan_comes_although_each_wait_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let mut source = Folder::new(folder.path().to_owned());
        let _changes = source.read(&ObjectStore::default()).await;
        let start = Instant::now();
        while timeout_at(Instant::now() + RESCAN / 4, source.changed())
            .await
            .is_err()
        {
            assert!(start.elapsed() < RESCAN * 2);
        }
        assert!(start.elapsed() >= RESCAN);
    }

    /// Goal: the watch follows the path. Method: replace the folder in a way for which there is no event;
    /// virtual time proves that no rescan found it.
    #[tokio::test(start_paused = true)]
    async fn a_folder_that_was_replaced_is_watched_again() {
        let all = tempfile::tempdir().unwrap();
        let [one, two, link] = ["one", "two", "link"].map(|name| all.path().join(name));
        for folder in [&one, &two] {
            std::fs::create_dir(folder).unwrap();
        }
        std::os::unix::fs::symlink(&one, &link).unwrap();
        let mut source = Folder::new(link.clone());
        let store = ObjectStore::default();
        let _changes = source.read(&store).await;
        let before = source.place;
        let start = Instant::now();
        let new = all.path().join("new");
        std::os::unix::fs::symlink(&two, &new).unwrap();
        std::fs::rename(&new, &link).unwrap();
        source.changed().await;
        assert!(start.elapsed() < RESCAN);
        let _changes = source.read(&store).await;
        assert_eq!(source.place, watcher::place(&two));
        assert_ne!(source.place, before);
        // A folder that is missing for a while is watched when it is back.
        std::fs::remove_file(&link).unwrap();
        source.changed().await;
        assert_eq!(source.read(&store).await.problems.len(), 1);
        std::os::unix::fs::symlink(&one, &link).unwrap();
        source.changed().await;
        assert_eq!(source.read(&store).await.problems, []);
        assert_eq!(source.place, before);
        assert!(start.elapsed() < RESCAN);
    }
}
