//! Reader of the config and the board file, in the subset of TOML that
//! a board needs: `key = value` with strings, integers, booleans and arrays of strings,
//! `[tables]`, comments. It is tested against the `toml` crate, which would cost the agent 123 KB.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use edge_proto::sorted::SortedMap;

/// Bytes of a config file.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Value of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// String in quotes.
    Text(String),
    /// Integer.
    Number(i64),
    /// `true` or `false`.
    Truth(bool),
    /// Array of strings.
    List(Vec<String>),
}

/// A value with its line number.
pub type Entry = (usize, Value);
/// `table.key`, or `key` above the first table.
pub type Table = SortedMap<String, Entry>;

/// Error in a config or board file.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Path of the file.
    pub file: PathBuf,
    /// Line from 1; 0 if the error concerns the whole file.
    pub line: usize,
    /// The error and its fix.
    pub reason: String,
}

impl core::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file.to_string_lossy(), self.reason),
            line => write!(f, "{}:{line}: {}", self.file.to_string_lossy(), self.reason),
        }
    }
}

impl core::error::Error for ConfigError {}

/// Reads a file of the TOML subset and converts it with `meaning`.
///
/// # Errors
/// The first error, with its line.
pub fn read<T>(
    file: &Path,
    meaning: impl FnOnce(&Table) -> Result<T, Wrong>,
) -> Result<T, ConfigError> {
    let whole = |reason: String| ConfigError {
        file: file.to_owned(),
        line: 0,
        reason,
    };
    let text = text_of(file).map_err(|error| whole(error.to_string()))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(whole("over 64 KiB".to_owned()));
    }
    parse(&text)
        .and_then(|table| meaning(&table))
        .map_err(|(line, reason)| ConfigError {
            file: file.to_owned(),
            line,
            reason,
        })
}

/// The text of a file, at most one byte over the cap. Only regular files: a pipe would wait for a writer,
/// and some devices never end.
fn text_of(file: &Path) -> io::Result<String> {
    let nonblock = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let mut options = fs::OpenOptions::new();
    let file = options.read(true).custom_flags(nonblock).open(file)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() && !metadata.is_dir() {
        return Err(io::Error::other("not a file"));
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    Ok(text)
}

/// Line and reason.
pub type Wrong = (usize, String);

/// Checks the version that each file begins with.
pub(crate) fn version(table: &Table) -> Result<(), Wrong> {
    match table.get("version") {
        Some((_, Value::Number(1))) => Ok(()),
        Some((line, _)) => Err((*line, "version: this agent reads version = 1".to_owned())),
        None => Err((0, "version is missing: add `version = 1`".to_owned())),
    }
}

/// Whether `name` is an RFC 1123 label.
#[must_use]
pub fn is_label(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|byte| plain(*byte) || *byte == b'-')
        && bytes.first().copied().is_some_and(plain)
        && bytes.last().copied().is_some_and(plain)
}

pub(crate) fn line(table: &Table, key: &str) -> usize {
    table.get(key).map_or(0, |(line, _)| *line)
}

pub(crate) fn text(table: &Table, key: &str) -> Result<Option<String>, Wrong> {
    match table.get(key) {
        None => Ok(None),
        Some((_, Value::Text(text))) if !text.is_empty() => Ok(Some(text.clone())),
        Some((line, _)) => Err((*line, [key, ": a text in quotes"].concat())),
    }
}

pub(crate) fn number(
    table: &Table,
    key: &str,
    range: core::ops::RangeInclusive<u64>,
    default: u64,
) -> Result<u64, Wrong> {
    match table.get(key) {
        None => Ok(default),
        Some((line, Value::Number(number))) => match u64::try_from(*number) {
            Ok(number) if range.contains(&number) => Ok(number),
            _ => {
                let (low, high) = (range.start().to_string(), range.end().to_string());
                Err((*line, [key, ": from ", &low, " to ", &high].concat()))
            }
        },
        Some((line, _)) => Err((*line, [key, ": a whole number"].concat())),
    }
}

/// Reads the TOML subset.
///
/// # Errors
/// Line and reason.
pub fn parse(text: &str) -> Result<Table, Wrong> {
    let mut table = Table::new();
    let mut prefix = String::new();
    let mut tables: Vec<String> = Vec::new();
    for (index, raw) in text.lines().enumerate() {
        let number = index + 1;
        let wrong = |reason: &str| (number, reason.to_owned());
        if raw
            .chars()
            .any(|character| character.is_control() && character != '\t')
        {
            return Err(wrong("a control character"));
        }
        let content = without_comment(raw).trim();
        if content.is_empty() {
            continue;
        }
        if let Some(name) = content.strip_prefix('[') {
            let name = name
                .strip_suffix(']')
                .ok_or_else(|| wrong("a table is `[name]`"))?
                .trim();
            // A table in a table must not also be a value there.
            let is_value = |name: &str| table.contains_key(name);
            let inside = name
                .match_indices('.')
                .filter_map(|(dot, _)| name.get(..dot));
            if !name.split('.').all(is_key)
                || tables.iter().any(|have| have == name)
                || inside.chain([name]).any(is_value)
            {
                return Err(wrong("a table name of a-z, 0-9, - and _, once"));
            }
            tables.push(name.to_owned());
            prefix = [name, "."].concat();
            continue;
        }
        let (key, value) = content
            .split_once('=')
            .ok_or_else(|| wrong("expected `key = value`"))?;
        let key = match key.trim() {
            quoted if quoted.starts_with('"') => string(quoted)
                .filter(|(_, rest)| rest.is_empty())
                .map(|(key, _)| key)
                .ok_or_else(|| wrong("a key in quotes is not closed"))?,
            plain if is_key(plain) => plain.to_owned(),
            _ => {
                return Err(wrong(
                    "a key has only a-z, 0-9, - and _, or stands in quotes",
                ));
            }
        };
        let value = parse_value(value.trim()).map_err(wrong)?;
        let key = [&prefix, key.as_str()].concat();
        let is_table = tables.iter().any(|name| {
            let rest = name.strip_prefix(&key);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        });
        if is_table || table.insert(key, (number, value)).is_some() {
            return Err(wrong("this key stands twice"));
        }
    }
    Ok(table)
}

fn is_key(key: &str) -> bool {
    !key.is_empty()
        && key
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

fn without_comment(line: &str) -> &str {
    let (mut quoted, mut escaped) = (false, false);
    for (index, character) in line.char_indices() {
        match character {
            '#' if !quoted => return line.get(..index).unwrap_or(line),
            '"' if !escaped => quoted = !quoted,
            _ => {}
        }
        escaped = quoted && character == '\\' && !escaped;
    }
    line
}

fn parse_value(text: &str) -> Result<Value, &'static str> {
    match text {
        "true" => return Ok(Value::Truth(true)),
        "false" => return Ok(Value::Truth(false)),
        _ => {}
    }
    if text.starts_with('"') {
        return match string(text) {
            Some((value, "")) => Ok(Value::Text(value)),
            _ => Err("a text in quotes, with \\\" \\\\ \\n \\t as the only escapes"),
        };
    }
    if let Some(list) = text.strip_prefix('[') {
        let mut rest = list
            .strip_suffix(']')
            .ok_or("a list ends with `]` on its line")?
            .trim();
        let mut items = Vec::new();
        while !rest.is_empty() {
            let (item, after) = string(rest).ok_or("a list holds texts in quotes")?;
            items.push(item);
            rest = match after.trim_start().strip_prefix(',') {
                Some(after) => after.trim_start(),
                None if after.trim().is_empty() => "",
                None => return Err("a comma between the items of a list"),
            };
        }
        return Ok(Value::List(items));
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.len() > 1 && digits.starts_with('0') {
        return Err("a number has no leading zero");
    }
    match text.parse() {
        Ok(number) => Ok(Value::Number(number)),
        Err(_) => Err("a text in quotes, a whole number, true, false or a list of texts"),
    }
}

/// The quoted text at the start, and the rest.
fn string(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.strip_prefix('"')?.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return Some((value, text.get(index + 2..)?)),
            '\\' => value.push(match characters.next()?.1 {
                'n' => '\n',
                't' => '\t',
                same @ ('"' | '\\') => same,
                _ => return None,
            }),
            control if control.is_control() && control != '\t' => return None,
            plain => value.push(plain),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    /// Goal: a config path that is not a file neither waits nor fills the memory. Method: a pipe without a
    /// writer, a device that never ends, a directory, and a file that is too long.
    #[test]
    fn what_is_no_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let long = dir.path().join("long");
        fs::write(&long, "#".repeat(70_000)).unwrap();
        let reason = |file: &Path| read(file, |_| Ok(())).unwrap_err().reason;
        assert_eq!(reason(&pipe), "not a file");
        assert_eq!(reason(Path::new("/dev/zero")), "not a file");
        assert!(reason(dir.path()).contains("directory"));
        assert_eq!(reason(&long), "over 64 KiB");
    }

    fn flat(table: &toml::Table, prefix: &str, out: &mut BTreeMap<String, Value>) -> bool {
        table.iter().all(|(key, value)| {
            let key = format!("{prefix}{key}");
            match value {
                toml::Value::Table(inner) => return flat(inner, &format!("{key}."), out),
                toml::Value::String(text) => out.insert(key, Value::Text(text.clone())),
                toml::Value::Integer(number) => out.insert(key, Value::Number(*number)),
                toml::Value::Boolean(truth) => out.insert(key, Value::Truth(*truth)),
                toml::Value::Array(list) => {
                    let texts = list.iter().map(|item| item.as_str().map(str::to_owned));
                    match texts.collect() {
                        Some(list) => out.insert(key, Value::List(list)),
                        None => return false,
                    }
                }
                _ => return false,
            };
            true
        })
    }

    proptest! {
        /// Whatever this reader accepts, the `toml` crate accepts, with the same values.
        #[test]
        fn what_is_accepted_means_the_same_to_the_toml_crate(
            lines in proptest::collection::vec(
                "(\\[[a-c]{1,2}(\\.[a-c])?\\]|[a-d\"-]{1,3} ?= ?(\"[a-c#\\\\\"nt ]{0,5}\"|-?[0-9]{1,3}|true|\\[(\"[a-c]?\",? ?){0,3}\\]))( ?#.{0,4})?",
                0..6,
            )
        ) {
            let text = lines.join("\n");
            if let Ok(table) = parse(&text) {
                let real: toml::Table = text.parse().map_err(|error| {
                    TestCaseError::fail(format!("{text:?}: {error}"))
                })?;
                let mut expected = BTreeMap::new();
                prop_assert!(flat(&real, "", &mut expected), "{text:?}");
                let ours: BTreeMap<_, _> = table.into_iter().map(|(key, (_, value))| (key, value)).collect();
                prop_assert_eq!(ours, expected, "{:?}", text);
            }
        }
    }
}
