//! Volumes of a pod: directories below the pod's own, or host paths within the allow-list.
//! ConfigMaps and Secrets are files behind a `..data` link that is switched by one rename, so a
//! reader sees the old set or the new one, never a mixture.

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use edge_proto::object::Data;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::image::root::{self, Root};

/// Cap of a tmpfs for an emptyDir with medium Memory that names none, bytes.
const MEMORY_BYTES_DEFAULT: u64 = 16 * 1024 * 1024;
/// Cap of the tmpfs for the files of one Secret, bytes: twice the largest Secret, for a switch.
const SECRET_BYTES: u64 = 3 * 1024 * 1024;

/// What a volume holds, with everything resolved.
#[derive(Clone, Debug)]
pub enum Content {
    /// Scratch space of the pod.
    Empty {
        /// On tmpfs.
        memory: bool,
        /// Its cap; 0 is the default.
        size_bytes: u64,
    },
    /// A path of the board.
    Host {
        /// Absolute path.
        path: PathBuf,
        /// Create it when missing.
        create: bool,
    },
    /// Files.
    Files {
        /// (relative path, bytes).
        files: Data,
        /// File mode.
        mode: u32,
        /// On tmpfs.
        secret: bool,
    },
}

/// Files of a ConfigMap or Secret volume: all keys, or those that `items` picks under its paths.
///
/// # Errors
/// A picked key that is not there, or a path that leaves the volume.
pub fn select(data: &Data, items: &[(String, String)]) -> Result<Data, String> {
    let files = if items.is_empty() {
        data.clone()
    } else {
        let pick = |(key, path): &(String, String)| {
            let found = data.iter().find(|(name, _)| name == key);
            let (_, bytes) = found.ok_or_else(|| ["key ", key, " is not there"].concat())?;
            Ok((path.clone(), bytes.clone()))
        };
        items.iter().map(pick).collect::<Result<_, String>>()?
    };
    match files.iter().find(|(path, _)| !is_inside(path)) {
        Some((path, _)) => Err(["path ", path, " leaves the volume"].concat()),
        None => Ok(files),
    }
}

/// Whether a relative path stays below its start and does not collide with `..data`.
#[must_use]
pub fn is_inside(path: &str) -> bool {
    let mut components = Path::new(path).components();
    !path.is_empty()
        && !path.starts_with("..")
        && components.all(|component| matches!(component, Component::Normal(_)))
}

/// Makes the volume; returns the path to mount.
///
/// # Errors
/// For a person: what could not be made, or a host path outside the allow-list.
pub fn prepare(dir: &Path, content: &Content, allowed: &[PathBuf]) -> Result<PathBuf, String> {
    let failed = |error: io::Error| [&dir.to_string_lossy(), ": ", &error.to_string()].concat();
    match content {
        Content::Empty { memory, size_bytes } => {
            fs::create_dir_all(dir).map_err(failed)?;
            fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).map_err(failed)?;
            if *memory {
                let size = if *size_bytes == 0 {
                    MEMORY_BYTES_DEFAULT
                } else {
                    *size_bytes
                };
                tmpfs(dir, size).map_err(failed)?;
            }
            Ok(dir.to_owned())
        }
        Content::Host { path, create } => {
            let plain = path.is_absolute()
                && path
                    .components()
                    .all(|part| !matches!(part, Component::ParentDir));
            if !plain || !allowed.iter().any(|allowed| path.starts_with(allowed)) {
                let path = path.to_string_lossy();
                return Err(
                    ["hostPath ", &path, " is not in the board's host-paths list"].concat(),
                );
            }
            if *create {
                fs::create_dir_all(path).map_err(failed)?;
            }
            // A link inside an allowed directory must not lead out of it.
            let real = fs::canonicalize(path).map_err(|error| {
                [
                    "hostPath ",
                    &path.to_string_lossy(),
                    ": ",
                    &error.to_string(),
                ]
                .concat()
            })?;
            if !allowed.iter().any(|allowed| real.starts_with(allowed)) {
                let real = real.to_string_lossy();
                return Err([
                    "hostPath leads to ",
                    &real,
                    ", outside the board's host-paths list",
                ]
                .concat());
            }
            Ok(real)
        }
        Content::Files {
            files,
            mode,
            secret,
        } => {
            fs::create_dir_all(dir).map_err(failed)?;
            if *secret {
                tmpfs(dir, SECRET_BYTES).map_err(failed)?;
            }
            write_files(dir, files, *mode).map_err(failed)?;
            Ok(dir.to_owned())
        }
    }
}

/// Mounts what is at `sub` inside a volume at `place`. It is resolved and mounted by descriptor:
/// containers that have the volume may exchange any part of the path for a link meanwhile.
/// `new_mode` is that of directories that are made when they are missing; `None` makes none.
///
/// # Errors
/// For a person: it is not there, leaves the volume, or cannot be mounted.
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
    // Of an earlier run.
    umount2(place, MntFlags::MNT_DETACH).ok();
    fs::remove_file(place)
        .or_else(|_| fs::remove_dir(place))
        .ok();
    let found = fs::File::from(found);
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
    Ok(mount(Some(source.as_str()), place, none, flags, none)?)
}

/// Writes the files of a volume that is mounted already, switching all at once.
///
/// # Errors
/// Those of the file system; the old files then still stand.
pub fn write_files(dir: &Path, files: &Data, mode: u32) -> io::Result<()> {
    let old = fs::read_link(dir.join("..data")).ok();
    let version = match &old {
        Some(name) if name == Path::new("..v1") => "..v2",
        _ => "..v1",
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
    let link = dir.join("..new");
    drop(fs::remove_file(&link));
    symlink(version, &link)?;
    fs::rename(&link, dir.join("..data"))?;
    let tops: std::collections::BTreeSet<&str> = files
        .iter()
        .filter_map(|(path, _)| path.split('/').next())
        .collect();
    for top in &tops {
        let visible = dir.join(top);
        if fs::symlink_metadata(&visible).is_err() {
            symlink(Path::new("..data").join(top), &visible)?;
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

/// Mounts a tmpfs of `size` bytes unless one is there already.
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

/// Whether something is mounted at exactly this path.
#[must_use]
pub fn is_mount(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts
        .lines()
        .any(|line| line.split(' ').nth(1) == path.to_str())
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn keys_and_paths_cannot_leave_the_volume() {
        for bad in ["../x", "/x", "a/../../x", "..data", "", "a/./../b"] {
            assert!(!is_inside(bad), "{bad}");
            assert!(select(&data(&[(bad, "")]), &[]).is_err(), "{bad}");
        }
        assert!(is_inside("a/b.txt"));
        let items = [("missing".to_owned(), "x".to_owned())];
        assert!(select(&data(&[("a", "")]), &items).is_err());
    }

    /// Goal: a part of a volume is that part, whatever links the containers put there. Method:
    /// parts that are there, that are not, and links out of the volume.
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

    #[test]
    fn host_paths_stay_in_the_allow_list_even_through_links() {
        let dir = tempfile::tempdir().unwrap();
        let allowed = [dir.path().join("data")];
        fs::create_dir(&allowed[0]).unwrap();
        symlink("/etc", allowed[0].join("link")).unwrap();
        let host = |path: &Path| {
            let content = Content::Host {
                path: path.to_owned(),
                create: false,
            };
            prepare(Path::new("unused"), &content, &allowed)
        };
        assert!(host(&allowed[0]).is_ok());
        assert!(host(Path::new("/etc")).is_err());
        assert!(host(&allowed[0].join("../..")).is_err());
        assert!(host(&allowed[0].join("link")).is_err());
    }
}
