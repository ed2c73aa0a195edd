//! Bytes as the tar of a layer: raw, with correct checksums, or as a program that combines hostile
//! entries. Nothing may be created or change outside the root, and the kernel's resolution of
//! paths and our own must do the same.
#![no_main]

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use edge_min::image::unpack;
use edge_min_fuzz::{entry, scratch, with_checksums};
use libfuzzer_sys::fuzz_target;

const NAMES: [&[u8]; 20] = [
    b"a",
    b"b",
    b"c",
    b".",
    b"..",
    b"/",
    b"outside",
    b"../outside",
    b"../../outside",
    b"root",
    b".wh.a",
    b".wh.b",
    b".wh.outside",
    b".wh..wh..opq",
    b".wh..",
    b".wh...",
    b"a/b",
    b"b/../a",
    b"/proc/self/cwd",
    b"",
];
const KINDS: [u8; 16] = *b"0000551122LKxgS3";
const KEYS: [&str; 6] = ["path", "linkpath", "size", "uid", "mtime", "GNU.sparse.size"];

fn name(first: u8, second: u8) -> Vec<u8> {
    let pick = |byte: u8| NAMES[usize::from(byte) % NAMES.len()];
    match second % 3 {
        0 => pick(first).to_vec(),
        _ => [pick(first), b"/", pick(second / 3)].concat(),
    }
}

/// Five bytes an entry.
fn program(words: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    for word in words.chunks_exact(5) {
        let &[kind, first, second, target, rest] = word else {
            continue;
        };
        let path = name(first, second);
        let link = name(target, rest);
        let kind = KINDS[usize::from(kind) % KINDS.len()];
        let body = match kind {
            b'L' | b'K' => [link.as_slice(), b"\0"].concat(),
            b'x' | b'g' => {
                let key = KEYS[usize::from(rest) % KEYS.len()].as_bytes();
                // One digit of length is wrong for all of these; two are correct.
                let text = [b" ".as_slice(), key, b"=", &link, b"\n"].concat();
                let length = text.len() + 2;
                [format!("{length:02}").as_bytes(), &text].concat()
            }
            b'0' => link.clone(),
            _ => Vec::new(),
        };
        let mode = u32::from(rest) << 4;
        tar.extend(entry(kind, &path, &link, mode, &body));
    }
    with_checksums(&tar)
}

/// Every path below `dir`, with all visible metadata.
fn list(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(at) = dirs.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            if metadata.is_dir() {
                dirs.push(path.clone());
            }
            let (mode, links, size) = (metadata.mode(), metadata.nlink(), metadata.size());
            let size = if metadata.is_dir() { 0 } else { size };
            let path = path.strip_prefix(dir).unwrap().display();
            lines.push(format!("{path} {mode:o} {links} {size} {}", metadata.rdev()));
        }
    }
    lines.sort();
    lines
}

type Unpack = fn(&[u8], &Path) -> Result<(), String>;

fn unpacked(dir: &Path, tar: &[u8], unpack: Unpack) -> (bool, Vec<String>) {
    let root = dir.join("root");
    edge_min::storage::tree::remove(&root).unwrap();
    fs::create_dir(&root).unwrap();
    let before = fs::metadata(dir.join("outside")).unwrap();
    let result = unpack(tar, &root);
    let after = fs::metadata(dir.join("outside")).unwrap();
    let seen = |metadata: &fs::Metadata| {
        let owner = (metadata.uid(), metadata.gid(), metadata.mode());
        (metadata.nlink(), metadata.mtime(), metadata.ctime_nsec(), owner)
    };
    assert_eq!(seen(&before), seen(&after), "`outside` was touched");
    assert_eq!(fs::read(dir.join("outside")).unwrap(), b"untouched");
    assert_eq!(fs::read_dir(dir).unwrap().count(), 2, "only `root` and `outside`");
    (result.is_ok(), list(&root))
}

fuzz_target!(|data: &[u8]| {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    let dir = DIR.get_or_init(|| {
        let dir = scratch("unpack");
        fs::write(dir.join("outside"), "untouched").unwrap();
        dir
    });
    let Some((mode, bytes)) = data.split_first() else {
        return;
    };
    let tar = match mode % 3 {
        0 => bytes.to_vec(),
        1 => with_checksums(bytes),
        _ => program(bytes),
    };
    let kernel = unpacked(dir, &tar, |tar, root| unpack::unpack(tar, (root, &[]), 1 << 20));
    let walk = unpacked(dir, &tar, |tar, root| unpack::unpack_walking(tar, (root, &[]), 1 << 20));
    assert_eq!(kernel, walk);
});
