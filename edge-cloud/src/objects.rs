//! The object store: desired objects, from any source. A source applies
//! its changes; the controller reads which objects have changed since its last read, so a change
//! costs work only for the objects that it touches.
//!
//! Bound: objects as many as the source admits (`manifest::FILES_MAX` files for the folder), and
//! the names of [`REMOVED_MAX`] removed ones for readers that are behind.

use std::collections::BTreeMap;

use crate::manifest::{Accepted, DocumentKind, Id, Manifests, Origin, Template};

/// Names of removed objects that are kept. A reader that is further behind reads everything again.
pub const REMOVED_MAX: usize = 10_000;

/// An object, and the place of its document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Where its source has it.
    pub origin: Origin,
    /// Accepted content of the document.
    pub content: Accepted,
}

/// All desired objects, and the revision of the last change of each.
#[derive(Debug, Default)]
pub struct ObjectStore {
    objects: BTreeMap<Id, Object>,
    /// Revision of the last change of an object; removed ones included.
    revisions: BTreeMap<Id, u64>,
    /// The reverse index, by revision.
    changed: BTreeMap<u64, Id>,
    /// Counts changes.
    revision: u64,
    /// Changes up to this revision may have been dropped.
    forgotten: u64,
}

impl ObjectStore {
    /// Adds or changes an object. `false`: it is unchanged.
    pub fn put(&mut self, id: &Id, object: &Object) -> bool {
        let before = self.objects.get(id);
        if before == Some(object) {
            return false;
        }
        // A new place of the document is not a change of desired state, but is stored.
        let moved = before.is_some_and(|before| before.content == object.content);
        self.objects.insert(id.clone(), object.clone());
        if !moved {
            self.note(id);
        }
        !moved
    }

    /// Removes an object. `false`: it did not exist.
    pub fn remove(&mut self, id: &Id) -> bool {
        let removed = self.objects.remove(id).is_some();
        if removed {
            self.note(id);
            self.drop_oldest_removed();
        }
        removed
    }

    /// Replaces the content by what a source has read. Returns how many objects changed.
    pub fn apply(&mut self, manifests: &Manifests) -> usize {
        let gone: Vec<Id> = self
            .objects
            .keys()
            .filter(|id| !manifests.objects.contains_key(*id))
            .cloned()
            .collect();
        let removed = gone.iter().filter(|id| self.remove(id)).count();
        let put = manifests.objects.iter().filter(|(id, (origin, content))| {
            let same = self.objects.get(*id);
            if same.is_some_and(|same| same.content == *content && same.origin == *origin) {
                return false;
            }
            let (origin, content) = (origin.clone(), content.clone());
            self.put(id, &Object { origin, content })
        });
        put.count() + removed
    }

    /// The object of this name.
    #[must_use]
    pub fn get(&self, id: &Id) -> Option<&Accepted> {
        self.objects.get(id).map(|object| &object.content)
    }

    /// Object with the place of its document.
    #[must_use]
    pub fn object(&self, id: &Id) -> Option<&Object> {
        self.objects.get(id)
    }

    /// The pod template of an owner of pods.
    #[must_use]
    pub fn template(&self, owner: &Id) -> Option<&Template> {
        match self.get(owner)? {
            Accepted::Workload(template) | Accepted::Replicated(template, _) => Some(template),
            Accepted::Config(_) | Accepted::Policy(_) => None,
        }
    }

    /// All objects of a kind, by namespace and name.
    pub fn of_kind(&self, kind: DocumentKind) -> impl Iterator<Item = (&Id, &Accepted)> {
        let first = Id {
            kind,
            namespace: String::new(),
            name: String::new(),
        };
        self.objects
            .range(first..)
            .take_while(move |(id, _)| id.kind == kind)
            .map(|(id, object)| (id, &object.content))
    }

    /// Every object.
    pub fn iter(&self) -> impl Iterator<Item = (&Id, &Object)> {
        self.objects.iter()
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Number of the last change.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// The objects that were added, changed or removed after this revision, each once; `None` when
    /// that is too long ago, and everything must be read again.
    #[must_use]
    pub fn changed_since(&self, revision: u64) -> Option<Vec<Id>> {
        (revision >= self.forgotten).then(|| {
            let after = revision.saturating_add(1);
            self.changed
                .range(after..)
                .map(|(_, id)| id.clone())
                .collect()
        })
    }

    fn note(&mut self, id: &Id) {
        self.revision += 1;
        if let Some(before) = self.revisions.insert(id.clone(), self.revision) {
            self.changed.remove(&before);
        }
        self.changed.insert(self.revision, id.clone());
    }

    /// Drops the names of the oldest removed objects beyond the bound.
    fn drop_oldest_removed(&mut self) {
        if self.revisions.len() <= self.objects.len() + REMOVED_MAX {
            return;
        }
        let gone = |(_, id): &(&u64, &Id)| !self.objects.contains_key(*id);
        if let Some((revision, id)) = self.changed.iter().find(gone) {
            let (revision, id) = (*revision, id.clone());
            self.forgotten = revision;
            self.changed.remove(&revision);
            self.revisions.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> Id {
        Id {
            kind: DocumentKind::ConfigMap,
            namespace: "default".to_owned(),
            name: name.to_owned(),
        }
    }

    fn object(byte: u8) -> Object {
        Object {
            origin: Origin::default(),
            content: Accepted::Config(vec![byte].into()),
        }
    }

    #[test]
    fn a_reader_sees_each_changed_object_once() {
        let mut store = ObjectStore::default();
        assert!(store.put(&id("a"), &object(1)));
        let seen = store.revision();
        assert!(store.put(&id("b"), &object(1)));
        assert!(store.put(&id("b"), &object(2)));
        assert!(!store.put(&id("b"), &object(2)));
        assert!(store.remove(&id("a")) && !store.remove(&id("a")));
        assert_eq!(store.changed_since(seen), Some(vec![id("b"), id("a")]));
        assert_eq!(store.changed_since(store.revision()), Some(Vec::new()));
    }

    #[test]
    fn an_object_that_only_moves_in_its_source_has_not_changed() {
        let mut store = ObjectStore::default();
        assert!(store.put(&id("a"), &object(1)));
        let origin = Origin {
            file: "other.yaml".to_owned(),
            document: 2,
        };
        let moved = Object {
            origin,
            ..object(1)
        };
        assert!(!store.put(&id("a"), &moved));
        assert_eq!(store.object(&id("a")), Some(&moved));
    }

    #[test]
    fn who_is_too_far_behind_reads_everything_anew() {
        let mut store = ObjectStore::default();
        for number in 0..=REMOVED_MAX {
            let id = id(&format!("n{number}"));
            assert!(store.put(&id, &object(1)));
            assert!(store.remove(&id));
        }
        assert_eq!(store.changed_since(0), None);
        assert_eq!(store.changed.len(), REMOVED_MAX);
        let last = store.revision() - 1;
        assert_eq!(store.changed_since(last).map(|ids| ids.len()), Some(1));
    }
}
