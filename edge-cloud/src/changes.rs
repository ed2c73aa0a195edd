//! Notices of changed nodes: a set of names for each subscriber, so that a reader of the
//! nodes reads only those that changed.
//!
//! A notice carries no state. The subscriber reads the node again, so any number of changes of a node
//! between two reads are one name.
//!
//! Bound: for each subscriber, each name once.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Notify;

/// The sender of notices.
#[derive(Default)]
pub struct ChangeFeed {
    subscribers: Mutex<Vec<Weak<Pending>>>,
}

/// The receiver of one subscriber.
pub struct ChangeNotices {
    pending: Arc<Pending>,
}

/// Names that a subscriber has not taken yet.
#[derive(Default)]
struct Pending {
    names: Mutex<BTreeSet<String>>,
    wake: Notify,
}

impl Pending {
    fn names(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ChangeFeed {
    /// Notices of all changes from now on. Subscribe first and read all nodes then, so that no change is
    /// missed.
    pub fn subscribe(&self) -> ChangeNotices {
        let pending = Arc::new(Pending::default());
        let mut subscribers = self.lock();
        subscribers.retain(|one| one.strong_count() > 0);
        subscribers.push(Arc::downgrade(&pending));
        ChangeNotices { pending }
    }

    /// The view of this node has changed, or the node has joined or left.
    pub fn changed(&self, node: &str) {
        for pending in self.lock().iter().filter_map(Weak::upgrade) {
            let mut names = pending.names();
            // In most cases the name is already in the set: then it is not copied.
            if !names.contains(node) {
                names.insert(node.to_owned());
                drop(names);
                pending.wake.notify_one();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Pending>>> {
        self.subscribers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl ChangeNotices {
    /// Waits until there are changes that were not taken. Cancel-safe.
    pub async fn changed(&mut self) {
        while self.pending.names().is_empty() {
            self.pending.wake.notified().await;
        }
    }

    /// Takes the names of the nodes that have changed since the last call.
    pub fn take(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut *self.pending.names())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(changes: &mut ChangeNotices) -> Vec<String> {
        changes.take().into_iter().collect()
    }

    /// Goal: each subscriber gets each changed node once, whatever the others have taken. Method: two
    /// that take at different times, and one that is gone.
    #[tokio::test]
    async fn each_subscriber_is_given_each_changed_node_once() {
        let feed = ChangeFeed::default();
        let mut one = feed.subscribe();
        drop(feed.subscribe());
        feed.changed("b");
        let mut two = feed.subscribe();
        for node in ["a", "b", "a"] {
            feed.changed(node);
        }
        one.changed().await;
        assert_eq!(names(&mut one), ["a", "b"]);
        assert_eq!(names(&mut one), [""; 0]);
        feed.changed("c");
        two.changed().await;
        assert_eq!(names(&mut two), ["a", "b", "c"]);
        assert_eq!(names(&mut one), ["c"]);
        assert_eq!(feed.lock().len(), 2);
    }

    /// Goal: a change between a read and the wait is not missed, and a wait without a change does not end.
    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_with_a_change_and_not_without() {
        let feed = ChangeFeed::default();
        let mut changes = feed.subscribe();
        feed.changed("a");
        changes.changed().await;
        assert_eq!(names(&mut changes), ["a"]);
        let wait = std::time::Duration::from_secs(60);
        // The permit of the taken change is still set.
        assert!(tokio::time::timeout(wait, changes.changed()).await.is_err());
        feed.changed("a");
        assert!(tokio::time::timeout(wait, changes.changed()).await.is_ok());
    }
}
