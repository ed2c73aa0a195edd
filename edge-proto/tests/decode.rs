//! Encoded frames: pinned for every variant; no input can make decoding panic.

use edge_proto::enrol::{Broker, EnrolRequest, JoinAnswer, JoinRequest, RenewRequest};
use edge_proto::fields::{Fault, FieldError, Reader, Skip, Writer};
use edge_proto::frame::{Entry, Frame, FrameError, GapReason, Item, SessionId, Set};
use edge_proto::hash::{Hash16, Hash32};
use edge_proto::key::{Key, Kind, Uid};
use edge_proto::lanes::{Lane, Limits};
use edge_proto::limits::{
    AGENT_BYTES_MAX, CALL_BYTES_MAX, FRAME_BYTES_MAX, INLINE_BYTES_MAX, PIECE_BYTES_MAX,
    RECORD_BYTES_MAX, RECORDS_BYTES_MAX,
};
use edge_proto::object::{LaneLimit, NodePolicy};
use edge_proto::session::{Cloud, CloudConfig, LinkInput, Node, NodeConfig};
use edge_proto::wire::Wire as _;
use proptest::prelude::*;

const SESSION: SessionId = SessionId {
    n: [1; 8],
    c: [2; 8],
};
const ROOT: Hash16 = Hash16([0xaa; 16]);
const SHA: Hash32 = Hash32([0xbb; 32]);

fn all_frames() -> Vec<Frame> {
    let session = SESSION;
    let pod = Key::pod(Uid([3; 16]));
    let config = Key::Name(Kind::ConfigMap, "ns".into(), "cm".into());
    vec![
        Frame::Hello {
            n: [1; 8],
            wire: 2,
            kinds: 0x3ff,
            epoch: 300,
            desired_root: ROOT,
            reported_root: Hash16([0xcc; 16]),
            agent: "a/1".into(),
        },
        Frame::Welcome {
            session,
            wire: 2,
            epoch: 300,
            desired_root: ROOT,
            reported_root: Hash16([0xcc; 16]),
            unix_s: 1_800_000_000,
        },
        Frame::Reset { session, epoch: 5 },
        Frame::Probe {
            epoch: 5,
            unix_s: 0,
        },
        Frame::Gone { n: [1; 8] },
        Frame::Inventory {
            session,
            set: Set::Desired,
            root: ROOT,
            page: 1,
            last: true,
            order: 2,
            entries: vec![(pod.clone(), ROOT)],
        },
        Frame::Change {
            session,
            set: Set::Desired,
            base: Hash16::default(),
            result: ROOT,
            order: 1,
            items: vec![
                Item::Put {
                    key: config.clone(),
                    bytes: b"hi".to_vec(),
                },
                Item::Large {
                    key: config,
                    sha256: SHA,
                    len: 5000,
                },
                Item::Delete { key: pod },
            ],
        },
        Frame::Have {
            session,
            set: Set::Reported,
            root: ROOT,
            order: 300,
        },
        Frame::PieceGet {
            session,
            sha256: SHA,
            offset: 4096,
        },
        Frame::Piece {
            session,
            sha256: SHA,
            offset: 4096,
            bytes: b"xyz".to_vec(),
        },
        Frame::CallOpen {
            session,
            id: 9,
            method: 2,
            args: b"q".to_vec(),
            upto: 61_952,
        },
        Frame::CallData {
            session,
            id: 9,
            number: 128,
            bytes: b"r".to_vec(),
            end: true,
        },
        Frame::CallCredit {
            session,
            id: 9,
            number: 129,
            seen: 3,
            upto: 16384,
            check: true,
        },
        Frame::CallCancel { session, id: 9 },
        Frame::RetryAfter {
            n: [1; 8],
            epoch: 7,
            wait_ms: 30_000,
        },
        Frame::Records {
            session,
            incarnation: [7; 8],
            class: 2,
            held: 300,
            first: 301,
            entries: vec![
                Entry::Record {
                    unix_ms: 1_800_000_000_000,
                    bytes: b"toll".to_vec(),
                },
                gap(300, GapReason::Quota),
                gap(1, GapReason::Expired),
                gap(2, GapReason::Superseded),
                gap(3, GapReason::Damaged),
            ],
        },
        Frame::RecordsAck {
            session,
            incarnation: [7; 8],
            class: 2,
            next: 301,
            missing: true,
        },
        Frame::HelloRefused {
            n: [1; 8],
            epoch: 300,
            wire_min: 2,
            wire_max: 4,
            reason: 0,
        },
        Frame::CallControl {
            session,
            id: 9,
            number: 300,
            kind: 1,
            bytes: vec![80, 0, 24, 0],
        },
        Frame::CallResult {
            session,
            id: 9,
            number: 301,
            code: 300,
            reason: "no".into(),
        },
        // Not available.
        Frame::Piece {
            session,
            sha256: SHA,
            offset: 4096,
            bytes: Vec::new(),
        },
        // Change 150 (order / 2), without further ones.
        Frame::Change {
            session,
            set: Set::Reported,
            base: ROOT,
            result: ROOT,
            order: 300,
            items: Vec::new(),
        },
    ]
}

const fn gap(count: u64, reason: GapReason) -> Entry {
    Entry::Gap { count, reason }
}

/// Hex of `bytes`; runs of four or more equal bytes as `byte*count`.
fn hex(bytes: &[u8]) -> String {
    let runs = bytes.chunk_by(|a, b| a == b).map(|run| match run {
        [byte, _, _, _, ..] => format!("{byte:02x}*{}", run.len()),
        run => run.iter().map(|byte| format!("{byte:02x}")).collect(),
    });
    runs.collect::<Vec<_>>().join(" ")
}

/// The two messages of an enrolment, one of each kind.
#[test]
fn every_message_of_an_enrolment_keeps_its_bytes() {
    let request = JoinRequest {
        token_id: "t".into(),
        token_secret: "s".into(),
        node: "gate".into(),
        csr: vec![1, 2],
    };
    let bytes = request.to_wire();
    assert_eq!(hex(&bytes), "01 74 01 73 04 67 61 74 65 02 01 02");
    assert_eq!(JoinRequest::from_wire(&bytes), Some(request));
    let join = EnrolRequest::decode(&bytes).unwrap();
    assert!(matches!(join, EnrolRequest::Join(join) if join.node == "gate"));
    let renewal = RenewRequest {
        ca_sha256: [5; 32],
        certificate: vec![7],
        csr: vec![1, 2],
        signature: vec![3],
    };
    let bytes = renewal.encode();
    assert_eq!(hex(&bytes), "0000 05*32 01 07 02 01 02 01 03");
    let again = EnrolRequest::decode(&bytes);
    assert_eq!(again, Some(EnrolRequest::Renew(renewal)));
    for other in [
        &[0][..],
        &[0, 1],
        // A length in two bytes, and trailing bytes.
        &[0x80, 0, 1, b's', 0, 0],
        &[1, b't', 1, b's', 0, 0, 0],
        &bytes[..bytes.len() - 1],
        &[&bytes[..], &[0]].concat(),
    ] {
        assert_eq!(EnrolRequest::decode(other), None, "{other:?}");
    }
    let signed = RenewRequest::signed(&[5; 32], &[7], &[1, 2]);
    assert_eq!(
        hex(&signed[..52]),
        "65 64 67 65 2d 6d 69 6e 20 72 65 6e 65 77 20 31 00 05*32 ca 35 87"
    );
    assert_eq!(signed.len(), 17 + 3 * 32);
    let (certificate, ca, unix_s) = (vec![7], vec![8], 300);
    let accepted = JoinAnswer::Accepted {
        certificate: certificate.clone(),
        ca: ca.clone(),
        unix_s,
    };
    let external = JoinAnswer::ExternalBroker {
        certificate,
        ca,
        unix_s,
        broker: Broker {
            url: "u".into(),
            anchors: vec![vec![9]],
        },
    };
    let issued = JoinAnswer::Issued {
        certificate: vec![7],
        cas: vec![vec![8], vec![6]],
        unix_s,
        broker: Some(Broker {
            url: "u".into(),
            anchors: vec![vec![9]],
        }),
    };
    for (answer, golden) in [
        (issued, "03 01 07 02 01 08 01 06 ac 02 0101 75 0101 09"),
        (accepted, "00 01 07 01 08 ac 02"),
        (
            JoinAnswer::Refused {
                reason: "no".into(),
            },
            "01 02 6e 6f",
        ),
        (external, "02 01 07 01 08 ac 02 01 75 0101 09"),
    ] {
        let bytes = answer.to_wire();
        assert_eq!(hex(&bytes), golden, "{answer:?}");
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(JoinAnswer::from_wire(&longer), None);
        for end in 0..bytes.len() {
            assert_eq!(JoinAnswer::from_wire(&bytes[..end]), None);
        }
        assert_eq!(JoinAnswer::from_wire(&bytes), Some(answer));
    }
}

#[test]
fn every_frame_keeps_its_bytes() {
    let golden = include_str!("golden.txt");
    let ours: String = all_frames()
        .iter()
        .map(|frame| hex(&frame.encode()) + "\n")
        .collect();
    assert_eq!(ours, golden, "\nthe wire changed; ours is:\n{ours}");
    for frame in all_frames() {
        assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
    }
}

/// Goal: whoever adds a variant must choose its lane. Method: a match without a wildcard.
#[test]
fn every_frame_has_its_lane() {
    for frame in all_frames() {
        let lane = match &frame {
            Frame::Hello { .. }
            | Frame::Welcome { .. }
            | Frame::Reset { .. }
            | Frame::Probe { .. }
            | Frame::Gone { .. }
            | Frame::RetryAfter { .. }
            | Frame::HelloRefused { .. } => Lane::Control,
            Frame::Inventory { .. } | Frame::Change { .. } | Frame::Have { .. } => Lane::State,
            Frame::Records { class: 0, .. } | Frame::RecordsAck { class: 0, .. } => Lane::Toll,
            Frame::Records { .. } | Frame::RecordsAck { .. } => Lane::Stream,
            Frame::PieceGet { .. } | Frame::Piece { .. } => Lane::Blob,
            Frame::CallOpen { .. }
            | Frame::CallData { .. }
            | Frame::CallCredit { .. }
            | Frame::CallCancel { .. }
            | Frame::CallControl { .. }
            | Frame::CallResult { .. } => Lane::Call,
        };
        assert_eq!(Lane::of(&frame.encode()), lane, "{frame:?}");
    }
    let toll = Frame::Records {
        session: SESSION,
        incarnation: [7; 8],
        class: 0,
        held: 1,
        first: 1,
        entries: Vec::new(),
    };
    assert_eq!(Lane::of(&toll.encode()), Lane::Toll);
    assert_eq!(Lane::of(&[]), Lane::Blob);
    assert_eq!(Lane::of(&[2, 200]), Lane::Blob);
}

#[test]
fn a_policy_keeps_its_bytes() {
    let policy = NodePolicy {
        keepalive_s: Some(60),
        reconnect_spread_s: Some(30),
        bandwidth_up: Some(200_000),
        bandwidth_down: Some(900_000),
        blob_share_percent: Some(10),
        limits: vec![LaneLimit {
            lane: Lane::Blob as u8,
            up: 0,
            down: 500_000,
        }],
    };
    let bytes = policy.encode();
    assert_eq!(
        hex(&bytes),
        "0202 01 3c 04 02 01 1e 06 04 01 c0 9a 0c 08 04 01 a0 f7 36 0a 02 01 0a 0c 0a 01 08 03 01 05 07 03 a0 c2 1e"
    );
    assert_eq!(NodePolicy::decode(&bytes), Ok(policy.clone()));
    assert_eq!(
        policy.limits_down().lane_bits_per_s,
        [0, 0, 0, 0, 0, 500_000]
    );
    assert_eq!(policy.limits_up().link_bits_per_s, 200_000);
    assert_eq!(NodePolicy::default().limits_up(), Limits::NONE);
    let limits = vec![LaneLimit::default(); 7];
    let many = NodePolicy {
        limits,
        ..NodePolicy::default()
    };
    assert_eq!(
        NodePolicy::decode(&many.encode()),
        Err(FieldError::new(Fault::Limit, 6))
    );
}

#[test]
fn the_root_of_a_set_keeps_its_bytes() {
    let pod = Key::pod(Uid([3; 16]));
    let config = Key::Name(Kind::ConfigMap, "ns".into(), "cm".into());
    let members = [(&pod, ROOT), (&config, ROOT)];
    let bytes = [&pod.to_bytes()[..], &ROOT.0, &config.to_bytes(), &ROOT.0].concat();
    assert_eq!(
        edge_proto::set::root(members.into_iter()),
        Hash16::of(&bytes)
    );
    assert_eq!(pod.to_bytes(), [&[0, 0][..], &[3; 16]].concat());
    assert_eq!(config.to_bytes(), b"\x01\x01\x02ns\x02cm");
}

#[test]
fn frames_that_are_not_ours_are_refused() {
    assert_eq!(Frame::decode(&[]), Err(FrameError::PeerLength));
    let long = vec![2; FRAME_BYTES_MAX + 1];
    assert_eq!(Frame::decode(&long), Err(FrameError::PeerLength));
    assert_eq!(Frame::decode(&[1, 4]), Err(FrameError::PeerVersion(1)));
    assert_eq!(Frame::decode(&[3, 4]), Err(FrameError::PeerVersion(3)));
    assert_eq!(Frame::decode(&[2, 100]), Err(FrameError::PeerMalformed));
    let mut trailing = Frame::Gone { n: [1; 8] }.encode();
    trailing.push(0);
    assert_eq!(Frame::decode(&trailing), Err(FrameError::PeerMalformed));
    let key = Key::Name(Kind::Pod, String::new(), String::new());
    let wrong_form = Frame::Inventory {
        session: SESSION,
        set: Set::Desired,
        root: ROOT,
        page: 0,
        last: true,
        order: 2,
        entries: vec![(key, ROOT)],
    };
    assert_eq!(
        Frame::decode(&wrong_form.encode()),
        Err(FrameError::PeerLimit)
    );
}

/// Goal: every frame has one encoding. Method: in every frame, each byte replaced by a longer varint of
/// the same value, and each truncation: what decodes must encode to the same bytes.
#[test]
fn a_frame_has_one_encoding() {
    let mut refused = 0;
    for frame in all_frames() {
        let bytes = frame.encode();
        for place in 1..bytes.len() {
            assert_eq!(
                Frame::decode(&bytes[..place]),
                Err(FrameError::PeerMalformed)
            );
            let longer = [&[bytes[place] | 0x80, 0], &bytes[place + 1..]].concat();
            let longer = [&bytes[..place], &longer].concat();
            match Frame::decode(&longer) {
                Ok(other) => assert_eq!(other.encode(), longer),
                Err(_) => refused += 1,
            }
        }
        let trailing = [&bytes[..], &[0]].concat();
        assert_eq!(Frame::decode(&trailing), Err(FrameError::PeerMalformed));
    }
    assert!(refused > 0);
}

/// Goal: the frames that an update of an agent needs are decoded under any version, and members that later
/// versions append to them are ignored; all other frames are refused.
#[test]
fn frozen_frames_are_read_under_any_version() {
    for frame in all_frames() {
        let mut bytes = frame.encode();
        for version in [0, 1, 3, 200, 255] {
            bytes[0] = version;
            bytes.push(version);
            let read = Frame::decode(&bytes);
            match frame {
                Frame::HelloRefused { .. } | Frame::PieceGet { .. } | Frame::Piece { .. } => {
                    assert_eq!(read.as_ref(), Ok(&frame));
                }
                Frame::Hello { n, wire, .. } => {
                    assert_eq!(read, Err(FrameError::PeerHello { n, wire }));
                }
                _ => assert_eq!(read, Err(FrameError::PeerVersion(version))),
            }
        }
    }
}

/// Goal: no payload over its cap gets past decoding.
#[test]
fn payloads_over_their_caps_are_refused() {
    let session = SESSION;
    let key = Key::Name(Kind::ConfigMap, "ns".into(), "cm".into());
    let put = |count| Frame::Change {
        session,
        set: Set::Desired,
        base: ROOT,
        result: ROOT,
        order: 2,
        items: vec![Item::Put {
            key: key.clone(),
            bytes: vec![7; count],
        }],
    };
    let open = |count| Frame::CallOpen {
        session,
        id: 1,
        method: 1,
        args: vec![7; count],
        upto: 512,
    };
    let data = |count| Frame::CallData {
        session,
        id: 1,
        number: 0,
        bytes: vec![7; count],
        end: false,
    };
    let piece = |count| Frame::Piece {
        session,
        sha256: SHA,
        offset: 0,
        bytes: vec![7; count],
    };
    let hello = |count| Frame::Hello {
        n: [1; 8],
        wire: 2,
        kinds: 0,
        epoch: 0,
        desired_root: ROOT,
        reported_root: ROOT,
        agent: "a".repeat(count),
    };
    let kinds: [(&dyn Fn(usize) -> Frame, usize); 5] = [
        (&put, INLINE_BYTES_MAX),
        (&open, CALL_BYTES_MAX),
        (&data, CALL_BYTES_MAX),
        (&piece, PIECE_BYTES_MAX),
        (&hello, AGENT_BYTES_MAX),
    ];
    for (frame, most) in kinds {
        assert_eq!(Frame::decode(&frame(most).encode()), Ok(frame(most)));
        assert_eq!(
            Frame::decode(&frame(most + 1).encode()),
            Err(FrameError::PeerLimit)
        );
    }
}

/// Goal: numbers and lengths of records are within their caps once a frame is decoded, and the
/// largest frame that our end creates is accepted.
#[test]
fn records_out_of_their_caps_are_refused() {
    let frame = |class, held, first, entries| Frame::Records {
        session: SESSION,
        incarnation: [7; 8],
        class,
        held,
        first,
        entries,
    };
    let record = |bytes| Entry::Record {
        unix_ms: u64::MAX,
        bytes: vec![7; bytes],
    };
    let fits = |frame: &Frame| Frame::decode(&frame.encode()) != Err(FrameError::PeerLimit);
    let gap = |count| vec![gap(count, GapReason::Damaged)];
    let last = u64::MAX;
    for frame in [
        frame(15, 1, 1, vec![record(RECORD_BYTES_MAX)]),
        frame(0, last, last, Vec::new()),
        frame(0, 1, last - 1, gap(1)),
        frame(0, 1, 1, vec![record(0); 256]),
    ] {
        assert!(fits(&frame), "{frame:?}");
    }
    for frame in [
        frame(16, 1, 1, Vec::new()),
        frame(0, 0, 1, Vec::new()),
        frame(0, 2, 1, Vec::new()),
        frame(0, 1, last, gap(1)),
        frame(0, 1, 1, gap(0)),
        frame(0, 1, 1, vec![record(RECORD_BYTES_MAX + 1)]),
        frame(0, 1, 1, vec![record(0); 257]),
    ] {
        assert!(!fits(&frame), "{frame:?}");
    }
    let rest = RECORDS_BYTES_MAX - record(RECORD_BYTES_MAX).bytes_max() - record(0).bytes_max();
    let full = vec![record(RECORD_BYTES_MAX), record(rest)];
    assert_eq!(
        full.iter().map(Entry::bytes_max).sum::<usize>(),
        RECORDS_BYTES_MAX
    );
    assert!(frame(15, last - 2, last - 2, full).encode().len() <= FRAME_BYTES_MAX);
}

/// Encodes an object as a later version would.
fn newer(skip: Skip) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.put(1, Skip::Refused, &7_u32);
    writer.put(90, skip, &String::from("from the future"));
    writer.into_bytes()
}

fn read(bytes: &[u8]) -> Result<u32, FieldError> {
    let mut value = 0;
    for field in Reader::new(bytes) {
        let field = field?;
        match field.number {
            1 => value = field.read()?,
            _ => field.unknown()?,
        }
    }
    Ok(value)
}

#[test]
fn fields_of_a_newer_encoder_are_skipped_or_refused_by_number() {
    assert_eq!(read(&newer(Skip::Allowed)), Ok(7));
    let unknown = Err(FieldError::new(Fault::Unknown, 90));
    assert_eq!(read(&newer(Skip::Refused)), unknown);
}

fn frame_bytes() -> impl Strategy<Value = Vec<u8>> {
    let real = (
        0..all_frames().len(),
        any::<prop::sample::Index>(),
        any::<u8>(),
    );
    let bent = real.prop_map(|(frame, place, byte)| {
        let mut bytes = all_frames().swap_remove(frame).encode();
        let place = place.index(bytes.len());
        if let Some(at) = bytes.get_mut(place) {
            *at = byte;
        }
        bytes
    });
    prop_oneof![bent, prop::collection::vec(any::<u8>(), 0..200)]
}

proptest! {
    #[test]
    fn any_bytes_decode_or_fail(bytes in frame_bytes()) {
        if let Ok(frame) = Frame::decode(&bytes) {
            prop_assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
        }
    }

    #[test]
    fn any_frames_leave_both_ends_working(frames in prop::collection::vec(frame_bytes(), 0..20)) {
        let agent = String::new();
        let mut node = Node::new(NodeConfig { kinds: u32::MAX, agent }, 1);
        let mut cloud = Cloud::new(CloudConfig { epoch: 1 }, 2);
        node.handle(0, LinkInput::TransportUp);
        cloud.handle(0, LinkInput::TransportUp);
        for frame in &frames {
            node.handle(1, LinkInput::Frame(frame));
            cloud.handle(1, LinkInput::Frame(frame));
            while node.poll().is_some() {}
            while cloud.poll().is_some() {}
        }
    }
}
