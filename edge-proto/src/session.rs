//! The link session of both ends as state machines without IO: [`Node`] on the node, one
//! [`Cloud`] per node on the other side.
//!
//! The loop of a shell is: one `handle`, then `poll` until `None`, then wait until `deadline()` or
//! the next event; at the deadline `handle(now, LinkInput::Tick)`. Each end has its own type of inputs
//! and of outputs, grouped by what they are about; a group that both ends take is one type.
//!
//! Each side is the sender of one replicated set (cloud: desired, node: reported) and the receiver
//! of the other. A lost, doubled or reordered frame can delay convergence, never corrupt a set.

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

/// Cuts `text` to its cap, at a character.
fn cut(text: &mut String, bytes_max: usize) {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}
