//! The agent's file on a board: its size against the board's budget and against the recorded
//! ledger, static, position-independent, and with panics that say what happened. Looks at what
//! `scripts/build` left in `dist/`: `scripts/test` builds all targets first, and a checkout where
//! nothing was built has nothing to show.

use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use memtests::measure::{Board, all_kept, scenario};
use memtests::root;

/// Bytes that a change may add before the ledger must be recorded again.
const GROWTH_BYTES_MAX: u64 = 4096;

/// Entries of a folder, sorted; none when it does not exist.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(listed) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = listed.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn agent_fits_the_budget_of_every_board() {
    let figures = scenario::sizes().unwrap();
    for figure in &figures {
        println!("{figure}");
    }
    assert!(!figures.is_empty(), "dist/ is empty: scripts/build");
    all_kept(&figures).unwrap();
}

/// Target and bytes of the row `file` in the ledger of docs/bytes.md.
fn recorded(document: &str) -> Vec<(&str, u64)> {
    let row = |start: &str| {
        let line = document.lines().find(|line| line.starts_with(start));
        let cells = line.unwrap_or_default().trim_matches('|').split('|');
        cells.skip(1).map(str::trim).collect::<Vec<_>>()
    };
    let bytes = row("| `file` |");
    let bytes = bytes.iter().map(|cell| cell.replace(',', "").parse());
    let pairs = row("| part |").into_iter().zip(bytes);
    pairs
        .filter_map(|(target, bytes)| Some((target, bytes.ok()?)))
        .collect()
}

/// Goal: a board file can only name existing features, and the cost of each is documented.
#[test]
fn features_of_boards_exist_and_have_a_price() {
    let read = |file: &str| std::fs::read_to_string(root().join(file)).unwrap();
    let manifest: toml::Table = toml::from_str(&read("edge-min/Cargo.toml")).unwrap();
    let mut known: Vec<&String> = manifest["features"].as_table().unwrap().keys().collect();
    known.retain(|name| *name != "default");
    assert!(!known.is_empty());
    let document = read("docs/bytes.md");
    for name in &known {
        let row = format!("| `{name}` |");
        assert!(document.contains(&row), "docs/bytes.md has no row {name}");
    }
    for board in memtests::measure::boards().unwrap() {
        for name in board.features.iter().flatten() {
            assert!(known.contains(&name), "{}: no feature {name}", board.name);
        }
    }
}

/// Goal: growth of the agent is noticed and recorded.
#[test]
fn what_the_agent_has_grown_by_is_recorded() {
    let document = std::fs::read_to_string(root().join("docs/bytes.md")).unwrap();
    let recorded = recorded(&document);
    assert!(!recorded.is_empty(), "docs/bytes.md has no ledger");
    let mut findings = Vec::new();
    for (target, bytes) in recorded {
        let Ok(found) = std::fs::metadata(root().join("dist").join(target).join("edge-min")) else {
            continue;
        };
        let found = found.len();
        if found > bytes + GROWTH_BYTES_MAX {
            findings.push(format!(
                "{target}: {found} bytes, {} more than recorded",
                found - bytes
            ));
        }
    }
    assert!(
        findings.is_empty(),
        "see with scripts/bytes where they are, and whether they must be; then \
         scripts/bytes --record:\n{}",
        findings.join("\n")
    );
}

#[test]
fn the_ledger_is_read_by_its_heading() {
    let document =
        "| part | a-linux | b |\n|---|---:|---:|\n| `file` | 1,234,567 | 8 |\n| `x` | 1 | |";
    assert_eq!(recorded(document), [("a-linux", 1_234_567), ("b", 8)]);
}

/// Goal: a panic on a board prints a message, though its agent has no unwinder and no line numbers,
/// and its threads can be distinguished. Method: a write-back that fails makes sled panic when its
/// database closes.
#[test]
#[ignore = "needs strace, and scripts/build x86_64-unknown-linux-musl"]
fn a_panic_of_the_static_agent_says_what_and_where_and_aborts() {
    let agent = Board::here().unwrap().agent();
    let dir = std::env::temp_dir().join(format!("edge-min-panic-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let trace = dir.join("trace");
    let mut child = Command::new("strace")
        .args(["-f", "-qq", "-e", "trace=fsync,prctl"])
        .args(["-e", "inject=fsync:error=EIO", "-o"])
        .arg(&trace)
        .arg(agent)
        .args(["state-cache", "store"])
        .arg(dir.join("cache"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // An empty set of generation 1 and epoch 1, complete.
    let set = [0, 0, 0, 4, 1, 1, 1, 1];
    child.stdin.take().unwrap().write_all(&set).unwrap();
    let output = child.wait_with_output().unwrap();
    let calls = std::fs::read_to_string(&trace).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("thread 'main'"), "{text}");
    assert!(text.contains("panicked at sled-"), "{text}");
    assert!(text.contains("logger.rs"), "{text}");
    assert!(text.contains("I/O error"), "{text}");
    assert_eq!(output.status.signal(), Some(6), "{text}");
    assert!(calls.contains("PR_SET_NAME, \"sled-io-"), "{calls}");
}

#[test]
fn agent_is_static_and_position_independent() {
    let folders = entries(&root().join("dist"));
    assert!(!folders.is_empty(), "dist/ is empty: scripts/build");
    for folder in folders {
        let Ok(image) = std::fs::read(folder.join("edge-min")) else {
            continue;
        };
        let name = folder.display();
        assert_eq!(&image[..4], b"\x7fELF", "{name}");
        // e_type, at the same place in both ELF classes; all three boards are little-endian.
        let kind = u16::from_le_bytes([image[16], image[17]]);
        assert_eq!(
            kind, 3,
            "{name}: e_type is not ET_DYN, so the image has a fixed address"
        );
        assert!(
            !segment_types(&image).contains(&3),
            "{name}: PT_INTERP, so it is not static"
        );
    }
}

/// The `p_type` of every program header.
fn segment_types(image: &[u8]) -> Vec<u32> {
    let half = |at: usize| usize::from(u16::from_le_bytes([image[at], image[at + 1]]));
    let word = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap());
    let wide = image[4] == 2;
    // e_phoff, e_phentsize and e_phnum of ELF64 and ELF32; the offset fits 32 bits in our files.
    let (offset, entry_bytes, count) = if wide {
        (word(32), half(54), half(56))
    } else {
        (word(28), half(42), half(44))
    };
    let offset = usize::try_from(offset).unwrap();
    (0..count)
        .map(|index| word(offset + index * entry_bytes))
        .collect()
}
