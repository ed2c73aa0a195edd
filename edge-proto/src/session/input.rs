//! Inputs of each end of the session. Each end has its own type, so that the compiler refuses inputs
//! of the other end; groups that both ends have are shared.
//!
//! ```
//! use edge_proto::session::{Cloud, CloudInput, FetchInput, Node};
//!
//! fn node(end: &mut Node, input: FetchInput) {
//!     end.handle(0, input);
//! }
//! fn cloud(end: &mut Cloud) {
//!     end.handle(0, CloudInput::NodeConnected);
//! }
//! ```
//!
//! The reverse does not compile. An input of the cloud for the node's end:
//!
//! ```compile_fail,E0277
//! # use edge_proto::session::{CloudInput, Node};
//! fn node(end: &mut Node) {
//!     end.handle(0, CloudInput::NodeConnected);
//! }
//! ```
//!
//! An input of the node for the cloud's end:
//!
//! ```compile_fail,E0277
//! # use edge_proto::session::{Cloud, FetchInput};
//! fn cloud(end: &mut Cloud, input: FetchInput) {
//!     end.handle(0, input);
//! }
//! ```

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::Reason;
use crate::frame::{Entry, Incarnation};
use crate::hash::Hash32;
use crate::key::Key;

/// Event at the node; see [`super::Node::handle`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum NodeInput<'a> {
    /// Transport and time.
    Link(LinkInput<'a>),
    /// The replicated sets.
    State(StateInput),
    /// Bytes of large objects and blobs.
    Blob(BlobInput),
    /// Which blobs are wanted.
    Fetch(FetchInput),
    /// Open calls.
    Call(CallInput),
    /// A call has ended; the session sends the result after all data that was given.
    CallResult(CallResult),
    /// The outbox.
    Records(NodeRecordsInput),
}

/// Event at the cloud's end of one node; see [`super::Cloud::handle`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum CloudInput<'a> {
    /// Transport and time.
    Link(LinkInput<'a>),
    /// As `LinkInput::TransportUp`, when the node itself has just connected. It sends `Hello` without
    /// a probe, and is probed only if it does not.
    NodeConnected,
    /// The wall clock. Given once, it advances with `now`.
    Clock {
        /// Seconds since 1970.
        unix_s: u64,
    },
    /// The replicated sets.
    State(StateInput),
    /// Bytes of large objects and blobs.
    Blob(BlobInput),
    /// The answer to `CloudOutput::BlobRead`.
    BlobData {
        /// Hash of the whole blob.
        sha256: Hash32,
        /// Offset of the first byte, as requested.
        offset: u32,
        /// As many bytes as were requested, or up to the blob's end; empty if the blob is not available.
        bytes: Vec<u8>,
    },
    /// Open calls.
    Call(CallInput),
    /// Opens a call. Without a live session, with an old id, with longer arguments or over
    /// `CALLS_MAX` the call ends at once: `CallOutput::Cancelled` follows.
    CallOpen(CallOpen),
    /// The sink of records.
    Records(CloudRecordsInput),
}

/// Transport and time, at either end.
#[derive(Clone, Copy, Debug)]
pub enum LinkInput<'a> {
    /// Frames can be sent now (MQTT connected and subscribed).
    TransportUp,
    /// Frames can no longer be sent.
    TransportDown,
    /// A frame was received from the other end.
    Frame(&'a [u8]),
    /// The deadline is reached.
    Tick,
}

/// The replicated sets, at either end.
#[derive(Clone, Debug)]
pub enum StateInput {
    /// Adds or changes an object of the set that this end sends.
    Put {
        /// Identifies the object.
        key: Key,
        /// Encoded object, within the cap of its kind.
        payload: Arc<[u8]>,
    },
    /// Removes an object from the set that this end sends.
    Delete {
        /// Identifies the object.
        key: Key,
    },
    /// The changes of `StateOutput::Apply` are durable.
    Applied {
        /// Ticket of the `Apply`.
        ticket: u32,
        /// Objects that the caller keeps only as stubs.
        refused: Vec<(Key, Reason)>,
    },
}

/// Progress of received blobs, at either end.
#[derive(Clone, Copy, Debug)]
pub enum BlobInput {
    /// How much of a large object or blob the caller has stored from its start: the answer to
    /// `BlobOutput::Wanted` and to each `BlobOutput::Piece`. Report the full length only after
    /// the hash was checked; 0 restarts the transfer.
    Have {
        /// Hash of the whole object.
        sha256: Hash32,
        /// Number of stored bytes.
        bytes: u32,
    },
}

/// Blobs that a node fetches besides its set.
#[derive(Clone, Copy, Debug)]
pub enum FetchInput {
    /// Fetches a blob, after large objects of the set and earlier blobs. `BlobOutput::Wanted`
    /// follows, and again in each session until all is stored.
    Start {
        /// Hash of its bytes.
        sha256: Hash32,
        /// Their number, at least 1.
        len: u32,
    },
    /// Stops fetching a blob. No `NodeOutput::BlobUnavailable` follows.
    Cancel {
        /// Hash of the whole blob.
        sha256: Hash32,
    },
}

/// A call of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallOpen {
    /// Id, higher than any before at this cloud's end.
    pub id: u32,
    /// What to run, see [`crate::call`].
    pub method: u16,
    /// Arguments, at most `CALL_BYTES_MAX`.
    pub args: Vec<u8>,
}

/// How a call has ended at the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallResult {
    /// Id of the call.
    pub id: u32,
    /// [`crate::call::CODE_OK`], or an error code.
    pub code: u32,
    /// Human-readable; truncated to `CALL_REASON_BYTES_MAX`.
    pub reason: String,
}

/// An open call, at either end.
#[derive(Clone, Debug)]
pub enum CallInput {
    /// Bytes for the other end, within the window that `CallOutput::Window` granted; more ends the call.
    /// Empty without `end`, it informs the other end that the call has begun.
    Data {
        /// Id of the call.
        id: u32,
        /// At most as many as the window allows.
        bytes: Vec<u8>,
        /// No more data follows in this direction.
        end: bool,
    },
    /// Out of band: needs no window, and overtakes data that waits for one. More than
    /// `CALL_CONTROLS_MAX` unacknowledged messages, or a longer one, end the call.
    Control {
        /// Id of the call.
        id: u32,
        /// Kind of the message, see [`crate::call`].
        kind: u8,
        /// Content, at most `CALL_CONTROL_BYTES_MAX`.
        bytes: Vec<u8>,
    },
    /// The consumer took this many bytes of `CallOutput::Data`; the other end may send as many more.
    Taken {
        /// Id of the call.
        id: u32,
        /// Bytes taken since the previous `Taken`.
        bytes: u32,
    },
    /// Ends a call early. No `CallOutput::Cancelled` follows at this end.
    Cancel {
        /// Id of the call.
        id: u32,
    },
}

/// The outbox of the node.
#[derive(Clone, Debug)]
pub enum NodeRecordsInput {
    /// The numbers `held..end` of a class can be read from the outbox; all of them are durable
    /// there. Give it for each class at start, again whenever `end` has grown or reading may succeed
    /// again, and with a new incarnation when the outbox was created again.
    Ready {
        /// Below `CLASSES_MAX`.
        class: u8,
        /// Id of the outbox.
        incarnation: Incarnation,
        /// Oldest number that the outbox accounts for, from 1.
        held: u64,
        /// Number of the next record.
        end: u64,
    },
    /// Answers `NodeRecordsOutput::Wanted`.
    Read {
        /// As in `Wanted`.
        class: u8,
        /// First number, as in `Wanted`.
        first: u64,
        /// Entries from there on. Empty: they cannot be read now; the class then waits for
        /// `Ready`.
        entries: Vec<Entry>,
    },
}

/// The sink of records at the cloud.
#[derive(Clone, Copy, Debug)]
pub enum CloudRecordsInput {
    /// The sink has stored the records of this ticket, and their end as high-water mark.
    Durable {
        /// Ticket of the `RecordsOutput`.
        ticket: u32,
    },
    /// The sink has not stored them and will not. They, and later ones of their stream,
    /// will be received again.
    Failed {
        /// Ticket of the `RecordsOutput`.
        ticket: u32,
    },
}

/// Makes a group an input of each end that has it.
macro_rules! group {
    ($group:ty => $($end:ident::$variant:ident),+) => {$(
        impl<'a> From<$group> for $end<'a> {
            fn from(input: $group) -> Self {
                Self::$variant(input)
            }
        }
    )+};
}

group!(LinkInput<'a> => NodeInput::Link, CloudInput::Link);
group!(StateInput => NodeInput::State, CloudInput::State);
group!(BlobInput => NodeInput::Blob, CloudInput::Blob);
group!(FetchInput => NodeInput::Fetch);
group!(CallInput => NodeInput::Call, CloudInput::Call);
group!(CallResult => NodeInput::CallResult);
group!(CallOpen => CloudInput::CallOpen);
group!(NodeRecordsInput => NodeInput::Records);
group!(CloudRecordsInput => CloudInput::Records);
