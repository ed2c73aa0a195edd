//! The only modules that write to the medium: the desired set and its cache, the outbox, sealed
//! secrets, the lock of the state folder, and the wear of the flash.

pub mod lock;
pub mod medium;
pub mod outbox;
pub mod seal;
pub mod store;
pub mod tree;
pub mod wear;
