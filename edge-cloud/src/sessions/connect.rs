//! The connection of one node: it opens, receives frames, and closes. The transport has verified its
//! certificate; whether the registry still admits it is checked here, under the lock: a revocation is
//! stored in the registry before it takes the lock to end the link.

use edge_proto::frame::{Frame, FrameError};
use edge_proto::session::{CloudInput, LinkInput};

use super::node::{Carrier, Connection, NodeSession};
use super::replacement::Decision;
use super::{READMITTED, Sessions, State};
use crate::clock::unix_s;
use crate::identity::REFUSED;
use crate::identity::peer::Peer;
use crate::identity::registry::Admission;

/// A node whose ledger of records is still being read retries after this, milliseconds.
const LEDGER_WAIT_MS: u64 = 500;

/// Why a node gets no link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Its certificate is not admitted.
    ForGood,
    /// It may try again: another connection replaces it, or the registry cannot be written.
    ForNow,
}

impl Sessions {
    /// A node's connection has opened: its frames are sent by `carrier`, which is dropped to close the
    /// connection. Returns the number of the connection.
    ///
    /// # Errors
    /// The connection is to be refused.
    pub fn connect(&self, peer: &Peer, carrier: impl Carrier + 'static) -> Result<u64, Refused> {
        let name = peer.node.as_str();
        let mut state = self.lock();
        self.admit(peer)?;
        self.add(&mut state, name);
        if !self.admits(&mut state, name) {
            drop(state);
            self.changes.changed(name);
            return Err(Refused::ForNow);
        }
        state.connections += 1;
        let id = state.connections;
        let node = state.nodes.get_mut(name).ok_or(Refused::ForNow)?;
        let before = node.attach(self.now(), id, Box::new(carrier));
        if before.is_some() {
            self.handle(&mut state, name, LinkInput::TransportDown);
        }
        self.handle(&mut state, name, CloudInput::NodeConnected);
        drop(state);
        self.changes.changed(name);
        Ok(id)
    }

    /// Whether the registry admits the certificate.
    fn admit(&self, peer: &Peer) -> Result<(), Refused> {
        let name = peer.node.as_str();
        match self.identity.registry().admit(peer, unix_s()) {
            Ok(Admission::Known) => Ok(()),
            Ok(Admission::Readmitted) => {
                self.events.add(name, "Readmitted", READMITTED);
                Ok(())
            }
            Ok(Admission::Refused) => {
                self.events.add_by_node(name, "Refused", REFUSED);
                Err(Refused::ForGood)
            }
            Err(error) => {
                self.events.add_by_node(name, "Refused", &error.to_string());
                Err(Refused::ForNow)
            }
        }
    }

    /// Whether a new connection of this node may replace the live one, if there is one.
    fn admits(&self, state: &mut State, name: &str) -> bool {
        let now = self.now();
        let Some(node) = state.nodes.get_mut(name) else {
            return false;
        };
        if node.connection.is_none() {
            node.replacements.vacant();
            return true;
        }
        match node.replacements.new_connection(now) {
            Decision::Replaces => true,
            Decision::Refused { probe, proven } => {
                if probe {
                    // A full carrier belongs to a connection that does not read: it stays silent.
                    node.send(now, &self.probe_frame());
                }
                if proven {
                    let text = "two boards use this identity, and the one that is connected keeps \
                                the link: delete the node and join each by a name of its own";
                    self.events.add(name, "Cloned", text);
                }
                self.schedule(state, name);
                false
            }
        }
    }

    /// Handles a frame from a node's connection.
    pub fn frame(&self, name: &str, id: u64, frame: &[u8]) {
        let mut state = self.lock();
        // A replaced connection may still have frames in its buffer.
        let current =
            |node: &&mut Box<NodeSession>| node.connection.as_ref().is_some_and(|one| one.id == id);
        if let Some(node) = state.nodes.get_mut(name).filter(current) {
            // Any other frame may have been delayed on a link that is broken since.
            if node.replacements.waits() && is_hello(frame) {
                node.replacements.record_answer();
            }
            if !self.must_wait(&mut state, name, frame) {
                self.handle(&mut state, name, LinkInput::Frame(frame));
            }
        }
    }

    /// Whether a `Hello` must wait; its node gets a `RetryAfter`. A node with a live session here
    /// does not wait: it only answers a `Probe`.
    pub(super) fn must_wait(&self, state: &mut State, name: &str, frame: &[u8]) -> bool {
        let now = self.now();
        let Some(node) = state.nodes.get_mut(name).filter(|node| !node.live) else {
            return false;
        };
        let Ok(Frame::Hello { n, .. }) = Frame::decode(frame) else {
            return false;
        };
        let wait_ms = match node.has_ledger {
            true => state.openings.request(now, &mut node.reservation),
            false => {
                self.records.prioritize(name);
                LEDGER_WAIT_MS
            }
        };
        if wait_ms == 0 {
            return false;
        }
        let epoch = self.epoch();
        node.send(now, &Frame::RetryAfter { n, epoch, wait_ms });
        self.schedule(state, name);
        true
    }

    /// A node's connection has closed. A late close of an old one changes nothing.
    pub fn disconnect(&self, name: &str, id: u64) {
        let mut state = self.lock();
        let Some(node) = state.nodes.get_mut(name) else {
            return;
        };
        if node.connection.as_ref().is_some_and(|one| one.id == id) {
            node.connection = None;
            self.handle(&mut state, name, LinkInput::TransportDown);
            drop(state);
            self.changes.changed(name);
        }
    }
}

/// Whether a frame is a `Hello`. One of an unsupported version counts: its node is connected, and gets the
/// refusal with the reason.
pub(super) fn is_hello(frame: &[u8]) -> bool {
    matches!(
        Frame::decode(frame),
        Ok(Frame::Hello { .. }) | Err(FrameError::PeerHello { .. })
    )
}

impl NodeSession {
    /// Sets the carrier of a node; returns the connection that it replaces.
    pub(super) fn attach(
        &mut self,
        now: u64,
        id: u64,
        mut carrier: Box<dyn Carrier>,
    ) -> Option<Connection> {
        carrier.set_limits(now, &self.limits);
        self.connection.replace(Connection {
            id,
            carrier,
            received_at: now,
            probes: 0,
        })
    }
}
