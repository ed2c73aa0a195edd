//! Which frames may open a session, and which must not end one.

use edge_proto::frame::{Entry, Frame, Nonce, SessionId, Set};
use edge_proto::hash::Hash16;
use edge_proto::key::Kind;
use edge_proto::limits::{REFUSED_RETRY_MS, RETRY_AFTER_MS_MAX, WIRE_VERSION};
use edge_proto::session::{
    CallOpen, CloudInput, LinkInput, NodeOutput, NodeRecordsInput, NodeRecordsOutput, Problem,
};

use crate::support::{Pair, Seen, Store, cloud, drain, key, put};

#[test]
fn a_late_hello_cannot_take_a_live_session_away() {
    let mut pair = Pair::new();
    pair.cloud(LinkInput::TransportUp);
    pair.down.clear();
    pair.node(LinkInput::TransportUp);
    let late = pair.up[0].clone();
    pair.node(LinkInput::TransportDown);
    pair.up.clear();
    pair.node(LinkInput::TransportUp);
    pair.settle();
    let lives = pair.seen_cloud.live;
    pair.cloud(LinkInput::Frame(&late));
    pair.settle();
    assert!(pair.cloud.is_live() && pair.node.is_live());
    assert_eq!((pair.seen_cloud.live, pair.seen_cloud.down), (lives, 0));
    pair.cloud(put(key(Kind::ConfigMap, 1), b"still here"));
    pair.settle();
    assert!(pair.is_equal());
}

#[test]
fn a_node_waits_for_the_retry_after_and_a_probe_of_the_same_owner_does_not_change_that() {
    let mut pair = Pair::new();
    pair.node(LinkInput::TransportUp);
    let hello = pair.up.pop_front().unwrap();
    let Ok(Frame::Hello { n, .. }) = Frame::decode(&hello) else {
        panic!("not a Hello");
    };
    let retry_after = |n, epoch, wait_ms| Frame::RetryAfter { n, epoch, wait_ms }.encode();
    let probe = |epoch| Frame::Probe { epoch, unix_s: 0 }.encode();
    // Of another connection, and of a former owner: nothing changes.
    let repeat = pair.node.deadline();
    pair.node(LinkInput::Frame(&retry_after([9; 8], 7, 30_000)));
    assert_eq!(pair.node.deadline(), repeat);
    pair.node(LinkInput::Frame(&retry_after(n, 7, 30_000)));
    assert_eq!(pair.node.deadline(), Some(pair.now + 30_000));
    pair.node(LinkInput::Frame(&probe(7)));
    assert!(pair.up.is_empty());
    pair.now += 30_000;
    pair.node(LinkInput::Tick);
    assert_eq!(pair.up.pop_front(), Some(hello.clone()));
    // A new owner is answered at once; no cloud can make a node wait for ever.
    pair.node(LinkInput::Frame(&retry_after(n, 7, u64::MAX)));
    assert_eq!(pair.node.deadline(), Some(pair.now + RETRY_AFTER_MS_MAX));
    pair.node(LinkInput::Frame(&probe(8)));
    assert_eq!(pair.up.pop_front(), Some(hello));
    // A live session does not wait.
    pair.connect();
    pair.node(LinkInput::Frame(&retry_after(n, 7, 1_000)));
    assert!(pair.node.is_live());
    assert_eq!(pair.node.deadline(), None);
}

/// Goal: whatever an earlier or later agent adds behind the frozen members of its `Hello`, the answer
/// names the supported versions; a live session is not disturbed. Method: the bytes of a real `Hello`
/// under other versions, longer and truncated.
#[test]
fn a_hello_of_an_unsupported_version_is_refused_with_the_supported_ones() {
    let mut pair = Pair::new();
    pair.connect();
    pair.node(LinkInput::TransportDown);
    pair.up.clear();
    pair.node(LinkInput::TransportUp);
    let hello = pair.up.pop_front().unwrap();
    let Ok(Frame::Hello { n, .. }) = Frame::decode(&hello) else {
        panic!("not a Hello");
    };
    let frozen = 2 + n.len() + 1;
    let refused = Frame::HelloRefused {
        n,
        epoch: pair.node.epoch(),
        wire_min: WIRE_VERSION,
        wire_max: WIRE_VERSION,
        reason: 0,
    };
    for version in (0..=u8::MAX).filter(|version| *version != WIRE_VERSION) {
        let mut other = hello.clone();
        other[0] = version;
        other[frozen - 1] = version;
        other.extend([0xff; 40]);
        for end in 0..other.len() {
            pair.down.clear();
            pair.seen_cloud.problems.clear();
            pair.cloud(LinkInput::Frame(&other[..end]));
            if end >= frozen {
                assert_eq!(Frame::decode(&pair.down[0]).as_ref(), Ok(&refused));
                assert_eq!(pair.seen_cloud.problems, [Problem::Version(version)]);
            } else {
                assert!(pair.down.is_empty(), "version {version}, {end} bytes");
            }
        }
    }
    assert!(pair.cloud.is_live());
}

/// Goal: a refused agent reports it and retries slowly, but at once when the owner is another one.
/// Method: the refusal under the version of a later cloud, with members that do not exist yet.
#[test]
fn a_refused_node_reports_it_and_retries_slowly() {
    let mut pair = Pair::new();
    pair.node(LinkInput::TransportUp);
    let hello = pair.up.pop_front().unwrap();
    let Ok(Frame::Hello { n, .. }) = Frame::decode(&hello) else {
        panic!("not a Hello");
    };
    let refused = |n, epoch| {
        let frame = Frame::HelloRefused {
            n,
            epoch,
            wire_min: 7,
            wire_max: 9,
            reason: 0,
        };
        let mut bytes = frame.encode();
        bytes[0] = 9;
        bytes.extend([1, 2, 3]);
        bytes
    };
    let repeat = pair.node.deadline();
    pair.node(LinkInput::Frame(&refused([9; 8], 7)));
    assert_eq!(pair.node.deadline(), repeat);
    pair.node(LinkInput::Frame(&refused(n, 7)));
    let at = pair.node.deadline().unwrap() - pair.now;
    assert!((REFUSED_RETRY_MS..=REFUSED_RETRY_MS * 5 / 4).contains(&at));
    let [problem] = pair.seen_node.problems[..] else {
        panic!("{:?}", pair.seen_node.problems);
    };
    assert_eq!(
        problem.to_string(),
        format!(
            "the cloud reads wire versions 7 to 9, this agent speaks {WIRE_VERSION}: update the one \
             that is older"
        )
    );
    let probe = |epoch| Frame::Probe { epoch, unix_s: 0 }.encode();
    pair.node(LinkInput::Frame(&probe(7)));
    assert!(pair.up.is_empty());
    pair.node(LinkInput::Frame(&probe(8)));
    assert_eq!(pair.up.pop_front(), Some(hello));
    // A live session is not refused.
    pair.connect();
    pair.node(LinkInput::Frame(&refused(n, 8)));
    assert!(pair.node.is_live());
    assert_eq!(pair.node.deadline(), None);
}

#[test]
fn a_node_that_has_just_connected_is_asked_only_when_it_says_nothing() {
    let mut pair = Pair::new();
    pair.connect();
    for input in [LinkInput::TransportDown.into(), CloudInput::NodeConnected] {
        pair.cloud(input);
    }
    assert!(pair.down.is_empty());
    let before = (pair.seen_node.sent_frames, pair.seen_cloud.sent_frames);
    pair.node(LinkInput::TransportDown);
    pair.node(LinkInput::TransportUp);
    pair.settle();
    assert!(pair.cloud.is_live() && pair.node.is_live());
    let after = (pair.seen_node.sent_frames, pair.seen_cloud.sent_frames);
    assert_eq!((after.0 - before.0, after.1 - before.1), (2, 1));
    // Its `Hello` is lost.
    for input in [LinkInput::TransportDown.into(), CloudInput::NodeConnected] {
        pair.cloud(input);
    }
    pair.node(LinkInput::TransportDown);
    pair.node(LinkInput::TransportUp);
    pair.up.clear();
    pair.now = pair.cloud.deadline().unwrap();
    pair.cloud(LinkInput::Tick);
    assert!(matches!(
        Frame::decode(&pair.down[0]),
        Ok(Frame::Probe { .. })
    ));
    pair.settle();
    assert!(pair.cloud.is_live());
}

#[test]
fn the_will_of_an_old_connection_does_not_end_the_new_one() {
    let mut pair = Pair::new();
    let old = pair.node.will();
    pair.connect();
    pair.node(LinkInput::TransportDown);
    let new = pair.node.will();
    pair.node(LinkInput::TransportUp);
    pair.settle();
    pair.cloud(LinkInput::Frame(&old));
    assert!(pair.cloud.is_live());
    pair.cloud(LinkInput::Frame(&new));
    assert!(!pair.cloud.is_live());
    assert_eq!(pair.cloud.deadline(), None);
}

#[test]
fn a_lost_third_message_is_repeated() {
    let mut pair = Pair::new();
    pair.cloud(LinkInput::TransportUp);
    pair.down.clear();
    pair.node(LinkInput::TransportUp);
    let hello = pair.up.pop_front().unwrap();
    pair.cloud(LinkInput::Frame(&hello));
    let welcome = pair.down.pop_front().unwrap();
    pair.node(LinkInput::Frame(&welcome));
    pair.up.clear();
    assert!(pair.node.is_live() && !pair.cloud.is_live());
    pair.now = pair.cloud.deadline().unwrap();
    pair.cloud(LinkInput::Tick);
    pair.settle();
    assert!(pair.cloud.is_live());
}

#[test]
fn a_restarted_cloud_finds_its_live_node() {
    let mut pair = Pair::new();
    pair.connect();
    pair.cloud = cloud(8, 77);
    pair.cloud(LinkInput::TransportUp);
    pair.settle();
    assert!(pair.cloud.is_live());
    // Without the probe, the node's next frame is answered with a reset.
    pair.cloud = cloud(9, 78);
    pair.cloud(LinkInput::TransportUp);
    pair.down.clear();
    pair.node(put(key(Kind::DeviceStatus, 1), b"changed"));
    pair.settle();
    assert!(pair.cloud.is_live());
    assert_eq!(pair.at_node.epoch, 9);
    assert!(pair.is_equal());
}

#[test]
fn a_stale_replica_is_refused_and_learns_it() {
    let mut pair = Pair::new();
    pair.connect();
    let mut stale = cloud(6, 99);
    let (mut store, mut seen) = (Store::default(), Seen::default());
    let end = &mut stale;
    end.handle(0, LinkInput::TransportUp);
    let probes = drain(end, 0, &mut store, &mut seen, false);
    for probe in probes {
        pair.node(LinkInput::Frame(&probe));
    }
    assert_eq!(pair.seen_node.problems, [Problem::Epoch(6)]);
    // It receives the node's frames and answers them with a reset, which the node refuses too.
    pair.node(put(key(Kind::DeviceStatus, 1), b"changed"));
    end.handle(0, LinkInput::Frame(&pair.up[0]));
    let resets = drain(end, 0, &mut store, &mut seen, false);
    assert!(matches!(Frame::decode(&resets[0]), Ok(Frame::Reset { .. })));
    pair.node(LinkInput::Frame(&resets[0]));
    assert!(pair.node.is_live());
    pair.settle();
    assert!(pair.is_equal());
    // It does not even answer the node's next opening.
    pair.node(LinkInput::TransportDown);
    pair.node(LinkInput::TransportUp);
    end.handle(0, LinkInput::Frame(&pair.up[0]));
    assert!(drain(end, 0, &mut store, &mut seen, false).is_empty());
    assert_eq!(seen.problems, [Problem::Epoch(7)]);
}

#[test]
fn the_higher_epoch_wins_while_both_replicas_answer() {
    let mut pair = Pair::new();
    pair.cloud(LinkInput::TransportUp);
    pair.down.clear();
    pair.node(LinkInput::TransportUp);
    let mut newer = cloud(8, 99);
    let (mut store, mut seen) = (Store::default(), Seen::default());
    let end = &mut newer;
    end.handle(0, LinkInput::TransportUp);
    drain(end, 0, &mut store, &mut seen, false);
    end.handle(0, LinkInput::Frame(&pair.up[0]));
    let welcome = drain(end, 0, &mut store, &mut seen, false);
    pair.settle();
    assert_eq!(pair.node.epoch(), 7);
    pair.node(LinkInput::Frame(&welcome[0]));
    assert_eq!(pair.node.epoch(), 8);
    end.handle(0, LinkInput::Frame(&pair.up[0]));
    drain(end, 0, &mut store, &mut seen, false);
    assert_eq!(seen.live, 1);
}

#[test]
fn probes_and_hellos_are_repeated_with_a_bound() {
    let mut pair = Pair::new();
    pair.cloud(LinkInput::TransportUp);
    while let Some(deadline) = pair.cloud.deadline() {
        pair.now = deadline;
        pair.cloud(LinkInput::Tick);
    }
    assert_eq!(pair.seen_cloud.sent_frames, 8);
    pair.now = 0;
    pair.node(LinkInput::TransportUp);
    while pair.now < 24 * 3600 * 1000 {
        pair.now = pair.node.deadline().unwrap();
        pair.node(LinkInput::Tick);
    }
    let hellos = pair.seen_node.sent_frames;
    assert!((230..300).contains(&hellos), "{hellos} in a day");
}

/// Goal: a probe costs two frames and does not change the session. Method: a call is open when the
/// cloud probes.
#[test]
fn a_probe_in_a_live_session_leaves_the_session_as_it_is() {
    let mut pair = Pair::new();
    pair.connect();
    let (session, lives) = (pair.cloud.session(), pair.seen_node.live);
    let (id, method, args) = (1, 1, Vec::new());
    pair.cloud(CallOpen { id, method, args });
    pair.settle();
    let timers = (pair.node.deadline(), pair.cloud.deadline());
    let before = (pair.seen_node.sent_frames, pair.seen_cloud.sent_frames);
    let other = pair.seen_node.other.len();
    let (epoch, unix_s) = (7, 0);
    pair.node(LinkInput::Frame(&Frame::Probe { epoch, unix_s }.encode()));
    pair.settle();
    assert_eq!(pair.cloud.session(), session);
    let after = (pair.seen_node.sent_frames, pair.seen_cloud.sent_frames);
    assert_eq!((after.0 - before.0, after.1 - before.1), (2, 1));
    assert_eq!((pair.seen_node.live, pair.seen_cloud.live), (lives, 1));
    assert_eq!((pair.node.deadline(), pair.cloud.deadline()), timers);
    assert_eq!(pair.seen_node.other.len(), other, "the call goes on");
}

/// Goal: over a slow link the first session of a node is its only one, and no record is sent twice.
/// Method: a `Probe` leaves the cloud before the third message of the opening arrives there.
#[test]
fn a_probe_that_crosses_the_third_message_repeats_no_record() {
    let mut pair = Pair::new();
    pair.node(LinkInput::TransportUp);
    pair.cloud(CloudInput::NodeConnected);
    pair.now += 1_000;
    let hello = pair.up.pop_front().unwrap();
    pair.cloud(LinkInput::Frame(&hello));
    while !pair.down.iter().any(|frame| is_probe(frame)) {
        pair.now = pair.cloud.deadline().unwrap();
        pair.cloud(LinkInput::Tick);
    }
    let (class, incarnation, held, end) = (0, [1; 8], 1, 2);
    pair.node(NodeRecordsInput::Ready {
        class,
        incarnation,
        held,
        end,
    });
    let welcome = pair.down.pop_front().unwrap();
    pair.node(LinkInput::Frame(&welcome));
    let entries = || {
        let bytes = b"one".to_vec();
        vec![Entry::Record { unix_ms: 1, bytes }]
    };
    assert!(pair.seen_node.other.pop().is_some_and(is_wanted));
    let (first, read) = (1, entries());
    pair.node(NodeRecordsInput::Read {
        class,
        first,
        entries: read,
    });
    pair.settle();
    assert!(
        pair.seen_node.other.is_empty(),
        "{:?}",
        pair.seen_node.other
    );
    assert_eq!((pair.seen_node.live, pair.seen_cloud.live), (1, 1));
    assert_eq!(pair.cloud.take_repeated(), None);
}

fn is_probe(frame: &[u8]) -> bool {
    matches!(Frame::decode(frame), Ok(Frame::Probe { .. }))
}

fn is_wanted(output: NodeOutput) -> bool {
    matches!(
        output,
        NodeOutput::Records(NodeRecordsOutput::Wanted { from: 1, .. })
    )
}

/// Goal: with a connection and no session a node answers every `Probe`; without a connection, none. A
/// cloud ignores frames that only a cloud sends.
#[test]
fn a_probe_without_a_session_is_answered_with_the_same_hello() {
    let mut pair = Pair::new();
    let (epoch, unix_s) = (7, 0);
    let probe = Frame::Probe { epoch, unix_s }.encode();
    pair.node(LinkInput::Frame(&probe));
    assert!(pair.up.is_empty());
    pair.node(LinkInput::TransportUp);
    let hello = pair.up.pop_front().unwrap();
    for _ in 0..3 {
        pair.now += 100;
        pair.node(LinkInput::Frame(&probe));
        assert_eq!(pair.up.pop_front().as_ref(), Some(&hello));
        assert!(pair.up.is_empty());
    }
    let first_wait = pair.node.deadline().unwrap() - pair.now;
    assert!((4_000..=5_000).contains(&first_wait), "{first_wait}");
    pair.cloud(CloudInput::NodeConnected);
    pair.cloud(LinkInput::Frame(&probe));
    assert!(pair.down.is_empty());
}

fn hello(n: Nonce) -> Vec<u8> {
    let hello = Frame::Hello {
        n,
        wire: WIRE_VERSION,
        kinds: u32::MAX,
        epoch: 0,
        desired_root: Hash16::of(b""),
        reported_root: Hash16::of(b""),
        agent: String::new(),
    };
    hello.encode()
}

fn have(session: SessionId) -> Vec<u8> {
    let have = Frame::Have {
        session,
        set: Set::Desired,
        root: Hash16::of(b""),
        order: 0,
    };
    have.encode()
}

/// Goal: a cloud has one opening in progress; the newest `Hello` counts, and the node of the previous one
/// learns that it has no session.
#[test]
fn of_two_pending_openings_the_newer_one_counts() {
    let mut pair = Pair::new();
    pair.cloud(CloudInput::NodeConnected);
    let mut open = |n| {
        pair.cloud(LinkInput::Frame(&hello(n)));
        match Frame::decode(&pair.down.pop_front().unwrap()) {
            Ok(Frame::Welcome { session, .. }) => session,
            other => panic!("{other:?}"),
        }
    };
    let first = open([1; 8]);
    assert_eq!(open([1; 8]), first, "a repeat");
    let second = open([2; 8]);
    assert_eq!(second.n, [2; 8]);
    pair.cloud(LinkInput::Frame(&have(first)));
    assert!(!pair.cloud.is_live());
    let (session, epoch) = (first, 7);
    let reset = Frame::Reset { session, epoch }.encode();
    assert_eq!(pair.down.pop_front(), Some(reset));
    pair.cloud(LinkInput::Frame(&have(second)));
    assert_eq!(pair.cloud.session(), Some(second));
    // A pending opening does not change the live session until it is confirmed.
    pair.cloud(LinkInput::Frame(&hello([3; 8])));
    assert_eq!(pair.cloud.session(), Some(second));
}

/// Goal: a session that one end has ended is not opened again at this end, where its numbers would start
/// again while those of the other end continue. Method: a `Reset` that the cloud has not sent.
#[test]
fn an_ended_session_is_not_opened_again() {
    let mut pair = Pair::new();
    pair.connect();
    pair.cloud(put(key(Kind::ConfigMap, 1), b"one"));
    pair.settle();
    let (session, epoch) = (pair.cloud.session().unwrap(), 7);
    pair.node(LinkInput::Frame(&Frame::Reset { session, epoch }.encode()));
    assert!(!pair.node.is_live() && pair.cloud.is_live());
    pair.settle();
    assert!(pair.node.is_live() && pair.cloud.is_live());
    assert_ne!(pair.cloud.session(), Some(session));
    pair.node(put(key(Kind::DeviceStatus, 1), b"still heard"));
    pair.settle();
    assert!(pair.is_equal());
}
