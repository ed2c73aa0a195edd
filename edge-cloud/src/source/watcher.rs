//! The watch on the folder. The kernel watches an inode, so the watch is set again when the path leads to
//! another inode: after a rename or a mount, or when the folder was created again.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

use super::activity::Activity;

/// Device and inode of the folder.
pub(super) type Place = (u64, u64);

/// See the module.
pub(super) struct Watch {
    folder: PathBuf,
    /// State of the paths, from its events.
    pub(super) activity: Arc<Activity>,
    touched: Arc<Notify>,
    /// Kept for its thread; `None` when the system gives no watch.
    watcher: Option<RecommendedWatcher>,
    /// The watched folder.
    place: Option<Place>,
}

impl Watch {
    /// Not set yet. Events of the folder notify `touched`.
    pub(super) fn new(folder: PathBuf, touched: Arc<Notify>) -> Self {
        Self {
            folder,
            activity: Arc::default(),
            touched,
            watcher: None,
            place: None,
        }
    }

    /// Sets the watch if the path leads to another folder than the watched one.
    pub(super) fn renew(&mut self) {
        let place = place(&self.folder);
        if self.watcher.is_some() && self.place == place {
            return;
        }
        let folder = self.folder.display();
        if self.place.is_some() {
            log::warn!("manifests_moved folder={folder}");
        }
        // The events of the old watch are about other files.
        self.watcher = None;
        self.activity.clear();
        let was_told = self.place == place;
        self.place = place;
        if place.is_none() {
            return;
        }
        match self.set() {
            Ok(watcher) => {
                log::info!("manifests_watched folder={folder}");
                self.watcher = Some(watcher);
            }
            Err(error) if !was_told => {
                log::warn!("manifests_not_watched folder={folder} error={error}");
            }
            Err(_) => {}
        }
    }

    /// The watched folder; `None`: there was none.
    pub(super) const fn place(&self) -> Option<Place> {
        self.place
    }

    fn set(&self) -> notify::Result<RecommendedWatcher> {
        let (activity, touched) = (Arc::clone(&self.activity), Arc::clone(&self.touched));
        let folder = self.folder.clone();
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                // A read finds the cause of an error.
                if event.map_or(true, |event| activity.take(&folder, &event)) {
                    touched.notify_one();
                }
            })?;
        watcher.watch(&self.folder, RecursiveMode::Recursive)?;
        Ok(watcher)
    }
}

/// Device and inode of a path; `None`: it does not exist.
pub(super) fn place(folder: &Path) -> Option<Place> {
    let metadata = std::fs::metadata(folder).ok()?;
    Some((metadata.dev(), metadata.ino()))
}
