use std::fs::{self, File, FileTimes};

use super::*;
use crate::objects::ObjectStore;

/// A folder, its files as they were read, and the objects in force. The time goes on by [`Self::wait`].
struct Place {
    folder: tempfile::TempDir,
    files: Files,
    store: ObjectStore,
    problems: Vec<Problem>,
    activity: Activity,
    now: Now,
}

impl Place {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            files: Files::default(),
            store: ObjectStore::default(),
            problems: Vec::new(),
            activity: Activity::default(),
            // Ahead of the file system's clock, so that this host may be as slow as it likes.
            now: Now {
                at: Instant::now(),
                wall: SystemTime::now() + 1_000 * FRESH,
            },
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Renames a file into its place.
    fn write(&self, name: &str, text: &str) {
        let staged = self.path(".staged");
        fs::write(&staged, text).unwrap();
        fs::rename(staged, self.path(name)).unwrap();
        self.activity.note(Path::new(name), Writing::Renamed);
    }

    /// Writes a file in place, and leaves it like that.
    fn write_in_place(&self, name: &str, text: &str, writing: Writing) {
        fs::write(self.path(name), text).unwrap();
        self.activity.note(Path::new(name), writing);
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
        self.activity.note(Path::new(name), Writing::Unknown);
    }

    fn wait(&mut self, time: Duration) {
        self.now.at += time;
        self.now.wall += time;
    }

    /// How many changes a look gives.
    fn read(&mut self) -> usize {
        let changes = self
            .files
            .read(self.folder.path(), self.now, &self.activity);
        for (id, object) in &changes.objects {
            match object {
                Some(object) => self.store.put(id, object),
                None => self.store.remove(id),
            };
        }
        self.problems = changes.problems;
        changes.objects.len()
    }

    /// A look, and another one when all files were quiet for long enough.
    fn rest(&mut self) {
        self.read();
        self.wait(QUIET);
        self.read();
    }

    /// The same folder after a restart.
    fn restart(&mut self) {
        let origins = self.store.iter();
        self.files = Files::new(origins.map(|(id, one)| (id.clone(), one.origin.clone())));
        self.activity = Activity::default();
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
    assert_eq!((place.read(), place.files.reads), (3, 2));
    assert_eq!((place.read(), place.files.reads), (0, 2));
    place.write("b.yaml", &config("c", "long"));
    assert_eq!((place.read(), place.files.reads), (1, 3));
    place.remove("a.yaml");
    place.rest();
    assert_eq!(names(&place), ["c"]);
    // A file that was changed just now is read again, for it may change within the same tick.
    place.now.wall = SystemTime::UNIX_EPOCH;
    place.write("b.yaml", &config("c", "fresh"));
    let before = place.files.reads;
    place.read();
    place.read();
    assert_eq!(place.files.reads, before + 2);
}

/// Goal: a change that keeps inode, size and modification time is seen.
#[test]
fn a_change_under_the_same_modification_time_is_read() {
    let mut place = Place::new();
    let time = FileTimes::new().set_modified(SystemTime::UNIX_EPOCH);
    let write = |place: &Place, value: &str| {
        let path = place.path("a.yaml");
        fs::write(&path, config("a", value)).unwrap();
        let file = File::options().append(true).open(&path).unwrap();
        file.set_times(time).unwrap();
    };
    write(&place, "x");
    place.rest();
    let all = |place: &Place| {
        let objects = place.store.iter().map(|(_, object)| object.clone());
        objects.collect::<Vec<_>>()
    };
    let before = all(&place);
    // The clock of the inode ticks every few milliseconds: write until it has.
    let changed = |place: &Place| stamp(&place.path("a.yaml"));
    let stamp_before = changed(&place);
    while changed(&place) == stamp_before {
        write(&place, "y");
    }
    place.rest();
    assert_ne!(before, all(&place));
}

/// Goal: of two files that lose an object in one look, the broken one decides, whose document was in force.
#[test]
fn an_object_of_a_broken_file_stays_although_its_double_goes() {
    let mut place = Place::new();
    place.write("a.yaml", &config("x", "one"));
    place.write("b.yaml", &config("x", "two"));
    place.read();
    place.write("a.yaml", "apiVersion: [");
    place.write("b.yaml", "");
    place.rest();
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
        // It holds for as long as the document is wrong.
        place.rest();
        assert_eq!(place.objects(), before);
    }
    // Another file may be sound meanwhile.
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
    place.remove("a.yaml");
    place.read();
    assert_ne!(place.objects(), both);
    assert_eq!(names(&place), ["a"]);
    assert_eq!(place.problems, []);
}

/// Goal: objects of an earlier run end only if the folder is sound without them. Method: a folder
/// that cannot be read, and then one without the object.
#[test]
fn objects_of_an_earlier_run_hold_until_the_folder_is_read() {
    let mut place = Place::new();
    place.write("a.yaml", &config("a", "x"));
    place.read();
    place.restart();
    let missing = place.path("missing");
    let changes = place.files.read(&missing, place.now, &place.activity);
    assert!(changes.objects.is_empty() && !changes.has_objects);
    place.wait(2 * QUIET);
    place.remove("a.yaml");
    assert_eq!(place.read(), 0);
    place.wait(QUIET);
    assert_eq!(place.read(), 1);
    assert!(place.store.is_empty());
}

/// Goal: a file that could not be read is read again, although it has not changed. Method: one whose text is no
/// text, for what an error of the medium would be.
#[test]
fn a_file_that_could_not_be_read_is_read_again() {
    let mut place = Place::new();
    fs::write(place.path("a.yaml"), b"\xff").unwrap();
    for reads in 1..=3 {
        place.read();
        assert_eq!(place.files.reads, reads);
    }
}

/// Goal: a caller can tell that the folder was not read completely. Method: a file that was written shortly
/// before a restart.
#[test]
fn a_file_that_may_be_incomplete_makes_the_read_partial() {
    let mut place = Place::new();
    place.write("a.yaml", &config("a", "x"));
    place.read();
    place.restart();
    let file = fs::metadata(place.path("a.yaml")).unwrap();
    place.now.wall = file.modified().unwrap();
    let path = place.path("");
    let changes = place.files.read(&path, place.now, &place.activity);
    assert!(changes.is_partial && !changes.has_objects);
    place.wait(QUIET);
    let changes = place.files.read(&path, place.now, &place.activity);
    assert!(!changes.is_partial && changes.has_objects);
}

/// Goal: no state of a file that is written in place ends or changes anything before it is whole. Method:
/// the ways of a shell, of an upload that stalls and of one that is cut off, step by step.
#[test]
fn half_a_file_ends_nothing_and_replaces_nothing() {
    let mut place = Place::new();
    let good = config("a", "x") + &config("b", "x");
    place.write("a.yaml", &good);
    place.read();
    let before = place.objects();
    // `helm template > a.yaml`: empty, for as long as the generator runs.
    place.write_in_place("a.yaml", "", Writing::Open);
    for _ in 0..3 {
        place.rest();
        assert_eq!(place.objects(), before);
    }
    let open = |one: &Problem| one.reason.starts_with("is open for writing");
    assert!(place.problems.iter().any(open), "{:?}", place.problems);
    // It stalls between two documents, and in the middle of one that parses so far.
    for half in [
        config("a", "x"),
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n".to_owned(),
    ] {
        place.write_in_place("a.yaml", &half, Writing::Open);
        place.rest();
        assert_eq!(place.objects(), before);
        // Cut off there: what was written last is taken when nobody goes on.
        place.write_in_place("a.yaml", &half, Writing::Closed);
        place.read();
        assert_eq!(
            (place.objects(), &place.problems),
            (before.clone(), &vec![])
        );
        place.wait(QUIET - Duration::from_millis(1));
        place.read();
        assert_eq!(place.objects(), before);
        place.write_in_place("a.yaml", &good, Writing::Closed);
        place.rest();
        assert_eq!(place.objects(), before);
    }
    // The news that it was closed was lost.
    place.write_in_place("a.yaml", &config("a", "x"), Writing::Open);
    place.read();
    place.wait(OPEN_MAX - QUIET);
    place.rest();
    assert_eq!(names(&place), ["a"]);
}

/// Goal: a whole file counts as soon as that is known. Method: an editor that writes in place changes,
/// adds and takes out; a rename does; a writer of which nothing is known.
#[test]
fn a_whole_file_counts_at_once_but_for_what_it_lacks() {
    let mut place = Place::new();
    place.write("a.yaml", &(config("a", "x") + &config("b", "x")));
    place.read();
    let edited = config("a", "other") + &config("c", "x");
    place.write_in_place("a.yaml", &edited, Writing::Closed);
    place.read();
    assert_eq!(names(&place), ["a", "b", "c"]);
    let changed = place.objects();
    assert_eq!(place.problems, [], "it waits, and nothing is wrong");
    assert_eq!(place.files.next(place.now), Some(place.now.at + QUIET));
    place.wait(QUIET);
    place.read();
    assert_eq!(names(&place), ["a", "c"]);
    assert_eq!(place.objects()[0], changed[0]);
    assert_eq!(place.files.next(place.now), None);
    place.write("a.yaml", &config("c", "x"));
    place.read();
    assert_eq!(names(&place), ["c"]);
    // A file system without events: nothing of it is known before it was quiet.
    place.write_in_place("a.yaml", &config("d", "x"), Writing::Unknown);
    place.read();
    assert_eq!(names(&place), ["c"]);
    place.wait(QUIET);
    place.read();
    assert_eq!(names(&place), ["d"]);
    // Nothing is lost by a new file, unless it is open.
    place.write_in_place("b.yaml", &config("e", "x"), Writing::Open);
    place.read();
    assert_eq!(names(&place), ["d"]);
    place.write_in_place("b.yaml", &config("e", "x"), Writing::Closed);
    place.read();
    assert_eq!(names(&place), ["d", "e"]);
    // Who only touches a file does not write it.
    place.write_in_place("b.yaml", &config("e", "x"), Writing::Unknown);
    place.read();
    assert_eq!(place.files.next(place.now), None);
}

/// Goal: a file that is replaced by removing it first ends nothing, nor does a move into another file.
#[test]
fn a_file_that_comes_back_soon_was_not_gone() {
    let mut place = Place::new();
    place.write("a.yaml", &config("a", "x"));
    place.read();
    place.remove("a.yaml");
    place.read();
    place.wait(QUIET - Duration::from_millis(1));
    place.read();
    assert_eq!(
        (names(&place), place.problems.len()),
        (vec!["a".to_owned()], 0)
    );
    place.write_in_place("a.yaml", &config("a", "other"), Writing::Closed);
    place.rest();
    assert_eq!(names(&place), ["a"]);
    let before = place.objects();
    fs::rename(place.path("a.yaml"), place.path("b.yaml")).unwrap();
    place.activity.note(Path::new("b.yaml"), Writing::Renamed);
    place.read();
    assert_eq!((place.objects(), &place.problems), (before, &vec![]));
    place.rest();
    assert_eq!(names(&place), ["a"]);
    place.remove("b.yaml");
    place.rest();
    assert_eq!(names(&place), [""; 0]);
}

/// Goal: a file that is being written when edge-cloud starts is not taken for whole; one that rests is.
#[test]
fn at_a_start_only_a_file_that_rests_is_whole() {
    let mut place = Place::new();
    place.write("a.yaml", &(config("a", "x") + &config("b", "x")));
    place.read();
    place.write("a.yaml", &config("a", "x"));
    place.restart();
    // It was written just now.
    place.now.wall = SystemTime::UNIX_EPOCH;
    place.read();
    assert_eq!(names(&place), ["a", "b"]);
    place.wait(QUIET);
    place.read();
    assert_eq!(names(&place), ["a"]);
    place.write("a.yaml", &config("b", "x"));
    place.restart();
    place.now.wall = SystemTime::now() + 1_000 * QUIET;
    place.read();
    assert_eq!(names(&place), ["b"]);
}
