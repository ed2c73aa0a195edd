//! Bytes as the saved desired set, with a correct checksum or a wrong one: it opens, whatever it
//! contains, takes a change, and opens again with it.
#![no_main]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use edge_min::storage::store::Store;
use edge_min_fuzz::scratch;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    let dir = DIR.get_or_init(|| scratch("store"));
    let Some((mode, bytes)) = data.split_first() else {
        return;
    };
    // The cache is a process of its own, with sled's reader.
    let no_cache = Path::new("/nonexistent");
    let mut snapshot = b"EMD2\x02".to_vec();
    match mode % 2 {
        0 => snapshot = bytes.to_vec(),
        _ => {
            snapshot.extend(crc32fast::hash(bytes).to_be_bytes());
            snapshot.extend(bytes);
        }
    }
    fs::write(dir.join("desired.a"), &snapshot).unwrap();
    fs::remove_file(dir.join("desired.b")).ok();
    let (mut store, objects, _damage) = Store::open(dir, no_cache).unwrap();
    let before = objects.len();
    store.apply(Vec::new(), 7).unwrap();
    drop(store);
    let (store, objects, damage) = Store::open(dir, no_cache).unwrap();
    assert_eq!(store.epoch(), 7, "{damage:?}");
    assert!(objects.len() <= before);
});
