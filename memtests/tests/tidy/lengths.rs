//! Files and functions stay short, or say why they are long.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::{report, rust, sources};

/// Lines of tests, documents and scripts.
const FILE_LINES_MAX: usize = 800;
/// Lines of a Rust file outside tests, its test modules not counted.
const CODE_LINES_MAX: usize = 600;
/// Lines of a function outside tests, from its signature to its closing brace.
const FUNCTION_LINES_MAX: usize = 80;
/// A comment with these words among the first lines allows more.
const REASON: &str = concat!("Long ", "because");
/// How many lines of a file are its first ones; of a function it is the comment above and so many.
const FIRST_LINES: usize = 15;
const FIRST_LINES_OF_BODY: usize = 4;

/// Files that are too long and give no reason yet. The list only gets shorter.
const LONG_FILES: &[&str] = &[];
/// Functions, likewise.
const LONG_FUNCTIONS: &[&str] = &[];

#[test]
fn files_stay_short() {
    let code: BTreeSet<PathBuf> = rust::all()
        .into_iter()
        .filter(|source| !source.is_test())
        .map(|source| source.path)
        .collect();
    let findings: Vec<String> = sources()
        .iter()
        .filter(|(path, text)| text.lines().count() > FILE_LINES_MAX && !code.contains(path))
        .map(|(path, text)| format!("{}: {} lines", path.display(), text.lines().count()))
        .collect();
    report(&format!("longer than {FILE_LINES_MAX} lines"), &findings);
}

#[test]
fn code_is_short_or_says_why_it_is_long() {
    let (mut files, mut functions) = (Vec::new(), Vec::new());
    for source in rust::all().iter().filter(|source| !source.is_test()) {
        let (items, path) = (source.items(), source.path.display().to_string());
        let lines: Vec<&str> = source.text.lines().collect();
        let says_why = |from: usize, to: usize| {
            let some = lines.get(from..to.min(lines.len())).unwrap_or_default();
            some.iter().any(|line| line.contains(REASON))
        };
        let code = lines.len() - items.test_lines;
        if code > CODE_LINES_MAX && !says_why(0, FIRST_LINES) {
            files.push((path.clone(), format!("{code} lines")));
        }
        for one in items.functions {
            let length = one.last + 1 - one.first;
            let first = one.first + FIRST_LINES_OF_BODY;
            if length > FUNCTION_LINES_MAX && !says_why(one.documented - 1, first) {
                functions.push((format!("{path}: {}", one.name), format!("{length} lines")));
            }
        }
    }
    let mut findings = unlisted(&files, LONG_FILES);
    findings.extend(unlisted(&functions, LONG_FUNCTIONS));
    report(
        &format!("too long without a comment \"{REASON} ...\" in its first lines"),
        &findings,
    );
}

/// Findings that are not in the list, and entries of the list that are no finding any more.
fn unlisted(found: &[(String, String)], list: &[&str]) -> Vec<String> {
    let new = found.iter().filter(|(name, _)| !list.contains(&&**name));
    let new = new.map(|(name, what)| format!("{name}: {what}"));
    let gone = list
        .iter()
        .filter(|name| !found.iter().any(|(other, _)| other == *name));
    let gone = gone.map(|name| format!("{name}: is fine by now, take it off the list"));
    new.chain(gone).collect()
}
