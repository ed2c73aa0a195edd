//! Calls over the link: from the session to the reader of the answer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use edge_proto::call::{CODE_BUSY, LogsRequest, METHOD_LOGS, METHOD_RENEW};
use edge_proto::limits::{CALL_TIMEOUT_MS, CALLS_MAX};
use edge_proto::session::{CallInput, CallOpen};
use tokio::sync::mpsc;

use super::Sessions;
use crate::nodes::{CallError, Calls};

/// Pieces of a call's data on the way to its reader: many more than its window holds, unless a node sends
/// single bytes to a reader that does not read.
const PIECES_MAX: usize = 256;
/// Open calls of a node beyond which a user's call is refused: the last one is for edge-cloud's own
/// [`METHOD_RENEW`], so that followed logs, which may be open for months, do not delay a rollover.
const USER_CALLS_MAX: usize = CALLS_MAX - 1;
/// A call fails if its node sends nothing for this long before the answer has begun, and also
/// afterwards if the answer is finite.
const CALL_TIMEOUT: Duration = Duration::from_millis(CALL_TIMEOUT_MS);

/// A piece of an answer, or why there are no more.
type Piece = Result<Bytes, CallError>;

/// Event of a call, for its reader.
pub(super) enum CallEvent {
    Bytes(Bytes),
    End,
    Failed(CallError),
}

/// End of a call because of the link.
pub(super) fn broken(why: &str) -> CallEvent {
    CallEvent::Failed(CallError::Link(why.to_owned()))
}

impl Calls for Arc<Sessions> {
    fn call(&self, name: &str, method: u16, args: Vec<u8>) -> mpsc::Receiver<Piece> {
        let follows =
            method == METHOD_LOGS && LogsRequest::decode(&args).is_ok_and(|request| request.follow);
        let (reader, pieces) = mpsc::channel(PIECES_MAX);
        let (answer, receiver) = mpsc::channel(1);
        let mut state = self.lock();
        state.calls += 1;
        let id = state.calls;
        if let Some(node) = state.nodes.get_mut(name) {
            if method != METHOD_RENEW && node.calls.len() >= USER_CALLS_MAX {
                let (code, reason) = (CODE_BUSY, "too many calls of the node are open".to_owned());
                // It is the first of a new channel.
                let busy = CallEvent::Failed(CallError::Node { code, reason });
                reader.try_send(busy).ok();
            } else {
                node.calls.insert(id, reader);
                self.handle(&mut state, name, CallOpen { id, method, args });
            }
        }
        drop(state);
        tokio::spawn(relay(
            Self::clone(self),
            name.to_owned(),
            id,
            follows,
            pieces,
            answer,
        ));
        receiver
    }
}

/// Passes a call's pieces on as they are read, which grants credit to the node. An answer that stops before
/// its end is an error: the link was lost, or the node is silent. `follows` marks an answer that may be
/// silent for any time after it has begun.
async fn relay(
    sessions: Arc<Sessions>,
    name: String,
    id: u32,
    follows: bool,
    mut pieces: mpsc::Receiver<CallEvent>,
    answer: mpsc::Sender<Piece>,
) {
    let mut timeout = Some(CALL_TIMEOUT);
    loop {
        let event = tokio::select! {
            event = pieces.recv() => event,
            () = answer.closed() => break,
            () = tokio::time::sleep(timeout.unwrap_or_default()), if timeout.is_some() => {
                Some(broken("the node does not answer"))
            }
        };
        timeout = (!follows).then_some(CALL_TIMEOUT);
        let bytes = match event {
            Some(CallEvent::Bytes(bytes)) => bytes,
            Some(CallEvent::End) => return,
            Some(CallEvent::Failed(error)) => {
                // The reader may be gone.
                let _gone = answer.send(Err(error)).await;
                break;
            }
            None => {
                let why = "the answer broke off".to_owned();
                let _gone = answer.send(Err(CallError::Link(why))).await;
                break;
            }
        };
        let taken = u32::try_from(bytes.len()).unwrap_or(0);
        if answer.send(Ok(bytes)).await.is_err() {
            break;
        }
        let mut state = sessions.lock();
        sessions.handle(&mut state, &name, CallInput::Taken { id, bytes: taken });
    }
    let mut state = sessions.lock();
    if let Some(node) = state.nodes.get_mut(name.as_str()) {
        node.calls.remove(&id);
    }
    sessions.handle(&mut state, &name, CallInput::Cancel { id });
}
