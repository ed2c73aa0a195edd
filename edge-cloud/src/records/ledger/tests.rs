//! The ledger on examples, and with a simple model of a node.

use edge_proto::frame::{Entry, GapReason};
use proptest::prelude::*;

use super::*;

const OUTBOX: Incarnation = Incarnation([7; 8]);

fn record(number: u64) -> Entry {
    Entry::Record {
        unix_ms: number,
        bytes: number.to_be_bytes().to_vec(),
    }
}

fn batch(first: u64, held: u64, entries: Vec<Entry>) -> Batch {
    Batch {
        incarnation: OUTBOX,
        class: 0,
        first,
        held,
        entries,
    }
}

fn take(ledger: &mut Ledger, batches: &[Batch]) -> Plan {
    let plan = ledger.plan(batches);
    ledger.apply(&plan);
    assert!(ledger.streams.values().all(Stream::balances));
    plan
}

fn numbers(plan: &Plan) -> Vec<u64> {
    let record = |item: &Item| match item {
        Item::Record { seq, .. } => Some(*seq),
        Item::Lost { .. } => None,
    };
    plan.items.iter().filter_map(record).collect()
}

#[test]
fn of_a_gap_what_did_arrive_is_not_lost() {
    let mut ledger = Ledger::default();
    take(&mut ledger, &[batch(1, 1, (1..=5).map(record).collect())]);
    // The acknowledgement was lost, and the quota dropped 3 to 9 meanwhile.
    let gap = Entry::Gap {
        count: 7,
        reason: GapReason::Quota,
    };
    let plan = take(&mut ledger, &[batch(3, 3, vec![gap, record(10)])]);
    let lost = Item::Lost {
        first: 6,
        count: 4,
        loss: Loss::Quota,
    };
    assert_eq!(plan.items[0], lost);
    assert_eq!(numbers(&plan), [10]);
    let totals = ledger.streams[&0].totals();
    assert_eq!(
        (totals.numbered, totals.delivered, totals.lost.quota),
        (10, 6, 4)
    );
}

#[test]
fn what_was_acknowledged_and_is_not_known_is_reported() {
    let mut ledger = Ledger::default();
    take(&mut ledger, &[batch(1, 1, vec![record(1)])]);
    let plan = take(&mut ledger, &[batch(8, 8, vec![record(8)])]);
    assert_eq!(numbers(&plan), [8]);
    assert_eq!(ledger.streams[&0].totals().lost.forgotten, 6);
}

#[test]
fn frames_that_were_lost_are_waited_for() {
    let mut ledger = Ledger::default();
    let late = [batch(1, 1, vec![record(1)]), batch(3, 1, vec![record(3)])];
    let plan = take(&mut ledger, &late);
    assert_eq!((plan.taken, plan.next), (1, 2));
}

#[test]
fn what_comes_again_is_left_out_and_answered() {
    let mut ledger = Ledger::default();
    take(&mut ledger, &[batch(1, 1, vec![record(1)])]);
    let plan = take(&mut ledger, &[batch(1, 1, (1..=3).map(record).collect())]);
    assert_eq!(numbers(&plan), [2, 3]);
    assert_eq!((plan.taken, plan.duplicates), (1, 1));
}

#[test]
fn a_new_outbox_begins_anew_and_old_ones_end_as_totals() {
    let mut ledger = Ledger::default();
    for number in 1..=6 {
        let mut one = batch(1, 1, vec![record(1)]);
        one.incarnation = Incarnation([number; 8]);
        let plan = take(&mut ledger, &[one]);
        let before = plan.follows.map(|outbox| outbox.incarnation.0[0]);
        assert_eq!(before, (number > 1).then(|| number - 1));
    }
    let stream = &ledger.streams[&0];
    assert_eq!(stream.outboxes.len(), OUTBOXES_MAX);
    assert_eq!(
        (stream.totals().delivered, stream.totals().outboxes),
        (6, 6)
    );
}

#[test]
fn numbers_that_no_node_has_do_not_overflow() {
    let mut ledger = Ledger::default();
    let end = Entry::Gap {
        count: u64::MAX,
        reason: GapReason::Damaged,
    };
    take(
        &mut ledger,
        &[batch(u64::MAX - 1, u64::MAX, vec![end, record(0)])],
    );
}

#[test]
fn a_ledger_survives_being_written() {
    let mut ledger = Ledger::default();
    take(&mut ledger, &[batch(4, 4, vec![record(4)])]);
    let text = serde_json::to_string(&ledger).unwrap();
    assert_eq!(serde_json::from_str::<Ledger>(&text).unwrap(), ledger);
}

/// Action of a node between two frames that it sends.
#[derive(Clone, Debug)]
enum Step {
    Make(u8),
    Drop(u8),
    Send { back: u8, count: u8 },
    Ack,
    Forget,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1u8..9).prop_map(Step::Make),
        (1u8..5).prop_map(Step::Drop),
        (0u8..9, 1u8..9).prop_map(|(back, count)| Step::Send { back, count }),
        Just(Step::Ack),
        Just(Step::Forget),
    ]
}

/// A simple model of the node's side.
#[derive(Default)]
struct Node {
    /// By number from 1: whether the record is still held.
    made: Vec<bool>,
    acknowledged: u64,
}

impl Node {
    fn frame(&self, from: u64, count: u8) -> Batch {
        let held = self.acknowledged + 1;
        let first = from.max(held);
        let made = self.made.len() as u64;
        let entries =
            (first..=made)
                .take(count.into())
                .map(|number| match self.made[number as usize - 1] {
                    true => record(number),
                    false => Entry::Gap {
                        count: 1,
                        reason: GapReason::Expired,
                    },
                });
        batch(first, held, entries.collect())
    }
}

proptest! {
    /// Goal: whatever is repeated, dropped by the node, lost, or lost by the cloud: each
    /// number is delivered once or lost for one reason, and no record that the node holds is
    /// lost. Method: a simple model of a node that sends from any permitted number, and a cloud that
    /// sometimes returns to an old copy of its ledger.
    #[test]
    fn each_number_is_accounted_for_once(steps in prop::collection::vec(step(), 1..80)) {
        let mut node = Node::default();
        let mut ledger = Ledger::default();
        let mut old = Ledger::default();
        // Since the last time that the cloud lost its state.
        let mut delivered = std::collections::BTreeSet::new();
        for step in steps {
            match step {
                Step::Make(count) => node.made.extend(vec![true; count.into()]),
                Step::Drop(count) => {
                    let held = node.acknowledged as usize;
                    let dropped = node.made.iter_mut().skip(held).take(count.into());
                    dropped.for_each(|held| *held = false);
                }
                Step::Send { back, count } => {
                    let next = ledger.streams.get(&0).map_or(1, |s| s.outboxes[0].next);
                    let from = next.saturating_sub(back.into());
                    let frame = node.frame(from, count);
                    if frame.entries.is_empty() {
                        continue;
                    }
                    for number in numbers(&take(&mut ledger, &[frame])) {
                        prop_assert!(delivered.insert(number), "{} twice", number);
                    }
                }
                Step::Ack => {
                    let next = ledger.streams.get(&0).map_or(1, |s| s.outboxes[0].next);
                    node.acknowledged = node.acknowledged.max(next - 1);
                    old = ledger.clone();
                }
                Step::Forget => {
                    ledger = old.clone();
                    let next = ledger.streams.get(&0).map_or(1, |s| s.outboxes[0].next);
                    delivered.retain(|number| *number < next);
                }
            }
        }
        // At the end everything that is held arrives.
        loop {
            let next = ledger.streams.get(&0).map_or(1, |s| s.outboxes[0].next);
            let frame = node.frame(next, 8);
            if frame.entries.is_empty() {
                break;
            }
            delivered.extend(numbers(&take(&mut ledger, &[frame])));
        }
        let held = node.made.iter().zip(1u64..).skip(node.acknowledged as usize);
        for (_, number) in held.filter(|(held, _)| **held) {
            prop_assert!(delivered.contains(&number), "{} is missing", number);
        }
        if let Some(stream) = ledger.streams.get(&0) {
            prop_assert_eq!(stream.totals().numbered, node.made.len() as u64);
            prop_assert_eq!(stream.totals().delivered, delivered.len() as u64);
        }
    }
}
