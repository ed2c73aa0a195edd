//! Bytes as the file with the outbox's counters, raw, behind a correct checksum, or as counters of
//! any numbers, beside a segment: the outbox opens, its counters are consistent, it takes a record, reports
//! what the session may read, and opens again with it.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use edge_min::storage::outbox::{Store, segment};
use edge_min_fuzz::{scratch, toll_only};
use libfuzzer_sys::fuzz_target;

const SLOT_BYTES: usize = 32 * 1024;

/// As the outbox writes it: class, base, start, held, next, delivered, lost, gaps.
type OfClass = (u8, u64, u64, u64, u64, u64, [u64; 4], Vec<(u64, [u64; 4])>);

fuzz_target!(|data: &[u8]| {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    let dir = DIR.get_or_init(|| scratch("counters")).join("outbox");
    let Some((mode, bytes)) = data.split_first() else {
        return;
    };
    let mut file = Vec::new();
    match mode % 3 {
        0 => file.extend(bytes),
        1 => {
            let (one, other) = bytes.split_at(bytes.len() / 2);
            file.extend(slot(one));
            file.resize(SLOT_BYTES, 0);
            file.extend(slot(other));
        }
        _ => file.extend(slot(&counters(bytes))),
    }
    fs::remove_dir_all(&dir).ok();
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("state"), &file).unwrap();
    let mut records = Vec::new();
    for number in 3..6 {
        segment::put_record(&mut records, number, 9, &[], b"toll");
    }
    segment::put_acked(&mut records, 4);
    fs::write(dir.join("0-0000000000000003.seg"), &records).unwrap();
    let settings = toll_only();
    let mut store = Store::open(&dir, &settings).unwrap();
    let before = store.counters(0);
    let lost: u64 = before.lost.iter().sum();
    assert_eq!(before.appended, before.delivered + before.held + lost);
    let number = store.append_durably(0, b"new").unwrap();
    assert_eq!(number, before.appended + 1);
    drop(store);
    let store = Store::open(&dir, &settings).unwrap();
    let after = store.counters(0);
    assert_eq!(after.appended, number);
    assert_eq!(after.held, before.held + 1);
});

/// With its length and checksum, as one of the two slots.
fn slot(body: &[u8]) -> Vec<u8> {
    let mut slot = b"EMO1".to_vec();
    slot.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
    slot.extend(crc32fast::hash(body).to_le_bytes());
    slot.extend(body);
    slot
}

/// Counters with values near each other and near the bounds.
fn counters(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.iter().copied();
    let mut number = || match bytes.next().unwrap_or_default() {
        small @ 0..240 => u64::from(small) / 8,
        large => u64::MAX >> (large - 240),
    };
    let mut classes: Vec<OfClass> = Vec::new();
    for _ in 0..number() % 4 {
        let class = (number() % 3) as u8;
        let lost = [number(), number(), number(), number()];
        let gaps = (0..number() % 4).map(|_| (number(), [number(), number(), 0, number()]));
        let gaps = gaps.collect();
        let (base, start, held, next) = (number(), number(), number(), number());
        classes.push((class, base, start, held, next, number(), lost, gaps));
    }
    edge_proto::encode(&(number(), [7_u8; 8], classes))
}
