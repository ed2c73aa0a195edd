//! All nodes behind one connection to an external broker, which does not report who is connected. So a
//! node counts as connected by its session alone: each is probed when the broker is up, and again when it
//! was silent for long.

use edge_proto::session::{CloudInput, LinkInput};

use super::connect::is_hello;
use super::node::Carrier;
use super::{READMITTED, Sessions, State};
use crate::clock::unix_s;

/// Creates the carrier for a node of this name.
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

    /// Probes up to `count` nodes that were not probed since the broker came up, those without a
    /// desired set only if `unplaced`. `false` when there are none left.
    #[must_use]
    pub(crate) fn probe(&self, count: usize, unplaced: bool, carriers: Carriers<'_>) -> bool {
        let mut state = self.lock();
        for _ in 0..count {
            let Some(name) = state.unprobed.pop(unplaced) else {
                return false;
            };
            state.visited += 1;
            // A revoked one is probed when it joins again.
            if self.identity.registry().knows(&name) {
                self.reach(&mut state, &name, LinkInput::TransportUp.into(), carriers);
            }
        }
        true
    }

    /// The node is to be probed, unless the hub carries the links or the node can be reached already.
    pub(super) fn expect_probe(&self, state: &mut State, name: &str) {
        if self.identity.external_broker().is_some()
            && let Some(node) = state.nodes.get(name)
            && node.connection.is_none()
        {
            state.unprobed.insert(&node.name, node.desired.is_some());
        }
    }

    /// A node can be reached through the broker.
    fn reach(&self, state: &mut State, name: &str, how: CloudInput<'_>, carriers: Carriers<'_>) {
        state.connections += 1;
        let id = state.connections;
        if let Some(node) = state.nodes.get_mut(name) {
            let now = self.now();
            node.attach(now, id, carriers(name));
            state.unprobed.remove(name);
            let listened = &mut node.listened;
            state.silences.set(&node.name, listened, Some(now));
            self.handle(state, name, how);
        }
    }

    /// Handles a frame from the broker, with the name that the broker's access control has permitted.
    /// Frames of a node that has not joined, or is revoked, are dropped.
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
            connection.received_at = now;
            connection.probes = 0;
        }
        if !self.must_wait(&mut state, name, frame) {
            self.handle(&mut state, name, LinkInput::Frame(frame));
        }
    }

    /// Whether an unknown node is readmitted after a restore. That is safe only if the broker
    /// has the list of those that must not be.
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
                self.events.add_by_node(name, "Refused", &error.to_string());
                false
            }
            Some(Ok(false)) | None => {
                let why = "it is revoked, deleted or has never joined, but the broker lets it in";
                self.events.add_by_node(name, "Refused", why);
                false
            }
        }
    }

    /// Probes up to `count` nodes that have a live session and were silent for
    /// `silence_ms`. One that has not answered `probes_max` probes is not connected: its will was lost. A node
    /// that is not silent is checked once in `silence_ms`; the caller limits the rate of the rest.
    pub(crate) fn probe_silent(&self, silence_ms: u64, probes_max: u32, count: usize) {
        let now = self.now();
        let Some(limit) = now.checked_sub(silence_ms) else {
            return;
        };
        let mut state = self.lock();
        let mut left = count;
        while left > 0 {
            // Each gets a deadline after the limit.
            let due = state.silences.due(limit, left);
            if due.is_empty() {
                break;
            }
            for name in due {
                left -= usize::from(self.listen(&mut state, &name, (now, limit), probes_max));
            }
        }
    }

    /// Checks whether a node was silent since `limit`, and probes it or gives it up.
    fn listen(
        &self,
        state: &mut State,
        name: &str,
        (now, limit): (u64, u64),
        probes_max: u32,
    ) -> bool {
        state.visited += 1;
        let Some(node) = state.nodes.get_mut(name) else {
            return false;
        };
        let (received_at, probes) = match &mut node.connection {
            // Its opening has timers of its own.
            Some(_) if !node.live => (now, None),
            Some(connection) if connection.received_at > limit => (connection.received_at, None),
            // Again in the next round, after those that wait longer.
            Some(connection) => (limit + 1, Some(&mut connection.probes)),
            None => return false,
        };
        state
            .silences
            .set(&node.name, &mut node.listened, Some(received_at));
        match probes {
            None => return false,
            Some(probes) if *probes < probes_max => {
                *probes += 1;
                let probe = self.probe_frame();
                node.send(now, &probe);
                self.schedule(state, name);
            }
            Some(_) => {
                self.handle(state, name, LinkInput::TransportDown);
                self.handle(state, name, LinkInput::TransportUp);
            }
        }
        true
    }

    /// The connection to the broker is lost, and with it the presence of all nodes.
    pub(crate) fn all_disconnected(&self) {
        let mut state = self.lock();
        let names: Vec<_> = state.nodes.keys().cloned().collect();
        for name in names {
            state.disconnect(&name);
            self.handle(&mut state, &name, LinkInput::TransportDown);
            self.expect_probe(&mut state, &name);
            self.changes.changed(&name);
        }
    }
}
