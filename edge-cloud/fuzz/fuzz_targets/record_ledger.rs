//! Any text as the ledger of a node's records, as a cursor file, a backup or a sink gives it back:
//! it is read or refused, records are taken on top of them, and what balanced still does.
#![no_main]

use edge_cloud_fuzz::records::ledger::{Batch, Incarnation, Ledger};
use edge_proto::frame::{Entry, GapReason};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let Ok(read) = serde_json::from_slice::<Ledger>(text) else {
        return;
    };
    let again = serde_json::to_vec(&read).unwrap();
    assert!(serde_json::from_slice::<Ledger>(&again).unwrap() == read);
    let mut merged = Ledger::default();
    merged.merge(&read.streams);
    for mut ledger in [read, merged] {
        for (class, stream) in ledger.streams.clone() {
            let newest = stream.outboxes.first();
            let outbox = newest.map_or(Incarnation([1; 8]), |outbox| outbox.incarnation);
            let next = newest.map_or(1, |outbox| outbox.next);
            for first in [0, 1, next.saturating_sub(1), next, u64::MAX] {
                let before = ledger.streams.get(&class).cloned().unwrap_or_default();
                let batch = Batch {
                    incarnation: outbox,
                    class,
                    first,
                    held: first / 2,
                    entries: vec![
                        Entry::Record {
                            unix_ms: 1,
                            bytes: vec![7],
                        },
                        Entry::Gap {
                            count: 3,
                            reason: GapReason::Quota,
                        },
                    ],
                };
                let plan = ledger.plan(&[batch]);
                ledger.apply(&plan);
                let after = &ledger.streams[&class];
                assert!(after.totals().numbered >= before.totals().numbered);
                // Beyond that the counts stand still, which no outbox ever sees.
                let far = after.totals().numbered > u64::MAX / 4;
                // Number 0 is none, and a ledger that is about to give it is not in order.
                assert!(!before.balances() || far || next == 0 || after.balances());
            }
        }
    }
});
