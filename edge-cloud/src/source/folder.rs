//! A folder of manifests, watched for changes and scanned at an interval.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::files::Files;
use super::{Source, SourceChanges};
use crate::objects::ObjectStore;

/// Quiet time after a change: an editor or `cp` writes a file in several steps.
const QUIET: Duration = Duration::from_millis(100);
/// A folder that changes all the time is read at this interval.
const QUIET_MAX: Duration = Duration::from_secs(2);
/// Interval of reads without any event: network file systems do not send them.
const RESCAN: Duration = Duration::from_secs(30);

/// Source that reads a folder of manifests.
pub struct Folder {
    path: PathBuf,
    /// Its state at the last read; `None` before the first one.
    files: Option<Files>,
    touched: Arc<Notify>,
    /// Something has changed, and is read at the latest now. Stored here, so that a cancelled wait does not
    /// lose it.
    due: Option<Instant>,
    /// The next read without any event, stored here for the same reason.
    rescan: Instant,
    /// Kept for its thread; `None` when the system provides no watch, then only the rescan works.
    _watcher: Option<notify::RecommendedWatcher>,
}

impl Folder {
    /// Watches `path`.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        let touched = Arc::new(Notify::new());
        let notify = Arc::clone(&touched);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading a file is an event, too: our own reads must not wake us.
            if !event.is_ok_and(|event| event.kind.is_access()) {
                notify.notify_one();
            }
        });
        let watcher = watcher
            .and_then(|mut watcher| {
                watcher.watch(&path, RecursiveMode::Recursive)?;
                Ok(watcher)
            })
            .inspect_err(|error| {
                log::warn!(
                    "manifests_not_watched folder={} rescan_s={} error={error}",
                    path.display(),
                    RESCAN.as_secs()
                );
            });
        Self {
            path,
            files: None,
            touched,
            due: None,
            rescan: Instant::now() + RESCAN,
            _watcher: watcher.ok(),
        }
    }
}

impl Source for Folder {
    async fn read(&mut self, store: &ObjectStore) -> SourceChanges {
        self.due = None;
        self.rescan = Instant::now() + RESCAN;
        let path = self.path.clone();
        let in_force = || {
            store
                .iter()
                .map(|(id, object)| (id.clone(), object.origin.clone()))
        };
        let mut files = self.files.take().unwrap_or_else(|| Files::new(in_force()));
        let read = tokio::task::spawn_blocking(move || (files.read(&path), files));
        // The task only fails when the runtime shuts down.
        let Ok((changes, files)) = read.await else {
            return SourceChanges::default();
        };
        self.files = Some(files);
        changes
    }

    async fn changed(&mut self) {
        let end = match self.due {
            Some(end) => end,
            None => {
                if timeout_at(self.rescan, self.touched.notified())
                    .await
                    .is_err()
                {
                    return;
                }
                *self.due.insert(Instant::now() + QUIET_MAX)
            }
        };
        while Instant::now() < end {
            let quiet = (Instant::now() + QUIET).min(end);
            if timeout_at(quiet, self.touched.notified()).await.is_err() {
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
}
