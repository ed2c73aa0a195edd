//! Directory trees. Trees of untrusted origin are removed here: a container or an image may nest
//! directories to any depth, so nothing here recurses or holds a descriptor for each level.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Creates a directory that only root may enter: Secrets, and set-user-id programs of images, are
/// below. The mode of an existing one is restricted, if the medium can be written.
///
/// # Errors
/// It cannot be created.
pub fn private(dir: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(dir)?;
    let open = fs::metadata(dir)?.permissions().mode() & 0o077 != 0;
    if open && let Err(error) = fs::set_permissions(dir, fs::Permissions::from_mode(0o700)) {
        log::warn!(
            "directory_stays_open path={} error={error}",
            dir.to_string_lossy()
        );
    }
    Ok(())
}

/// Removes `top` and all below it; a missing one is success. Links are not followed.
///
/// # Errors
/// Those of the file system; call again to remove what is left.
pub fn remove(top: &Path) -> io::Result<()> {
    match fs::symlink_metadata(top) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.is_dir() => return fs::remove_file(top),
        Ok(_) => {}
    }
    // Grandchildren that are directories move up to `top`: paths never get longer than two names.
    let mut moved: u64 = 0;
    loop {
        let mut empty = true;
        for child in fs::read_dir(top)? {
            empty = false;
            let child = child?;
            if !child.file_type()?.is_dir() {
                fs::remove_file(child.path())?;
                continue;
            }
            for grandchild in fs::read_dir(child.path())? {
                let grandchild = grandchild?;
                if grandchild.file_type()?.is_dir() {
                    fs::rename(grandchild.path(), free_name(top, &mut moved))?;
                } else {
                    fs::remove_file(grandchild.path())?;
                }
            }
            fs::remove_dir(child.path())?;
        }
        if empty {
            return fs::remove_dir(top);
        }
    }
}

/// An unused name in `top`: the tree may contain names like ours, also on purpose.
fn free_name(top: &Path, moved: &mut u64) -> PathBuf {
    loop {
        *moved += 1;
        let path = top.join([".removed-", &moved.to_string()].concat());
        if fs::symlink_metadata(&path).is_err() {
            return path;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// Goal: trees of any depth can be removed. Method: deeper than a path may be
    /// long and than a process may hold descriptors, made from a directory descriptor.
    #[test]
    fn the_deepest_tree_goes_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        fs::create_dir(&top).unwrap();
        fs::write(dir.path().join("kept"), "kept").unwrap();
        symlink(dir.path(), top.join("link")).unwrap();
        fs::create_dir(top.join(".removed-1")).unwrap();
        let mut at = fs::File::open(&top).unwrap();
        for _ in 0..5000 {
            rustix::fs::mkdirat(&at, "directory", rustix::fs::Mode::from(0o700)).unwrap();
            let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
            let next =
                rustix::fs::openat(&at, "directory", flags, rustix::fs::Mode::empty()).unwrap();
            rustix::fs::symlinkat("..", &next, "up").unwrap();
            at = next.into();
        }
        remove(&top).unwrap();
        assert!(!top.exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        remove(&top).unwrap();
    }
}
