//! The repository's own rules, as far as a program can check them: length of files and functions, words,
//! doc comments, unfinished work, documentation links, documented limits, and no reference to anything
//! outside the repository.
#![cfg(test)]

#[path = "tidy/docs.rs"]
mod docs;
#[path = "tidy/lengths.rs"]
mod lengths;
#[path = "tidy/limits.rs"]
mod limits;
#[path = "tidy/rust.rs"]
mod rust;
#[path = "tidy/words.rs"]
mod words;

use std::path::{Component, Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_path_buf()
}

/// Text files that git tracks or would track, as (path from the root, content). Generated and
/// given files are left out.
fn sources() -> Vec<(PathBuf, String)> {
    let listed = Command::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        listed.status.success(),
        "git ls-files: {}",
        String::from_utf8_lossy(&listed.stderr)
    );
    let mut files = Vec::new();
    for name in String::from_utf8(listed.stdout)
        .unwrap()
        .split('\0')
        .filter(|n| !n.is_empty())
    {
        let path = PathBuf::from(name);
        let generated = path.ends_with("Cargo.lock") || path.ends_with("LICENSE");
        let file = root().join(&path);
        // A file deleted in the work tree is still listed; a binary one is no text; a symbolic link is
        // the file of another place.
        if let (false, false, Ok(text)) =
            (generated, file.is_symlink(), std::fs::read_to_string(&file))
        {
            files.push((path, text));
        }
    }
    assert!(files.len() > 10, "git lists hardly any file");
    files
}

/// Fails with all findings at once, so that one run shows all the work.
fn report(rule: &str, findings: &[String]) {
    assert!(findings.is_empty(), "{rule}:\n{}", findings.join("\n"));
}

#[test]
fn no_work_is_left_for_later() {
    // Put together here, so that this file does not find itself.
    let marks = [
        concat!("FIX", "ME"),
        concat!("TO", "DO"),
        concat!("XX", "X:"),
    ];
    report("an open end", &lines_with(&marks));
}

#[test]
fn nothing_refers_outside_the_repository() {
    let marks = [
        concat!("/wo", "rk/"),
        concat!("DESI", "GN.md"),
        concat!("PLAT", "FORM.md"),
        concat!("DEPEND", "ENCIES.md"),
        concat!("STY", "LE.md"),
    ];
    report("refers outside the repository", &lines_with(&marks));
}

fn lines_with(marks: &[&str]) -> Vec<String> {
    let mut findings = Vec::new();
    for (path, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark)) {
                findings.push(format!(
                    "{}:{}: {}",
                    path.display(),
                    number + 1,
                    line.trim()
                ));
            }
        }
    }
    findings
}

#[test]
fn links_in_documents_resolve() {
    let mut findings = Vec::new();
    for (path, text) in sources() {
        if path.extension().is_none_or(|e| e != "md") {
            continue;
        }
        for target in links(&text) {
            let file = target.split('#').next().unwrap_or_default();
            if file.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let found = inside(path.parent().unwrap_or(Path::new("")), file)
                .is_some_and(|there| root().join(there).exists());
            if !found {
                findings.push(format!("{}: {target}", path.display()));
            }
        }
    }
    report("a link leads nowhere", &findings);
}

/// Targets of `[text](target)`, code blocks left out.
fn links(text: &str) -> Vec<&str> {
    let mut targets = Vec::new();
    let mut in_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        let mut rest = line;
        while let Some(start) = rest.find("](") {
            rest = &rest[start + 2..];
            let Some(end) = rest.find(')') else { break };
            targets.push(rest[..end].split(' ').next().unwrap_or_default());
            rest = &rest[end..];
        }
    }
    targets
}

/// `file` seen from `folder`, without dots; `None` when it leaves the repository.
fn inside(folder: &Path, file: &str) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for part in folder.join(file).components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            Component::ParentDir if clean.pop() => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(clean)
}

/// B-trees cost the agent more bytes than everything that it keeps in them: `edge_proto::sorted` has
/// maps and sets instead. Tests may use them.
#[test]
fn the_agent_has_no_b_trees() {
    let folders = ["edge-proto/src", "edge-min/src", "edge-min/core/src"];
    let mut findings = Vec::new();
    for (path, text) in sources() {
        let is_test = path.to_string_lossy().ends_with("tests.rs");
        if is_test || !folders.iter().any(|folder| path.starts_with(folder)) {
            continue;
        }
        // Tests are at the end of a file.
        let lines = text.lines().take_while(|line| *line != "#[cfg(test)]");
        for (number, line) in (1..).zip(lines) {
            let code = line.split("//").next().unwrap_or_default();
            if code.contains("BTreeMap") || code.contains("BTreeSet") {
                findings.push(format!("{}:{number}: {}", path.display(), line.trim()));
            }
        }
    }
    report("a B-tree in the agent, use edge_proto::sorted", &findings);
}

#[test]
fn a_link_that_leaves_the_repository_is_found() {
    assert_eq!(
        inside(Path::new("docs"), "../README.md"),
        Some(PathBuf::from("README.md"))
    );
    assert_eq!(inside(Path::new("docs"), "../../README.md"), None);
    assert_eq!(inside(Path::new("docs"), "/etc/passwd"), None);
    assert_eq!(links("a [b](c.md#d) and [e](f \"g\")"), ["c.md#d", "f"]);
}
