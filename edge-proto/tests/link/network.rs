//! A bad network from a seed: loss, duplication, reordering, disconnects, restarts of either end and
//! a stale replica; in the end both sets are equal.

use edge_proto::Millis;
use edge_proto::key::{Key, Kind};
use edge_proto::session::{Cloud, CloudInput, LinkInput, Node, NodeInput, NodeOutput, StateInput};

use crate::support::{Rng, Seen, Store, cloud, drain, finish_applies, key, node, put};

const KEYS: u64 = 20;
const CHAOS_MS: Millis = 8 * 60 * 1000;

#[derive(Clone, Copy, PartialEq)]
enum To {
    Node,
    Cloud,
}

struct World {
    rng: Rng,
    now: Millis,
    node: Node,
    clouds: Vec<Cloud>,
    epoch: u64,
    at_node: Store,
    at_cloud: Store,
    stale_store: Store,
    seen: Seen<NodeOutput>,
    connected: bool,
    chaos: bool,
    /// Frames in flight: time of arrival, receiver.
    in_flight: Vec<(Millis, To, Vec<u8>)>,
    desired: std::collections::BTreeMap<Key, Vec<u8>>,
    reported: std::collections::BTreeMap<Key, Vec<u8>>,
}

impl World {
    fn new(mut rng: Rng) -> Self {
        Self {
            now: 5000,
            node: node(rng.nonce()),
            clouds: vec![cloud(10, rng.nonce())],
            rng,
            epoch: 10,
            at_node: Store::default(),
            at_cloud: Store::default(),
            stale_store: Store::default(),
            seen: Seen::default(),
            connected: false,
            chaos: true,
            in_flight: Vec::new(),
            desired: Default::default(),
            reported: Default::default(),
        }
    }

    fn send(&mut self, to: To, frames: Vec<Vec<u8>>) {
        for frame in frames {
            if !self.connected || (self.chaos && self.rng.chance(10)) {
                continue;
            }
            let copies = if self.chaos && self.rng.chance(10) {
                2
            } else {
                1
            };
            for _ in 0..copies {
                let spread = if self.chaos { 3000 } else { 1 };
                let at = self.now + 20 + self.rng.below(spread);
                self.in_flight.push((at, to, frame.clone()));
            }
        }
    }

    fn tell_node<'a>(&mut self, input: impl Into<NodeInput<'a>>) {
        let end = &mut self.node;
        end.handle(self.now, input);
        let hold = self.chaos && self.rng.chance(30);
        let (store, seen) = (&mut self.at_node, &mut self.seen);
        let frames = drain(end, self.now, store, seen, hold);
        self.send(To::Cloud, frames);
    }

    fn tell_cloud<'a>(&mut self, index: usize, input: impl Into<CloudInput<'a>>) {
        let end = &mut self.clouds[index];
        end.handle(self.now, input);
        let hold = index == 0 && self.chaos && self.rng.chance(30);
        let store = if index == 0 {
            &mut self.at_cloud
        } else {
            &mut self.stale_store
        };
        let frames = drain(end, self.now, store, &mut Seen::default(), hold);
        self.send(To::Node, frames);
    }

    fn apply(&mut self) {
        finish_applies(&mut self.node, self.now, &mut self.at_node);
        self.tell_node(LinkInput::Tick);
        finish_applies(&mut self.clouds[0], self.now, &mut self.at_cloud);
        self.tell_cloud(0, LinkInput::Tick);
    }

    fn connect(&mut self, up: bool) {
        self.connected = up;
        if !up {
            // What was in flight may still arrive, or not.
            let mut rng = Rng::new(self.rng.next());
            self.in_flight.retain(|_| rng.chance(50));
        }
        let input = if up {
            LinkInput::TransportUp
        } else {
            LinkInput::TransportDown
        };
        self.tell_node(input);
        if self.rng.chance(30) {
            self.tell_cloud(0, LinkInput::TransportDown);
            self.tell_cloud(0, LinkInput::TransportUp);
        }
    }

    fn payload(&mut self) -> Vec<u8> {
        let bytes = match self.rng.below(10) {
            0 => 9000,
            1 => 3000,
            _ => 40,
        };
        let seed = self.rng.next();
        (0..bytes).map(|i| (seed >> (i % 57)) as u8).collect()
    }

    fn change(&mut self) {
        let name = self.rng.below(KEYS);
        let remove = self.rng.chance(30);
        let payload = self.payload();
        if self.rng.chance(50) {
            let key = key(Kind::ConfigMap, name);
            if remove {
                self.desired.remove(&key);
                self.tell_cloud(0, StateInput::Delete { key });
            } else {
                self.desired.insert(key.clone(), payload.clone());
                self.tell_cloud(0, put(key, &payload));
            }
        } else {
            let key = key(Kind::DeviceStatus, name);
            let payload = &payload[..payload.len().min(4000)];
            if remove {
                self.reported.remove(&key);
                self.tell_node(StateInput::Delete { key });
            } else {
                self.reported.insert(key.clone(), payload.to_vec());
                self.tell_node(put(key, payload));
            }
        }
    }

    fn restart_node(&mut self) {
        self.connected = false;
        self.at_node.applying.clear();
        self.node = node(self.rng.nonce());
        let hashes = self.at_node.hashes();
        let members = hashes.into_iter().map(|(key, hash)| (key, hash, None));
        assert!(self.node.restore(members, self.at_node.epoch));
        for (key, payload) in self.reported.clone() {
            self.tell_node(put(key, &payload));
        }
    }

    fn restart_cloud(&mut self) {
        self.epoch += 1;
        self.at_cloud.applying.clear();
        self.stale_store = Store::default();
        let new = cloud(self.epoch, self.rng.nonce());
        let old = std::mem::replace(&mut self.clouds[0], new);
        self.clouds.truncate(1);
        if self.rng.chance(50) {
            // It was only paused: it continues with the old epoch beside the new one.
            self.clouds.push(old);
        }
        if self.rng.chance(50) {
            assert!(self.clouds[0].restore(self.at_cloud.hashes()));
        } else {
            self.at_cloud = Store::default();
        }
        for (key, payload) in self.desired.clone() {
            self.tell_cloud(0, put(key, &payload));
        }
        self.tell_cloud(0, LinkInput::TransportUp);
    }

    /// Processes the next event before `until`: a frame arrives, or a deadline is reached.
    fn step(&mut self, until: Millis) -> bool {
        let frame = self.in_flight.iter().map(|(at, ..)| *at).min();
        let clouds = self.clouds.iter().filter_map(Cloud::deadline).min();
        let times = [frame, self.node.deadline(), clouds];
        let Some(next) = times.into_iter().flatten().min().filter(|at| *at <= until) else {
            self.now = until;
            return false;
        };
        self.now = self.now.max(next);
        if let Some(index) = self.in_flight.iter().position(|(at, ..)| *at <= self.now) {
            let (_, to, frame) = self.in_flight.swap_remove(index);
            match to {
                To::Node if self.connected => self.tell_node(LinkInput::Frame(&frame)),
                To::Node => {}
                To::Cloud => {
                    for index in 0..self.clouds.len() {
                        self.tell_cloud(index, LinkInput::Frame(&frame));
                    }
                }
            }
        } else {
            self.tell_node(LinkInput::Tick);
            for index in 0..self.clouds.len() {
                self.tell_cloud(index, LinkInput::Tick);
            }
        }
        true
    }

    fn run(&mut self, until: Millis) -> usize {
        (0..1_000_000).take_while(|_| self.step(until)).count()
    }

    fn is_equal(&self) -> bool {
        let cloud = &self.clouds[0];
        self.node.desired().root() == cloud.desired_root()
            && cloud.reported().root() == self.node.reported_root()
    }
}

/// Goal: whatever happens in the network and at both ends, the sets are equal in the end, and then the
/// link is silent. A failure prints `seed`.
pub fn survives(rng: Rng, seed: u64) {
    let mut world = World::new(rng);
    world.tell_cloud(0, LinkInput::TransportUp);
    let mut frames = 0;
    while world.now < CHAOS_MS && !world.rng.is_over() {
        match world.rng.below(100) {
            0..50 => world.change(),
            50..60 => world.connect(false),
            60..75 => world.connect(true),
            75..78 => world.restart_node(),
            78..80 => world.restart_cloud(),
            _ => world.apply(),
        }
        let until = world.now + 1 + world.rng.below(10_000);
        frames += world.run(until);
    }
    world.chaos = false;
    world.apply();
    // The state at the end of the faults must be repaired in the existing session, or in another one.
    if !world.connected || world.rng.chance(50) {
        world.connect(false);
        world.connect(true);
    }
    let until = world.now + 20 * 60 * 1000;
    frames += world.run(until);
    assert!(world.is_equal(), "seed {seed}");
    assert!(frames < 100_000, "seed {seed}: {frames} frames");
    assert!(world.node.is_live() && world.clouds[0].is_live());
    assert_eq!(world.seen.in_sync, Some((true, true)), "seed {seed}");
    let stored = world.at_node.hashes();
    let wanted: Vec<_> = world
        .desired
        .iter()
        .map(|(key, bytes)| (key.clone(), edge_proto::hash::Hash16::of(bytes)))
        .collect();
    assert!(stored == wanted, "seed {seed}: store and set differ");
    // Nothing is sent once the roots are equal.
    let later = world.now + 24 * 3600 * 1000;
    assert_eq!(world.run(later), 0, "seed {seed}: traffic in a quiet day");
}

#[test]
fn converges_over_a_bad_network() {
    for seed in 0..2_000 {
        survives(Rng::new(seed), seed);
    }
}

/// A scripted simulation, as in the fuzz target `session_worlds`.
#[test]
fn a_scripted_world_converges_when_its_script_ends() {
    let script: Vec<u8> = (0..600_u32).map(|i| ((i * i * 31) >> 3) as u8).collect();
    survives(Rng::of_script(&script), 0);
}
