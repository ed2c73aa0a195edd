//! The links when an external broker carries them: all nodes share one connection, which says
//! nothing of who is there. So a node counts as connected by its session alone.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use edge_proto::frame::Frame;
use edge_proto::lanes::Lanes;
use edge_proto::session::Input;

use super::{Connection, Frames, Links, NodeSession, State};
use crate::transport::broker::{Publisher, write_crl};

/// See [`Links::keep_list`].
const LIST_PACE: Duration = Duration::from_secs(1);
/// When a list that could not be written is tried again.
const LIST_AGAIN: Duration = Duration::from_secs(60);

/// What an edge-cloud behind an external broker is told.
#[derive(Clone, Debug)]
pub struct ExternalBroker {
    /// What a joining node is told of the broker.
    pub broker: edge_proto::enrol::Broker,
    /// Where the list of refused certificates is kept for the broker.
    pub crl: Option<PathBuf>,
}

impl Links {
    /// Whether an external broker carries the links.
    #[must_use]
    pub const fn is_behind_broker(&self) -> bool {
        self.behind.is_some()
    }

    /// The connection to the broker is up. What was lost while it was away, the answers to
    /// [`Self::probe`] will show.
    pub fn broker_up(&self, publisher: Publisher) {
        let mut state = self.lock();
        state.broker = Some(publisher);
        state.event("", "BrokerConnected", "every node is asked for its state");
        self.unasked.notify_one();
    }

    /// Returns when there may be nodes to [`Self::probe`].
    pub async fn unasked(&self) {
        self.unasked.notified().await;
    }

    /// Asks up to `count` nodes that were not asked since the broker came up, those without a
    /// desired set only if `unplaced`. `false` when there are none left.
    #[must_use]
    pub fn probe(&self, count: usize, unplaced: bool) -> bool {
        let mut state = self.lock();
        let silent = |(name, node): (&String, &NodeSession)| {
            let waits = node.connection.is_none() && (unplaced || node.desired.is_some());
            (waits && self.registry.knows(name)).then(|| name.clone())
        };
        let names: Vec<String> = state.nodes.iter().filter_map(silent).take(count).collect();
        for name in &names {
            self.attach(&mut state, name, Input::TransportUp);
        }
        !names.is_empty() && state.broker.is_some()
    }

    /// A node can be reached through the broker, if that is connected.
    fn attach(&self, state: &mut State, name: &str, how: Input<'_>) {
        let Some(publisher) = state.broker.clone() else {
            return;
        };
        state.connections += 1;
        let id = state.connections;
        if let Some(node) = state.nodes.get_mut(name) {
            let lanes = Box::new(Lanes::new());
            let mut frames = Frames::Broker(publisher, name.to_owned(), lanes);
            frames.limit(self.now(), &node.limits.borrow());
            node.connection = Some(Connection {
                id,
                frames,
                heard: self.now(),
                asked: 0,
            });
            self.handle(state, name, how);
        }
    }

    /// A frame that came by the broker, under the name that the broker's access control has let
    /// it use. What a node says that has not joined, or is revoked, is not heard.
    pub fn frame_from_broker(&self, name: &str, frame: &[u8]) {
        let mut state = self.lock();
        if state.broker.is_none() {
            return;
        }
        if !self.registry.knows(name) {
            let hello = matches!(Frame::decode(frame), Ok(Frame::Hello { .. }));
            if !hello || !self.readmits(&mut state, name) {
                return;
            }
        }
        let node = state.nodes.get(name);
        if node.is_some_and(|node| node.connection.is_none()) {
            let says_hello = matches!(Frame::decode(frame), Ok(Frame::Hello { .. }));
            let how = match says_hello {
                true => Input::NodeConnected,
                false => Input::TransportUp,
            };
            self.attach(&mut state, name, how);
        }
        let now = self.now();
        let connection = state.nodes.get_mut(name);
        if let Some(connection) = connection.and_then(|node| node.connection.as_mut()) {
            connection.heard = now;
            connection.asked = 0;
        }
        if !self.must_wait(&mut state, name, frame) {
            self.handle(&mut state, name, Input::Frame(frame));
        }
    }

    /// Whether a node that is not known comes back after a restore. That is safe only if the broker
    /// has the list of those that must not.
    fn readmits(&self, state: &mut State, name: &str) -> bool {
        let listed = self
            .behind
            .as_ref()
            .is_some_and(|behind| behind.crl.is_some());
        let unix_s = crate::clock::unix_s();
        match listed.then(|| self.registry.readmit(name, unix_s)) {
            Some(Ok(true)) => {
                state.add(name, self.registry.epoch(), self.now());
                state.event(name, "Readmitted", super::READMITTED);
                true
            }
            Some(Err(error)) => {
                state.event(name, "Refused", &error.to_string());
                false
            }
            Some(Ok(false)) | None => {
                let why = "it is revoked, deleted or has never joined, but the broker lets it in";
                state.event(name, "Refused", why);
                false
            }
        }
    }

    /// Asks up to `count` nodes for a sign of life that have a live session and were silent for
    /// `silence_ms`. One that has not answered `asks` times is not connected: its will was lost.
    pub fn ask_silent(&self, silence_ms: u64, asks: u32, count: usize) {
        let now = self.now();
        let mut state = self.lock();
        let mut gone = Vec::new();
        let silent = state.nodes.iter_mut().filter_map(|(name, node)| {
            let connection = node.connection.as_mut().filter(|_| node.live)?;
            let silent = now.saturating_sub(connection.heard) >= silence_ms;
            silent.then_some((name, connection))
        });
        for (name, connection) in silent.take(count) {
            if connection.asked < asks {
                connection.asked += 1;
                connection.frames.send(now, self.probe_frame());
            } else {
                gone.push(name.clone());
            }
        }
        for name in gone {
            self.handle(&mut state, &name, Input::TransportDown);
            self.handle(&mut state, &name, Input::TransportUp);
        }
    }

    /// The connection to the broker is gone, and with it all that was known of presence.
    pub fn broker_down(&self, reason: &str) {
        let mut state = self.lock();
        if state.broker.take().is_none() {
            return;
        }
        state.event("", "BrokerLost", reason);
        let names: Vec<String> = state.nodes.keys().cloned().collect();
        for name in names {
            if let Some(node) = state.nodes.get_mut(&name) {
                node.connection = None;
            }
            self.handle(&mut state, &name, Input::TransportDown);
            self.changes.changed(&name);
        }
    }

    /// Writes the list of refused certificates for the broker.
    pub(super) fn write_crl(&self) -> io::Result<()> {
        let Some(path) = self.behind.as_ref().and_then(|behind| behind.crl.as_ref()) else {
            return Ok(());
        };
        // Of two that write, the later one knows more.
        let _listing = self.listing.lock().unwrap_or_else(PoisonError::into_inner);
        write_crl(path, &self.authorities(), self.registry.retired())
    }

    /// The same. That it failed is told and tried again: `false` then. Not under the lock of the links,
    /// which would all wait.
    pub(super) fn keep_crl(&self) -> bool {
        let Err(error) = self.write_crl() else {
            return true;
        };
        self.lock().event("", "CrlNotWritten", &error.to_string());
        self.registry.refused().notify_one();
        false
    }

    /// Writes the list after certificates were replaced, for ever: once in a [`LIST_PACE`], for
    /// thousands are replaced together, and on a thread that may wait for the medium.
    pub async fn keep_list(self: &Arc<Self>) {
        loop {
            self.registry.refused().notified().await;
            let links = Arc::clone(self);
            let kept = tokio::task::spawn_blocking(move || links.keep_crl()).await;
            let pace = match kept {
                Ok(true) => LIST_PACE,
                _ => {
                    self.registry.refused().notify_one();
                    LIST_AGAIN
                }
            };
            tokio::time::sleep(pace).await;
        }
    }
}
