//! Calls through the link: from the session to whoever reads the answer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use edge_proto::session::Input;
use tokio::sync::mpsc;

use super::Links;

/// Pieces of a call's answer on the way to its reader: more than its window holds.
pub(super) const PIECES_MAX: usize = 64;
/// A call whose node says nothing at all for this long has failed: frames can be lost.
pub(super) const CALL_FIRST_TIMEOUT: Duration = Duration::from_secs(30);
/// The same once it has begun to answer, for an answer that has an end.
pub(super) const CALL_NEXT_TIMEOUT: Duration = Duration::from_secs(30);

/// A piece of an answer, or why there are no more.
pub(super) type Piece = Result<Bytes, String>;

/// What a call's session says to its reader.
pub(super) enum Heard {
    Bytes(Bytes),
    End,
    Broken(&'static str),
}

/// Passes a call's pieces on as they are read, which gives the node its credit. An answer without
/// an end is an error: the link broke, or the node went silent. `follows` is an answer that may be
/// silent for as long as it likes once it has begun.
pub(super) async fn relay(
    links: Arc<Links>,
    name: String,
    id: u32,
    follows: bool,
    mut pieces: mpsc::Receiver<Heard>,
    answer: mpsc::Sender<Piece>,
) {
    let mut timeout = Some(CALL_FIRST_TIMEOUT);
    loop {
        let heard = tokio::select! {
            heard = pieces.recv() => heard,
            () = answer.closed() => break,
            () = tokio::time::sleep(timeout.unwrap_or_default()), if timeout.is_some() => {
                Some(Heard::Broken("the node does not answer"))
            }
        };
        timeout = (!follows).then_some(CALL_NEXT_TIMEOUT);
        let bytes = match heard {
            Some(Heard::Bytes(bytes)) => bytes,
            Some(Heard::End) => return,
            Some(Heard::Broken(why)) => {
                // A reader that is gone needs no reason.
                let _gone = answer.send(Err(why.to_owned())).await;
                break;
            }
            None => {
                let _gone = answer.send(Err("the answer broke off".to_owned())).await;
                break;
            }
        };
        let taken = u32::try_from(bytes.len()).unwrap_or(0);
        if answer.send(Ok(bytes)).await.is_err() {
            break;
        }
        let mut state = links.lock();
        links.handle(&mut state, &name, Input::CallTaken { id, bytes: taken });
    }
    let mut state = links.lock();
    if let Some(node) = state.nodes.get_mut(&name) {
        node.calls.remove(&id);
    }
    links.handle(&mut state, &name, Input::CallCancel { id });
}
