//! The queue from a node's session to the task of its socket. Implemented here, because a
//! usual channel costs an idle node more memory than its frames ever do.
//!
//! Bound: [`FRAMES_MAX`] frames; a further one is lost like one in transit, and the session repeats it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use edge_proto::lanes::Limits;
use tokio::sync::Notify;

use crate::sessions::Carrier;

/// Frames in the queue of one socket.
pub(super) const FRAMES_MAX: usize = 256;
/// Frames for which an empty queue keeps memory.
const IDLE_FRAMES: usize = 4;

/// The end of the session. Dropping it closes the socket.
pub(super) struct SocketCarrier(Arc<Queue>);

/// The end of the socket's task, which has the lanes.
pub(super) struct Outgoing(Arc<Queue>);

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    frames: VecDeque<Vec<u8>>,
    /// New rates that the task has not taken yet.
    limits: Option<Box<Limits>>,
    closed: bool,
}

/// Message to the task.
#[derive(Debug)]
pub(super) enum Next {
    /// A frame for the node.
    Frame(Vec<u8>),
    /// The rates from now on.
    Limits(Box<Limits>),
    /// The session has dropped its end, and there is nothing more.
    Closed,
}

/// Both ends.
pub(super) fn queue() -> (SocketCarrier, Outgoing) {
    let queue = Arc::new(Queue::default());
    (SocketCarrier(Arc::clone(&queue)), Outgoing(queue))
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.wake.notify_one();
    }
}

impl Carrier for SocketCarrier {
    fn send(&mut self, _: u64, frame: Vec<u8>) {
        self.0.change(|state| {
            if state.frames.len() < FRAMES_MAX {
                state.frames.push_back(frame);
            }
        });
    }

    fn set_limits(&mut self, _: u64, limits: &Limits) {
        let limits = Box::new(limits.clone());
        self.0.change(|state| state.limits = Some(limits));
    }

    fn tick(&mut self, _: u64) {}

    fn deadline(&self) -> Option<u64> {
        None
    }
}

impl Drop for SocketCarrier {
    fn drop(&mut self) {
        self.0.change(|state| state.closed = true);
    }
}

impl Outgoing {
    /// Waits for the next message. Cancel-safe.
    pub(super) async fn next(&self) -> Next {
        loop {
            if let Some(next) = self.0.lock().take() {
                return next;
            }
            self.0.wake.notified().await;
        }
    }
}

impl State {
    fn take(&mut self) -> Option<Next> {
        if let Some(limits) = self.limits.take() {
            return Some(Next::Limits(limits));
        }
        if let Some(frame) = self.frames.pop_front() {
            if self.frames.is_empty() {
                self.frames.shrink_to(IDLE_FRAMES);
            }
            return Some(Next::Frame(frame));
        }
        self.closed.then_some(Next::Closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: frames are received in order and bounded, rates are received first, and frames that were sent
    /// before the end are received before it.
    #[tokio::test]
    async fn a_queue_is_bounded_and_ends_after_its_last_frame() {
        let (mut carrier, outgoing) = queue();
        for number in 0..=FRAMES_MAX {
            carrier.send(0, number.to_le_bytes().to_vec());
        }
        carrier.set_limits(0, &Limits::NONE);
        drop(carrier);
        assert!(matches!(outgoing.next().await, Next::Limits(_)));
        for number in 0..FRAMES_MAX {
            match outgoing.next().await {
                Next::Frame(frame) => assert_eq!(frame, number.to_le_bytes()),
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(outgoing.next().await, Next::Closed));
        assert!(outgoing.0.lock().frames.capacity() <= IDLE_FRAMES);
    }

    #[tokio::test]
    async fn a_frame_wakes_who_waits() {
        let (mut carrier, outgoing) = queue();
        let waiting = tokio::spawn(async move { outgoing.next().await });
        tokio::task::yield_now().await;
        carrier.send(0, vec![7]);
        assert!(matches!(waiting.await.unwrap(), Next::Frame(frame) if frame == [7]));
    }
}
