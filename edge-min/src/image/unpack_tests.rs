//! Tests of the unpacking, each with the kernel's path resolution and with our own.

use super::*;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::panic::Location;
use tar::{Builder, Header};

/// One header with its content; both may be invalid.
#[derive(Clone)]
struct Item {
    kind: EntryType,
    path: Vec<u8>,
    link: Vec<u8>,
    body: Vec<u8>,
    mode: u32,
}

fn item(kind: EntryType, path: &str, link: &str, body: &[u8]) -> Item {
    Item {
        kind,
        path: path.into(),
        link: link.into(),
        body: body.to_owned(),
        mode: 0o644,
    }
}

fn file(path: &str, body: &str) -> Item {
    item(EntryType::Regular, path, "", body.as_bytes())
}

/// Named with an underscore, because `dir` is a variable in most tests.
fn dir_(path: &str) -> Item {
    Item {
        mode: 0o755,
        ..item(EntryType::Directory, path, "", b"")
    }
}

fn link(path: &str, target: &str) -> Item {
    item(EntryType::Symlink, path, target, b"")
}

fn hard(path: &str, target: &str) -> Item {
    item(EntryType::Link, path, target, b"")
}

fn pax(pairs: &[(&str, &str)]) -> Item {
    let mut body = String::new();
    for (key, value) in pairs {
        let rest = format!(" {key}={value}\n");
        let mut length = rest.len();
        while rest.len() + length.to_string().len() != length {
            length = rest.len() + length.to_string().len();
        }
        body += &length.to_string();
        body += &rest;
    }
    item(EntryType::XHeader, "PaxHeaders", "", body.as_bytes())
}

fn header(item: &Item, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(item.kind);
    header.set_mode(item.mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    // Written by hand: the builder itself refuses hostile names.
    header.as_mut_bytes()[..item.path.len()].copy_from_slice(&item.path);
    header.as_mut_bytes()[157..157 + item.link.len()].copy_from_slice(&item.link);
    header.set_size(size);
    header.set_cksum();
    header
}

fn tar(items: &[Item]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for item in items {
        let header = header(item, item.body.len() as u64);
        builder.append(&header, item.body.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Unpacks in both ways and checks that both did the same, and nothing outside the root.
#[track_caller]
fn unpacked(items: &[Item]) -> (tempfile::TempDir, Result<(), String>) {
    let caller = Location::caller();
    let run = |walk: bool| {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("outside"), "untouched").unwrap();
        let path = dir.path().join("root");
        fs::create_dir(&path).unwrap();
        let tar = tar(items);
        let result = if walk {
            unpack_walking(tar.as_slice(), (&path, &[]), BYTES_MAX)
        } else {
            unpack(tar.as_slice(), (&path, &[]), BYTES_MAX)
        };
        let outside = fs::read_to_string(dir.path().join("outside")).unwrap();
        assert_eq!(outside, "untouched", "{caller}");
        let outside = fs::metadata(dir.path().join("outside")).unwrap();
        assert_eq!(outside.nlink(), 1, "{caller}");
        let beside = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(beside, 2, "{caller}: only `root` and `outside`");
        (dir, result)
    };
    let (dir, result) = run(false);
    let (other, walked) = run(true);
    assert_eq!(result.is_ok(), walked.is_ok(), "{caller}: {walked:?}");
    assert_eq!(list(dir.path()), list(other.path()), "{caller}");
    (dir, result)
}

/// Every path below `dir` with kind, mode and content.
fn list(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(at) = dirs.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let content = match metadata.file_type() {
                kind if kind.is_symlink() => fs::read_link(&path).unwrap().display().to_string(),
                kind if kind.is_file() => fs::read_to_string(&path).unwrap(),
                kind if kind.is_dir() => {
                    dirs.push(path.clone());
                    opaque_of(&path).to_string()
                }
                _ => String::new(),
            };
            let name = path.strip_prefix(dir).unwrap().display().to_string();
            lines.push(format!("{name} {:o} {content}", metadata.mode()));
        }
    }
    lines.sort();
    lines
}

fn opaque_of(dir: &Path) -> bool {
    let mut value = [0; 4];
    let found = rustix::fs::getxattr(dir, "trusted.overlay.opaque", &mut value);
    found.is_ok_and(|length| &value[..length] == b"y")
}

fn is_whiteout_at(path: &Path) -> bool {
    fs::symlink_metadata(path)
        .is_ok_and(|metadata| metadata.file_type().is_char_device() && metadata.rdev() == 0)
}

#[test]
fn a_plain_layer_unpacks() {
    let (dir, result) = unpacked(&[
        file("a/b/c", "hello"),
        link("a/l", "b/c"),
        hard("a/h", "a/b/c"),
    ]);
    result.unwrap();
    let root = dir.path().join("root");
    assert_eq!(fs::read_to_string(root.join("a/l")).unwrap(), "hello");
    assert_eq!(fs::metadata(root.join("a/h")).unwrap().nlink(), 2);
}

#[test]
fn paths_and_links_cannot_leave_the_root() {
    let (_dir, result) = unpacked(&[file("../outside", "x")]);
    assert!(result.is_err());
    let (_dir, result) = unpacked(&[file("a/../../outside", "x")]);
    assert!(result.is_err());
    let (_dir, result) = unpacked(&[hard("h", "../outside")]);
    assert!(result.is_err());
    // Through a link: it is resolved inside the root.
    for target in ["..", "../..", "/", "/..", "../../../../../.."] {
        let (dir, result) = unpacked(&[link("up", target), file("up/outside", "x")]);
        result.unwrap();
        let inside = fs::read_to_string(dir.path().join("root/outside")).unwrap();
        assert_eq!(inside, "x");
        let (_dir, result) = unpacked(&[link("up", target), hard("h", "up/outside")]);
        assert!(result.is_err(), "{target}");
        let (_dir, result) = unpacked(&[link("up", target), file("up/.wh.outside", "")]);
        result.unwrap();
    }
    let (_dir, result) = unpacked(&[link("f", "../outside"), file("f", "x")]);
    result.unwrap();
    // A second entry for a directory must not change what a link of that name points to.
    let (dir, result) = unpacked(&[link("d", ".."), dir_("d"), file("d/outside", "x")]);
    result.unwrap();
    assert!(dir.path().join("root/d/outside").exists());
    let (dir, result) = unpacked(&[file("/abs", "x")]);
    result.unwrap();
    assert!(dir.path().join("root/abs").exists());
    // A link is not a directory by itself, and a loop of links is an error.
    let (_dir, result) = unpacked(&[link("a", "b"), link("b", "a"), file("a/f", "x")]);
    assert!(result.is_err());
    let (_dir, result) = unpacked(&[file("f", ""), file("f/g", "x")]);
    assert!(result.is_err());
}

#[test]
fn extensions_are_bound_by_the_same_rules() {
    let long = "long/".repeat(40) + "name";
    let (dir, result) = unpacked(&[
        item(
            EntryType::GNULongName,
            "././@LongLink",
            "",
            (long.clone() + "\0").as_bytes(),
        ),
        file("short", "x"),
        pax(&[("path", "from-pax"), ("uid", "7"), ("mtime", "12.5")]),
        file("short", "y"),
        pax(&[("linkpath", "from-pax")]),
        link("l", ""),
    ]);
    result.unwrap();
    let root = dir.path().join("root");
    assert_eq!(fs::read_to_string(root.join(&long)).unwrap(), "x");
    assert_eq!(fs::read_to_string(root.join("l")).unwrap(), "y");
    let metadata = fs::metadata(root.join("from-pax")).unwrap();
    assert_eq!((metadata.uid(), metadata.mtime()), (7, 12));
    for bad in [
        vec![pax(&[("path", "../outside")]), file("f", "x")],
        vec![pax(&[("linkpath", "../outside")]), hard("h", "f")],
        vec![pax(&[("size", "3")]), file("f", "x")],
        vec![pax(&[("uid", "-1")]), file("f", "x")],
        vec![pax(&[("uid", "4294967295")]), file("f", "x")],
        vec![pax(&[("GNU.sparse.size", "3")]), file("f", "x")],
        vec![pax(&[("path", "a")]), pax(&[("path", "b")]), file("f", "x")],
        vec![pax(&[("path", "of nothing")])],
        vec![
            item(EntryType::XHeader, "p", "", b"99 path=x\n"),
            file("f", "x"),
        ],
        vec![
            item(EntryType::GNULongName, "L", "", b"../outside\0"),
            file("f", "x"),
        ],
        vec![
            item(EntryType::GNULongLink, "K", "", b"../outside\0"),
            hard("h", "f"),
        ],
        vec![item(EntryType::GNUSparse, "s", "", b"x")],
        vec![item(EntryType::new(b'Z'), "z", "", b"x")],
    ] {
        let (_dir, result) = unpacked(&bad);
        assert!(result.is_err());
    }
}

/// Goal: a claimed size costs no memory. Method: the tar has no end, and the reader
/// counts the bytes that are read.
#[test]
fn a_claimed_size_is_refused_before_it_is_read() {
    struct Counted<R>(R, u64);
    impl<R: Read> Read for Counted<R> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.0.read(buffer)?;
            self.1 += count as u64;
            Ok(count)
        }
    }
    const GIB_4: u64 = 4 << 30;
    for kind in [
        EntryType::GNULongName,
        EntryType::GNULongLink,
        EntryType::XHeader,
        EntryType::XGlobalHeader,
        EntryType::Regular,
        EntryType::Char,
    ] {
        let dir = tempfile::tempdir().unwrap();
        let header = header(&item(kind, "f", "", b""), GIB_4);
        let endless = header.as_bytes().chain(io::repeat(b'a'));
        let mut counted = Counted(endless, 0);
        let result = unpack(&mut counted, (dir.path(), &[]), BYTES_MAX);
        assert!(result.is_err(), "{kind:?}");
        assert!(counted.1 <= 1024, "{kind:?}: {} bytes read", counted.1);
    }
}

#[test]
fn caps_hold() {
    let dir = tempfile::tempdir().unwrap();
    let plain = tar(&[file("a", "123"), file("b", "456")]);
    assert!(unpack(plain.as_slice(), (dir.path(), &[]), 6).is_ok());
    let dir = tempfile::tempdir().unwrap();
    let refused = unpack(plain.as_slice(), (dir.path(), &[]), 5).unwrap_err();
    assert_eq!(refused, "more than 5 bytes unpacked");
    // One header repeated without end, as in an endless stream of tiny entries.
    struct Again(Vec<u8>, usize);
    impl Read for Again {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = (&self.0[self.1..]).read(buffer)?;
            self.1 = (self.1 + count) % self.0.len();
            Ok(count)
        }
    }
    for kind in [EntryType::XGlobalHeader, EntryType::Char] {
        let dir = tempfile::tempdir().unwrap();
        let header = header(&item(kind, "f", "", b""), 0);
        let again = Again(header.as_bytes().to_vec(), 0);
        let refused = unpack(again, (dir.path(), &[]), BYTES_MAX).unwrap_err();
        assert!(refused.contains("too many entries"), "{refused}");
    }
    let (_dir, result) = unpacked(&[pax(&[("path", &"d/".repeat(257))]), dir_("x")]);
    assert!(result.unwrap_err().contains("too deep"));
}

#[test]
fn of_two_entries_the_second_holds() {
    let (dir, result) = unpacked(&[
        file("f", "1"),
        hard("kept", "f"),
        file("f", "2"),
        file("to-link", "1"),
        link("to-link", "f"),
        link("to-dir", "f"),
        dir_("to-dir"),
        dir_("to-file"),
        file("to-file", "2"),
        hard("self", "f"),
        hard("self", "f"),
        hard("f", "f"),
    ]);
    result.unwrap();
    let root = dir.path().join("root");
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap();
    assert_eq!((read("f"), read("kept")), ("2".into(), "1".into()));
    assert_eq!((read("to-link"), read("self")), ("2".into(), "2".into()));
    assert!(root.join("to-dir").is_dir());
    assert_eq!(read("to-file"), "2");
    let (_dir, result) = unpacked(&[file("d/f", "1"), file("d", "2")]);
    assert!(result.unwrap_err().starts_with("d: "));
}

#[test]
fn devices_stay_out_and_set_user_id_stays() {
    let set_user_id = Item {
        mode: 0o4755,
        ..file("su", "x")
    };
    let (dir, result) = unpacked(&[
        item(EntryType::Char, "char", "", b""),
        item(EntryType::Block, "block", "", b""),
        item(EntryType::Fifo, "fifo", "", b""),
        set_user_id,
    ]);
    result.unwrap();
    let root = dir.path().join("root");
    assert_eq!(fs::read_dir(&root).unwrap().count(), 2);
    let fifo = fs::symlink_metadata(root.join("fifo")).unwrap();
    assert!(fifo.file_type().is_fifo());
    assert_eq!(
        fs::metadata(root.join("su")).unwrap().mode() & 0o7777,
        0o4755
    );
}

#[test]
#[ignore = "needs root: whiteouts are device nodes"]
fn whiteouts_take_overlay_s_form() {
    let (dir, result) = unpacked(&[file("d/.wh.gone", ""), file("d/.wh..wh..opq", "")]);
    result.unwrap();
    assert!(is_whiteout_at(&dir.path().join("root/d/gone")));
    assert!(opaque_of(&dir.path().join("root/d")));
    for bad in [".wh.", ".wh..", ".wh..."] {
        let (_dir, result) = unpacked(&[file(bad, "")]);
        assert!(result.is_err(), "{bad}");
    }
    // A hard link and a directory of that name are whiteouts too, and never files.
    let (dir, result) = unpacked(&[file("f", ""), hard(".wh.a", "f"), dir_(".wh.b")]);
    result.unwrap();
    assert!(is_whiteout_at(&dir.path().join("root/a")));
    assert!(is_whiteout_at(&dir.path().join("root/b")));
    let (dir, result) = unpacked(&[file(".wh..wh.plnk", ""), file(".wh..wh.aufs", "")]);
    result.unwrap();
    assert_eq!(fs::read_dir(dir.path().join("root")).unwrap().count(), 0);
}

/// Goal: a whiteout hides the layers below and nothing of its own layer. Method: each order of a
/// whiteout and an entry of its name.
#[test]
#[ignore = "needs root: whiteouts are device nodes"]
fn a_whiteout_hides_nothing_of_its_own_layer() {
    for order in [
        [file("f", "new"), file(".wh.f", "")],
        [file(".wh.f", ""), file("f", "new")],
    ] {
        let (dir, result) = unpacked(&order);
        result.unwrap();
        let text = fs::read_to_string(dir.path().join("root/f")).unwrap();
        assert_eq!(text, "new");
    }
    for order in [
        [file("d/f", "new"), file(".wh.d", "")],
        [file(".wh.d", ""), file("d/f", "new")],
        [file(".wh.d", ""), dir_("d")],
        [dir_("d"), file(".wh.d", "")],
    ] {
        let (dir, result) = unpacked(&order);
        result.unwrap();
        let made = dir.path().join("root/d");
        assert!(made.is_dir() && opaque_of(&made));
    }
}

#[test]
fn truncated_and_foreign_bytes_are_errors_not_panics() {
    let whole = tar(&[file("a", "hello"), file("b", "world")]);
    for end in (1..1024).step_by(37) {
        let dir = tempfile::tempdir().unwrap();
        assert!(
            unpack(&whole[..end], (dir.path(), &[]), BYTES_MAX).is_err() || end % 512 == 0,
            "{end}"
        );
    }
    let dir = tempfile::tempdir().unwrap();
    assert!(unpack([0x55; 1024].as_slice(), (dir.path(), &[]), BYTES_MAX).is_err());
}

/// Goal: a directory that a layer does not name keeps mode and owner of the layers below it. Method: a
/// layer below with such directories, and one above that only names files in them.
#[test]
#[ignore = "needs root: chown"]
fn a_directory_that_a_layer_does_not_name_is_that_of_the_layers_below() {
    let dir = tempfile::tempdir().unwrap();
    let made = |name: &str, items: &[Item], below: &[PathBuf]| {
        let path = dir.path().join(name);
        fs::create_dir(&path).unwrap();
        unpack(tar(items).as_slice(), (&path, below), BYTES_MAX).unwrap();
        path
    };
    let with_mode = |path: &str, mode: u32| Item { mode, ..dir_(path) };
    let base = [
        with_mode("tmp", 0o1777),
        with_mode("srv", 0o700),
        with_mode("srv/data", 0o2770),
        with_mode("gone", 0o700),
    ];
    let base = made("base", &base, &[]);
    rustix::fs::chown(
        base.join("srv/data").as_path(),
        Some(Uid::from_raw(7)),
        Some(Gid::from_raw(8)),
    )
    .unwrap();
    let middle = [file("tmp/x", ""), file("srv/y", ""), file(".wh.gone", "")];
    let middle = made("middle", &middle, std::slice::from_ref(&base));
    let top = [
        file("tmp/z", ""),
        file("srv/data/new/z", ""),
        file("gone/z", ""),
    ];
    let top = made("top", &top, &[base, middle.clone()]);
    let seen = |layer: &Path, path: &str| {
        let metadata = fs::metadata(layer.join(path)).unwrap();
        (metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
    };
    assert_eq!(seen(&middle, "tmp"), (0o1777, 0, 0));
    assert_eq!(seen(&top, "tmp"), (0o1777, 0, 0));
    assert_eq!(seen(&top, "srv"), (0o700, 0, 0));
    assert_eq!(seen(&top, "srv/data"), (0o2770, 7, 8));
    // As the kernel has it below a set-group-id directory.
    assert_eq!(seen(&top, "srv/data/new"), (0o2755, 0, 8));
    assert_eq!(seen(&top, "gone"), (0o755, 0, 0), "hidden by a whiteout");
}
