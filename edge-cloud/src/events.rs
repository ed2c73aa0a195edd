//! The latest events, for display: a bounded list, and the number of the newest one.
//!
//! Calls nothing of edge-cloud except [`crate::clock`]; every module may add events. Its lock is the last
//! in the order of locks: nothing is called while it is held.
//!
//! A node that causes many events loses only its own: it has at most [`NODE_EVENTS_MAX`] in the list and
//! [`NODE_EVENTS_PER_MINUTE`] new ones, and when the list is full, the oldest of a node with the most is
//! dropped.
//!
//! Bound: [`EVENTS_MAX`] events.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::clock::unix_s;
use crate::nodes::{Event, EventLog};

/// Events that are kept.
pub const EVENTS_MAX: usize = 1_000;

/// Events of one node that are kept.
pub const NODE_EVENTS_MAX: usize = 100;
/// Events that one node may cause in a minute; further ones are counted in its next one.
pub const NODE_EVENTS_PER_MINUTE: u32 = 30;

/// The latest events, oldest first.
pub struct Events {
    state: Mutex<State>,
    /// Events so far.
    count: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    latest: VecDeque<Event>,
    /// By node, for those that have events in the list.
    nodes: BTreeMap<String, NodeEvents>,
}

/// What is known of the events of one node.
#[derive(Default)]
struct NodeEvents {
    kept: usize,
    /// Minutes since 1970, and how many events it has caused in that one.
    minute: u64,
    caused: u32,
    /// Events that were only counted.
    dropped: u64,
}

impl State {
    /// Makes room for one more event of this node.
    fn make_room(&mut self, node: &str) {
        let own = self.nodes.get(node).map_or(0, |of_node| of_node.kept);
        let kept = |node: &str| self.nodes.get(node).map_or(0, |of_node| of_node.kept);
        let oldest = if own >= NODE_EVENTS_MAX {
            self.latest.iter().position(|event| event.node == node)
        } else if self.latest.len() >= EVENTS_MAX {
            let most = self.nodes.values().map(|of_node| of_node.kept).max();
            let most = most.unwrap_or_default();
            self.latest
                .iter()
                .position(|event| kept(&event.node) == most)
        } else {
            return;
        };
        let Some(event) = oldest.and_then(|at| self.latest.remove(at)) else {
            return;
        };
        if let Some(of_node) = self.nodes.get_mut(&event.node) {
            of_node.kept -= 1;
            if of_node.kept == 0 && event.node != node {
                self.nodes.remove(&event.node);
            }
        }
    }

    /// Whether the node may cause an event in this minute; with how many were dropped before it.
    fn take_turn(&mut self, node: &str, unix_s: u64) -> Option<u64> {
        let of_node = self.nodes.get_mut(node)?;
        let minute = unix_s / 60;
        if of_node.minute != minute {
            of_node.minute = minute;
            of_node.caused = 0;
        }
        if of_node.caused >= NODE_EVENTS_PER_MINUTE {
            of_node.dropped += 1;
            return None;
        }
        of_node.caused += 1;
        Some(std::mem::take(&mut of_node.dropped))
    }
}

impl Default for Events {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            count: watch::Sender::new(0),
        }
    }
}

impl Events {
    /// Adds an event and logs it. `node` is empty when it concerns no node, `reason` is one word.
    pub fn add(&self, node: &str, reason: &str, message: &str) {
        self.keep(node, reason, message, unix_s());
    }

    /// The same for what the node itself has caused, which is not added when it causes too many.
    pub fn add_by_node(&self, node: &str, reason: &str, message: &str) {
        self.caused(node, reason, message, unix_s());
    }

    fn caused(&self, node: &str, reason: &str, message: &str, unix_s: u64) {
        let mut state = self.lock();
        let dropped = match state.nodes.contains_key(node) {
            true => state.take_turn(node, unix_s),
            false => Some(0),
        };
        drop(state);
        match dropped {
            None => {}
            Some(0) => self.keep(node, reason, message, unix_s),
            Some(count) => {
                let text = format!("{message} ({count} events of this node were not kept before)");
                self.keep(node, reason, &text, unix_s);
            }
        }
    }

    fn keep(&self, node: &str, reason: &str, message: &str, unix_s: u64) {
        log::info!("{}", line(node, reason, message));
        let mut state = self.lock();
        state.make_room(node);
        state.latest.push_back(Event {
            unix_s,
            node: node.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
        });
        state.nodes.entry(node.to_owned()).or_default().kept += 1;
        drop(state);
        self.count.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of events so far, now and from now on.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.count.subscribe()
    }
}

/// The event as a line of the log: the message in quotes, with quotes and line ends escaped.
fn line(node: &str, reason: &str, message: &str) -> String {
    let reason = reason.to_lowercase();
    format!("{reason} node={node} message={message:?}")
}

impl EventLog for Events {
    fn events(&self) -> Vec<Event> {
        self.lock().latest.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_line_is_an_event_with_fields() {
        assert_eq!(
            line("gate", "Refused", "\"a\"\nb"),
            r#"refused node=gate message="\"a\"\nb""#
        );
    }

    #[test]
    fn the_oldest_event_makes_room_and_each_one_counts() {
        let events = Events::default();
        for number in 0..=EVENTS_MAX {
            events.add(
                &format!("gate-{}", number % 20),
                "Joined",
                &number.to_string(),
            );
        }
        let kept = events.events();
        assert_eq!(kept.len(), EVENTS_MAX);
        assert!(kept.iter().all(|event| event.message != "0"));
        assert_eq!(*events.subscribe().borrow(), EVENTS_MAX as u64 + 1);
    }

    /// Goal: a node that causes events without end loses its own events and no others, and what people do to
    /// it is kept all the same. Method: a flood for ten minutes among two events of another node, of which
    /// one is as old as the flood.
    #[test]
    fn a_flood_of_one_node_pushes_out_its_own_events_only() {
        let events = Events::default();
        events.add("gate", "Joined", "first");
        for second in 0..600 {
            for _ in 0..100 {
                events.caused("evil", "Connected", "again", 60_000 + second);
            }
        }
        events.add("evil", "Revoked", "by a person");
        events.caused("gate", "Connected", "last", 60_600);
        let kept = events.events();
        let of = |node: &str| kept.iter().filter(|event| event.node == node).count();
        assert_eq!((of("gate"), of("evil")), (2, NODE_EVENTS_MAX));
        assert!(kept.iter().any(|event| event.reason == "Revoked"));
        let all = *events.subscribe().borrow();
        assert_eq!(all, 10 * u64::from(NODE_EVENTS_PER_MINUTE) + 1 + 3);
        let counted = kept
            .iter()
            .filter(|event| event.message.contains(" events of this node"));
        assert!(counted.count() > 0);
    }

    /// Goal: in a full list the one with the most events makes room. Method: many nodes with one event each,
    /// and one with fifty.
    #[test]
    fn who_has_the_most_events_makes_room() {
        let events = Events::default();
        for _ in 0..50 {
            events.add("evil", "Connected", "again");
        }
        for node in 0..EVENTS_MAX - 10 {
            events.add(&format!("gate-{node}"), "Joined", "once");
        }
        let kept = events.events();
        assert_eq!(kept.len(), EVENTS_MAX);
        let evil = kept.iter().filter(|event| event.node == "evil");
        assert_eq!(evil.count(), 10);
    }
}
