//! The link session of both ends as state machines without IO: [`Node`] on the node, one
//! [`Cloud`] per node on the other side.
//!
//! The loop of a shell is: one `handle`, then `poll` until `None`, then wait until `deadline()` or
//! the next event; at the deadline `handle(now, Input::Tick)`.
//!
//! Each side is the sender of one replicated set (cloud: desired, node: reported) and the receiver
//! of the other. A lost, doubled or reordered frame can delay convergence, never corrupt a set.

mod call;
mod cloud;
mod congestion_window;
mod link;
mod node;
mod opening;
mod piece;
mod receiver;
mod sender;
mod stream;

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

pub use cloud::{Cloud, CloudConfig};
pub use node::{Node, NodeConfig};

use crate::frame::{Entry, FrameError, Incarnation};
use crate::hash::Hash32;
use crate::key::Key;
use crate::limits::WIRE_VERSION;
pub use crate::set::Reason;

/// One thing that happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Input<'a> {
    /// Frames can be sent now (MQTT connected and subscribed).
    TransportUp,
    /// Cloud only: as `TransportUp`, when it is the node that has just connected. It says `Hello` by
    /// itself, and is asked only if it does not.
    NodeConnected,
    /// Frames can no longer be sent.
    TransportDown,
    /// A frame came from the other end.
    Frame(&'a [u8]),
    /// The deadline has come.
    Tick,
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
    /// The changes of `Output::Apply` are durable.
    Applied {
        /// The ticket of the `Apply`.
        ticket: u32,
        /// Objects that the caller keeps only as stubs.
        refused: Vec<(Key, Reason)>,
    },
    /// How much of a large object or blob the caller has stored from its start: the answer to
    /// `BlobWanted` and to each `PieceReceived`. The length of the object only once its hash has
    /// been checked; 0 starts over.
    BlobHave {
        /// The object.
        sha256: Hash32,
        /// Stored bytes.
        bytes: u32,
    },
    /// Node only: fetches a blob, behind large objects of the set and earlier blobs. `BlobWanted`
    /// follows, and again in each session until all is stored.
    BlobFetch {
        /// Hash of its bytes.
        sha256: Hash32,
        /// Their number, at least 1.
        len: u32,
    },
    /// Node only: a blob is not wanted any more. No `BlobUnavailable` follows.
    BlobCancel {
        /// The blob.
        sha256: Hash32,
    },
    /// Cloud only: the answer to `BlobRead`.
    BlobData {
        /// The blob.
        sha256: Hash32,
        /// Place of the first byte, as asked.
        offset: u32,
        /// As many bytes as were asked for, or up to the blob's end; none if it is not here.
        bytes: Vec<u8>,
    },
    /// Cloud only: calls the node. Needs a live session, else `CallCancelled` follows. A lost
    /// frame ends a call without a word, so the caller needs a timeout of its own.
    CallStart {
        /// Id, higher than any before on this `Cloud`.
        id: u32,
        /// What is called.
        method: u16,
        /// Arguments, at most `CALL_BYTES_MAX`.
        body: Vec<u8>,
    },
    /// Cloud only: the consumer took this many bytes of an answer; the node may send as many more.
    CallTaken {
        /// Id of the call.
        id: u32,
        /// Bytes taken since the last time.
        bytes: u32,
    },
    /// Node only: a piece of an answer, within the window that `CallWindow` gave.
    CallAnswer {
        /// Id of the call.
        id: u32,
        /// The bytes.
        bytes: Vec<u8>,
        /// Whether the answer is complete.
        end: bool,
    },
    /// Ends a call early. No `CallCancelled` follows on this side.
    CallCancel {
        /// Id of the call.
        id: u32,
    },
    /// Node only: the numbers `held..end` of a class can be read from the outbox; all of them
    /// are durable there. Given for each class at start, again whenever `end` has grown or reading
    /// may work again, and with a new incarnation when the outbox has begun anew.
    RecordsReady {
        /// The class, below `CLASSES_MAX`.
        class: u8,
        /// The outbox.
        incarnation: Incarnation,
        /// Oldest number that the outbox accounts for, from 1.
        held: u64,
        /// Number that the next record gets.
        end: u64,
    },
    /// Node only: answers `RecordsWanted`.
    RecordsRead {
        /// The class.
        class: u8,
        /// What `RecordsWanted` asked for.
        first: u64,
        /// What stands from there on. Empty: it cannot be read now; the class then waits for
        /// `RecordsReady`.
        entries: Vec<Entry>,
    },
    /// Cloud only: the sink has the records of this ticket, and their end as high-water mark.
    RecordsDurable {
        /// The ticket of `Output::Records`.
        ticket: u32,
    },
    /// Cloud only: the sink does not have them and will not. They, and what came after them in
    /// their stream, come again.
    RecordsFailed {
        /// The ticket of `Output::Records`.
        ticket: u32,
    },
    /// Cloud only: the wall clock, seconds since 1970. Given once, it advances with `now`.
    Clock {
        /// Seconds since 1970.
        unix_s: u64,
    },
}

/// An object's payload as the receiver gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// The bytes, at most `INLINE_BYTES_MAX`.
    Inline(Vec<u8>),
    /// A large object; all its bytes are already with the caller (`BlobHave`).
    Large {
        /// Hash of the bytes.
        sha256: Hash32,
        /// Their number.
        len: u32,
    },
    /// Refused before its bytes were fetched; keep a stub.
    Refused {
        /// Hash of the payload.
        hash: crate::hash::Hash16,
        /// Why.
        reason: Reason,
    },
}

/// What is wrong with the peer, or with what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// The bytes are not a frame.
    Frame(FrameError),
    /// The other end speaks with an epoch lower than one already accepted (node), or the node
    /// has accepted a higher one than ours (cloud: another replica owns the shard).
    Epoch(u64),
    /// Wire versions without overlap; the peer's newest is given.
    Version(u8),
    /// Node only: the cloud opens no session with this agent. `Hello` is repeated slowly.
    Refused {
        /// Number of the reason, see `frame::Refusal`.
        reason: u8,
        /// Oldest wire version that the cloud reads.
        wire_min: u8,
        /// Newest wire version that the cloud reads.
        wire_max: u8,
    },
    /// A change would take the set over its cap, or names a key twice.
    Change,
}

impl core::fmt::Display for Problem {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Frame(error) => error.fmt(f),
            Self::Epoch(epoch) => write!(f, "epoch {epoch} does not fit"),
            Self::Version(version) => write!(f, "wire version {version} not supported"),
            Self::Refused {
                reason: 0,
                wire_min,
                wire_max,
            } => write!(
                f,
                "the cloud reads wire versions {wire_min} to {wire_max}, this agent speaks \
                 {WIRE_VERSION}: update the one that is older"
            ),
            Self::Refused { reason, .. } => {
                write!(f, "the cloud refuses this agent for reason {reason}")
            }
            Self::Change => f.write_str("change over a cap"),
        }
    }
}

/// What the shell has to do, or may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Output {
    /// Send this frame.
    Send(Vec<u8>),
    /// Make these changes durable, then answer `Applied`. `None` deletes. May be empty: then only
    /// the epoch has risen.
    Apply {
        /// For `Applied`.
        ticket: u32,
        /// The changes, no key twice.
        changes: Vec<(Key, Option<Payload>)>,
        /// Epoch to store with them.
        epoch: u64,
    },
    /// A large object or blob is wanted; answer `BlobHave` with what is already stored.
    BlobWanted {
        /// The object.
        sha256: Hash32,
        /// Its length.
        len: u32,
    },
    /// Bytes of the wanted object; store them and answer `BlobHave`.
    PieceReceived {
        /// The object.
        sha256: Hash32,
        /// Place of the first byte; always what `BlobHave` last said.
        offset: u32,
        /// At most `PIECE_BYTES_MAX`.
        bytes: Vec<u8>,
    },
    /// Node only: the cloud does not have this blob, or `BLOBS_MAX` others are wanted already.
    BlobUnavailable {
        /// The blob.
        sha256: Hash32,
    },
    /// Cloud only: the node asks for bytes of what is not a large object of its set; answer
    /// `BlobData`. Any node may ask for any hash: whoever answers decides what it may have.
    BlobRead {
        /// The blob.
        sha256: Hash32,
        /// Place of the first byte.
        offset: u32,
        /// How many.
        bytes_max: u32,
    },
    /// A session is live (again).
    Live {
        /// Cloud time, seconds since 1970; 0 if unknown.
        unix_s: u64,
    },
    /// The session is over.
    Down,
    /// Which sets are now equal on both ends, as far as this side knows.
    InSync {
        /// The desired set.
        desired: bool,
        /// The reported set.
        reported: bool,
    },
    /// Node only: run this call. A `CallWindow` follows.
    CallRequest {
        /// Id of the call.
        id: u32,
        /// What is called.
        method: u16,
        /// Arguments.
        body: Vec<u8>,
    },
    /// Cloud only: a piece of the answer.
    CallBytes {
        /// Id of the call.
        id: u32,
        /// The bytes.
        bytes: Vec<u8>,
        /// Whether the answer is complete.
        end: bool,
    },
    /// The call is over without a complete answer.
    CallCancelled {
        /// Id of the call.
        id: u32,
    },
    /// Node only: this many more bytes of the answer may be given to `CallAnswer`.
    CallWindow {
        /// Id of the call.
        id: u32,
        /// Additional bytes.
        bytes: u32,
    },
    /// Node only: the cloud's clock, seconds since 1970.
    TimeFromCloud(u64),
    /// `Put` was not taken into the sent set: its key, size or the set's cap forbids it. An
    /// earlier object under the key stays.
    PutRefused {
        /// The key.
        key: Key,
        /// Why.
        reason: Reason,
    },
    /// Node only: read entries from the outbox, then answer `RecordsRead`.
    RecordsWanted {
        /// The class.
        class: u8,
        /// First number.
        from: u64,
        /// Sum of their `Entry::bytes_max` at most; one record always fits. At most
        /// `RECORD_ENTRIES_MAX` of them; what is over is read again later.
        bytes_max: usize,
    },
    /// Node only: everything before `next` may be deleted.
    RecordsAcked {
        /// The class.
        class: u8,
        /// First number that must be kept.
        next: u64,
    },
    /// Node only: the cloud has numbers of this outbox that the outbox has never given. So the
    /// medium went back in time, or another node has a copy of it: begin a new incarnation.
    RecordsAhead {
        /// The class.
        class: u8,
        /// The cloud's next number.
        next: u64,
    },
    /// Cloud only: give this to the sink, then answer `RecordsDurable`. It follows on what came
    /// before in its stream. The entries may be empty: then only `forgotten` is to be noted, or
    /// that there is such an outbox. After a `RecordsFailed` it may begin with what the sink has
    /// taken since then: that is left out by its number, and `RecordsDurable` is the answer.
    Records {
        /// For `RecordsDurable`.
        ticket: u32,
        /// The outbox. One never seen of this node says that the one before is lost.
        incarnation: Incarnation,
        /// The class.
        class: u8,
        /// Number of the first entry.
        first: u64,
        /// What the node still accounts for.
        held: u64,
        /// How many numbers right before `first` were acknowledged once and are not known any
        /// more: this cloud was restored from a backup. Lost here, and to be reported.
        forgotten: u64,
        /// Records and gaps.
        entries: Vec<Entry>,
    },
    /// Something is wrong with the peer; the frame was dropped.
    PeerProblem(Problem),
}

/// Name and version for `Hello`, cut to its cap at a character.
fn agent_text(mut agent: String) -> String {
    let mut end = agent.len().min(crate::limits::AGENT_BYTES_MAX);
    while !agent.is_char_boundary(end) {
        end -= 1;
    }
    agent.truncate(end);
    agent
}
