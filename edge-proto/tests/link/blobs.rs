//! Blobs besides the sets, and the window of pieces.

use std::collections::BTreeMap;

use edge_proto::frame::{Frame, FrameError, Item, Set};
use edge_proto::hash::{Hash16, Hash32, sha256};
use edge_proto::key::Kind;
use edge_proto::limits::{BLOB_WINDOW_BYTES, BLOBS_MAX, CONFIG_BYTES_MAX, PIECE_BYTES_MAX};
use edge_proto::session::{
    BlobInput, BlobOutput, CloudInput, CloudOutput, FetchInput, LinkInput, LinkOutput, NodeOutput,
    Problem,
};

use crate::support::{Pair, Rng, key, put};

/// The blobs that the cloud's shell can read.
#[derive(Default)]
struct Library(BTreeMap<[u8; 32], Vec<u8>>);

impl Library {
    fn add(&mut self, seed: u64, bytes: usize) -> (Hash32, u32) {
        let mut rng = Rng::new(seed);
        let blob: Vec<u8> = (0..bytes).map(|_| rng.next() as u8).collect();
        let hash = sha256(&blob);
        self.0.insert(hash.0, blob);
        (hash, bytes as u32)
    }

    /// Answers the requests of the session.
    fn answer(&self, pair: &mut Pair) {
        for output in std::mem::take(&mut pair.seen_cloud.other) {
            let CloudOutput::BlobRead {
                sha256,
                offset,
                bytes_max,
            } = output
            else {
                panic!("{output:?}");
            };
            let rest = self.0.get(&sha256.0).map(|blob| &blob[offset as usize..]);
            let bytes = rest.unwrap_or_default();
            let bytes = bytes[..bytes.len().min(bytes_max as usize)].to_vec();
            pair.cloud(CloudInput::BlobData {
                sha256,
                offset,
                bytes,
            });
        }
    }

    /// Delivers until nothing is in flight.
    fn settle(&self, pair: &mut Pair) {
        self.answer(pair);
        while !(pair.up.is_empty() && pair.down.is_empty()) {
            self.step(pair);
        }
    }

    fn step(&self, pair: &mut Pair) {
        if let Some(frame) = pair.up.pop_front() {
            pair.cloud(LinkInput::Frame(&frame));
            self.answer(pair);
        } else if let Some(frame) = pair.down.pop_front() {
            pair.node(LinkInput::Frame(&frame));
        }
    }
}

fn fetch(pair: &mut Pair, (sha256, len): (Hash32, u32)) {
    pair.node(FetchInput::Start { sha256, len });
}

#[test]
fn blobs_come_whole_one_after_the_other_and_cost_their_bytes() {
    let mut library = Library::default();
    let mut pair = Pair::new();
    let blobs: Vec<_> = (0..5)
        .map(|i| library.add(i, 1 + 50_001 * i as usize))
        .collect();
    // Without a session as well as in one, and twice.
    fetch(&mut pair, blobs[0]);
    fetch(&mut pair, blobs[1]);
    pair.connect();
    library.settle(&mut pair);
    for blob in blobs.iter().skip(1) {
        fetch(&mut pair, *blob);
    }
    library.settle(&mut pair);
    for (hash, _) in &blobs {
        assert_eq!(pair.at_node.blobs[&hash.0], library.0[&hash.0]);
    }
    assert_eq!(pair.seen_node.other, []);
    assert_eq!(pair.node.deadline(), None);
    let bytes: u32 = blobs.iter().map(|(_, len)| len).sum();
    let sent = pair.seen_cloud.sent_bytes;
    assert!(sent < bytes as usize * 103 / 100 + 1000, "{sent}");
}

#[test]
fn a_blob_resumes_in_the_next_session_from_what_is_stored() {
    let mut library = Library::default();
    let mut pair = Pair::new();
    pair.connect();
    let blob = library.add(1, 3_000_000);
    fetch(&mut pair, blob);
    let mut breaks = 0;
    for step in 0.. {
        if pair.up.is_empty() && pair.down.is_empty() {
            break;
        }
        if step % 300 == 299 {
            pair.node(LinkInput::TransportDown);
            pair.up.clear();
            pair.down.clear();
            pair.node(LinkInput::TransportUp);
            breaks += 1;
        }
        library.step(&mut pair);
    }
    assert!(breaks > 3);
    assert_eq!(pair.at_node.blobs[&blob.0.0], library.0[&blob.0.0]);
    let sent = pair.seen_cloud.sent_bytes;
    let again = breaks * BLOB_WINDOW_BYTES;
    assert!(sent < (3_000_000 + again) * 103 / 100, "{sent}");
}

/// Goal: a blob that the cloud does not have, or not any more, is reported and delays no other; so is one
/// over the cap, and one that is cancelled.
#[test]
fn an_unavailable_blob_is_reported() {
    let mut library = Library::default();
    let mut pair = Pair::new();
    pair.connect();
    let gone = library.add(1, 100_000);
    let cancelled = library.add(2, 100_000);
    let there = library.add(3, 100_000);
    fetch(&mut pair, gone);
    fetch(&mut pair, cancelled);
    fetch(&mut pair, there);
    for _ in 0..9 {
        library.step(&mut pair);
    }
    library.0.remove(&gone.0.0);
    pair.node(FetchInput::Cancel {
        sha256: cancelled.0,
    });
    library.settle(&mut pair);
    let unavailable = |sha256| NodeOutput::BlobUnavailable { sha256 };
    assert_eq!(pair.seen_node.other, [unavailable(gone.0)]);
    assert!(!pair.at_node.blobs.contains_key(&cancelled.0.0));
    assert_eq!(pair.at_node.blobs[&there.0.0], library.0[&there.0.0]);

    pair.seen_node.other.clear();
    for index in 0..=BLOBS_MAX {
        fetch(&mut pair, (Hash32([index as u8; 32]), 5));
    }
    let last = Hash32([BLOBS_MAX as u8; 32]);
    assert_eq!(pair.seen_node.other, [unavailable(last)]);
    library.settle(&mut pair);
    assert_eq!(pair.seen_node.other.len(), BLOBS_MAX + 1);
}

/// Goal: a large ConfigMap does not wait for the end of a large blob.
#[test]
fn the_set_goes_before_a_blob() {
    let mut library = Library::default();
    let mut pair = Pair::new();
    pair.connect();
    let blob = library.add(1, 5_000_000);
    fetch(&mut pair, blob);
    for _ in 0..200 {
        library.step(&mut pair);
    }
    let config: Vec<u8> = (0..CONFIG_BYTES_MAX).map(|i| (i * i) as u8).collect();
    pair.cloud(put(key(Kind::ConfigMap, 1), &config));
    let before = pair.at_node.blobs[&blob.0.0].len();
    while !pair.is_equal() {
        library.step(&mut pair);
    }
    let meanwhile = pair.at_node.blobs[&blob.0.0].len() - before;
    // What is in flight when the change is sent, and what is requested until it arrives.
    assert!(meanwhile <= 2 * BLOB_WINDOW_BYTES, "{meanwhile}");
    library.settle(&mut pair);
    assert_eq!(pair.at_node.blobs[&blob.0.0], library.0[&blob.0.0]);
}

/// Goal: lost, duplicated and swapped pieces cause little more than their own retransmission, and the bytes
/// arrive in order in any case. Method: a seed decides for each frame; time passes only when nothing
/// is in flight.
#[test]
fn lost_and_swapped_pieces_are_asked_for_again() {
    for seed in 0..30 {
        let mut rng = Rng::new(seed);
        let mut library = Library::default();
        let mut pair = Pair::new();
        pair.connect();
        let blob = library.add(seed, 500_000);
        fetch(&mut pair, blob);
        let (mut lost, mut waits) = (0, 0);
        while pair.at_node.blobs.get(&blob.0.0).map_or(0, Vec::len) < 500_000 {
            if pair.up.is_empty() && pair.down.is_empty() {
                pair.now = pair.node.deadline().unwrap();
                pair.node(LinkInput::Tick);
                waits += 1;
            }
            for lane in [&mut pair.up, &mut pair.down] {
                if rng.chance(10) && lane.pop_front().is_some() {
                    lost += 1;
                }
                if rng.chance(5) && lane.len() > 1 {
                    lane.swap(0, 1);
                }
                if rng.chance(5)
                    && let Some(frame) = lane.front().cloned()
                {
                    lane.push_back(frame);
                }
            }
            library.step(&mut pair);
        }
        assert_eq!(pair.at_node.blobs[&blob.0.0], library.0[&blob.0.0]);
        assert!(lost > 5, "{lost}");
        // Most losses are detected by later pieces; a few need the timer.
        assert!(
            waits * 3 <= lost,
            "seed {seed}: {waits} waits for {lost} lost"
        );
        let sent = pair.seen_cloud.sent_bytes;
        assert!(sent < 800_000, "seed {seed}: {sent}");
    }
}

/// Goal: a store that falls behind, fails or finds a wrong hash is not flooded. Method: the answer
/// to each piece is `BlobHave` of 0.
#[test]
fn a_store_that_fails_is_asked_less_and_less_often() {
    let mut pair = Pair::new();
    pair.connect();
    let library = {
        let mut library = Library::default();
        let blob = library.add(1, 50_000);
        pair.node.handle(
            pair.now,
            FetchInput::Start {
                sha256: blob.0,
                len: blob.1,
            },
        );
        library
    };
    let (mut pieces, start) = (0, pair.now);
    while pair.now < start + 3_600_000 {
        while let Some(output) = pair.node.poll() {
            match output {
                NodeOutput::Link(LinkOutput::Send(frame)) => pair.up.push_back(frame),
                NodeOutput::Blob(BlobOutput::Wanted { sha256, .. }) => {
                    pair.node
                        .handle(pair.now, BlobInput::Have { sha256, bytes: 0 });
                }
                NodeOutput::Blob(BlobOutput::Piece { sha256, offset, .. }) => {
                    assert_eq!(offset, 0);
                    pieces += 1;
                    pair.node
                        .handle(pair.now, BlobInput::Have { sha256, bytes: 0 });
                }
                _ => {}
            }
        }
        while let Some(frame) = pair.up.pop_front() {
            pair.cloud(LinkInput::Frame(&frame));
            library.answer(&mut pair);
        }
        if let Some(frame) = pair.down.pop_front() {
            pair.node.handle(pair.now, LinkInput::Frame(&frame));
            continue;
        }
        let Some(at) = pair.node.deadline() else {
            break;
        };
        pair.now = at;
        pair.node.handle(at, LinkInput::Tick);
    }
    assert!((10..30).contains(&pieces), "{pieces}");
}

/// Goal: no frames of a cloud make the node hold more than a window. Method: pieces that were
/// not requested, of all lengths.
#[test]
fn pieces_that_were_not_requested_are_dropped() {
    let mut library = Library::default();
    let mut pair = Pair::new();
    pair.connect();
    let blob = library.add(1, 10_000_000);
    fetch(&mut pair, blob);
    let session = pair.cloud.session().unwrap();
    let asked = pair.up.len() as u32;
    for index in 0..2_000_u32 {
        let offset = index * PIECE_BYTES_MAX as u32;
        for bytes in [1, PIECE_BYTES_MAX - 1, PIECE_BYTES_MAX] {
            if index > 0 && (index >= asked || bytes < PIECE_BYTES_MAX) {
                let frame = Frame::Piece {
                    session,
                    sha256: blob.0,
                    offset,
                    bytes: vec![0; bytes],
                };
                let before = pair.up.len();
                pair.node(LinkInput::Frame(&frame.encode()));
                assert_eq!(pair.up.len(), before, "{index} {bytes}");
            }
        }
    }
    assert!(!pair.at_node.blobs.contains_key(&blob.0.0));
    library.settle(&mut pair);
    assert_eq!(pair.at_node.blobs[&blob.0.0], library.0[&blob.0.0]);
}

/// Goal: every request for bytes is answered. Method: at the end of a large object and beyond
/// it, at both ends, and for what a node does not have.
#[test]
fn a_question_beyond_the_end_is_answered_with_nothing() {
    let mut pair = Pair::new();
    pair.connect();
    let payload = vec![9; 5_000];
    let sha256 = sha256(&payload);
    pair.cloud(put(key(Kind::ConfigMap, 1), &payload));
    pair.settle();
    let session = pair.cloud.session().unwrap();
    let ask = |sha256, offset| {
        let get = Frame::PieceGet {
            session,
            sha256,
            offset,
        };
        get.encode()
    };
    let answered = |frame: Option<Vec<u8>>| match Frame::decode(&frame.unwrap()) {
        Ok(Frame::Piece { bytes, .. }) => bytes.len(),
        other => panic!("{other:?}"),
    };
    for (offset, count) in [(0, 4_096), (4_999, 1), (5_000, 0), (u32::MAX, 0)] {
        pair.cloud(LinkInput::Frame(&ask(sha256, offset)));
        assert_eq!(answered(pair.down.pop_front()), count);
    }
    pair.node(LinkInput::Frame(&ask(sha256, 0)));
    assert_eq!(answered(pair.up.pop_front()), 0);
}

/// Goal: an invalid large object blocks nothing. Method: a node reports one of 4096 bytes: its frame
/// is refused, and what it reports afterwards arrives.
#[test]
fn a_large_object_that_fits_inline_is_refused() {
    let mut pair = Pair::new();
    pair.connect();
    let session = pair.cloud.session().unwrap();
    let root = pair.cloud.reported().root();
    let change = |len| {
        let items = vec![Item::Large {
            key: key(Kind::DeviceStatus, 1),
            sha256: Hash32([7; 32]),
            len,
        }];
        let change = Frame::Change {
            session,
            set: Set::Reported,
            base: root,
            result: Hash16([7; 16]),
            order: 2,
            items,
        };
        change.encode()
    };
    assert_eq!(Frame::decode(&change(4_096)), Err(FrameError::PeerLimit));
    assert!(Frame::decode(&change(4_097)).is_ok());
    pair.cloud(LinkInput::Frame(&change(4_096)));
    let problem = Problem::Frame(FrameError::PeerLimit);
    assert_eq!(pair.seen_cloud.problems, [problem]);
    pair.node(put(key(Kind::DeviceStatus, 1), b"here"));
    pair.settle();
    assert!(pair.is_equal() && pair.cloud.is_live());
}
