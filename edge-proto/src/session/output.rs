//! What an end of the session asks of its caller, or tells it: a type for each end, with the
//! groups that both have in common.

use alloc::vec::Vec;

use super::{CallOpen, CallResult, Payload, Problem, Reason};
use crate::frame::{Entry, Incarnation};
use crate::hash::Hash32;
use crate::key::Key;

/// What the node's caller has to do, or may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NodeOutput {
    /// Frames, and what becomes of the session.
    Link(LinkOutput),
    /// The replicated sets.
    State(StateOutput),
    /// Bytes of large objects and blobs.
    Blob(BlobOutput),
    /// The cloud does not have this blob, or `BLOBS_MAX` others are wanted already.
    BlobUnavailable {
        /// The blob.
        sha256: Hash32,
    },
    /// Open calls.
    Call(CallOutput),
    /// Run this call, and end it with `NodeInput::CallResult`. A `CallOutput::Window` follows.
    CallOpen(CallOpen),
    /// The outbox.
    Records(NodeRecordsOutput),
}

/// What the cloud's caller has to do, or may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloudOutput {
    /// Frames, and what becomes of the session.
    Link(LinkOutput),
    /// The replicated sets.
    State(StateOutput),
    /// Bytes of large objects and blobs.
    Blob(BlobOutput),
    /// The node asks for bytes of what is not a large object of its set; answer
    /// `CloudInput::BlobData`. Any node may ask for any hash: whoever answers decides what it may
    /// have.
    BlobRead {
        /// The blob.
        sha256: Hash32,
        /// Place of the first byte.
        offset: u32,
        /// How many.
        bytes_max: u32,
    },
    /// Open calls.
    Call(CallOutput),
    /// The call is over, and all its data came before.
    CallResult(CallResult),
    /// Records for the sink.
    Records(RecordsOutput),
}

/// Frames, and what becomes of the session, at either end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkOutput {
    /// Send this frame.
    Send(Vec<u8>),
    /// A session is live (again).
    Live {
        /// Cloud time, seconds since 1970; 0 if unknown.
        unix_s: u64,
    },
    /// The session is over.
    Down,
    /// Something is wrong with the peer; the frame was dropped.
    PeerProblem(Problem),
}

/// The replicated sets, at either end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateOutput {
    /// Make these changes durable, then answer `StateInput::Applied`. `None` deletes. May be empty:
    /// then only the epoch has risen.
    Apply {
        /// For `Applied`.
        ticket: u32,
        /// The changes, no key twice.
        changes: Vec<(Key, Option<Payload>)>,
        /// Epoch to store with them.
        epoch: u64,
    },
    /// Which sets are now equal on both ends, as far as this side knows.
    InSync {
        /// The desired set.
        desired: bool,
        /// The reported set.
        reported: bool,
    },
    /// `StateInput::Put` was not taken into the sent set: its key, size or the set's cap forbids
    /// it. An earlier object under the key stays.
    PutRefused {
        /// The key.
        key: Key,
        /// Why.
        reason: Reason,
    },
}

/// Bytes that come, at either end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlobOutput {
    /// A large object or blob is wanted; answer `BlobInput::Have` with what is already stored.
    Wanted {
        /// The object.
        sha256: Hash32,
        /// Its length.
        len: u32,
    },
    /// Bytes of the wanted object; store them and answer `BlobInput::Have`.
    Piece {
        /// The object.
        sha256: Hash32,
        /// Place of the first byte; always what `Have` last said.
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
        /// The bytes; none, and not the end, says that the call has begun.
        bytes: Vec<u8>,
        /// Nothing follows them in this direction.
        end: bool,
    },
    /// Out of band, after all data that was sent before it.
    Control {
        /// Id of the call.
        id: u32,
        /// What it is; an unknown one is to be ignored.
        kind: u8,
        /// At most `CALL_CONTROL_BYTES_MAX`.
        bytes: Vec<u8>,
    },
    /// This many more bytes may be given to `CallInput::Data`.
    Window {
        /// Id of the call.
        id: u32,
        /// Additional bytes.
        bytes: u32,
    },
    /// The call is over without a result.
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
        /// The class.
        class: u8,
        /// First number.
        from: u64,
        /// Sum of their `Entry::bytes_max` at most; one record always fits. At most
        /// `RECORD_ENTRIES_MAX` of them; what is over is read again later.
        bytes_max: usize,
    },
    /// Everything before `next` may be deleted.
    Acked {
        /// The class.
        class: u8,
        /// First number that must be kept.
        next: u64,
    },
    /// The cloud has numbers of this outbox that the outbox has never given. So the medium went
    /// back in time, or another node has a copy of it: begin a new incarnation.
    Ahead {
        /// The class.
        class: u8,
        /// The cloud's next number.
        next: u64,
    },
}

/// Give this to the sink, then answer `CloudRecordsInput::Durable`. It follows on what came before
/// in its stream. The entries may be empty: then only `forgotten` is to be noted, or that there is
/// such an outbox. After a `CloudRecordsInput::Failed` it may begin with what the sink has taken
/// since then: that is left out by its number, and `Durable` is the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordsOutput {
    /// For `CloudRecordsInput`.
    pub ticket: u32,
    /// The outbox. One never seen of this node says that the one before is lost.
    pub incarnation: Incarnation,
    /// The class.
    pub class: u8,
    /// Number of the first entry.
    pub first: u64,
    /// What the node still accounts for.
    pub held: u64,
    /// How many numbers right before `first` were acknowledged once and are not known any more:
    /// this cloud was restored from a backup. Lost here, and to be reported.
    pub forgotten: u64,
    /// Records and gaps.
    pub entries: Vec<Entry>,
}

/// The outputs of one end, as what both ends have in common needs them.
pub(super) trait Outputs:
    From<LinkOutput> + From<StateOutput> + From<BlobOutput> + From<CallOutput>
{
}

impl Outputs for NodeOutput {}
impl Outputs for CloudOutput {}

/// A group is an output of each end that has it.
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
