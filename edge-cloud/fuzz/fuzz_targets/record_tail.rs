//! Any bytes as the end of a record file, alone and behind good writes: those are found whatever
//! follows, and nothing else passes for one.
#![no_main]

use std::collections::BTreeMap;

use edge_cloud_fuzz::records::ledger::{Incarnation, Ledger, Stream};
use edge_cloud_fuzz::records::mark::{close, first, last};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|junk: &[u8]| {
    if let Some((end, mark)) = last(junk) {
        assert!(end <= junk.len() && mark.bytes < end);
        let mut ledger = Ledger::default();
        ledger.merge(&mark.streams);
        let _balanced = ledger.streams.values().all(Stream::balances);
    }
    let _first = first(junk);
    let mut stream = Stream::default();
    stream.outbox_mut(Incarnation([1; 8])).next = 7;
    let mut file = b"{\"seq\":6}\n".to_vec();
    let lines = file.len();
    close(&mut file, lines, BTreeMap::from([(0, stream.clone())]));
    let good = file.len();
    file.extend_from_slice(junk);
    let found = last(&file);
    let Some((end, mark)) = found else {
        panic!("a good write is not found");
    };
    // Junk may be a good write itself.
    assert!(end >= good);
    assert!(end > good || mark.streams == BTreeMap::from([(0, stream)]));
});
