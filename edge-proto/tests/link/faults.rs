//! Peers and stores that violate the protocol.

use edge_proto::frame::{Frame, SessionId, Set};
use edge_proto::hash::Hash16;
use edge_proto::key::{Key, Kind};
use edge_proto::limits::REPEAT_MS_MIN;
use edge_proto::session::{BlobInput, BlobOutput, LinkInput, LinkOutput, NodeOutput, StateInput};

use crate::support::{Pair, Store, cloud, drain, finish_applies, key, node, put};

fn session(pair: &Pair) -> SessionId {
    let mut frames = pair.up.iter().chain(&pair.down);
    let Some(session) = frames.find_map(|frame| Frame::decode(frame).ok()?.session()) else {
        panic!("no frame of a session");
    };
    session
}

#[test]
fn an_inventory_that_contradicts_itself_means_a_full_resend_later() {
    let mut pair = Pair::new();
    pair.connect();
    pair.cloud(put(key(Kind::ConfigMap, 1), b"one"));
    pair.settle();
    pair.cloud(put(key(Kind::ConfigMap, 2), b"two"));
    let session = session(&pair);
    pair.down.clear();
    let hash = Hash16::of(b"one");
    let lie = Frame::Inventory {
        session,
        set: Set::Desired,
        root: Hash16([9; 16]),
        page: 0,
        last: true,
        order: 4,
        entries: vec![(key(Kind::ConfigMap, 1), hash)],
    };
    pair.cloud(LinkInput::Frame(&lie.encode()));
    assert!(pair.down.is_empty(), "sent at once");
    let deadline = pair.cloud.deadline().unwrap();
    assert!(deadline >= pair.now + REPEAT_MS_MIN);
    pair.now = deadline;
    pair.cloud(LinkInput::Tick);
    let Ok(Frame::Change { items, .. }) = Frame::decode(&pair.down[0]) else {
        panic!("no change");
    };
    assert_eq!(items.len(), 2);
    // A correct peer ends the repetition.
    pair.settle();
    assert!(pair.is_equal());
}

#[test]
fn a_large_object_that_fails_its_check_is_fetched_again_after_a_while() {
    let mut pair = Pair::new();
    pair.connect();
    pair.cloud(put(key(Kind::ConfigMap, 1), &vec![7; 5000]));
    let mut requests = 0;
    let mut wanted = None;
    for _ in 0..10 {
        while let Some(frame) = pair.down.pop_front() {
            pair.node.handle(pair.now, LinkInput::Frame(&frame));
            while let Some(output) = pair.node.poll() {
                match output {
                    NodeOutput::Link(LinkOutput::Send(frame)) => {
                        requests += 1;
                        pair.up.push_back(frame);
                    }
                    NodeOutput::Blob(BlobOutput::Wanted { sha256, .. }) => {
                        wanted = Some(sha256);
                        let bytes = 4096;
                        pair.node
                            .handle(pair.now, BlobInput::Have { sha256, bytes });
                    }
                    // The object is complete, but it does not match its hash.
                    NodeOutput::Blob(BlobOutput::Piece { sha256, .. }) => pair
                        .node
                        .handle(pair.now, BlobInput::Have { sha256, bytes: 0 }),
                    _ => {}
                }
            }
        }
        while let Some(frame) = pair.up.pop_front() {
            pair.cloud(LinkInput::Frame(&frame));
        }
    }
    assert!(wanted.is_some());
    assert_eq!(requests, 1, "asked again at once");
    assert!(pair.node.deadline().unwrap() >= pair.now + REPEAT_MS_MIN);
}

#[test]
fn in_sync_is_output_only_after_the_last_batch() {
    let mut pair = Pair::new();
    for name in 0..300 {
        pair.cloud(put(key(Kind::ConfigMap, name), &[1; 100]));
    }
    pair.cloud(LinkInput::TransportUp);
    pair.node(LinkInput::TransportUp);
    let mut batches = 0;
    while let Some(frame) = pair.down.pop_front() {
        pair.node(LinkInput::Frame(&frame));
        batches += usize::from(matches!(Frame::decode(&frame), Ok(Frame::Change { .. })));
        let in_sync = pair.seen_node.in_sync == Some((true, true));
        assert_eq!(in_sync, pair.at_node.objects.len() == 300);
        while let Some(frame) = pair.up.pop_front() {
            pair.cloud(LinkInput::Frame(&frame));
        }
    }
    assert!(batches >= 5);
    assert!(pair.is_equal());
}

#[test]
fn a_change_that_names_a_key_twice_is_not_applied() {
    let mut pair = Pair::new();
    pair.connect();
    pair.node(put(Key::node_status(), b"ready"));
    let session = session(&pair);
    pair.settle();
    let key = key(Kind::ConfigMap, 1);
    let put = |bytes: &[u8]| edge_proto::frame::Item::Put {
        key: key.clone(),
        bytes: bytes.to_vec(),
    };
    let hash = Hash16::of(b"b");
    let change = Frame::Change {
        session,
        set: Set::Desired,
        base: pair.node.desired().root(),
        result: edge_proto::set::root([(&key, hash)].into_iter()),
        order: 2,
        items: vec![put(b"a"), put(b"b")],
    };
    pair.node(LinkInput::Frame(&change.encode()));
    assert!(pair.at_node.objects.is_empty());
    assert_eq!(
        pair.seen_node.problems,
        [edge_proto::session::Problem::Change]
    );
    pair.settle();
    assert!(pair.is_equal());
}

/// Goal: a deleted object is not restored. Method: the change that created it arrives again when
/// the set is back at the root that it starts from.
#[test]
fn a_doubled_change_is_not_applied_to_a_set_that_returned_to_its_base() {
    let mut pair = Pair::new();
    pair.connect();
    let key = key(Kind::ConfigMap, 1);
    for _ in 0..2 {
        let empty = pair.node.desired().root();
        pair.cloud(put(key.clone(), b"a"));
        let creation = pair.down[0].clone();
        pair.settle();
        assert_eq!(pair.at_node.objects.len(), 1);
        pair.cloud(StateInput::Delete { key: key.clone() });
        pair.settle();
        assert_eq!(pair.node.desired().root(), empty);
        pair.node(LinkInput::Frame(&creation));
        assert!(pair.at_node.objects.is_empty());
        assert_eq!(pair.seen_node.in_sync, Some((true, true)));
        assert!(pair.up.is_empty());
    }
    // A new session, and a cloud that counts from the start.
    pair.node(LinkInput::TransportDown);
    pair.cloud = cloud(7, 50);
    pair.connect();
    pair.cloud(put(key, b"a"));
    pair.settle();
    assert!(pair.is_equal());
    assert_eq!(pair.at_node.objects.len(), 1);
}

/// Goal: the cloud accepts only the node's answer to the newest change. Method: the answer to an
/// earlier change that made the same set arrives while the newest is in flight.
#[test]
fn an_overtaken_answer_does_not_complete_a_later_change_to_the_same_root() {
    let mut pair = Pair::new();
    pair.connect();
    let key = key(Kind::ConfigMap, 1);
    pair.cloud(put(key.clone(), b"a"));
    let change = pair.down.pop_front().expect("a change is sent");
    pair.node(LinkInput::Frame(&change));
    let have = pair.up[0].clone();
    pair.settle();
    pair.cloud(StateInput::Delete { key: key.clone() });
    pair.settle();
    pair.cloud(put(key.clone(), b"a"));
    assert_eq!(pair.down.len(), 1, "the change is on its way");
    let inventory = Frame::Inventory {
        session: session(&pair),
        set: Set::Desired,
        root: pair.cloud.desired_root(),
        page: 0,
        last: true,
        order: 2,
        entries: vec![(key, Hash16::of(b"a"))],
    };
    for overtaken in [have, inventory.encode()] {
        pair.cloud(LinkInput::Frame(&overtaken));
        assert_eq!(pair.seen_cloud.in_sync, Some((false, true)));
    }
    pair.settle();
    assert!(pair.is_equal());
    assert_eq!(pair.at_node.objects.len(), 1);
    assert_eq!(pair.seen_cloud.in_sync, Some((true, true)));
}

#[test]
fn an_old_hello_does_not_stop_the_probes_of_a_restarted_cloud() {
    let mut pair = Pair::new();
    pair.cloud(LinkInput::TransportUp);
    pair.down.clear();
    pair.node(LinkInput::TransportUp);
    let old = pair.up[0].clone();
    pair.settle();
    pair.cloud = cloud(7, 50);
    pair.cloud(LinkInput::TransportUp);
    pair.down.clear();
    pair.cloud(LinkInput::Frame(&old));
    pair.settle();
    assert!(!pair.cloud.is_live());
    pair.now = pair.cloud.deadline().unwrap();
    pair.cloud(LinkInput::Tick);
    pair.settle();
    assert!(pair.cloud.is_live());
}

/// Goal: a lost frame only delays. Method: the result of an apply of the previous session is sent
/// once, and that is lost; the cloud assumes that the node is at its previous root.
#[test]
fn the_result_of_an_apply_of_a_former_session_is_repeated_until_received() {
    let mut pair = Pair::new();
    pair.connect();
    let key = key(Kind::ConfigMap, 1);
    pair.cloud(put(key.clone(), b"a"));
    let change = pair.down.pop_front().expect("a change is sent");
    let end = &mut pair.node;
    end.handle(pair.now, LinkInput::Frame(&change));
    let (store, seen) = (&mut pair.at_node, &mut pair.seen_node);
    assert!(drain(end, pair.now, store, seen, true).is_empty());
    pair.node(LinkInput::TransportDown);
    pair.cloud(LinkInput::TransportDown);
    pair.cloud(StateInput::Delete { key });
    pair.connect();
    assert_eq!(pair.seen_cloud.in_sync, Some((true, true)));
    let end = &mut pair.node;
    finish_applies(end, pair.now, &mut pair.at_node);
    pair.node(LinkInput::Tick);
    assert_eq!(pair.up.len(), 1, "it is told");
    pair.up.clear();
    while let Some(next) = pair.node.deadline() {
        pair.now = next;
        pair.node(LinkInput::Tick);
        pair.settle();
    }
    assert!(pair.is_equal());
    assert!(pair.at_node.objects.is_empty());
    assert_eq!(pair.seen_node.in_sync, Some((true, true)));
}

/// Goal: the node knows when it has all. Method: the change that was announced as waiting is deleted.
#[test]
fn a_node_learns_that_nothing_waits_any_more() {
    let mut pair = Pair::new();
    pair.connect();
    let small = put(key(Kind::ConfigMap, 1), b"a");
    let large = key(Kind::ConfigMap, 2);
    pair.cloud(put(key(Kind::ConfigMap, 3), b"first"));
    pair.cloud(small);
    pair.cloud(put(large.clone(), &vec![7; 9_000]));
    let first = pair.down.pop_front().expect("a change is sent");
    pair.node(LinkInput::Frame(&first));
    let have = pair.up.pop_front().expect("an answer");
    pair.cloud(LinkInput::Frame(&have));
    pair.cloud(StateInput::Delete { key: large });
    pair.settle();
    assert!(pair.is_equal());
    assert_eq!(pair.seen_node.in_sync, Some((true, true)));
    assert_eq!(pair.seen_cloud.in_sync, Some((true, true)));
}

/// Goal: a sender with an open question does not ask again for each frame that it receives meanwhile.
#[test]
fn an_answer_from_another_root_does_not_repeat_the_question() {
    let mut pair = Pair::new();
    pair.cloud(put(key(Kind::ConfigMap, 1), b"a"));
    pair.cloud(LinkInput::TransportUp);
    pair.node(LinkInput::TransportUp);
    let is_question = |frame: &Vec<u8>| matches!(Frame::decode(frame), Ok(Frame::Change { items, .. }) if items.is_empty());
    while !pair.down.iter().any(is_question) {
        if let Some(frame) = pair.up.pop_front() {
            pair.cloud(LinkInput::Frame(&frame));
        } else {
            let frame = pair.down.pop_front().expect("a question comes");
            pair.node(LinkInput::Frame(&frame));
        }
    }
    let have = Frame::Have {
        session: session(&pair),
        set: Set::Desired,
        root: Hash16([9; 16]),
        order: 0,
    };
    pair.cloud(LinkInput::Frame(&have.encode()));
    assert_eq!(
        pair.down.iter().filter(|frame| is_question(frame)).count(),
        1
    );
    pair.settle();
    assert!(pair.is_equal());
}

/// Both ends have the same sets, know it, and send nothing any more.
fn assert_settled(pair: &Pair) {
    assert!(pair.is_equal());
    assert_eq!(pair.seen_node.in_sync, Some((true, true)));
    assert_eq!(pair.seen_cloud.in_sync, Some((true, true)));
    assert_eq!((pair.node.deadline(), pair.cloud.deadline()), (None, None));
}

/// Goal: a receiver that was sent a target root is informed when the target changes. Method: while a session
/// opens, and between a question and its answer, each set changes by itself to what the other end has.
#[test]
fn a_set_that_reaches_the_peers_root_by_itself_is_announced() {
    let object = key(Kind::ConfigMap, 1);
    let status = key(Kind::DeviceStatus, 1);
    // The number of frames that are delivered before.
    for before in 0..8 {
        // The node has nothing, and the cloud has an object for a shorter and shorter time.
        let mut pair = Pair::new();
        pair.cloud(put(object.clone(), b"a"));
        pair.cloud(LinkInput::TransportUp);
        pair.node(LinkInput::TransportUp);
        pair.deliver(before);
        pair.cloud(StateInput::Delete {
            key: object.clone(),
        });
        pair.settle();
        assert_settled(&pair);

        // The cloud has an earlier status, and the node reports the same again, but late.
        pair.node(put(status.clone(), b"up"));
        pair.settle();
        pair.node = node(99);
        pair.cloud(LinkInput::TransportDown);
        pair.cloud(LinkInput::TransportUp);
        pair.node(LinkInput::TransportUp);
        pair.deliver(before);
        pair.node(put(status.clone(), b"up"));
        pair.settle();
        assert_settled(&pair);

        // A cloud that has lost the node's state receives it late.
        pair.cloud(put(object.clone(), b"b"));
        pair.settle();
        pair.node(LinkInput::TransportDown);
        pair.cloud = cloud(8, 50);
        pair.cloud(LinkInput::TransportUp);
        pair.node(LinkInput::TransportUp);
        pair.deliver(before);
        pair.cloud(put(object.clone(), b"b"));
        pair.settle();
        assert_settled(&pair);
    }
}

/// Goal: a question that arrives while the node is busy with an apply costs no repeat.
#[test]
fn a_question_that_meets_an_apply_is_asked_again_at_its_end() {
    let mut pair = Pair::new();
    pair.cloud(put(key(Kind::ConfigMap, 1), b"a"));
    pair.cloud(LinkInput::TransportUp);
    pair.node(LinkInput::TransportUp);
    // A new epoch causes an apply, and it takes until the question has arrived.
    let end = &mut pair.node;
    let mut held = Store::default();
    let mut rest = 10;
    while rest > 0 {
        rest -= 1;
        if let Some(frame) = pair.down.pop_front() {
            end.handle(pair.now, LinkInput::Frame(&frame));
        }
        pair.up
            .extend(drain(end, pair.now, &mut held, &mut pair.seen_node, true));
        if let Some(frame) = pair.up.pop_front() {
            let cloud = &mut pair.cloud;
            cloud.handle(pair.now, LinkInput::Frame(&frame));
            let (store, seen) = (&mut pair.at_cloud, &mut pair.seen_cloud);
            pair.down.extend(drain(cloud, pair.now, store, seen, false));
        }
    }
    assert_eq!(held.applying.len(), 1);
    finish_applies(end, pair.now, &mut held);
    pair.at_node = held;
    pair.node(LinkInput::Tick);
    pair.settle();
    assert_settled(&pair);
}
