//! Both ends together over a network without loss.

use std::sync::Arc;

use edge_proto::frame::Frame;
use edge_proto::key::{Key, Kind};
use edge_proto::limits::{BLOB_WINDOW_BYTES, CONFIG_BYTES_MAX, SET_OBJECTS_MAX};
use edge_proto::session::{
    CloudOutput, LinkInput, LinkOutput, NodeOutput, Payload, Reason, StateInput, StateOutput,
};

use crate::support::{Pair, key, put};

fn config(name: u64) -> Key {
    key(Kind::ConfigMap, name)
}

#[test]
fn opens_and_replicates_both_ways() {
    let mut pair = Pair::new();
    pair.connect();
    assert_eq!((pair.seen_node.live, pair.seen_cloud.live), (1, 1));
    assert_eq!(pair.seen_node.in_sync, Some((true, true)));
    pair.cloud(put(config(1), b"config"));
    pair.node(put(Key::node_status(), b"ready"));
    pair.settle();
    assert!(pair.is_equal());
    assert_eq!(pair.at_node.objects.len(), 1);
    assert_eq!(pair.at_node.epoch, 7);
    assert_eq!(pair.at_cloud.objects.len(), 1);
    assert_eq!(pair.seen_cloud.in_sync, Some((true, true)));
    pair.cloud(StateInput::Delete { key: config(1) });
    pair.settle();
    assert!(pair.is_equal() && pair.at_node.objects.is_empty());
}

#[test]
fn reconnect_without_changes_is_four_small_frames() {
    let mut pair = Pair::new();
    pair.cloud(put(config(1), b"config"));
    pair.node(put(Key::node_status(), b"ready"));
    pair.connect();
    pair.node(LinkInput::TransportDown);
    pair.seen_node.sent_bytes = 0;
    pair.seen_cloud.sent_bytes = 0;
    pair.node(LinkInput::TransportUp);
    pair.settle();
    assert_eq!(pair.seen_node.live, 2);
    let bytes = pair.seen_node.sent_bytes + pair.seen_cloud.sent_bytes;
    assert!(bytes <= 200, "{bytes} bytes");
}

/// Bytes of a reconnect after a day offline in which `keys` statuses changed `changes` times in total.
fn bytes_after_a_day_offline(keys: u64, changes: u64) -> usize {
    let mut pair = Pair::new();
    pair.connect();
    for name in 0..keys {
        pair.node(put(key(Kind::DeviceStatus, name), b"8 bytes."));
    }
    pair.settle();
    assert!(pair.is_equal());
    pair.node(LinkInput::TransportDown);
    pair.cloud(LinkInput::TransportDown);
    for change in 0..changes {
        let payload: Arc<[u8]> = Arc::from(change.to_le_bytes());
        let key = key(Kind::DeviceStatus, change % keys);
        pair.node.handle(pair.now, StateInput::Put { key, payload });
        assert_eq!(pair.node.poll(), None, "nothing is queued offline");
    }
    pair.now += 24 * 3600 * 1000;
    pair.seen_node.sent_bytes = 0;
    pair.seen_cloud.sent_bytes = 0;
    pair.cloud(LinkInput::TransportUp);
    pair.node(LinkInput::TransportUp);
    pair.settle();
    assert!(pair.is_equal());
    pair.seen_node.sent_bytes + pair.seen_cloud.sent_bytes
}

/// Goal: the cost of a day offline grows with the keys, not with the changes. Method: a million changes cost
/// as much as one for each key, and ten times the keys cost about ten times as much.
#[test]
fn a_day_offline_costs_keys_not_changes() {
    let million = bytes_after_a_day_offline(100, 1_000_000);
    assert_eq!(million, bytes_after_a_day_offline(100, 100));
    assert!(million <= 100 * 64, "{million} bytes for 100 keys");
    let more = bytes_after_a_day_offline(1_000, 10_000);
    assert!(more <= 1_000 * 64, "{more} bytes for 1000 keys");
}

#[test]
fn a_full_set_of_long_keys_is_exchanged_whole() {
    let mut pair = Pair::new();
    pair.connect();
    let long = |set: &str, name: usize| {
        let name = format!("{set}{name:0>250}");
        Key::Name(Kind::ConfigMap, "n".repeat(253), name)
    };
    for name in 0..SET_OBJECTS_MAX {
        pair.cloud(put(long("a", name), b"a"));
    }
    pair.settle();
    assert!(pair.is_equal());
    // All objects differ from before, from a cloud that has no state of the node: the inventory
    // has its full length, and deletions must come first.
    pair.cloud = crate::support::cloud(8, 9);
    for name in 0..SET_OBJECTS_MAX {
        pair.cloud(put(long("b", name), b"b"));
    }
    pair.cloud(put(long("c", 0), b"c"));
    assert_eq!(
        pair.seen_cloud.other,
        [CloudOutput::State(StateOutput::PutRefused {
            key: long("c", 0),
            reason: Reason::Full
        })]
    );
    pair.cloud(LinkInput::TransportUp);
    pair.settle();
    assert!(pair.is_equal());
    assert_eq!(pair.at_node.objects.len(), SET_OBJECTS_MAX);
}

/// Goal: a large object waits for sixteen batches of small ones, and not for ever. Method: at every
/// answer there is a newer small object, or one is deleted and the next one exists.
#[test]
fn a_large_object_does_not_starve_behind_small_ones() {
    for deletes in [false, true] {
        let mut pair = Pair::new();
        pair.connect();
        let large = key(Kind::ConfigMap, 1);
        pair.cloud(put(key(Kind::ConfigMap, 2), b"first"));
        pair.cloud(put(large.clone(), &vec![7; 50_000]));
        let mut batches = 0;
        while !pair.at_node.objects.contains_key(&large) {
            let Some(frame) = pair.down.pop_front() else {
                break;
            };
            let decoded = Frame::decode(&frame);
            if matches!(decoded, Ok(Frame::Change { .. })) {
                batches += 1;
                assert!(batches < 30, "it does not come");
                let (old, new) = if deletes {
                    (2 + batches, 3 + batches)
                } else {
                    (3, 2)
                };
                let key = |name| key(Kind::ConfigMap, name);
                pair.cloud(StateInput::Delete { key: key(old) });
                pair.cloud(put(key(new), &batches.to_le_bytes()));
            }
            pair.node(LinkInput::Frame(&frame));
            while let Some(frame) = pair.up.pop_front() {
                pair.cloud(LinkInput::Frame(&frame));
            }
            // It is preempted again at most every two seconds.
            pair.now += 10;
        }
        assert!(batches >= 17, "{batches}");
        pair.settle();
        assert!(pair.is_equal());
    }
}

#[test]
fn a_large_object_resumes_where_the_link_broke() {
    let mut pair = Pair::new();
    pair.connect();
    let payload: Vec<u8> = (0..CONFIG_BYTES_MAX).map(|i| (i * i) as u8).collect();
    pair.cloud(put(config(1), &payload));
    let mut reconnects = 0;
    for step in 0.. {
        if pair.is_equal() {
            break;
        }
        if step % 100 == 99 {
            pair.node(LinkInput::TransportDown);
            pair.up.clear();
            pair.down.clear();
            pair.node(LinkInput::TransportUp);
            reconnects += 1;
        }
        if let Some(frame) = pair.up.pop_front() {
            pair.cloud(LinkInput::Frame(&frame));
        } else if let Some(frame) = pair.down.pop_front() {
            pair.node(LinkInput::Frame(&frame));
        }
    }
    assert!(reconnects > 3);
    // Only what was in flight at a disconnect is sent again.
    let sent = pair.seen_cloud.sent_bytes;
    let again = reconnects * BLOB_WINDOW_BYTES;
    assert!(sent < (CONFIG_BYTES_MAX + again) * 11 / 10, "{sent} bytes");
    let Some(Payload::Large { sha256, .. }) = pair.at_node.objects.get(&config(1)) else {
        panic!("no large object");
    };
    assert_eq!(pair.at_node.blobs[&sha256.0], payload);
}

#[test]
fn a_refused_object_stays_as_a_stub_and_roots_meet() {
    let mut pair = Pair::new();
    pair.connect();
    pair.cloud(put(config(1), b"bad"));
    let frame = pair.down.pop_front().unwrap();
    pair.node.handle(pair.now, LinkInput::Frame(&frame));
    while let Some(output) = pair.node.poll() {
        if let NodeOutput::State(StateOutput::Apply { ticket, .. }) = output {
            let refused = vec![(config(1), Reason::Field(99))];
            pair.node
                .handle(pair.now, StateInput::Applied { ticket, refused });
        } else if let NodeOutput::Link(LinkOutput::Send(frame)) = output {
            pair.up.push_back(frame);
        }
    }
    pair.settle();
    assert!(pair.is_equal());
    assert_eq!(pair.seen_cloud.in_sync, Some((true, true)));
    let stubs: Vec<_> = pair.node.desired().refused().collect();
    assert_eq!(stubs, [(&config(1), Reason::Field(99))]);
}

#[test]
fn have_is_sent_only_when_the_change_is_durable() {
    let mut pair = Pair::new();
    pair.connect();
    pair.cloud(put(config(1), b"config"));
    let frame = pair.down.pop_front().unwrap();
    pair.node.handle(pair.now, LinkInput::Frame(&frame));
    // Repeats while the caller is busy change nothing.
    pair.node.handle(pair.now, LinkInput::Frame(&frame));
    let outputs: Vec<_> = std::iter::from_fn(|| pair.node.poll()).collect();
    let [
        NodeOutput::State(StateOutput::Apply { ticket, .. }),
        NodeOutput::State(StateOutput::InSync { desired: false, .. }),
    ] = outputs[..]
    else {
        panic!("{outputs:?}");
    };
    let refused = Vec::new();
    pair.node(StateInput::Applied { ticket, refused });
    let have = Frame::decode(&pair.up[0]).unwrap();
    assert!(matches!(have, Frame::Have { root, .. } if root == pair.cloud.desired_root()));
}

#[test]
fn kinds_that_the_node_does_not_know_are_not_sent() {
    let mut pair = Pair::new();
    let config_node = edge_proto::session::NodeConfig {
        kinds: Kind::ConfigMap.bit() | Kind::NodeStatus.bit(),
        agent: "old".into(),
    };
    pair.node = edge_proto::session::Node::new(config_node, 5);
    pair.cloud(put(config(1), b"config"));
    pair.cloud(put(key(Kind::Rule, 1), b"rule"));
    pair.connect();
    pair.cloud(put(key(Kind::Rule, 2), b"rule"));
    pair.settle();
    assert!(pair.is_equal());
    assert_eq!(pair.at_node.objects.len(), 1);
    assert_eq!(pair.seen_cloud.in_sync, Some((true, true)));
}
