//! Caps of the agent's decisions. `docs/limits.md` repeats each with its consequence.

use edge_proto::Millis;

/// Pods that a board may allow at most, Kubernetes' own default; a further one is refused with a
/// status.
pub const PODS_MAX: usize = 110;
/// Discovered containers that are not desired and are stopped at start; further ones are found
/// again at the next start. Desired ones are always adopted, however many are found.
pub const ORPHANS_MAX: usize = 256;
/// First back-off of a crashing container, milliseconds: Kubernetes' 10 s. The very first restart
/// is immediate.
pub const BACKOFF_MS_MIN: Millis = 10_000;
/// Longest back-off, milliseconds: Kubernetes' 5 minutes.
pub const BACKOFF_MS_MAX: Millis = 300_000;
/// A run of this length forgets earlier crashes, milliseconds: Kubernetes' 10 minutes.
pub const BACKOFF_RESET_MS: Millis = 600_000;
/// Bytes of one container's log ring without a memory limit.
pub const LOG_BYTES_MAX: u64 = 256 * 1024;
/// Lowest such ring of a container with a small memory limit, bytes.
pub const LOG_BYTES_MIN: u64 = 16 * 1024;
/// Lowest size of the tmpfs with the logs of a pod, bytes.
pub const LOGS_BYTES_MIN: u64 = 64 * 1024;
/// Size of the tmpfs of an emptyDir with medium Memory that names none, bytes.
pub const MEMORY_VOLUME_BYTES_DEFAULT: u64 = 16 * 1024 * 1024;
/// Size of the tmpfs with the files of one Secret, bytes: twice the largest Secret, for a switch.
pub const SECRET_VOLUME_BYTES: u64 = 3 * 1024 * 1024;
/// Files and directories that a plain process makes are not for others to write, as in containers.
pub const UMASK: u32 = 0o022;
/// Soft limit of open files of a plain process: more breaks programs with select(2). A program may
/// raise it to the hard limit, which stays as the board has it.
pub const OPEN_FILES_SOFT: u64 = 1024;
/// Lowest OOM score adjustment of a workload, which has the agent's own without its protection.
pub const OOM_SCORE_ADJ_MIN: i32 = 0;
/// How often the wear of the flash is read, milliseconds: it moves by a tenth in years.
pub const WEAR_MS: Millis = 24 * 3_600_000;
/// Longest wait for a connection, from TCP to the answer of its subscription, milliseconds: 70 s
/// were seen at 30 % loss each way.
pub const CONNECT_TIMEOUT_MS: Millis = 90_000;
/// Longest wait for the answer of a join or a renewal, milliseconds.
pub const ENROL_TIMEOUT_MS: Millis = 90_000;
/// Frames that wait for the socket of the link; the others wait in their lanes.
pub const LINK_FRAMES_MAX: usize = 32;
/// Bytes that wait for the socket of the link before a further frame is kept back in its lane.
pub const UNSENT_BYTES_MAX: usize = 4 * 1024;
/// Bytes that the kernel holds for the link: 3 Mbit/s over 150 ms fit, and at 30 % loss a ping is not
/// minutes behind.
pub const SEND_BUFFER_BYTES: u32 = 64 * 1024;
/// The floor of the time is kept when it has moved by so much, seconds.
pub const FLOOR_KEPT_S: u64 = 24 * 3600;
/// How often the logs of running containers are cut to their tail, milliseconds.
pub const LOG_TRIM_MS: Millis = 10_000;
/// Grace from SIGTERM to SIGKILL when the Pod names none, seconds: Kubernetes' default.
pub const GRACE_S_DEFAULT: u32 = 30;
/// A killed container that does not end is killed again after this, and what cannot be removed is
/// removed again, milliseconds.
pub const KILL_RETRY_MS: Millis = 5_000;
/// Pause before a failed write of an accepted change is retried, milliseconds: a full disk
/// needs somebody to make room.
pub const WRITE_RETRY_MS: Millis = 5_000;
/// The state cache follows the set after this much quiet, milliseconds...
pub const CACHE_QUIET_MS: Millis = 2_000;
/// ...or at the latest this long after the first change, so that a burst costs one write. With it
/// a write of the class *soon* is at most so late, as long as the flash budget lasts.
pub const CACHE_LATEST_MS: Millis = 30_000;
/// What an earlier agent left half is cleared in the first pause of this length, milliseconds:
/// after a boot the pods come first.
pub const CLEAR_AFTER_MS: Millis = 30_000;
/// Pause before a cache that could not be written is retried, milliseconds.
pub const CACHE_RETRY_MS: Millis = 600_000;
/// Longest wait for the sync of a record of durability *soon*, milliseconds.
pub const RECORD_SOON_MS: Millis = 2_000;
/// Ranges of lost numbers that a class of the outbox notes; if damage needs more, the records
/// between the two nearest are given up.
pub const GAPS_MAX: usize = 32;
/// Of them, those that superseded records leave free.
pub const GAPS_SPARE: usize = 8;
/// Coalescing keys of the outbox that are remembered; the record under a forgotten one stays.
pub const KEYS_MAX: usize = 256;
/// Bytes of a segment of the outbox: what a full quota drops at once, and what a start scans at a
/// time.
pub const SEGMENT_BYTES_MAX: u64 = 128 * 1024;
/// A quota is cut into at least so many segments.
pub const SEGMENTS_OF_A_QUOTA_MIN: u64 = 8;
/// A record from before 2026 was written by a wrong clock, and does not expire. Milliseconds.
pub const RECORD_EXPIRES_FROM_MS: u64 = 1_767_225_600_000;
/// First wait after a renewal of the certificate that failed, milliseconds; it doubles. A certificate
/// of less than 50 minutes waits a fiftieth of its life.
pub const RENEWAL_MS_MIN: Millis = 60_000;
/// Longest such wait, and the one after a refusal, milliseconds; a tenth of a shorter life.
pub const RENEWAL_MS_MAX: Millis = 6 * 3_600_000;
/// Layers that no desired pod uses and that are kept all the same: going back to an image that
/// ran a while ago then unpacks nothing.
pub const LAYERS_UNUSED_MAX: usize = 64;
/// Bytes of the medium that images leave free: the desired set and the logs of a day.
pub const MEDIUM_FREE_BYTES_MIN: u64 = 32 * 1024 * 1024;
/// Part of the medium that unused layers leave free, percent: Kubernetes' own threshold.
pub const MEDIUM_FREE_PERCENT_MIN: u64 = 15;
