//! Volumes of a pod: directories below the pod's own, or host paths within the allow-list.
//! ConfigMaps and Secrets are files behind a `..data` link that is replaced by one rename, so a
//! reader sees the old set or the new one, never a mixture.

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use edge_core::HostPaths;
use edge_core::limits::SECRET_VOLUME_BYTES;
use edge_core::spec::{Content, EMPTY_DIR_MODE, HOST_DIR_MODE, is_inside};
use edge_proto::object::Data;
use edge_proto::sorted::SortedSet;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::image::root::{self, Root};
use crate::mounts;
use crate::paths;

/// Prepares the volume; returns the path to mount. A host path is mounted at `dir`.
///
/// # Errors
/// For a person: what could not be made, or a host path that leads outside the allow-list.
pub fn prepare(dir: &Path, content: &Content) -> Result<PathBuf, String> {
    let failed = |error: io::Error| [&dir.to_string_lossy(), ": ", &error.to_string()].concat();
    match content {
        Content::Empty { memory, size_bytes } => {
            fs::create_dir_all(dir).map_err(failed)?;
            fs::set_permissions(dir, fs::Permissions::from_mode(EMPTY_DIR_MODE)).map_err(failed)?;
            if *memory {
                tmpfs(dir, *size_bytes).map_err(failed)?;
            }
            Ok(dir.to_owned())
        }
        Content::Host {
            path,
            create,
            within,
        } => {
            host_path(Path::new(path), *create, within, dir)?;
            Ok(dir.to_owned())
        }
        Content::Files {
            files,
            mode,
            secret,
        } => {
            fs::create_dir_all(dir).map_err(failed)?;
            if *secret {
                tmpfs(dir, SECRET_VOLUME_BYTES).map_err(failed)?;
            }
            write_files(dir, files, *mode).map_err(failed)?;
            Ok(dir.to_owned())
        }
    }
}

/// Mounts a path of the board at `place`. The core has found the path itself allowed. Where it leads is
/// asked here, where links are followed: what is mounted then is what was looked at, by descriptor, since
/// containers may exchange any part of the path for a link meanwhile.
fn host_path(path: &Path, create: bool, within: &HostPaths, place: &Path) -> Result<(), String> {
    let named = path.to_string_lossy();
    let failed = |error: io::Error| ["hostPath ", &named, ": ", &error.to_string()].concat();
    let real = match fs::canonicalize(path) {
        Err(error) if create && error.kind() == io::ErrorKind::NotFound => {
            missing(path).map_err(failed)?
        }
        real => real.map_err(failed)?,
    };
    if !real.to_str().is_some_and(|real| within.allow(real)) {
        let real = real.to_string_lossy();
        return Err([
            "hostPath leads to ",
            &real,
            ", outside the board's host-paths list",
        ]
        .concat());
    }
    open_plain(&real, create)
        .and_then(|found| mount_at(&found, place))
        .map_err(failed)
}

/// Target of a path that does not exist yet: without links as far as it exists.
fn missing(path: &Path) -> io::Result<PathBuf> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for there in path.ancestors().skip(1) {
        match fs::canonicalize(there) {
            Ok(real) => return Ok(real.join(path.strip_prefix(there).unwrap_or(path))),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The file at an absolute path without links, as an O_PATH descriptor.
fn open_plain(path: &Path, create: bool) -> io::Result<fs::File> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = rustix::fs::open("/", flags, Mode::empty())?;
    for part in path.components() {
        let Component::Normal(name) = part else {
            continue;
        };
        at = match rustix::fs::openat(&at, name, flags, Mode::empty()) {
            Err(Errno::NOENT) if create => {
                match rustix::fs::mkdirat(&at, name, Mode::from(HOST_DIR_MODE)) {
                    // Another pod with the same volume has just created it.
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                rustix::fs::openat(&at, name, flags, Mode::empty())?
            }
            found => found?,
        };
    }
    let found = fs::File::from(at);
    match found.metadata()?.is_symlink() {
        true => Err(Errno::LOOP.into()),
        false => Ok(found),
    }
}

/// Mounts the file at `sub` inside a volume at `place`. It is resolved and mounted by descriptor, because
/// containers that have the volume may replace any part of the path by a link meanwhile.
/// `new_mode` is the mode of created directories; with `None` missing ones are not created.
///
/// # Errors
/// Human-readable: it does not exist, leaves the volume, or cannot be mounted.
pub fn sub_path(
    volume: &Path,
    sub: &str,
    new_mode: Option<u32>,
    place: &Path,
) -> Result<(), String> {
    if !is_inside(sub) {
        return Err(["subPath ", sub, " leaves the volume"].concat());
    }
    mount_sub_path(volume, Path::new(sub), new_mode, place)
        .map_err(|error| ["subPath ", sub, ": ", &error.to_string()].concat())
}

fn mount_sub_path(
    volume: &Path,
    sub: &Path,
    new_mode: Option<u32>,
    place: &Path,
) -> io::Result<()> {
    let root = Root::open(volume)?;
    let missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let found = match (root.any(sub), new_mode) {
        (Err(error), Some(mode)) if missing(&error) => {
            root::make_dirs(&root, sub, mode)?;
            root.any(sub)?
        }
        (found, _) => found?,
    };
    mount_at(&fs::File::from(found), place)
}

fn mount_at(found: &fs::File, place: &Path) -> io::Result<()> {
    // Of an earlier run.
    unmount(place);
    fs::remove_file(place)
        .or_else(|_| fs::remove_dir(place))
        .ok();
    if found.metadata()?.is_dir() {
        fs::create_dir_all(place)?;
    } else {
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(place)?;
    }
    let source = ["/proc/self/fd/", &found.as_raw_fd().to_string()].concat();
    let none: Option<&str> = None;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(source.as_str()), place, none, flags, none)?;
    Ok(make_private(place)?)
}

/// Without this, mounts below would be shared with the board's own mounts there, if those are
/// shared, as with systemd: an unmount here would unmount them there.
fn make_private(place: &Path) -> nix::Result<()> {
    let none: Option<&str> = None;
    mount(
        none,
        place,
        none,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        none,
    )
}

/// Unmounts everything at `place` and below.
pub(super) fn unmount(place: &Path) {
    // Not mounted is the usual case after a reboot. An agent may have ended before it made this
    // private, and then no mount of the board may be removed.
    while make_private(place).is_ok() && umount2(place, MntFlags::MNT_DETACH).is_ok() {}
}

/// Writes the files of a mounted volume, replacing all at once.
///
/// # Errors
/// Those of the file system; the old files still exist then.
pub fn write_files(dir: &Path, files: &Data, mode: u32) -> io::Result<()> {
    let old = fs::read_link(dir.join(paths::VOLUME_DATA)).ok();
    let [first, second] = paths::VOLUME_VERSIONS;
    let version = match &old {
        Some(name) if name == Path::new(first) => second,
        _ => first,
    };
    let new = dir.join(version);
    remove(&new)?;
    fs::create_dir(&new)?;
    for (path, bytes) in files {
        let file = new.join(path);
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&file)?;
        file.write_all(bytes)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
    }
    let link = dir.join(paths::VOLUME_DATA_NEW);
    drop(fs::remove_file(&link));
    symlink(version, &link)?;
    fs::rename(&link, dir.join(paths::VOLUME_DATA))?;
    let tops: SortedSet<&str> = files
        .iter()
        .filter_map(|(path, _)| path.split('/').next())
        .collect();
    for top in &tops {
        let visible = dir.join(top);
        if fs::symlink_metadata(&visible).is_err() {
            symlink(Path::new(paths::VOLUME_DATA).join(top), &visible)?;
        }
    }
    for entry in fs::read_dir(dir)?.flatten() {
        let name = entry.file_name();
        let stale = name
            .to_str()
            .is_some_and(|name| !name.starts_with("..") && !tops.contains(name));
        if stale {
            fs::remove_file(entry.path())?;
        }
    }
    match old {
        Some(old) if old != Path::new(version) => remove(&dir.join(old)),
        _ => Ok(()),
    }
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Mounts a tmpfs of `size` bytes unless one is mounted already.
///
/// # Errors
/// Those of the kernel.
pub fn tmpfs(dir: &Path, size: u64) -> io::Result<()> {
    if is_mount(dir) {
        return Ok(());
    }
    let options = ["mode=0755,size=", &size.to_string()].concat();
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(
        Some("tmpfs"),
        dir,
        Some("tmpfs"),
        flags,
        Some(options.as_str()),
    )?;
    Ok(())
}

/// The first mount below this path, if there is one.
///
/// # Errors
/// The kernel's list cannot be read.
pub(super) fn mount_below(path: &Path) -> io::Result<Option<String>> {
    let info = mounts::info()?;
    let mut below = mounts::places(&info).filter(|place| Path::new(place).starts_with(path));
    Ok(below.next().map(str::to_owned))
}

/// Whether something is mounted at exactly this path.
#[must_use]
pub fn is_mount(path: &Path) -> bool {
    let info = mounts::info().unwrap_or_default();
    mounts::places(&info).any(|place| Some(place) == path.to_str())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn data(pairs: &[(&str, &str)]) -> Data {
        pairs
            .iter()
            .map(|(key, value)| ((*key).into(), value.as_bytes().to_vec()))
            .collect()
    }

    #[test]
    fn files_switch_at_once_and_stale_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).ok();
        write_files(dir.path(), &data(&[("a", "1"), ("b", "2")]), 0o644).unwrap();
        assert_eq!(read("a").as_deref(), Some("1"));
        write_files(dir.path(), &data(&[("a", "3"), ("sub/c", "4")]), 0o644).unwrap();
        assert_eq!(read("a").as_deref(), Some("3"));
        assert_eq!(read("sub/c").as_deref(), Some("4"));
        assert_eq!(read("b"), None);
        write_files(dir.path(), &data(&[("a", "5")]), 0o644).unwrap();
        assert_eq!(read("a").as_deref(), Some("5"));
    }

    /// Goal: a part of a volume stays inside it, whatever links the containers create. Method:
    /// existing parts, missing parts, and links out of the volume.
    #[test]
    #[ignore = "needs root: mounts"]
    fn a_part_of_a_volume_stays_inside_it() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        fs::create_dir(&volume).unwrap();
        fs::write(dir.path().join("secret"), "outside").unwrap();
        fs::write(volume.join("file"), "inside").unwrap();
        symlink("..", volume.join("up")).unwrap();
        symlink("/", volume.join("slash")).unwrap();
        symlink("file", volume.join("link")).unwrap();
        let place = dir.path().join("place");
        let mounted = |sub: &str, mode: Option<u32>| {
            fs::remove_file(&place).ok();
            fs::remove_dir(&place).ok();
            let result = sub_path(&volume, sub, mode, &place);
            let seen = fs::read_to_string(&place).or_else(|_| {
                let names = fs::read_dir(&place)?.map(|entry| entry.unwrap().file_name());
                let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
                names.sort();
                io::Result::Ok(names.join(" "))
            });
            umount2(&place, MntFlags::MNT_DETACH).ok();
            result.map(|()| seen.unwrap())
        };
        assert_eq!(mounted("file", None).unwrap(), "inside");
        assert_eq!(mounted("link", None).unwrap(), "inside");
        assert!(mounted("new/er", None).is_err());
        assert_eq!(mounted("new/er", Some(0o777)).unwrap(), "");
        let made = fs::metadata(volume.join("new/er")).unwrap();
        assert_eq!(made.permissions().mode() & 0o777, 0o777);
        // Both are the volume itself.
        assert_eq!(mounted("up", None).unwrap(), "file link new slash up");
        assert_eq!(mounted("slash", None).unwrap(), "file link new slash up");
        assert!(mounted("up/secret", None).is_err());
        assert_eq!(mounted("up/secret", Some(0o755)).unwrap(), "");
        assert!(volume.join("secret").is_dir());
        assert!(mounted("../secret", None).is_err());
        // Of an earlier run, and still mounted.
        sub_path(&volume, "file", None, &place).unwrap();
        sub_path(&volume, "file", None, &place).unwrap();
        umount2(&place, MntFlags::MNT_DETACH).unwrap();
        assert!(!is_mount(&place));
    }

    /// Goal: only paths that the board allows are mounted as a host path. Method: attempts to leave the
    /// list, and links that stay inside.
    #[test]
    #[ignore = "needs root: mounts"]
    fn host_paths_stay_in_the_allow_list_even_through_links() {
        let dir = tempfile::tempdir().unwrap();
        let allowed = [dir.path().join("data")];
        let within = HostPaths::new(vec![allowed[0].to_str().unwrap().to_owned()]);
        let within = Arc::new(within);
        let place = dir.path().join("place");
        fs::create_dir(&allowed[0]).unwrap();
        fs::write(allowed[0].join("file"), "inside").unwrap();
        symlink("/etc", allowed[0].join("link")).unwrap();
        symlink("file", allowed[0].join("near")).unwrap();
        symlink("nowhere", allowed[0].join("dangling")).unwrap();
        let host = |path: &Path, create: bool| {
            let content = Content::Host {
                path: path.to_string_lossy().into_owned(),
                create,
                within: Arc::clone(&within),
            };
            let result = prepare(&place, &content);
            let seen = fs::read_to_string(&place).unwrap_or_default();
            unmount(&place);
            assert!(!is_mount(&place));
            result.map(|_| seen)
        };
        assert_eq!(host(&allowed[0], false).unwrap(), "");
        assert_eq!(host(&allowed[0].join("file"), false).unwrap(), "inside");
        assert_eq!(host(&allowed[0].join("near"), false).unwrap(), "inside");
        assert!(host(Path::new("/etc"), false).is_err());
        assert!(host(&allowed[0].join("../.."), false).is_err());
        assert!(host(&allowed[0].join("link"), false).is_err());
        assert!(host(&allowed[0].join("link/edge-min-new"), true).is_err());
        assert!(!Path::new("/etc/edge-min-new").exists());
        assert!(host(&allowed[0].join("new/er"), false).is_err());
        assert_eq!(host(&allowed[0].join("new/er"), true).unwrap(), "");
        assert!(allowed[0].join("new/er").is_dir());
        assert!(host(&allowed[0].join("dangling"), true).is_err());
    }

    /// Goal: a link that is put into a path after its check is not followed. Method: the checked path,
    /// and the link at each of its parts.
    #[test]
    fn a_link_that_comes_late_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let real = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir_all(real.join("a/b")).unwrap();
        assert!(open_plain(&real.join("a/b"), false).is_ok());
        fs::rename(real.join("a/b"), real.join("kept")).unwrap();
        symlink("/etc", real.join("a/b")).unwrap();
        assert!(open_plain(&real.join("a/b"), true).is_err());
        assert!(open_plain(&real.join("a/b/new"), true).is_err());
        assert!(!Path::new("/etc/new").exists());
    }

    /// Goal: mounts of the board inside a host path stay when the pod is removed.
    /// Method: a mount inside, shared with the rest of the system as systemd does.
    #[test]
    #[ignore = "needs root: mounts"]
    fn what_the_board_has_mounted_inside_stays() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base");
        let inner = base.join("inner");
        fs::create_dir(&base).unwrap();
        tmpfs(&base, 1 << 20).unwrap();
        let none: Option<&str> = None;
        mount(none, &base, none, MsFlags::MS_SHARED, none).unwrap();
        fs::create_dir(&inner).unwrap();
        tmpfs(&inner, 1 << 20).unwrap();
        fs::write(inner.join("file"), "kept").unwrap();
        let place = dir.path().join("place");
        let content = Content::Host {
            path: base.to_string_lossy().into_owned(),
            create: false,
            within: Arc::new(HostPaths::new(vec!["/".to_owned()])),
        };
        for _ in 0..2 {
            prepare(&place, &content).unwrap();
            assert_eq!(
                fs::read_to_string(place.join("inner/file")).unwrap(),
                "kept"
            );
        }
        unmount(&place);
        let stays = is_mount(&inner) && !is_mount(&place);
        unmount(&inner);
        unmount(&base);
        assert!(stays);
    }
}
