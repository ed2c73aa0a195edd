//! What a caller may give to an end of the session. Each end takes its own type, so that the
//! compiler refuses what only the other end is told; the groups that both take are shared.
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
//! The same the other way round does not compile. The node's end is handed an input of the cloud's:
//!
//! ```compile_fail,E0277
//! # use edge_proto::session::{CloudInput, Node};
//! fn node(end: &mut Node) {
//!     end.handle(0, CloudInput::NodeConnected);
//! }
//! ```
//!
//! The cloud's end is handed an input of the node's:
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

/// What happened at the node; see [`super::Node::handle`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum NodeInput<'a> {
    /// The transport and the time.
    Link(LinkInput<'a>),
    /// The replicated sets.
    State(StateInput),
    /// Bytes of large objects and blobs.
    Blob(BlobInput),
    /// Which blobs are wanted.
    Fetch(FetchInput),
    /// Open calls.
    Call(CallInput),
    /// A call has ended, when all data that was given has gone.
    CallResult(CallResult),
    /// The outbox.
    Records(NodeRecordsInput),
}

/// What happened at the cloud's end of one node; see [`super::Cloud::handle`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum CloudInput<'a> {
    /// The transport and the time.
    Link(LinkInput<'a>),
    /// As `LinkInput::TransportUp`, when it is the node that has just connected. It says `Hello` by
    /// itself, and is asked only if it does not.
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
        /// The blob.
        sha256: Hash32,
        /// Place of the first byte, as asked.
        offset: u32,
        /// As many bytes as were asked for, or up to the blob's end; none if it is not here.
        bytes: Vec<u8>,
    },
    /// Open calls.
    Call(CallInput),
    /// Calls the node. Without a live session, with an old id, with longer arguments or over
    /// `CALLS_MAX` the call is over: `CallOutput::Cancelled` follows.
    CallOpen(CallOpen),
    /// The sink of records.
    Records(CloudRecordsInput),
}

/// The transport and the time, at either end.
#[derive(Clone, Copy, Debug)]
pub enum LinkInput<'a> {
    /// Frames can be sent now (MQTT connected and subscribed).
    TransportUp,
    /// Frames can no longer be sent.
    TransportDown,
    /// A frame came from the other end.
    Frame(&'a [u8]),
    /// The deadline has come.
    Tick,
}

/// The replicated sets, at either end.
#[derive(Clone, Debug)]
pub enum StateInput {
    /// An object of the set that this side sends is new or changed.
    Put {
        /// Key of the object.
        key: Key,
        /// Its payload.
        payload: Arc<[u8]>,
    },
    /// An object leaves the set that this side sends.
    Delete {
        /// Key of the object.
        key: Key,
    },
    /// The changes of `StateOutput::Apply` are durable.
    Applied {
        /// The ticket of the `Apply`.
        ticket: u32,
        /// Objects that the caller keeps only as stubs.
        refused: Vec<(Key, Reason)>,
    },
}

/// Bytes that come, at either end.
#[derive(Clone, Copy, Debug)]
pub enum BlobInput {
    /// How much of a large object or blob the caller has stored from its start: the answer to
    /// `BlobOutput::Wanted` and to each `BlobOutput::Piece`. The length of the object only once
    /// its hash has been checked; 0 starts over.
    Have {
        /// The object.
        sha256: Hash32,
        /// Stored bytes.
        bytes: u32,
    },
}

/// Blobs that a node wants besides its set.
#[derive(Clone, Copy, Debug)]
pub enum FetchInput {
    /// Fetches a blob, behind large objects of the set and earlier blobs. `BlobOutput::Wanted`
    /// follows, and again in each session until all is stored.
    Start {
        /// Hash of its bytes.
        sha256: Hash32,
        /// Their number, at least 1.
        len: u32,
    },
    /// A blob is not wanted any more. No `NodeOutput::BlobUnavailable` follows.
    Cancel {
        /// The blob.
        sha256: Hash32,
    },
}

/// A call of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallOpen {
    /// Id, higher than any before at this cloud's end.
    pub id: u32,
    /// What is called, see [`crate::call`].
    pub method: u16,
    /// Arguments, at most `CALL_BYTES_MAX`.
    pub args: Vec<u8>,
}

/// How a call has ended at the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallResult {
    /// Id of the call.
    pub id: u32,
    /// [`crate::call::CODE_OK`], or what went wrong.
    pub code: u32,
    /// For a person; cut at `CALL_REASON_BYTES_MAX`.
    pub reason: String,
}

/// An open call, at either end.
#[derive(Clone, Debug)]
pub enum CallInput {
    /// Bytes for the other end, within the window that `CallOutput::Window` gave; more ends the call.
    /// None, and not the end, tells it that the call has begun.
    Data {
        /// Id of the call.
        id: u32,
        /// The bytes.
        bytes: Vec<u8>,
        /// Nothing follows them in this direction.
        end: bool,
    },
    /// Out of band: needs no window, and overtakes data that waits for one. More than
    /// `CALL_CONTROLS_MAX` that have not come, or a longer one, end the call.
    Control {
        /// Id of the call.
        id: u32,
        /// What it is, see [`crate::call`].
        kind: u8,
        /// At most `CALL_CONTROL_BYTES_MAX`.
        bytes: Vec<u8>,
    },
    /// The consumer took this many bytes of `CallOutput::Data`; the other end may send as many more.
    Taken {
        /// Id of the call.
        id: u32,
        /// Bytes taken since the last time.
        bytes: u32,
    },
    /// Ends a call early. No `CallOutput::Cancelled` follows on this side.
    Cancel {
        /// Id of the call.
        id: u32,
    },
}

/// The outbox of the node.
#[derive(Clone, Debug)]
pub enum NodeRecordsInput {
    /// The numbers `held..end` of a class can be read from the outbox; all of them are durable
    /// there. Given for each class at start, again whenever `end` has grown or reading may work
    /// again, and with a new incarnation when the outbox has begun anew.
    Ready {
        /// The class, below `CLASSES_MAX`.
        class: u8,
        /// The outbox.
        incarnation: Incarnation,
        /// Oldest number that the outbox accounts for, from 1.
        held: u64,
        /// Number that the next record gets.
        end: u64,
    },
    /// Answers `NodeRecordsOutput::Wanted`.
    Read {
        /// The class.
        class: u8,
        /// What `Wanted` asked for.
        first: u64,
        /// What stands from there on. Empty: it cannot be read now; the class then waits for
        /// `Ready`.
        entries: Vec<Entry>,
    },
}

/// The sink of records at the cloud.
#[derive(Clone, Copy, Debug)]
pub enum CloudRecordsInput {
    /// The sink has the records of this ticket, and their end as high-water mark.
    Durable {
        /// The ticket of `RecordsOutput`.
        ticket: u32,
    },
    /// The sink does not have them and will not. They, and what came after them in their stream,
    /// come again.
    Failed {
        /// The ticket of `RecordsOutput`.
        ticket: u32,
    },
}

/// A group is an input of each end that takes it.
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
