//! Any text as the books of a node's records, as a cursor file, a backup or a sink gives them back:
//! they are read or refused, records are taken on top of them, and what balanced still does.
#![no_main]

use edge_cloud_fuzz::records::account::{Account, Batch, Incarnation};
use edge_proto::frame::{Entry, GapReason};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let Ok(books) = serde_json::from_slice::<Account>(text) else {
        return;
    };
    let again = serde_json::to_vec(&books).unwrap();
    assert!(serde_json::from_slice::<Account>(&again).unwrap() == books);
    let mut merged = Account::default();
    merged.merge(&books.streams);
    for mut account in [books, merged] {
        for (class, stream) in account.streams.clone() {
            let newest = stream.lanes.first();
            let outbox = newest.map_or(Incarnation([1; 8]), |lane| lane.incarnation);
            let next = newest.map_or(1, |lane| lane.next);
            for first in [0, 1, next.saturating_sub(1), next, u64::MAX] {
                let before = account.streams.get(&class).cloned().unwrap_or_default();
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
                let plan = account.plan(&[batch]);
                account.apply(&plan);
                let after = &account.streams[&class];
                assert!(after.totals().numbered >= before.totals().numbered);
                // Beyond that the counts stand still, which no outbox ever sees.
                let far = after.totals().numbered > u64::MAX / 4;
                // Number 0 is none, and books that are about to give it are not in order.
                assert!(!before.balances() || far || next == 0 || after.balances());
            }
        }
    }
});
