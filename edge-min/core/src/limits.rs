//! Caps of the agent's decisions. `docs/limits.md` repeats each with its consequence.

use edge_proto::Millis;

/// Highest number of pods that a board file may set, Kubernetes' own default; a further pod is refused with a
/// status.
pub const PODS_MAX: usize = 110;
/// Discovered containers that are not desired and are stopped at start; further ones are discovered
/// at the next start. Desired ones are always adopted, however many there are.
pub const ORPHANS_MAX: usize = 256;
/// First back-off of a crashing container, milliseconds: Kubernetes' 10 s. The very first restart
/// is immediate.
pub const BACKOFF_MS_MIN: Millis = 10_000;
/// Longest back-off, milliseconds: Kubernetes' 5 minutes.
pub const BACKOFF_MS_MAX: Millis = 300_000;
/// A run of this length resets the back-off, milliseconds: Kubernetes' 10 minutes.
pub const BACKOFF_RESET_MS: Millis = 600_000;
/// Bytes of one container's log ring without a memory limit.
pub const LOG_BYTES_MAX: u64 = 256 * 1024;
/// Lowest such ring of a container with a small memory limit, bytes.
pub const LOG_BYTES_MIN: u64 = 16 * 1024;
/// Lowest size of the tmpfs with the logs of a pod, bytes.
pub const LOGS_BYTES_MIN: u64 = 64 * 1024;
/// Size of the tmpfs of an emptyDir with medium Memory and without a size, bytes.
pub const MEMORY_VOLUME_BYTES_DEFAULT: u64 = 16 * 1024 * 1024;
/// Size of the tmpfs with the files of one Secret, bytes: twice the largest Secret, so that an update fits.
pub const SECRET_VOLUME_BYTES: u64 = 3 * 1024 * 1024;
/// Umask of a plain process: others cannot write its files and directories, as in containers.
pub const UMASK: u32 = 0o022;
/// Soft limit of open files of a plain process: a higher one breaks programs with select(2). A program may
/// raise it to the hard limit, which is the board's.
pub const OPEN_FILES_SOFT: u64 = 1024;
/// Lowest OOM score adjustment of a workload, which inherits the agent's without its protection.
pub const OOM_SCORE_ADJ_MIN: i32 = 0;
/// Interval of reading the wear of the flash, milliseconds: it changes by a tenth in years.
pub const WEAR_MS: Millis = 24 * 3_600_000;
/// Longest time to establish a connection, from TCP to the answer to its subscription, milliseconds: 70 s
/// were measured at 30 % loss each way.
pub const CONNECT_TIMEOUT_MS: Millis = 90_000;
/// Longest wait for the answer to a join or a renewal, milliseconds.
pub const ENROL_TIMEOUT_MS: Millis = 90_000;
/// Frames that wait for the socket of the link; further ones wait in their lanes.
pub const LINK_FRAMES_MAX: usize = 32;
/// Bytes that wait for the socket of the link before further frames stay in their lanes.
pub const UNSENT_BYTES_MAX: usize = 4 * 1024;
/// Send buffer of the link's socket: 3 Mbit/s over 150 ms fit, and at 30 % loss a ping does not wait
/// for minutes.
pub const SEND_BUFFER_BYTES: u32 = 64 * 1024;
/// The floor of the time is stored again when it has advanced by this, seconds.
pub const FLOOR_KEPT_S: u64 = 24 * 3600;
/// Interval of truncating the logs of running containers, milliseconds.
pub const LOG_TRIM_MS: Millis = 10_000;
/// How often a log that somebody follows is looked at, milliseconds.
pub const LOG_LOOK_MS: Millis = 250;
/// Grace from SIGTERM to SIGKILL when the Pod has none, seconds: Kubernetes' default.
pub const GRACE_S_DEFAULT: u32 = 30;
/// Descriptors that the agent raises its own limit to: one for each container of a full board and for each
/// connection, and those that a kill holds meanwhile.
pub const AGENT_OPEN_FILES: u64 = 4096;
/// While it cannot be known what runs on the board, that is asked again after this, milliseconds: nothing
/// is started or ended before.
pub const DISCOVER_RETRY_MS: Millis = 5_000;
/// Delay before the next SIGKILL to a container that does not end, and before the next attempt to remove
/// remains, milliseconds.
pub const KILL_RETRY_MS: Millis = 5_000;
/// Delay before a failed write of an accepted change is retried, milliseconds: on a full disk a person
/// must free space first.
pub const WRITE_RETRY_MS: Millis = 5_000;
/// The state cache is written after this time without a change, milliseconds...
pub const CACHE_QUIET_MS: Millis = 2_000;
/// ...or at the latest this long after the first change, so that a burst costs one write. With it
/// a write of the class *soon* is at most so late, as long as the flash budget lasts.
pub const CACHE_LATEST_MS: Millis = 30_000;
/// Remains of an earlier agent's unpacking are removed in the first idle time of this length, milliseconds:
/// after a boot the pods are started first.
pub const CLEAR_AFTER_MS: Millis = 30_000;
/// Delay before a cache that could not be written is retried, milliseconds.
pub const CACHE_RETRY_MS: Millis = 600_000;
/// Longest wait for the sync of a record of durability *soon*, milliseconds.
pub const RECORD_SOON_MS: Millis = 2_000;
/// Ranges of lost numbers that a class of the outbox stores; if damage needs more, the records
/// between the two nearest ranges are counted as lost, too.
pub const GAPS_MAX: usize = 32;
/// Of these, ranges that superseded records must leave unused.
pub const GAPS_SPARE: usize = 8;
/// Coalescing keys that the outbox remembers; the record of a dropped key is kept.
pub const KEYS_MAX: usize = 256;
/// Bytes of a segment of the outbox: a full quota drops this much at once, and a start scans this much at a
/// time.
pub const SEGMENT_BYTES_MAX: u64 = 128 * 1024;
/// Lowest number of segments into which a quota is divided.
pub const SEGMENTS_OF_A_QUOTA_MIN: u64 = 8;
/// A record from before 2026 was written under a wrong clock, and does not expire. Milliseconds.
pub const RECORD_EXPIRES_FROM_MS: u64 = 1_767_225_600_000;
/// First wait after a failed renewal of the certificate, milliseconds; it doubles. With a certificate
/// of less than 50 minutes the wait is a fiftieth of its lifetime.
pub const RENEWAL_MS_MIN: Millis = 60_000;
/// Longest such wait, and the one after a refusal, milliseconds; a tenth of a shorter lifetime.
pub const RENEWAL_MS_MAX: Millis = 6 * 3_600_000;
/// Unpacked layers that are kept although no desired pod uses them: returning to a recent image
/// then unpacks nothing.
pub const LAYERS_UNUSED_MAX: usize = 64;
/// Bytes of the medium that images leave free: the desired set and the logs of a day.
pub const MEDIUM_FREE_BYTES_MIN: u64 = 32 * 1024 * 1024;
/// Part of the medium that unused layers leave free, percent: Kubernetes' own threshold.
pub const MEDIUM_FREE_PERCENT_MIN: u64 = 15;
