//! Marks: the lines of a record file up to which it is valid. A mark covers the lines before it
//! and contains the node's ledger after them, so data and high-water mark are one write:
//!
//! ```json
//! {"mark":{"bytes":130,"streams":{"0":{"outboxes":[{"incarnation":"..","next":18,..}]}}},"crc32":"89abcdef"}
//! ```
//!
//! `bytes` is the length of the lines since the previous mark; the CRC covers them and the
//! mark up to its own field. Bytes after the last valid mark were never acknowledged: a write that a
//! power cut has torn, or of a process that was killed.
//!
//! Bound: the caller's window; its content is untrusted.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ledger::Stream;

/// Bytes of the lines that one mark closes.
pub const LINES_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of one mark: 16 streams of 4 outboxes at most, each below 256 bytes, and totals.
pub const MARK_BYTES_MAX: usize = 32 * 1024;
/// The last valid mark begins within so many bytes from the end of a file: one write may be torn.
pub const WINDOW_BYTES: usize = 2 * (LINES_BYTES_MAX + MARK_BYTES_MAX);

const HEAD: &[u8] = b"{\"mark\":";
const SUM: &[u8] = b",\"crc32\":\"";
const END: &[u8] = b"\"}\n";
/// Of the SUM's hex digits and what is around them.
const FOOT_BYTES: usize = SUM.len() + 8 + END.len();

/// Content of a mark.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Bytes of the lines that it covers.
    pub bytes: usize,
    /// Ledgers of the streams that have changed; all of them in the first mark of a file.
    pub streams: BTreeMap<u8, Stream>,
}

/// Adds a mark to `lines`, of which the last `fresh` bytes are new.
pub fn close(lines: &mut Vec<u8>, fresh: usize, streams: BTreeMap<u8, Stream>) {
    let start = lines.len().saturating_sub(fresh);
    let bytes = fresh;
    lines.extend(HEAD);
    // With these types into a Vec it cannot fail.
    serde_json::to_writer(&mut *lines, &Mark { bytes, streams }).unwrap_or_default();
    let sum = crc32fast::hash(lines.get(start..).unwrap_or_default());
    lines.extend(SUM);
    lines.extend(format!("{sum:08x}").bytes());
    lines.extend(END);
}

/// The last valid mark of `tail`, and how many bytes of the tail are valid with it.
#[must_use]
pub fn last(tail: &[u8]) -> Option<(usize, Mark)> {
    let mut end = tail.len();
    loop {
        end = tail.get(..end)?.iter().rposition(|byte| *byte == b'\n')? + 1;
        let before = tail.get(..end - 1)?;
        let start = before.iter().rposition(|byte| *byte == b'\n');
        let start = start.map_or(0, |at| at + 1);
        if let Some(mark) = at(tail, start, end) {
            return Some((end, mark));
        }
        if start == 0 {
            return None;
        }
        end = start;
    }
}

/// The mark at the start of a file, if it is valid.
#[must_use]
pub fn first(head: &[u8]) -> Option<(usize, Mark)> {
    let end = head.iter().position(|byte| *byte == b'\n')? + 1;
    Some((end, at(head, 0, end)?))
}

/// The line from `start` to `end` as a mark.
fn at(tail: &[u8], start: usize, end: usize) -> Option<Mark> {
    let line = tail.get(start..end)?;
    if line.len() > MARK_BYTES_MAX || !line.starts_with(HEAD) {
        return None;
    }
    let (body, foot) = line.split_at_checked(line.len().checked_sub(FOOT_BYTES)?)?;
    let digits = foot.strip_prefix(SUM)?.strip_suffix(END)?;
    let sum = u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    let mark: Mark = serde_json::from_slice(body.strip_prefix(HEAD)?).ok()?;
    let from = start.checked_sub(mark.bytes)?;
    let good = crc32fast::hash(tail.get(from..start + body.len())?) == sum;
    good.then_some(mark)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::records::ledger::Incarnation;

    fn streams(next: u64) -> BTreeMap<u8, Stream> {
        let mut stream = Stream::default();
        stream.outbox_mut(Incarnation([1; 8])).next = next;
        BTreeMap::from([(0, stream)])
    }

    /// A file of so many writes, and where each of them ends.
    fn file(writes: u64) -> (Vec<u8>, Vec<usize>) {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for next in 1..=writes {
            let lines = format!("{{\"seq\":{next}}}\n").repeat(3);
            bytes.extend(lines.as_bytes());
            close(&mut bytes, lines.len(), streams(next));
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    #[test]
    fn a_cut_anywhere_loses_only_the_write_that_it_cuts() {
        let (bytes, ends) = file(4);
        for cut in 0..=bytes.len() {
            let whole = ends.iter().filter(|end| **end <= cut).count();
            let found = last(&bytes[..cut]);
            let wanted = whole.checked_sub(1).map(|index| ends[index]);
            assert_eq!(found.as_ref().map(|(end, _)| *end), wanted, "{cut}");
            if let Some((_, mark)) = found {
                assert_eq!(mark.streams, streams(whole as u64));
            }
        }
    }

    #[test]
    fn a_changed_byte_of_the_last_write_undoes_it_and_no_other() {
        let (bytes, ends) = file(3);
        for index in ends[1]..bytes.len() {
            let mut changed = bytes.clone();
            changed[index] ^= 0x01;
            let (end, _) = last(&changed).unwrap();
            assert_eq!(end, ends[1], "{index}");
        }
    }

    #[test]
    fn a_payload_cannot_pass_for_a_mark() {
        let (mark, _) = file(1);
        let item = crate::records::ledger::Item::Record {
            seq: 1,
            unix_ms: 0,
            bytes: mark,
        };
        let mut line = Vec::new();
        super::super::line::write(&mut line, "gate", Incarnation([1; 8]), 0, &item);
        assert_eq!(last(&line), None);
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
    }

    #[test]
    fn the_largest_mark_fits_its_cap() {
        use crate::records::ledger::{Lost, OUTBOXES_MAX, Outbox, Totals, classes};
        let most = u64::MAX;
        let lost = Lost {
            quota: most,
            expired: most,
            superseded: most,
            damaged: most,
            forgotten: most,
        };
        let outbox = Outbox {
            incarnation: Incarnation([0xff; 8]),
            next: most,
            delivered: most,
            duplicates: most,
            lost,
        };
        let former = Totals {
            numbered: most,
            delivered: most,
            duplicates: most,
            lost,
            outboxes: most,
        };
        let stream = Stream {
            outboxes: vec![outbox; OUTBOXES_MAX],
            former,
        };
        let streams = classes().map(|class| (class, stream.clone()));
        let mut out = Vec::new();
        close(&mut out, 0, streams.collect());
        assert!(out.len() <= MARK_BYTES_MAX, "{}", out.len());
        assert!(first(&out).is_some());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(head in any::<Vec<u8>>(), junk in any::<Vec<u8>>()) {
            let _none = (last(&head), first(&head));
            // Whatever a torn write leaves after valid marks, they are found.
            let (mut bytes, ends) = file(2);
            bytes.extend(junk);
            prop_assert_eq!(last(&bytes).map(|(end, _)| end), ends.last().copied());
        }
    }
}
