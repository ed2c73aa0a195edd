//! Bytes as a segment of the outbox, and valid items with some bytes changed: whatever it
//! contains, the outbox opens, its counters are consistent, it takes a record and opens again with it.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use edge_min::storage::outbox::{Store, segment};
use edge_min_fuzz::{scratch, toll_only};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    let dir = DIR.get_or_init(|| scratch("outbox")).join("outbox");
    let Some((mode, bytes)) = data.split_first() else {
        return;
    };
    let mut file = Vec::new();
    match mode % 3 {
        0 => file.extend(bytes),
        mode => {
            // Numbers, keys and records from the input, with correct checksums.
            for part in bytes.chunks(12) {
                let (number, rest) = part.split_at(part.len().min(2));
                let number = number.iter().fold(0, |sum, byte| sum * 256 + u64::from(*byte));
                let (key, record) = rest.split_at(rest.len().min(2));
                match number % 16 {
                    0 => segment::put_acked(&mut file, number),
                    _ => segment::put_record(&mut file, number / 7, number, key, record),
                }
            }
            if mode == 2 && !file.is_empty() {
                let place = bytes.len() * 31 % file.len();
                file[place] ^= mode;
            }
        }
    }
    fs::remove_dir_all(&dir).ok();
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("0-0000000000000001.seg"), &file).unwrap();
    let settings = toll_only();
    let mut store = Store::open(&dir, &settings).unwrap();
    let before = store.counters(0);
    let lost = |counters: &edge_core::outbox::Counters| counters.lost.iter().sum::<u64>();
    assert_eq!(
        before.appended,
        before.delivered + before.held + lost(&before)
    );
    store.append_durably(0, b"new").unwrap();
    drop(store);
    let store = Store::open(&dir, &settings).unwrap();
    let after = store.counters(0);
    assert_eq!(after.appended, before.appended + 1);
    assert_eq!(after.held, before.held + 1);
});
