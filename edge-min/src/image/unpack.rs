//! One layer's tar into a directory, as hostile input: every path is resolved by the kernel
//! inside that directory (`openat2` with `RESOLVE_IN_ROOT`), links included, so nothing outside
//! it can be reached. Whiteouts become overlay's own form. Device nodes are left out.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use tar::{Archive, Entry, EntryType};

/// Entries of a layer.
const ENTRIES_MAX: usize = 100_000;
/// Unpacked bytes of a layer: more would fill a board's flash.
const BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;
/// Bytes of a path, the kernel's own limit.
const PATH_BYTES_MAX: usize = 4096;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Unpacks; the error is for a person.
pub(super) fn unpack(reader: impl Read, target: &Path) -> Result<(), String> {
    let root = open_dir(target)?;
    let mut archive = Archive::new(reader);
    let mut bytes_left = BYTES_MAX;
    let entries = archive.entries().map_err(|error| error.to_string())?;
    for (index, entry) in entries.enumerate() {
        if index >= ENTRIES_MAX {
            return Err("more than 100000 entries".to_owned());
        }
        let mut entry = entry.map_err(|error| ["tar: ", &error.to_string()].concat())?;
        bytes_left = bytes_left
            .checked_sub(entry.size())
            .ok_or_else(|| "more than 2 GiB unpacked".to_owned())?;
        let path = entry
            .path()
            .map_err(|error| error.to_string())?
            .into_owned();
        unpack_entry(root.as_fd(), &mut entry, &path)
            .map_err(|error| [&path.to_string_lossy(), ": ", &error.to_string()].concat())?;
    }
    Ok(())
}

fn open_dir(path: &Path) -> Result<OwnedFd, String> {
    File::open(path)
        .map(OwnedFd::from)
        .map_err(|error| error.to_string())
}

/// The path without `.`, refused with `..`; an absolute one counts from the root of the layer.
fn relative(path: &Path) -> io::Result<PathBuf> {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(io::Error::other("`..` in a path"));
            }
        }
    }
    if plain.as_os_str().len() > PATH_BYTES_MAX {
        return Err(io::Error::other("path over 4096 bytes"));
    }
    Ok(plain)
}

/// Opens a directory below the root, following links only inside it.
fn open_in(root: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(
        root,
        path,
        flags,
        Mode::empty(),
        resolve,
    )?)
}

/// The parent directory of `path`, made where a layer does not name it.
fn open_parent(root: impl AsFd + Copy, path: &Path) -> io::Result<OwnedFd> {
    let mut done = PathBuf::new();
    let mut at = open_in(root, &done)?;
    for component in path.parent().unwrap_or_else(|| Path::new("")).components() {
        match rustix::fs::mkdirat(&at, component.as_os_str(), Mode::from(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        done.push(component);
        at = open_in(root, &done)?;
    }
    Ok(at)
}

fn unpack_entry(
    root: impl AsFd + Copy,
    entry: &mut Entry<'_, impl Read>,
    path: &Path,
) -> io::Result<()> {
    let path = relative(path)?;
    let Some(name) = path.file_name() else {
        return Ok(());
    };
    let parent = open_parent(root, &path)?;
    if name.as_bytes() == OPAQUE {
        return Ok(rustix::fs::fsetxattr(
            &parent,
            "trusted.overlay.opaque",
            b"y",
            XattrFlags::empty(),
        )?);
    }
    if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
        if hidden.is_empty() || hidden == b"." || hidden == b".." || hidden.contains(&b'/') {
            return Err(io::Error::other("a whiteout of nothing"));
        }
        let hidden = std::ffi::OsStr::from_bytes(hidden);
        remove(&parent, hidden)?;
        let mode = Mode::empty();
        return Ok(rustix::fs::mknodat(
            &parent,
            hidden,
            FileType::CharacterDevice,
            mode,
            0,
        )?);
    }
    let header = entry.header();
    let mode = Mode::from_raw_mode(header.mode()? & 0o7777);
    let (uid, gid) = (owner(header.uid()?)?, owner(header.gid()?)?);
    match header.entry_type() {
        EntryType::Directory => make_dir(&parent, name)?,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            remove(&parent, name)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file =
                rustix::fs::openat(&parent, name, flags | OFlags::NOFOLLOW, Mode::from(0o600))?;
            io::copy(entry, &mut File::from(file))?;
        }
        EntryType::Symlink => {
            remove(&parent, name)?;
            let target = entry
                .link_name()?
                .ok_or_else(|| io::Error::other("a link to nothing"))?;
            rustix::fs::symlinkat(target.as_ref(), &parent, name)?;
        }
        EntryType::Link => {
            let target = entry
                .link_name()?
                .ok_or_else(|| io::Error::other("a link to nothing"))?;
            let target = relative(&target)?;
            let last = target
                .file_name()
                .ok_or_else(|| io::Error::other("a link to nothing"))?;
            let from = open_in(root, target.parent().unwrap_or_else(|| Path::new("")))?;
            remove(&parent, name)?;
            // Shares mode, owner and time with its target.
            return Ok(rustix::fs::linkat(
                &from,
                last,
                &parent,
                name,
                AtFlags::empty(),
            )?);
        }
        EntryType::Fifo => {
            remove(&parent, name)?;
            rustix::fs::mknodat(&parent, name, FileType::Fifo, Mode::from(0o600), 0)?;
        }
        // Device nodes have no place in an image; runc makes those that a container needs.
        _ => return Ok(()),
    }
    let link = header_is_link(entry);
    let at = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(
        &parent,
        name,
        Some(Uid::from_raw(uid)),
        Some(Gid::from_raw(gid)),
        at,
    )?;
    if !link {
        // After the owner: chown clears set-user-id.
        rustix::fs::chmodat(&parent, name, mode, AtFlags::empty())?;
    }
    let seconds = i64::try_from(entry.header().mtime().unwrap_or(0)).unwrap_or(0);
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    Ok(rustix::fs::utimensat(&parent, name, &times, at)?)
}

fn header_is_link(entry: &Entry<'_, impl Read>) -> bool {
    entry.header().entry_type() == EntryType::Symlink
}

fn owner(id: u64) -> io::Result<u32> {
    u32::try_from(id).map_err(|_| io::Error::other("owner over 32 bits"))
}

/// A directory that exists stays; anything else of that name goes.
fn make_dir(parent: impl AsFd, name: &std::ffi::OsStr) -> io::Result<()> {
    match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => return Ok(()),
        Ok(_) => remove(&parent, name)?,
        Err(_) => {}
    }
    Ok(rustix::fs::mkdirat(&parent, name, Mode::from(0o755))?)
}

/// Removes a file or link of that name; a directory that is in the way only when empty.
fn remove(parent: impl AsFd, name: &std::ffi::OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(rustix::io::Errno::ISDIR) => {
            Ok(rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)?)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    use tar::{Builder, Header};

    enum Item<'a> {
        File(&'a str, &'a str),
        Link(&'a str, &'a str),
        Hard(&'a str, &'a str),
    }

    fn tar(items: &[Item<'_>]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for item in items {
            let mut header = Header::new_ustar();
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(1);
            let (path, body) = match item {
                Item::File(path, body) => {
                    header.set_entry_type(EntryType::Regular);
                    (path, *body)
                }
                Item::Link(path, target) | Item::Hard(path, target) => {
                    let hard = matches!(item, Item::Hard(..));
                    header.set_entry_type(if hard {
                        EntryType::Link
                    } else {
                        EntryType::Symlink
                    });
                    header.as_mut_bytes()[157..157 + target.len()]
                        .copy_from_slice(target.as_bytes());
                    (path, "")
                }
            };
            // Written by hand: the builder itself refuses hostile names.
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            header.set_size(body.len() as u64);
            header.set_cksum();
            builder.append(&header, body.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn unpacked(items: &[Item<'_>]) -> (tempfile::TempDir, Result<(), String>) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("outside"), "untouched").unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        let result = unpack(tar(items).as_slice(), &root);
        assert_eq!(
            fs::read_to_string(dir.path().join("outside")).unwrap(),
            "untouched"
        );
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            2,
            "only `root` and `outside`"
        );
        (dir, result)
    }

    #[test]
    fn a_plain_layer_unpacks() {
        let (dir, result) = unpacked(&[
            Item::File("a/b/c", "hello"),
            Item::Link("a/l", "b/c"),
            Item::Hard("a/h", "a/b/c"),
        ]);
        result.unwrap();
        let root = dir.path().join("root");
        assert_eq!(fs::read_to_string(root.join("a/l")).unwrap(), "hello");
        assert_eq!(fs::metadata(root.join("a/h")).unwrap().nlink(), 2);
    }

    #[test]
    fn paths_and_links_cannot_leave_the_root() {
        let (_dir, result) = unpacked(&[Item::File("../outside", "x")]);
        assert!(result.is_err());
        let (_dir, result) = unpacked(&[Item::Hard("h", "../outside")]);
        assert!(result.is_err());
        // Through a link: the kernel resolves it inside the root.
        for target in ["..", "../..", "/"] {
            let (dir, _) = unpacked(&[Item::Link("up", target), Item::File("up/outside", "x")]);
            assert_eq!(
                fs::read_to_string(dir.path().join("root/outside")).unwrap(),
                "x"
            );
        }
        let (_dir, _) = unpacked(&[Item::Link("f", "../outside"), Item::File("f", "x")]);
        let (dir, result) = unpacked(&[Item::File("/abs", "x")]);
        result.unwrap();
        assert!(dir.path().join("root/abs").exists());
        let (_dir, _) = unpacked(&[Item::Link("up", ".."), Item::File("up/.wh.outside", "")]);
    }

    #[test]
    #[ignore = "needs root: whiteouts are device nodes"]
    fn whiteouts_take_overlay_s_form() {
        let (dir, result) = unpacked(&[
            Item::File("d/.wh.gone", ""),
            Item::File("d/.wh..wh..opq", ""),
        ]);
        result.unwrap();
        let gone = fs::symlink_metadata(dir.path().join("root/d/gone")).unwrap();
        assert!(gone.file_type().is_char_device());
        assert_eq!(gone.rdev(), 0);
        for bad in [".wh.", ".wh..", ".wh..."] {
            let (_dir, result) = unpacked(&[Item::File(bad, "")]);
            assert!(result.is_err(), "{bad}");
        }
    }

    #[test]
    fn truncated_and_foreign_bytes_are_errors_not_panics() {
        let whole = tar(&[Item::File("a", "hello"), Item::File("b", "world")]);
        for end in (1..1024).step_by(37) {
            let dir = tempfile::tempdir().unwrap();
            unpack(&whole[..end], dir.path()).ok();
        }
        let dir = tempfile::tempdir().unwrap();
        assert!(unpack([0x55; 1024].as_slice(), dir.path()).is_err());
    }
}
