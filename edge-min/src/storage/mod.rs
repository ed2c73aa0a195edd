//! The one place that writes to the medium: the desired set and its cache, the outbox, sealed
//! secrets, the lock of the state folder, and what is known of the flash's wear.

pub mod lock;
pub mod medium;
pub mod outbox;
pub mod seal;
pub mod store;
pub mod tree;
pub mod wear;
