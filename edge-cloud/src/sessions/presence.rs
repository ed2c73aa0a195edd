//! All nodes behind one connection, that of an external broker, which says nothing of who is there. So a
//! node counts as connected by its session alone: each is asked once the broker is up, and again when it
//! was silent for long.

use edge_proto::session::{CloudInput, LinkInput};

use super::connect::is_hello;
use super::node::{Carrier, NodeSession};
use super::{READMITTED, Sessions, State};
use crate::clock::unix_s;

/// Makes the way of frames to a node of this name.
pub(crate) type Carriers<'a> = &'a dyn Fn(&str) -> Box<dyn Carrier>;

impl Sessions {
    /// Returns when there may be nodes to [`Self::probe`].
    pub(crate) async fn unprobed(&self) {
        self.unprobed.notified().await;
    }

    /// There may be nodes to [`Self::probe`].
    pub(crate) fn probe_all(&self) {
        self.unprobed.notify_one();
    }

    /// Asks up to `count` nodes that were not asked since the broker came up, those without a
    /// desired set only if `unplaced`. `false` when there are none left.
    #[must_use]
    pub(crate) fn probe(&self, count: usize, unplaced: bool, carriers: Carriers<'_>) -> bool {
        let mut state = self.lock();
        let silent = state.nodes.values().filter(|node| {
            let waits = node.connection.is_none() && (unplaced || node.desired.is_some());
            waits && self.identity.registry().knows(&node.name)
        });
        let names: Vec<_> = silent.map(|node| node.name.clone()).take(count).collect();
        for name in &names {
            self.reach(&mut state, name, LinkInput::TransportUp.into(), carriers);
        }
        !names.is_empty()
    }

    /// A node can be reached through the broker.
    fn reach(&self, state: &mut State, name: &str, how: CloudInput<'_>, carriers: Carriers<'_>) {
        state.connections += 1;
        let id = state.connections;
        if let Some(node) = state.nodes.get_mut(name) {
            node.attach(self.now(), id, carriers(name));
            self.handle(state, name, how);
        }
    }

    /// A frame that came by the broker, under the name that the broker's access control has let
    /// it use. What a node sends that has not joined, or is revoked, is dropped.
    pub(crate) fn frame_from_broker(&self, name: &str, frame: &[u8], carriers: Carriers<'_>) {
        let mut state = self.lock();
        let known = self.identity.registry().knows(name);
        if !known && (!is_hello(frame) || !self.readmits(&mut state, name)) {
            return;
        }
        let node = state.nodes.get(name);
        if node.is_some_and(|node| node.connection.is_none()) {
            let how = match is_hello(frame) {
                true => CloudInput::NodeConnected,
                false => LinkInput::TransportUp.into(),
            };
            self.reach(&mut state, name, how, carriers);
        }
        let now = self.now();
        let connection = state.nodes.get_mut(name);
        if let Some(connection) = connection.and_then(|node| node.connection.as_mut()) {
            connection.heard = now;
            connection.asked = 0;
        }
        if !self.must_wait(&mut state, name, frame) {
            self.handle(&mut state, name, LinkInput::Frame(frame));
        }
    }

    /// Whether a node that is not known comes back after a restore. That is safe only if the broker
    /// has the list of those that must not.
    fn readmits(&self, state: &mut State, name: &str) -> bool {
        let broker = self.identity.external_broker();
        let listed = broker.is_some_and(|broker| broker.crl.is_some());
        match listed.then(|| self.identity.registry().readmit(name, unix_s())) {
            Some(Ok(true)) => {
                self.add(state, name);
                self.events.add(name, "Readmitted", READMITTED);
                true
            }
            Some(Err(error)) => {
                self.events.add(name, "Refused", &error.to_string());
                false
            }
            Some(Ok(false)) | None => {
                let why = "it is revoked, deleted or has never joined, but the broker lets it in";
                self.events.add(name, "Refused", why);
                false
            }
        }
    }

    /// Asks up to `count` nodes for a sign of life that have a live session and were silent for
    /// `silence_ms`. One that has not answered `asks` times is not connected: its will was lost. Looks at
    /// all nodes; the caller paces it.
    pub(crate) fn ask_silent(&self, silence_ms: u64, asks: u32, count: usize) {
        let now = self.now();
        let mut state = self.lock();
        let silent = |node: &&mut Box<NodeSession>| {
            let connection = node.connection.as_ref().filter(|_| node.live);
            connection.is_some_and(|one| now.saturating_sub(one.heard) >= silence_ms)
        };
        let silent = state.nodes.values_mut().filter(silent).take(count);
        let (mut asked, mut gone) = (Vec::new(), Vec::new());
        for node in silent {
            match &mut node.connection {
                Some(connection) if connection.asked < asks => {
                    connection.asked += 1;
                    let probe = self.probe_frame(&node.name);
                    node.send(now, &probe);
                    asked.push(node.name.clone());
                }
                _ => gone.push(node.name.clone()),
            }
        }
        for name in asked {
            self.schedule(&mut state, &name);
        }
        for name in gone {
            self.handle(&mut state, &name, LinkInput::TransportDown);
            self.handle(&mut state, &name, LinkInput::TransportUp);
        }
    }

    /// The connection to the broker is gone, and with it all that was known of presence.
    pub(crate) fn all_disconnected(&self) {
        let mut state = self.lock();
        let names: Vec<_> = state.nodes.keys().cloned().collect();
        for name in names {
            if let Some(node) = state.nodes.get_mut(&name) {
                node.connection = None;
            }
            self.handle(&mut state, &name, LinkInput::TransportDown);
            self.changes.changed(&name);
        }
    }
}
