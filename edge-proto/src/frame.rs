//! Frames: the payload of one MQTT publish. The first byte is the wire version, the second the number
//! of the frame, the rest its members. `docs/wire.md` specifies the bytes.
//!
//! `Hello`, its refusal and the two frames that fetch a blob are frozen: they are decoded under any
//! version, so that a board that was offline for years can still be asked to update, and fetch the update.

use alloc::string::String;
use alloc::vec::Vec;

use crate::hash::{Hash16, Hash32};
use crate::key::Key;
use crate::limits::{
    AGENT_BYTES_MAX, CALL_BYTES_MAX, CALL_CONTROL_BYTES_MAX, CALL_REASON_BYTES_MAX,
    CHANGE_ITEMS_MAX, CLASSES_MAX, FRAME_BYTES_MAX, INLINE_BYTES_MAX, INVENTORY_PAGE_MAX,
    PIECE_BYTES_MAX, RECORD_BYTES_MAX, RECORD_ENTRIES_MAX, WIRE_VERSION, WIRE_VERSION_MIN,
};
use crate::wire::{Wire, numbers, variants, wire_struct};

/// Half of a session id: random, never persisted.
pub type Nonce = [u8; 8];

/// Id of a session: the node's nonce and the cloud's nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionId {
    /// Chosen by the node, once per transport connection.
    pub n: Nonce,
    /// Chosen by the cloud, once per opening.
    pub c: Nonce,
}

wire_struct! {
    SessionId { n, c }
}

numbers! {
    /// Which of the two replicated sets a frame is about.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Set {
        /// Objects that the node is to have. Sent by the cloud.
        0 = Desired,
        /// Status of the node and its pods. Sent by the node.
        1 = Reported,
    }
}

variants! {
    /// One change of a set.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum Item
    /// Wire number of each kind of change.
    numbered by ItemKind {
        /// The object's payload follows.
        0 = Put {
            /// Identifies the object.
            key: Key,
            /// Payload, at most `INLINE_BYTES_MAX`.
            bytes: Vec<u8>,
        },
        /// A large object; the receiver fetches the payload in pieces.
        1 = Large {
            /// Identifies the object.
            key: Key,
            /// Hash of the whole payload.
            sha256: Hash32,
            /// Length of the payload, bytes.
            len: u32,
        },
        /// The object is removed from the set.
        2 = Delete {
            /// Identifies the object.
            key: Key,
        },
    }
}

impl Item {
    /// Key of the object that changes.
    #[must_use]
    pub const fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Large { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// Id of one outbox: random, chosen when its directory is created. A new id means that the old outbox is
/// lost.
pub type Incarnation = [u8; 8];

numbers! {
    /// Why numbers of a stream have no record.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum GapReason {
        /// Deleted because the quota was full.
        0 = Quota,
        /// Older than the retention time of the class.
        1 = Expired,
        /// Replaced by a newer record with the same coalescing key.
        2 = Superseded,
        /// Its bytes on the medium fail their check.
        3 = Damaged,
    }
}

variants! {
    /// Content of one number of a stream, or of several consecutive ones.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum Entry
    /// Wire number of each kind of entry.
    numbered by EntryKind {
        /// A stored record of a workload.
        0 = Record {
            /// Time of writing, milliseconds since 1970 by the node's clock.
            unix_ms: u64,
            /// Payload of the workload, at most `RECORD_BYTES_MAX`.
            bytes: Vec<u8>,
        },
        /// Records that are lost.
        1 = Gap {
            /// Consecutive numbers without a record, at least 1.
            count: u64,
            /// Cause of the loss.
            reason: GapReason,
        },
    }
}

impl Entry {
    /// Stream numbers that the entry covers.
    #[must_use]
    pub const fn count(&self) -> u64 {
        match self {
            Self::Record { .. } => 1,
            Self::Gap { count, .. } => *count,
        }
    }

    /// Upper bound of its encoded bytes in a frame.
    #[must_use]
    pub const fn bytes_max(&self) -> usize {
        match self {
            Self::Record { bytes, .. } => bytes.len() + 14,
            Self::Gap { .. } => 12,
        }
    }
}

/// The number after the last of `entries`, which start at `first`; `None` on overflow.
#[must_use]
pub fn end_of(first: u64, entries: &[Entry]) -> Option<u64> {
    entries
        .iter()
        .try_fold(first, |next, entry| next.checked_add(entry.count()))
}

variants! {
    /// Message of the link. *Up* is from the node to the cloud.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum Frame
    /// Wire number of each frame: its second byte.
    numbered by FrameKind {
        /// Up: opens a session.
        0 = Hello {
            /// Nonce of the node for this connection.
            n: Nonce,
            /// Newest wire version that the node decodes.
            wire: u8,
            /// Mask of the kinds that the node understands, see `Kind::bit`.
            kinds: u32,
            /// Highest epoch that the node has accepted.
            epoch: u64,
            /// Root of the node's replica of the desired set.
            desired_root: Hash16,
            /// Root of the node's reported set.
            reported_root: Hash16,
            /// Name and version of the agent, for display.
            agent: String,
        },
        /// Down: answers `Hello`.
        1 = Welcome {
            /// Id of the session that the node's next frame confirms.
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
        /// Both ways: the sender does not know this session. The peer ends it.
        2 = Reset {
            /// Id of the unknown session.
            session: SessionId,
            /// Highest epoch that the sender knows.
            epoch: u64,
        },
        /// Down: requests a `Hello`.
        3 = Probe {
            /// Epoch of the shard's owner.
            epoch: u64,
            /// Cloud time, seconds since 1970; 0 if unknown.
            unix_s: u64,
        },
        /// Up, as the MQTT will: the connection with this nonce is closed.
        4 = Gone {
            /// The node's nonce.
            n: Nonce,
        },
        /// From a set's receiver: the keys and hashes that it holds.
        5 = Inventory {
            /// See [`Frame::session`].
            session: SessionId,
            /// Which set the page describes.
            set: Set,
            /// Root of all pages together; distinguishes the pages of two inventories.
            root: Hash16,
            /// Number of this page, from 0.
            page: u8,
            /// This is the page with the highest number.
            last: bool,
            /// Highest `order` of a `Change` of this set that the receiver got in this session.
            order: u64,
            /// Keys and hashes in ascending order.
            entries: Vec<(Key, Hash16)>,
        },
        /// From a set's sender: changes. Without items it check whether the receiver is at `result`.
        6 = Change {
            /// See [`Frame::session`].
            session: SessionId,
            /// Which set is changed.
            set: Set,
            /// Root before the changes.
            base: Hash16,
            /// Root after the changes.
            result: Hash16,
            /// Twice the number of this change, which ascends within a session; plus 1 if the sender
            /// already has further changes.
            order: u64,
            /// At most `CHANGE_ITEMS_MAX`; each key once.
            items: Vec<Item>,
        },
        /// From a set's receiver: the set is durable with this root.
        7 = Have {
            /// See [`Frame::session`].
            session: SessionId,
            /// Which set is acknowledged.
            set: Set,
            /// Root of the receiver's set.
            root: Hash16,
            /// Highest `order` of a `Change` of this set that the receiver got in this session.
            order: u64,
        },
        /// Requests one piece of a large object.
        8 = PieceGet {
            /// See [`Frame::session`].
            session: SessionId,
            /// Hash of the whole object.
            sha256: Hash32,
            /// Offset of the first requested byte.
            offset: u32,
        },
        /// Answers `PieceGet`.
        9 = Piece {
            /// See [`Frame::session`].
            session: SessionId,
            /// Hash of the whole object.
            sha256: Hash32,
            /// Offset of the first byte.
            offset: u32,
            /// At most `PIECE_BYTES_MAX`; empty at or past the end.
            bytes: Vec<u8>,
        },
        /// Down: starts a call.
        10 = CallOpen {
            /// See [`Frame::session`].
            session: SessionId,
            /// Id of the call, ascending within a session.
            id: u32,
            /// What to run, see [`crate::call`].
            method: u16,
            /// Arguments, at most `CALL_BYTES_MAX`.
            args: Vec<u8>,
            /// The node may send its data up to this offset.
            upto: u64,
        },
        /// Both ways: data of a call.
        11 = CallData {
            /// See [`Frame::session`].
            session: SessionId,
            /// Id of the call.
            id: u32,
            /// Sequence number among the data, control messages and result of this direction.
            number: u64,
            /// At most `CALL_BYTES_MAX`.
            bytes: Vec<u8>,
            /// This is the last data of this direction.
            end: bool,
        },
        /// Both ways: acknowledges frames of a call and grants credit.
        12 = CallCredit {
            /// See [`Frame::session`].
            session: SessionId,
            /// Id of the call.
            id: u32,
            /// Sequence number of the sender's next frame of the call.
            number: u64,
            /// Sequence number of the next frame that the sender expects.
            seen: u64,
            /// The receiver may send its data up to this offset.
            upto: u64,
            /// A receiver that does not know the call must answer `CallCancel`.
            check: bool,
        },
        /// Both ways: the call is over without a result.
        13 = CallCancel {
            /// See [`Frame::session`].
            session: SessionId,
            /// Id of the call.
            id: u32,
        },
        /// Down: answers a `Hello` that is not admitted yet.
        14 = RetryAfter {
            /// The node's nonce.
            n: Nonce,
            /// Epoch of the shard's owner.
            epoch: u64,
            /// Time until the node is to repeat `Hello`, milliseconds; the node waits at most
            /// `RETRY_AFTER_MS_MAX`.
            wait_ms: u64,
        },
        /// Up: records of one class, in order. Without entries it check whether all numbers before `first`
        /// have been received.
        15 = Records {
            /// See [`Frame::session`].
            session: SessionId,
            /// Id of the outbox.
            incarnation: Incarnation,
            /// Below `CLASSES_MAX`.
            class: u8,
            /// Oldest number that the node still accounts for: all earlier ones were acknowledged.
            held: u64,
            /// Number of the first entry, from 1.
            first: u64,
            /// At most `RECORD_ENTRIES_MAX`, with consecutive numbers.
            entries: Vec<Entry>,
        },
        /// Down: everything before `next` is durable in the cloud's sink, or counted there as lost.
        16 = RecordsAck {
            /// See [`Frame::session`].
            session: SessionId,
            /// Id of the outbox.
            incarnation: Incarnation,
            /// Below `CLASSES_MAX`.
            class: u8,
            /// First number that is not yet durable.
            next: u64,
            /// An earlier frame than the one that this answers is lost: send again from the oldest number
            /// that is not acknowledged.
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
            /// Number of a [`Refusal`].
            reason: u8,
        },
        /// Both ways: an out-of-band message of a call.
        18 = CallControl {
            /// See [`Frame::session`].
            session: SessionId,
            /// Id of the call.
            id: u32,
            /// As in `CallData`.
            number: u64,
            /// Kind of the message, see [`crate::call`].
            kind: u8,
            /// Content, at most `CALL_CONTROL_BYTES_MAX`.
            bytes: Vec<u8>,
        },
        /// Up: the call has ended, and all data of this direction was sent before.
        19 = CallResult {
            /// See [`Frame::session`].
            session: SessionId,
            /// Id of the call.
            id: u32,
            /// As in `CallData`.
            number: u64,
            /// Code of the result, see [`crate::call`].
            code: u32,
            /// Human-readable explanation, at most `CALL_REASON_BYTES_MAX`.
            reason: String,
        },
    }
}

/// Why a `Hello` is refused, by its number in [`Frame::HelloRefused`]. An agent shows a number that it
/// does not know as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Refusal {
    /// The cloud does not decode the node's wire version.
    Version = 0,
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameError {
    /// Empty, or more than `FRAME_BYTES_MAX`.
    PeerLength,
    /// A wire version that this build does not decode.
    PeerVersion(u8),
    /// A `Hello` of a wire version that this build does not decode. The answer is
    /// [`Frame::HelloRefused`].
    PeerHello {
        /// The node's nonce.
        n: Nonce,
        /// Newest wire version that the node decodes.
        wire: u8,
    },
    /// The bytes are not one frame of this version, or not its canonical encoding.
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
    /// Encodes the frame.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::from([WIRE_VERSION]);
        self.put(&mut bytes);
        bytes
    }

    /// Decodes one whole frame.
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

    /// Decodes a frozen frame of a version that is not supported; for other frames returns `error`. Members
    /// that a later version has added behind the frozen ones are ignored.
    fn decode_frozen(mut body: &[u8], error: FrameError) -> Result<Self, FrameError> {
        match body.first().copied().and_then(FrameKind::of) {
            Some(FrameKind::Hello) => {
                // The number again, then the frozen members.
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

    /// The session that the frame belongs to; the receiver answers one that it does not know with `Reset`.
    /// `None` for frames that open or end a session.
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

/// A payload that fits inline must be sent inline: the receiver requests no pieces of it.
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
