//! Tables for people.

use crate::clock;

/// Columns as wide as their widest cell, two blanks between. Control characters, which may come
/// from a node, are shown as `?` so that they cannot drive the terminal.
pub(super) fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut lines = vec![head.iter().map(ToString::to_string).collect::<Vec<_>>()];
    lines.extend(rows);
    let mut widths = vec![0; head.len()];
    for line in &mut lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *cell = cell.replace(char::is_control, "?");
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for line in lines {
        let mut row = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            row.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

/// `yes` or `no`.
pub(super) fn yes(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

/// Time since then, in its largest unit; `-` when it is not known.
pub(super) fn ago(unix_s: u64) -> String {
    if unix_s == 0 {
        return "-".to_owned();
    }
    span(clock::unix_s().saturating_sub(unix_s))
}

/// Time until then, in its largest unit; `ended` when it is over, `-` when it is not known.
pub(super) fn ahead(unix_s: u64) -> String {
    match unix_s.checked_sub(clock::unix_s()) {
        _ if unix_s == 0 => "-".to_owned(),
        None | Some(0) => "ended".to_owned(),
        Some(seconds) => span(seconds),
    }
}

fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}
