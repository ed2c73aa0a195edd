//! The desired set of a node: from the controller into the node's session.

use std::sync::Arc;

use edge_proto::session::{LinkInput, StateInput};

use super::{Sessions, State, session};
use crate::nodes::DesiredSets;
use crate::placement::Desired;

impl DesiredSets for Sessions {
    fn set_desired(&self, name: &str, desired: &Desired) {
        let mut state = self.lock();
        let Some(node) = state.nodes.get_mut(name) else {
            return;
        };
        let before = node.desired.replace(desired.clone());
        node.limit(self.now());
        match before {
            None => self.first_set(&mut state, name, desired),
            Some(before) => {
                for key in before.keys().filter(|key| !desired.contains_key(*key)) {
                    self.handle(&mut state, name, StateInput::Delete { key: key.clone() });
                }
                for (key, payload) in desired {
                    if before.get(key) != Some(payload) {
                        let (key, payload) = (key.clone(), Arc::clone(payload));
                        self.handle(&mut state, name, StateInput::Put { key, payload });
                    }
                }
                self.schedule(&mut state, name);
            }
        }
        drop(state);
        self.changes.changed(name);
    }
}

impl Sessions {
    /// The first set since our start. The session so far has an empty one, and may be about to send that:
    /// it is created again.
    fn first_set(&self, state: &mut State, name: &str, desired: &Desired) {
        let now = self.now();
        let Some(node) = state.nodes.get_mut(name) else {
            return;
        };
        let reported: Vec<_> = node
            .session
            .reported()
            .iter()
            .map(|(key, hash)| (key.clone(), hash))
            .collect();
        let was_live = std::mem::take(&mut node.live);
        node.end_calls("the session with the node began anew");
        node.session = session(self.epoch(), now);
        node.session.restore(reported);
        (node.stream, node.has_ledger) = self.records.attach(name, &mut node.session);
        node.in_sync = false;
        for (key, payload) in desired {
            let (key, payload) = (key.clone(), Arc::clone(payload));
            node.session.handle(now, StateInput::Put { key, payload });
        }
        if node.connection.is_some() || was_live {
            self.handle(state, name, LinkInput::TransportUp);
        }
        self.schedule(state, name);
        self.expect_probe(state, name);
        self.probe_all();
    }
}
