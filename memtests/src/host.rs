//! Programs, processes and cgroups of this host, as all gates and boards need them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// The program `name` that `cargo build` created beside this one, or beside the folder of tests.
///
/// # Errors
/// It was not built.
pub fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folders = own.ancestors().skip(1).take(2);
    let found = folders
        .map(|folder| folder.join(name))
        .find(|program| program.exists());
    found.with_context(|| format!("{name} is missing: cargo build -p edge-min -p edge-cloud"))
}

/// The repository.
#[must_use]
pub fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_path_buf()
}

/// Makes an image with busybox as an OCI layout, as `scripts/run` does.
pub(crate) fn make_image(layout: &Path, name: &str) -> Result<()> {
    text(
        Command::new("bash")
            .current_dir(root())
            .args([
                "-c",
                "set -eu; . scripts/lib.sh; make_image \"$1\" \"$2\"",
                "-",
            ])
            .arg(layout)
            .arg(name),
    )
    .map(drop)
}

pub(crate) fn text(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// `program`, run by the command `words` if that is not empty.
pub(crate) fn wrapped(words: Vec<String>, program: &Path) -> Command {
    let mut words = words.into_iter();
    match words.next() {
        None => Command::new(program),
        Some(first) => {
            let mut command = Command::new(first);
            command.args(words).arg(program);
            command
        }
    }
}

pub(crate) fn kill(child: &mut Option<Child>) -> Result<()> {
    let mut child = child.take().context("not running")?;
    child.kill()?;
    child.wait()?;
    Ok(())
}

pub(crate) fn remove_cgroups(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path());
        }
    }
    fs::remove_dir(dir).ok();
}
