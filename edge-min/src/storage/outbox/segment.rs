//! Bytes of a segment: items one after the other, each with its own checksum, so that the items
//! after a damaged one can be found. `docs/outbox.md` specifies them.

use edge_proto::limits::RECORD_BYTES_MAX;

/// First byte of each item: the next item after damage is searched by it.
const MARKER: u8 = 0xe7;
/// Marker, kind, length of the body, checksum over both and the body.
const HEADER_BYTES: usize = 8;
/// Number, time and length of the key.
const RECORD_FIXED_BYTES: usize = 17;
/// Bytes of a coalescing key.
pub const KEY_BYTES_MAX: usize = 64;
/// Longest item.
pub const ITEM_BYTES_MAX: usize =
    HEADER_BYTES + RECORD_FIXED_BYTES + KEY_BYTES_MAX + RECORD_BYTES_MAX;
/// Shortest item of a record.
pub const RECORD_BYTES_MIN: usize = HEADER_BYTES + RECORD_FIXED_BYTES;

const KIND_RECORD: u8 = 0;
const KIND_ACKED: u8 = 1;

/// Content of one item of a segment file.
#[derive(Debug, PartialEq, Eq)]
pub enum SegmentItem<'a> {
    /// A record of a workload.
    Record {
        /// Number in the class.
        number: u64,
        /// Time of writing, milliseconds since 1970.
        unix_ms: u64,
        /// Coalescing key, empty for none.
        key: &'a [u8],
        /// Payload of the record.
        bytes: &'a [u8],
    },
    /// Everything before this number had been acknowledged when this was written.
    Acked(u64),
}

/// Content of the start of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// A valid item, and its length.
    Whole(SegmentItem<'a>, usize),
    /// Possibly a item, if more bytes follow.
    Short,
    /// Not a item.
    Bad,
}

/// Encoded length of a record.
#[must_use]
pub const fn record_bytes(key: &[u8], bytes: &[u8]) -> usize {
    RECORD_BYTES_MIN + key.len() + bytes.len()
}

/// Writes a record; key and bytes are within their caps.
pub fn put_record(out: &mut Vec<u8>, number: u64, unix_ms: u64, key: &[u8], bytes: &[u8]) {
    let key_bytes = [u8::try_from(key.len()).unwrap_or(u8::MAX)];
    let fixed = [number.to_le_bytes(), unix_ms.to_le_bytes()].concat();
    put(
        out,
        KIND_RECORD,
        &[&fixed, key_bytes.as_slice(), key, bytes],
    );
}

/// Writes up to which number the cloud has acknowledged.
pub fn put_acked(out: &mut Vec<u8>, next: u64) {
    put(out, KIND_ACKED, &[&next.to_le_bytes()]);
}

fn put(out: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let [low, high] = u16::try_from(length).unwrap_or(u16::MAX).to_le_bytes();
    let head = [kind, low, high];
    let mut crc = crc32fast::Hasher::new();
    crc.update(&head);
    parts.iter().for_each(|part| crc.update(part));
    out.push(MARKER);
    out.extend(head);
    out.extend(crc.finalize().to_le_bytes());
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

/// Parses the item at the start of `bytes`.
#[must_use]
pub fn parse(bytes: &[u8]) -> Parsed<'_> {
    let Some((&[marker, kind, low, high], rest)) = bytes.split_first_chunk::<4>() else {
        return Parsed::Short;
    };
    let length = usize::from(u16::from_le_bytes([low, high]));
    if marker != MARKER || kind > KIND_ACKED || length > ITEM_BYTES_MAX - HEADER_BYTES {
        return Parsed::Bad;
    }
    let Some((crc, rest)) = rest.split_first_chunk::<4>() else {
        return Parsed::Short;
    };
    let Some(body) = rest.get(..length) else {
        return Parsed::Short;
    };
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[kind, low, high]);
    hasher.update(body);
    if hasher.finalize().to_le_bytes() != *crc {
        return Parsed::Bad;
    }
    match item(kind, body) {
        Some(item) => Parsed::Whole(item, HEADER_BYTES + length),
        None => Parsed::Bad,
    }
}

fn item(kind: u8, body: &[u8]) -> Option<SegmentItem<'_>> {
    let (number, rest) = body.split_first_chunk::<8>()?;
    let number = u64::from_le_bytes(*number);
    if kind == KIND_ACKED {
        return rest.is_empty().then_some(SegmentItem::Acked(number));
    }
    let (unix_ms, rest) = rest.split_first_chunk::<8>()?;
    let (key_bytes, rest) = rest.split_first()?;
    let (key, bytes) = rest.split_at_checked(usize::from(*key_bytes))?;
    let fits = key.len() <= KEY_BYTES_MAX && bytes.len() <= RECORD_BYTES_MAX;
    fits.then_some(SegmentItem::Record {
        number,
        unix_ms: u64::from_le_bytes(*unix_ms),
        key,
        bytes,
    })
}

/// All valid items of a segment, whatever is between them.
#[derive(Debug)]
pub struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Start of the last valid item.
    pub start: usize,
    /// End of the last valid item.
    pub end: usize,
}

impl<'a> Scan<'a> {
    /// Begins at the start of `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            start: 0,
            end: 0,
        }
    }
}

impl<'a> Iterator for Scan<'a> {
    type Item = SegmentItem<'a>;

    fn next(&mut self) -> Option<SegmentItem<'a>> {
        loop {
            let rest = self.bytes.get(self.at..).filter(|rest| !rest.is_empty())?;
            if let Parsed::Whole(item, length) = parse(rest) {
                self.start = self.at;
                self.at += length;
                self.end = self.at;
                return Some(item);
            }
            // A damaged length may point anywhere: the next marker may begin a item.
            let skipped = rest.iter().skip(1).position(|byte| *byte == MARKER)?;
            self.at += 1 + skipped;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment() -> (Vec<u8>, Vec<usize>) {
        let mut bytes = Vec::new();
        let mut ends = Vec::new();
        for number in 1..=20_u8 {
            if number == 10 {
                put_acked(&mut bytes, 5);
            }
            let record = vec![number; usize::from(number) * 7];
            put_record(&mut bytes, number.into(), 99, b"key", &record);
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    fn numbers(bytes: &[u8]) -> Vec<u64> {
        let number = |item| match item {
            SegmentItem::Record { number, .. } => Some(number),
            SegmentItem::Acked(_) => None,
        };
        Scan::new(bytes).filter_map(number).collect()
    }

    #[test]
    fn frames_keep_their_bytes() {
        let mut bytes = Vec::new();
        put_record(&mut bytes, 1, 2, b"k", b"r");
        assert_eq!(record_bytes(b"k", b"r"), bytes.len());
        let golden = [
            0xe7, 0, 19, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, b'k',
            b'r',
        ];
        assert_eq!(bytes[..4], golden[..4]);
        assert_eq!(bytes[8..], golden[8..]);
        let crc = crc32fast::hash(&[&golden[1..4], &golden[8..]].concat());
        assert_eq!(bytes[4..8], crc.to_le_bytes());
        let mut bytes = Vec::new();
        put_acked(&mut bytes, 7);
        assert_eq!(
            parse(&bytes),
            Parsed::Whole(SegmentItem::Acked(7), bytes.len())
        );
    }

    /// Goal: truncation anywhere leaves every complete item before it, and the end of the last one.
    #[test]
    fn a_torn_tail_leaves_what_is_whole() {
        let (bytes, ends) = segment();
        for cut in 0..bytes.len() {
            let whole = ends.iter().filter(|end| **end <= cut).count();
            let mut scan = Scan::new(&bytes[..cut]);
            let records = scan
                .by_ref()
                .filter(|item| matches!(item, SegmentItem::Record { .. }));
            assert_eq!(records.count(), whole, "cut at {cut}");
            assert!(scan.end <= cut);
        }
    }

    /// Goal: a damaged byte loses its own item, no other.
    #[test]
    fn one_damaged_byte_loses_one_item() {
        let (bytes, ends) = segment();
        for place in 0..bytes.len() {
            let mut bent = bytes.clone();
            bent[place] ^= 0x55;
            let hit = ends.iter().filter(|end| **end <= place).count() as u64 + 1;
            let left = numbers(&bent);
            // The acknowledgement before the tenth is a item of its own.
            assert!(left.len() >= 19, "byte {place}");
            assert!(
                (1..=20)
                    .filter(|one| *one != hit)
                    .all(|one| left.contains(&one))
            );
        }
    }
}
