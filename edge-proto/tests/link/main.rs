//! Both ends of the session in one process, with virtual time.
#![expect(
    unreachable_pub,
    reason = "one test binary; pub marks what modules share"
)]
#![expect(
    clippy::panic,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test; a wrong index fails it"
)]

mod basics;
mod blobs;
mod calls;
mod faults;
mod line;
mod network;
mod opening;
mod streams;
mod support;
