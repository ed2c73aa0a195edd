//! The board file: the limits of a type of board, and the budgets of the agent on it.
//! The same files in `board-configs/` are the bars of the tests; an OEM puts the one of its board
//! into the image and names it as `board-file` in the config.

use std::path::Path;

use crate::board::toml_reader::{self, ConfigError, Table, Value, Wrong};

/// Tables of a board file. The tests read all budgets, the agent only some of them.
const TABLES: [&str; 3] = ["limits.", "budget.", "latency."];

/// A type of board.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Board {
    /// Name that the status shows.
    pub name: String,
    /// Highest number of pods.
    pub pods_max: u32,
    /// Memory for pods, MiB.
    pub memory_mib: u32,
    /// Memory budget of the agent itself, resident, KiB.
    pub pss_kib: u32,
    /// Flash budget of the agent itself, MiB a day.
    pub flash_mib_per_day: u32,
}

/// Reads a board file.
///
/// # Errors
/// The first error, with its line; also a file for another architecture.
pub fn load(file: &Path) -> Result<Board, ConfigError> {
    toml_reader::read(file, board)
}

fn board(table: &Table) -> Result<Board, Wrong> {
    for (key, (line, _)) in table {
        let top = ["version", "name", "target", "features"].contains(&key.as_str());
        if !top && !TABLES.iter().any(|name| key.starts_with(name)) {
            let known =
                "known are version, name, target, features, [limits], [budget] and [latency]";
            return Err((*line, ["unknown key `", key, "`; ", known].concat()));
        }
    }
    toml_reader::version(table)?;
    let required = |key: &str| {
        toml_reader::text(table, key)?.ok_or_else(|| (0, [key, " is missing: a text"].concat()))
    };
    let target = required("target")?;
    // The triple begins with the machine, which std calls `arm` where Rust's targets say `armv7`.
    let machine = std::env::consts::ARCH;
    if !target.starts_with(machine) {
        let reason = [
            "target: this agent is built for ",
            machine,
            ": name the file of this board",
        ];
        return Err((toml_reader::line(table, "target"), reason.concat()));
    }
    let number = |key: &str, max: u64| match table.get(key) {
        None => Err((0, [key, " is missing: a whole number"].concat())),
        Some((line, Value::Number(number))) => u32::try_from(*number)
            .ok()
            .filter(|number| (1..=max).contains(&u64::from(*number)))
            .ok_or_else(|| (*line, [key, ": from 1 to ", &max.to_string()].concat())),
        Some((line, _)) => Err((*line, [key, ": a whole number"].concat())),
    };
    Ok(Board {
        name: required("name")?,
        pods_max: number("limits.pods-max", edge_core::limits::PODS_MAX as u64)?,
        memory_mib: number("limits.memory-mib", u32::MAX.into())?,
        pss_kib: number("budget.pss-kib", u32::MAX.into())?,
        flash_mib_per_day: number("budget.flash-mib-per-day", u32::MAX.into())?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Goal: the files that we ship can be read. Method: those of this architecture load, the others are
    /// refused as files for another one.
    #[test]
    fn every_board_file_is_read_on_its_machine() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../board-configs");
        let mut read = 0;
        for entry in fs::read_dir(folder).unwrap() {
            let file = entry.unwrap().path();
            match load(&file) {
                Ok(board) => {
                    assert_eq!(
                        file.file_stem().unwrap().to_str(),
                        Some(board.name.as_str())
                    );
                    read += 1;
                }
                Err(error) => assert!(error.reason.contains("this agent is built for"), "{error}"),
            }
        }
        assert!(read > 0, "none is for this machine");
    }

    #[test]
    fn a_wrong_board_file_is_named_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("board.toml");
        let target = [std::env::consts::ARCH, "-unknown-linux-musl"].concat();
        let whole = [
            "version = 1\nname = \"b\"\ntarget = \"",
            &target,
            "\"\n[limits]\npods-max = 8\nmemory-mib = 64\n[budget]\npss-kib = 5120\n\
             flash-mib-per-day = 512\n",
        ]
        .concat();
        fs::write(&file, &whole).unwrap();
        assert_eq!(load(&file).unwrap().pods_max, 8);
        for (from, to, line, word) in [
            ("pods-max = 8", "pods-max = 0", 5, "from 1 to"),
            ("memory-mib = 64", "memory-mib = \"a\"", 6, "whole number"),
            (
                "pss-kib = 5120",
                "anon-kib = 1",
                0,
                "budget.pss-kib is missing",
            ),
            ("[limits]", "[limit]", 6, "unknown key"),
            ("version = 1", "version = 2", 1, "version"),
        ] {
            fs::write(&file, whole.replace(from, to)).unwrap();
            let error = load(&file).unwrap_err();
            assert_eq!(error.line, line, "{error}");
            assert!(error.reason.contains(word), "{error}");
        }
    }
}
