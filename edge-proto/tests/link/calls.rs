//! Calls: `echo`, a method of this file only, sends back what it receives, and takes no more than it can
//! send back. So both directions have data, and a direction that is not read blocks the other.

use std::collections::{BTreeMap, VecDeque};

use edge_proto::call::{CODE_BUSY, CODE_OK, CONTROL_SIGNAL};
use edge_proto::frame::Frame;
use edge_proto::limits::{
    CALL_BYTES_MAX, CALL_CHECK_MS, CALL_CONTROL_BYTES_MAX, CALL_CONTROLS_MAX,
    CALL_CREDIT_BYTES_MIN, CALL_FRAMES_MAX, CALL_REASON_BYTES_MAX, CALL_WINDOW_BYTES, CALLS_MAX,
};
use edge_proto::session::{
    CallInput, CallOpen, CallOutput, CallResult, CloudOutput, LinkInput, NodeOutput,
};

use crate::support::{Pair, Rng};

const METHOD_ECHO: u16 = u16::MAX;

/// A caller, at the cloud.
#[derive(Default)]
struct Caller {
    waiting: Vec<u8>,
    window: usize,
    sent: usize,
    ended: bool,
    /// Bytes given to the session in one step.
    step: usize,
    received: Vec<u8>,
    taken: usize,
    /// It does not read.
    stalls: bool,
    controls: Vec<u8>,
    over: Option<Result<CallResult, ()>>,
}

/// An echo, at the node.
#[derive(Default)]
struct Echo {
    held: Vec<u8>,
    window: usize,
    sent: usize,
    taken: usize,
    ended: bool,
}

/// Both ends, with all callers and echoes.
struct World {
    pair: Pair,
    callers: BTreeMap<u32, Caller>,
    echoes: BTreeMap<u32, Echo>,
}

fn bytes(id: u32, count: usize) -> Vec<u8> {
    (0..count)
        .map(|at| (at * 7 + (at >> 8) + id as usize) as u8)
        .collect()
}

impl World {
    fn new() -> Self {
        let mut pair = Pair::new();
        pair.connect();
        Self {
            pair,
            callers: BTreeMap::new(),
            echoes: BTreeMap::new(),
        }
    }

    fn call(&mut self, id: u32, count: usize) {
        let caller = Caller {
            waiting: bytes(id, count),
            step: usize::MAX,
            ..Caller::default()
        };
        self.callers.insert(id, caller);
        let (method, args) = (METHOD_ECHO, Vec::new());
        self.pair.cloud(CallOpen { id, method, args });
        self.work();
    }

    /// Every caller and echo does what is possible without another frame.
    fn work(&mut self) {
        loop {
            let at_node = std::mem::take(&mut self.pair.seen_node.other);
            let at_cloud = std::mem::take(&mut self.pair.seen_cloud.other);
            let idle = at_node.is_empty() && at_cloud.is_empty();
            at_node.into_iter().for_each(|output| self.at_node(output));
            at_cloud
                .into_iter()
                .for_each(|output| self.at_cloud(output));
            if !(self.answer() | self.send()) && idle {
                break;
            }
        }
        self.check_window();
    }

    fn at_node(&mut self, output: NodeOutput) {
        match output {
            NodeOutput::CallOpen(CallOpen { id, method, .. }) => {
                assert_eq!(method, METHOD_ECHO);
                assert!(self.echoes.insert(id, Echo::default()).is_none());
                assert!(self.echoes.len() <= CALLS_MAX);
                let (bytes, end) = (Vec::new(), false);
                self.pair.node(CallInput::Data { id, bytes, end });
            }
            NodeOutput::Call(CallOutput::Data { id, bytes, end }) => {
                if let Some(echo) = self.echoes.get_mut(&id) {
                    echo.held.extend(bytes);
                    echo.ended |= end;
                }
            }
            NodeOutput::Call(CallOutput::Control { id, kind, bytes }) => {
                self.pair.node(CallInput::Control { id, kind, bytes });
            }
            NodeOutput::Call(CallOutput::Window { id, bytes }) => {
                if let Some(echo) = self.echoes.get_mut(&id) {
                    echo.window += bytes as usize;
                }
            }
            NodeOutput::Call(CallOutput::Cancelled { id }) => drop(self.echoes.remove(&id)),
            other => panic!("{other:?}"),
        }
    }

    /// Each echo sends what its window allows, and takes as much.
    fn answer(&mut self) -> bool {
        let mut inputs = Vec::new();
        let mut results = Vec::new();
        for (id, echo) in &mut self.echoes {
            let count = echo.window.min(echo.held.len());
            if count > 0 {
                echo.window -= count;
                echo.sent += count;
                echo.taken += count;
                let (id, bytes) = (*id, echo.held.drain(..count).collect());
                let taken = count as u32;
                inputs.push(CallInput::Data {
                    id,
                    bytes,
                    end: false,
                });
                inputs.push(CallInput::Taken { id, bytes: taken });
            } else if echo.ended && echo.held.is_empty() {
                results.push(*id);
            }
        }
        let busy = !inputs.is_empty() || !results.is_empty();
        for input in inputs {
            self.pair.node(input);
        }
        for id in results {
            self.echoes.remove(&id);
            let reason = "é".repeat(CALL_REASON_BYTES_MAX);
            let code = CODE_OK;
            self.pair.node(CallResult { id, code, reason });
        }
        busy
    }

    fn at_cloud(&mut self, output: CloudOutput) {
        match output {
            CloudOutput::Call(CallOutput::Data { id, bytes, .. }) => {
                let caller = self.callers.get_mut(&id).unwrap();
                let taken = bytes.len();
                caller.received.extend(bytes);
                if !caller.stalls {
                    caller.taken += taken;
                    let bytes = taken as u32;
                    self.pair.cloud(CallInput::Taken { id, bytes });
                }
            }
            CloudOutput::Call(CallOutput::Control { id, bytes, .. }) => {
                self.callers.get_mut(&id).unwrap().controls.extend(bytes);
            }
            CloudOutput::Call(CallOutput::Window { id, bytes }) => {
                self.callers.get_mut(&id).unwrap().window += bytes as usize;
            }
            CloudOutput::Call(CallOutput::Cancelled { id }) => {
                let before = self.callers.get_mut(&id).unwrap().over.replace(Err(()));
                assert_eq!(before, None);
            }
            CloudOutput::CallResult(result) => {
                let caller = self.callers.get_mut(&result.id).unwrap();
                assert_eq!(caller.over.replace(Ok(result)), None);
            }
            other => panic!("{other:?}"),
        }
    }

    /// Each caller sends what its window allows, and ends its direction after all data.
    fn send(&mut self) -> bool {
        let mut inputs = Vec::new();
        for (id, caller) in &mut self.callers {
            if caller.ended || caller.over.is_some() {
                continue;
            }
            let count = caller.window.min(caller.waiting.len()).min(caller.step);
            let end = count == caller.waiting.len();
            if count > 0 || end {
                caller.window -= count;
                caller.sent += count;
                caller.ended = end;
                let (id, bytes) = (*id, caller.waiting.drain(..count).collect());
                inputs.push(CallInput::Data { id, bytes, end });
            }
        }
        let busy = !inputs.is_empty();
        for input in inputs {
            self.pair.cloud(input);
        }
        busy
    }

    /// In either direction, no more than the shared window is granted and not taken.
    fn check_window(&self) {
        let open = |id: &u32| self.echoes.get(id).zip(self.callers.get(id));
        let calls = self.callers.keys().filter_map(open);
        let (down, up) = calls.fold((0, 0), |(down, up), (echo, caller)| {
            (
                down + caller.sent - echo.taken,
                up + echo.sent - caller.taken,
            )
        });
        let window = CALL_WINDOW_BYTES as usize;
        assert!(down <= window && up <= window, "{down} {up}");
    }

    fn deliver(&mut self) -> bool {
        let some = !self.pair.up.is_empty() || !self.pair.down.is_empty();
        self.pair.deliver(1);
        self.work();
        some
    }

    fn settle(&mut self) {
        while self.deliver() {}
    }

    /// Advances to the next deadline of either end.
    fn tick(&mut self) -> bool {
        let ends = [self.pair.node.deadline(), self.pair.cloud.deadline()];
        let Some(at) = ends.into_iter().flatten().min() else {
            return false;
        };
        self.pair.now = self.pair.now.max(at);
        self.pair.node(LinkInput::Tick);
        self.pair.cloud(LinkInput::Tick);
        self.work();
        true
    }

    fn assert_done(&self, id: u32, count: usize) {
        let caller = &self.callers[&id];
        let result = caller.over.clone().unwrap().unwrap();
        assert_eq!(result.code, CODE_OK);
        assert_eq!(result.reason.len(), CALL_REASON_BYTES_MAX);
        assert!(caller.received == bytes(id, count), "call {id}");
    }
}

#[test]
fn an_echo_comes_back_whole_whatever_its_length() {
    for count in [0, 1, 1023, 1024, 1025, 4096, 65_536, 300_000] {
        let mut world = World::new();
        world.call(1, count);
        world.settle();
        world.assert_done(1, count);
        assert!(world.echoes.is_empty());
        assert!(!world.tick(), "a call that is over wakes nobody");
    }
}

/// Goal: eight calls share the window evenly, and a ninth is refused at once. Method: each has as much
/// to send; when the first is done, all others are nearly done.
#[test]
fn eight_calls_at_once_are_served_alike() {
    const COUNT: usize = 200_000;
    let mut world = World::new();
    for id in 1..=8 {
        world.call(id, COUNT);
    }
    world.callers.insert(9, Caller::default());
    let (method, args) = (METHOD_ECHO, Vec::new());
    let ninth = CallOpen {
        id: 9,
        method,
        args,
    };
    world.pair.cloud(ninth);
    world.work();
    assert_eq!(world.callers.remove(&9).unwrap().over, Some(Err(())));
    while world.callers.values().all(|caller| caller.over.is_none()) {
        assert!(world.deliver());
    }
    for caller in world.callers.values() {
        assert!(
            caller.received.len() > COUNT / 2,
            "{}",
            caller.received.len()
        );
    }
    world.settle();
    (1..=8).for_each(|id| world.assert_done(id, COUNT));
}

/// Goal: a reader that stops keeps what it has been granted and no more: seven other calls
/// continue, and so does its own when it reads. Method: it starts first, and has nearly all of the window.
#[test]
fn a_stalled_reader_blocks_no_other_call() {
    let mut world = World::new();
    world.call(1, 300_000);
    world.callers.get_mut(&1).unwrap().stalls = true;
    world.settle();
    let held = world.callers[&1].received.len();
    let others = (CALLS_MAX - 1) * CALL_CREDIT_BYTES_MIN as usize;
    assert!(held <= CALL_WINDOW_BYTES as usize - others, "{held}");
    for id in 2..=8 {
        world.call(id, 20_000);
    }
    world.settle();
    (2..=8).for_each(|id| world.assert_done(id, 20_000));
    let caller = world.callers.get_mut(&1).unwrap();
    caller.stalls = false;
    caller.taken = held;
    let bytes = held as u32;
    world.pair.cloud(CallInput::Taken { id: 1, bytes });
    world.work();
    world.settle();
    world.assert_done(1, 300_000);
}

/// Goal: many small writes do not fill the lane with headers. Method: one byte at a time, and
/// no answer: a bounded number of frames is sent, the rest is in the next frame.
#[test]
fn small_writes_go_together_when_the_line_is_slow() {
    let mut world = World::new();
    world.call(1, 0);
    world.settle();
    world.callers.clear();
    let caller = Caller {
        sent: 500,
        ended: true,
        ..Caller::default()
    };
    world.callers.insert(2, caller);
    let (method, args) = (METHOD_ECHO, Vec::new());
    let open = CallOpen {
        id: 2,
        method,
        args,
    };
    world.pair.cloud(open);
    world.pair.seen_cloud.other.clear();
    let before = world.pair.down.len();
    for byte in bytes(2, 500) {
        let bytes = vec![byte];
        let end = false;
        world.pair.cloud(CallInput::Data { id: 2, bytes, end });
    }
    assert_eq!(world.pair.down.len() - before, CALL_FRAMES_MAX);
    world.settle();
    assert_eq!(world.callers[&2].received, bytes(2, 500));
}

/// Goal: one call alone fills a line of 3 Mbit/s with a round trip of 150 ms. Method: 1 MB up, then
/// as much down, over such a line; 90 % of its rate with all headers.
#[test]
fn one_call_fills_a_cellular_line() {
    let mut world = World::new();
    world.call(1, 1_000_000);
    let start = world.pair.now;
    let (mut up, mut down) = (VecDeque::new(), VecDeque::new());
    let (mut up_free, mut down_free) = (0_u64, 0_u64);
    while world.callers[&1].over.is_none() {
        let now_us = (world.pair.now - start) * 1_000;
        let ways = [
            (&mut world.pair.up, &mut up, &mut up_free),
            (&mut world.pair.down, &mut down, &mut down_free),
        ];
        for (from, to, free) in ways {
            for frame in from.drain(..) {
                *free = (*free).max(now_us) + (frame.len() as u64 + 128) * 8 / 3;
                to.push_back((*free + 75_000, frame));
            }
        }
        world.pair.now += 1;
        let now_us = now_us + 1_000;
        while let Some((_, frame)) = next(&mut down, now_us) {
            world.pair.node(LinkInput::Frame(&frame));
        }
        while let Some((_, frame)) = next(&mut up, now_us) {
            world.pair.cloud(LinkInput::Frame(&frame));
        }
        world.work();
    }
    world.assert_done(1, 1_000_000);
    // An echo waits for its own answers: each direction has its line, and half a round trip more.
    let ms = world.pair.now - start;
    let best = 1_000_000 * 8 / 3_000;
    assert!(ms < best * 10 / 9 + 300, "{ms} ms, at best {best}");
}

fn next(way: &mut VecDeque<(u64, Vec<u8>)>, now_us: u64) -> Option<(u64, Vec<u8>)> {
    way.front()
        .is_some_and(|(at, _)| *at <= now_us)
        .then(|| way.pop_front())
        .flatten()
}

/// Goal: more than the window ends the call at both ends, and so does a frame that is lost.
#[test]
fn too_much_data_and_a_gap_end_the_call() {
    for lost in [false, true] {
        let mut world = World::new();
        world.call(1, 0);
        world.settle();
        let (method, args) = (METHOD_ECHO, Vec::new());
        let caller = Caller {
            sent: CALL_CREDIT_BYTES_MIN as usize,
            ended: true,
            ..Caller::default()
        };
        world.callers.insert(2, caller);
        world.pair.cloud(CallOpen {
            id: 2,
            method,
            args,
        });
        world.pair.settle();
        let data = |count: u32| CallInput::Data {
            id: 2,
            bytes: vec![1; count as usize],
            end: false,
        };
        world.pair.cloud(data(CALL_CREDIT_BYTES_MIN));
        if lost {
            let before = world.pair.down.pop_back();
            assert!(before.is_some());
            world.pair.cloud(CallInput::Data {
                id: 2,
                bytes: Vec::new(),
                end: true,
            });
        } else {
            world.pair.cloud(data(1));
        }
        world.work();
        world.settle();
        assert_eq!(world.callers[&2].over, Some(Err(())));
        assert!(world.echoes.is_empty());
    }
}

#[test]
fn each_direction_ends_by_itself() {
    let mut pair = Pair::new();
    pair.connect();
    let (method, args) = (METHOD_ECHO, vec![7; CALL_BYTES_MAX]);
    pair.cloud(CallOpen {
        id: 1,
        method,
        args,
    });
    let data = |id, byte, end| CallInput::Data {
        id,
        bytes: vec![byte; 3],
        end,
    };
    pair.settle();
    // The node ends its direction first, then the cloud continues.
    pair.node(data(1, 1, true));
    pair.settle();
    pair.cloud(data(1, 2, false));
    pair.cloud(data(1, 3, true));
    pair.settle();
    let ends = |output: &NodeOutput| match output {
        NodeOutput::Call(CallOutput::Data { bytes, end, .. }) => Some((bytes[0], *end)),
        _ => None,
    };
    let at_node: Vec<_> = pair.seen_node.other.iter().filter_map(ends).collect();
    assert_eq!(at_node, [(2, false), (3, true)]);
    let code = 300;
    pair.node(CallResult {
        id: 1,
        code,
        reason: "gone".into(),
    });
    pair.settle();
    let Some(CloudOutput::CallResult(result)) = pair.seen_cloud.other.pop() else {
        panic!("no result");
    };
    assert_eq!((result.code, result.reason.as_str()), (300, "gone"));
    // Nothing may follow an end: the call ends at both ends.
    let (method, args) = (METHOD_ECHO, Vec::new());
    pair.cloud(CallOpen {
        id: 2,
        method,
        args,
    });
    pair.settle();
    pair.node(data(2, 1, true));
    pair.node(data(2, 1, false));
    pair.settle();
    let cancelled = CallOutput::Cancelled { id: 2 };
    assert_eq!(
        pair.seen_node.other.pop(),
        Some(NodeOutput::Call(cancelled.clone()))
    );
    assert_eq!(
        pair.seen_cloud.other.pop(),
        Some(CloudOutput::Call(cancelled))
    );
}

/// Goal: control messages pass data that has no credit, in order, and one too many ends the call.
#[test]
fn control_messages_wait_for_no_credit_and_are_bounded() {
    let mut world = World::new();
    world.call(1, 300_000);
    world.callers.get_mut(&1).unwrap().stalls = true;
    world.settle();
    let control = |byte, count| CallInput::Control {
        id: 1,
        kind: CONTROL_SIGNAL,
        bytes: vec![byte; count],
    };
    for round in 0..3 {
        for byte in 0..CALL_CONTROLS_MAX as u8 {
            world.pair.cloud(control(round * 8 + byte, 1));
        }
        world.settle();
    }
    assert_eq!(world.callers[&1].controls, (0..24).collect::<Vec<_>>());
    world.pair.cloud(control(0, CALL_CONTROL_BYTES_MAX));
    for _ in 0..CALL_CONTROLS_MAX {
        assert_eq!(world.callers[&1].over, None);
        world.pair.cloud(control(0, 1));
        world.work();
    }
    assert_eq!(world.callers[&1].over, Some(Err(())));
    world.settle();
    assert!(world.echoes.is_empty());
    let mut world = World::new();
    world.call(1, 10);
    world.pair.cloud(control(0, CALL_CONTROL_BYTES_MAX + 1));
    world.work();
    assert_eq!(world.callers[&1].over, Some(Err(())));
}

/// Goal: whatever the network does, a call ends at both ends, and a call that ends with a result has all
/// of its bytes, both ways. Method: loss, duplication and swaps from a seed, up to 8 calls, cancels of
/// either end; then time passes.
#[test]
fn calls_end_at_both_ends_over_a_bad_network() {
    let (mut whole, mut broken) = (0, 0);
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let mut world = World::new();
        let lossy = 1 + rng.below(8);
        let mut counts = BTreeMap::new();
        for id in 1..=8 {
            let count = rng.below(40_000) as usize;
            counts.insert(id, count);
            world.call(id, count);
            world.callers.get_mut(&id).unwrap().step = 1 + rng.below(6_000) as usize;
        }
        for _ in 0..2_000 {
            let way = match rng.chance(50) {
                true => &mut world.pair.up,
                false => &mut world.pair.down,
            };
            // One frame in some hundreds: a call has about that many.
            match rng.below(100 * lossy) {
                0 => drop(way.pop_front()),
                1 => {
                    let copy = way.front().cloned();
                    way.extend(copy);
                }
                2 if way.len() > 1 => way.swap(0, 1),
                3 => {
                    let id = 1 + rng.below(8) as u32;
                    let at_node = rng.chance(50);
                    if at_node && world.echoes.remove(&id).is_some() {
                        world.pair.node(CallInput::Cancel { id });
                    } else if !at_node && world.callers[&id].over.is_none() {
                        world.callers.get_mut(&id).unwrap().over = Some(Err(()));
                        world.pair.cloud(CallInput::Cancel { id });
                    }
                }
                _ => {}
            }
            world.deliver();
        }
        world.settle();
        for _ in 0..4 {
            world.tick();
            world.settle();
        }
        assert!(world.echoes.is_empty(), "seed {seed}");
        for (id, caller) in &world.callers {
            match caller.over.as_ref().expect("no end") {
                Ok(_) => {
                    world.assert_done(*id, counts[id]);
                    whole += 1;
                }
                Err(()) => {
                    let sent = bytes(*id, counts[id]);
                    assert!(sent.starts_with(&caller.received));
                    broken += 1;
                }
            }
        }
    }
    assert!(whole > 500 && broken > 300, "{whole} {broken}");
}

/// Goal: a lost result is noticed. Method: its frame is dropped, and time passes.
#[test]
fn a_lost_result_is_noticed_within_a_check() {
    let mut world = World::new();
    world.call(1, 10);
    let is_result = |frame: &Vec<u8>| matches!(Frame::decode(frame), Ok(Frame::CallResult { .. }));
    while !world.pair.up.iter().any(is_result) {
        assert!(world.deliver());
    }
    world.pair.up.retain(|frame| !is_result(frame));
    world.settle();
    assert_eq!(world.callers[&1].over, None);
    world.pair.now += CALL_CHECK_MS;
    world.pair.cloud(LinkInput::Tick);
    world.settle();
    assert_eq!(world.callers[&1].over, Some(Err(())));
}

/// Goal: an end that violates the protocol loses the call, and nothing else. Method: constructed
/// frames: over the credit, after the end, a credit beyond the window, an unknown call.
#[test]
fn frames_against_the_rules_end_their_call() {
    type Bend = fn(edge_proto::frame::SessionId) -> Frame;
    let bends: [Bend; 4] = [
        |session| Frame::CallData {
            session,
            id: 1,
            number: 1,
            bytes: vec![0; 1],
            end: false,
        },
        |session| Frame::CallData {
            session,
            id: 1,
            number: 0,
            bytes: vec![0; CALL_CREDIT_BYTES_MIN as usize + 1],
            end: false,
        },
        |session| Frame::CallCredit {
            session,
            id: 1,
            number: 0,
            seen: 0,
            upto: u64::from(CALL_WINDOW_BYTES) + 1,
            check: false,
        },
        |session| Frame::CallCredit {
            session,
            id: 1,
            number: 0,
            seen: 1_000,
            upto: 0,
            check: false,
        },
    ];
    for bend in bends {
        let mut pair = Pair::new();
        pair.connect();
        let (method, args) = (METHOD_ECHO, Vec::new());
        pair.cloud(CallOpen {
            id: 1,
            method,
            args,
        });
        pair.settle();
        let session = pair.cloud.session().unwrap();
        pair.node(LinkInput::Frame(&bend(session).encode()));
        let cancelled = CallOutput::Cancelled { id: 1 };
        assert_eq!(
            pair.seen_node.other.pop(),
            Some(NodeOutput::Call(cancelled.clone()))
        );
        pair.settle();
        assert_eq!(
            pair.seen_cloud.other.pop(),
            Some(CloudOutput::Call(cancelled))
        );
        assert!(pair.node.is_live() && pair.cloud.is_live());
    }
    // A ninth call, of a cloud that has miscounted.
    let mut world = World::new();
    (1..=8).for_each(|id| world.call(id, 300_000));
    while world.echoes.len() < CALLS_MAX {
        world.deliver();
    }
    let session = world.pair.cloud.session().unwrap();
    let open = Frame::CallOpen {
        session,
        id: 9,
        method: METHOD_ECHO,
        args: Vec::new(),
        upto: 1024,
    };
    world.pair.up.clear();
    world.pair.node(LinkInput::Frame(&open.encode()));
    let busy = Frame::decode(world.pair.up.back().unwrap()).unwrap();
    assert!(matches!(busy, Frame::CallResult { id: 9, code, .. } if code == CODE_BUSY));
}

#[test]
fn a_call_ends_with_its_session_and_none_opens_without_one() {
    let mut world = World::new();
    (1..=3).for_each(|id| world.call(id, 300_000));
    for _ in 0..20 {
        world.deliver();
    }
    world.pair.node(LinkInput::TransportDown);
    world.pair.cloud(LinkInput::TransportDown);
    world.work();
    assert!(world.echoes.is_empty());
    let over = |caller: &Caller| caller.over == Some(Err(()));
    assert!(world.callers.values().all(over));
    world.pair.up.clear();
    world.pair.down.clear();
    world.call(4, 10);
    assert!(over(&world.callers[&4]));
    // Ids continue in the next session, and an old one is refused.
    world.pair.connect();
    world.call(5, 10);
    world.settle();
    world.assert_done(5, 10);
    world.callers.remove(&3);
    world.call(3, 10);
    assert!(over(&world.callers[&3]));
}
