//! The latest events, for display: a bounded list, and the number of the newest one.
//!
//! Calls nothing of edge-cloud except [`crate::clock`]; every module may add events. Its lock is the last
//! in the order of locks: nothing is called while it is held.
//!
//! Bound: [`EVENTS_MAX`] events; the oldest is dropped.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use crate::clock::unix_s;
use crate::nodes::{Event, EventLog};

/// Events that are kept.
pub const EVENTS_MAX: usize = 1_000;

/// The latest events, oldest first.
pub struct Events {
    latest: Mutex<VecDeque<Event>>,
    /// Events so far.
    count: watch::Sender<u64>,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            latest: Mutex::default(),
            count: watch::Sender::new(0),
        }
    }
}

impl Events {
    /// Adds an event and logs it. `node` is empty when it concerns no node, `reason` is one word.
    pub fn add(&self, node: &str, reason: &str, message: &str) {
        log::info!("{}", line(node, reason, message));
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.len() >= EVENTS_MAX {
            latest.pop_front();
        }
        latest.push_back(Event {
            unix_s: unix_s(),
            node: node.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
        });
        drop(latest);
        self.count.send_modify(|count| *count += 1);
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
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.iter().cloned().collect()
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
            events.add("gate", "Joined", &number.to_string());
        }
        let kept = events.events();
        assert_eq!(kept.len(), EVENTS_MAX);
        assert_eq!(kept[0].message, "1");
        assert_eq!(*events.subscribe().borrow(), EVENTS_MAX as u64 + 1);
    }
}
