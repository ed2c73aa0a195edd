//! The link session of both ends as state machines without IO: [`Node`] on the node, one
//! [`Cloud`] per node in edge-cloud.
//!
//! The loop of a shell is: one `handle`, then `poll` until `None`, then wait until `deadline()` or
//! the next event; at the deadline `handle(now, LinkInput::Tick)`. Each end has its own type of inputs
//! and of outputs, grouped by subject; a group that both ends have is one type.
//!
//! Each end is the sender of one replicated set (cloud: desired, node: reported) and the receiver
//! of the other. A lost, duplicated or reordered frame can delay convergence, never corrupt a set.

mod call;
mod cloud;
mod congestion_window;
mod input;
mod link;
mod node;
mod opening;
mod output;
mod piece;
mod receiver;
mod sender;
mod stream;

use alloc::string::String;
use alloc::vec::Vec;

pub use cloud::{Cloud, CloudConfig};
pub use input::{
    BlobInput, CallInput, CallOpen, CallResult, CloudInput, CloudRecordsInput, FetchInput,
    LinkInput, NodeInput, NodeRecordsInput, StateInput,
};
pub use node::{Node, NodeConfig};
pub use output::{
    BlobOutput, CallOutput, CloudOutput, LinkOutput, NodeOutput, NodeRecordsOutput, RecordsOutput,
    StateOutput,
};

use crate::frame::FrameError;
use crate::hash::Hash32;
use crate::limits::WIRE_VERSION;
pub use crate::set::Reason;

/// Payload of an object as the receiver gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// The bytes, at most `INLINE_BYTES_MAX`.
    Inline(Vec<u8>),
    /// A large object; the caller already has all its bytes (`BlobHave`).
    Large {
        /// Hash of the bytes.
        sha256: Hash32,
        /// Their number.
        len: u32,
    },
    /// Refused before its bytes were fetched; the caller keeps a stub.
    Refused {
        /// Hash of the payload.
        hash: crate::hash::Hash16,
        /// Why.
        reason: Reason,
    },
}

/// Violation by the peer, or a request that cannot be fulfilled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// The bytes are not a frame.
    Frame(FrameError),
    /// The peer uses a lower epoch than one already accepted (node), or the node
    /// has accepted a higher one than ours (cloud: another replica owns the shard).
    Epoch(u64),
    /// The wire versions do not overlap; contains the peer's newest.
    Version(u8),
    /// Node only: the cloud opens no session with this agent. `Hello` is repeated at long intervals.
    Refused {
        /// Number of the reason, see `frame::Refusal`.
        reason: u8,
        /// Oldest wire version that the cloud reads.
        wire_min: u8,
        /// Newest wire version that the cloud reads.
        wire_max: u8,
    },
    /// A change would exceed the cap of the set, or contains a key twice.
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

/// Truncates `text` to its cap, at a character.
fn cut(text: &mut String, bytes_max: usize) {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}
