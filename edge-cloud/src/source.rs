//! Where desired state comes from ([`Source`]) and where status goes ([`StatusSink`]): a folder and
//! memory here, Kubernetes next.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher as _};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

use crate::manifest::{Manifests, Problem};
use crate::nodes::NodeView;
use crate::placement::{Changes, Placement};

/// Desired state.
pub trait Source: Send + 'static {
    /// Reads everything. What cannot be read now stays as it was in `before`.
    fn read(&mut self, before: Arc<Manifests>) -> impl Future<Output = Arc<Manifests>> + Send;

    /// Returns when `read` may give something new. Nothing that happened since the last `read`
    /// began is missed, also when an earlier wait was given up.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;
}

/// Where it goes what became of the desired state and what the nodes report. A sink that shows all of
/// it keeps what it is given; one that writes it elsewhere passes it on.
pub trait StatusSink: Send + 'static {
    /// A round is over: what has changed in it.
    fn placed(&mut self, change: StatusChange<'_>);

    /// A node reports this from now on; `None`: it has left.
    fn reported(&mut self, node: &str, view: Option<&NodeView>);
}

/// What a round has changed of the status.
#[derive(Clone, Copy, Debug)]
pub struct StatusChange<'a> {
    /// All that was refused.
    pub problems: &'a [Problem],
    /// Accepted objects.
    pub objects: usize,
    /// All pods.
    pub placement: &'a Placement,
    /// What is new of them.
    pub changes: &'a Changes,
}

/// What became of the desired state.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// What was refused.
    pub problems: Vec<Problem>,
    /// Accepted objects.
    pub objects: usize,
    /// Where the pods are.
    pub placement: Placement,
}

impl Status {
    fn apply(&mut self, change: StatusChange<'_>) {
        if self.problems != change.problems {
            self.problems = change.problems.to_vec();
        }
        self.objects = change.objects;
        for uid in &change.changes.pods {
            match change.placement.pods.get(uid) {
                Some(placed) => drop(self.placement.pods.insert(*uid, Arc::clone(placed))),
                None => drop(self.placement.pods.remove(uid)),
            }
        }
        for name in &change.changes.unplaced {
            match change.placement.unplaced.get(name) {
                Some(one) => drop(self.placement.unplaced.insert(name.clone(), one.clone())),
                None => drop(self.placement.unplaced.remove(name)),
            }
        }
    }
}

/// Quiet time after a change: an editor or `cp` writes a file in several steps.
const QUIET: Duration = Duration::from_millis(100);
/// A folder that never rests is read this often.
const QUIET_MAX: Duration = Duration::from_secs(2);
/// Without any event: network file systems do not send them.
const RESCAN: Duration = Duration::from_secs(30);

/// A folder of manifests.
pub struct Folder {
    path: PathBuf,
    touched: Arc<Notify>,
    /// Something changed, and is read at the latest now: a caller that gives up waiting must not
    /// make us forget it.
    due: Option<Instant>,
    /// The next read without any event, for the same reason kept here.
    rescan: Instant,
    /// Kept for its thread; `None` when the system gives no watch, then only the rescan works.
    _watcher: Option<notify::RecommendedWatcher>,
}

impl Folder {
    /// Watches `path`.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        let touched = Arc::new(Notify::new());
        let notify = Arc::clone(&touched);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading a file is an event, too: our own must not wake us.
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
            touched,
            due: None,
            rescan: Instant::now() + RESCAN,
            _watcher: watcher.ok(),
        }
    }
}

impl Source for Folder {
    async fn read(&mut self, before: Arc<Manifests>) -> Arc<Manifests> {
        self.due = None;
        self.rescan = Instant::now() + RESCAN;
        let path = self.path.clone();
        let last = Arc::clone(&before);
        let read = tokio::task::spawn_blocking(move || {
            let mut manifests = Manifests::read(&path);
            manifests.keep_last_good(&last);
            Arc::new(manifests)
        });
        // The task only fails when the runtime shuts down.
        read.await.unwrap_or(before)
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

/// Status in memory, for the API. What nodes report the API reads where the sessions have it.
impl StatusSink for watch::Sender<Status> {
    fn placed(&mut self, change: StatusChange<'_>) {
        self.send_modify(|status| status.apply(change));
    }

    fn reported(&mut self, _: &str, _: Option<&NodeView>) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a wait that is given up forgets nothing. Method: give up as soon as the change is
    /// seen, and wait again; virtual time stands in for the quiet time.
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

    /// Goal: a folder whose file system sends no events is read all the same, however often the wait
    /// is given up. Method: virtual time; nothing touches the folder.
    #[tokio::test(start_paused = true)]
    async fn the_rescan_comes_although_each_wait_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let mut source = Folder::new(folder.path().to_owned());
        let _manifests = source.read(Arc::default()).await;
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
