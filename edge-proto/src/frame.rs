//! Frames: what one MQTT publish carries. The first byte is the wire version, the second the number
//! of the frame, the rest its members. `docs/wire.md` specifies the bytes.
//!
//! `Hello`, its refusal and the two frames that fetch a blob are frozen: they are read under any
//! version, so that a board that was away for years can still be told to update, and fetch the update.

use alloc::string::String;
use alloc::vec::Vec;

use crate::hash::{Hash16, Hash32};
use crate::key::Key;
use crate::limits::{
    AGENT_BYTES_MAX, CALL_BYTES_MAX, CALL_CONTROL_BYTES_MAX, CALL_REASON_BYTES_MAX,
    CHANGE_ITEMS_MAX, CLASSES_MAX, FRAME_BYTES_MAX, INLINE_BYTES_MAX, INVENTORY_PAGE_MAX,
    PIECE_BYTES_MAX, RECORD_BYTES_MAX, RECORD_ENTRIES_MAX, WIRE_VERSION, WIRE_VERSION_MIN,
};
use crate::wire::{Wire, numbers, record, variants};

/// Half of a session's name: random, never persisted.
pub type Nonce = [u8; 8];

/// Name of a session: the node's nonce and the cloud's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionId {
    /// Chosen by the node, once per transport connection.
    pub n: Nonce,
    /// Chosen by the cloud, once per opening.
    pub c: Nonce,
}

record! {
    SessionId { n, c }
}

numbers! {
    /// Which of the two replicated sets a frame is about.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Set {
        /// What the cloud wants of the node. Sent by the cloud.
        0 = Desired,
        /// What the node says of itself. Sent by the node.
        1 = Reported,
    }
}

variants! {
    /// One change of a set.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum Item
    /// Numbers of the items.
    numbered by ItemKind {
        /// The object's payload follows.
        0 = Put {
            /// Key of the object.
            key: Key,
            /// Payload, at most `INLINE_BYTES_MAX`.
            bytes: Vec<u8>,
        },
        /// The payload is fetched by pieces.
        1 = Large {
            /// Key of the object.
            key: Key,
            /// Hash of the whole payload.
            sha256: Hash32,
            /// Bytes of the payload.
            len: u32,
        },
        /// The object leaves the set.
        2 = Delete {
            /// Key of the object.
            key: Key,
        },
    }
}

impl Item {
    /// Key of the object.
    #[must_use]
    pub const fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Large { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// Name of one outbox: random, made with its directory. A new one says that the old is lost.
pub type Incarnation = [u8; 8];

numbers! {
    /// Why numbers of a stream carry no record.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum GapReason {
        /// Dropped for room: the quota was full.
        0 = Quota,
        /// Older than the class keeps records.
        1 = Expired,
        /// A newer record with the same coalescing key took its place.
        2 = Superseded,
        /// Its bytes on the medium are not those that were written.
        3 = Damaged,
    }
}

variants! {
    /// What stands at one number of a stream, or at several.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum Entry
    /// Numbers of the entries.
    numbered by EntryKind {
        /// One record.
        0 = Record {
            /// When it was written, milliseconds since 1970 by the node's clock.
            unix_ms: u64,
            /// At most `RECORD_BYTES_MAX`.
            bytes: Vec<u8>,
        },
        /// Records that are lost.
        1 = Gap {
            /// How many numbers, at least 1.
            count: u64,
            /// Why.
            reason: GapReason,
        },
    }
}

impl Entry {
    /// Numbers that it takes.
    #[must_use]
    pub const fn count(&self) -> u64 {
        match self {
            Self::Record { .. } => 1,
            Self::Gap { count, .. } => *count,
        }
    }

    /// Bytes that it takes in a frame at most.
    #[must_use]
    pub const fn bytes_max(&self) -> usize {
        match self {
            Self::Record { bytes, .. } => bytes.len() + 14,
            Self::Gap { .. } => 12,
        }
    }
}

/// The number after `entries` that start at `first`; `None` past the end of numbers.
#[must_use]
pub fn end_of(first: u64, entries: &[Entry]) -> Option<u64> {
    entries
        .iter()
        .try_fold(first, |next, entry| next.checked_add(entry.count()))
}

variants! {
    /// One message of the link.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum Frame
    /// Numbers of the frames: the second byte of each.
    numbered by FrameKind {
        /// Up: opens a session.
        0 = Hello {
            /// The node's nonce.
            n: Nonce,
            /// Newest wire version that the node reads.
            wire: u8,
            /// Mask of the kinds that the node understands, see `Kind::bit`.
            kinds: u32,
            /// Highest epoch that the node has accepted.
            epoch: u64,
            /// Root of the node's replica of the desired set.
            desired_root: Hash16,
            /// Root of the node's reported set.
            reported_root: Hash16,
            /// Name and version of the agent, for people.
            agent: String,
        },
        /// Down: answers `Hello`.
        1 = Welcome {
            /// The session that the next frame of the node confirms.
            session: SessionId,
            /// Version of the frames of this session.
            wire: u8,
            /// Epoch of the shard's owner.
            epoch: u64,
            /// Root of the desired set.
            desired_root: Hash16,
            /// Root of the cloud's replica of the reported set.
            reported_root: Hash16,
            /// Cloud time, seconds since 1970; 0 if unknown.
            unix_s: u64,
        },
        /// Both ways: the sender does not know this session.
        2 = Reset {
            /// The unknown session.
            session: SessionId,
            /// Highest epoch that the sender knows.
            epoch: u64,
        },
        /// Down: asks for a `Hello`.
        3 = Probe {
            /// Epoch of the shard's owner.
            epoch: u64,
            /// Cloud time, seconds since 1970; 0 if unknown.
            unix_s: u64,
        },
        /// Up, the MQTT will: the connection of this nonce is gone.
        4 = Gone {
            /// The node's nonce.
            n: Nonce,
        },
        /// From a set's receiver: what it holds.
        5 = Inventory {
            /// The session.
            session: SessionId,
            /// The set.
            set: Set,
            /// Root of all pages together; tells the pages of two inventories apart.
            root: Hash16,
            /// Number of this page, from 0.
            page: u8,
            /// Whether this is the page with the highest number.
            last: bool,
            /// Highest `order` of a `Change` of this set that the receiver had, in this session.
            order: u64,
            /// Keys and hashes in ascending order.
            entries: Vec<(Key, Hash16)>,
        },
        /// From a set's sender: changes; without items a question whether the receiver is at `result`.
        6 = Change {
            /// The session.
            session: SessionId,
            /// The set.
            set: Set,
            /// Root that the changes start from.
            base: Hash16,
            /// Root after them.
            result: Hash16,
            /// Twice the number of this change, which ascends within a session, and 1 more if the
            /// sender already knows of changes after these.
            order: u64,
            /// The changes; no key twice.
            items: Vec<Item>,
        },
        /// From a set's receiver: this is durable.
        7 = Have {
            /// The session.
            session: SessionId,
            /// The set.
            set: Set,
            /// Root of the receiver's set.
            root: Hash16,
            /// Highest `order` of a `Change` of this set that the receiver had, in this session.
            order: u64,
        },
        /// From a set's receiver: asks for one piece of a large object.
        8 = PieceGet {
            /// The session.
            session: SessionId,
            /// The object.
            sha256: Hash32,
            /// First wanted byte.
            offset: u32,
        },
        /// Answers `PieceGet`.
        9 = Piece {
            /// The session.
            session: SessionId,
            /// The object.
            sha256: Hash32,
            /// Place of the first byte.
            offset: u32,
            /// At most `PIECE_BYTES_MAX`.
            bytes: Vec<u8>,
        },
        /// Down: starts a call.
        10 = CallOpen {
            /// The session.
            session: SessionId,
            /// Id of the call, ascending within a session.
            id: u32,
            /// What is called.
            method: u16,
            /// Arguments, at most `CALL_BYTES_MAX`.
            args: Vec<u8>,
            /// The node's data before this offset may be sent.
            upto: u64,
        },
        /// Both ways: data of a call.
        11 = CallData {
            /// The session.
            session: SessionId,
            /// Id of the call.
            id: u32,
            /// Number of the frame among the data, control messages and result of its direction.
            number: u64,
            /// At most `CALL_BYTES_MAX`.
            bytes: Vec<u8>,
            /// No data follow in this direction.
            end: bool,
        },
        /// Both ways: where an end of a call stands.
        12 = CallCredit {
            /// The session.
            session: SessionId,
            /// Id of the call.
            id: u32,
            /// Number that the sender's next frame of the call will have.
            number: u64,
            /// Number of the next frame that it waits for.
            seen: u64,
            /// The other end's data before this offset may be sent.
            upto: u64,
            /// Who does not know the call answers `CallCancel`.
            asks: bool,
        },
        /// Both ways: the call is over without a result.
        13 = CallCancel {
            /// The session.
            session: SessionId,
            /// Id of the call.
            id: u32,
        },
        /// Down: answers a `Hello` that has to wait for its turn.
        14 = RetryAfter {
            /// The node's nonce.
            n: Nonce,
            /// Epoch of the shard's owner.
            epoch: u64,
            /// When to say `Hello` again, milliseconds from now; the node keeps to at most
            /// `RETRY_AFTER_MS_MAX`.
            wait_ms: u64,
        },
        /// Up: records of one class, in order; without entries a question whether all before `first`
        /// has come.
        15 = Records {
            /// The session.
            session: SessionId,
            /// The outbox.
            incarnation: Incarnation,
            /// The class, below `CLASSES_MAX`.
            class: u8,
            /// Oldest number that the node still accounts for: all before it were acknowledged.
            held: u64,
            /// Number of the first entry, from 1.
            first: u64,
            /// At most `RECORD_ENTRIES_MAX`; their numbers follow on without holes.
            entries: Vec<Entry>,
        },
        /// Down: everything before `next` is durable at the cloud's sink, or counted as lost there.
        16 = RecordsAck {
            /// The session.
            session: SessionId,
            /// The outbox.
            incarnation: Incarnation,
            /// The class.
            class: u8,
            /// First number that is not yet durable.
            next: u64,
            /// A frame before the one that this answers is lost: send again from the oldest number that
            /// is not acknowledged.
            missing: bool,
        },
        /// Down: answers a `Hello` that opens no session.
        17 = HelloRefused {
            /// The node's nonce.
            n: Nonce,
            /// Epoch of the shard's owner.
            epoch: u64,
            /// Oldest wire version that the cloud reads.
            wire_min: u8,
            /// Newest wire version that the cloud reads.
            wire_max: u8,
            /// Why, see [`Refusal`].
            reason: u8,
        },
        /// Both ways: out of band in a call.
        18 = CallControl {
            /// The session.
            session: SessionId,
            /// Id of the call.
            id: u32,
            /// As in `CallData`.
            number: u64,
            /// What it is, see [`crate::call`].
            kind: u8,
            /// At most `CALL_CONTROL_BYTES_MAX`.
            bytes: Vec<u8>,
        },
        /// Up: the call is over, and all data of this direction came before.
        19 = CallResult {
            /// The session.
            session: SessionId,
            /// Id of the call.
            id: u32,
            /// As in `CallData`.
            number: u64,
            /// See [`crate::call`].
            code: u32,
            /// For a person, at most `CALL_REASON_BYTES_MAX`.
            reason: String,
        },
    }
}

/// Why a `Hello` is refused, as its number in [`Frame::HelloRefused`]. A number that an agent does not
/// know is shown as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Refusal {
    /// The cloud does not read the node's wire version.
    Version = 0,
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameError {
    /// No bytes, or more than `FRAME_BYTES_MAX`.
    PeerLength,
    /// A wire version that this build does not read.
    PeerVersion(u8),
    /// A `Hello` of a wire version that this build does not read. The answer is
    /// [`Frame::HelloRefused`].
    PeerHello {
        /// The node's nonce.
        n: Nonce,
        /// Newest wire version that the node reads.
        wire: u8,
    },
    /// The bytes are not one frame of this version, or not in the one encoding that a frame has.
    PeerMalformed,
    /// A list, name or payload is over its cap, or a key's form does not fit its kind.
    PeerLimit,
}

impl core::fmt::Display for FrameError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::PeerLength => f.write_str("frame length out of bounds"),
            Self::PeerVersion(version) | Self::PeerHello { wire: version, .. } => {
                write!(f, "wire version {version} not supported")
            }
            Self::PeerMalformed => f.write_str("frame malformed"),
            Self::PeerLimit => f.write_str("frame over a cap"),
        }
    }
}

impl core::error::Error for FrameError {}

impl Frame {
    /// Bytes of the frame.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::from([WIRE_VERSION]);
        self.put(&mut bytes);
        bytes
    }

    /// Reads one whole frame.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        if bytes.len() > FRAME_BYTES_MAX {
            return Err(FrameError::PeerLength);
        }
        let (version, body) = bytes.split_first().ok_or(FrameError::PeerLength)?;
        let frame = if (WIRE_VERSION_MIN..=WIRE_VERSION).contains(version) {
            Self::from_wire(body).ok_or(FrameError::PeerMalformed)?
        } else {
            Self::decode_frozen(body, FrameError::PeerVersion(*version))?
        };
        if frame.is_within_caps() {
            Ok(frame)
        } else {
            Err(FrameError::PeerLimit)
        }
    }

    /// A frame under a version that is not read, unless the answer is to be `error`. Members that a
    /// later version has put behind the frozen ones are ignored.
    fn decode_frozen(mut body: &[u8], error: FrameError) -> Result<Self, FrameError> {
        match body.first().copied().and_then(FrameKind::of) {
            Some(FrameKind::Hello) => {
                // The number again, then what is frozen of it.
                let hello = <(u8, (Nonce, u8))>::take(&mut body);
                let (_, (n, wire)) = hello.ok_or(error)?;
                Err(FrameError::PeerHello { n, wire })
            }
            Some(FrameKind::HelloRefused | FrameKind::PieceGet | FrameKind::Piece) => {
                Self::take(&mut body).ok_or(error)
            }
            _ => Err(error),
        }
    }

    /// The session that the frame belongs to; `None` for those that open or end one.
    #[must_use]
    pub const fn session(&self) -> Option<SessionId> {
        match self {
            Self::Hello { .. }
            | Self::Welcome { .. }
            | Self::Reset { .. }
            | Self::Probe { .. }
            | Self::Gone { .. }
            | Self::RetryAfter { .. }
            | Self::HelloRefused { .. } => None,
            Self::Inventory { session, .. }
            | Self::Change { session, .. }
            | Self::Have { session, .. }
            | Self::PieceGet { session, .. }
            | Self::Piece { session, .. }
            | Self::CallOpen { session, .. }
            | Self::CallData { session, .. }
            | Self::CallCredit { session, .. }
            | Self::CallCancel { session, .. }
            | Self::CallControl { session, .. }
            | Self::CallResult { session, .. }
            | Self::Records { session, .. }
            | Self::RecordsAck { session, .. } => Some(*session),
        }
    }

    fn is_within_caps(&self) -> bool {
        match self {
            Self::Hello { agent, .. } => agent.len() <= AGENT_BYTES_MAX,
            Self::Inventory { entries, .. } => {
                entries.len() <= INVENTORY_PAGE_MAX && entries.iter().all(|(key, _)| key.is_valid())
            }
            Self::Change { items, .. } => {
                items.len() <= CHANGE_ITEMS_MAX && items.iter().all(is_item_within_caps)
            }
            Self::Piece { bytes, .. } => bytes.len() <= PIECE_BYTES_MAX,
            Self::CallOpen { args, .. } => args.len() <= CALL_BYTES_MAX,
            Self::CallData { bytes, .. } => bytes.len() <= CALL_BYTES_MAX,
            Self::CallControl { bytes, .. } => bytes.len() <= CALL_CONTROL_BYTES_MAX,
            Self::CallResult { reason, .. } => reason.len() <= CALL_REASON_BYTES_MAX,
            Self::Records {
                class,
                held,
                first,
                entries,
                ..
            } => {
                usize::from(*class) < CLASSES_MAX
                    && (1..=*first).contains(held)
                    && entries.len() <= RECORD_ENTRIES_MAX
                    && entries.iter().all(is_entry_within_caps)
                    && end_of(*first, entries).is_some()
            }
            Self::RecordsAck { class, next, .. } => usize::from(*class) < CLASSES_MAX && *next > 0,
            Self::Welcome { .. }
            | Self::Reset { .. }
            | Self::Probe { .. }
            | Self::Gone { .. }
            | Self::Have { .. }
            | Self::PieceGet { .. }
            | Self::CallCredit { .. }
            | Self::CallCancel { .. }
            | Self::RetryAfter { .. }
            | Self::HelloRefused { .. } => true,
        }
    }
}

/// What fits inline travels inline: nobody has pieces of it.
fn is_item_within_caps(item: &Item) -> bool {
    let fits = match item {
        Item::Put { bytes, .. } => bytes.len() <= INLINE_BYTES_MAX,
        Item::Large { len, .. } => *len as usize > INLINE_BYTES_MAX,
        Item::Delete { .. } => true,
    };
    fits && item.key().is_valid()
}

const fn is_entry_within_caps(entry: &Entry) -> bool {
    match entry {
        Entry::Record { bytes, .. } => bytes.len() <= RECORD_BYTES_MAX,
        Entry::Gap { count, .. } => *count > 0,
    }
}
