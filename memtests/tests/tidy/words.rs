//! Names that were given up do not come back.

use super::{report, rust, sources};

/// Whole words of any file, put together here, so that this file does not find itself.
const WORDS: &[&str] = &[
    concat!("LATER", "_MS_MAX"),
    concat!("Device", "Config"),
    concat!("Turn", "stile"),
    concat!("turn", "stile"),
    concat!("KILL", "_AGAIN_MS"),
    concat!("WRITE", "_AGAIN_MS"),
    concat!("CACHE", "_AGAIN_MS"),
    concat!("Chunk", "Get"),
    concat!("CHUNK", "_BYTES_MAX"),
    concat!("STRANGERS", "_MAX"),
    concat!("PATI", "ENCE"),
    concat!("New", "borns"),
    concat!("MAKE", "_WAY_MS"),
    concat!("ASKS", "_MAX"),
    concat!("NODE_", "LIFE_S"),
    concat!("GOOD", "_MS"),
    concat!("forget_the", "_agent"),
    concat!("put", "_aside"),
    concat!("put", "_away"),
];
/// Identifiers of Rust; in a sentence they are words like others.
const IDENTIFIERS: &[&str] = &[
    "Turns",
    "Turn",
    "Desk",
    "Strangers",
    "strangers",
    "Account",
    "Later",
    "Behind",
    "Pace",
    "Lives",
    "Life",
    "Trouble",
    "goodbye",
    "greeting",
];
/// Likewise, but in programs only: they do not say what they hold.
const IDENTIFIERS_OF_PROGRAMS: &[&str] = &["said", "told", "flown", "aside"];
/// Parts of paths.
const FILES: &[&str] = &[
    "/strangers.rs",
    "/turns.rs",
    "/pace.rs",
    "/session/chunk.rs",
    "/session/device.rs",
];

#[test]
fn old_words_do_not_come_back() {
    let mut findings = Vec::new();
    for (path, text) in sources() {
        let name = path.display().to_string();
        let folder = format!("/{name}");
        findings.extend(
            FILES
                .iter()
                .filter(|file| folder.contains(*file))
                .map(|file| format!("{name}: a file {file}")),
        );
        for (number, line) in text.lines().enumerate() {
            let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            if words.any(|word| WORDS.contains(&word)) {
                findings.push(format!("{name}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    for source in rust::all() {
        let lines: Vec<&str> = source.text.lines().collect();
        for (name, line) in source.identifiers() {
            let name = name.as_str();
            let vague = !source.is_test() && IDENTIFIERS_OF_PROGRAMS.contains(&name);
            if vague || IDENTIFIERS.contains(&name) {
                let text = lines.get(line - 1).unwrap_or(&"").trim();
                findings.push(format!("{}:{line}: {text}", source.path.display()));
            }
        }
    }
    report("a word that was given up", &findings);
}
