//! Admission of connections before TLS, which is expensive: after an outage all nodes connect at once.
//!
//! Bound: that of [`AdmissionQueue`].

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::events::Events;
use crate::transport::admission_queue::AdmissionQueue;

/// Pause between two events about refused connections, milliseconds.
const FULL_EVENT_INTERVAL_MS: u64 = 60_000;

/// The queue, and its waiting connections.
pub(super) struct Admission {
    events: Arc<Events>,
    start: Instant,
    state: Mutex<State>,
    /// A connection was added.
    entered: Notify,
}

struct State {
    queue: AdmissionQueue<oneshot::Sender<()>>,
    /// Connections refused since the last event of it, and when the next one is due.
    refused: u64,
    event_at: u64,
}

impl Admission {
    /// Admits this many connections a second.
    pub(super) fn new(per_s: u32, events: Arc<Events>) -> Self {
        Self {
            events,
            start: Instant::now(),
            state: Mutex::new(State {
                queue: AdmissionQueue::new(per_s),
                refused: 0,
                event_at: 0,
            }),
            entered: Notify::new(),
        }
    }

    /// A new connection from this address: the channel gets a message when the connection may continue, and
    /// closes without one when too many wait.
    pub(super) fn enter(&self, address: IpAddr) -> oneshot::Receiver<()> {
        let (admitted, receiver) = oneshot::channel();
        self.admit(Some((address, admitted)));
        self.entered.notify_one();
        receiver
    }

    /// Admits the connections that wait, for ever.
    pub(super) async fn run(&self) {
        loop {
            match self.admit(None) {
                Some(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
                None => self.entered.notified().await,
            }
        }
    }

    /// Admits the connections that are due; returns when the next one is, in milliseconds.
    fn admit(&self, arrived: Option<(IpAddr, oneshot::Sender<()>)>) -> Option<u64> {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((address, admitted)) = arrived {
            state.queue.enter(now, address, admitted);
        }
        while let Some(admitted) = state.queue.next(now) {
            // Its connection may have freed a place for another.
            admitted.send(()).ok();
        }
        state.refused += state.queue.take_refused();
        if state.refused > 0 && now >= state.event_at {
            let count = std::mem::take(&mut state.refused);
            state.event_at = now + FULL_EVENT_INTERVAL_MS;
            let text = format!(
                "more connections than the admission allows: {count} closed since the last such \
                 event, their nodes come back after a pause"
            );
            self.events.add("", "AdmissionQueueFull", &text);
        }
        state.queue.wait_ms(now)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot::error::TryRecvError;

    use super::*;
    use crate::nodes::EventLog as _;

    /// Goal: many connections are delayed before TLS, and cause an event. Method: more connections at once
    /// than can be admitted before the longest wait is over.
    #[tokio::test(start_paused = true)]
    async fn a_crowd_waits_or_is_closed_before_it_costs_anything() {
        let events = Arc::new(Events::default());
        let admission = Admission::new(2, Arc::clone(&events));
        let mut waiting: Vec<_> = (0..40)
            .map(|_| admission.enter([192, 0, 2, 1].into()))
            .collect();
        let away = waiting
            .iter_mut()
            .filter_map(|one| one.try_recv().err())
            .filter(|error| *error == TryRecvError::Closed)
            .count();
        // Two at once, and two a second for five seconds wait.
        assert_eq!(away, 28);
        let events = events.events();
        let full = events
            .iter()
            .filter(|event| event.reason == "AdmissionQueueFull");
        assert_eq!(full.count(), 1, "{events:?}");
    }
}
