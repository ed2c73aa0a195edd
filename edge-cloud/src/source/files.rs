//! Content of a folder of manifests, file by file. A file is read again only when it has changed, so
//! one changed file costs its own documents and one stat of each of the others.
//!
//! Of two documents of one object that of the first file counts. An object whose document is refused
//! stays unchanged: a mistake in a manifest must not stop a workload. The same applies to an object that
//! is missing in a file that cannot be read, or that has a refused document without a known identity.
//! Bounds are those of [`crate::manifest`].

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::SourceChanges;
use crate::manifest::{self, Id, Manifests, Origin, PROBLEMS_MAX, Problem, Severity};
use crate::objects::Object;

/// A file that was changed so shortly before it was read may change again within the same tick
/// of its file system's clock: it is read again next time.
const FRESH: Duration = Duration::from_secs(2);

/// Identifies a version of a file: inode, size, the modification time, and the time of the last
/// change of the inode, which no program can set. Tools that keep modification times (`rsync -t`, a
/// reproducible tar) would otherwise hide a change that keeps the size.
type Stamp = (u64, u64, SystemTime, (i64, i64));

#[derive(Debug, Default)]
struct ReadFile {
    /// `None`: it is read again next time.
    stamp: Option<Stamp>,
    manifests: Manifests,
}

/// State of all files at the last read.
#[derive(Debug, Default)]
pub(super) struct Files {
    files: BTreeMap<String, ReadFile>,
    /// Files with a valid document of an object.
    holders: BTreeMap<Id, BTreeSet<String>>,
    /// Objects with documents in several files.
    doubled: BTreeSet<Id>,
    /// Active objects without a valid document, and their former places.
    kept: BTreeMap<Id, Origin>,
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
    pub(super) fn read(&mut self, folder: &Path) -> SourceChanges {
        let (found, faults) = manifest::files(folder);
        let mut touched: BTreeSet<Id> = self.kept.keys().cloned().collect();
        let gone = self.files.keys().filter(|name| !found.contains_key(*name));
        for name in gone.cloned().collect::<Vec<_>>() {
            self.forget(&name, &mut touched);
        }
        for (name, path) in found {
            let stamp = stamp(&path);
            let known = self.files.get(&name).and_then(|file| file.stamp);
            if stamp.is_some() && stamp == known {
                continue;
            }
            self.forget(&name, &mut touched);
            let mut file = ReadFile {
                stamp: stamp.filter(|(_, _, changed, _)| !is_fresh(*changed)),
                manifests: Manifests::default(),
            };
            file.manifests.add_text(&name, manifest::text_of(&path));
            if file.manifests.is_unread(&name) {
                // Its error may disappear without a change of the stamp.
                file.stamp = None;
            }
            self.take(name, file, &mut touched);
        }
        SourceChanges {
            objects: self.settle(touched, !faults.is_empty()),
            problems: self.problems(faults),
            has_objects: !self.holders.is_empty(),
        }
    }

    /// Removes the objects of a file for now.
    fn forget(&mut self, name: &str, touched: &mut BTreeSet<Id>) {
        let Some(file) = self.files.remove(name) else {
            return;
        };
        for (id, (origin, _)) in file.manifests.objects {
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
    }

    fn take(&mut self, name: String, file: ReadFile, touched: &mut BTreeSet<Id>) {
        for id in file.manifests.objects.keys() {
            let holders = self.holders.entry(id.clone()).or_default();
            holders.insert(name.clone());
            touched.insert(id.clone());
        }
        self.files.insert(name, file);
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
                && (lost || self.is_unclear(&id, origin))
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

    /// Whether an object may be intended although it has no valid document.
    fn is_unclear(&self, id: &Id, origin: &Origin) -> bool {
        let stood = self.files.get(&origin.file);
        stood.is_some_and(|file| file.manifests.may_have(&origin.file, id))
            || self
                .files
                .values()
                .any(|file| file.manifests.is_refused(id))
    }

    fn problems(&self, faults: Vec<Problem>) -> Vec<Problem> {
        let of_files = self
            .files
            .values()
            .flat_map(|file| file.manifests.problems.iter().cloned());
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
        let kept = self.kept.iter().map(|(id, origin)| {
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

/// Whether a file may still be changing; also when the clock was set back.
fn is_fresh(changed: SystemTime) -> bool {
    SystemTime::now()
        .duration_since(changed)
        .map_or(true, |age| age < FRESH)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, FileTimes};

    use super::*;
    use crate::objects::ObjectStore;

    /// A folder, the state of its files, and the active objects.
    struct Place {
        folder: tempfile::TempDir,
        files: Files,
        store: ObjectStore,
        problems: Vec<Problem>,
    }

    impl Place {
        fn new() -> Self {
            Self {
                folder: tempfile::tempdir().unwrap(),
                files: Files::default(),
                store: ObjectStore::default(),
                problems: Vec::new(),
            }
        }

        /// Writes a file with an old modification time.
        fn write(&self, name: &str, text: &str) {
            let path = self.folder.path().join(name);
            fs::write(&path, text).unwrap();
            let file = File::options().append(true).open(&path).unwrap();
            let times = FileTimes::new().set_modified(SystemTime::now() - 2 * FRESH);
            file.set_times(times).unwrap();
        }

        /// Number of changes of one read.
        fn read(&mut self) -> usize {
            let changes = self.files.read(self.folder.path());
            for (id, object) in &changes.objects {
                match object {
                    Some(object) => self.store.put(id, object),
                    None => self.store.remove(id),
                };
            }
            self.problems = changes.problems;
            changes.objects.len()
        }

        fn objects(&self) -> Vec<(String, usize)> {
            let objects = self.store.iter().map(|(id, object)| {
                let manifest::Accepted::Config(payload) = &object.content else {
                    panic!("a ConfigMap");
                };
                (id.name.clone(), payload.len())
            });
            objects.collect()
        }
    }

    fn config(name: &str, value: &str) -> String {
        format!(
            "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{k: {value}}}\n"
        )
    }

    fn names(place: &Place) -> Vec<String> {
        place.objects().into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn only_the_file_that_has_changed_is_read() {
        let mut place = Place::new();
        place.write("a.yaml", &(config("a", "x") + &config("b", "x")));
        place.write("b.yaml", &config("c", "x"));
        assert_eq!(place.read(), 3);
        assert_eq!(place.read(), 0);
        place.write("b.yaml", &config("c", "long"));
        assert_eq!(place.read(), 1);
        fs::remove_file(place.folder.path().join("a.yaml")).unwrap();
        assert_eq!(place.read(), 2);
        assert_eq!(names(&place), ["c"]);
        // A file that was just changed is read again, because it may change within the same tick.
        let path = place.folder.path().join("b.yaml");
        fs::write(&path, config("c", "fresh")).unwrap();
        let file = File::options().append(true).open(&path).unwrap();
        // In the future, independent of the speed of this host.
        let times = FileTimes::new().set_modified(SystemTime::now() + 1_000 * FRESH);
        file.set_times(times).unwrap();
        assert_eq!((place.read(), place.read()), (1, 1));
    }

    /// Goal: a change that keeps inode, size and modification time is noticed.
    #[test]
    fn a_change_under_the_same_modification_time_is_read() {
        let mut place = Place::new();
        let time = FileTimes::new().set_modified(SystemTime::UNIX_EPOCH);
        let write = |place: &Place, value: &str| {
            let path = place.folder.path().join("a.yaml");
            fs::write(&path, config("a", value)).unwrap();
            File::options()
                .append(true)
                .open(&path)
                .unwrap()
                .set_times(time)
                .unwrap();
        };
        write(&place, "x");
        place.read();
        let before = place
            .store
            .iter()
            .map(|(_, object)| object.clone())
            .collect::<Vec<_>>();
        // The clock of the inode ticks every few milliseconds: write until it has changed.
        let changed = |place: &Place| stamp(&place.folder.path().join("a.yaml"));
        let stamp_before = changed(&place);
        while changed(&place) == stamp_before {
            write(&place, "y");
        }
        assert_eq!(place.read(), 1);
        let after = place
            .store
            .iter()
            .map(|(_, object)| object.clone())
            .collect::<Vec<_>>();
        assert_ne!(before, after);
    }

    /// Goal: of two files that lose an object in one read, the invalid one decides, whose document was
    /// active.
    #[test]
    fn an_object_of_a_broken_file_stays_although_its_double_goes() {
        let mut place = Place::new();
        place.write("a.yaml", &config("x", "one"));
        place.write("b.yaml", &config("x", "two"));
        place.read();
        place.write("a.yaml", "apiVersion: [");
        place.write("b.yaml", "");
        place.read();
        assert_eq!(names(&place), ["x"]);
    }

    #[test]
    fn a_slip_of_the_pen_keeps_the_last_good_version() {
        let mut place = Place::new();
        let good = config("a", "x") + &config("b", "x");
        place.write("a.yaml", &good);
        place.read();
        let before = place.objects();
        for wrong in [
            good.replacen("data: {k: x}", "data: [x]", 1),
            "apiVersion: [".to_owned(),
        ] {
            place.write("a.yaml", &wrong);
            place.read();
            assert_eq!(place.objects(), before);
            let kept = |one: &&Problem| one.reason.contains("last good version");
            assert!(
                place.problems.iter().any(|one| kept(&one)),
                "{:?}",
                place.problems
            );
            // It stays as long as the document is invalid.
            place.read();
            assert_eq!(place.objects(), before);
        }
        // Another file may be valid meanwhile.
        place.write("b.yaml", &config("b", "other"));
        place.read();
        assert_ne!(place.objects(), before);
        place.write("a.yaml", "");
        place.read();
        assert_eq!(names(&place), ["b"], "deleted is deleted");
        assert_eq!(place.problems, []);
    }

    /// Goal: a refused document keeps what it may mean and nothing else of its file. Method: a kind that
    /// is not read beside an object that gets another name, and a document without a sound name.
    #[test]
    fn a_refused_document_keeps_no_other_object_of_its_file() {
        let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n";
        let mut place = Place::new();
        place.write("app.yaml", &(service.to_owned() + &config("lane-v1", "x")));
        place.read();
        place.write("app.yaml", &(service.to_owned() + &config("lane-v2", "x")));
        place.read();
        assert_eq!(names(&place), ["lane-v2"]);
        let three = config("lane-v2", "x") + &config("a", "x") + &config("b", "x");
        place.write("app.yaml", &three);
        place.read();
        // One is broken, one is taken out.
        let broken = config("a", "[") + &config("b", "y");
        place.write("app.yaml", &broken);
        place.read();
        assert_eq!(names(&place), ["a", "b"]);
        let nameless = config("A", "x") + &config("b", "y");
        place.write("app.yaml", &nameless);
        place.read();
        assert_eq!(
            names(&place),
            ["a", "b"],
            "it may be the one that lost its name"
        );
    }

    #[test]
    fn of_two_documents_the_first_file_holds_until_it_is_gone() {
        let mut place = Place::new();
        place.write("b.yaml", &config("a", "long"));
        place.read();
        place.write("a.yaml", &config("a", "x"));
        place.read();
        let both = place.objects();
        assert!(
            place.problems[0]
                .reason
                .starts_with("stands in a.yaml document 1")
        );
        assert_eq!(place.problems[0].origin.file, "b.yaml");
        fs::remove_file(place.folder.path().join("a.yaml")).unwrap();
        place.read();
        assert_ne!(place.objects(), both);
        assert_eq!(names(&place), ["a"]);
        assert_eq!(place.problems, []);
    }

    /// Goal: objects of an earlier run are removed only if the folder is valid without them. Method: a folder
    /// that cannot be read, and then one without the object.
    #[test]
    fn objects_of_an_earlier_run_hold_until_the_folder_is_read() {
        let mut place = Place::new();
        place.write("a.yaml", &config("a", "x"));
        place.read();
        let origins = place
            .store
            .iter()
            .map(|(id, one)| (id.clone(), one.origin.clone()));
        place.files = Files::new(origins);
        let missing = place.folder.path().join("missing");
        let changes = place.files.read(&missing);
        assert!(changes.objects.is_empty() && !changes.has_objects);
        fs::remove_file(place.folder.path().join("a.yaml")).unwrap();
        assert_eq!(place.read(), 1);
        assert!(place.store.is_empty());
    }
}
