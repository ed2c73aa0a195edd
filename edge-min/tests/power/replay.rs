//! A folder as a power cut may leave it: built from a recording, with any choice of unsynced
//! operations lost, torn or kept.
//!
//! The model is that of POSIX, which is stricter than ext4 with its one ordered journal:
//! - Bytes of a file are safe once the file was synced after they were written. Others are kept or
//!   lost block by block (4 KiB), or torn inside one at a sector (512 B), in no order. A lost block
//!   before a kept one reads as zeros.
//! - Names of a folder change in order, and are safe once that folder was synced: a
//!   prefix of the changes is kept, chosen for each folder by itself. So a name may exist without its
//!   bytes, bytes without their name, and a rename may be lost. A rename within one folder is never
//!   half done.
//! - Syncing a file says nothing about its name, syncing a folder nothing about its files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::record::Op;

const BLOCK: usize = 4096;
const SECTOR: usize = 512;

/// What a cut does to unsynced operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// All are kept: only the process was killed.
    None,
    /// All are lost.
    All,
    /// Names are kept, bytes are lost.
    Bytes,
    /// Bytes are kept, names are lost.
    Names,
    /// Chosen at random for each, from this seed.
    Random(u64),
}

#[derive(Clone)]
enum Change {
    Set(String, usize),
    Gone(String),
}

#[derive(Clone)]
enum Piece {
    Bytes(u64, Vec<u8>),
    Length(u64),
}

enum Node {
    /// Changes of names, each atomic, and how many are safe.
    Folder(Vec<Vec<Change>>, usize),
    /// Writes, and how many are safe.
    File(Vec<Piece>, usize),
}

/// The folder with its history; node 0 is the folder itself.
pub(crate) struct Disk {
    nodes: Vec<Node>,
}

impl Default for Disk {
    fn default() -> Self {
        Self {
            nodes: vec![Node::Folder(Vec::new(), 0)],
        }
    }
}

impl Disk {
    /// Applies the next operation.
    pub(crate) fn apply(&mut self, op: &Op) {
        match op {
            Op::Create(path) => self.add(path, Node::File(Vec::new(), 0)),
            Op::MakeDir(path) => self.add(path, Node::Folder(Vec::new(), 0)),
            Op::Write(path, offset, bytes) => {
                self.write(path, Piece::Bytes(*offset, bytes.clone()))
            }
            Op::Truncate(path, length) => self.write(path, Piece::Length(*length)),
            Op::Rename(from, to) => {
                let node = self.find(from).unwrap();
                let change = vec![Change::Gone(name(from)), Change::Set(name(to), node)];
                assert_eq!(from.parent(), to.parent(), "not modelled");
                self.change(from, change);
            }
            Op::Exchange(one, other) => {
                let (a, b) = (self.find(one).unwrap(), self.find(other).unwrap());
                assert_eq!(one.parent(), other.parent(), "not modelled");
                self.change(
                    one,
                    vec![Change::Set(name(one), b), Change::Set(name(other), a)],
                );
            }
            Op::Remove(path) => self.change(path, vec![Change::Gone(name(path))]),
            Op::Sync(path) => match self.find(path).map(|node| &mut self.nodes[node]) {
                Some(Node::Folder(changes, safe)) => *safe = changes.len(),
                Some(Node::File(pieces, safe)) => *safe = pieces.len(),
                // Already removed.
                None => {}
            },
            Op::Printed(_) => {}
        }
    }

    /// Writes the folder as it is after a power cut now.
    pub(crate) fn cut(&self, target: &Path, loss: Loss) {
        let mut die = match loss {
            Loss::Random(seed) => seed,
            _ => 0,
        };
        self.write_folder(0, target, loss, &mut die);
    }

    fn write_folder(&self, node: usize, target: &Path, loss: Loss, die: &mut u64) {
        let Node::Folder(changes, safe) = &self.nodes[node] else {
            unreachable!("a folder")
        };
        let kept = match loss {
            Loss::None | Loss::Bytes => changes.len(),
            Loss::All | Loss::Names => *safe,
            Loss::Random(_) => safe + throw(die, changes.len() - safe + 1),
        };
        fs::create_dir_all(target).unwrap();
        for (name, node) in names(&changes[..kept]) {
            let path = target.join(name);
            match &self.nodes[node] {
                Node::Folder(..) => self.write_folder(node, &path, loss, die),
                Node::File(pieces, safe) => {
                    fs::write(path, content(pieces, *safe, loss, die)).unwrap()
                }
            }
        }
    }

    fn add(&mut self, path: &Path, node: Node) {
        self.nodes.push(node);
        let number = self.nodes.len() - 1;
        self.change(path, vec![Change::Set(name(path), number)]);
    }

    fn change(&mut self, path: &Path, change: Vec<Change>) {
        let parent = self.find(path.parent().unwrap()).expect("its folder");
        match &mut self.nodes[parent] {
            Node::Folder(changes, _) => changes.push(change),
            Node::File(..) => panic!("{path:?}: in a file"),
        }
    }

    fn write(&mut self, path: &Path, piece: Piece) {
        // A file that is removed but still open has no effect.
        match self.find(path).map(|node| &mut self.nodes[node]) {
            Some(Node::File(pieces, _)) => pieces.push(piece),
            Some(Node::Folder(..)) => panic!("{path:?}: a folder"),
            None => {}
        }
    }

    fn find(&self, path: &Path) -> Option<usize> {
        let mut at = 0;
        for part in path {
            let Node::Folder(changes, _) = &self.nodes[at] else {
                return None;
            };
            at = *names(changes).get(part.to_str()?)?;
        }
        Some(at)
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

fn names(changes: &[Vec<Change>]) -> BTreeMap<String, usize> {
    let mut names = BTreeMap::new();
    for change in changes.iter().flatten() {
        match change {
            Change::Set(name, node) => drop(names.insert(name.clone(), *node)),
            Change::Gone(name) => drop(names.remove(name)),
        }
    }
    names
}

fn content(pieces: &[Piece], safe: usize, loss: Loss, die: &mut u64) -> Vec<u8> {
    let mut content = Vec::new();
    for (index, piece) in pieces.iter().enumerate() {
        let mut kept = |pieces: usize| match loss {
            _ if index < safe => pieces,
            Loss::None | Loss::Names => pieces,
            Loss::All | Loss::Bytes => 0,
            Loss::Random(_) => match throw(die, 4) {
                0 => throw(die, pieces + 1),
                1 => 0,
                _ => pieces,
            },
        };
        match piece {
            Piece::Length(length) => {
                if kept(1) == 1 {
                    content.resize(usize::try_from(*length).unwrap(), 0);
                }
            }
            Piece::Bytes(offset, bytes) => {
                let mut at = usize::try_from(*offset).unwrap();
                let mut rest = bytes.as_slice();
                while !rest.is_empty() {
                    let (block, more) = rest.split_at(rest.len().min(BLOCK - at % BLOCK));
                    let sectors = block.len().div_ceil(SECTOR);
                    let length = (kept(sectors) * SECTOR).min(block.len());
                    if length > 0 {
                        content.resize(content.len().max(at + length), 0);
                        content[at..at + length].copy_from_slice(&block[..length]);
                    }
                    (at, rest) = (at + block.len(), more);
                }
            }
        }
    }
    content
}

/// A number below `bound`, from a seed that can be replayed.
pub(crate) fn throw(seed: &mut u64, bound: usize) -> usize {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    usize::try_from((z ^ (z >> 31)) % bound.max(1) as u64).unwrap()
}

/// Every prefix of a recording under every kind of loss, `seeds` of them random: `check` gets
/// the folder and the output of the process until then.
pub(crate) fn every_cut(
    ops: &[Op],
    seeds: u64,
    mut check: impl FnMut(&Path, &[&str]) -> Result<(), String>,
) -> usize {
    let mut disk = Disk::default();
    let mut printed = Vec::new();
    let mut cuts = 0;
    for (at, op) in ops.iter().enumerate() {
        disk.apply(op);
        if let Op::Printed(text) = op {
            printed.push(text.as_str());
        }
        let losses = [Loss::None, Loss::All, Loss::Bytes, Loss::Names];
        let random = (0..seeds).map(|seed| Loss::Random((at as u64) << 16 | seed));
        for loss in losses.into_iter().chain(random) {
            let dir = scratch();
            disk.cut(dir.path(), loss);
            if let Err(reason) = check(dir.path(), &printed) {
                let last: Vec<String> = ops[at.saturating_sub(8)..=at].iter().map(shown).collect();
                panic!(
                    "cut after call {at}, lost {loss:?}: {reason}\nsaid {printed:?}\n{}",
                    last.join("\n")
                );
            }
            cuts += 1;
        }
    }
    cuts
}

fn shown(op: &Op) -> String {
    match op {
        Op::Write(path, offset, bytes) => {
            format!("Write({path:?}, {offset}, {} bytes)", bytes.len())
        }
        other => format!("{other:?}"),
    }
}

/// In memory where possible: nothing here needs a medium.
fn scratch() -> tempfile::TempDir {
    let memory = PathBuf::from("/dev/shm");
    let base = if memory.is_dir() {
        memory
    } else {
        std::env::temp_dir()
    };
    tempfile::tempdir_in(base).unwrap()
}
