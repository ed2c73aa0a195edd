//! Where desired state comes from ([`Source`]) and where status goes ([`StatusSink`]): a folder and
//! memory here, Kubernetes next.

mod files;
mod folder;

use std::future::Future;
use std::sync::Arc;

use tokio::sync::watch;

use crate::manifest::{Id, Problem};
use crate::nodes::NodeView;
use crate::objects::{Object, ObjectStore};
use crate::placement::{Changes, Placement};

pub use folder::Folder;

/// Desired state.
pub trait Source: Send + 'static {
    /// Reads what has changed since the last call; at the first one against `store`, which has the
    /// objects of an earlier run. What cannot be read now stays as it was.
    fn read(&mut self, store: &ObjectStore) -> impl Future<Output = SourceChanges> + Send;

    /// Returns when `read` may give something new. Nothing that happened since the last `read`
    /// began is missed, also when an earlier wait was given up.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;
}

/// What has changed at a source.
#[derive(Debug, Default)]
pub struct SourceChanges {
    /// Objects with what they are now; `None`: removed. Some may be as they were.
    pub objects: Vec<(Id, Option<Object>)>,
    /// All that is refused now.
    pub problems: Vec<Problem>,
    /// Whether the source has a sound object at all.
    pub has_objects: bool,
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

/// Status in memory, for the API: that of the folder, which has no place for a status of its own. What
/// nodes report is not kept a second time: the API and the metrics read it from the sessions, where it is
/// newer.
impl StatusSink for watch::Sender<Status> {
    fn placed(&mut self, change: StatusChange<'_>) {
        self.send_modify(|status| status.apply(change));
    }

    fn reported(&mut self, _: &str, _: Option<&NodeView>) {}
}
