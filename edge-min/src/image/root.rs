//! Directories below a root, reached by untrusted paths. `openat2` resolves them inside
//! the root where the kernel has it (5.6), else a walk that never lets the kernel follow a link. Both give
//! the same directory, or an error; neither ever leaves the root.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Links on one path; the kernel's own limit.
const LINKS_MAX: u32 = 40;

/// A directory outside of which nothing is reached.
pub(crate) struct Root {
    dir: OwnedFd,
    walks: Cell<bool>,
}

impl Root {
    /// Opens the root.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            dir: File::open(path)?.into(),
            walks: Cell::new(false),
        })
    }

    /// Never uses the kernel's path resolution.
    pub(crate) fn walking(self) -> Self {
        self.walks.set(true);
        self
    }

    /// The directory at `path`; links are followed, and `/` and the parent of the root are the
    /// root.
    pub(crate) fn dir(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open_with(path, directory())
    }

    /// Whatever is at `path`, also a file, as an O_PATH descriptor.
    pub(crate) fn any(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open_with(path, OFlags::PATH | OFlags::CLOEXEC)
    }

    fn open_with(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        if self.walks.get() {
            return self.walk(path, flags);
        }
        let path = match path.as_os_str().is_empty() {
            true => Path::new("."),
            false => path,
        };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(&self.dir, path, flags, Mode::empty(), resolve) {
            Ok(found) => Ok(found),
            // An old kernel, or a sandbox that does not know the call.
            Err(Errno::NOSYS | Errno::PERM) => {
                self.walks.set(true);
                self.walk(path, flags)
            }
            // Something was renamed or mounted meanwhile, anywhere: `..` cannot be trusted now.
            Err(Errno::AGAIN) => self.walk(path, flags),
            Err(error) => Err(error.into()),
        }
    }

    fn walk(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let mut links = 0;
        // Names from the root to `at`, all of them real directories.
        let mut done: Vec<OsString> = Vec::new();
        let mut at = self.real(&done)?;
        // Last one first.
        let mut ahead: Vec<OsString> = parts(path);
        while let Some(part) = ahead.pop() {
            match part.as_bytes() {
                b"/" => {
                    done.clear();
                    at = self.real(&done)?;
                }
                b"." => {}
                b".." => {
                    done.pop();
                    // From the root again: `..` of a directory is wherever it was moved to.
                    at = self.real(&done)?;
                }
                _ => match open_real(at.as_fd(), &part) {
                    Ok(dir) => {
                        at = dir;
                        done.push(part);
                    }
                    Err(Errno::NOTDIR | Errno::LOOP) => {
                        links += 1;
                        if links > LINKS_MAX {
                            return Err(Errno::LOOP.into());
                        }
                        let target = match rustix::fs::readlinkat(&at, &part, Vec::new()) {
                            Ok(target) => OsString::from_vec(target.into_bytes()),
                            // Not a link, so a file: if it is the last component, it may be the target.
                            Err(Errno::INVAL) if ahead.is_empty() => {
                                let flags = flags | OFlags::NOFOLLOW;
                                let mode = Mode::empty();
                                return Ok(rustix::fs::openat(&at, &part, flags, mode)?);
                            }
                            Err(Errno::INVAL) => return Err(Errno::NOTDIR.into()),
                            Err(error) => return Err(error.into()),
                        };
                        ahead.extend(parts(Path::new(&target)));
                    }
                    Err(error) => return Err(error.into()),
                },
            }
        }
        Ok(at)
    }

    fn real(&self, names: &[OsString]) -> io::Result<OwnedFd> {
        let mut at = open_real(self.dir.as_fd(), OsStr::new("."))?;
        for name in names {
            at = open_real(at.as_fd(), name)?;
        }
        Ok(at)
    }
}

fn directory() -> OFlags {
    OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC
}

fn open_real(at: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(at, name, directory() | OFlags::NOFOLLOW, Mode::empty())
}

/// The names of a path, last one first. A path that ends in `/` or `/.` keeps a `.` there: the
/// component before it must be a directory.
fn parts(path: &Path) -> Vec<OsString> {
    let bytes = path.as_os_str().as_bytes();
    let mut names = Vec::new();
    if bytes.ends_with(b"/") || bytes.ends_with(b"/.") {
        names.push(OsString::from("."));
    }
    names.extend(path.components().rev().filter_map(|part| match part {
        Component::CurDir | Component::Prefix(_) => None,
        other => Some(other.as_os_str().to_owned()),
    }));
    names
}

/// Creates directories along `path`, inside the root, with this mode where they are new.
pub(crate) fn make_dirs(root: &Root, path: &Path, mode: u32) -> io::Result<()> {
    let mut done = PathBuf::new();
    for name in path {
        let at = root.dir(&done)?;
        match rustix::fs::mkdirat(&at, name, Mode::from(0o700)) {
            Ok(()) => {
                // Independent of the umask.
                let mode = Mode::from_raw_mode(mode);
                rustix::fs::fchmod(open_real(at.as_fd(), name)?, mode)?;
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        done.push(name);
    }
    Ok(())
}

/// The path without `.`, refused with `..`; an absolute one is taken relative to the root.
pub(crate) fn relative(path: &Path, depth_max: usize, bytes_max: usize) -> io::Result<PathBuf> {
    let mut plain = PathBuf::new();
    let mut depth = 0;
    for component in path.components() {
        match component {
            Component::Normal(name) => {
                plain.push(name);
                depth += 1;
            }
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(io::Error::other("`..` in a path"));
            }
        }
    }
    if depth > depth_max || plain.as_os_str().len() > bytes_max {
        return Err(io::Error::other("a path that is too long or too deep"));
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    fn inode(dir: io::Result<OwnedFd>) -> Option<(u64, u64)> {
        let metadata = File::from(dir.ok()?).metadata().unwrap();
        Some((metadata.dev(), metadata.ino()))
    }

    /// Found by the property below: a file is not a directory, even with a dot after it.
    #[test]
    fn a_dot_at_the_end_wants_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        for walking in [false, true] {
            let mut root = Root::open(dir.path()).unwrap();
            if walking {
                root = root.walking();
            }
            assert!(root.any(Path::new("file")).is_ok());
            for path in ["file/", "file/."] {
                assert!(root.any(Path::new(path)).is_err(), "{path}");
            }
        }
    }

    proptest! {
        /// Goal: the walk is as safe as the kernel's own resolution. Method: any combination of
        /// directories and links, any path; both must end in the same directory or both fail.
        #[test]
        fn the_walk_finds_what_the_kernel_finds(
            made in proptest::collection::vec(
                ("[abc](/[abc]){0,2}", proptest::option::of("/?(\\.\\.|[abc])(/(\\.\\.|\\.|[abc])){0,3}")),
                0..12,
            ),
            path in "/?(\\.\\.|[abc])(/(\\.\\.|\\.|[abc])){0,5}",
        ) {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().join("a/root");
            fs::create_dir_all(&root).unwrap();
            for (at, target) in made {
                // Some cannot be created, because another exists there.
                match target {
                    Some(target) if target == "a" => fs::write(root.join(at), "file").ok(),
                    None => fs::create_dir_all(root.join(at)).ok(),
                    Some(target) => symlink(target, root.join(at)).ok(),
                };
            }
            let kernel = Root::open(&root).unwrap();
            let walk = Root::open(&root).unwrap().walking();
            let path = Path::new(&path);
            let found = kernel.dir(path);
            let why = format!("{path:?}: {:?}", found.as_ref().err());
            prop_assert_eq!(inode(found), inode(walk.dir(path)), "{}", why);
            let any = inode(kernel.any(path));
            prop_assert_eq!(any, inode(walk.any(path)), "{:?}", path);
            prop_assert!(!kernel.walks.get(), "this kernel has no openat2");
        }
    }
}
