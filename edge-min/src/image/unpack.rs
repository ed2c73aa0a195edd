//! One layer's tar into a directory, as hostile input: every path is resolved inside that
//! directory ([`Root`]), links included, so nothing outside it can be reached. Whiteouts become
//! overlay's own form. Device nodes are omitted; set-user-id bits stay, because only root can
//! enter the folder of the layers, and runc starts every process with no_new_privs.
//!
//! Bound: [`ENTRIES_MAX`] entries and created directories, the caller's bytes, one entry's
//! extensions and 8 KiB of content in memory.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use edge_core::flash::Subsystem;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use tar::{Archive, EntryType};

use super::root::{self, Root};
use super::tar_entries::{TarEntries, TarEntry};
use crate::storage::medium;

/// Headers of a layer, plus directories created because the layer has no entry for them.
const ENTRIES_MAX: usize = 100_000;
/// Unpacked bytes of a layer: more would fill a board's flash.
pub const BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;
/// Bytes of a path, the kernel's own limit without the zero at its end.
const PATH_BYTES_MAX: usize = 4095;
/// Names of a path.
const DEPTH_MAX: usize = 256;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Unpacks at most `bytes_max` bytes of content into `target`; the error is human-readable. A directory that
/// the layer does not name itself has mode and owner from the topmost of the layers `below` that
/// has it, for overlayfs shows those of the topmost layer.
///
/// # Errors
/// What is wrong with the layer, and where; the caller must then remove `target`.
pub fn unpack(
    reader: impl Read,
    (target, below): (&Path, &[PathBuf]),
    bytes_max: u64,
) -> Result<(), String> {
    let root = Root::open(target).map_err(|error| error.to_string())?;
    unpack_into(root, below, reader, bytes_max)
}

/// As on a kernel without `openat2`: tests compare both.
///
/// # Errors
/// Those of [`unpack`].
pub fn unpack_walking(
    reader: impl Read,
    (target, below): (&Path, &[PathBuf]),
    bytes_max: u64,
) -> Result<(), String> {
    let root = Root::open(target).map_err(|error| error.to_string())?;
    unpack_into(root.walking(), below, reader, bytes_max)
}

fn unpack_into(
    root: Root,
    below: &[PathBuf],
    reader: impl Read,
    bytes_max: u64,
) -> Result<(), String> {
    let mut archive = Archive::new(reader);
    let entries = archive.entries().map_err(|error| error.to_string())?;
    let mut unpacking = Unpacking {
        root,
        below,
        directories_left: ENTRIES_MAX,
    };
    let mut bytes_left = bytes_max;
    for entry in TarEntries::new(entries, ENTRIES_MAX) {
        let mut entry = entry?;
        bytes_left = bytes_left.checked_sub(entry.size).ok_or_else(|| {
            let text = ["more than ", &bytes_max.to_string(), " bytes unpacked"];
            text.concat()
        })?;
        medium::count_file(Subsystem::Images, entry.size);
        unpacking.entry(&mut entry).map_err(|error| {
            let path = String::from_utf8_lossy(&entry.path);
            [&path, ": ", &error.to_string()].concat()
        })?;
    }
    Ok(())
}

struct Unpacking<'a> {
    root: Root,
    below: &'a [PathBuf],
    directories_left: usize,
}

fn relative(path: &[u8]) -> io::Result<PathBuf> {
    root::relative(
        Path::new(OsStr::from_bytes(path)),
        DEPTH_MAX,
        PATH_BYTES_MAX,
    )
}

impl Unpacking<'_> {
    fn entry(&mut self, entry: &mut TarEntry<'_, impl Read>) -> io::Result<()> {
        let path = relative(&entry.path)?;
        let Some(name) = path.file_name() else {
            return Ok(());
        };
        let parent = self.parent(&path)?;
        if name.as_bytes() == OPAQUE {
            return opaque(&parent);
        }
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            return whiteout(&parent, hidden);
        }
        match entry.kind {
            EntryType::Directory => make_dir(&parent, name)?,
            EntryType::Regular | EntryType::Continuous => {
                remove(&parent, name)?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let flags = flags | OFlags::NOFOLLOW;
                let file = rustix::fs::openat(&parent, name, flags, Mode::from(0o600))?;
                let written = io::copy(&mut entry.content, &mut File::from(file))?;
                if written != entry.size {
                    return Err(io::Error::other("the content is cut off"));
                }
            }
            EntryType::Symlink => {
                remove(&parent, name)?;
                rustix::fs::symlinkat(link_of(entry)?, &parent, name)?;
            }
            // Shares mode, owner and time with its target.
            EntryType::Link => return self.hard_link(entry, &parent, name),
            EntryType::Fifo => {
                remove(&parent, name)?;
                rustix::fs::mknodat(&parent, name, FileType::Fifo, Mode::from(0o600), 0)?;
            }
            // They do not belong into an image; runc creates those that a container needs.
            EntryType::Char | EntryType::Block => return Ok(()),
            _ => return Err(io::Error::other("an entry of an unknown kind")),
        }
        attributes(entry, &parent, name)
    }

    fn hard_link(
        &self,
        entry: &TarEntry<'_, impl Read>,
        parent: &OwnedFd,
        name: &OsStr,
    ) -> io::Result<()> {
        let target = relative(link_of(entry)?.as_bytes())?;
        let last = target
            .file_name()
            .ok_or_else(|| io::Error::other("a link to nothing"))?;
        let from = self
            .root
            .dir(target.parent().unwrap_or_else(|| Path::new("")))?;
        if let (Some(source), Some(there)) = (stat(&from, last)?, stat(parent, name)?)
            && (source.st_dev, source.st_ino) == (there.st_dev, there.st_ino)
        {
            return Ok(());
        }
        remove(parent, name)?;
        Ok(rustix::fs::linkat(
            &from,
            last,
            parent,
            name,
            AtFlags::empty(),
        )?)
    }

    /// The parent directory of `path`, created if the layer has no entry for it.
    fn parent(&mut self, path: &Path) -> io::Result<OwnedFd> {
        let parent = path.parent().unwrap_or_else(|| Path::new(""));
        if let Ok(dir) = self.root.dir(parent) {
            return Ok(dir);
        }
        let mut done = PathBuf::new();
        let mut at = self.root.dir(&done)?;
        for name in parent {
            // A link stays: the root resolves its target.
            let there = stat(&at, name)?;
            if there.is_none_or(|stat| is_whiteout(&stat)) {
                self.directories_left = self
                    .directories_left
                    .checked_sub(1)
                    .ok_or_else(|| io::Error::other("too many directories"))?;
                make_dir(&at, name)?;
                if there.is_none()
                    && let Some(like) = self.dir_below(&done, name)
                {
                    copy_attributes(&like, &at, name)?;
                }
            }
            done.push(name);
            at = self.root.dir(&done)?;
        }
        Ok(at)
    }

    /// The directory `name` in `parent` as the layers below show it. What cannot be looked at is not there:
    /// it only gives attributes.
    fn dir_below(&self, parent: &Path, name: &OsStr) -> Option<Stat> {
        let found = self.below.iter().rev().find_map(|layer| {
            let parent = Root::open(layer).and_then(|root| root.dir(parent)).ok()?;
            stat(&parent, name).ok()?
        });
        found.filter(is_dir)
    }
}

fn copy_attributes(like: &Stat, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(like.st_uid), Gid::from_raw(like.st_gid));
    let at = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(parent, name, Some(uid), Some(gid), at)?;
    let mode = Mode::from_raw_mode(like.st_mode);
    Ok(rustix::fs::chmodat(parent, name, mode, AtFlags::empty())?)
}

fn link_of<'r>(entry: &'r TarEntry<'_, impl Read>) -> io::Result<&'r OsStr> {
    match entry.link.as_slice() {
        [] => Err(io::Error::other("a link to nothing")),
        link => Ok(OsStr::from_bytes(link)),
    }
}

fn attributes(entry: &TarEntry<'_, impl Read>, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let at = AtFlags::SYMLINK_NOFOLLOW;
    let (uid, gid) = (owner(entry.uid)?, owner(entry.gid)?);
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::fs::chownat(parent, name, Some(uid), Some(gid), at)?;
    if entry.kind != EntryType::Symlink {
        // After the owner: chown clears set-user-id.
        let mode = Mode::from_raw_mode(entry.mode);
        rustix::fs::chmodat(parent, name, mode, AtFlags::empty())?;
    }
    let time = Timespec {
        tv_sec: entry.mtime,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    Ok(rustix::fs::utimensat(parent, name, &times, at)?)
}

/// The largest number means "unchanged" in the kernel.
fn owner(id: u64) -> io::Result<u32> {
    u32::try_from(id)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| io::Error::other("owner over 32 bits"))
}

fn stat(parent: &OwnedFd, name: &OsStr) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// No other device is ever created.
fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
}

fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// A directory that exists stays; anything else with that name is removed. A directory that replaces a
/// whiteout hides the content of the layers below.
fn make_dir(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let there = stat(parent, name)?;
    if there.as_ref().is_some_and(is_dir) {
        return Ok(());
    }
    remove(parent, name)?;
    rustix::fs::mkdirat(parent, name, Mode::from(0o755))?;
    if there.as_ref().is_some_and(is_whiteout) {
        opaque(&open_made_dir(parent, name)?)?;
    }
    Ok(())
}

fn open_made_dir(parent: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

/// Hides the content of the layers below in this directory.
fn opaque(dir: impl AsFd) -> io::Result<()> {
    let flags = XattrFlags::empty();
    Ok(rustix::fs::fsetxattr(
        dir,
        "trusted.overlay.opaque",
        b"y",
        flags,
    )?)
}

/// Hides a name of the layers below, but never an entry of this layer, whichever comes first.
fn whiteout(parent: &OwnedFd, hidden: &[u8]) -> io::Result<()> {
    if hidden.starts_with(WHITEOUT) {
        // Names reserved by aufs.
        return Ok(());
    }
    if matches!(hidden, b"" | b"." | b"..") {
        return Err(io::Error::other("a whiteout of nothing"));
    }
    let hidden = OsStr::from_bytes(hidden);
    match stat(parent, hidden)? {
        None => {
            let kind = FileType::CharacterDevice;
            Ok(rustix::fs::mknodat(parent, hidden, kind, Mode::empty(), 0)?)
        }
        Some(there) if is_dir(&there) => opaque(&open_made_dir(parent, hidden)?),
        Some(_) => Ok(()),
    }
}

/// Removes a file or link with that name; a directory only when it is empty.
fn remove(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
