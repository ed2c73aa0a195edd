//! Streams: both ends, an outbox and a sink, over good and bad networks.

use std::collections::BTreeMap;

use edge_proto::Millis;
use edge_proto::frame::{Entry, Frame, GapReason, Incarnation, SessionId, end_of};
use edge_proto::limits::{
    CLASS_TELEMETRY, CLASS_TOLL, FRAME_BYTES_MAX, RECORD_BYTES_MAX, REPEAT_MS_MAX,
    STREAM_FRAMES_MAX, STREAM_WINDOW_BYTES,
};
use edge_proto::session::{
    Cloud, CloudInput, CloudOutput, CloudRecordsInput, LinkInput, LinkOutput, Node, NodeInput,
    NodeOutput, NodeRecordsInput, NodeRecordsOutput, RecordsOutput, StateInput, StateOutput,
};

use crate::support::{Pair, Rng, cloud, node, put};

const CLASSES: [u8; 3] = [CLASS_TOLL, 1, CLASS_TELEMETRY];

/// What a sink has stored for a number.
#[derive(Clone, Debug, PartialEq)]
enum Kept {
    Record(Vec<u8>),
    Lost(GapReason),
    Forgotten,
}

fn kept(entries: &[Entry]) -> Vec<Kept> {
    let one = |entry: &Entry| match entry {
        Entry::Record { bytes, .. } => vec![Kept::Record(bytes.clone())],
        Entry::Gap { count, reason } => vec![Kept::Lost(*reason); *count as usize],
    };
    entries.iter().flat_map(one).collect()
}

fn record(bytes: &[u8]) -> Entry {
    Entry::Record {
        unix_ms: 5,
        bytes: bytes.to_vec(),
    }
}

/// All records ever appended, of each class; gaps are those that the outbox dropped.
#[derive(Default)]
struct Outbox {
    incarnation: Incarnation,
    logs: BTreeMap<u8, Vec<Entry>>,
    held: BTreeMap<u8, u64>,
    broken: bool,
}

impl Outbox {
    fn new(number: u8) -> Self {
        Self {
            incarnation: [number; 8],
            logs: CLASSES.map(|class| (class, Vec::new())).into(),
            held: CLASSES.map(|class| (class, 1)).into(),
            broken: false,
        }
    }

    fn ready(&self, class: u8) -> NodeRecordsInput {
        NodeRecordsInput::Ready {
            class,
            incarnation: self.incarnation,
            held: self.held[&class],
            end: end_of(1, &self.logs[&class]).unwrap(),
        }
    }

    fn read(&self, class: u8, from: u64, bytes_max: usize) -> Vec<Entry> {
        let mut number = 1;
        let mut bytes_left = bytes_max;
        let mut entries = Vec::new();
        for entry in &self.logs[&class] {
            let end = number + entry.count();
            let mut entry = entry.clone();
            if let Entry::Gap { count, .. } = &mut entry {
                *count = end.saturating_sub(number.max(from));
            }
            number = end;
            if self.broken || end <= from {
                continue;
            }
            if entry.bytes_max() > bytes_left {
                break;
            }
            bytes_left -= entry.bytes_max();
            entries.push(entry);
        }
        entries
    }
}

type Ticket = (u32, Incarnation, u8, u64, u64, Vec<Entry>);

/// Durable records by stream, and what is not yet durable.
#[derive(Default)]
struct Sink {
    streams: BTreeMap<(Incarnation, u8), Vec<Kept>>,
    /// Longest length that a stream ever had, also before a restore from a backup.
    reached: BTreeMap<(Incarnation, u8), usize>,
    pending: Vec<Ticket>,
    hold: bool,
    /// It may have stored records that followed a failed batch.
    keeps_after_failure: bool,
}

impl Sink {
    fn apply(&mut self, (_, incarnation, class, first, forgotten, entries): Ticket) {
        let stream = self.streams.entry((incarnation, class)).or_default();
        // No number is missing, none is repeated.
        let next = stream.len() as u64 + 1 + forgotten;
        let known = next.checked_sub(first).unwrap() as usize;
        assert!(known == 0 || self.keeps_after_failure);
        stream.extend(vec![Kept::Forgotten; forgotten as usize]);
        stream.extend(kept(&entries).into_iter().skip(known));
        let reached = self.reached.entry((incarnation, class)).or_default();
        *reached = stream.len().max(*reached);
    }
}

struct World {
    rng: Rng,
    now: Millis,
    node: Node,
    cloud: Cloud,
    epoch: u64,
    outbox: Outbox,
    sink: Sink,
    connected: bool,
    /// Percent of frames that are lost, and percent that are duplicated.
    loss: u64,
    spread: Millis,
    up: Vec<(Millis, Vec<u8>)>,
    down: Vec<(Millis, Vec<u8>)>,
    sent: Vec<Frame>,
    sent_bytes: usize,
    ahead: bool,
}

impl World {
    fn new(mut rng: Rng) -> Self {
        let mut world = Self {
            now: 5000,
            node: node(rng.nonce()),
            cloud: cloud(10, rng.nonce()),
            rng,
            epoch: 10,
            outbox: Outbox::new(1),
            sink: Sink::default(),
            connected: false,
            loss: 0,
            spread: 1,
            up: Vec::new(),
            down: Vec::new(),
            sent: Vec::new(),
            sent_bytes: 0,
            ahead: false,
        };
        world.tell_all_ready();
        world.cloud(LinkInput::TransportUp);
        world
    }

    fn tell_all_ready(&mut self) {
        for class in CLASSES {
            let ready = self.outbox.ready(class);
            self.node(ready);
        }
    }

    fn append(&mut self, class: u8, entry: Entry) {
        self.outbox.logs.get_mut(&class).unwrap().push(entry);
        let ready = self.outbox.ready(class);
        self.node(ready);
    }

    /// When the frame arrives; twice, or never.
    fn times(&mut self) -> Vec<Millis> {
        if !self.connected || self.rng.chance(self.loss) {
            return Vec::new();
        }
        let copies = if self.rng.chance(self.loss) { 2 } else { 1 };
        let mut one = || self.now + 20 + self.rng.below(self.spread);
        (0..copies).map(|_| one()).collect()
    }

    fn node<'a>(&mut self, input: impl Into<NodeInput<'a>>) {
        self.node.handle(self.now, input);
        while let Some(output) = self.node.poll() {
            match output {
                NodeOutput::Link(LinkOutput::Send(frame)) => {
                    assert!(frame.len() <= FRAME_BYTES_MAX);
                    self.sent_bytes += frame.len();
                    self.sent.push(Frame::decode(&frame).unwrap());
                    let times = self.times();
                    self.up
                        .extend(times.into_iter().map(|at| (at, frame.clone())));
                }
                NodeOutput::Records(NodeRecordsOutput::Wanted {
                    class,
                    from,
                    bytes_max,
                }) => {
                    let read = NodeRecordsInput::Read {
                        class,
                        first: from,
                        entries: self.outbox.read(class, from, bytes_max),
                    };
                    self.node.handle(self.now, read);
                }
                NodeOutput::Records(NodeRecordsOutput::Acked { class, next }) => {
                    let reached = self.sink.reached.get(&(self.outbox.incarnation, class));
                    let reached = reached.copied().unwrap_or(0) as u64;
                    assert!(next <= reached + 1, "acknowledged before it was durable");
                    self.outbox.held.insert(class, next);
                }
                NodeOutput::Records(NodeRecordsOutput::Ahead { .. }) => self.ahead = true,
                NodeOutput::State(StateOutput::Apply { ticket, .. }) => self.node.handle(
                    self.now,
                    StateInput::Applied {
                        ticket,
                        refused: Vec::new(),
                    },
                ),
                _ => {}
            }
        }
    }

    fn cloud<'a>(&mut self, input: impl Into<CloudInput<'a>>) {
        self.cloud.handle(self.now, input);
        while let Some(output) = self.cloud.poll() {
            match output {
                CloudOutput::Link(LinkOutput::Send(frame)) => {
                    self.sent_bytes += frame.len();
                    let times = self.times();
                    self.down
                        .extend(times.into_iter().map(|at| (at, frame.clone())));
                }
                CloudOutput::Records(RecordsOutput {
                    ticket,
                    incarnation,
                    class,
                    first,
                    forgotten,
                    entries,
                    ..
                }) => {
                    let pending = (ticket, incarnation, class, first, forgotten, entries);
                    self.sink.pending.push(pending);
                    if !self.sink.hold {
                        self.make_durable();
                    }
                }
                _ => {}
            }
        }
    }

    fn make_durable(&mut self) {
        for pending in std::mem::take(&mut self.sink.pending) {
            let ticket = pending.0;
            self.sink.apply(pending);
            self.cloud
                .handle(self.now, CloudRecordsInput::Durable { ticket });
        }
    }

    fn connect(&mut self, up: bool) {
        self.connected = up;
        if up {
            self.node(LinkInput::TransportUp);
        } else {
            self.node(LinkInput::TransportDown);
        }
    }

    /// Processes the next event before `until`: a frame arrives, or a deadline is reached.
    fn step(&mut self, until: Millis) -> bool {
        let frames = self.up.iter().chain(&self.down).map(|(at, _)| *at).min();
        let times = [frames, self.node.deadline(), self.cloud.deadline()];
        let next = times.into_iter().flatten().min();
        let Some(next) = next.filter(|at| *at <= until) else {
            self.now = until;
            return false;
        };
        self.now = self.now.max(next);
        let due = |frames: &[(Millis, Vec<u8>)], now| {
            let earliest = frames.iter().enumerate().min_by_key(|(_, (at, _))| *at);
            earliest
                .filter(|(_, (at, _))| *at <= now)
                .map(|(place, _)| place)
        };
        if let Some(place) = due(&self.up, self.now) {
            let (_, frame) = self.up.remove(place);
            self.cloud(LinkInput::Frame(&frame));
        } else if let Some(place) = due(&self.down, self.now) {
            let (_, frame) = self.down.remove(place);
            if self.connected {
                self.node(LinkInput::Frame(&frame));
            }
        } else {
            self.node(LinkInput::Tick);
            self.cloud(LinkInput::Tick);
        }
        true
    }

    /// Number of events in this time.
    fn run(&mut self, millis: Millis) -> usize {
        let until = self.now + millis;
        (0..1_000_000).take_while(|_| self.step(until)).count()
    }

    fn restart_node(&mut self) {
        self.connect(false);
        self.node = node(self.rng.nonce());
        // Acknowledged positions are stored late.
        for held in self.outbox.held.values_mut() {
            *held = held.saturating_sub(self.rng.below(20)).max(1);
        }
        self.tell_all_ready();
    }

    fn restart_cloud(&mut self) {
        self.epoch += 1;
        self.sink.pending.clear();
        self.cloud = cloud(self.epoch, self.rng.nonce());
        for (&(incarnation, class), stream) in &self.sink.streams {
            let next = stream.len() as u64 + 1;
            assert!(self.cloud.restore_stream(incarnation, class, next));
        }
        self.cloud(LinkInput::TransportUp);
    }

    /// The streams of this outbox have arrived; returns how many numbers the cloud has lost.
    fn check_arrived(&self, seed: u64) -> usize {
        let mut forgotten = 0;
        for class in CLASSES {
            let wanted = kept(&self.outbox.logs[&class]);
            let stream = self.sink.streams.get(&(self.outbox.incarnation, class));
            let got = stream.cloned().unwrap_or_default();
            assert_eq!(got.len(), wanted.len(), "seed {seed} class {class}");
            for (got, wanted) in got.iter().zip(&wanted) {
                if *got == Kept::Forgotten {
                    forgotten += 1;
                } else {
                    assert_eq!(got, wanted, "seed {seed} class {class}");
                }
            }
        }
        forgotten
    }

    fn append_any(&mut self) {
        let class = CLASSES[self.rng.below(3) as usize];
        let bytes = self.rng.below(300) as usize;
        let entry = if self.rng.chance(20) {
            Entry::Gap {
                count: 1 + self.rng.below(5),
                reason: GapReason::Quota,
            }
        } else {
            record(&vec![self.rng.next() as u8; bytes])
        };
        for _ in 0..=self.rng.below(30) {
            self.append(class, entry.clone());
        }
    }
}

/// Goal: whatever the network, the two ends, the sink and the medium do, each number of the
/// outbox reaches the sink once, as its record or as its gap; what a restored cloud no
/// longer knows is counted as forgotten; then the link is silent.
pub fn survives(rng: Rng, seed: u64) {
    let mut world = World::new(rng);
    world.loss = 10;
    world.spread = 3000;
    let restores = world.rng.chance(50);
    let mut restored = false;
    let mut incarnation = 1;
    while world.now < 20 * 60 * 1000 && !world.rng.is_over() {
        match world.rng.below(100) {
            0..45 => world.append_any(),
            45..55 => world.connect(false),
            55..75 => world.connect(true),
            75..78 => world.restart_node(),
            78..81 => world.restart_cloud(),
            81..83 if restores => {
                // Restored from a backup: the ends of some streams are missing.
                for stream in world.sink.streams.values_mut() {
                    let left = stream.len() - world.rng.below(stream.len() as u64 + 1) as usize;
                    stream.truncate(left);
                }
                restored = true;
                world.restart_cloud();
            }
            83 => {
                incarnation += 1;
                world.outbox = Outbox::new(incarnation);
                world.restart_node();
            }
            84..87 => world.outbox.broken = !world.outbox.broken,
            87..92 => world.sink.hold = !world.sink.hold,
            92..95 => {
                if let Some((ticket, incarnation, class, ..)) = world.sink.pending.first() {
                    let (ticket, incarnation, class) = (*ticket, *incarnation, *class);
                    let other = |pending: &Ticket| (pending.1, pending.2) != (incarnation, class);
                    world.sink.pending.retain(other);
                    world.cloud(CloudRecordsInput::Failed { ticket });
                }
            }
            _ => {
                world.make_durable();
                world.cloud(LinkInput::Tick);
            }
        }
        let millis = 1 + world.rng.below(8000);
        world.run(millis);
    }
    world.loss = 0;
    world.spread = 1;
    world.outbox.broken = false;
    world.sink.hold = false;
    world.make_durable();
    world.connect(false);
    world.tell_all_ready();
    world.connect(true);
    world.run(20 * 60 * 1000);
    let forgotten = world.check_arrived(seed);
    assert!(restored || forgotten == 0, "seed {seed}");
    for class in CLASSES {
        let end = kept(&world.outbox.logs[&class]).len() as u64 + 1;
        assert_eq!(world.outbox.held[&class], end, "seed {seed}");
    }
    assert!(!world.ahead, "seed {seed}");
    assert_eq!(world.run(24 * 3600 * 1000), 0, "seed {seed}: a quiet day");
}

#[test]
fn every_number_arrives_once_over_a_bad_network() {
    let long = std::env::var_os("EDGE_MIN_LONG").is_some();
    for seed in 0..if long { 2000 } else { 30 } {
        survives(Rng::new(seed), seed);
    }
}

/// Connected, with nothing in flight.
fn quiet() -> World {
    let mut world = World::new(Rng::new(1));
    world.connect(true);
    world.run(60_000);
    world.sent.clear();
    world.sent_bytes = 0;
    world
}

fn classes_sent(world: &World) -> Vec<u8> {
    let class = |frame: &Frame| match frame {
        Frame::Records { class, .. } => Some(*class),
        _ => None,
    };
    world.sent.iter().filter_map(class).collect()
}

#[test]
fn a_toll_record_goes_before_the_telemetry_that_waits() {
    let mut world = quiet();
    world.node(LinkInput::TransportDown);
    for _ in 0..100 {
        world.append(CLASS_TELEMETRY, record(&[7; RECORD_BYTES_MAX]));
    }
    world.connect(true);
    world.run(60);
    // Now telemetry fills the window; the toll record is sent as soon as the window has space for a frame.
    let before = classes_sent(&world).len();
    world.append(CLASS_TOLL, record(b"toll"));
    world.run(60_000);
    assert_eq!(classes_sent(&world)[before], CLASS_TOLL);
    assert_eq!(world.check_arrived(1), 0);
}

#[test]
fn state_goes_before_streams() {
    let mut world = quiet();
    world.connect(false);
    world.append(CLASS_TOLL, record(b"toll"));
    world.node(put(edge_proto::key::Key::node_status(), b"ready"));
    world.connect(true);
    world.run(1000);
    let change = world
        .sent
        .iter()
        .position(|frame| matches!(frame, Frame::Change { .. }));
    let records = world
        .sent
        .iter()
        .position(|frame| matches!(frame, Frame::Records { .. }));
    assert!(change.is_some() && change < records);
}

/// Goal: the window bounds what is in flight; a class whose sink is blocked leaves capacity to the
/// others, and costs an occasional question, not the repetition of its records.
#[test]
fn a_standing_sink_holds_up_no_other_class_and_costs_little() {
    let mut world = quiet();
    world.sink.hold = true;
    for _ in 0..100 {
        world.append(CLASS_TOLL, record(&[7; 3000]));
    }
    world.run(10);
    assert!(
        world.sent_bytes <= STREAM_WINDOW_BYTES,
        "{}",
        world.sent_bytes
    );
    world.append(CLASS_TELEMETRY, record(b"warm"));
    world.run(1000);
    let arrived: Vec<u8> = world.sink.pending.iter().map(|pending| pending.2).collect();
    assert_eq!(arrived.last(), Some(&CLASS_TELEMETRY));
    world.run(60_000);
    world.sent_bytes = 0;
    world.run(24 * 3600 * 1000);
    let day = 2 * 64 * (24 * 3600 * 1000 / REPEAT_MS_MAX) as usize;
    assert!(world.sent_bytes <= day, "{} bytes a day", world.sent_bytes);
    world.sink.hold = false;
    world.make_durable();
    world.cloud(LinkInput::Tick);
    world.run(10 * 60 * 1000);
    assert_eq!(world.check_arrived(1), 0);
}

#[test]
fn small_records_go_together_when_the_round_trip_is_long() {
    let mut world = quiet();
    for _ in 0..200 {
        world.append(CLASS_TOLL, record(&[7; 60]));
    }
    assert!(world.sent.len() <= STREAM_FRAMES_MAX);
    world.run(1000);
    assert!(world.sent.len() <= STREAM_FRAMES_MAX + 3);
    assert_eq!(world.check_arrived(1), 0);
}

#[test]
fn a_lost_frame_is_sent_again_at_once() {
    let mut world = quiet();
    world.loss = 100;
    world.append(CLASS_TOLL, record(b"one"));
    world.loss = 0;
    world.append(CLASS_TOLL, record(b"two"));
    world.run(100);
    assert_eq!(world.check_arrived(1), 0);
}

#[test]
fn a_reconnect_without_new_records_costs_no_frame() {
    let mut world = quiet();
    world.append(CLASS_TOLL, record(b"one"));
    world.run(1000);
    world.connect(false);
    world.sent.clear();
    world.connect(true);
    world.run(24 * 3600 * 1000);
    assert_eq!(classes_sent(&world), [0_u8; 0]);
}

/// Goal: a lost outbox, and a cloud that was restored to an earlier state, are noticed without a new
/// record.
#[test]
fn a_lost_outbox_and_a_restored_cloud_are_noticed_at_the_next_session() {
    let mut world = quiet();
    world.append(CLASS_TOLL, record(b"one"));
    world.append(CLASS_TOLL, record(b"two"));
    world.run(1000);
    world
        .sink
        .streams
        .get_mut(&([1; 8], CLASS_TOLL))
        .unwrap()
        .truncate(1);
    world.restart_cloud();
    world.run(60_000);
    let stream = &world.sink.streams[&([1; 8], CLASS_TOLL)];
    assert_eq!(stream[..], [Kept::Record(b"one".into()), Kept::Forgotten]);
    world.outbox = Outbox::new(2);
    world.restart_node();
    world.connect(true);
    world.run(60_000);
    assert!(world.sink.streams.contains_key(&([2; 8], CLASS_TOLL)));
}

/// Goal: a medium that was restored to an earlier state does not assign a number twice. Method: the
/// outbox loses a durable and acknowledged record.
#[test]
fn an_outbox_behind_the_cloud_gets_a_new_incarnation() {
    let mut world = quiet();
    world.append(CLASS_TOLL, record(b"one"));
    world.append(CLASS_TOLL, record(b"two"));
    world.run(1000);
    world.outbox.logs.get_mut(&CLASS_TOLL).unwrap().pop();
    world.outbox.held.insert(CLASS_TOLL, 2);
    world.connect(false);
    world.node = node(9);
    world.tell_all_ready();
    world.connect(true);
    world.run(1000);
    assert!(world.ahead);
}

#[test]
fn records_that_come_again_after_a_broken_link_are_counted() {
    let mut world = quiet();
    world.sink.hold = true;
    for _ in 0..10 {
        world.append(CLASS_TOLL, record(b"one"));
    }
    world.run(1000);
    assert_eq!(world.cloud.take_repeated(), None);
    world.connect(false);
    world.connect(true);
    world.run(1000);
    let repeated = (world.outbox.incarnation, CLASS_TOLL, 10);
    assert_eq!(world.cloud.take_repeated(), Some(repeated));
    assert_eq!(world.cloud.take_repeated(), None);
}

/// Goal: records that the sink stored after a failed batch do not block their stream. Method: the sink
/// refuses the announcement of an outbox and stores the record that follows, which the session does
/// not know; the record is received again and skipped.
#[test]
fn a_record_taken_behind_an_announcement_that_failed_stops_nothing() {
    let mut world = World::new(Rng::new(1));
    world.sink.hold = true;
    world.sink.keeps_after_failure = true;
    world.connect(true);
    world.run(100);
    world.append(CLASS_TOLL, record(b"one"));
    world.run(100);
    let [announcement, taken] = &world.sink.pending[..] else {
        panic!("{:?}", world.sink.pending);
    };
    assert!(announcement.5.is_empty() && taken.3 == 1);
    let ticket = announcement.0;
    world.sink.pending.remove(0);
    world.cloud(CloudRecordsInput::Failed { ticket });
    world.sink.hold = false;
    world.make_durable();
    world.append(CLASS_TOLL, record(b"two"));
    world.run(10 * 60 * 1000);
    assert_eq!(world.check_arrived(1), 0);
    assert_eq!(world.outbox.held[&CLASS_TOLL], 3);
}

/// A pair with a live session, and the session.
fn live() -> (Pair, SessionId) {
    let mut pair = Pair::new();
    pair.connect();
    let session = pair.cloud.session().unwrap();
    pair.seen_cloud.other.clear();
    (pair, session)
}

/// Goal: what a cloud does with each `first` of a frame without entries. Method: such frames for a stream
/// of which 9 numbers are durable, and the reaction: a loss that is given to the sink, or an answer.
#[test]
fn the_first_number_of_an_announcement_is_checked() {
    let announce = |held, first| {
        let (mut pair, session) = live();
        let (incarnation, class) = ([1; 8], CLASS_TOLL);
        assert!(pair.cloud.restore_stream(incarnation, class, 10));
        let frame = Frame::Records {
            session,
            incarnation,
            class,
            held,
            first,
            entries: Vec::new(),
        };
        pair.cloud(LinkInput::Frame(&frame.encode()));
        let lost = pair.seen_cloud.other.pop().map(|output| match output {
            CloudOutput::Records(records) => (records.first, records.forgotten),
            other => panic!("{other:?}"),
        });
        let answer = pair
            .down
            .pop_front()
            .map(|frame| match Frame::decode(&frame) {
                Ok(Frame::RecordsAck { next, missing, .. }) => (next, missing),
                other => panic!("{other:?}"),
            });
        (lost, answer, pair.seen_cloud.problems.len())
    };
    // As the cloud has it.
    assert_eq!(announce(10, 10), (None, Some((10, false)), 0));
    // The outbox is behind: the answer is above every number that it has given.
    assert_eq!(announce(4, 4), (None, Some((10, false)), 0));
    // The cloud is behind, the numbers between were acknowledged: lost, and answered when the sink has
    // stored it.
    assert_eq!(announce(14, 14), (Some((14, 4)), None, 0));
    // The numbers between were not acknowledged: they are lost in transit.
    assert_eq!(announce(8, 14), (None, Some((10, true)), 0));
    // No number is 0, and a node sends only what it holds.
    for (held, first) in [(0, 0), (0, 10), (11, 10)] {
        assert_eq!(announce(held, first), (None, None, 1), "{held} {first}");
    }
}

/// Goal: however many frames of a class report the same gap, the node goes back once; progress and a
/// question of its own allow it again. Method: constructed answers of a cloud.
#[test]
fn missing_records_are_sent_again_once() {
    let (mut pair, session) = live();
    let (class, incarnation, held, end) = (CLASS_TOLL, [1; 8], 1, 4);
    pair.node(NodeRecordsInput::Ready {
        class,
        incarnation,
        held,
        end,
    });
    let answer = |next, missing| {
        let ack = Frame::RecordsAck {
            session,
            incarnation,
            class,
            next,
            missing,
        };
        ack.encode()
    };
    // Answers for the outbox; returns the numbers that were requested from it.
    let work = |pair: &mut Pair| {
        let mut read = Vec::new();
        while let Some(output) = pair.seen_node.other.pop() {
            let NodeOutput::Records(NodeRecordsOutput::Wanted { class, from, .. }) = output else {
                continue;
            };
            read.push(from);
            pair.node(NodeRecordsInput::Read {
                class,
                first: from,
                entries: vec![record(b"one")],
            });
        }
        read
    };
    assert_eq!(work(&mut pair), [1, 2, 3]);
    pair.node(LinkInput::Frame(&answer(1, true)));
    assert_eq!(work(&mut pair), [1, 2, 3]);
    pair.node(LinkInput::Frame(&answer(1, true)));
    assert_eq!(work(&mut pair), [0; 0]);
    // Progress and a gap in one answer.
    pair.node(LinkInput::Frame(&answer(2, true)));
    assert_eq!(work(&mut pair), [2, 3]);
    pair.node(LinkInput::Frame(&answer(2, true)));
    assert_eq!(work(&mut pair), [0; 0]);
    // The node has asked.
    pair.now = pair.node.deadline().unwrap();
    pair.node(LinkInput::Tick);
    pair.node(LinkInput::Frame(&answer(2, true)));
    assert_eq!(work(&mut pair), [2, 3]);
    // No such class, and no such number.
    for (class, next) in [(16, 2), (CLASS_TOLL, 0)] {
        let wrong = Frame::RecordsAck {
            session,
            incarnation,
            class,
            next,
            missing: false,
        };
        pair.seen_node.problems.clear();
        pair.node(LinkInput::Frame(&wrong.encode()));
        assert_eq!(pair.seen_node.problems.len(), 1);
    }
}
