//! Both ends in one process: virtual time, a bad network from a seed, stores that survive restarts.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use edge_proto::Millis;
use edge_proto::hash::{Hash16, Hash32, sha256};
use edge_proto::key::{Key, Kind};
use edge_proto::session::{
    BlobInput, BlobOutput, Cloud, CloudConfig, CloudInput, CloudOutput, LinkInput, LinkOutput,
    Node, NodeConfig, NodeInput, NodeOutput, Payload, StateInput, StateOutput,
};

/// Source of a simulation's decisions: first the bytes of a script, if there is one, two for each
/// decision, then random numbers (splitmix64).
pub struct Rng {
    script: Option<VecDeque<u8>>,
    state: u64,
    nonces: u64,
}

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self {
            script: None,
            state: seed,
            nonces: 0,
        }
    }

    /// Decisions of a fuzzer's script.
    pub fn of_script(script: &[u8]) -> Self {
        Self {
            script: Some(script.iter().copied().collect()),
            state: 0,
            nonces: 0,
        }
    }

    /// The script has ended, and no further faults are injected.
    pub fn is_over(&self) -> bool {
        self.script.as_ref().is_some_and(VecDeque::is_empty)
    }

    /// Seed for the nonces of an end: never the same twice, whatever a script contains, because only nonces
    /// distinguish sessions.
    pub fn nonce(&mut self) -> u64 {
        self.nonces += 1;
        self.next() ^ (self.nonces << 32)
    }

    pub fn next(&mut self) -> u64 {
        if let Some(script) = &mut self.script
            && let Some(low) = script.pop_front()
        {
            let high = script.pop_front().unwrap_or(0);
            return u64::from(u16::from_le_bytes([low, high]));
        }
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

type Changes = Vec<(Key, Option<Payload>)>;

/// What a shell keeps of one received set, and of partly fetched objects.
#[derive(Default)]
pub struct Store {
    pub objects: BTreeMap<Key, Payload>,
    pub blobs: BTreeMap<[u8; 32], Vec<u8>>,
    pub epoch: u64,
    /// Applies that are not durable yet.
    pub applying: VecDeque<(u32, Changes, u64)>,
}

impl Store {
    pub fn hash(payload: &Payload) -> Hash16 {
        match payload {
            Payload::Inline(bytes) => Hash16::of(bytes),
            Payload::Large { sha256, .. } => sha256.short(),
            Payload::Refused { hash, .. } => *hash,
        }
    }

    pub fn hashes(&self) -> Vec<(Key, Hash16)> {
        let objects = self.objects.iter();
        objects.map(|(k, p)| (k.clone(), Self::hash(p))).collect()
    }

    pub fn persist(&mut self, changes: Changes, epoch: u64) {
        self.epoch = epoch;
        for (key, payload) in changes {
            match payload {
                Some(payload) => self.objects.insert(key, payload),
                None => self.objects.remove(&key),
            };
        }
    }

    fn bytes(&self, sha: Hash32, len: u32) -> u32 {
        let blob = self.blobs.get(&sha.0);
        blob.map_or(0, |blob| {
            if blob.len() == len as usize && sha256(blob) != sha {
                0
            } else {
                blob.len() as u32
            }
        })
    }
}

/// Outputs that one end's shell has received.
pub struct Seen<O> {
    pub live: u32,
    pub down: u32,
    pub in_sync: Option<(bool, bool)>,
    pub problems: Vec<edge_proto::session::Problem>,
    pub other: Vec<O>,
    pub sent_bytes: usize,
    pub sent_frames: usize,
    wanted: BTreeMap<[u8; 32], u32>,
}

impl<O> Default for Seen<O> {
    fn default() -> Self {
        Self {
            live: 0,
            down: 0,
            in_sync: None,
            problems: Vec::new(),
            other: Vec::new(),
            sent_bytes: 0,
            sent_frames: 0,
            wanted: BTreeMap::new(),
        }
    }
}

/// Outputs that both ends have, and those of one end only.
pub enum Asked<O> {
    Link(LinkOutput),
    State(StateOutput),
    Blob(BlobOutput),
    Own(O),
}

/// Either end, with what both have in common.
pub trait End {
    type Output: Clone + std::fmt::Debug + PartialEq;

    fn handle_shared<'a, I>(&mut self, now: Millis, input: I)
    where
        I: Into<NodeInput<'a>> + Into<CloudInput<'a>>;
    fn next_output(&mut self) -> Option<Self::Output>;
    fn sort(output: Self::Output) -> Asked<Self::Output>;
}

macro_rules! end {
    ($end:ident, $input:ident, $output:ident) => {
        impl End for $end {
            type Output = $output;

            fn handle_shared<'a, I>(&mut self, now: Millis, input: I)
            where
                I: Into<NodeInput<'a>> + Into<CloudInput<'a>>,
            {
                let input: $input<'a> = input.into();
                self.handle(now, input);
            }

            fn next_output(&mut self) -> Option<$output> {
                self.poll()
            }

            fn sort(output: $output) -> Asked<$output> {
                match output {
                    $output::Link(output) => Asked::Link(output),
                    $output::State(output) => Asked::State(output),
                    $output::Blob(output) => Asked::Blob(output),
                    own => Asked::Own(own),
                }
            }
        }
    };
}

end!(Node, NodeInput, NodeOutput);
end!(Cloud, CloudInput, CloudOutput);

/// A shell: drains one end, stores, answers, returns the frames to send. With `hold`, applies wait
/// in `store.applying`.
pub fn drain<E: End>(
    end: &mut E,
    now: Millis,
    store: &mut Store,
    seen: &mut Seen<E::Output>,
    hold: bool,
) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while let Some(output) = end.next_output() {
        frames.extend(perform(end, now, store, seen, hold, output));
    }
    frames
}

/// Performs one output as a shell does; returns the frame, if it is one.
fn perform<E: End>(
    end: &mut E,
    now: Millis,
    store: &mut Store,
    seen: &mut Seen<E::Output>,
    hold: bool,
    output: E::Output,
) -> Option<Vec<u8>> {
    match E::sort(output.clone()) {
        Asked::Link(LinkOutput::Send(frame)) => {
            assert!(frame.len() <= edge_proto::limits::FRAME_BYTES_MAX);
            seen.sent_bytes += frame.len();
            seen.sent_frames += 1;
            return Some(frame);
        }
        Asked::Link(LinkOutput::Live { .. }) => seen.live += 1,
        Asked::Link(LinkOutput::Down) => seen.down += 1,
        Asked::Link(LinkOutput::PeerProblem(problem)) => seen.problems.push(problem),
        Asked::State(StateOutput::Apply {
            ticket,
            changes,
            epoch,
        }) => {
            store.applying.push_back((ticket, changes, epoch));
            if !hold {
                finish_applies(end, now, store);
            }
        }
        Asked::State(StateOutput::InSync { desired, reported }) => {
            seen.in_sync = Some((desired, reported));
        }
        Asked::Blob(BlobOutput::Wanted { sha256, len }) => {
            seen.wanted.insert(sha256.0, len);
            let bytes = store.bytes(sha256, len);
            end.handle_shared(now, BlobInput::Have { sha256, bytes });
        }
        Asked::Blob(BlobOutput::Piece {
            sha256,
            offset,
            bytes,
        }) => {
            let blob = store.blobs.entry(sha256.0).or_default();
            assert_eq!(blob.len(), offset as usize);
            blob.extend(bytes);
            let bytes = store.bytes(sha256, seen.wanted[&sha256.0]);
            end.handle_shared(now, BlobInput::Have { sha256, bytes });
        }
        Asked::State(StateOutput::PutRefused { .. }) | Asked::Own(_) => seen.other.push(output),
    }
    None
}

pub fn finish_applies<E: End>(end: &mut E, now: Millis, store: &mut Store) {
    while let Some((ticket, changes, epoch)) = store.applying.pop_front() {
        store.persist(changes, epoch);
        let refused = Vec::new();
        end.handle_shared(now, StateInput::Applied { ticket, refused });
    }
}

pub fn node(seed: u64) -> Node {
    let agent = "edge-min/test".into();
    Node::new(
        NodeConfig {
            kinds: u32::MAX,
            agent,
        },
        seed,
    )
}

pub fn cloud(epoch: u64, seed: u64) -> Cloud {
    Cloud::new(CloudConfig { epoch }, seed)
}

pub fn key(kind: Kind, name: u64) -> Key {
    Key::Name(kind, "default".into(), format!("o{name}"))
}

pub fn put(key: Key, bytes: &[u8]) -> StateInput {
    let payload = Arc::from(bytes);
    StateInput::Put { key, payload }
}

/// Both ends over a network without loss that keeps the order.
pub struct Pair {
    pub now: Millis,
    pub node: Node,
    pub cloud: Cloud,
    pub at_node: Store,
    pub at_cloud: Store,
    pub seen_node: Seen<NodeOutput>,
    pub seen_cloud: Seen<CloudOutput>,
    /// Frames in flight to the cloud and to the node.
    pub up: VecDeque<Vec<u8>>,
    pub down: VecDeque<Vec<u8>>,
}

impl Pair {
    pub fn new() -> Self {
        Self {
            now: 1000,
            node: node(1),
            cloud: cloud(7, 2),
            at_node: Store::default(),
            at_cloud: Store::default(),
            seen_node: Seen::default(),
            seen_cloud: Seen::default(),
            up: VecDeque::new(),
            down: VecDeque::new(),
        }
    }

    pub fn node<'a>(&mut self, input: impl Into<NodeInput<'a>>) {
        let end = &mut self.node;
        end.handle(self.now, input);
        let (store, seen) = (&mut self.at_node, &mut self.seen_node);
        self.up.extend(drain(end, self.now, store, seen, false));
    }

    pub fn cloud<'a>(&mut self, input: impl Into<CloudInput<'a>>) {
        let end = &mut self.cloud;
        end.handle(self.now, input);
        let (store, seen) = (&mut self.at_cloud, &mut self.seen_cloud);
        self.down.extend(drain(end, self.now, store, seen, false));
    }

    /// Performs an output of the node.
    pub fn shell_node(&mut self, output: NodeOutput) {
        let end = &mut self.node;
        let (store, seen) = (&mut self.at_node, &mut self.seen_node);
        perform(end, self.now, store, seen, false, output);
    }

    /// Performs an output of the cloud.
    pub fn shell_cloud(&mut self, output: CloudOutput) {
        let end = &mut self.cloud;
        let (store, seen) = (&mut self.at_cloud, &mut self.seen_cloud);
        perform(end, self.now, store, seen, false, output);
    }

    pub fn connect(&mut self) {
        self.cloud(LinkInput::TransportUp);
        self.node(LinkInput::TransportUp);
        self.settle();
    }

    /// Delivers until nothing is in flight.
    pub fn settle(&mut self) {
        self.deliver(usize::MAX);
    }

    /// Delivers this many frames.
    pub fn deliver(&mut self, count: usize) {
        for _ in 0..count {
            if let Some(frame) = self.up.pop_front() {
                self.cloud(LinkInput::Frame(&frame));
            } else if let Some(frame) = self.down.pop_front() {
                self.node(LinkInput::Frame(&frame));
            } else {
                return;
            }
        }
    }

    pub fn is_equal(&self) -> bool {
        self.node.desired().root() == self.cloud.desired_root()
            && self.cloud.reported().root() == self.node.reported_root()
    }
}
