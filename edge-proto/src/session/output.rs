//! Outputs of each end of the session: a type for each end, with the groups that both have in common.

use alloc::vec::Vec;

use super::{CallOpen, CallResult, Payload, Problem, Reason};
use crate::frame::{Entry, Incarnation};
use crate::hash::Hash32;
use crate::key::Key;

/// Request or information for the caller at the node.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NodeOutput {
    /// Frames to send, and state of the session.
    Link(LinkOutput),
    /// The replicated sets.
    State(StateOutput),
    /// Bytes of large objects and blobs.
    Blob(BlobOutput),
    /// The cloud does not have this blob, or `BLOBS_MAX` others are wanted already.
    BlobUnavailable {
        /// Hash of the whole blob.
        sha256: Hash32,
    },
    /// Open calls.
    Call(CallOutput),
    /// Run this call, and end it with `NodeInput::CallResult`. A `CallOutput::Window` follows.
    CallOpen(CallOpen),
    /// The outbox.
    Records(NodeRecordsOutput),
}

/// Request or information for the caller at the cloud.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloudOutput {
    /// Frames to send, and state of the session.
    Link(LinkOutput),
    /// The replicated sets.
    State(StateOutput),
    /// Bytes of large objects and blobs.
    Blob(BlobOutput),
    /// The node requests bytes of a blob that is not a large object of its set; answer
    /// `CloudInput::BlobData`. A node may request any hash: the caller decides which blobs it
    /// may read.
    BlobRead {
        /// Hash of the whole blob.
        sha256: Hash32,
        /// Offset of the first byte.
        offset: u32,
        /// Number of requested bytes.
        bytes_max: u32,
    },
    /// Open calls.
    Call(CallOutput),
    /// The call has ended; all its data was output before.
    CallResult(CallResult),
    /// Records for the sink.
    Records(RecordsOutput),
}

/// Frames to send, and state of the session, at either end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkOutput {
    /// Send this frame.
    Send(Vec<u8>),
    /// A session is live, for the first time or again.
    Live {
        /// Cloud time, seconds since 1970; 0 if unknown.
        unix_s: u64,
    },
    /// The session has ended.
    Down,
    /// The peer violates the protocol; its frame was dropped.
    PeerProblem(Problem),
}

/// The replicated sets, at either end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateOutput {
    /// Make these changes durable, then answer `StateInput::Applied`. `None` deletes. May be empty:
    /// then only the epoch has risen.
    Apply {
        /// To be given back in `Applied`.
        ticket: u32,
        /// New payload by key, no key twice.
        changes: Vec<(Key, Option<Payload>)>,
        /// Epoch to store with them.
        epoch: u64,
    },
    /// Which sets are now equal at both ends, as far as this end knows.
    InSync {
        /// The desired set.
        desired: bool,
        /// The reported set.
        reported: bool,
    },
    /// `StateInput::Put` was refused: the key, the size or the set's cap forbids
    /// it. An earlier object under the key stays.
    PutRefused {
        /// Identifies the object.
        key: Key,
        /// Which rule it violates.
        reason: Reason,
    },
}

/// Received blobs, at either end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlobOutput {
    /// A large object or blob is to be fetched; answer `BlobInput::Have` with what is already stored.
    Wanted {
        /// Hash of the whole object.
        sha256: Hash32,
        /// Its length.
        len: u32,
    },
    /// Bytes of the wanted object; store them and answer `BlobInput::Have`.
    Piece {
        /// Hash of the whole object.
        sha256: Hash32,
        /// Offset of the first byte; always equal to the last `Have`.
        offset: u32,
        /// At most `PIECE_BYTES_MAX`.
        bytes: Vec<u8>,
    },
}

/// An open call, at either end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallOutput {
    /// Bytes of the other end; answer `CallInput::Taken` when the consumer has them.
    Data {
        /// Id of the call.
        id: u32,
        /// Empty without `end`: the call has begun.
        bytes: Vec<u8>,
        /// No more data follows in this direction.
        end: bool,
    },
    /// An out-of-band message, after all data that was sent before it.
    Control {
        /// Id of the call.
        id: u32,
        /// Kind of the message; an unknown one must be ignored.
        kind: u8,
        /// Content, at most `CALL_CONTROL_BYTES_MAX`.
        bytes: Vec<u8>,
    },
    /// This many more bytes may be given to `CallInput::Data`.
    Window {
        /// Id of the call.
        id: u32,
        /// Additional bytes.
        bytes: u32,
    },
    /// The call has ended without a result.
    Cancelled {
        /// Id of the call.
        id: u32,
    },
}

/// The outbox of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeRecordsOutput {
    /// Read entries from the outbox, then answer `NodeRecordsInput::Read`.
    Wanted {
        /// Below `CLASSES_MAX`.
        class: u8,
        /// First number to read.
        from: u64,
        /// Upper bound of the sum of their `Entry::bytes_max`; one record always fits. At most
        /// `RECORD_ENTRIES_MAX` of them; the rest is read later.
        bytes_max: usize,
    },
    /// Everything before `next` may be deleted.
    Acked {
        /// Below `CLASSES_MAX`.
        class: u8,
        /// First number that must be kept.
        next: u64,
    },
    /// The cloud has numbers of this outbox that the outbox has never assigned. So the medium was
    /// restored to an earlier state, or another node has a copy of it: create a new incarnation.
    Ahead {
        /// Below `CLASSES_MAX`.
        class: u8,
        /// Next number that the cloud expects.
        next: u64,
    },
}

/// Give this to the sink, then answer `CloudRecordsInput::Durable`. It follows the previous one
/// of its stream without a hole. The entries may be empty: then only `forgotten` or the existence of the
/// outbox is to be stored. After a `CloudRecordsInput::Failed` it may begin with records that the sink has
/// stored since then: skip them by their numbers, and answer `Durable`.
/// since then: that is left out by its number, and `Durable` is the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordsOutput {
    /// For `CloudRecordsInput`.
    pub ticket: u32,
    /// Id of the outbox. An id not seen before for this node means that the previous outbox is lost.
    pub incarnation: Incarnation,
    /// Below `CLASSES_MAX`.
    pub class: u8,
    /// Number of the first entry.
    pub first: u64,
    /// Oldest number that the node still accounts for.
    pub held: u64,
    /// How many numbers directly before `first` were acknowledged once and are not known any more:
    /// this cloud was restored from a backup. They are lost here, and to be reported.
    pub forgotten: u64,
    /// Records and gaps.
    pub entries: Vec<Entry>,
}

/// The outputs of one end, as required by the code that both ends share.
pub(super) trait Outputs:
    From<LinkOutput> + From<StateOutput> + From<BlobOutput> + From<CallOutput>
{
}

impl Outputs for NodeOutput {}
impl Outputs for CloudOutput {}

/// Makes a group an output of each end that has it.
macro_rules! group {
    ($group:ty => $($end:ident::$variant:ident),+) => {$(
        impl From<$group> for $end {
            fn from(output: $group) -> Self {
                Self::$variant(output)
            }
        }
    )+};
}

group!(LinkOutput => NodeOutput::Link, CloudOutput::Link);
group!(StateOutput => NodeOutput::State, CloudOutput::State);
group!(BlobOutput => NodeOutput::Blob, CloudOutput::Blob);
group!(CallOutput => NodeOutput::Call, CloudOutput::Call);
group!(NodeRecordsOutput => NodeOutput::Records);
group!(RecordsOutput => CloudOutput::Records);
