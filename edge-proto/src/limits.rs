//! Every cap of the wire, in one place. `docs/limits.md` repeats each with its consequence.

/// Version of frames and object fields that this build writes.
pub const WIRE_VERSION: u8 = 2;
/// Oldest version that this build still reads.
pub const WIRE_VERSION_MIN: u8 = 2;

/// Bytes of one frame, header included. Larger ones are refused before decoding. rumqttc's own limit is
/// 10 KiB, and a larger packet would be retried without end.
pub const FRAME_BYTES_MAX: usize = 8 * 1024;
/// Payload bytes that are sent inside a change; larger objects are sent in pieces.
pub const INLINE_BYTES_MAX: usize = 4 * 1024;
/// Bytes of one piece of a large object.
pub const PIECE_BYTES_MAX: usize = 4 * 1024;
/// Payload bytes of a Pod.
pub const POD_BYTES_MAX: usize = 32 * 1024;
/// Payload bytes of one ConfigMap or Secret, Kubernetes' own limit plus our framing.
pub const CONFIG_BYTES_MAX: usize = 1024 * 1024;
/// Payload bytes of every other kind; fits inline.
pub const OTHER_BYTES_MAX: usize = INLINE_BYTES_MAX;
/// Payload bytes of all desired objects of one node.
pub const NODE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Objects in one replicated set.
pub const SET_OBJECTS_MAX: usize = 1024;
/// Objects that one change frame carries.
pub const CHANGE_ITEMS_MAX: usize = 64;
/// Entries of one inventory page. 64 x (1 + 255 + 16) bytes would be over a frame, so the
/// writer also stops at [`FRAME_BYTES_MAX`].
pub const INVENTORY_PAGE_MAX: usize = 64;
/// Bytes of the agent's name and version in `Hello`.
pub const AGENT_BYTES_MAX: usize = 64;
/// First wait before an unanswered frame is repeated; doubles up to [`REPEAT_MS_MAX`].
pub const REPEAT_MS_MIN: u64 = 4_000;
/// Longest wait before an unanswered frame is repeated.
pub const REPEAT_MS_MAX: u64 = 300_000;
/// Consecutive probes of a silent node. A node that reconnects sends `Hello` by itself.
pub const PROBES_MAX: u8 = 8;
/// A node whose `Hello` was refused repeats it after this time, and up to a quarter more: only an
/// update of one of the two ends changes the answer.
pub const REFUSED_RETRY_MS: u64 = 600_000;
/// Longest time that a node waits with `Hello` after a `RetryAfter`.
pub const RETRY_AFTER_MS_MAX: u64 = 600_000;
/// Bytes of a call's arguments, and of one frame of its data.
pub const CALL_BYTES_MAX: usize = 4 * 1024;
/// Calls open at once in one session.
pub const CALLS_MAX: usize = 8;
/// Bytes of all calls of a session together, in each direction, that are granted and not yet taken by
/// the consumers: the bandwidth-delay product of 3 Mbit/s and 150 ms, plus a margin.
pub const CALL_WINDOW_BYTES: u32 = 64 * 1024;
/// Bytes of that window that are reserved for each call.
pub const CALL_CREDIT_BYTES_MIN: u32 = 512;
/// Unacknowledged frames of data in one direction of a call; further data waits, and is sent in
/// larger frames.
pub const CALL_FRAMES_MAX: usize = 16;
/// Unacknowledged control messages in one direction of a call; one more ends the call.
pub const CALL_CONTROLS_MAX: usize = 8;
/// Bytes of a control message.
pub const CALL_CONTROL_BYTES_MAX: usize = 32;
/// Bytes of the text of a call's result; longer text is cut at a character.
pub const CALL_REASON_BYTES_MAX: usize = 256;
/// Interval at which each end of an open call sends its position, so that a frame lost at the end of a
/// stream is noticed.
pub const CALL_CHECK_MS: u64 = 60_000;

/// Classes of an outbox: numbers below this; the lowest is sent first.
pub const CLASSES_MAX: usize = 16;
/// Class of toll records.
pub const CLASS_TOLL: u8 = 0;
/// Class of events: sent after toll records.
pub const CLASS_EVENT: u8 = 1;
/// Class of telemetry: sent after events.
pub const CLASS_TELEMETRY: u8 = 2;
/// Bytes of one record; one record always fits a frame.
pub const RECORD_BYTES_MAX: usize = 4 * 1024;
/// Entries of one records frame.
pub const RECORD_ENTRIES_MAX: usize = 256;
/// Bytes of the entries of one records frame: a frame without version, tags, session, outbox id,
/// class and numbers.
pub const RECORDS_BYTES_MAX: usize = FRAME_BYTES_MAX - 64;
/// Bytes of records frames of one node in flight: what 3 Mbit/s carry in a round trip of 150 ms plus
/// the 20 ms that a sink needs. With a quicker sink little of it queues; a frame behind a full window
/// waits for 175 ms. A class that has nothing in flight may always send one frame, so
/// that a class whose sink is blocked does not block the others.
pub const STREAM_WINDOW_BYTES: usize = 64 * 1024;
/// Records frames of one node in flight. The number is small, so that small records are sent together
/// when the round trip is long.
pub const STREAM_FRAMES_MAX: usize = 16;
/// Bytes of records that the cloud holds for one node until its sink has them; further records
/// are dropped and sent again. It covers all frames that may be in flight, full: a node that respects its
/// window never reaches it.
pub const STREAM_PENDING_BYTES_MAX: usize = (STREAM_FRAMES_MAX + CLASSES_MAX) * FRAME_BYTES_MAX;
/// Streams (outbox, class) that the cloud's end keeps for one node; the oldest is dropped.
pub const STREAMS_MAX: usize = 4 * CLASSES_MAX;
/// Bytes of pieces in flight: 3 Mbit/s over 150 ms, plus a margin that queues.
pub const BLOB_WINDOW_BYTES: usize = 96 * 1024;
/// Blobs that a node fetches one after the other.
pub const BLOBS_MAX: usize = 16;

/// Bytes of a node name: one RFC 1123 label.
pub const NODE_NAME_BYTES_MAX: usize = 63;
/// Bytes of an object's name or namespace: an RFC 1123 subdomain.
pub const NAME_BYTES_MAX: usize = 253;
/// Containers of a Pod.
pub const CONTAINERS_MAX: usize = 16;
/// Volumes of a Pod, and mounts of a container.
pub const VOLUMES_MAX: usize = 32;
/// Environment entries of a container.
pub const ENV_MAX: usize = 256;
/// Elements of command plus args of a container.
pub const ARGV_MAX: usize = 256;
/// Keys of one ConfigMap or Secret.
pub const DATA_KEYS_MAX: usize = 4096;
/// Keys that one ConfigMap or Secret volume picks.
pub const FILES_MAX: usize = 256;
/// Labels carried for a Pod or a node.
pub const LABELS_MAX: usize = 32;
/// Conditions of a node.
pub const CONDITIONS_MAX: usize = 32;
/// Refused objects that one NodeStatus lists; further ones are only counted.
pub const REFUSED_LISTED_MAX: usize = 16;
/// Bytes of a reason or message in a status; longer text is cut at a character.
pub const MESSAGE_BYTES_MAX: usize = 256;
/// Longest MQTT keepalive, seconds: noticing a dead link later than that is of no use.
pub const KEEPALIVE_S_MAX: u16 = 1_200;
/// Time without any packet after which an end closes the link, in percent of the MQTT keepalive. Under
/// 200, so that both ends have closed it by then; over MQTT's 150, because at 30 % loss the last
/// retransmissions of a ping arrive later than that.
pub const SILENCE_PERCENT: u32 = 175;
/// Bytes of a join request or answer (CSR and certificates, DER).
pub const ENROL_BYTES_MAX: usize = 8 * 1024;

const _: () = assert!(INLINE_BYTES_MAX + 1024 < FRAME_BYTES_MAX);
/// Frames of edge-cloud that wait for the socket of an external broker: the answers to inventories of
/// hundreds of nodes at once. The constants from here on are edge-cloud's own; they are here so that the
/// simulator has no copies.
pub const BROKER_FRAMES_MAX: usize = 8_192;
/// First wait before edge-cloud reconnects to the broker, milliseconds; it doubles.
pub const BROKER_RETRY_MS_MIN: u64 = 250;
/// Longest such wait, milliseconds.
pub const BROKER_RETRY_MS_MAX: u64 = 30_000;
/// Nodes in one batch of probes after a connect to the broker.
pub const PROBES_AT_ONCE: usize = 50;
/// Time between two such batches, milliseconds: 10,000 nodes are probed in 20 seconds.
pub const PROBE_INTERVAL_MS: u64 = 100;
/// Probes of a silent node before it counts as not connected.
pub const SILENCE_PROBES_MAX: u32 = 3;
/// Silent nodes that are probed at once, so that nodes last heard at the same time do not answer together.
pub const SILENCE_PROBES_AT_ONCE: usize = 1_000;
/// Longest silence of a node in a call whose answer is finite, milliseconds: frames can be lost.
pub const CALL_TIMEOUT_MS: u64 = 30_000;
/// Time after its expiry during which a certificate still authenticates a renewal, seconds: 90 days, for
/// a gate that had no link for a season.
pub const RENEW_GRACE_S: u64 = 90 * 24 * 3600;
/// Seconds between two new certificates of one node, or a twentieth of their lifetime if that is less.
pub const RENEW_INTERVAL_S: u64 = 600;

const _: () = assert!(PIECE_BYTES_MAX + 256 < FRAME_BYTES_MAX);
const _: () = assert!(BLOB_WINDOW_BYTES.is_multiple_of(PIECE_BYTES_MAX));
const _: () = assert!(CALL_BYTES_MAX + 256 < FRAME_BYTES_MAX);
const _: () = assert!(CALL_FRAMES_MAX * CALL_BYTES_MAX >= CALL_WINDOW_BYTES as usize);
// One call alone fills 3 Mbit/s at 150 ms, beside the reserve of seven others.
const _: () = assert!(
    CALL_WINDOW_BYTES as usize - (CALLS_MAX - 1) * CALL_CREDIT_BYTES_MIN as usize
        >= 3_000_000 / 8 * 150 / 1_000
);
const _: () = assert!(CONFIG_BYTES_MAX < NODE_BYTES_MAX);
const _: () = assert!(RECORD_BYTES_MAX + 14 <= RECORDS_BYTES_MAX);
const _: () = assert!(2 * FRAME_BYTES_MAX <= STREAM_WINDOW_BYTES);
