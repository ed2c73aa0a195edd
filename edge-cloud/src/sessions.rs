//! One session for each node, whatever carries its frames: a socket of [`crate::transport`]'s
//! hub for each node, or the one connection to an external broker for all of them. `edge-proto` decides
//! within a session; decided here is what concerns more than one session of a node, or more
//! than one node: whether a new connection replaces the live one, when a session may open, and when a
//! node is probed or asked to renew its certificate.
//!
//! | file | duty |
//! |---|---|
//! | `node` | one node: its session, its connection, what it has reported |
//! | `connect` | the connection of one node opens, receives frames and closes: the hub's side |
//! | `presence` | all nodes behind one connection, that of an external broker |
//! | `desired` | the set that a node shall hold |
//! | `call`, `records` | between a session and who reads a call or keeps records |
//! | `renewals` | asks nodes for what a rollover of the CA needs |
//! | `deadlines` | which node's timers are due |
//! | `unprobed` | which node is to be probed |
//! | `replacement` | when a new connection may replace the live one of the same node |
//!
//! Called by [`crate::transport`] with frames, by [`crate::fleet`] for all other modules, and by
//! [`crate::records`] with acknowledgements. Calls [`crate::identity`], [`crate::records`] and
//! [`crate::events`]. Frames are sent by a [`Carrier`], which the transport provides.
//!
//! All of this is behind one lock, because the work under it is short and for one node: each input goes to
//! one session, and costs what that session does and a step in the order of deadlines. Under the lock the
//! registry, the records and the events are called, which have locks of their own and never call back; so
//! the order is sessions, then registry, records or events.
//!
//! Bound: [`crate::identity::registry::NODES_MAX`] nodes; per node the caps of `edge-proto::limits` for
//! the two sets, and the session's own cap of calls. The carrier bounds frames that wait for a connection.

mod call;
mod connect;
mod deadlines;
mod desired;
mod node;
mod presence;
mod records;
mod renewals;
pub mod replacement;
#[cfg(test)]
mod tests;
mod unprobed;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use edge_proto::frame::Frame;
use edge_proto::rate_limiter::RateLimiter;
use edge_proto::session::{Cloud, CloudConfig, CloudInput, CloudOutput, LinkInput, LinkOutput};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::Notify;
use tokio::time::Instant;

use self::deadlines::Deadlines;
use self::node::{Connection, NodeSession};
use self::unprobed::Unprobed;
use crate::changes::{ChangeFeed, ChangeNotices};
use crate::clock::unix_s;
use crate::events::Events;
use crate::identity::Identity;
use crate::nodes::{NodeReports, NodeView};
use crate::records::Records;

pub use self::connect::Refused;
pub use self::node::Carrier;
pub use self::renewals::{ASK_AGAIN_MS, ASK_INTERVAL, PROOF_AGAIN_MS, RENEWALS_AT_ONCE};

/// Openings a second, TLS handshakes and sessions, unless the operator sets another number: about a
/// quarter of the capacity of one core, so that live links are not delayed. 5,000 nodes reconnect in 25 s.
pub const ADMISSIONS_PER_S: u32 = 200;
/// Nodes whose timers run during one hold of the lock; frames are handled in between.
const DUE_AT_ONCE: usize = 64;
/// Longest sleep of the timers, longer than any of them.
const TICK_MAX: Duration = Duration::from_secs(3600);
/// Why an unknown node was admitted.
const READMITTED: &str = "it joined after the backup that was restored, which knows no labels of it; revoke it if it must not be here";

/// Sessions of all nodes, and the timers for them.
pub struct Sessions {
    identity: Arc<Identity>,
    events: Arc<Events>,
    records: Arc<Records>,
    changes: ChangeFeed,
    start: Instant,
    state: Mutex<State>,
    /// The next deadline is earlier than the one that [`Self::tick`] waits for.
    earlier: Notify,
    /// There may be nodes to [`Self::probe`].
    unprobed: Notify,
}

struct State {
    /// Boxed: otherwise the map would reserve nearly as much memory again for further nodes.
    nodes: BTreeMap<Arc<str>, Box<NodeSession>>,
    deadlines: Deadlines,
    /// Deadline for which [`Sessions::tick`] waits; `None` is none.
    waited_for: Option<u64>,
    /// Nodes that are to be probed, see [`presence`].
    unprobed: Unprobed,
    /// When each node that is reached through a broker was last found to be not silent.
    silences: Deadlines,
    /// When a node is to be asked to renew its certificate, see [`renewals`].
    renewals: Deadlines,
    /// When it is to be asked which certificate it uses.
    proofs: Deadlines,
    /// Number of nodes that were checked for those four; tests verify that it stays small.
    visited: u64,
    /// Limits the rate of openings.
    openings: RateLimiter,
    connections: u64,
    calls: u32,
}

fn session(epoch: u64, now: u64) -> Cloud {
    let mut seed = [0; 8];
    // Without randomness the nonces repeat after a restart, and an old frame could match by chance.
    if SystemRandom::new().fill(&mut seed).is_err() {
        seed = unix_s().to_le_bytes();
    }
    let mut session = Cloud::new(CloudConfig { epoch }, u64::from_le_bytes(seed));
    session.handle(now, CloudInput::Clock { unix_s: unix_s() });
    session
}

impl Sessions {
    /// A session for each node of the registry, none of them live.
    #[must_use]
    pub fn new(identity: Arc<Identity>, events: Arc<Events>, records: Arc<Records>) -> Arc<Self> {
        let sessions = Arc::new(Self {
            identity,
            events,
            records,
            changes: ChangeFeed::default(),
            start: Instant::now(),
            state: Mutex::new(State {
                nodes: BTreeMap::new(),
                deadlines: Deadlines::default(),
                waited_for: None,
                unprobed: Unprobed::default(),
                silences: Deadlines::default(),
                renewals: Deadlines::default(),
                proofs: Deadlines::default(),
                visited: 0,
                openings: RateLimiter::new(ADMISSIONS_PER_S),
                connections: 0,
                calls: 0,
            }),
            earlier: Notify::new(),
            unprobed: Notify::new(),
        });
        let mut state = sessions.lock();
        for name in sessions.identity.registry().nodes().keys() {
            sessions.add(&mut state, name);
        }
        drop(state);
        sessions
    }

    /// Sets the rate of openings per second.
    pub fn set_openings(&self, per_s: u32) {
        self.lock().openings = RateLimiter::new(per_s);
    }

    /// Runs the sessions' timers, for ever.
    pub async fn tick(&self) {
        loop {
            let wait = {
                let mut state = self.lock();
                let now = self.now();
                for name in state.deadlines.due(now, DUE_AT_ONCE) {
                    self.handle(&mut state, &name, LinkInput::Tick);
                }
                let next = state.deadlines.next();
                state.waited_for = next;
                next.map_or(TICK_MAX, |at| {
                    Duration::from_millis(at.saturating_sub(self.now()))
                })
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.earlier.notified() => {}
            }
        }
    }

    /// The node has joined, or has a further certificate: it may connect from now on.
    pub fn joined(&self, name: &str) {
        let mut state = self.lock();
        // It may have been deleted again meanwhile.
        if self.identity.registry().find(name).is_some() {
            self.add(&mut state, name);
            self.ask_soon(&mut state, name);
        }
        drop(state);
        self.changes.changed(name);
    }

    /// The node is refused from now on: its session ends, and its connection is closed. Returns whether it
    /// was known here.
    pub fn end(&self, name: &str) -> bool {
        let mut state = self.lock();
        let known = state.nodes.contains_key(name);
        self.add(&mut state, name);
        self.cut(&mut state, name);
        drop(state);
        self.changes.changed(name);
        known
    }

    /// What the registry says of the node has changed: its view has, too.
    pub fn registry_changed(&self, name: &str) {
        self.changes.changed(name);
    }

    /// The node has left the registry. Returns whether it was known here.
    pub fn remove(&self, name: &str) -> bool {
        let mut state = self.lock();
        self.cut(&mut state, name);
        let known = state.remove(name);
        self.records.detach(name);
        // It may have joined again since it left the registry, and behind a broker nothing else adds it.
        if self.identity.registry().find(name).is_some() {
            self.add(&mut state, name);
        }
        drop(state);
        self.changes.changed(name);
        known
    }

    /// Ends a node's link. A socket closes when its `Connection` is dropped; behind a broker the node is
    /// sent a `Reset`.
    fn cut(&self, state: &mut State, name: &str) {
        let Some(node) = state.nodes.get_mut(name) else {
            return;
        };
        let session = node.session.session();
        if let (Some(mut connection), Some(session)) = (state.disconnect(name), session) {
            let epoch = self.epoch();
            let reset = Frame::Reset { session, epoch };
            connection.carrier.send(self.now(), reset.encode());
        }
        self.handle(state, name, LinkInput::TransportDown);
    }

    /// Whether the node has a live session.
    pub fn is_live(&self, name: &str) -> bool {
        self.lock().nodes.get(name).is_some_and(|node| node.live)
    }

    /// The epoch that is sent to all nodes.
    fn epoch(&self) -> u64 {
        self.identity.registry().epoch()
    }

    fn probe_frame(&self) -> Frame {
        let epoch = self.epoch();
        let unix_s = unix_s();
        Frame::Probe { epoch, unix_s }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn add(&self, state: &mut State, name: &str) {
        if state.nodes.contains_key(name) {
            return;
        }
        let mut session = session(self.epoch(), self.now());
        let stream = self.records.attach(name, &mut session);
        let name: Arc<str> = name.into();
        let node = NodeSession::new(Arc::clone(&name), session, stream);
        state.nodes.insert(Arc::clone(&name), Box::new(node));
        self.expect_probe(state, &name);
    }

    /// Passes one input to a node's session, and performs all its outputs.
    fn handle<'a>(&self, state: &mut State, name: &str, input: impl Into<CloudInput<'a>>) {
        let input = input.into();
        let now = self.now();
        let (mut visible, mut is_new) = (false, false);
        let Some(node) = state.nodes.get_mut(name) else {
            return;
        };
        if let (CloudInput::Link(LinkInput::Tick), Some(connection)) =
            (&input, &mut node.connection)
        {
            connection.carrier.tick(now);
        }
        // Each time: the clock may have been corrected since the session was created.
        let clock = CloudInput::Clock { unix_s: unix_s() };
        node.session.handle(now, clock);
        node.session.handle(now, input);
        let mut events = Vec::new();
        while let Some(output) = node.session.poll() {
            match output {
                CloudOutput::Records(output) => node.take_records(now, output, &self.records),
                output => {
                    is_new |= matches!(output, CloudOutput::Link(LinkOutput::Live { .. }));
                    visible |= node.perform(now, output, &mut events);
                }
            }
        }
        while let Some((incarnation, class, count)) = node.session.take_repeated() {
            self.records.repeated(name, incarnation, class, count);
        }
        for (reason, text) in events {
            self.events.add_by_node(name, reason, &text);
        }
        self.schedule(state, name);
        if is_new {
            self.ask_soon(state, name);
        }
        if visible {
            self.changes.changed(name);
        }
    }

    /// Updates a node's deadline; call it after whatever may have changed it.
    fn schedule(&self, state: &mut State, name: &str) {
        let Some(node) = state.nodes.get_mut(name) else {
            return;
        };
        let deadline = node.deadline();
        state
            .deadlines
            .set(&node.name, &mut node.scheduled, deadline);
        let next = state.deadlines.next();
        if next.is_some_and(|next| state.waited_for.is_none_or(|waited| next < waited)) {
            state.waited_for = next;
            self.earlier.notify_one();
        }
    }
}

impl State {
    fn remove(&mut self, name: &str) -> bool {
        let Some(mut node) = self.nodes.remove(name) else {
            return false;
        };
        self.unprobed.remove(name);
        self.deadlines.set(&node.name, &mut node.scheduled, None);
        self.silences.set(&node.name, &mut node.listened, None);
        self.renewals.set(&node.name, &mut node.renewal_due, None);
        self.proofs.set(&node.name, &mut node.proof_due, None);
        true
    }

    /// Removes a node's connection.
    fn disconnect(&mut self, name: &str) -> Option<Connection> {
        let node = self.nodes.get_mut(name)?;
        self.silences.set(&node.name, &mut node.listened, None);
        node.connection.take()
    }
}

impl NodeReports for Sessions {
    fn subscribe(&self) -> ChangeNotices {
        self.changes.subscribe()
    }

    fn view(&self, name: &str) -> Option<NodeView> {
        let enrolment = self.identity.registry().find(name)?;
        let now = self.now();
        let state = self.lock();
        let node = state.nodes.get(name)?;
        Some(node.view(&enrolment, now))
    }

    fn views(&self) -> Vec<NodeView> {
        let now = self.now();
        let state = self.lock();
        self.identity
            .registry()
            .map(|name, enrolment| Some(state.nodes.get(name)?.view(enrolment, now)))
    }
}
