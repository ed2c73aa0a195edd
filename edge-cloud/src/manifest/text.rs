//! The text of a file: its documents, each parsed. Like kubectl it takes a byte order mark, keys that
//! are numbers or booleans, and the escapes of JSON.

use serde_norway::Value;

/// Bound of what a document costs the YAML parser: at each character that may end a token it looks
/// at every bracket that is open, so 200 KB of `[` would keep it for minutes. A file of JSON as large
/// as may be, nested 50 deep, is below.
pub(super) const PARSER_STEPS_MAX: usize = 200_000_000;

/// One document of a file.
pub(super) struct Document {
    /// First line in the file, from 1.
    line: usize,
    /// Without the marker line.
    pub(super) text: String,
    /// It is the last document, and its last line has no newline: it may be truncated.
    is_unterminated: bool,
}

/// The documents of a file. YAML ends a document at a line that begins with `---` or `...`, even inside
/// a quoted or block scalar, so lines are enough; and a document that does not parse does not affect the
/// following ones.
pub(super) fn documents(text: &str) -> Vec<Document> {
    let document = |line| Document {
        line,
        text: String::new(),
        is_unterminated: false,
    };
    let mut documents = vec![document(1)];
    for (index, line) in text.lines().enumerate() {
        let is_start = documents
            .last()
            .is_none_or(|one| one.text.trim().is_empty());
        // Notepad and PowerShell begin a file with a byte order mark, and files are put together.
        let bare = line.strip_prefix('\u{feff}').unwrap_or(line);
        let marker = |marker| {
            bare.strip_prefix(marker)
                .filter(|rest| rest.is_empty() || rest.starts_with([' ', '\t']))
        };
        let rest = marker("---").or_else(|| marker("..."));
        if rest.is_some() {
            documents.push(document(index + 1));
        }
        let content = match rest {
            Some(rest) => rest,
            // `%YAML 1.2`
            None if is_start && bare.starts_with('%') => "",
            None if is_start => bare,
            None => line,
        };
        if let Some(document) = documents.last_mut() {
            document.text.push_str(content);
            document.text.push('\n');
        }
    }
    if let Some(document) = documents.last_mut() {
        document.is_unterminated = !text.is_empty() && !text.ends_with('\n');
    }
    documents
}

impl Document {
    /// Parses it.
    ///
    /// # Errors
    /// The reason with the line of the file.
    pub(super) fn parse(&self) -> Result<Value, String> {
        let line = self.line;
        if parser_steps(&self.text) > PARSER_STEPS_MAX {
            return Err(format!("line {line}: too many nested brackets"));
        }
        // JSON writes what is beyond 16 bits as two escapes, which YAML refuses.
        let json = self.is_flow().then(|| serde_json::from_str(&self.text));
        let mut value = match json {
            Some(Ok(value)) => value,
            _ => serde_norway::from_str::<Value>(&self.text).map_err(|error| {
                let at = error.location().map_or(line, |at| line + at.line() - 1);
                format!("line {at}: {}", in_file(&error.to_string(), line))
            })?,
        };
        match text_keys(&mut value) {
            Ok(()) => Ok(value),
            Err(key) => Err(format!("line {line}: a map has the key {key} twice")),
        }
    }

    /// Whether its end may be missing although it parses. A closing bracket proves that it is complete.
    pub(super) fn may_be_cut(&self) -> bool {
        self.is_unterminated && !self.is_flow()
    }

    /// Its lines, without a last one that may be truncated.
    pub(super) fn whole_lines(&self) -> impl Iterator<Item = &str> {
        let count = self.text.lines().count();
        let whole = count.saturating_sub(usize::from(self.is_unterminated));
        self.text.lines().take(whole)
    }

    fn is_flow(&self) -> bool {
        self.text.trim_start().starts_with(['{', '['])
    }
}

/// Converts keys that are whole numbers or booleans to text, as kubectl does.
///
/// # Errors
/// A key that exists twice after the conversion.
fn text_keys(value: &mut Value) -> Result<(), String> {
    match value {
        Value::Sequence(items) => items.iter_mut().try_for_each(text_keys),
        Value::Mapping(map) => {
            let is_text = |key: &Value| matches!(key, Value::String(_));
            if !map.keys().all(is_text) {
                for (key, value) in std::mem::take(map) {
                    let key = match key {
                        Value::Bool(key) => Value::String(key.to_string()),
                        Value::Number(key) if !key.is_f64() => Value::String(key.to_string()),
                        other => other,
                    };
                    if let Some(key) = key.as_str().filter(|key| map.contains_key(*key)) {
                        return Err(key.to_owned());
                    }
                    map.insert(key, value);
                }
            }
            map.values_mut().try_for_each(text_keys)
        }
        _ => Ok(()),
    }
}

/// At most how often the parser looks at an open bracket. Brackets in text are counted, too: to tell
/// them apart would be parsing.
pub(super) fn parser_steps(document: &str) -> usize {
    let (mut open, mut steps) = (0_usize, 0_usize);
    for byte in document.bytes() {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            b',' | b':' | b'?' | b'-' | b'"' | b'\'' | b'&' | b'*' | b' ' | b'\n' => {}
            _ => continue,
        }
        steps = steps.saturating_add(open);
    }
    steps
}

/// The words of the YAML reader, which counts the lines of a document, with the lines of the file.
fn in_file(words: &str, first: usize) -> String {
    let mut parts = words.split(" at line ");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(part.len());
        let (number, rest) = part.split_at(end);
        let line = number.parse::<usize>().map_or(0, |line| line + first - 1);
        text += &format!(" at line {line}{rest}");
    }
    text
}
