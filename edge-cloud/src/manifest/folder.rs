//! Finds and reads the files of a folder of manifests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Manifests, Problem};

/// Largest manifest file that is read, bytes.
pub const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Files of the folder that are read; more are a problem of the folder.
pub const FILES_MAX: usize = 1000;

/// Every `.yaml`, `.yml` and `.json` below `folder` by its path from there, or the one file that it is,
/// and why some may be missing. Hidden files and folders are skipped: editors and Kubernetes' own
/// volumes create them.
#[must_use]
pub fn files(folder: &Path) -> (BTreeMap<String, PathBuf>, Vec<Problem>) {
    let (mut files, mut faults) = (Vec::new(), Manifests::default());
    if folder.is_file() {
        files.push(folder.to_owned());
    } else if let Err(error) = find(folder, &mut files, 0) {
        faults.problem("", 0, None, "", format!("{}: {error}", folder.display()));
    }
    files.sort();
    if files.len() > FILES_MAX {
        let reason = format!("more than {FILES_MAX} files, those after are not read");
        faults.problem("", 0, None, "", reason);
        files.truncate(FILES_MAX);
    }
    let named = files.into_iter().map(|path| {
        let below = path.strip_prefix(folder).ok();
        let below = below.filter(|below| !below.as_os_str().is_empty());
        let name = below.unwrap_or(&path).to_string_lossy().into_owned();
        (name, path)
    });
    (named.collect(), faults.problems)
}

/// Deepest folder that is searched: links may form a circle.
const DEPTH_MAX: usize = 8;

fn find(folder: &Path, files: &mut Vec<PathBuf>, depth: usize) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with('.') || files.len() > FILES_MAX {
            continue;
        }
        let extension = path.extension().unwrap_or_default();
        if path.is_dir() {
            if depth < DEPTH_MAX {
                find(&path, files, depth + 1)?;
            }
        } else if ["yaml", "yml", "json"]
            .iter()
            .any(|known| extension == *known)
        {
            files.push(path);
        }
    }
    Ok(())
}

/// Reads a file of at most [`FILE_BYTES_MAX`] bytes.
///
/// # Errors
/// The reason, for a problem.
pub fn text_of(path: &Path) -> Result<String, String> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    // Before it is opened: opening a pipe waits for a writer.
    let metadata = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("is not a file".to_owned());
    }
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("is larger than {FILE_BYTES_MAX} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())
}
