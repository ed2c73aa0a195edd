//! The wire of edge-min: object types, frames, the replicated set, and the link session of both
//! ends, as synchronous state machines (`handle`, then drain `poll`, then wait for `deadline`).
//!
//! Never does IO, never reads a clock, never allocates beyond the caps in [`limits`].
//! `docs/wire.md` specifies the bytes.
#![no_std]
#![forbid(unsafe_code)]
#![warn(
    clippy::std_instead_of_core,
    clippy::std_instead_of_alloc,
    clippy::alloc_instead_of_core
)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod call;
pub mod enrol;
pub mod fields;
pub mod frame;
pub mod hash;
pub mod key;
pub mod lanes;
pub mod limits;
pub mod object;
pub mod rate_limiter;
pub mod session;
pub mod set;
pub mod sorted;
pub mod wire;

/// Milliseconds of the caller's monotonic clock. Only differences have a meaning.
pub type Millis = u64;

/// Postcard bytes of a small value of ours. Encoding into a Vec cannot fail, so there is no error.
#[must_use]
pub fn encode<T: serde::Serialize + ?Sized>(value: &T) -> alloc::vec::Vec<u8> {
    postcard::to_allocvec(value).unwrap_or_default()
}
