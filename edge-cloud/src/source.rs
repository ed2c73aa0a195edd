//! Source of desired state ([`Source`]) and destination of status ([`StatusSink`]): a folder and
//! memory here, Kubernetes next.

mod activity;
mod files;
mod folder;
mod watcher;

use std::future::Future;
use std::sync::Arc;

use tokio::sync::watch;

use crate::manifest::{Id, Problem};
use crate::nodes::NodeView;
use crate::objects::{Object, ObjectStore};
use crate::placement::{Changes, Placement};

pub use folder::Folder;

/// Provides desired objects.
pub trait Source: Send + 'static {
    /// Reads changes since the last call; at the first call compared with `store`, which has the
    /// objects of an earlier run. Objects that cannot be read now stay unchanged.
    fn read(&mut self, store: &ObjectStore) -> impl Future<Output = SourceChanges> + Send;

    /// Returns when `read` may return something new. No change since the last `read`
    /// began is missed, also when an earlier wait was cancelled.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;
}

/// What has changed at a source.
#[derive(Clone, Debug, Default)]
pub struct SourceChanges {
    /// Objects with their new content; `None`: removed. Some may be unchanged.
    pub objects: Vec<(Id, Option<Object>)>,
    /// Everything that is refused now.
    pub problems: Vec<Problem>,
    /// Whether the source has any valid object.
    pub has_objects: bool,
    /// A file is not applied yet, because a program may still be writing it.
    pub is_partial: bool,
}

/// Receives the status of desired objects and the reports of nodes. A sink that shows all of
/// it keeps it; one that writes it elsewhere passes it on.
pub trait StatusSink: Send + 'static {
    /// A round has ended, with these changes.
    fn placed(&mut self, change: StatusChange<'_>);

    /// The new report of a node; `None`: it has left.
    fn reported(&mut self, node: &str, view: Option<&NodeView>);
}

/// Changes of the status in a round.
#[derive(Clone, Copy, Debug)]
pub struct StatusChange<'a> {
    /// Everything that is refused.
    pub problems: &'a [Problem],
    /// Number of accepted objects.
    pub objects: usize,
    /// All pods.
    pub placement: &'a Placement,
    /// Changed parts of it.
    pub changes: &'a Changes,
}

/// Status of desired objects.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Everything that is refused.
    pub problems: Vec<Problem>,
    /// Number of accepted objects.
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

/// Status in memory, for the API: that of the folder, which cannot store a status itself. Reports of
/// nodes are not stored a second time: the API and the metrics read them from the sessions, where they are
/// newer.
impl StatusSink for watch::Sender<Status> {
    fn placed(&mut self, change: StatusChange<'_>) {
        self.send_modify(|status| status.apply(change));
    }

    fn reported(&mut self, _: &str, _: Option<&NodeView>) {}
}
