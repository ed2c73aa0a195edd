//! docs/limits.md and the constants say the same. A constant is named there by path: a heading ends with
//! the file in backticks, and the first column of the table below has the names of constants of that file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::{report, root, rust};

const DOCUMENT: &str = "docs/limits.md";
/// Packages whose caps (`..._MAX`) must be there, wherever they are. Of a file `limits.rs` all must.
const PACKAGES: [&str; 3] = ["edge-proto/src", "edge-min", "edge-cloud/src"];

/// What the document says: constants by file, and what is wrong with the document itself.
#[derive(Debug, Default, PartialEq)]
struct Documented {
    constants: BTreeMap<String, BTreeSet<String>>,
    findings: Vec<String>,
}

impl Documented {
    fn read(&mut self, name: &str, text: &str) {
        let mut file: Option<String> = None;
        let lines: Vec<&str> = text.lines().collect();
        let mut in_table = false;
        for (index, line) in lines.iter().enumerate() {
            let at = format!("{name}:{}", index + 1);
            if line.starts_with('#') {
                file = path_of_heading(line);
            }
            if !line.starts_with('|') {
                in_table = false;
                continue;
            }
            let next = lines.get(index + 1).copied().unwrap_or_default();
            if is_rule(line) {
                continue;
            }
            if !in_table {
                // The first row is the header, and has a rule below.
                in_table = true;
                if !is_rule(next) {
                    self.findings.push(format!("{at}: a row outside a table"));
                }
                continue;
            }
            let names = constants_of_row(line);
            let Some(file) = &file else {
                if !names.is_empty() {
                    let what = "its heading ends with no file in backticks";
                    self.findings.push(format!("{at}: {}: {what}", names[0]));
                }
                continue;
            };
            for constant in names {
                let known = self.constants.entry(file.clone()).or_default();
                if !known.insert(constant.clone()) {
                    self.findings
                        .push(format!("{at}: {file}: {constant} has two rows"));
                }
            }
        }
    }
}

/// `## Words: `path``.
fn path_of_heading(line: &str) -> Option<String> {
    let path = line.strip_suffix('`')?.rsplit('`').next()?;
    path.ends_with(".rs").then(|| path.to_owned())
}

fn is_rule(line: &str) -> bool {
    line.starts_with("|-") && line.chars().all(|c| matches!(c, '|' | '-' | ':' | ' '))
}

/// Words in backticks of the first column that look like constants.
fn constants_of_row(line: &str) -> Vec<String> {
    let first = line.split('|').nth(1).unwrap_or_default();
    let quoted = first.split('`').skip(1).step_by(2);
    let is_constant = |word: &&str| {
        word.starts_with(|c: char| c.is_ascii_uppercase())
            && word
                .chars()
                .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
    };
    quoted.filter(is_constant).map(str::to_owned).collect()
}

/// What differs between the document and the constants, by file.
fn differences(documented: &Documented, files: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let mut findings = documented.findings.clone();
    for (file, names) in &documented.constants {
        let Some(constants) = files.get(file) else {
            findings.push(format!("{file}: there is no such file"));
            continue;
        };
        let gone = names.iter().filter(|name| !constants.contains(*name));
        findings.extend(gone.map(|name| format!("{file}: there is no constant {name}")));
    }
    for (file, constants) in files {
        if !PACKAGES.iter().any(|package| file.starts_with(package)) {
            continue;
        }
        let known = documented.constants.get(file);
        let all = file.ends_with("/limits.rs");
        let missing = constants.iter().filter(|name| {
            (all || name.ends_with("_MAX")) && known.is_none_or(|known| !known.contains(*name))
        });
        findings.extend(missing.map(|name| format!("{file}: {name} has no row")));
    }
    findings
}

#[test]
fn every_limit_is_documented_by_path() {
    let mut documented = Documented::default();
    documented.read(
        DOCUMENT,
        &fs::read_to_string(root().join(DOCUMENT)).unwrap(),
    );
    let files: BTreeMap<_, _> = rust::all()
        .iter()
        .filter(|source| !source.is_test())
        .map(|source| (source.path.display().to_string(), source.items().constants))
        .collect();
    assert!(documented.constants.len() > 10, "hardly any table is read");
    report(
        "docs/limits.md and the code differ",
        &differences(&documented, &files),
    );
}

#[test]
fn mistakes_in_a_document_of_limits_are_found() {
    const TEXT: &str = "\
## Some: `a/b.rs`

| constant | value |
|---|---|
| `ONE`, `TWO_MAX` | 1, `NOT_THIS` |
| *class* | no constant |

| `LOST` | 2 |

## Others

| constant | value |
|---|---|
| `NOWHERE` | 2 |

### And: `a/b.rs`

| constant | value |
|---|---|
| `ONE` | 1 |
";
    let mut documented = Documented::default();
    documented.read("x.md", TEXT);
    let names = ["ONE", "TWO_MAX"].map(str::to_owned);
    let wanted = BTreeMap::from([("a/b.rs".to_owned(), names.into())]);
    assert_eq!(documented.constants, wanted);
    assert_eq!(
        documented.findings,
        [
            "x.md:8: a row outside a table",
            "x.md:14: NOWHERE: its heading ends with no file in backticks",
            "x.md:20: a/b.rs: ONE has two rows",
        ]
    );
}

#[test]
fn a_constant_that_is_gone_and_one_hidden_by_a_namesake_are_found() {
    let mut documented = Documented::default();
    let text = "\
## One: `edge-min/src/one.rs`

| constant | value |
|---|---|
| `ITEMS_MAX`, `GONE_MAX` | 1 |

## Moved: `edge-min/src/moved.rs`

| constant | value |
|---|---|
| `OTHER_MAX` | 1 |
";
    documented.read("x.md", text);
    let constants = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    let files = BTreeMap::from([
        (
            "edge-min/src/one.rs".to_owned(),
            constants(&["ITEMS_MAX", "PAUSE"]),
        ),
        ("edge-min/src/two.rs".to_owned(), constants(&["ITEMS_MAX"])),
        ("edge-proto/src/limits.rs".to_owned(), constants(&["ANY"])),
    ]);
    assert_eq!(
        differences(&documented, &files),
        [
            "edge-min/src/moved.rs: there is no such file",
            "edge-min/src/one.rs: there is no constant GONE_MAX",
            "edge-min/src/two.rs: ITEMS_MAX has no row",
            "edge-proto/src/limits.rs: ANY has no row",
        ]
    );
}
