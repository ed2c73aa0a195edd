//! Records as lines of JSON, for the files and for every sink that takes text:
//!
//! ```json
//! {"node":"gate-7","class":"toll","incarnation":"0011223344556677","seq":17,"unix_ms":1764115200000,"text":"..."}
//! {"node":"gate-7","class":"toll","incarnation":"0011223344556677","seq":18,"count":3,"lost":"quota"}
//! ```
//!
//! A payload that is not plain text has `base64` instead of `text`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use super::ledger::{Incarnation, Item, Loss, Plan, class_name};

#[derive(Serialize)]
struct Line<'a> {
    node: &'a str,
    class: &'a str,
    incarnation: Incarnation,
    seq: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    unix_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost: Option<Loss>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

/// Text that JSON carries at no more than twice its size.
fn plain(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?;
    let odd = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r');
    (!text.chars().any(odd)).then_some(text)
}

/// Appends the item's line.
pub fn write(out: &mut Vec<u8>, node: &str, incarnation: Incarnation, class: u8, item: &Item) {
    let class = class_name(class);
    let mut line = Line {
        node,
        class: &class,
        incarnation,
        seq: 0,
        unix_ms: None,
        count: None,
        lost: None,
        text: None,
        base64: None,
    };
    match item {
        Item::Record {
            seq,
            unix_ms,
            bytes,
        } => {
            line.seq = *seq;
            line.unix_ms = Some(*unix_ms);
            line.text = plain(bytes);
            line.base64 = line.text.is_none().then(|| STANDARD.encode(bytes));
        }
        Item::Lost { first, count, loss } => {
            line.seq = *first;
            line.count = Some(*count);
            line.lost = Some(*loss);
        }
    }
    // With these types into a Vec it cannot fail.
    if serde_json::to_writer(&mut *out, &line).is_ok() {
        out.push(b'\n');
    }
}

/// All lines of a plan.
#[must_use]
pub fn all(node: &str, plan: &Plan) -> Vec<u8> {
    let mut out = Vec::new();
    for item in &plan.items {
        write(&mut out, node, plan.incarnation, plan.class, item);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(item: &Item) -> String {
        let mut out = Vec::new();
        write(
            &mut out,
            "gate-7",
            Incarnation([0, 1, 2, 3, 4, 5, 6, 255]),
            0,
            item,
        );
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_says_whose_it_is_and_keeps_every_byte() {
        let record = |bytes: &[u8]| Item::Record {
            seq: 17,
            unix_ms: 5,
            bytes: bytes.to_vec(),
        };
        let head = r#"{"node":"gate-7","class":"toll","incarnation":"00010203040506ff","seq":17,"#;
        let text = line(&record(b"a \"b\"\nc"));
        assert_eq!(
            text,
            format!("{head}\"unix_ms\":5,\"text\":\"a \\\"b\\\"\\nc\"}}\n")
        );
        for bytes in [&b"\xff"[..], b"\0"] {
            let coded = STANDARD.encode(bytes);
            let text = line(&record(bytes));
            assert_eq!(
                text,
                format!("{head}\"unix_ms\":5,\"base64\":\"{coded}\"}}\n")
            );
        }
        let lost = Item::Lost {
            first: 17,
            count: 3,
            loss: Loss::Quota,
        };
        assert_eq!(
            line(&lost),
            format!("{head}\"count\":3,\"lost\":\"quota\"}}\n")
        );
    }
}
